"""Fused layers, one file per operator family."""

from .coupling import AffineCoupling, PlanarFlow
from .minibatch import MinibatchDiscrimination

__all__ = ["AffineCoupling", "MinibatchDiscrimination", "PlanarFlow"]
