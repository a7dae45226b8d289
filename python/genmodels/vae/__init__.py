"""Variational autoencoders: plain, beta, conditional and semi-supervised, with their bounds in nats per image."""

from ..masks import REGIONS, hide, random_masks
from .beta import Beta
from .semi import SemiBatch, SemiStream, SemiSupervisedVAE, keep_labels
from .vae import VAE, ConditionalVAE, NonFiniteLoss, Terms, kl_divergence

__all__ = [
    "REGIONS",
    "VAE",
    "Beta",
    "ConditionalVAE",
    "NonFiniteLoss",
    "SemiBatch",
    "SemiStream",
    "SemiSupervisedVAE",
    "Terms",
    "hide",
    "keep_labels",
    "kl_divergence",
    "random_masks",
]
