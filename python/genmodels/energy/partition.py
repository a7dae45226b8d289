"""The normalising constant of a restricted Boltzmann machine: exactly, or between annealed importance sampling from
both ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import gmkernels as gmk

from ..sampling import Noise
from . import units

ENUMERABLE = 25
"""Units of one side up to which log Z is a sum."""


class LogZ(NamedTuple):
    """``low`` tends to lie below log Z and ``high`` above: annealed importance sampling forwards, and backwards from
    samples of the machine. Both are log Z itself if ``exact``. ``ess``: what the forward chains' weights are worth.

    A log-likelihood made with ``low`` is optimistic and one made with ``high`` conservative, the more so the further
    they are apart; where ``ess`` is a few chains, neither is to be trusted. ``low`` far above ``high`` says that the
    samples that were annealed backwards are not the machine's: its chains miss where it puts its probability.
    """

    low: float
    high: float
    exact: bool
    ess: float


def enumerate_log_z(
    weight: Tensor, bias: Tensor, log_partition: Callable[[Tensor], Tensor], other_bias: Tensor
) -> float:
    """``log sum_s exp(bias . s + log_partition(other_bias + s weight))`` over all s in {0, 1}^n; weight (n, m), float64.

    Fields are sums of two: of the first 12 units, all at once, and of the others.
    """
    n = len(bias)
    low = min(n, 12)
    below = _all_states(low, weight)
    below_field, below_bias = below @ weight[:low], below @ bias[:low]
    total = weight.new_full((), -math.inf)
    for part in torch.arange(2 ** (n - low), device=weight.device).split(
        max(1, 2**22 // (len(below) * weight.shape[1]))
    ):
        above = _bits(part, n - low, weight)
        field = (other_bias + above @ weight[low:])[:, None] + below_field
        score = log_partition(field) + below_bias + (above @ bias[low:])[:, None]
        total = torch.logaddexp(total, score.flatten().logsumexp(0))
    return float(total)


def _bits(number: Tensor, n: int, like: Tensor) -> Tensor:
    return (number[:, None] >> torch.arange(n, device=number.device) & 1).to(like.dtype)


def _all_states(n: int, like: Tensor) -> Tensor:
    return _bits(torch.arange(2**n, device=like.device), n, like)


def bracket(forward: Tensor, backward: Tensor) -> LogZ:
    """From log-weights of chains in both directions."""
    forward, backward = forward.double(), backward.double()
    ess = 1 / forward.softmax(0).square().sum()
    low = forward.logsumexp(0) - math.log(len(forward))
    high = math.log(len(backward)) - (-backward).logsumexp(0)
    return LogZ(float(low), float(high), False, float(ess))


@torch.no_grad()
def anneal(
    kind: str,
    categories: int,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    base: Tensor,
    betas: Tensor,
    noise: Noise,
    *,
    chains: int,
    start: Tensor | None = None,
) -> Tensor:
    """Log-weights as of ``gmkernels.ais_log_z`` (see there), for any kind of visible unit; ``start`` reverses."""

    def visible(b: Tensor, h: Tensor | None) -> Tensor:
        field = torch.lerp(base, visible_bias, b).expand(chains, -1)
        return units.draw(kind, field if h is None else field + b * (h @ weight.t()), categories, noise)

    v = visible(betas[0], None) if start is None else start
    log_z = units.log_partition(kind, base.double(), categories) + len(hidden_bias) * math.log(2)
    total = log_z.expand(chains).clone()
    schedule = betas if start is None else betas.flip(0)
    for i in range(1, len(schedule)):
        old, new = schedule[i - 1], schedule[i]
        field = torch.addmm(hidden_bias, v, weight)
        change = (new - old) * (v @ (visible_bias - base)) + (F.softplus(new * field) - F.softplus(old * field)).sum(1)
        total += change.double() if start is None else -change.double()
        v = visible(new, noise.bernoulli((new * field).sigmoid()))
    return total


def log_weights(
    kind: str,
    categories: int,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    base: Tensor,
    *,
    chains: int,
    betas: int,
    key: Tensor,
    start: Tensor | None = None,
) -> Tensor:
    """One direction of annealed importance sampling, by the operator where it has the units."""
    if kind == "binary":
        count = {"chains": chains} if start is None else {"reverse_from": start}
        return gmk.ais_log_z(
            weight, visible_bias, hidden_bias, key=key, num_betas=betas, base_visible_bias=base, **count
        )
    schedule = torch.linspace(0, 1, betas, dtype=weight.dtype, device=weight.device)
    machine = (weight, visible_bias, hidden_bias, base, schedule)
    return anneal(kind, categories, *machine, Noise(key), chains=chains, start=start)
