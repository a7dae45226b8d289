"""Schemas and fakes of the operators of restricted Boltzmann machines."""

from __future__ import annotations

import torch
from torch import Tensor

from gmkernels.core.doors import Operator

from . import reference, values


def _gibbs(v, weight, visible_bias, hidden_bias, key, beta, clamp, steps, first, gaussian, fixed):
    if values.visible_here(v, weight, visible_bias, hidden_bias, beta):
        values.gibbs("rbm_gibbs", v, weight, visible_bias, hidden_bias, beta, gaussian)
    return reference.rbm_gibbs(
        v, weight, visible_bias, hidden_bias, key, beta, clamp, steps, first, gaussian, fixed
    )  # fmt: skip


def _conditional(given, weight, bias, key, beta, first, to_visible, gaussian):
    if values.visible_here(given, weight, bias, beta):
        values.conditional(conditional_name(to_visible), given, weight, bias, beta, gaussian)
    return reference.rbm_conditional(given, weight, bias, key, beta, first, to_visible, gaussian)


def conditional_name(to_visible: bool) -> str:
    """The public function that this half-step is."""
    return "rbm_sample_visible" if to_visible else "rbm_sample_hidden"


def _fake_gibbs(v, weight, *rest):
    return v.new_empty(v.shape), v.new_empty(v.shape[0], weight.shape[1])


def _fake_conditional(given, weight, bias, *rest):
    return given.new_empty(given.shape[0], bias.shape[0]), given.new_empty(given.shape[0], bias.shape[0])


rbm_gibbs = Operator(
    "gibbs",
    "rbm_gibbs(Tensor v, Tensor weight, Tensor visible_bias, Tensor hidden_bias, Tensor key, Tensor? beta,"
    " Tensor? clamp, SymInt steps, SymInt first, bool gaussian, bool fixed, str backend) -> (Tensor, Tensor)",
    _fake_gibbs,
    _gibbs,
)
rbm_conditional = Operator(
    "gibbs",
    "rbm_conditional(Tensor given, Tensor weight, Tensor bias, Tensor key, Tensor? beta, SymInt first,"
    " bool to_visible, bool gaussian, str backend) -> (Tensor, Tensor)",
    _fake_conditional,
    _conditional,
)


def wide(field: Tensor) -> torch.dtype:
    return torch.float64 if field.dtype == torch.float64 else torch.float32


def _fake_sum(field: Tensor) -> Tensor:
    return field.new_empty(field.shape[0], dtype=wide(field))


def _fake_backward(grad: Tensor, field: Tensor) -> Tensor:
    return field.new_empty(field.shape)


def _fake_double_backward(grad_grad: Tensor, grad: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
    return _fake_sum(field), field.new_empty(field.shape)


rbm_softplus_sum = Operator(
    "gibbs",
    "rbm_softplus_sum(Tensor field, str backend) -> Tensor",
    _fake_sum,
    reference.rbm_softplus_sum,
)
rbm_softplus_sum_backward = Operator(
    "gibbs", "rbm_softplus_sum_backward(Tensor grad, Tensor field, str backend) -> Tensor", _fake_backward
)
rbm_softplus_sum_double_backward = Operator(
    "gibbs",
    "rbm_softplus_sum_double_backward(Tensor grad_grad, Tensor grad, Tensor field, str backend) -> (Tensor, Tensor)",
    _fake_double_backward,
)
