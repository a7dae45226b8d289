"""Derivatives of the sum of softplus: for a cotangent g of a sample's sum, its field gets ``g sigmoid(field)``; the
second derivative is the tangent of that along the cotangent of the gradient."""

from __future__ import annotations

from . import library


@library.rbm_softplus_sum.derivative
def _first(needs, saved, constants, grads):
    return (library.rbm_softplus_sum_backward(*grads, *saved, *constants),)


@library.rbm_softplus_sum_backward.derivative
def _second(needs, saved, constants, grads):
    return library.rbm_softplus_sum_double_backward(*grads, *saved, *constants)
