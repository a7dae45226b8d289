"""Schemas and fakes of minibatch discrimination and its two derivatives."""

from __future__ import annotations

from torch import Tensor

from gmkernels.core.doors import Operator

from . import reference


def _fake(m: Tensor) -> Tensor:
    return m.new_empty(m.shape[0], m.shape[1])


def _fake_backward(grad: Tensor, m: Tensor) -> Tensor:
    return m.new_empty(m.shape)


def _fake_double_backward(grad_grad_m: Tensor, grad: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    return m.new_empty(m.shape[0], m.shape[1]), m.new_empty(m.shape)


minibatch_discrimination = Operator(
    "minibatch",
    "minibatch_discrimination(Tensor m, str backend) -> Tensor",
    _fake,
    reference.minibatch_discrimination,
)
minibatch_discrimination_backward = Operator(
    "minibatch", "minibatch_discrimination_backward(Tensor grad, Tensor m, str backend) -> Tensor", _fake_backward
)
minibatch_discrimination_double_backward = Operator(
    "minibatch",
    "minibatch_discrimination_double_backward(Tensor grad_grad_m, Tensor grad, Tensor m, str backend)"
    " -> (Tensor, Tensor)",
    _fake_double_backward,
)
