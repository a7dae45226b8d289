"""The definition of the gradient penalty's two operators: plain PyTorch, any floating dtype."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gmkernels.core import philox


def wide(x: Tensor) -> torch.dtype:
    """The dtype of the computation and of sums: float64 for float64, else float32."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def interpolate(a: Tensor, b: Tensor, key: Tensor, first: int = 0) -> Tensor:
    """``b + eps (a - b)``, one uniform eps for each sample."""
    dtype = wide(a)
    eps = philox.to_uniform(philox.words(key, first, len(a)), dtype).reshape(-1, *[1] * (a.dim() - 1))
    return (b.to(dtype) + eps * (a.to(dtype) - b.to(dtype))).to(a.dtype)


def norm_penalty(g: Tensor, target: float = 1.0, one_sided: bool = False) -> Tensor:
    """``(|g_i| - target)^2`` for each sample; at a norm of 0 its gradient is taken to be 0."""
    squared = g.to(wide(g)).reshape(len(g), math.prod(g.shape[1:])).square().sum(1)
    if target == 0:
        return squared
    zero = squared == 0
    excess = torch.where(zero, 1.0, squared).sqrt().masked_fill(zero, 0.0) - target
    return (excess.clamp(min=0.0) if one_sided else excess).square()


def slope(g: Tensor, target: float, one_sided: bool) -> Tensor:
    """The factor of ``g_i`` in the penalty's gradient, ``2 (1 - target / |g_i|)``, shaped to be multiplied with g."""
    norm = g.to(wide(g)).reshape(len(g), math.prod(g.shape[1:])).square().sum(1).sqrt()
    if target == 0:
        factor = torch.full_like(norm, 2.0)
    else:
        still = norm <= (target if one_sided else 0.0)
        factor = torch.where(still, 0.0, 2.0 * (norm - target) / torch.where(still, 1.0, norm))
    return factor.reshape(-1, *[1] * (g.dim() - 1))


def norm_penalty_gradient(g: Tensor, target: float = 1.0, one_sided: bool = False) -> tuple[Tensor, Tensor]:
    """The penalty and its gradient by ``g``."""
    return norm_penalty(g, target, one_sided), (slope(g, target, one_sided) * g).to(g.dtype)
