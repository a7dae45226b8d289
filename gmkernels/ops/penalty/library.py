"""Schemas and fakes of interpolation between samples and of the penalty on their gradients' norms."""

from __future__ import annotations

from torch import Tensor

from gmkernels.core.doors import Operator
from gmkernels.core.layout import contiguous_like

from . import reference
from .reference import wide


def _fake_interpolate(a: Tensor, b: Tensor, key: Tensor, first: int) -> Tensor:
    return contiguous_like(a)


def _fake_penalty(g: Tensor, target: float, one_sided: bool) -> Tensor:
    return g.new_empty(g.shape[0], dtype=wide(g))


def _fake_backward(grad: Tensor, g: Tensor, target: float, one_sided: bool) -> Tensor:
    return contiguous_like(g)


def _fake_both(g: Tensor, target: float, one_sided: bool) -> tuple[Tensor, Tensor]:
    return _fake_penalty(g, target, one_sided), contiguous_like(g)


random_interpolate = Operator(
    "penalty",
    "random_interpolate(Tensor a, Tensor b, Tensor key, SymInt first, str backend) -> Tensor",
    _fake_interpolate,
    reference.interpolate,
)
norm_penalty = Operator(
    "penalty",
    "norm_penalty(Tensor g, float target, bool one_sided, str backend) -> Tensor",
    _fake_penalty,
    reference.norm_penalty,
)
norm_penalty_backward = Operator(
    "penalty",
    "norm_penalty_backward(Tensor grad, Tensor g, float target, bool one_sided, str backend) -> Tensor",
    _fake_backward,
)
norm_penalty_gradient = Operator(
    "penalty",
    "norm_penalty_gradient(Tensor g, float target, bool one_sided, str backend) -> (Tensor, Tensor)",
    _fake_both,
    reference.norm_penalty_gradient,
)
