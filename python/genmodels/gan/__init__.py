"""Generative adversarial networks, the techniques that train them, and pictures of what they have learnt."""

from .bigan import BiGAN, PairDiscriminator
from .cyclegan import Cycle, CycleGAN
from .gan import DCGAN, GAN
from .networks import (
    ConvGenerator,
    Discriminator,
    MLPGenerator,
    conv_trunk,
    convolutional,
    initialise,
    mlp_trunk,
    perceptrons,
    slerp,
)
from .pix2pix import Pix2Pix, Translator
from .pool import ImagePool
from .semi import SemiSupervisedGAN
from .techniques import Techniques
from .translators import PatchGAN, ResidualTranslator, UNet
from .wasserstein import WGAN, WGANGP

__all__ = [
    "DCGAN",
    "GAN",
    "WGAN",
    "WGANGP",
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
    "SemiSupervisedGAN",
    "Techniques",
    "Translator",
    "UNet",
    "conv_trunk",
    "convolutional",
    "initialise",
    "mlp_trunk",
    "perceptrons",
    "slerp",
]
