"""The loop that chains have in common: burn-in, thinning, collecting, and a progress bar on a terminal."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

_LONG = 2.0
"""Seconds after which a run is long."""


def check(op: str, initial: Tensor, draws: int, burn_in: int, thin: int) -> None:
    """Raises ValueError or TypeError where a chain could not be run."""
    if not isinstance(initial, Tensor):
        raise TypeError(f"{op}: initial must be a torch.Tensor, got {type(initial).__name__}")
    if initial.dim() < 1 or len(initial) < 1:
        raise ValueError(f"{op}: initial must hold at least one chain (chains, ...), got shape {tuple(initial.shape)}")
    for name, value, least in (("draws", draws, 1), ("burn_in", burn_in, 0), ("thin", thin, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{op}: {name} must be an int of at least {least}, got {value!r}")


def steps(total: int, label: str, progress: bool | None) -> Iterable[int]:
    """``range(total)``, with a bar: on a terminal and once it takes long if ``progress`` is None."""
    wanted = sys.stderr.isatty() if progress is None else progress
    if not wanted or importlib.util.find_spec("tqdm") is None:
        return range(total)
    from tqdm import tqdm

    return tqdm(range(total), desc=label, unit="step", delay=_LONG if progress is None else 0, leave=False)


def collect(
    advance: Callable[[int], None],
    state: Callable[[], Tensor],
    log_density: Callable[[], Tensor] | None,
    *,
    label: str,
    draws: int,
    burn_in: int,
    thin: int,
    progress: bool | None,
) -> tuple[Tensor, Tensor | None]:
    """Advance ``burn_in + draws * thin`` times; every ``thin``-th state after the burn-in, and its log-density."""
    now = state()
    samples = now.new_empty(len(now), draws, *now.shape[1:])
    densities = None
    if log_density is not None:
        densities = torch.empty(len(now), draws, dtype=torch.float64, device=now.device)
    for t in steps(burn_in + draws * thin, label, progress):
        advance(t)
        kept, rest = divmod(t + 1 - burn_in, thin)
        if kept > 0 and rest == 0:
            samples[:, kept - 1] = state()
            if densities is not None and log_density is not None:
                densities[:, kept - 1] = log_density()
    return samples, densities
