"""Generative adversarial networks, the techniques that train them, and pictures of what they have learnt."""

from .bigan import BiGAN, PairDiscriminator
from .cyclegan import Cycle, CycleGAN
from .gan import DCGAN, GAN, BatchCoupled
from .networks import ConvGenerator, Discriminator, MLPGenerator, conv_trunk, initialise, mlp_trunk, slerp
from .pix2pix import Pix2Pix, Translator
from .pool import ImagePool
from .techniques import Techniques
from .translators import PatchGAN, ResidualTranslator, UNet

__all__ = [
    "DCGAN",
    "GAN",
    "BatchCoupled",
    "BiGAN",
    "ConvGenerator",
    "Cycle",
    "CycleGAN",
    "Discriminator",
    "ImagePool",
    "MLPGenerator",
    "PairDiscriminator",
    "PatchGAN",
    "Pix2Pix",
    "ResidualTranslator",
    "Techniques",
    "Translator",
    "UNet",
    "conv_trunk",
    "initialise",
    "mlp_trunk",
    "slerp",
]
