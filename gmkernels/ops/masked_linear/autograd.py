"""Derivatives of the masked linear layer.

y = r(x) (W M)^T + b, with the mask M and r either relu or nothing, is linear in W and, where r is, in x. With r' the slope
of r at x, a cotangent g of y gives

dx = (g (W M)) r',   dW = (g^T r(x)) M,   db = sum of g,

and cotangents (u, v, s) of those three give, with u' = u r' (the slope of r' is zero),

* by g: u' (W M)^T + r(x) (V M)^T + s,   by x: (g (V M)) r',   by W: (g^T u') M,

which are the same two operators again: there is no order at which it ends.
"""

from __future__ import annotations

from torch import Tensor

from . import library


@library.masked_linear.derivative
def _first(needs, saved, constants, grads):
    x, weight, _, seen = saved
    relu, backend = constants
    found = library.masked_linear_backward(grads[0], x, weight, seen, relu, *needs[:3], backend)
    return *(grad if need else None for grad, need in zip(found, needs, strict=False)), None


@library.masked_linear_backward.derivative
def _higher(needs, saved, constants, grads):
    (grad, x, weight, seen), (relu, by_x, by_weight, by_bias, backend) = saved, constants
    u, v, s = grads
    if by_x and relu:
        u = u * (x > 0)
    along_grad: Tensor | None = None
    along_x = along_weight = None
    if needs[0]:
        terms = [library.masked_linear(u, weight, s if by_bias else None, seen, False, backend)] if by_x else []
        if by_weight:
            terms.append(library.masked_linear(x, v, s if by_bias and not by_x else None, seen, relu, backend))
        along_grad = sum(terms[1:], terms[0]) if terms else s.expand_as(grad)
    if needs[1] and by_weight:
        along_x = library.masked_linear_backward(grad, x, v, seen, relu, True, False, False, backend)[0]
    if needs[2] and by_x:
        along_weight = library.masked_linear_backward(grad, u, weight, seen, False, False, True, False, backend)[1]
    return along_grad, along_x, along_weight, None
