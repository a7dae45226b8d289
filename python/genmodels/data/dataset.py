"""What every data set is to a model: named splits, and batches whose position can be saved and restored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

import gmkernels as gmk


class Batch(NamedTuple):
    """``x`` (batch, ...) and, where the data has them, integer labels ``y`` (batch,)."""

    x: Tensor
    y: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        return Batch(self.x.to(device), None if self.y is None else self.y.to(device))


@runtime_checkable
class BatchStream(Protocol):
    """An endless iterator of batches that remembers where it is."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Dataset(Protocol):
    """A source of batches. :class:`ImageDataset` and :class:`genmodels.data.densities.Density` are two."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...

    def stream(self, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1) -> BatchStream:
        """Endless training batches."""


@dataclass(frozen=True)
class ImageDataset:
    """Images in memory, as integers.

    Attributes:
        name: what it was loaded as.
        splits: ``train``, ``valid`` and ``test``: uint8 images (N, C, H, W) with values in ``[0, levels)`` and int64
            labels (N,) or None.
        levels: number of grey levels of a channel.
        classes: the names of the labels, empty without labels.
        source: where the bytes came from, in words.
    """

    name: str
    splits: dict[str, Batch]
    levels: int = 256
    classes: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        for split, (x, y) in self.splits.items():
            if x.dtype != torch.uint8 or x.dim() != 4:
                raise TypeError(
                    f"{self.name}/{split}: images must be uint8 (N, C, H, W), got {x.dtype} {tuple(x.shape)}"
                )
            if y is not None and y.shape != x.shape[:1]:
                raise ValueError(f"{self.name}/{split}: {len(x)} images but labels of shape {tuple(y.shape)}")
            if y is not None and len(y) and self.classes and not 0 <= int(y.min()) <= int(y.max()) < len(self.classes):
                raise ValueError(
                    f"{self.name}/{split}: labels from {int(y.min())} to {int(y.max())} of {len(self.classes)} classes"
                )

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height, width."""
        return tuple(self.splits["train"].x.shape[1:])

    def stream(
        self, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1, split: str = "train", shift: int = 0
    ) -> Shuffled:
        """Endless shuffled batches of a split; see :class:`Shuffled`."""
        return Shuffled(self.splits[split], batch_size, seed=seed, rank=rank, world=world, shift=shift)

    def batches(self, split: str, batch_size: int = 256) -> Iterator[Batch]:
        """One pass over a split in its stored order, the last batch possibly short."""
        x, y = self.splits[split]
        for i in range(0, len(x), batch_size):
            yield Batch(x[i : i + batch_size], None if y is None else y[i : i + batch_size])


class Fresh:
    """Batches of fresh samples; batch ``i`` depends on ``(seed, i)`` and the sampler alone.

    Args:
        sample: ``sample(n, key=key, first=first)``, rows ``first .. first + n`` of the endless table under ``key``.
    """

    def __init__(
        self, sample: Callable[..., Tensor], batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.sample, self.batch_size, self.seed, self.rank, self.world = sample, batch_size, seed, rank, world
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position, self.seed = state["position"], state["seed"]

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        key = torch.tensor([self.seed, self.position])
        self.position += 1
        return Batch(self.sample(self.batch_size, key=key, first=self.rank * self.batch_size))


class Shuffled:
    """Endless batches, every epoch in a new order; incomplete last batches are dropped.

    The order of an epoch and the random shifts are functions of ``(seed, epoch)`` alone, so a position is two
    integers, and it is the same on every machine. Under ``world`` processes each takes every ``world``-th image of
    the common order.

    Args:
        data: images (N, ...) and labels.
        batch_size: images per batch and process.
        seed: of the order and the shifts.
        rank, world: this process and how many there are.
        shift: move every image by up to this many pixels each way, filling with zeros. 0 leaves them alone.
    """

    def __init__(
        self, data: Batch, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1, shift: int = 0
    ) -> None:
        if not 0 < batch_size * world <= len(data.x):
            raise ValueError(f"batch_size must be between 1 and {len(data.x) // world} for this data, got {batch_size}")
        self.data, self.batch_size, self.seed, self.shift = data, batch_size, seed, shift
        self.rank, self.world = rank, world
        self.epoch, self.position = 0, 0
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    @property
    def batches_per_epoch(self) -> int:
        return len(self.data.x) // (self.batch_size * self.world)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not 0 <= state["position"] < self.batches_per_epoch:
            raise ValueError(f"batch {state['position']} of an epoch of {self.batches_per_epoch} batches")
        self.epoch, self.position, self.seed = state["epoch"], state["position"], state["seed"]

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._order[0] != self.epoch:
            words = gmk.random.bits(torch.tensor([self.seed, 2 * self.epoch]), len(self.data.x))
            self._order = self.epoch, words.argsort(stable=True)[self.rank :: self.world]
        start = self.position * self.batch_size
        pick = self._order[1][start : start + self.batch_size]
        x, y = self.data.x[pick], None if self.data.y is None else self.data.y[pick]
        if self.shift:
            # Drawn per image of the data set, so that neither batch size nor number of processes matters.
            words = gmk.random.bits(torch.tensor([self.seed, 2 * self.epoch + 1]), (len(self.data.x), 2))
            x = shifted(x, words[pick] % (2 * self.shift + 1) - self.shift)
        self.position += 1
        if self.position == self.batches_per_epoch:
            self.epoch, self.position = self.epoch + 1, 0
        return Batch(x, y)


def shifted(x: Tensor, by: Tensor) -> Tensor:
    """Images (B, C, H, W) moved down and right by int64 (B, 2) pixels, zeros coming in."""
    reach = int(by.abs().max()) if len(by) else 0
    height, width = x.shape[-2:]
    padded = F.pad(x, (reach,) * 4)
    rows = reach - by[:, :1] + torch.arange(height)
    columns = reach - by[:, 1:] + torch.arange(width)
    return padded[torch.arange(len(x))[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def stratified(y: Tensor, fractions: tuple[float, float, float], seed: int = 0) -> dict[str, Tensor]:
    """Indices of a train, valid and test split with the same class shares in each; the same on every machine.

    Within a class, images are ordered by Philox words under ``seed`` and cut at the rounded fractions.
    """
    if not math.isclose(sum(fractions), 1.0):
        raise ValueError(f"fractions must add up to 1, got {fractions}")
    words = gmk.random.bits(gmk.random.key(seed=seed), len(y))
    parts: dict[str, list[Tensor]] = {"train": [], "valid": [], "test": []}
    for label in y.unique().tolist():
        members = (y == label).nonzero()[:, 0]
        members = members[words[members].argsort(stable=True)]
        ends = [round(len(members) * fractions[0]), round(len(members) * (fractions[0] + fractions[1]))]
        for name, part in zip(parts, members.tensor_split(ends), strict=True):
            parts[name].append(part)
    return {name: torch.cat(part).sort().values for name, part in parts.items()}
