"""Image-to-image translation without pairs: Zhu, Park, Isola and Efros, "Unpaired image-to-image translation using
cycle-consistent adversarial networks", 2017."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

import gmkernels as gmk

from ..data import Batch
from .pix2pix import Translator, by_reference
from .pool import ImagePool
from .techniques import Techniques
from .translators import Norm, PatchGAN, ResidualTranslator


class Cycle(NamedTuple):
    """Images of both domains, their translations, and the translations back, each (B, *shape) in [0, 1]."""

    x: Tensor
    to_y: Tensor
    back_to_x: Tensor
    y: Tensor
    to_x: Tensor
    back_to_y: Tensor


class CycleGAN(Translator):
    """Two generators, G: X -> Y and F: Y -> X, that undo each other, and a critic of patches for each domain.

    With images in [-1, 1] and means over images, patches and pixels (their equations 1 to 3, with least squares for the
    logarithms as in section 4, and section 5.2 for the identity),

    - critics: ``1/2 [mean (D_Y(y) - 1)^2 + mean D_Y(G(x))^2]`` and the same for D_X, the generated images through a
      pool of earlier ones (:class:`ImagePool`),
    - generators: ``mean (D_Y(G(x)) - 1)^2 + mean (D_X(F(y)) - 1)^2 + cycle * (mean |F(G(x)) - x| + mean |G(F(y)) - y|)
      + cycle * identity * (mean |G(y) - y| + mean |F(x) - x|)``.

    With label smoothing the critics' target for real images is that much below 1; with feature matching the generators'
    first two terms are the squared distances of the mean features of real and translated images.

    Args:
        shape: (C, H, W) of both domains.
        width: channels of the first layers; 64 in the paper.
        blocks: residual blocks of a generator; 6 in the paper for 128x128, 9 for 256x256.
        layers: convolutions of stride 2 of a critic; 3 (70x70 patches) in the paper.
        norm: ``instance``, ``batch``, ``virtual`` or ``none``.
        cycle: weight of the cycle; 10 in the paper.
        identity: weight, relative to ``cycle``, of leaving alone what is of the other domain already; 0.5 in the paper
            where colours matter, 0 elsewhere.
        pool: images that each pool keeps; 0 for none.
        minibatch: closeness features of the critics' minibatch discrimination; see :class:`PatchGAN`.
        reference: images of X and of Y by which virtual batch norm normalises, each network by those of the domain that
            it is shown.
        levels, techniques: see :class:`genmodels.gan.Translator`.

    Raises:
        ValueError: the sizes do not fit the networks, a weight is negative, or there is no reference for virtual batch
            norm.
    """

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 64,
        blocks: int = 6,
        layers: int = 3,
        norm: Norm = "instance",
        cycle: float = 10.0,
        identity: float = 0.0,
        pool: int = 50,
        minibatch: int = 0,
        reference: tuple[Tensor, Tensor] | None = None,
        levels: int = 256,
        techniques: Techniques | None = None,
    ) -> None:
        super().__init__(levels, techniques)
        if cycle < 0 or identity < 0:
            raise ValueError(f"CycleGAN: cycle and identity must be 0 or more, got {cycle} and {identity}")
        if shape[1] % 4 or shape[2] % 4:
            raise ValueError(f"CycleGAN: height and width must be multiples of 4, got {shape[1]}x{shape[2]}")
        self.shape, self.cycle, self.identity = tuple(shape), cycle, identity
        channels = shape[0]
        self.to_y = ResidualTranslator(channels, channels, width=width, blocks=blocks, norm=norm)
        self.to_x = ResidualTranslator(channels, channels, width=width, blocks=blocks, norm=norm)
        self.critic_x = PatchGAN(channels, width=width, layers=layers, norm=norm, minibatch=minibatch)
        self.critic_y = PatchGAN(channels, width=width, layers=layers, norm=norm, minibatch=minibatch)
        self.refer(norm, reference, self.shape, self.shape)
        self.pool_x, self.pool_y = ImagePool(pool, shape), ImagePool(pool, shape)
        self.remember(critic=[self.critic_x, self.critic_y], generator=[self.to_x, self.to_y])

    def references(self, x: Tensor, y: Tensor) -> Mapping[nn.Module, Tensor]:
        return {self.to_y: x, self.critic_x: x, self.to_x: y, self.critic_y: y}

    @by_reference
    def losses(self, batch: Batch, part: str, key: Tensor | int | None = None) -> dict[str, Tensor]:
        """The loss of ``part``, ``critic`` or ``generator``, and what it is made of.

        Args:
            batch: images ``x`` of X and ``y`` of Y, as many of one as of the other or not.
            key: of the pools' draws.

        Raises:
            ValueError: no such part, no images, no ``y``, or another shape.
        """
        if batch.y is None:
            raise ValueError("CycleGAN: the batch has no images y of the second domain")
        x, y = self.inside(batch.x, self.shape, "x"), self.inside(batch.y, self.shape, "y")
        self.some(x, y)
        if part == "critic":
            return self.held(self.judged(x, y, self.key(key)), part)
        if part == "generator":
            return self.held(self.translated(x, y), part)
        raise ValueError(f"CycleGAN: part must be critic or generator, got {part!r}")

    def judged(self, x: Tensor, y: Tensor, key: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            made_y, made_x = self.to_y(x), self.to_x(y)
        if self.training:
            made_y = self.pool_y.exchange(made_y, key)
            made_x = self.pool_x.exchange(made_x, key + torch.tensor([0, 1], device=key.device))
        found, target = {}, 1 - self.techniques.label_smoothing
        for name, critic, real, fake in (("x", self.critic_x, x, made_x), ("y", self.critic_y, y, made_y)):
            found[f"critic_{name}"] = 0.5 * ((critic(real) - target).square().mean() + critic(fake).square().mean())
        return {"loss": found["critic_x"] + found["critic_y"], **found}

    def translated(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        made_y, made_x = self.to_y(x), self.to_x(y)
        fooled = self.fool(self.critic_y, y, made_y) + self.fool(self.critic_x, x, made_x)
        cycle = (self.to_x(made_y) - x).abs().mean() + (self.to_y(made_x) - y).abs().mean()
        found = {"loss": fooled + self.cycle * cycle, "adversarial": fooled, "cycle": cycle}
        if self.identity:
            same = (self.to_y(y) - y).abs().mean() + (self.to_x(x) - x).abs().mean()
            found |= {"loss": found["loss"] + self.cycle * self.identity * same, "identity": same}
        return found

    def fool(self, critic: PatchGAN, real: Tensor, made: Tensor) -> Tensor:
        """What a generator wants of a critic."""
        if not self.techniques.feature_matching:
            return (critic(made) - 1).square().mean()
        with torch.no_grad():
            wanted = critic.features(real)
        return gmk.feature_matching_loss(wanted, critic.features(made))

    @torch.no_grad()
    @by_reference
    def translate(self, images: Tensor, to: str = "y") -> Tensor:
        """Images (B, *shape) of the other domain as images in [0, 1] of domain ``to``, ``x`` or ``y``."""
        if to not in ("x", "y"):
            raise ValueError(f"CycleGAN: to must be x or y, got {to!r}")
        network = self.to_y if to == "y" else self.to_x
        return self.outside(network(self.inside(images, self.shape, "images")))

    @torch.no_grad()
    @by_reference
    def round_trip(self, x: Tensor, y: Tensor) -> Cycle:
        """Both ways there and back."""
        x, y = self.inside(x, self.shape, "x"), self.inside(y, self.shape, "y")
        to_y, to_x = self.to_y(x), self.to_x(y)
        return Cycle(*(self.outside(image) for image in (x, to_y, self.to_x(to_y), y, to_x, self.to_y(to_x))))
