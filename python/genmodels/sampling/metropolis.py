"""Metropolis-Hastings for any log-density and any proposal."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from . import chain
from .noise import Noise
from .proposals import Proposal, random_walk
from .result import Samples


@torch.no_grad()
def metropolis_hastings(
    log_density: Callable[[Tensor], Tensor],
    initial: Tensor,
    proposal: Proposal = random_walk,
    *,
    scale: float | Tensor = 1.0,
    adapt: float | None = None,
    draws: int,
    burn_in: int = 0,
    thin: int = 1,
    key: Tensor | int | None = None,
    first: int = 0,
    progress: bool | None = None,
) -> Samples:
    """Metropolis-Hastings chains (Hastings 1970): a candidate x' is taken with probability
    ``min(1, p(x') q(x | x') / (p(x) q(x' | x)))``, otherwise the chain stays and its state counts again.

    Args:
        log_density: (chains, *shape) to (chains,), up to a constant. ``-inf`` is never entered; a NaN is refused like
            ``-inf``, and reported by a warning at the end.
        initial: (chains, *shape), any dtype the proposal can handle.
        proposal: ``(x, noise, scale)`` to candidates, or to ``(candidates, log q(x | x') - log q(x' | x))`` if it is
            not symmetric; see :mod:`genmodels.sampling.proposals`.
        scale: the proposal's step, a number or (chains,).
        adapt: the rate of acceptance to steer every chain's scale to during the burn-in (0.44 in one dimension, 0.234
            in many for a random walk, 0.574 for Langevin). After the burn-in the scale is fixed, as it must be for the
            law to be right.
        draws, burn_in, thin: after ``burn_in`` steps every ``thin``-th state is kept until there are ``draws``.
        key: a key of ``gmkernels.random.key`` or a seed; drawn from torch's generator if None.
        first: logical index of the first chain, for chains run in several batches.
        progress: show a bar; if None, on a terminal and for long runs.

    Returns:
        :class:`Samples` with samples (chains, draws, *shape), log-densities, acceptance and scale.

    Raises:
        ValueError: a start of density zero, shapes that do not fit, or ``adapt`` without a burn-in.
    """
    chain.check("metropolis_hastings", initial, draws, burn_in, thin)
    if adapt is not None and not 0 < adapt < 1:
        raise ValueError(f"metropolis_hastings: adapt must be a rate in (0, 1), got {adapt}")
    if adapt is not None and not burn_in:
        raise ValueError("metropolis_hastings: adapt works during the burn-in only, which is 0")
    x, device = initial.clone(), initial.device
    here = _densities(log_density, x)
    if not bool(here.isfinite().all()):
        row = int((~here.isfinite()).nonzero()[0])
        raise ValueError(f"metropolis_hastings: chain {row} starts where the log-density is {float(here[row])}")
    width = torch.as_tensor(scale, dtype=torch.float64, device=device)
    if tuple(width.shape) not in ((), (len(x),)) or not bool((width > 0).all()):
        raise ValueError(f"metropolis_hastings: scale must be positive, a number or {(len(x),)}, got {scale}")
    width = width.expand(len(x)).clone()
    noise = Noise(key, first=first, device=device)
    accepted, undefined = torch.zeros_like(width), torch.zeros((), dtype=torch.int64, device=device)

    def advance(t: int) -> None:
        found = proposal(x, noise, width)
        new, correction = found if isinstance(found, tuple) else (found, 0.0)
        if new.shape != x.shape:
            raise ValueError(f"metropolis_hastings: the proposal must return {tuple(x.shape)}, got {tuple(new.shape)}")
        there = _densities(log_density, new)
        ratio = there - here + correction
        undefined.add_(ratio.isnan().sum())
        take = noise.uniform(len(x), torch.float64).log() < ratio.nan_to_num(nan=-math.inf)
        x[take], here[take] = new[take].to(x.dtype), there[take]
        if t >= burn_in:
            accepted.add_(take)
        elif adapt is not None:
            # Robbins and Monro 1951: steps that fall off slowly enough to reach any scale, and settle.
            chance = ratio.nan_to_num(nan=-math.inf).clamp_max(0.0).exp()
            width.mul_(((chance - adapt) * (t + 1) ** -0.6).exp())

    samples, densities = chain.collect(
        advance,
        lambda: x,
        lambda: here,
        label="metropolis-hastings",
        draws=draws,
        burn_in=burn_in,
        thin=thin,
        progress=progress,
    )
    if int(undefined):
        warnings.warn(
            f"metropolis_hastings: the log-density or the proposal was NaN for {int(undefined)} candidates, all refused",
            stacklevel=2,
        )
    return Samples(samples, densities, acceptance=accepted / (draws * thin), scale=width, final=x)


def _densities(log_density: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    found = log_density(x)
    if tuple(found.shape) != (len(x),):
        raise ValueError(
            f"metropolis_hastings: log_density must map {tuple(x.shape)} to {(len(x),)}, got {tuple(found.shape)}"
        )
    return found.double().clone()
