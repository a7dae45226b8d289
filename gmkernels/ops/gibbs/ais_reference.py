"""The definition of annealed importance sampling for restricted Boltzmann machines: plain PyTorch.

The sequence of distributions (R. Salakhutdinov and I. Murray, "On the quantitative analysis of deep belief networks",
ICML 2008, equations 15-18, for a base machine without couplings) is

    log p*_b(v) = ((1 - b) a + b vb) . v + sum_j softplus(b (hb_j + (v W)_j)),   b from 0 to 1,

whose transition is a block Gibbs step: h given v at b, then v given h.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from gmkernels.core.product import no_autocast

from .reference import on, unit_words


def softplus(x: Tensor) -> Tensor:
    return functional.softplus(x, threshold=math.inf)


def log_base(base_bias: Tensor, hidden: int) -> Tensor:
    """The logarithm of the base's normalising constant; its hidden units are free."""
    return softplus(base_bias.double()).sum() + hidden * math.log(2.0)


def ais_log_z(
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    key: Tensor,
    betas: Tensor,
    base_bias: Tensor,
    reverse_from: Tensor | None,
    chains: int,
    first: int = 0,
) -> Tensor:
    visible, hidden = weight.shape
    units = torch.arange(max(visible, hidden), device=weight.device)
    rows = torch.arange(chains, device=weight.device) + first
    shift = visible_bias - base_bias

    def draw(field: Tensor, half_step: int) -> Tensor:
        word = unit_words(key, rows, units[: field.shape[-1]], half_step)
        return on(field, word).to(weight.dtype)

    if reverse_from is None:
        v, schedule = draw(base_bias.expand(chains, visible), 0), betas
    else:
        v, schedule = reverse_from, betas.flip(0)
    log_weight = log_base(base_bias, hidden).expand(chains)
    for step in range(1, len(schedule)):
        old, new = schedule[step - 1], schedule[step]
        with no_autocast(weight):
            field = hidden_bias + v @ weight
        change = (new - old) * (v * shift).sum(1) + (softplus(new * field) - softplus(old * field)).sum(1)
        log_weight = log_weight + (change if reverse_from is None else -change).double()
        if step + 1 < len(schedule):
            h = draw(new * field, 2 * step - 1)
            with no_autocast(weight):
                field = visible_bias + h @ weight.T
            v = draw((1.0 - new) * base_bias + new * field, 2 * step)
    return log_weight.to(weight.dtype)
