"""Self-normalised importance sampling."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from . import chain
from .noise import Noise
from .result import Samples


class WeightCollapse(UserWarning):
    """A few draws carry nearly all the weight: the estimates rest on them alone."""


@torch.no_grad()
def importance_sampling(
    log_density: Callable[[Tensor], Tensor],
    sample: Callable[[int, Noise], Tensor],
    log_proposal: Callable[[Tensor], Tensor],
    *,
    draws: int,
    batch: int | None = None,
    key: Tensor | int | None = None,
    first: int = 0,
    device: torch.device | str | None = None,
    progress: bool | None = None,
) -> Samples:
    """Draws of a proposal q with weights ``p(x) / q(x)``, for expectations under p known up to a constant.

    ``Samples.expectation`` is the self-normalised estimate ``sum w f / sum w``, ``Samples.log_normaliser`` the log of the
    mean weight (unbiased before the logarithm if q is normalised), ``Samples.diagnostics().ess`` is ``(sum w)^2 / sum w^2``.

    Args:
        log_density: (n, *shape) to (n,), up to a constant; ``-inf`` is weight 0.
        sample: ``(n, noise)`` to ``n`` draws of q (n, *shape), with random numbers of ``noise`` (see :class:`Noise`).
        log_proposal: (n, *shape) to (n,), log q.
        draws: how many.
        batch: draws made at once; the result does not depend on it.
        key: a key of ``gmkernels.random.key`` or a seed; drawn from torch's generator if None.
        first: logical index of the first draw.
        device: where to draw, if the key does not say.
        progress: show a bar; if None, on a terminal and for long runs.

    Returns:
        :class:`Samples` with samples (1, draws, *shape), log-densities and log-weights.

    Raises:
        ValueError: a weight that is NaN or infinite (q is 0, or p is infinite, at a draw), or none above 0.

    Warns:
        WeightCollapse: the effective sample size is below 10, or below 1 % of the draws.
    """
    for name, value in (("draws", draws), ("batch", draws if batch is None else batch)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"importance_sampling: {name} must be an int of at least 1, got {value!r}")
    size = min(draws, batch or draws)
    start = Noise(key, device=device).key()
    parts = []
    for i in chain.steps(-(-draws // size), "importance sampling", progress):
        n = min(size, draws - i * size)
        x = sample(n, Noise(start, first=first + i * size))
        if len(x) != n:
            raise ValueError(f"importance_sampling: sample({n}, noise) must return {n} draws, got {len(x)}")
        target, proposal = log_density(x).double(), log_proposal(x).double()
        for name, found in (("log_density", target), ("log_proposal", proposal)):
            if tuple(found.shape) != (n,):
                raise ValueError(
                    f"importance_sampling: {name} must map {tuple(x.shape)} to {(n,)}, got {tuple(found.shape)}"
                )
        parts.append((x, target, proposal))
    x, target, proposal = (torch.cat(column) for column in zip(*parts, strict=True))
    logs = target - proposal
    if bool(logs.isnan().any()) or bool((logs == torch.inf).any()):
        bad = int((logs.isnan() | (logs == torch.inf)).nonzero()[0])
        raise ValueError(
            f"importance_sampling: draw {bad} has log-density {float(target[bad])} and log-proposal "
            f"{float(proposal[bad])}, which is no weight"
        )
    if not bool(logs.isfinite().any()):
        raise ValueError("importance_sampling: no draw has weight: the proposal misses the target altogether")
    result = Samples(x[None], target[None], logs[None])
    ess = float(result.diagnostics().ess)
    if ess < max(0.01 * draws, min(10.0, draws / 2)):
        warnings.warn(
            f"importance_sampling: the weights have collapsed: {draws} draws are worth {ess:.1f}; "
            "take a proposal closer to (and wider than) the target",
            WeightCollapse,
            stacklevel=2,
        )
    return result
