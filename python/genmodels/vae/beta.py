"""The weight of the KL term, constant or scheduled over the updates of a run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Beta:
    """The weight of the KL term (Higgins et al., "beta-VAE", 2017); 1 is the evidence lower bound.

    It rises linearly from ``start`` to ``value`` over the first ``warmup`` updates, and, with ``period``, does so again
    every ``period`` updates (cyclical annealing, Fu et al. 2019).
    """

    value: float = 1.0
    """What it is after the warm-up."""
    start: float = 0.0
    """What it is at the first update, if there is a warm-up."""
    warmup: int = 0
    """Updates over which it rises; 0 keeps it constant."""
    period: int = 0
    """Updates after which it starts again; 0 for never."""

    def __post_init__(self) -> None:
        if self.value < 0 or self.start < 0:
            raise ValueError(f"Beta: value and start must be 0 or more, got {self.value} and {self.start}")
        if self.warmup < 0 or self.period < 0:
            raise ValueError(f"Beta: warmup and period must be 0 or more, got {self.warmup} and {self.period}")
        if self.period and self.warmup > self.period:
            raise ValueError(f"Beta: warmup must fit into the period of {self.period} updates, got {self.warmup}")

    def at(self, update: Tensor) -> Tensor | float:
        """The weight at an update, counted from 0 in an integer tensor, so that no device has to be waited for."""
        if not self.warmup:
            return self.value
        done = update % self.period if self.period else update
        return self.start + (self.value - self.start) * (done / self.warmup).clamp(max=1.0).to(torch.float32)

    def times(self, kl: Tensor, update: Tensor) -> Tensor:
        """``kl`` times the weight at an update."""
        beta = self.at(update)
        return kl if isinstance(beta, float) and beta == 1 else beta * kl
