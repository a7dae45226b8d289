"""Derivatives of the penalty on gradients' norms.

With n = |g_i|, the penalty p = (n - k)^2 has the gradient c g, c = 2 (1 - k / n), and for a cotangent v of that
gradient, w being the one of p,

* d/dw  = c <g, v>
* d/dg  = w (c v + 2 k / n^3 <g, v> g),

zero where the one-sided penalty is off. Written in plain operations, so that there are derivatives of every order.
"""

from __future__ import annotations

import math

import torch

from . import library, reference


@library.norm_penalty.derivative
def _first(needs, saved, constants, grads):  # type: ignore[no-untyped-def]
    return (library.norm_penalty_backward(grads[0], *saved, *constants),)


@library.norm_penalty_backward.derivative
def _second(needs, saved, constants, grads):  # type: ignore[no-untyped-def]
    (grad, given), (target, one_sided, _) = saved, constants
    # Side by side, so that sums have one order whatever the layout of the inputs.
    g, v = (t.to(reference.wide(t)).contiguous() for t in (given, grads[0]))
    rows, each = (len(g), math.prod(g.shape[1:])), (len(g), *[1] * (g.dim() - 1))
    c, along = reference.slope(g, target, one_sided), (g * v).reshape(rows).sum(1)
    by_g = c * v
    if target != 0:
        squared = g.square().reshape(rows).sum(1).reshape(each)
        live = squared > (target * target if one_sided else 0.0)
        bend = torch.where(live, 2 * target / torch.where(live, squared, 1.0).pow(1.5), 0.0)
        by_g = by_g + bend * along.reshape(each) * g
    by_grad = (c.reshape(-1) * along).to(grad.dtype) if needs[0] else None
    return by_grad, (grad.reshape(each) * by_g).to(given.dtype) if needs[1] else None
