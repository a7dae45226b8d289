"""The definition of the coupling operators: plain PyTorch, any floating dtype, differentiable any number of times."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

# The default of ``clamp`` for every scale map, by the convention of the library that the map comes from.
SCALE_MAPS = {
    "exp": math.inf,  # no clamp
    "tanh": 2.0,  # FrEIA
    "atan": 2.0,  # FrEIA
    "sigmoid": 0.0,  # normflows 'sigmoid_inv'; nflows adds 1e-3
    "reciprocal_sigmoid": 0.0,  # normflows 'sigmoid'
    "softplus": math.inf,  # nflows' MAF; its coupling clamps at 3
    "soft_clip": math.log(1e3),  # zuko
}


def log_scale_map(s: Tensor, scale_map: str, clamp: float) -> Tensor:
    """The logarithm of the scale that ``affine_coupling`` multiplies with."""
    if scale_map == "exp":
        return s.clamp(-clamp, clamp)
    if scale_map == "tanh":
        return clamp * torch.tanh(s)
    if scale_map == "atan":
        return clamp * 0.636 * torch.atan(s)
    if scale_map == "sigmoid":
        return torch.log(torch.sigmoid(s + 2.0) + clamp) if clamp else logsigmoid(s + 2.0)
    if scale_map == "reciprocal_sigmoid":
        return -torch.log(torch.sigmoid(s + 2.0) + clamp) if clamp else -logsigmoid(s + 2.0)
    if scale_map == "softplus":
        return torch.log((softplus(s) + 1e-3).clamp(max=clamp))
    return s / (1.0 + (s / clamp).abs())  # soft_clip


def affine_coupling(
    x: Tensor,
    log_scale: Tensor,
    shift: Tensor,
    mask: Tensor | None = None,
    scale_map: str = "exp",
    clamp: float = math.inf,
    inverse: bool = False,
    keep: bool = False,  # for other backends: PyTorch keeps what its derivatives need
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    if log_scale.dtype == torch.float64:
        wide = torch.float64
    a = log_scale_map(log_scale.to(wide), scale_map, clamp)
    y = (x.to(wide) - shift.to(wide)) * torch.exp(-a) if inverse else x.to(wide) * torch.exp(a) + shift.to(wide)
    if mask is not None:
        y, a = torch.where(mask, x.to(wide), y), torch.where(mask, 0.0, a)
    logdet = a.sum(dim=tuple(range(1, a.dim())))
    return y.to(x.dtype), -logdet if inverse else logdet


def planar_flow(z: Tensor, u: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(z.dtype, torch.float32)
    logdet = z.new_zeros(z.shape[0], dtype=wide)
    dtype, z = z.dtype, z.to(wide)
    for u_k, w_k, b_k in zip(u.to(wide), w.to(wide), b.to(wide), strict=True):
        # u_hat = u + (m(w.u) - w.u) w / |w|^2 with m(a) = softplus(a) - 1, written without the cancellation of
        # m(a) - a: it is softplus(-a) - 1. A zero w leaves a plain shift, which needs no correction.
        # Products and sums, not @: autocast would round that to 16 bits.
        # In float64: the square of a short or a long w leaves the range of float32.
        w_wide, u_wide = w_k.double(), u_k.double()
        wu, norm = (w_wide * u_wide).sum(), (w_wide * w_wide).sum()
        moving = norm > 0
        gain = torch.where(moving, softplus(wu), 1.0).to(wide)  # m(w.u) + 1 = 1 + w.u_hat
        shift = torch.where(moving, (softplus(-wu) - 1.0) / torch.where(moving, norm, 1.0), 0.0)
        u_hat = (u_wide + shift * w_wide).to(wide)
        h = torch.tanh((z * w_k).sum(1) + b_k)
        z = z + h.unsqueeze(1) * u_hat
        # 1 + (1 - h^2) w.u_hat, again as a sum of two terms that are never negative.
        logdet = logdet + torch.log(h * h + (1.0 - h * h) * gain)
    return z.to(dtype), logdet
