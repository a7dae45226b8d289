"""Schemas and fakes of virtual batch normalisation and its two derivatives."""

from __future__ import annotations

import math

from torch import Tensor

from gmkernels.core.doors import Operator

from . import reference


def planes(t: Tensor) -> Tensor:
    """(batch, channels, positions), a view where strides allow it."""
    return t if t.dim() == 3 else t.reshape(*t.shape[:2], math.prod(t.shape[2:]))


def _fake(x, mean, var, weight, bias, own, eps):
    return x.new_empty(x.shape)


def _fake_backward(grad, x, mean, var, weight, own, eps):
    return (x.new_empty(x.shape), *_channels(mean, 4))


def _fake_double_backward(v_x, v_mean, v_var, v_weight, v_bias, grad, x, mean, var, weight, own, eps):
    return (x.new_empty(x.shape), x.new_empty(x.shape), *_channels(mean, 3))


def _channels(mean: Tensor, count: int) -> list[Tensor]:
    return [mean.new_empty(mean.shape) for _ in range(count)]


virtual_batch_norm = Operator(
    "virtual_batch_norm",
    "virtual_batch_norm(Tensor x, Tensor mean, Tensor var, Tensor weight, Tensor bias, float own, float eps,"
    " str backend) -> Tensor",
    _fake,
    reference.virtual_batch_norm,
)
virtual_batch_norm_backward = Operator(
    "virtual_batch_norm",
    "virtual_batch_norm_backward(Tensor grad, Tensor x, Tensor mean, Tensor var, Tensor weight, float own, float eps,"
    " str backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_backward,
)
virtual_batch_norm_double_backward = Operator(
    "virtual_batch_norm",
    "virtual_batch_norm_double_backward(Tensor v_x, Tensor v_mean, Tensor v_var, Tensor v_weight, Tensor v_bias,"
    " Tensor grad, Tensor x, Tensor mean, Tensor var, Tensor weight, float own, float eps, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_double_backward,
)
