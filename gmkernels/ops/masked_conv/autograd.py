"""Derivatives of the convolutions and of the gate.

A convolution c(x, w) is linear in x and in w, so for a cotangent g of its output its gradients are bilinear as well:
X(g, w) by x, W(g, x) by w, and the sum of g by the bias. For cotangents (u, v, s) of those three,

* by g: c(u, w) + c(x, v) + s,   by x: X(g, v),   by w: W(g, u),

which are the same two operators again: there is no order at which it ends.

Gate, with t = tanh(a), s = sigmoid(b), for a cotangent g: da = g s (1 - t^2), db = g t s (1 - s). The gradient by the
condition is that by x. The second derivative is the tangent of these along the cotangents (Pearlmutter, 1994).

Both at once: with p the gate's gradient and q = c(u, w) + c(x, v) + s + r the tangent of what goes into the gate (r the
cotangent of the condition's gradient), all gradients together are <p, q>. It is linear in q; so by g and by what goes
into the gate its derivatives are the gate's second ones for the cotangent q, and q adds X(p, v) by x and W(p, u) by w.
"""

from __future__ import annotations

from torch import Tensor

from . import library
from .reference import alone, spread, together, wide


def _bilinear(forward, backward, count):
    """Registers the derivatives of a convolution and of its gradients; ``count`` constants say which it is."""

    @forward.derivative
    def _first(needs, saved, constants, grads):
        found = backward(grads[0], *saved[:2], *constants[:count], *needs, constants[-1])
        return tuple(grad if need else None for grad, need in zip(found, needs, strict=True))

    @backward.derivative
    def _higher(needs, saved, constants, grads):
        (grad, x, weight), rule, backend = saved, constants[:count], constants[-1]
        by_x, by_weight, by_bias = constants[count : count + 3]
        u, v, s = grads
        along_grad = along_x = along_weight = None
        if needs[0]:
            # In the wider dtype, because the terms may cancel each other.
            lifted = [t.to(wide(t)) for t in (u, v, s, x, weight)]
            along_grad = _along_grad(forward, lifted, (by_x, by_weight, by_bias), grad, (*rule, backend)).to(grad.dtype)
        if needs[1] and by_weight:
            along_x = backward(grad, x, v, *rule, True, False, False, backend)[0]
        if needs[2] and by_x:
            along_weight = backward(grad, u, weight, *rule, False, True, False, backend)[1]
        return along_grad, along_x, along_weight


def _along_grad(forward, tensors, has, grad, rule):
    """c(u, w) + c(x, v) + s, of those that there are."""
    (u, v, s, x, weight), (by_x, by_weight, by_bias) = tensors, has
    terms = [forward(u, weight, s if by_bias else None, *rule)] if by_x else []
    terms += [forward(x, v, s if by_bias and not by_x else None, *rule)] if by_weight else []
    return sum(terms[1:], terms[0]) if terms else s.reshape(-1, *[1] * (x.dim() - 2)).expand_as(grad)


_bilinear(library.masked_conv2d, library.masked_conv2d_backward, 2)
_bilinear(library.causal_conv1d, library.causal_conv1d_backward, 1)


@library.gated_activation.derivative
def _gate_first(needs, saved, constants, grads):
    by_x = library.gated_activation_backward(grads[0], *saved, *constants)
    return by_x, by_x if needs[1] else None


@library.gated_activation_backward.derivative
def _gate_second(needs, saved, constants, grads):
    by_grad, by_x = library.gated_activation_double_backward(grads[0], *saved, *constants)
    return by_grad, by_x, by_x if needs[2] else None


@library.gated_masked_conv2d.derivative
def _gated_first(needs, saved, constants, grads):
    *inputs, kept = saved
    *rule, _, backend = constants
    found = library.gated_masked_conv2d_backward(grads[0], kept, *inputs, *rule, *needs, backend)
    return tuple(grad if need else None for grad, need in zip(found, needs, strict=True))


@library.gated_masked_conv2d_backward.derivative
def _gated_second(needs, saved, constants, grads):
    grad, _, *inputs = saved
    *rule, by_x, by_weight, by_bias, by_cond, backend = constants
    # In the wider dtype, because the terms may cancel each other.
    bias, cond = (None if t is None else t.to(wide(t)) for t in inputs[2:])
    g, x, weight, u, v, s, r = (t.to(wide(t)) for t in (grad, *inputs[:2], *grads))
    conv, conv_backward, groups = library.masked_conv2d, library.masked_conv2d_backward, rule[1]

    pre = conv(x, weight, bias, *rule, backend)
    pre = alone(pre if cond is None else pre + spread(cond), groups)
    terms = [conv(u, weight, None, *rule, backend)] if by_x else []
    terms += [conv(x, v, None, *rule, backend)] if by_weight else []
    terms += [spread(s[None])] if by_bias else []
    terms += [spread(r)] if by_cond else []
    q = alone(sum(terms[1:], terms[0]).expand(x.shape[0], weight.shape[0], *x.shape[2:]), groups)

    by_grad, by_pre = library.gated_activation_double_backward(q, alone(g, groups), pre, None, backend)
    by_pre = together(by_pre, groups)
    along: list[Tensor | None] = list(conv_backward(by_pre, x, weight, *rule, *needs[2:5], backend))
    if by_x and needs[3] or by_weight and needs[2]:
        p = together(library.gated_activation_backward(alone(g, groups), pre, None, backend), groups)
        if by_weight and needs[2]:
            along[0] = along[0] + conv_backward(p, x, v, *rule, True, False, False, backend)[0]
        if by_x and needs[3]:
            along[1] = along[1] + conv_backward(p, u, weight, *rule, False, True, False, backend)[1]
    along.append(by_pre.sum((2, 3)) if cond is not None and cond.dim() == 2 else by_pre)
    found = (together(by_grad, groups), None, *along)
    return tuple(t.to(grad.dtype) if t is not None and need else None for t, need in zip(found, needs, strict=True))
