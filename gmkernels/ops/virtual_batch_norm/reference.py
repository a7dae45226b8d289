"""The definition of virtual batch normalisation: plain PyTorch, differentiable any number of times."""

from __future__ import annotations

import torch
from torch import Tensor


def virtual_batch_norm(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, own: float, eps: float
) -> Tensor:
    # With E and Q the reference's means of x and x^2, e and q the example's and c = own = 1 / (n + 1), the mixed
    # statistics (1 - c) E + c e and (1 - c) Q + c q have the variance below, without the difference of squares.
    if x.numel() == 0:
        return x * 1.0
    values = x.to(mean.dtype).reshape(*x.shape[:2], -1)
    mean, var, weight, bias = (t.unsqueeze(1) for t in (mean, var, weight, bias))
    rest = 1.0 - own
    own_mean = values.mean(dim=2, keepdim=True)
    centred = values - own_mean
    shift = own_mean - mean
    mixed = rest * var + own * (centred.square().mean(dim=2, keepdim=True) + rest * shift * shift)
    y = (centred + rest * shift) / torch.sqrt(mixed + eps) * weight + bias
    return y.to(x.dtype).reshape(x.shape)
