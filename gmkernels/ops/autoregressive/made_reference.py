"""The definition of the inverse of a masked autoregressive layer: the whole network once for every feature.

G. Papamakarios, T. Pavlakou and I. Murray, "Masked autoregressive flow for density estimation", 2017, equation 3. Plain
PyTorch, float32 or float64, differentiable any number of times.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gmkernels.core.product import linear, no_autocast
from gmkernels.ops.coupling import affine_coupling

from .made_network import Made

Layer = Callable[[Tensor], Tensor]


def activate(x: Tensor, activation: str) -> Tensor:
    return x.relu() if activation == "relu" else torch.tanh(x)


def dense(made: Made, parameters: Tensor, degrees: Tensor) -> list[Layer]:
    """The linear layers with their masks multiplied in."""
    parts = made.split(parameters)
    layers: list[Layer] = []
    for weight, bias, seen in zip(parts[::2], parts[1::2], made.seen(degrees), strict=True):
        allowed = torch.arange(weight.shape[1], device=seen.device) < seen[:, None]
        layers.append(functools.partial(linear, weight=torch.where(allowed, weight, 0.0), bias=bias))
    return layers


def network(
    x: Tensor, made: Made, layers: list[Layer], condition: Tensor | None, activation: str
) -> tuple[Tensor, Tensor]:
    """Raw log-scale and shift of every feature."""
    first, *middle, last = layers
    h = first(x)
    if condition is not None:
        h = h + condition
    if made.residual:
        for into, out in zip(middle[::2], middle[1::2], strict=True):
            h = h + out(activate(into(activate(h, activation)), activation))
    else:
        for layer in middle:
            h = layer(activate(h, activation))
        h = activate(h, activation)
    s, t = last(h).chunk(2, dim=1)
    return s, t


def made_inverse(
    z: Tensor,
    parameters: Tensor,
    condition: Tensor | None,
    degrees: Tensor,
    widths: list[int],
    residual: bool,
    activation: str,
    scale_map: str,
    clamp: float,
) -> tuple[Tensor, Tensor]:
    made = Made(z.shape[1], tuple(widths), residual)
    layers = dense(made, parameters, degrees)
    known: list[Tensor] = []
    logdet = z.new_zeros(z.shape[0])
    for i in range(made.features):
        x = torch.cat((*known, torch.zeros_like(z[:, i:])), dim=1)
        s, t = (v[:, i : i + 1] for v in network(x, made, layers, condition, activation))
        feature, part = affine_coupling(
            z[:, i : i + 1], s, t, scale_map=scale_map, clamp=clamp, inverse=True, backend="reference"
        )
        known.append(feature)
        logdet = logdet + part
    return (torch.cat(known, dim=1) if known else z.clone()), logdet


def made_inverse_backward(
    grad_x: Tensor,
    grad_logdet: Tensor,
    x: Tensor,
    parameters: Tensor,
    condition: Tensor | None,
    degrees: Tensor,
    widths: list[int],
    residual: bool,
    activation: str,
    scale_map: str,
    clamp: float,
    layers_of: Callable[[Made, Tensor, Tensor], list[Layer]] = dense,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients by z, parameters and condition, from the solution x alone, by the implicit function theorem.

    With z = f(x, p) and l(x, p) its log-determinant, J = df/dx: u solves ``J^T u = grad_x - grad_logdet dl/dx``, and
    the gradients are u by z and ``-u df/dp - grad_logdet dl/dp`` by p. Differentiable in all that it takes, by building J.
    """
    made = Made(x.shape[1], tuple(widths), residual)
    with torch.enable_grad():
        x, parameters, condition = _apart(x), _apart(parameters), None if condition is None else _apart(condition)
        leaves = [x, parameters] if condition is None else [x, parameters, condition]
        s, t = network(x, made, layers_of(made, parameters, degrees), condition, activation)
        z, logdet = affine_coupling(x, s, t, scale_map=scale_map, clamp=clamp, backend="reference")

        def pull(values: tuple[Tensor, ...], by: list[Tensor], weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return torch.autograd.grad(values, by, weights, create_graph=True, materialize_grads=True)

        jacobian = torch.stack([pull((z,), [x], (one.expand_as(z),))[0] for one in torch.eye(made.features).to(z)], 1)
        right = grad_x - pull((logdet,), [x], (grad_logdet,))[0]
        u = torch.linalg.solve_triangular(jacobian.mT, right[..., None], upper=True)[..., 0]
        found = pull((z, logdet), leaves[1:], (-u, -grad_logdet))
    return u, found[0], found[1] if condition is not None else None


def _apart(t: Tensor) -> Tensor:
    """The same tensor as a place to differentiate by: x is itself a function of the parameters, which is not meant."""
    return t.view_as(t) if t.requires_grad else t.detach().requires_grad_()


def along(needs, saved, constants, grads, layers_of):
    """Gradients of <grads, made_inverse_backward(saved)> by the tensors in ``saved``, themselves differentiable."""
    higher = torch.is_grad_enabled()
    with torch.enable_grad(), no_autocast(saved[0]):
        own = [_apart(t) if need else t for t, need in zip(saved, needs, strict=True)]
        given: list[Any] = [*own, *constants, layers_of]
        found = made_inverse_backward(*given)
        pairs = [(t, g) for t, g in zip(found, grads, strict=True) if t is not None and t.requires_grad]
        asked = [t for t, need in zip(own, needs, strict=True) if need]
        tops, weights = zip(*pairs, strict=True)
        results = iter(torch.autograd.grad(tops, asked, weights, create_graph=higher, materialize_grads=True))
    return tuple(next(results) if need else None for need in needs)
