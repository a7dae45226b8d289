"""Images in pairs, for models that translate one kind into another: an input and its target, or two unpaired domains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import gmkernels as gmk

from ..errors import DataError
from .dataset import Batch, ImageDataset, Shuffled


def grey(images: Tensor) -> Tensor:
    """Luminance of colours, uint8 (N, 3, H, W) to (N, 1, H, W): ``0.299 R + 0.587 G + 0.114 B`` (ITU-R BT.601)."""
    weight = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    return (images * weight).sum(1, keepdim=True).round().to(torch.uint8)


def edges(images: Tensor, threshold: float = 48.0) -> Tensor:
    """White edges on black, uint8 (N, 1, H, W): where a channel's Sobel gradient is at least ``threshold`` levels a pixel.

    The gradient is the largest over the channels, of the image continued by its border.
    """
    smooth, difference = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-0.5, 0.0, 0.5])
    across = torch.outer(smooth, difference) / 4
    kernels = torch.stack([across, across.t()])[:, None]
    n, channels, height, width = images.shape
    padded = F.pad(images.float().view(n * channels, 1, height, width), (1, 1, 1, 1), mode="replicate")
    size = F.conv2d(padded, kernels).square().sum(1).sqrt().view(n, channels, height, width)
    return (size.amax(1, keepdim=True) >= threshold).to(torch.uint8) * 255


TASKS: dict[str, Callable[[Tensor], Tensor]] = {"edges": edges, "grey": grey}
"""Ways to make the input of a pair from its target."""


@dataclass(frozen=True)
class PairDataset:
    """Pairs of images in memory.

    Attributes:
        name: what it was made from, and how.
        splits: ``train``, ``valid`` and ``test``: inputs ``x`` (N, C, H, W) and their targets ``y`` (N, C', H, W), both
            uint8 with values in ``[0, levels)``.
    """

    name: str
    splits: dict[str, Batch]
    levels: int = 256

    def __post_init__(self) -> None:
        for split, (x, y) in self.splits.items():
            if y is None or x.dtype != torch.uint8 or y.dtype != torch.uint8 or x.dim() != 4 or y.dim() != 4:
                raise TypeError(f"{self.name}/{split}: inputs and targets must be uint8 images (N, C, H, W)")
            if len(x) != len(y) or x.shape[2:] != y.shape[2:]:
                raise ValueError(
                    f"{self.name}/{split}: inputs {tuple(x.shape)} and targets {tuple(y.shape)} are not pairs"
                )

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width of a target."""
        return tuple(_second(self.splits["train"]).shape[1:])

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Channels, height and width of an input."""
        return tuple(self.splits["train"].x.shape[1:])

    def stream(
        self, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1, mirror: bool = True
    ) -> PairStream:
        """Endless shuffled batches of the training pairs; see :class:`PairStream`."""
        return PairStream(self.splits["train"], batch_size, seed=seed, rank=rank, world=world, mirror=mirror)

    def batches(self, split: str, batch_size: int = 256) -> Iterator[Batch]:
        """One pass over a split in its stored order, the last batch possibly short."""
        x, y = self.splits[split].x, _second(self.splits[split])
        for i in range(0, len(x), batch_size):
            yield Batch(x[i : i + batch_size], y[i : i + batch_size])


def paired(images: ImageDataset, task: str) -> PairDataset:
    """The images as targets, with inputs made of them: ``task`` is one of ``TASKS``.

    Raises:
        ValueError: there is no such task.
        DataError: ``grey`` of images that are not in colour.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    if task == "grey" and images.shape[0] != 3:
        raise DataError(f"task 'grey' needs colour images, and those of {images.name} have {images.shape[0]} channel")
    top = images.levels - 1
    splits = {}
    for name, (target, _) in images.splits.items():
        full = target if top == 255 else (target.float() * (255 / top)).round().to(torch.uint8)
        splits[name] = Batch(TASKS[task](full), full)
    return PairDataset(f"{task} to {images.name}", splits)


class PairStream:
    """Endless batches of pairs, every epoch in a new order, each pair mirrored left to right at random.

    As :class:`genmodels.data.Shuffled`, whose position it has; the coins that mirror are functions of ``(seed, epoch)``
    and the image alone.
    """

    def __init__(
        self, data: Batch, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1, mirror: bool = True
    ) -> None:
        self.data, self.seed, self.mirror = data, seed, mirror
        numbers = torch.arange(len(data.x))
        self.order = Shuffled(Batch(numbers), batch_size, seed=seed, rank=rank, world=world)
        self._coins: tuple[int, Tensor] = (-1, numbers)

    def state_dict(self) -> dict[str, Any]:
        return self.order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order.load_state_dict(state)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        epoch = self.order.epoch
        pick = next(self.order).x
        x, y = self.data.x[pick], _second(self.data)[pick]
        if self.mirror:
            if self._coins[0] != epoch:
                words = gmk.random.bits(torch.tensor([self.order.seed, 2 * epoch + 1]), len(self.data.x))
                self._coins = epoch, words % 2 == 0
            turn = self._coins[1][pick][:, None, None, None]
            x, y = torch.where(turn, x.flip(3), x), torch.where(turn, y.flip(3), y)
        return Batch(x, y)


@dataclass(frozen=True)
class UnpairedDataset:
    """Two domains of images, X and Y, of one shape, with no image of one belonging to an image of the other.

    Attributes:
        name: what it was made from.
        domains: the names of X and Y.
        splits: ``train``, ``valid`` and ``test``: uint8 images of X and of Y, with values in ``[0, levels)``.
    """

    name: str
    domains: tuple[str, str]
    splits: dict[str, tuple[Tensor, Tensor]]
    levels: int = 256

    def __post_init__(self) -> None:
        for split, both in self.splits.items():
            for domain, x in zip(self.domains, both, strict=True):
                if x.dtype != torch.uint8 or x.dim() != 4 or not len(x):
                    raise TypeError(f"{self.name}/{split}/{domain}: expected uint8 images (N, C, H, W), N at least 1")
            if both[0].shape[1:] != both[1].shape[1:]:
                raise ValueError(f"{self.name}/{split}: the two domains have images of different shapes")

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height, width."""
        return tuple(self.splits["train"][0].shape[1:])

    def stream(
        self, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1, mirror: bool = False
    ) -> UnpairedStream:
        """Endless batches of both domains; see :class:`UnpairedStream`."""
        return UnpairedStream(self.splits["train"], batch_size, seed=seed, rank=rank, world=world, mirror=mirror)


class UnpairedStream:
    """Endless batches ``x`` of X and ``y`` of Y, each domain shuffled in its own epochs (a ``BatchStream``)."""

    def __init__(
        self,
        domains: tuple[Tensor, Tensor],
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        mirror: bool = False,
    ) -> None:
        self.parts = [
            PairStream(Batch(images, images), batch_size, seed=seed + i, rank=rank, world=world, mirror=mirror)
            for i, images in enumerate(domains)
        ]

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in zip("xy", self.parts, strict=True)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in zip("xy", self.parts, strict=True):
            part.load_state_dict(state[name])

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        x, y = (next(part).x for part in self.parts)
        return Batch(x, y)


def unpaired(images: ImageDataset, x: str, y: str) -> UnpairedDataset:
    """Two classes of labelled images as the domains X and Y.

    Raises:
        DataError: the images have no labels, or no such class, or the two are one.
    """
    for wanted in (x, y):
        if wanted not in images.classes:
            known = ", ".join(images.classes) or "none, for it has no labels"
            raise DataError(f"{images.name} has no class {wanted!r}; its classes: {known}")
    if x == y:
        raise DataError(f"the two domains must differ, got {x!r} twice")
    splits = {}
    for name, (pixels, labels) in images.splits.items():
        assert labels is not None
        splits[name] = (pixels[labels == images.classes.index(x)], pixels[labels == images.classes.index(y)])
    return UnpairedDataset(f"{images.name}: {x} and {y}", (x, y), splits, images.levels)


def _second(batch: Batch) -> Tensor:
    assert batch.y is not None
    return batch.y
