"""Schemas and fakes of the masked linear layer and its gradients."""

from __future__ import annotations

from torch import Tensor

from gmkernels.core.doors import Operator

from . import reference


def gradients(x: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the gradients by x, weight and bias; empty for those that are not needed."""
    by_x, by_weight, by_bias = needs
    return (
        x.new_empty(x.shape) if by_x else x.new_empty(0),
        weight.new_empty(weight.shape) if by_weight else weight.new_empty(0),
        weight.new_empty(weight.shape[0]) if by_bias else weight.new_empty(0),
    )


def _fake(x, weight, bias, seen, relu):
    return x.new_empty(x.shape[0], weight.shape[0])


def _fake_backward(grad, x, weight, seen, relu, by_x, by_weight, by_bias):
    return gradients(x, weight, (by_x, by_weight, by_bias))


masked_linear = Operator(
    "masked_linear",
    "masked_linear(Tensor x, Tensor weight, Tensor? bias, Tensor seen, bool relu, str backend) -> Tensor",
    _fake,
    reference.masked_linear,
    ("cpu",),
)
masked_linear_backward = Operator(
    "masked_linear",
    "masked_linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor seen, bool relu, bool by_x, bool by_weight,"
    " bool by_bias, str backend) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
    backends=("cpu",),
)
