"""Fused layers, one file per operator family."""

from .coupling import AffineCoupling, PlanarFlow
from .gaussian import Reparameterize
from .minibatch import MinibatchDiscrimination

__all__ = ["AffineCoupling", "MinibatchDiscrimination", "PlanarFlow", "Reparameterize"]
