"""Black-and-white images drawn from grey ones, the grey value of a pixel being its probability."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import gmkernels as gmk

from ..data import Batch, ImageDataset, Shuffled

# Beyond the offsets that an epoch's order and shifts take.
_DRAWN = 2**32


def draw(x: Tensor, levels: int, key: Tensor) -> Tensor:
    """Zeros and ones (uint8) with probabilities ``x / (levels - 1)``."""
    return gmk.random.bernoulli(x.to(torch.float32) / (levels - 1), key).to(torch.uint8)


@dataclass(frozen=True)
class BinaryImages(ImageDataset):
    """Images of two levels: ``valid`` and ``test`` drawn once and for all, training images anew every epoch.

    ("Dynamic binarisation" of the training data; the log-probability of the test data is that of one fixed draw.)
    """

    grey: ImageDataset | None = None

    def stream(
        self, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1, split: str = "train", shift: int = 0
    ) -> Shuffled:
        assert self.grey is not None
        return _Redrawn(
            self.grey.splits[split], self.grey.levels, batch_size, seed=seed, rank=rank, world=world, shift=shift
        )


def binarised(data: ImageDataset) -> BinaryImages:
    """Black-and-white images of the same data."""
    splits = {
        name: Batch(draw(x, data.levels, torch.tensor([0, _DRAWN + i])), y)
        for i, (name, (x, y)) in enumerate(data.splits.items())
    }
    return BinaryImages(data.name, splits, 2, data.classes, data.source, grey=data)


class _Redrawn(Shuffled):
    """Shuffled batches, every epoch drawn anew: a function of seed and epoch alone, like their order."""

    def __init__(self, grey: Batch, levels: int, batch_size: int, **options: int) -> None:
        super().__init__(grey, batch_size, **options)
        self._grey, self._levels, self._drawn = grey, levels, -1

    def __next__(self) -> Batch:
        if self._drawn != self.epoch:
            key = torch.tensor([self.seed, _DRAWN + self.epoch])
            self.data, self._drawn = Batch(draw(self._grey.x, self._levels, key), self._grey.y), self.epoch
        return super().__next__()
