"""Derivatives of the coupling operators.

Affine coupling, with a the log-scale, d = x (forward) or x - t (inverse), sign = +1 or -1 and m = exp(sign a):
y = d m (+ t), and for cotangents (g, l) of (y, logdet)

* dx = g m, ds = sign (g d m + l) a'(s), dt = g (forward) or -dx (inverse);
* the second derivative is the tangent of these along the cotangents (Pearlmutter, 1994): the Hessian of
  <g, y> + l logdet is symmetric, so its product with a vector is a directional derivative of the gradient.

The operator of the first derivative leaves dt to autograd, which already knows how to pass g on or negate dx.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gmkernels.core.layout import cast

from . import library


@library.affine_coupling.derivative
def _affine_first(needs, saved, constants, grads):
    (x, s, t, mask, inner), (*how, _, backend), dtype = saved, constants, saved[0].dtype
    (grad_y, grad_logdet), inverse = grads, how[2]
    if inverse and t.dtype != dtype:
        # The inverse's dt is -dx, which must not be rounded to a narrower x on its way.
        x, grad_y = (v.to(torch.promote_types(dtype, t.dtype)) for v in (x, grad_y))
    grad_x, grad_s = library.affine_coupling_backward(grad_y, grad_logdet, x, s, t, mask, inner, *how, backend)
    return cast(grad_x, dtype), grad_s, cast(_shift(grad_y, grad_x, mask, inverse), t.dtype), None


@library.affine_coupling_backward.derivative
def _affine_second(needs, saved, constants, grads):
    grad_y, grad_logdet, x, s, t, mask, _ = saved  # what was kept follows from s
    double = library.affine_coupling_double_backward
    grad_grad_y, grad_grad_logdet, grad_x, grad_s = double(*grads, *saved[:-1], *constants)
    # Only d = x - t enters the inverse, and t does not enter the forward direction at all.
    grad_t = _shift(None, grad_x, mask, True).to(t.dtype) if constants[2] else None
    return grad_grad_y, grad_grad_logdet, grad_x, grad_s, grad_t, None, None


def _shift(grad_y: Tensor | None, grad_x: Tensor, mask: Tensor | None, inverse: bool) -> Tensor:
    grad = -grad_x if inverse or grad_y is None else grad_y
    return grad if mask is None else grad.masked_fill(mask, 0.0)


@library.planar_flow.derivative
def _planar_first(needs, saved, constants, grads):
    return library.planar_flow_backward(*grads, *saved, *constants)


@library.planar_flow_backward.derivative
def _planar_second(needs, saved, constants, grads):
    return library.planar_flow_double_backward(*grads, *saved, *constants)
