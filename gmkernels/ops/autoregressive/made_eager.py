"""The inverse of a masked autoregressive layer in plain PyTorch operations, every hidden unit computed once, for devices
without a kernel: a few products a step, and memory that does not grow with the steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gmkernels.core.product import no_autocast
from gmkernels.ops.coupling import affine_coupling

from . import made_reference
from .made_network import Made
from .made_reference import activate

Constants = tuple[list[int], bool, str, str, float]


class _Links:
    """The linear layers with the first unit of every degree at each of their ends, and what they take and make."""

    def __init__(self, features: int, parameters: Tensor, degrees: Tensor, constants: Constants) -> None:
        widths, residual, self.activation, self.scale_map, self.clamp = constants
        self.made = Made(features, tuple(widths), residual)
        parts = self.made.split(parameters)
        self.weights, self.biases = parts[::2], parts[1::2]
        self.ends = list(self.made.links())
        steps = torch.arange(features + 1, device=degrees.device)
        # One copy to the host: the first hidden unit of each degree.
        starts = torch.stack([torch.searchsorted(d.contiguous(), steps) for d in degrees.split(tuple(widths))]).tolist()
        self.starts = [[max(0, d - 1) for d in range(features + 1)], *starts]
        self.over = {m: m - 2 for m in range(2, len(self.ends) - 1, 2)} if residual else {}

    def start(self, place: int, degree: int) -> int:
        return self.starts[place + 1][degree]

    def active(self, m: int) -> bool:
        """Whether what link m makes goes through the activation."""
        return not (self.made.residual and m == len(self.ends) - 2)

    def affine(self, x: Tensor, s: Tensor, t: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        return affine_coupling(
            x, s, t, scale_map=self.scale_map, clamp=self.clamp, inverse=inverse, backend="reference"
        )


def made_inverse(
    z: Tensor, parameters: Tensor, condition: Tensor | None, degrees: Tensor, *constants: Any
) -> tuple[Tensor, Tensor]:
    """Differentiable as the kernels are."""
    return _Inverse.apply(z, parameters, condition, degrees, constants)


class _Inverse(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, parameters: Tensor, condition: Tensor | None, degrees: Tensor, constants: Constants
    ) -> tuple[Tensor, Tensor]:
        with no_autocast(z):
            x, logdet = _solve(_Links(z.shape[1], parameters, degrees, constants), z, condition)
        ctx.constants = constants
        ctx.save_for_backward(x, parameters, condition, degrees)
        return x, logdet

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor, grad_logdet: Tensor) -> Any:
        x, parameters, condition, degrees = ctx.saved_tensors
        found = _Gradient.apply(grad_x, grad_logdet, x, parameters, condition, degrees, ctx.constants)
        return *(g if need else None for g, need in zip(found, ctx.needs_input_grad, strict=False)), None, None


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad_x: Tensor, grad_logdet: Tensor, x: Tensor, parameters: Tensor, condition: Tensor | None,
                degrees: Tensor, constants: Constants) -> tuple[Tensor, ...]:  # fmt: skip
        ctx.constants = constants
        ctx.save_for_backward(grad_x, grad_logdet, x, parameters, condition, degrees)
        links = _Links(x.shape[1], parameters, degrees, constants)
        with no_autocast(x):
            return _pull(links, grad_x, grad_logdet, x, condition, links.made.seen(degrees))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        needs = ctx.needs_input_grad[:-1]
        return *made_reference.along(needs, ctx.saved_tensors, ctx.constants, grads, made_reference.dense), None


def _solve(links: _Links, z: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, features = z.shape
    x, logdet = torch.zeros_like(z), z.new_zeros(batch)
    raw = [z.new_empty(batch, weight.shape[0]) for weight in links.weights[:-1]]
    took = [x, *[torch.empty_like(r) for r in raw]]
    for p in range(features):
        for m, (start, to) in enumerate(links.ends[:-1]):
            first, end, known = links.start(to, p), links.start(to, p + 1), links.start(start, p + 1)
            if first == end:
                continue
            y = torch.addmm(links.biases[m][first:end], took[m][:, :known], links.weights[m][first:end, :known].mT)
            if m == 0 and condition is not None:
                y += condition[:, first:end]
            if m in links.over:
                y += raw[links.over[m]][:, first:end]
            raw[m][:, first:end] = y
            took[m + 1][:, first:end] = activate(y, links.activation) if links.active(m) else y
        known = links.start(links.ends[-1][0], p + 1)
        weight, bias = links.weights[-1][p::features, :known], links.biases[-1][p::features]
        s, t = torch.addmm(bias, took[-1][:, :known], weight.mT).split(1, 1)
        feature, part = links.affine(z[:, p : p + 1], s, t, inverse=True)
        x[:, p : p + 1] = feature
        logdet += part
    return x, logdet


def _pull(
    links: _Links, grad_x: Tensor, grad_logdet: Tensor, x: Tensor, condition: Tensor | None, seen: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The transposed triangular system from the highest degree down, then one product for each layer's parameters."""
    batch, features = x.shape
    took, scale, slope = _evaluate(links, x, condition, seen)
    by = [x.new_zeros(batch, weight.shape[0]) for weight in links.weights]
    by_s, by_t = by[-1].chunk(2, 1)
    u, last = torch.empty_like(x), len(links.ends) - 1
    for p in reversed(range(features)):
        after = links.start(0, p + 1)
        whole = grad_x[:, p] + by[0][:, after:] @ links.weights[0][after:, p]
        u[:, p] = whole / scale[:, p]
        by_s[:, p] = -(whole * x[:, p] + grad_logdet) * slope[:, p]
        by_t[:, p] = -u[:, p]
        for m in reversed(range(last)):
            place = links.ends[m][1]
            first, end = links.start(place, p), links.start(place, p + 1)
            if first == end:
                continue
            weight = links.weights[m + 1][:, first:end]
            if m + 1 == last:
                grad = by_s[:, p:] @ weight[p:features] + by_t[:, p:] @ weight[features + p :]
            else:
                rows = links.start(links.ends[m + 1][1], p)
                grad = by[m + 1][:, rows:] @ weight[rows:]
            if links.active(m):
                y = took[m + 1][:, first:end]
                grad = grad * (y > 0) if links.activation == "relu" else grad * (1.0 - y * y)
            if m + 2 in links.over:
                grad = grad + by[m + 2][:, first:end]
            by[m][:, first:end] = grad
    parameters = []
    for grad, value, limit in zip(by, took, seen, strict=True):
        allowed = torch.arange(value.shape[1], device=x.device) < limit[:, None]
        parameters += [torch.where(allowed, grad.mT @ value, 0.0).flatten(), grad.sum(0)]
    return u, torch.cat(parameters), by[0]


def _evaluate(
    links: _Links, x: Tensor, condition: Tensor | None, seen: list[Tensor]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """What each link takes at x; the scales, and the slopes of their logarithms."""
    took, raw = [x], list[Tensor]()
    for m, (weight, bias, limit) in enumerate(zip(links.weights, links.biases, seen, strict=True)):
        allowed = torch.arange(weight.shape[1], device=x.device) < limit[:, None]
        y = torch.addmm(bias, took[m], torch.where(allowed, weight, 0.0).mT)
        if m == 0 and condition is not None:
            y += condition
        if m in links.over:
            y += raw[links.over[m]]
        raw.append(y)
        if m + 1 < len(links.ends):
            took.append(activate(y, links.activation) if links.active(m) else y)
    with torch.enable_grad():
        s = raw[-1].chunk(2, 1)[0].detach().requires_grad_()
        scale = links.affine(torch.ones_like(s), s, torch.zeros_like(s), inverse=False)[0]
        slope = torch.autograd.grad(scale.log().sum(), s)[0]
    return took, scale.detach(), slope
