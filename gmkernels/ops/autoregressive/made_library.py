"""Schemas, fakes and derivatives of the inverse of a masked autoregressive layer."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from gmkernels.core.doors import Operator
from gmkernels.ops.masked_linear import masked_linear

from . import made_reference
from .made_network import Made

_REST = "Tensor? condition, Tensor degrees, int[] widths, bool residual, str activation, str scale_map, float clamp"


def _fake(z, parameters, condition, degrees, widths, residual, activation, scale_map, clamp):
    return z.new_empty(z.shape), z.new_empty(z.shape[0])


def room(x: Tensor, parameters: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """For the gradients by z, parameters and condition."""
    return x.new_empty(x.shape), parameters.new_empty(parameters.shape), x.new_empty(x.shape[0], width)


def _fake_backward(
    grad_x, grad_logdet, x, parameters, condition, degrees, widths, residual, activation, scale_map, clamp
):
    return room(x, parameters, widths[0])


made_inverse = Operator(
    "autoregressive",
    f"made_inverse(Tensor z, Tensor parameters, {_REST}, str backend) -> (Tensor, Tensor)",
    _fake,
    made_reference.made_inverse,
    ("cpu",),
    keeps_outputs=True,
)
made_inverse_backward = Operator(
    "autoregressive",
    f"made_inverse_backward(Tensor grad_x, Tensor grad_logdet, Tensor x, Tensor parameters, {_REST}, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    _fake_backward,
    backends=("cpu",),
)


@made_inverse.derivative
def _first(needs, saved, constants, grads):
    # The solution knows all that the gradient has to: z does not enter it.
    _, parameters, condition, degrees, x, _ = saved
    found = made_inverse_backward(*grads, x, parameters, condition, degrees, *constants)
    return *(grad if need else None for grad, need in zip(found, needs, strict=False)), None


@made_inverse_backward.derivative
def _second(needs, saved, constants, grads):
    """Through the definition of the gradient, over layers of the backend: it builds the Jacobian, D times a batch of D."""
    layers = functools.partial(_layers, backend=constants[-1])
    return made_reference.along(needs, saved, constants[:-1], grads, layers)


def _layers(made: Made, parameters: Tensor, degrees: Tensor, backend: str) -> list[made_reference.Layer]:
    parts = made.split(parameters)
    return [
        functools.partial(
            masked_linear, weight=weight, bias=bias, in_degree=torch.arange(weight.shape[1], device=seen.device),
            out_degree=seen, strict=True, backend=backend,
        ) for weight, bias, seen in zip(parts[::2], parts[1::2], made.seen(degrees), strict=True)
    ]  # fmt: skip
