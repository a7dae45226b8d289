"""What a training run is told, and what it tells."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How to train. The run ends at the first budget that is used up, counting what earlier, stopped runs used."""

    max_seconds: float | None = None
    """Time budget of the training loop."""
    max_steps: int | None = None
    """Step budget."""
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.0
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up the rate falls as half a cosine over the budget, to zero, or stays."""
    clip: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    accumulate: int = 1
    """Batches per step."""
    ema: float = 0.0
    """Decay of the moving average of the weights that is evaluated and sampled from; 0 for none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs the forward pass under autocast."""
    evaluations: int = 10
    """How often to evaluate along the way."""
    log_every: int = 10
    """Steps between lines of the log."""
    checkpoint_seconds: float = 30.0
    """Seconds between checkpoints. There is always one at the end."""
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.max_seconds is None and self.max_steps is None:
            raise ValueError("Fit: give max_seconds or max_steps, or both")
        for name in ("max_steps", "accumulate", "log_every"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"Fit: {name} must be at least 1, got {count}")
        for name in ("max_seconds", "lr"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ValueError(f"Fit: {name} must be positive and finite, got {value}")
        for name in ("weight_decay", "warmup_steps", "clip", "evaluations", "checkpoint_seconds"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"Fit: {name} must be 0 or more and finite, got {value}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"Fit: ema must be in [0, 1), got {self.ema}")


@dataclass
class Part:
    """An optimizer of some of a model's parameters, and how many updates (each on fresh batches) it makes a step.

    ``after_update`` is called after every one of them: to clip weights, or to note them.
    """

    optimizer: torch.optim.Optimizer
    updates: int = 1
    after_update: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        if self.updates < 1:
            raise ValueError(f"Part: updates must be at least 1, got {self.updates}")

    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]


@dataclass
class Result:
    """How a run ended: ``stopped`` is None when its budget is used up, else the name of the signal."""

    step: int
    seconds: float
    stopped: str | None
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Best:
    """Which weights of a run are its best: those with the smallest, or largest, value of an evaluated figure."""

    metric: str
    direction: Literal["min", "max"] = "min"

    def better(self, value: float, record: float) -> bool:
        """Whether ``value`` beats ``record``; any number beats NaN, and NaN nothing."""
        if math.isnan(value) or math.isnan(record):
            return not math.isnan(value)
        return value < record if self.direction == "min" else value > record
