"""Derivatives of the penalty on gradients' norms.

With n = |g_i| and u = g_i / n, the penalty p = (n - k)^2 has the gradient 2 (n - k) u, and for a cotangent v of that
gradient, w being the one of p,

* d/dw = 2 (n - k) <u, v>
* d/dg = w (2 (n - k) v + 2 k <u, v> u) / n,

zero where the one-sided penalty is off, and <2 g, v> and 2 w v for k = 0. Written in plain operations, so that there
are derivatives of every order.
"""

from __future__ import annotations

import math

import torch

from . import library


@library.norm_penalty.derivative
def _first(needs, saved, constants, grads):
    return (library.norm_penalty_backward(grads[0], *saved, *constants),)


@library.norm_penalty_backward.derivative
def _second(needs, saved, constants, grads):
    (grad, given), (target, one_sided, _) = saved, constants
    # Side by side, so that sums have one order whatever the layout of the inputs; and in float64, because <u, v> and the
    # sum in d/dg may be small differences of large terms.
    g, v = (t.double().contiguous() for t in (given, grads[0]))
    rows, each = (len(g), math.prod(g.shape[1:])), (len(g), *[1] * (g.dim() - 1))
    if target == 0:
        by_grad, by_g = 2 * (g * v).reshape(rows).sum(1), 2 * v
    else:
        squared = g.square().reshape(rows).sum(1).reshape(each)
        live = squared > (target * target if one_sided else 0.0)
        norm = torch.where(live, squared, 1.0).sqrt()
        u = torch.where(live, g / norm, 0.0)
        along, excess = (u * v).reshape(rows).sum(1).reshape(each), torch.where(live, 2 * (norm - target), 0.0)
        by_grad, by_g = (excess * along).reshape(-1), (excess * v + 2 * target * along * u) / norm
    by_grad = by_grad.to(grad.dtype) if needs[0] else None
    return by_grad, (grad.reshape(each) * by_g).to(given.dtype) if needs[1] else None
