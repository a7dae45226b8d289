"""Derivatives of the multilayer perceptron.

With h_l = act(a_l) and a_(l+1) = W_l h_l + b_l, a cotangent g_l of a_l gives dW = g_(l+1)^T h_l, db = sum of g_(l+1), and
g_l = (g_(l+1) W_l) act'(a_l).

A single layer is linear in x and in W, so that cotangents (u, v, s) of dx, dW and db give u W^T + x v^T + s by g, g v by x
and g^T u by W: the same two operators again. Second derivatives of more layers are those of single layers one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gmkernels.ops.coupling import library as coupling
from gmkernels.ops.gaussian import library as gaussian

from . import library, reference


def _bits(needs: Any) -> int:
    return sum(1 << i for i, need in enumerate(needs) if need)


def _needed(found: Any, needs: Any) -> tuple[Tensor | None, ...]:
    return tuple(grad if need else None for grad, need in zip(found, needs, strict=True))


@library.mlp.derivative
def _first(needs, saved, constants, grads):
    x, *parameters, hidden = saved
    found = library.mlp_backward(grads[0], hidden, x, *parameters, *constants[:-1], _bits(needs), constants[-1])
    return _needed(found, needs)


@library.mlp_backward.derivative
def _second(needs, saved, constants, grads):
    grad, _, *inputs = saved
    activation, wanted, backend = constants
    if inputs[3] is None and inputs[-1] is None:
        return _second_of_one(needs, grad, inputs, wanted, grads, backend)

    def function(*given: Any) -> tuple[Tensor]:
        x, *parameters, each = given
        if each is not None:
            x = reference.paired(x, each, activation)
        return (_layer_by_layer(x, parameters, activation, backend),)

    found = _along(function, inputs, [grad], wanted, (needs[0], *needs[2:]), grads)
    return found[0], None, *found[1:]


def _second_of_one(needs, grad, inputs, wanted, grads, backend):
    (x, weight, bias), rest, (u, v, s) = inputs[:3], [None] * (2 * library.LAYERS - 1), grads[:3]
    by_x, by_weight, by_bias = wanted & 1, wanted & 2, wanted & 4 and bias is not None
    along: list[Tensor | None] = [None] * (2 + len(inputs))
    if needs[0]:
        terms = [_one(u, weight, s if by_bias else None, backend)] if by_x else []
        if by_weight:
            terms.append(_one(x, v, s if by_bias and not by_x else None, backend))
        along[0] = sum(terms[1:], terms[0]) if terms else s.expand_as(grad)
    hidden = x.new_empty(len(x), 0)
    if needs[2] and by_weight:
        along[2] = library.mlp_backward(grad, hidden, x, v, None, *rest, "relu", 1, backend)[0]
    if needs[3] and by_x:
        along[3] = library.mlp_backward(grad, hidden, u, weight, None, *rest, "relu", 2, backend)[1]
    return along


def _one(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    return library.mlp(x, weight, bias, *[None] * (2 * library.LAYERS - 1), "relu", backend)[0]


def _layer_by_layer(x: Tensor, parameters: Sequence[Tensor | None], activation: str, backend: str) -> Tensor:
    for i, (weight, bias) in enumerate(reference.layers(parameters)):
        x = _one(reference.ACTIVATIONS[activation](x) if i else x, weight, bias, backend)
    return x


@library.bernoulli_log_likelihood_mlp.derivative
def _likelihood_first(needs, saved, constants, grads):
    z, *parameters, x, slopes, hidden = saved
    activation, backend = constants
    found = library.bernoulli_log_likelihood_mlp_backward(
        grads[0], slopes, hidden, z, *parameters, x, activation, _bits(needs[:-1]), backend
    )
    by_x = None
    if needs[-1]:
        logits = library.mlp(z, *parameters, None, activation, backend)[0]
        by_x = _judged_together(grads[0].unsqueeze(1) * logits, x).sum(1).to(x.dtype)
    return *_needed(found, needs[:-1]), by_x


@library.bernoulli_log_likelihood_mlp_backward.derivative
def _likelihood_second(needs, saved, constants, grads):
    grad, _, _, *inputs = saved
    activation, wanted, backend = constants

    def function(z: Tensor, *given: Any) -> tuple[Tensor]:
        *parameters, x = given
        logits = _judged_together(_layer_by_layer(z, parameters, activation, backend), x)
        each = x.unsqueeze(1).expand_as(logits)
        return (gaussian.bernoulli_log_likelihood(logits, each, None, 2, backend).flatten(),)

    found = _along(function, inputs, [grad], wanted, (needs[0], *needs[3:]), grads)
    return found[0], None, None, *found[1:]


def _judged_together(t: Tensor, x: Tensor) -> Tensor:
    """``t`` (batch, features) as (images, samples of each, features)."""
    return t.view(x.shape[0], t.shape[0] // max(x.shape[0], 1), t.shape[1])


@library.affine_coupling_mlp.derivative
def _coupling_first(needs, saved, constants, grads):
    x, *parameters, hidden = saved
    found = library.affine_coupling_mlp_backward(
        *grads, hidden, x, *parameters, *constants[:-1], _bits(needs), constants[-1]
    )
    return _needed(found, needs)


@library.affine_coupling_mlp_backward.derivative
def _coupling_second(needs, saved, constants, grads):
    grad_y, grad_logdet, _, *inputs = saved
    split, activation, *how, wanted, backend = constants

    def function(x: Tensor, *given: Tensor | None) -> tuple[Tensor, Tensor]:
        *parameters, norm_log_scale, norm_shift = given
        left, right = x.tensor_split((split,), dim=1)
        kept, changed = (left, right) if split > 0 else (right, left)
        params = _layer_by_layer(kept, parameters, activation, backend).chunk(2, dim=1)
        y, logdet = coupling.affine_coupling(changed, *params, None, *how, False, backend)
        whole = torch.cat((kept, y) if split > 0 else (y, kept), dim=1)
        if norm_log_scale is None or norm_shift is None:
            return whole, logdet
        return reference.normed(whole, logdet, norm_log_scale, norm_shift)

    found = _along(function, inputs, [grad_y, grad_logdet], wanted, (*needs[:2], *needs[3:]), grads)
    return *found[:2], None, *found[2:]


def _own(t: Tensor) -> Tensor:
    """The same tensor at a place of its own in the graph: what led to it is none of this derivative's business."""
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()


