"""Launchers of the C++ core: allocate the outputs, hand over addresses and strides."""

from __future__ import annotations

from torch import Tensor

from gmkernels.core.layout import contiguous_like, operands
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


def bernoulli_log_likelihood(logits: Tensor, x: Tensor, weight: Tensor | None) -> Tensor:
    out = logits.new_empty(logits.shape[0], dtype=wide(logits, x, weight))
    sizes, (l_, x_, w_), _alive = operands(logits, x, weight)
    _core.bernoulli_log_likelihood(sizes, l_, None, x_, w_, None, None, 0, 0, 0, out.data_ptr(), 0)
    return out


def bernoulli_log_likelihood_backward(grad: Tensor, logits: Tensor, x: Tensor, weight: Tensor | None) -> Tensor:
    grad, out = grad.contiguous(), contiguous_like(logits)
    sizes, (l_, x_, w_), _alive = operands(logits, x, weight)
    _core.bernoulli_log_likelihood_backward(
        sizes, l_, None, x_, w_, None, None, grad.data_ptr(), out.data_ptr(), 0, 0, DTYPES[out.dtype]
    )
    return out


def bernoulli_log_likelihood_double_backward(
    grad_grad: Tensor, grad: Tensor, logits: Tensor, x: Tensor, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    grad, out_logits = grad.contiguous(), contiguous_like(logits)
    out = logits.new_empty(logits.shape[0], dtype=wide(logits, x, weight))
    sizes, (v_, l_, x_, w_), _alive = operands(grad_grad, logits, x, weight)
    _core.bernoulli_log_likelihood_double_backward(
        sizes, l_, None, x_, w_, v_, None, grad.data_ptr(), out_logits.data_ptr(), 0, out.data_ptr(),
        DTYPES[out_logits.dtype],
    )  # fmt: skip
    return out, out_logits


def gaussian_log_likelihood(x: Tensor, mean: Tensor | None, logvar: Tensor | None, weight: Tensor | None) -> Tensor:
    out = x.new_empty(x.shape[0], dtype=wide(x, mean, logvar, weight))
    sizes, (x_, m_, v_, w_), _alive = operands(x, mean, logvar, weight)
    _core.gaussian_log_likelihood(sizes, m_, v_, x_, w_, None, None, 0, 0, 0, out.data_ptr(), 0)
    return out


def _gradients(x: Tensor, mean: Tensor | None, logvar: Tensor | None) -> tuple[Tensor, Tensor]:
    by_mean = x.new_empty(x.shape, dtype=mean_dtype(x, mean))
    return by_mean, x.new_empty(0) if logvar is None else logvar.new_empty(x.shape)


def gaussian_log_likelihood_backward(
    grad: Tensor, x: Tensor, mean: Tensor | None, logvar: Tensor | None, weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    grad, (out_mean, out_logvar) = grad.contiguous(), _gradients(x, mean, logvar)
    sizes, (x_, m_, v_, w_), _alive = operands(x, mean, logvar, weight)
    _core.gaussian_log_likelihood_backward(
        sizes, m_, v_, x_, w_, None, None, grad.data_ptr(), out_mean.data_ptr(), out_logvar.data_ptr(), 0,
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
) -> tuple[Tensor, Tensor, Tensor]:
    grad, (out_mean, out_logvar) = grad.contiguous(), _gradients(x, mean, logvar)
    out = x.new_empty(x.shape[0], dtype=wide(x, mean, logvar, weight))
    along = None if logvar is None else grad_grad_logvar
    sizes, (vm_, vv_, x_, m_, v_, w_), _alive = operands(grad_grad_mean, along, x, mean, logvar, weight)
    _core.gaussian_log_likelihood_double_backward(
        sizes, m_, v_, x_, w_, vm_, vv_, grad.data_ptr(), out_mean.data_ptr(), out_logvar.data_ptr(), out.data_ptr(),
        DTYPES[out_mean.dtype],
    )  # fmt: skip
    return out, out_mean, out_logvar
