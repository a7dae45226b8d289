"""A generator learnt with its inverse: Donahue, Krähenbühl and Darrell, "Adversarial feature learning", 2017 (also
Dumoulin et al., "Adversarially learned inference", 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gmkernels as gmk

from .gan import GAN, wide
from .networks import REFERENCES, Closeness, ConvGenerator, Norm, conv_trunk, initialise, positive, referring


class PairDiscriminator(nn.Module):
    """The score (B,) of images x and latents z together: the features of each, side by side, through a perceptron.

    Args:
        shape: of x without the batch.
        trunk: images to features (B, features).
        features: their number.
        latents: size of z.
        hidden: units of the layers that z alone, and then both, go through.
        dropout: probability for the features of x, and of both, in training.
        minibatch: closeness features of the pairs' last features that the score is made of beside them; 0 for none.
    """

    def __init__(
        self,
        shape: Sequence[int],
        trunk: nn.Module,
        features: int,
        latents: int,
        hidden: int = 512,
        dropout: float = 0.0,
        minibatch: int = 0,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)

        def layer(inputs: int) -> list[nn.Module]:
            return [nn.Linear(inputs, hidden), nn.LeakyReLU(0.2), *([nn.Dropout(dropout)] if dropout else [])]

        self.trunk = trunk
        self.code = nn.Sequential(*layer(latents))
        self.joint = nn.Sequential(*layer(features + hidden))
        close = [Closeness(hidden, minibatch)] if minibatch else []
        self.head = nn.Sequential(*close, nn.Linear(hidden + minibatch, 1))

    def features(self, x: Tensor, z: Tensor) -> Tensor:
        """What the last hidden layer makes of pairs: (B, hidden)."""
        return self.joint(torch.cat([self.trunk(x), self.code(z)], 1))

    def forward(self, x: Tensor, z: Tensor | None = None) -> Tensor:
        """The score of x (B, *shape) and z (B, latents), or of pairs in one tensor (B, pixels + latents), x first."""
        if z is None:
            pixels = math.prod(self.shape)
            x, z = x[:, :pixels].unflatten(1, self.shape), x[:, pixels:]
        return self.head(self.features(x, z)).squeeze(1)


class BiGAN(GAN):
    """A GAN whose discriminator sees pairs, (x, E(x)) of data and (G(z), z) of noise, so that E learns to invert G.

    With logits l (their equation 3, each side against flipped labels as in section 3.4), means over the batch:

    - critic: ``softplus(-l(x, E(x))) + softplus(l(G(z), z))``,
    - generator, G and E together: ``softplus(l(x, E(x))) + softplus(-l(G(z), z))``, with ``saturating`` minus the critic's,
      with feature matching the squared distance of the mean features of the two kinds of pairs.

    At the optimum the two laws of pairs are one and E is the inverse of G almost everywhere (theorem 2). The networks are
    those of :class:`DCGAN`; E is the mirror of G with a linear map to z.

    At the optimum: before, the game says little of which z made an x. Two cycles, 0 in the paper, may say it too:

    - ``latent_weight`` times the mean over batch and latents of ``(E(G(z)) - z)^2``, whose gradient goes to E and, times
      ``latent_share``, to G. With a share of 0 this is the joint latent regressor that the paper compares with (section
      4.1), here beside the game, with 1 an explicit cycle of Li et al., "ALICE: towards understanding adversarial
      learning for joint distribution matching", 2017, section 3: G learns to show z in its images, and as the share
      grows it does so before they look like the data.
    - ``pixel_weight`` times the mean over batch and pixels, in [-1, 1], of ``|G(E(x)) - x|``, for G and E: the other
      cycle of Li et al.

    A penalty is on the gradient of the score by x and z together, since a pair is what the critic is a function of (as
    the penalties of Gulrajani et al. 2017, equation 3, and Mescheder et al. 2018, section 4.1, are by the critic's whole
    input): ``gradient`` on the straight lines from (G(z), z) to (x, E(x)), one epsilon for both halves, ``r1`` at (x,
    E(x)), ``r2`` at (G(z), z), ``dragan`` round (x, E(x)).

    Args:
        shape: (channels, height, width) with sides that halve evenly to 4 to 7 pixels.
        latents: size of z, standard normal; 50 in the paper for 28x28.
        width: channels of the largest inner images.
        norm: of generator and encoder, ``batch``, ``layer``, ``virtual`` or ``none``; ``critic_norm`` of the
            discriminator's convolutions.
        hidden: units of the discriminator's layers after the convolutions.
        dropout: of the discriminator.
        minibatch: closeness features of the discriminator's features of pairs (Salimans et al. 2016, section 3.2).
        reference: images, in [-1, 1], by which virtual batch norm in encoder and discriminator normalises; that of the
            generator is noise.
        latent_weight, pixel_weight: of the cycles from latents and from images; 0 is the BiGAN of the paper.
        latent_share: in [0, 1], of the gradient of the first that goes on to G.
        options: see :class:`GAN`.

    Raises:
        ValueError: sizes that do not fit the networks, a negative weight of a cycle, a share outside [0, 1], or virtual
            batch norm without a reference.
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
        minibatch: int = 0,
        reference: Tensor | None = None,
        latent_weight: float = 0.0,
        latent_share: float = 0.0,
        pixel_weight: float = 0.0,
        **options: Any,
    ) -> None:
        shape = tuple(shape)
        positive(latents=latents, width=width, hidden=hidden)
        if not min(latent_weight, pixel_weight) >= 0:
            raise ValueError(
                f"BiGAN: latent_weight and pixel_weight must be 0 or more, got {latent_weight} and {pixel_weight}"
            )
        if not 0 <= latent_share <= 1:
            raise ValueError(f"BiGAN: latent_share must be in [0, 1], got {latent_share}")

        generator: nn.Module = ConvGenerator(shape, latents, width, norm)
        if norm == "virtual":
            generator = referring(generator, torch.randn(REFERENCES, latents))
        trunk, features = conv_trunk(shape, width, critic_norm, dropout)
        seen = referring(trunk, reference) if critic_norm == "virtual" else trunk
        discriminator = PairDiscriminator(shape, seen, features, latents, hidden, dropout, minibatch)
        super().__init__(shape, latents=latents, generator=generator, discriminator=discriminator, **options)
        self.latent_weight, self.latent_share, self.pixel_weight = latent_weight, latent_share, pixel_weight
        eyes, features = conv_trunk(shape, width, norm)
        encoder = nn.Sequential(eyes, nn.Linear(features, latents))
        self.encoder = referring(encoder, reference) if norm == "virtual" else encoder
        for network in (self.generator, discriminator, self.encoder):
            initialise(network)
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.techniques.historical:
            both = [*self.generator.parameters(), *self.encoder.parameters()]
            self.history["generator"] = gmk.nn.HistoricalAverage(both)
            self.history["critic"] = gmk.nn.HistoricalAverage(discriminator)

    def critic_losses(self, batch: Any, real: Tensor) -> dict[str, Tensor]:
        z = self.noise(len(real))
        with torch.no_grad():
            fake, code = self.generator(z), self.encoder(real)
        pairs = (torch.cat([x.flatten(1), code], 1) for x, code in ((real, code.to(real)), (fake.to(real), z)))
        penalty = None if self.penalty == "none" else self.penalise(*pairs)
        found = self.judge(wide(self.discriminator(real, code)), wide(self.discriminator(fake, z)))
        return self.penalised(found, penalty)

    def generator_losses(self, x: Tensor) -> dict[str, Tensor]:
        real, z = self.inside(x), self.noise(len(x))
        code, fake = self.encoder(real), self.generator(z)
        cycles = self.cycles(real, code, fake, z)
        return cycles | {"loss": sum(cycles.values(), self.confuse((real, code), (fake, z)))}

    def confuse(self, found: tuple[Tensor, Tensor], made: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of G and E by what the discriminator sees in pairs (x, E(x)) and (G(z), z)."""
        if self.techniques.feature_matching:
            features = [self.discriminator.features(*pair) for pair in (found, made)]  # type: ignore[operator]
            # E is learnt too, and its images are the real ones.
            return gmk.feature_matching_loss(*features, detach_real=False)
        real, fake = (wide(self.discriminator(*pair)) for pair in (found, made))
        if self.saturating:
            return -F.softplus(-real).mean() - F.softplus(fake).mean()
        return F.softplus(real).mean() + F.softplus(-fake).mean()

    def cycles(self, real: Tensor, code: Tensor, fake: Tensor, z: Tensor) -> dict[str, Tensor]:
        """How far latents and images, weighted, come back from the other side; nothing of a cycle without weight."""
        losses = {}
        if self.latent_weight:
            seen = fake.detach().lerp(fake, self.latent_share)  # the same images, a share of the gradient
            losses["latent"] = self.latent_weight * F.mse_loss(wide(self.encoder(seen)), z)
        if self.pixel_weight:
            losses["pixel"] = self.pixel_weight * F.l1_loss(wide(self.generator(code)), real)
        return losses

    def players(self) -> dict[str, nn.Module]:
        """G and E are one part."""
        return {"critic": self.discriminator, "generator": nn.ModuleList([self.generator, self.encoder])}

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """E(x): latents (B, latents) of images, uint8 or in [0, 1]."""
        return torch.cat([self.encoder(self.inside(part.to(self.device))) for part in x.split(500)])

    def reconstruct(self, x: Tensor) -> Tensor:
        """G(E(x)) in [0, 1]."""
        return self.decode(self.encode(x))
