"""The adversarial game: Goodfellow et al., "Generative adversarial nets", 2014, and what every later form shares."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gmkernels as gmk

from ..model import Model
from ..training import Part
from .networks import Discriminator, MLPGenerator, Norm, batch_coupled, convolutional, mlp_trunk, slerp
from .techniques import Techniques

Penalty = Literal["none", "gradient", "r1", "r2", "dragan"]


class GAN(Model):
    """A generator and a discriminator with opposite aims. With logits ``l = D(x)``, means over the batch:

    - critic: ``softplus(-l(real)) + smoothing l(real) + softplus(l(fake))``, that is the binary cross-entropy with
      target ``1 - smoothing`` for real samples,
    - generator: ``softplus(-l(fake))``, or with ``saturating`` the ``-softplus(l(fake))`` of equation 1; with feature
      matching the squared distance of mean features instead.

    Images are in [-1, 1] inside, and outside in [0, 1] or uint8 in ``[0, levels)``; vectors are standardised by
    ``location`` and ``scale``. Real and fake samples go through the discriminator as batches of their own.

    Args:
        shape: of a sample: (channels, height, width), or (features,).
        latents: size of the normal noise.
        generator, discriminator: networks; if not given, perceptrons with hidden layers of ``hidden`` units.
        levels: number of values of an integer pixel.
        saturating: the generator minimises ``log(1 - D(G(z)))``.
        penalty: on the gradient of the score, added to the critic's loss: ``gradient`` (between real and fake samples),
            ``r1`` (at real ones), ``r2`` (at fake ones) or ``dragan`` (round real ones); see :func:`gmkernels.gradient_penalty`.
        penalty_weight: its ``lambda_`` or ``gamma``.
        techniques: see :class:`Techniques`.
        location, scale: mean and deviation of vectors, (features,) each.

    Raises:
        ValueError: a shape, number or name outside what is described here.
    """

    location: Tensor
    scale: Tensor
    updates: Tensor
    bounded = True
    """Whether the score is the logit of a probability."""

    def __init__(
        self,
        shape: int | Sequence[int],
        *,
        latents: int = 64,
        hidden: Sequence[int] = (256, 256),
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        levels: int = 256,
        saturating: bool = False,
        penalty: Penalty = "none",
        penalty_weight: float = 10.0,
        techniques: Techniques | None = None,
        location: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.shape: tuple[int, ...] = (shape,) if isinstance(shape, int) else tuple(shape)
        if len(self.shape) not in (1, 3) or min(self.shape) < 1:
            raise ValueError(
                f"{type(self).__name__}: shape must be (features,) or (channels, height, width), got {self.shape}"
            )
        if latents < 1 or levels < 2:
            raise ValueError(f"{type(self).__name__}: latents must be 1 and levels 2 or more, got {latents}, {levels}")
        if penalty not in ("none", "gradient", "r1", "r2", "dragan"):
            raise ValueError(
                f"{type(self).__name__}: penalty must be 'none', 'gradient', 'r1', 'r2' or 'dragan', got {penalty!r}"
            )
        self.latents, self.levels, self.saturating = latents, levels, saturating
        self.penalty, self.penalty_weight = penalty, penalty_weight
        self.techniques = techniques or Techniques()
        self.generator = generator or MLPGenerator(self.shape, latents, hidden)
        self.discriminator = discriminator or Discriminator(*mlp_trunk(self.shape, hidden))
        coupled = batch_coupled(self.discriminator)
        if penalty != "none" and coupled:
            warnings.warn(
                f"a penalty on each sample's gradient is ill-defined where samples of a batch see each other: "
                f"{', '.join(coupled)}",
                gmk.BatchCoupledWarning,
                stacklevel=2,
            )
        self.least = 2 if coupled or batch_coupled(self.generator) else 1
        if not self.images:
            self.register_buffer("location", torch.zeros(self.shape) if location is None else location)
            self.register_buffer("scale", torch.ones(self.shape) if scale is None else scale)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.history = nn.ModuleDict(
            {
                "critic": gmk.nn.HistoricalAverage(self.discriminator),
                "generator": gmk.nn.HistoricalAverage(self.generator),
            }
            if self.techniques.historical
            else {}
        )

    @property
    def images(self) -> bool:
        """Whether samples are images, not vectors."""
        return len(self.shape) == 3

    # What goes in and what comes out.

    def _shaped(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"expected samples (batch, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        return x

    def inside(self, x: Tensor) -> Tensor:
        """Samples as the networks see them.

        Raises:
            ValueError: another shape than the model's, or floating-point pixels outside [0, 1].
            TypeError: integers other than uint8.
        """
        self._shaped(x)
        if x.dtype == torch.uint8 and self.images:
            return x.to(self.dtype).mul_(2 / (self.levels - 1)).sub_(1)
        if not x.is_floating_point():
            raise TypeError(f"samples must be uint8 images or floating-point, got {x.dtype}")
        if not self.images:
            return ((x - self.location) / self.scale).to(self.dtype)
        if len(x) and not torch.compiler.is_compiling():
            low, high = (float(end) for end in x.aminmax())
            if not (low >= 0 and high <= 1):
                raise ValueError(f"floating-point pixels must lie in [0, 1], got values from {low:.4g} to {high:.4g}")
        return x.to(self.dtype).mul(2).sub_(1)

    def outside(self, x: Tensor) -> Tensor:
        """What the generator makes, as images in [0, 1] or vectors of the data's scale."""
        return (x + 1) / 2 if self.images else x * self.scale + self.location

    def noise(self, n: int, key: Tensor | int | None = None, *, first: int = 0) -> Tensor:
        """``n`` latents (n, latents), standard normal; rows ``first .. first + n`` of the endless table under ``key``."""
        return gmk.random.normal(self.key(key), (n, self.latents), first=first).to(self.dtype)

    # The game.

    def losses(self, batch: Any, part: str) -> dict[str, Tensor]:
        """The loss of ``critic`` or ``generator`` on a batch (its ``x``); call them in this order."""
        if part not in ("critic", "generator"):
            raise ValueError(f"part must be 'critic' or 'generator', got {part!r}")
        x = self._shaped(self.real(batch))
        if len(x) < self.least:
            raise ValueError(
                f"a batch of {len(x)} is too small: batch norm and minibatch discrimination compare its samples"
            )
        found = self.critic_losses(batch, self.inside(x)) if part == "critic" else self.generator_losses(x)
        if self.techniques.historical:
            found["historical"] = self.techniques.historical * self.history[part].penalty()  # type: ignore[operator]
            found["loss"] = found["loss"] + found["historical"]
        return found

    def real(self, batch: Any) -> Tensor:
        """The samples of a batch that the discriminator is to call real."""
        return cast(Tensor, batch.x)

    def critic_losses(self, batch: Any, real: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            fake = self.generator(self.noise(len(real)))
        # The penalty first: what it needs meanwhile is not there any more when the graph of the scores is.
        penalty = None if self.penalty == "none" else self.penalise(real, fake)
        found = self.judge(wide(self.discriminator(real)), wide(self.discriminator(fake)))
        return self.penalised(found, penalty)

    @staticmethod
    def penalised(found: dict[str, Tensor], penalty: Tensor | None) -> dict[str, Tensor]:
        """The critic's losses with the penalty, if there is one."""
        if penalty is None:
            return found
        return found | {"penalty": penalty, "loss": found["loss"] + penalty}

    def judge(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """The critic's loss of the scores (B,) of real and fake samples, and figures to log."""
        smoothing = self.techniques.label_smoothing
        loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        if smoothing:
            loss = loss + smoothing * real.mean()
        return {
            "loss": loss,
            "real": real.detach().sigmoid().mean(),
            "fake": fake.detach().sigmoid().mean(),
        }

    def critic(self) -> Callable[[Tensor], Tensor]:
        """What gives a sample its one score: (B, ...) to (B,)."""
        return self.discriminator

    def penalise(self, real: Tensor, fake: Tensor) -> Tensor:
        """The penalty on the gradient of the score."""
        critic, fake = self.critic(), fake.to(real.dtype)  # under autocast it is narrower
        if self.penalty == "gradient":
            return gmk.gradient_penalty(critic, real, fake, lambda_=self.penalty_weight)
        if self.penalty == "r1":
            return gmk.r1_penalty(critic, real, self.penalty_weight)
        if self.penalty == "r2":
            return gmk.r2_penalty(critic, fake, self.penalty_weight)
        return gmk.dragan_penalty(critic, real, lambda_=self.penalty_weight)

    def generator_losses(self, x: Tensor) -> dict[str, Tensor]:
        """Of as many samples as there are in ``x``, which is looked at by feature matching only."""
        fake = self.generator(self.noise(len(x)))
        if not self.techniques.feature_matching:
            return {"loss": self.fool(wide(self.discriminator(fake)))}
        with torch.no_grad():
            wanted = self.discriminator.features(self.inside(x))  # type: ignore[operator]
        return {"loss": gmk.feature_matching_loss(wanted, self.discriminator.features(fake))}  # type: ignore[operator]

    def fool(self, fake: Tensor) -> Tensor:
        """The generator's loss of the scores (B,) of its samples."""
        return -F.softplus(fake).mean() if self.saturating else F.softplus(-fake).mean()

    def updated(self, part: str) -> None:
        """To be called after every update of a part."""
        if part == "generator":
            self.updates += 1
        if self.techniques.historical:
            self.history[part].update()  # type: ignore[operator]

    def parts(
        self,
        *,
        lr: float = 2e-4,
        critic_lr: float | None = None,
        betas: tuple[float, float] = (0.5, 0.999),
        n_critic: int = 1,
    ) -> dict[str, Part]:
        """Optimizers for :func:`genmodels.training.fit`: by default those of Radford et al. 2016, section 4.

        Raises:
            ValueError: a learning rate is not positive, or ``n_critic`` below 1.
        """
        rates = {"critic": lr if critic_lr is None else critic_lr, "generator": lr}
        if not min(rates.values()) > 0 or n_critic < 1:
            raise ValueError(
                f"{type(self).__name__}: lr and critic_lr must be positive and n_critic 1 or more, got {lr}, {critic_lr} "
                f"and {n_critic}"
            )
        counts = {"critic": n_critic, "generator": 1}
        return {
            name: Part(self.optimizer(network, rates[name], betas), counts[name], functools.partial(self.updated, name))
            for name, network in self.players().items()
        }

    def players(self) -> dict[str, nn.Module]:
        """What each part trains."""
        return {"critic": self.discriminator, "generator": self.generator}

    def optimizer(self, network: nn.Module, lr: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
        return torch.optim.Adam(network.parameters(), lr, betas, fused=True)

    # What it is for.

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Images in [0, 1], or vectors, of latents (N, latents)."""
        if z.dim() != 2 or z.shape[1] != self.latents:
            raise ValueError(f"latents must have shape (batch, {self.latents}), got {tuple(z.shape)}")
        parts = [self.outside(self.generator(part)) for part in z.split(500)]
        return torch.cat(parts) if parts else z.new_empty(0, *self.shape)

    def sample(self, n: int, *, key: Tensor | int | None = None, temperature: float = 1.0) -> Tensor:
        """``n`` samples (n, *shape). In evaluation mode a sample does not depend on the others drawn with it."""
        return self.decode(temperature * self.noise(n, key))

    def interpolate(self, a: Tensor, b: Tensor, steps: int = 9, *, spherical: bool = True) -> Tensor:
        """Samples (N, steps, *shape) from latents ``a`` to ``b`` (N, latents), on the sphere or straight."""
        t = torch.linspace(0, 1, steps, device=a.device, dtype=a.dtype)[None, :, None]
        a, b = a[:, None], b[:, None]
        z = slerp(a, b, t) if spherical else (1 - t) * a + t * b
        return self.decode(z.flatten(0, 1)).unflatten(0, (len(a), steps))

    def arithmetic(self, z1: Tensor, z2: Tensor, z3: Tensor, *, rescale: bool = True) -> Tensor:
        """Samples of ``z1 - z2 + z3`` (N, latents) (Radford et al. 2016, section 6.3.2).

        Three unrelated latents make one that is about 1.7 times too long; ``rescale`` brings it to the length of noise.
        """
        z = z1 - z2 + z3
        if rescale:
            z = z * (math.sqrt(self.latents) / z.norm(dim=1, keepdim=True).clamp_min(1e-12))
        return self.decode(z)


def wide(scores: Tensor) -> Tensor:
    """Scores in float32 at least: under autocast losses would be rounded to 8 bits."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


class DCGAN(GAN):
    """A GAN of strided convolutions by the guidelines of Radford et al. 2016, section 3.

    No pooling, no hidden linear layers; normalisation everywhere but at the generator's output and the discriminator's
    input; ReLU and tanh in the generator, LeakyReLU 0.2 in the discriminator; weights from N(0, 0.02).

    Args:
        shape: (channels, height, width) with sides that halve evenly to 4 to 7 pixels: 28, 32, 64, ...
        latents: size of the noise.
        width: channels of the largest inner images.
        norm: of both networks.
        networks: the other options of :func:`convolutional`.
        options: see :class:`GAN`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        latents: int = 100,
        width: int = 64,
        norm: Norm = "batch",
        networks: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        made = convolutional(shape, latents=latents, width=width, norm=norm, **(networks or {}))
        super().__init__(shape, **made, **options)
