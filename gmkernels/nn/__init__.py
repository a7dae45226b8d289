"""Fused layers, one file per operator family."""

from .coupling import AffineCoupling, PlanarFlow
from .gaussian import Reparameterize
from .masked_conv import CausalConv1d, GatedActivation, MaskedConv2d
from .minibatch import MinibatchDiscrimination
from .rbm import RBM
from .reversible import Reversible

__all__ = [
    "RBM",
    "AffineCoupling",
    "CausalConv1d",
    "GatedActivation",
    "MaskedConv2d",
    "MinibatchDiscrimination",
    "PlanarFlow",
    "Reparameterize",
    "Reversible",
]
