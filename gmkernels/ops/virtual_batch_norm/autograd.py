"""Derivatives of virtual batch normalisation.

Of one example and channel with S positions, with c = own, a = 1 - c, e and o the example's own mean and variance,
d = e - mean, u = x - e + a d, v = a var + c (o + a d^2), r = (v + eps)^(-1/2), y = u r w + b, and for a cotangent g:

* M = -r w sum g and V = -r^3 w (sum g u) / 2 are the gradients by the mixed mean and variance;
* dx = r w g + (2 c V (x - e) + c M + 2 a c d V) / S, since both mixed statistics hold the example's own;
* over the batch: dmean = sum (a M - 2 a c d V), dvar = sum a V, dw = sum r (sum g u), db = sum g.

The second derivative is the tangent of these, and of y, along the cotangents (Pearlmutter, 1994): the Hessian of
<g, y> is symmetric.
"""

from __future__ import annotations

from . import library


@library.virtual_batch_norm.derivative
def _first(needs, saved, constants, grads):
    x, mean, var, weight, _ = saved
    return library.virtual_batch_norm_backward(grads[0], x, mean, var, weight, *constants)


@library.virtual_batch_norm_backward.derivative
def _second(needs, saved, constants, grads):
    return library.virtual_batch_norm_double_backward(*grads, *saved, *constants)