def _along(
    function: Callable[..., tuple[Tensor, ...]],
    inputs: list[Tensor | None],
    cotangents: list[Tensor],
    wanted: int,
    needs: tuple[bool, ...],
    grads: tuple[Tensor, ...],
) -> list[Tensor | None]:
    """The derivative of a function's gradients (those whose bit of ``wanted`` is set), by its cotangents and its inputs.

    What hidden layers hold follows from the inputs, so that the whole derivative goes to these.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [None if t is None else _own(t) for t in inputs]
        cotangents = [_own(t) for t in cotangents]
        # Sums of several terms that may cancel: half precision is left at their end only.
        wide = [None if t is None else t.to(library.wide(t)) for t in leaves]
        asked = [(t, grads[i].to(t)) for i, t in enumerate(wide) if t is not None and wanted >> i & 1]
        chain = torch.autograd.grad(
            function(*wide), [t for t, _ in asked], [t.to(library.wide(t)) for t in cotangents],
            create_graph=True, allow_unused=True,
        )  # fmt: skip
        pairs = [(t, v) for t, (_, v) in zip(chain, asked, strict=True) if t is not None and t.requires_grad]
        sources: list[Tensor] = [
            t for t, need in zip((*cotangents, *leaves), needs, strict=True) if need and t is not None
        ]
        found = iter(
            torch.autograd.grad(
                [t for t, _ in pairs], sources, [v for _, v in pairs], create_graph=again, allow_unused=True
            )
        )
        return [
            next(found) if need and t is not None else None
            for t, need in zip((*cotangents, *leaves), needs, strict=True)
        ]
