"""Fused layers, one file per operator family."""

from .coupling import AffineCoupling, PlanarFlow
from .gaussian import Reparameterize
from .minibatch import MinibatchDiscrimination
from .rbm import RBM

__all__ = ["RBM", "AffineCoupling", "MinibatchDiscrimination", "PlanarFlow", "Reparameterize"]
