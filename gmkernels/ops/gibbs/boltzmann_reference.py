"""The definition of sequential Gibbs sweeps and of Hopfield recall: plain PyTorch, float32 or float64.

Order of sums. The field of unit i is ``f_i = b_i + sum_j x_j W_ji``. With all units off it is added up from ``b_i`` through
the units j in the order of the sweep; then the rows of the units that are on are added, four units at a time: their sum,
from the first of the four to the last. From then on every unit that changes by ``d`` adds ``d W_i`` to all fields at once,
before the next unit is looked at. A product with such a change is exact, so there is one rounding per addition. Every
``REFRESH`` sweeps the fields are summed anew, which bounds what these roundings add up to.
"""

from __future__ import annotations

import functools
import operator

import torch
from torch import Tensor

from .reference import unit_words

REFRESH = 64


def logits(word: Tensor, dtype: torch.dtype) -> Tensor:
    """``log(u / (1 - u))`` of the uniforms ``u = (word + 1/2) / 2**32``: both ends keep their digits."""
    up, down = word.to(dtype) + 0.5, (0xFFFFFFFF - word).to(dtype) + 0.5
    return torch.log(up / down)


def fields(x: Tensor, weight: Tensor, bias: Tensor, low: float) -> Tensor:
    """The fields from nothing; ``low`` is the state of a unit that is off."""
    total = bias
    for row in weight if low else ():
        total = total + low * row
    total = total.expand(x.shape)
    for four in range(0, x.shape[1], 4):
        rows = zip((x - low)[:, four : four + 4].unbind(1), weight[four : four + 4], strict=True)
        total = total + functools.reduce(operator.add, [change[:, None] * row for change, row in rows])
    return total


def _turned(tensor: Tensor, order: Tensor | None) -> Tensor:
    """The last dimension in the order of the sweep."""
    return tensor if order is None else tensor[..., order]


def boltzmann_gibbs(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    key: Tensor,
    beta: Tensor,
    clamp: Tensor | None,
    order: Tensor | None,
    sweeps: int,
    first: int = 0,
    spin: bool = True,
) -> Tensor:
    units = x.shape[1]
    ids = torch.arange(units, device=x.device) if order is None else order
    chains = torch.arange(x.shape[0], device=x.device) + first
    w, b = _turned(weight if order is None else weight[order], order), _turned(bias, order)
    low, slope = (-1.0, 2.0 * beta) if spin else (0.0, beta)
    columns = list(_turned(x, order).clone().unbind(1))
    held = None if clamp is None else _turned(clamp, order).expand(x.shape)
    f = x  # before the first sweep, there are none
    for sweep in range(sweeps if units else 0):
        threshold = logits(unit_words(key, chains, ids, sweep), x.dtype)
        if sweep % REFRESH == 0:
            f = fields(torch.stack(columns, 1), w, b, low)
        for i in range(units):
            drawn = torch.where(slope * f[:, i] > threshold[:, i], 1.0, low).to(x.dtype)
            new = drawn if held is None else torch.where(held[:, i], columns[i], drawn)
            f = f + (new - columns[i])[:, None] * w[i]
            columns[i] = new
    out = torch.stack(columns, 1) if units else x.clone()
    return out if order is None else out[:, torch.argsort(order)]


def hopfield_recall(x: Tensor, weight: Tensor, bias: Tensor, max_sweeps: int) -> tuple[Tensor, Tensor]:
    columns = list(x.clone().unbind(1))
    used = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    going = torch.ones_like(used, dtype=torch.bool)
    f = x  # before the first sweep, there are none
    for sweep in range(max_sweeps if columns else 0):
        if sweep % REFRESH == 0:
            f = fields(torch.stack(columns, 1), weight, bias, -1.0)
        moved = torch.zeros_like(going)
        for i, old in enumerate(columns):
            new = torch.where(f[:, i] > 0, 1.0, torch.where(f[:, i] < 0, -1.0, old)).to(x.dtype)
            new = torch.where(going, new, old)
            f = f + (new - old)[:, None] * weight[i]
            columns[i] = new
            moved = moved | (new != old)
        used, going = torch.where(moved, sweep + 1, used), moved
    return (torch.stack(columns, 1) if columns else x.clone()), used
