"""A generator learnt with its inverse: Donahue, Krähenbühl and Darrell, "Adversarial feature learning", 2017 (also
Dumoulin et al., "Adversarially learned inference", 2017)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gmkernels as gmk

from ..training import Part
from .gan import GAN, wide
from .networks import ConvGenerator, Norm, conv_trunk, initialise


class PairDiscriminator(nn.Module):
    """The score (B,) of images x and latents z together: the features of each, side by side, through a perceptron.

    Args:
        trunk: images to features (B, features).
        features: their number.
        latents: size of z.
        hidden: units of the layers that z alone, and then both, go through.
        dropout: probability for the features of x, and of both, in training.
    """

    def __init__(self, trunk: nn.Module, features: int, latents: int, hidden: int = 512, dropout: float = 0.0) -> None:
        super().__init__()

        def layer(inputs: int) -> list[nn.Module]:
            return [nn.Linear(inputs, hidden), nn.LeakyReLU(0.2), *([nn.Dropout(dropout)] if dropout else [])]

        self.trunk = trunk
        self.code = nn.Sequential(*layer(latents))
        self.joint = nn.Sequential(*layer(features + hidden))
        self.head = nn.Linear(hidden, 1)

    def features(self, x: Tensor, z: Tensor) -> Tensor:
        """What the last hidden layer makes of pairs: (B, hidden)."""
        return self.joint(torch.cat([self.trunk(x), self.code(z)], 1))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.head(self.features(x, z)).squeeze(1)


class BiGAN(GAN):
    """A GAN whose discriminator sees pairs, (x, E(x)) of data and (G(z), z) of noise, so that E learns to invert G.

    With logits l (their equation 3, each side against flipped labels as in section 3.4), means over the batch:

    - critic: ``softplus(-l(x, E(x))) + softplus(l(G(z), z))``,
    - generator, G and E together: ``softplus(l(x, E(x))) + softplus(-l(G(z), z))``, with ``saturating`` minus the critic's,
      with feature matching the squared distance of the mean features of the two kinds of pairs.

    At the optimum the two laws of pairs are one and E is the inverse of G almost everywhere (theorem 2). The networks are
    those of :class:`DCGAN`; E is the mirror of G with a linear map to z.

    Args:
        shape: (channels, height, width) with sides that halve evenly to 4 to 7 pixels.
        latents: size of z, standard normal; 50 in the paper for 28x28.
        width: channels of the largest inner images.
        norm: of generator and encoder, ``batch``, ``layer`` or ``none``; ``critic_norm`` of the discriminator.
        hidden: units of the discriminator's layers after the convolutions.
        dropout: of the discriminator.
        options: see :class:`GAN`; penalties are of a discriminator of images alone, and not offered.

    Raises:
        ValueError: sizes that do not fit the networks, or an option that is not offered.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        latents: int = 50,
        width: int = 64,
        norm: Norm = "batch",
        critic_norm: Norm = "none",
        hidden: int = 512,
        dropout: float = 0.0,
        **options: Any,
    ) -> None:
        if "virtual" in (norm, critic_norm):
            raise ValueError("BiGAN: virtual batch norm needs a reference batch of pairs, which is not offered")
        shape = tuple(shape)
        generator = ConvGenerator(shape, latents, width, norm)
        trunk, features = conv_trunk(shape, width, critic_norm, dropout)
        discriminator = PairDiscriminator(trunk, features, latents, hidden, dropout)
        super().__init__(shape, latents=latents, generator=generator, discriminator=discriminator, **options)
        if self.penalty != "none":
            raise ValueError("BiGAN: a penalty is of a discriminator of images alone, and not offered")
        eyes, features = conv_trunk(shape, width, norm)
        self.encoder = nn.Sequential(eyes, nn.Linear(features, latents))
        for network in (generator, discriminator, self.encoder):
            initialise(network)
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.techniques.historical:
            both = [*generator.parameters(), *self.encoder.parameters()]
            self.history["generator"] = gmk.nn.HistoricalAverage(both)
            self.history["critic"] = gmk.nn.HistoricalAverage(discriminator)

    def critic_losses(self, batch: Any, real: Tensor) -> dict[str, Tensor]:
        z = self.noise(len(real))
        with torch.no_grad():
            fake, code = self.generator(z), self.encoder(real)
        return self.judge(wide(self.discriminator(real, code)), wide(self.discriminator(fake, z)))

    def generator_losses(self, real: Tensor) -> dict[str, Tensor]:
        z = self.noise(len(real))
        pairs = (real, self.encoder(real)), (self.generator(z), z)
        if self.techniques.feature_matching:
            features = [self.discriminator.features(*pair) for pair in pairs]  # type: ignore[operator]
            # E is learnt too, and its images are the real ones.
            return {"loss": gmk.feature_matching_loss(*features, detach_real=False)}
        found, made = (wide(self.discriminator(*pair)) for pair in pairs)
        if self.saturating:
            return {"loss": -F.softplus(-found).mean() - F.softplus(made).mean()}
        return {"loss": F.softplus(found).mean() + F.softplus(-made).mean()}

    def parts(
        self,
        *,
        lr: float = 2e-4,
        critic_lr: float | None = None,
        betas: tuple[float, float] = (0.5, 0.999),
        n_critic: int = 1,
    ) -> dict[str, Part]:
        """As :meth:`GAN.parts`; G and E are one part."""
        both = nn.ModuleList([self.generator, self.encoder])
        return {
            name: Part(self.optimizer(network, rate, betas), count, functools.partial(self.updated, name))
            for name, network, rate, count in (
                ("critic", self.discriminator, critic_lr or lr, n_critic),
                ("generator", both, lr, 1),
            )
        }

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """E(x): latents (B, latents) of images, uint8 or in [0, 1]."""
        return torch.cat([self.encoder(self.inside(part.to(self.device))) for part in x.split(500)])

    def reconstruct(self, x: Tensor) -> Tensor:
        """G(E(x)) in [0, 1]."""
        return self.decode(self.encode(x))
