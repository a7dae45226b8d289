"""Fused layers, one file per operator family."""

from .coupling import AffineCoupling, PlanarFlow
from .gaussian import Reparameterize
from .historical import HistoricalAverage
from .made import MADE, MaskedAffineAutoregressive, MaskedLinear
from .masked_conv import CausalConv1d, GatedActivation, GatedMaskedConv2d, MaskedConv2d
from .minibatch import MinibatchDiscrimination
from .mlp import MLP
from .rbm import RBM
from .reversible import Reversible
from .virtual_batch_norm import VirtualBatch, VirtualBatchNorm, virtual_batch

__all__ = [
    "MLP",
    "MADE",
    "RBM",
    "AffineCoupling",
    "CausalConv1d",
    "GatedActivation",
    "GatedMaskedConv2d",
    "HistoricalAverage",
    "MaskedAffineAutoregressive",
    "MaskedConv2d",
    "MaskedLinear",
    "MinibatchDiscrimination",
    "PlanarFlow",
    "Reparameterize",
    "Reversible",
    "VirtualBatch",
    "VirtualBatchNorm",
    "virtual_batch",
]
