"""Generative adversarial networks, the techniques that train them, and pictures of what they have learnt."""

from .gan import DCGAN, GAN, BatchCoupled
from .networks import ConvGenerator, Discriminator, MLPGenerator, conv_trunk, initialise, mlp_trunk, slerp
from .techniques import Techniques

__all__ = [
    "DCGAN",
    "GAN",
    "BatchCoupled",
    "ConvGenerator",
    "Discriminator",
    "MLPGenerator",
    "Techniques",
    "conv_trunk",
    "initialise",
    "mlp_trunk",
    "slerp",
]
