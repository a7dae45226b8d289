"""The weights of a run that are worth using: its best, where they were kept, or its last."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from ..errors import CheckpointError
from . import checkpoint
from .config import Best

BEST = "best.safetensors"


def load_weights(model: nn.Module, out: Path, which: Literal["best", "last"] = "best") -> int:
    """Load the weights to use, and return their step.

    These are the best if the run kept them; else, or as ``last``, those of the newest intact checkpoint (the average, if
    there is one). Damaged best weights are passed over with a warning.
    """
    kept = best_weights(Path(out)) if which == "best" else None
    found = (*kept, Path(out) / BEST) if kept else checkpoint.load_newest(Path(out))
    if found is None:
        raise CheckpointError(f"there is no checkpoint in {out}")
    tensors, state, path = found
    try:
        model.load_state_dict(strip(tensors, "ema.") or strip(tensors, "model."))
    except RuntimeError as error:
        raise checkpoint.misfit(path, error) from None
    return int(state["step"])


def best_weights(out: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The best weights of a run and what was written beside them: ``step``, ``metric``, ``value``; None without any."""
    path = out / BEST
    if not path.exists():
        return None
    try:
        return checkpoint.load(path)
    except CheckpointError as error:
        warnings.warn(f"{error}; the best weights of this run are lost", stacklevel=2)
        return None


def best_value(out: Path, best: Best) -> float:
    """The figure to beat; NaN if no best weights, by this figure, are there."""
    found = best_weights(out)
    if found is None or found[1]["metric"] != best.metric or found[1]["direction"] != best.direction:
        return math.nan
    return float(found[1]["value"])


def strip(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
