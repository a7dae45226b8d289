"""Launchers of the C++ core: allocate the outputs, hand over addresses and strides."""

from __future__ import annotations

from torch import Tensor

from gmkernels.core.layout import address, contiguous_like, operands
from gmkernels.core.native import cpu

from .reference import wide

_core = cpu()


def random_interpolate(a: Tensor, b: Tensor, key: Tensor, first: int) -> Tensor:
    out = contiguous_like(a)
    sizes, (a_, b_), _alive = operands(a, b)
    seed, offset = (word & 0xFFFFFFFFFFFFFFFF for word in key.tolist())
    _core.random_interpolate(sizes, a_, b_, 0, out.data_ptr(), 0, first, seed, offset, 0.0, False)
    return out


def _norm_penalty(
    g: Tensor, weight: Tensor | None, direction: Tensor | None, penalty: Tensor | None, target: float, one_sided: bool
) -> None:
    sizes, (g_,), _alive = operands(g)
    _core.norm_penalty(
        sizes, g_, None, address(weight), address(direction), address(penalty), 0, 0, 0, target, one_sided
    )


def norm_penalty(g: Tensor, target: float, one_sided: bool) -> Tensor:
    penalty = g.new_empty(g.shape[0], dtype=wide(g))
    _norm_penalty(g, None, None, penalty, target, one_sided)
    return penalty


def norm_penalty_backward(grad: Tensor, g: Tensor, target: float, one_sided: bool) -> Tensor:
    direction = contiguous_like(g)
    _norm_penalty(g, grad.contiguous(), direction, None, target, one_sided)
    return direction


def norm_penalty_gradient(g: Tensor, target: float, one_sided: bool) -> tuple[Tensor, Tensor]:
    penalty, direction = g.new_empty(g.shape[0], dtype=wide(g)), contiguous_like(g)
    _norm_penalty(g, None, direction, penalty, target, one_sided)
    return penalty, direction
