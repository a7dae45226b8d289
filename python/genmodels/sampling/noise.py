"""Random numbers for functions of a user's own: every call is fresh, and every chain has its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import gmkernels as gmk


class Noise:
    """A source of random numbers whose first dimension is chains.

    Each call draws from the next stream of the key, so nothing has to be counted or forked by hand; row ``i`` of a draw
    is that of chain ``first + i`` whatever the batch, so that chains run in two batches draw the same as in one.

    Args:
        key: a key of ``gmkernels.random.key``, a seed, or None for a fresh key from torch's default generator.
        first: the logical index of the batch's first chain.
        device: where to draw; the key's device if there is one.
    """

    def __init__(
        self, key: Tensor | int | None = None, *, first: int = 0, device: torch.device | str | None = None
    ) -> None:
        if isinstance(key, bool) or not (key is None or isinstance(key, (int, Tensor))):
            raise TypeError(f"key must be a key of gmkernels.random.key, an int seed or None, got {key!r}")
        if isinstance(key, int):
            key = gmk.random.key(seed=key, device=device)
        elif key is None:
            key = gmk.random.key(device=device)
        elif device is not None:
            key = key.to(device)
        # Through the generator once, so that neighbouring offsets given by a user do not share their streams.
        low0, high0, low1, high1 = gmk.random.bits(key, 4).unbind()
        self._key = torch.stack([low0 | high0 << 32, low1 | high1 << 32])
        self._next = torch.tensor([0, 1], device=key.device)
        self.first = first

    def key(self) -> Tensor:
        """The key of the next stream, for an operator that samples by itself."""
        self._key = self._key + self._next
        return self._key

    def uniform(self, shape: int | Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform numbers in (0, 1)."""
        return gmk.random.uniform(self.key(), shape, first=self.first, dtype=dtype)

    def normal(self, shape: int | Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers."""
        return gmk.random.normal(self.key(), shape, first=self.first, dtype=dtype)

    def bernoulli(self, p: Tensor) -> Tensor:
        """Zeros and ones with probabilities ``p`` (chains, ...), in its dtype."""
        return gmk.random.bernoulli(p, self.key(), first=self.first)

    def integers(self, high: int, shape: int | Sequence[int]) -> Tensor:
        """Integers in ``[0, high)``, int64; up to a part in 2^32 / high equally likely."""
        return gmk.random.bits(self.key(), shape, first=self.first) * high >> 32

    def categorical(self, logits: Tensor) -> Tensor:
        """Indices (chains, ...) drawn with probabilities ``softmax(logits, -1)``, int64."""
        steps = logits.double().softmax(-1).cumsum(-1)[..., :-1]
        return (self.uniform(logits.shape[:-1], torch.float64)[..., None] >= steps).sum(-1)
