"""What models that draw random numbers have in common: where they are, and keys of the stream."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import gmkernels as gmk


class Model(nn.Module):
    """A module with parameters on one device and of one dtype."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def key(self, key: Tensor | int | None = None) -> Tensor:
        """A key on this model's device: the one given, of a seed, or a fresh one."""
        if isinstance(key, int):
            return gmk.random.key(seed=key, device=self.device)
        return gmk.random.key(device=self.device) if key is None else key.to(self.device)
