"""Launchers of the C++ core: allocate the outputs, hand over addresses and strides."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from gmkernels.core.layout import contiguous_like, one_batch, operands, shared_rows
from gmkernels.core.native import DTYPES, cpu

from .library import mean_dtype
from .reference import wide

_core = cpu()


def reparameterize_kl(
    mu: Tensor, logvar: Tensor, key: Tensor, beta: float, free_bits: float, first: int
) -> tuple[Tensor, Tensor]:
    z, kl, key = contiguous_like(mu), mu.new_empty(mu.shape[0], dtype=wide(mu)), key.contiguous()
    sizes, (mu_, logvar_), _alive = operands(mu, logvar)
    _core.reparameterize_kl(
        sizes, mu_, logvar_, None, None, None, 0, key.data_ptr(), first, beta, free_bits,
        0, 0, z.data_ptr(), kl.data_ptr(),
    )  # fmt: skip
    return z, kl


def reparameterize_kl_backward(
    grad_z: Tensor,
    grad_kl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    key: Tensor,
    beta: float,
    free_bits: float,
    first: int,
) -> tuple[Tensor, Tensor]:
    grad_mu, grad_logvar = contiguous_like(mu), contiguous_like(mu)
    grad_kl, key = grad_kl.contiguous(), key.contiguous()
    sizes, (g_, mu_, logvar_), _alive = operands(grad_z, mu, logvar)
    _core.reparameterize_kl_backward(
        sizes, mu_, logvar_, g_, None, None, grad_kl.data_ptr(), key.data_ptr(), first, beta, free_bits,
        grad_mu.data_ptr(), grad_logvar.data_ptr(), 0, 0,
    )  # fmt: skip
    return grad_mu, grad_logvar


def reparameterize_kl_double_backward(
    grad_grad_mu: Tensor,
    grad_grad_logvar: Tensor,
    grad_z: Tensor,
    grad_kl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    key: Tensor,
    beta: float,
    free_bits: float,
    first: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out_mu, out_logvar, out_z = contiguous_like(mu), contiguous_like(mu), contiguous_like(mu)
    out_kl, grad_kl, key = mu.new_empty(mu.shape[0], dtype=wide(mu)), grad_kl.contiguous(), key.contiguous()
    sizes, (vm_, vv_, g_, mu_, logvar_), _alive = operands(grad_grad_mu, grad_grad_logvar, grad_z, mu, logvar)
    _core.reparameterize_kl_double_backward(
        sizes, mu_, logvar_, g_, vm_, vv_, grad_kl.data_ptr(), key.data_ptr(), first, beta, free_bits,
        out_mu.data_ptr(), out_logvar.data_ptr(), out_z.data_ptr(), out_kl.data_ptr(),
    )  # fmt: skip
    return out_z, out_kl, out_mu, out_logvar


def _samples(
    batch_dims: int, x: Tensor, weight: Tensor | None, *others: Tensor | None
) -> tuple[tuple[int, int, int], tuple[Any, ...], list[Any], Any]:
    """Sizes; of x and the weight where they are and how many samples in turn have one row; the others; the living."""
    if batch_dims == 1:
        sizes, (x_, w_, *rest), alive = operands(x, weight, *others)
        return sizes, (x_, w_, 1, 1), rest, alive
    x_rows, x_samples = shared_rows(x, batch_dims)
    w_rows, w_samples = (None, 1) if weight is None else shared_rows(weight, batch_dims)
    flat = (None if t is None else one_batch(t, batch_dims) for t in others)
    (_, outer, inner), (x_, w_, *rest), alive = operands(x_rows, w_rows, *flat)
    return (math.prod(x.shape[:batch_dims]), outer, inner), (x_, w_, x_samples, w_samples), rest, alive


def bernoulli_log_likelihood(logits: Tensor, x: Tensor, weight: Tensor | None, batch_dims: int) -> Tensor:
    out = logits.new_empty(logits.shape[:batch_dims], dtype=wide(logits, x, weight))
    sizes, fixed, (l_,), _alive = _samples(batch_dims, x, weight, logits)
    _core.bernoulli_log_likelihood(sizes, l_, None, *fixed, None, None, 0, 0, 0, out.data_ptr(), 0)
    return out


def bernoulli_log_likelihood_backward(
    grad: Tensor, logits: Tensor, x: Tensor, weight: Tensor | None, batch_dims: int
) -> Tensor:
    grad, out = grad.contiguous(), contiguous_like(logits)
    sizes, fixed, (l_,), _alive = _samples(batch_dims, x, weight, logits)
    _core.bernoulli_log_likelihood_backward(
        sizes, l_, None, *fixed, None, None, grad.data_ptr(), out.data_ptr(), 0, 0, DTYPES[out.dtype]
    )
    return out


def bernoulli_log_likelihood_double_backward(
    grad_grad: Tensor, grad: Tensor, logits: Tensor, x: Tensor, weight: Tensor | None, batch_dims: int
) -> tuple[Tensor, Tensor]:
    grad, out_logits = grad.contiguous(), contiguous_like(logits)
    out = logits.new_empty(logits.shape[:batch_dims], dtype=wide(logits, x, weight))
    sizes, fixed, (l_, v_), _alive = _samples(batch_dims, x, weight, logits, grad_grad)
    _core.bernoulli_log_likelihood_double_backward(
        sizes, l_, None, *fixed, v_, None, grad.data_ptr(), out_logits.data_ptr(), 0, out.data_ptr(),
        DTYPES[out_logits.dtype],
    )  # fmt: skip
    return out, out_logits


def gaussian_log_likelihood(
    x: Tensor, mean: Tensor | None, logvar: Tensor | None, weight: Tensor | None, batch_dims: int
) -> Tensor:
    out = x.new_empty(x.shape[:batch_dims], dtype=wide(x, mean, logvar, weight))
    sizes, fixed, (m_, v_), _alive = _samples(batch_dims, x, weight, mean, logvar)
    _core.gaussian_log_likelihood(sizes, m_, v_, *fixed, None, None, 0, 0, 0, out.data_ptr(), 0)
    return out


def _gradients(x: Tensor, mean: Tensor | None, logvar: Tensor | None) -> tuple[Tensor, Tensor]:
    by_mean = x.new_empty(x.shape, dtype=mean_dtype(x, mean))
    return by_mean, x.new_empty(0) if logvar is None else logvar.new_empty(x.shape)


def gaussian_log_likelihood_backward(
    grad: Tensor, x: Tensor, mean: Tensor | None, logvar: Tensor | None, weight: Tensor | None, batch_dims: int
) -> tuple[Tensor, Tensor]:
    grad, (out_mean, out_logvar) = grad.contiguous(), _gradients(x, mean, logvar)
    sizes, fixed, (m_, v_), _alive = _samples(batch_dims, x, weight, mean, logvar)
    _core.gaussian_log_likelihood_backward(
        sizes, m_, v_, *fixed, None, None, grad.data_ptr(), out_mean.data_ptr(), out_logvar.data_ptr(), 0,
        DTYPES[out_mean.dtype],
    )  # fmt: skip
    return out_mean, out_logvar


def gaussian_log_likelihood_double_backward(
    grad_grad_mean: Tensor,
    grad_grad_logvar: Tensor,
    grad: Tensor,
    x: Tensor,
    mean: Tensor | None,
    logvar: Tensor | None,
    weight: Tensor | None,
    batch_dims: int,
) -> tuple[Tensor, Tensor, Tensor]:
    grad, (out_mean, out_logvar) = grad.contiguous(), _gradients(x, mean, logvar)
    out = x.new_empty(x.shape[:batch_dims], dtype=wide(x, mean, logvar, weight))
    along = None if logvar is None else grad_grad_logvar
    sizes, fixed, (m_, v_, vm_, vv_), _alive = _samples(batch_dims, x, weight, mean, logvar, grad_grad_mean, along)
    _core.gaussian_log_likelihood_double_backward(
        sizes, m_, v_, *fixed, vm_, vv_, grad.data_ptr(), out_mean.data_ptr(), out_logvar.data_ptr(), out.data_ptr(),
        DTYPES[out_mean.dtype],
    )  # fmt: skip
    return out, out_mean, out_logvar
