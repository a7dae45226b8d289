"""The definition of the Gaussian operators: plain PyTorch, any floating dtype, differentiable any number of times."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from gmkernels.core import philox


def wide(*tensors: Tensor | None) -> torch.dtype:
    """The dtype of the computation and of sums: float64 if anything is, else float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def _sum(terms: Tensor, weight: Tensor | None = None, batch_dims: int = 1) -> Tensor:
    terms = terms if weight is None else weight.to(terms.dtype) * terms
    return terms.sum(dim=tuple(range(batch_dims, terms.dim())))


def reparameterize_kl(
    mu: Tensor, logvar: Tensor, key: Tensor, beta: float = 1.0, free_bits: float = -math.inf, first: int = 0
) -> tuple[Tensor, Tensor]:
    dtype = wide(mu)
    eps = philox.normals(key, first * math.prod(mu.shape[1:]), math.prod(mu.shape), dtype).reshape(mu.shape)
    m, v = mu.to(dtype), logvar.to(dtype)
    z = m + torch.exp(0.5 * v) * eps
    kl = 0.5 * (m * m + torch.exp(v) - 1.0 - v)
    return z.to(mu.dtype), beta * _sum(kl.clamp(min=free_bits))


def bernoulli_log_likelihood(logits: Tensor, x: Tensor, weight: Tensor | None = None, batch_dims: int = 1) -> Tensor:
    dtype = wide(logits, x, weight)
    t, ones, zeros = x.to(dtype), logsigmoid(logits.to(dtype)), logsigmoid(-logits.to(dtype))
    # x l - softplus(l), without its cancellation: the logarithms of the probabilities of 1 and 0.
    return _sum(t * ones + (1.0 - t) * zeros, weight, batch_dims)


def gaussian_log_likelihood(
    x: Tensor,
    mean: Tensor | None = None,
    logvar: Tensor | None = None,
    weight: Tensor | None = None,
    batch_dims: int = 1,
) -> Tensor:
    dtype = wide(x, mean, logvar, weight)
    r = x.to(dtype) if mean is None else x.to(dtype) - mean.to(dtype)
    if logvar is None:
        terms = r * r
    else:
        v = logvar.to(dtype)
        terms = r * torch.exp(-v) * r + v
    return _sum(-0.5 * (terms + math.log(2.0 * math.pi)), weight, batch_dims)
