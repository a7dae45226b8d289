"""Autoregressive image models: PixelCNN and Gated PixelCNN, with exact log-probabilities and cached sampling."""

from .binary import BinaryImages, binarised
from .heads import Head, discretised_logistic
from .networks import Gated, Network, Plain
from .pixelcnn import GatedPixelCNN, PixelCNN, PixelModel

__all__ = [
    "BinaryImages",
    "Gated",
    "GatedPixelCNN",
    "Head",
    "Network",
    "PixelCNN",
    "PixelModel",
    "Plain",
    "binarised",
    "discretised_logistic",
]
