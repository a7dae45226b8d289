"""Variational autoencoders: draws from Gaussian posteriors with their KL divergence, and decoders' likelihoods."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gmkernels.core import checks

from . import (
    autograd,  # noqa: F401  (registers the derivatives)
    library,
)

__all__ = ["reparameterize_kl", "bernoulli_log_likelihood", "gaussian_log_likelihood", "gaussian_log_prob"]

_NUMBERS = (float, int, torch.SymFloat, torch.SymInt)


def reparameterize_kl(
    mu: Tensor,
    logvar: Tensor,
    key: Tensor,
    *,
    beta: float = 1.0,
    free_bits: float | None = None,
    first: int = 0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """A draw from each sample's posterior ``N(mu, exp(logvar))``, and its divergence from the prior ``N(0, 1)``.

    ``z = mu + exp(logvar / 2) * eps`` (Kingma and Welling, "Auto-encoding variational Bayes", 2014, section 2.4) and
    ``kl = beta * sum_d max(free_bits, (mu_d^2 + exp(logvar_d) - 1 - logvar_d) / 2)`` (their appendix B; beta: Higgins
    et al., "beta-VAE", 2017, equation 4), the sum over all dimensions but the first.

    ``free_bits`` (in nats) holds each dimension of each sample up. Kingma et al., "Improved variational inference
    with inverse autoregressive flow", 2016, appendix C.8, take the maximum after averaging over a minibatch, by which
    samples depend on each other; this is the same idea without that.

    Args:
        mu, logvar: (batch, ...), two dimensions or more, one floating dtype, any strides: the halves that ``chunk``
            makes of an encoder's output are read where they are.
        key: int64 tensor (2,) made by :func:`gmkernels.random.key`, on the device of ``mu``.
        beta: weight of the divergence, 0 or more. A schedule under ``torch.compile`` recompiles with every new value;
            leave it at 1 there and multiply ``kl``.
        free_bits: nats below which a dimension's divergence is constant and has no gradient; None for no such bound.
        first: logical index of the batch's first sample, so that a batch cut in two draws the same as the whole.
        backend: ``auto``, ``reference``, ``cpu`` or ``triton``.

    Returns:
        ``z`` in the shape and dtype of ``mu``, contiguous, and ``kl`` (batch,) in float32, or float64 for float64
        inputs. Computation is in that wider dtype.

    The noise is that of ``gmkernels.random.normal(key, mu.shape, first=first)``, bit for bit (with ``dtype=float64``
    for float64 inputs), one normal of the stream per element. Backward draws it again instead of keeping it. Twice
    differentiable in ``mu`` and ``logvar``. Row-wise and bitwise reproducible. Non-finite values propagate as in
    PyTorch: where exp(logvar) overflows (above 88.7 in float32), ``kl`` is infinite, which is not an error here.

    Raises:
        TypeError: an argument has an unsupported type or dtype, or the dtypes differ.
        ValueError: shapes or devices do not fit, or the key, ``beta``, ``free_bits`` or ``first`` is out of range.
        BackendError: an explicitly requested backend cannot run.
    """
    op = "reparameterize_kl"
    if not (_alike(mu, logvar) and mu.dtype is logvar.dtype):
        for name, value in (("mu", mu), ("logvar", logvar)):
            checks.floating(op, name, value)
        _samples(op, "mu", mu)
        checks.shape(op, "logvar", logvar, mu.shape)
        checks.same_dtype(op, mu=mu, logvar=logvar)
        checks.same_device(op, mu=mu, logvar=logvar)
    checks.key(op, key, first)
    if key.device != mu.device:
        checks.same_device(op, mu=mu, key=key)
    floor = -math.inf if free_bits is None else _amount(op, "free_bits", free_bits)
    return library.reparameterize_kl(mu, logvar, key, _amount(op, "beta", beta), floor, first, backend)


def bernoulli_log_likelihood(
    logits: Tensor, x: Tensor, weight: Tensor | None = None, *, batch_dims: int = 1, backend: str = "auto"
) -> Tensor:
    """The log-probability of each sample's pixels under independent Bernoulli distributions, from their logits.

    ``sum w (x l - softplus(l))``, the sum over all dimensions but the first ``batch_dims``, with ``l = logits``; for
    ``x`` between 0 and 1 the negative of the cross-entropy (Kingma and Welling 2014, appendix C.1). Evaluated without
    overflow or cancellation for any finite logit.

    Args:
        logits: floating tensor (batch, ...), a dimension more than ``batch_dims`` or several, any strides.
        x: floating tensor of that shape or broadcastable to it: the targets, from 0 to 1. They are not looked at: the
            formula holds for any number, and on a GPU looking would wait for the device. Scale images first.
        weight: floating or bool tensor broadcastable to the shape of ``logits``, such as a mask of known pixels; it is
            multiplied with, so a non-finite term stays non-finite. A constant: no gradient flows to it.
        batch_dims: how many leading dimensions number the samples. With 2, several draws or classes of an image,
            ``logits`` (images, draws, ...), are judged by one ``x`` (images, 1, ...), which is read where it is and
            not repeated in memory.
        backend: ``auto``, ``reference``, ``cpu`` or ``triton``.

    Returns:
        ``logits.shape[:batch_dims]`` in float32, or float64 if an input is float64. Computation is in that dtype.

    Twice differentiable in ``logits`` and ``x``. Consumes no randomness. Row-wise and bitwise reproducible.

    Raises:
        TypeError: an argument is not a tensor or has an unsupported dtype.
        ValueError: shapes or devices do not fit.
        BackendError: an explicitly requested backend cannot run.
    """
    op = "bernoulli_log_likelihood"
    if not _alike(logits, x, batch_dims):
        checks.floating(op, "logits", logits)
        _samples(op, "logits", logits, batch_dims)
        x = _fitted(op, "x", x, "logits", logits)
    if weight is not None:
        weight = _weight(op, weight, "logits", logits)
    return library.bernoulli_log_likelihood(logits, x, weight, batch_dims, backend)


def gaussian_log_likelihood(
    mean: Tensor,
    logvar: Tensor,
    x: Tensor,
    weight: Tensor | None = None,
    *,
    batch_dims: int = 1,
    backend: str = "auto",
) -> Tensor:
    """The log-density of each sample under independent normal distributions, from the outputs of a decoder.

    ``sum -w/2 (log(2 pi) + logvar + (x - mean)^2 exp(-logvar))``, the sum over all dimensions but the first
    ``batch_dims`` (Kingma and Welling 2014, appendix C.2).

    Args:
        mean: floating tensor of the shape of ``x`` or broadcastable to it, any strides.
        logvar: likewise; a scalar tensor is one variance for all, fixed or learned.
        x: floating tensor (batch, ...), a dimension more than ``batch_dims`` or several, any strides; several draws of
            an image are judged by its expanded tensor.
        weight: floating or bool tensor broadcastable to the shape of ``x``; a constant, as for
            :func:`bernoulli_log_likelihood`.
        batch_dims: likewise.
        backend: ``auto``, ``reference``, ``cpu`` or ``triton``.

    Returns:
        ``x.shape[:batch_dims]`` in float32, or float64 if an input is float64. Computation is in that dtype.

    Twice differentiable in ``mean``, ``logvar`` and ``x``. Consumes no randomness. Row-wise and bitwise reproducible.
    Non-finite values propagate as in PyTorch.

    Raises:
        TypeError: an argument is not a tensor or has an unsupported dtype.
        ValueError: shapes or devices do not fit.
        BackendError: an explicitly requested backend cannot run.
    """
    op = "gaussian_log_likelihood"
    if not (_alike(x, mean, batch_dims) and _alike(x, logvar, batch_dims)):
        checks.floating(op, "x", x)
        _samples(op, "x", x, batch_dims)
        mean, logvar = _fitted(op, "mean", mean, "x", x), _fitted(op, "logvar", logvar, "x", x)
    if weight is not None:
        weight = _weight(op, weight, "x", x)
    return library.gaussian_log_likelihood(x, mean, logvar, weight, batch_dims, backend)


def gaussian_log_prob(
    x: Tensor,
    mean: Tensor | None = None,
    logvar: Tensor | None = None,
    *,
    batch_dims: int = 1,
    backend: str = "auto",
) -> Tensor:
    """The log-density of each sample under ``N(mean, exp(logvar))``, by default the standard normal.

    :func:`gaussian_log_likelihood` with its arguments in the order of a distribution: ``gaussian_log_prob(z)`` is the
    prior of a variational autoencoder and reads ``z`` alone, ``gaussian_log_prob(z, mu, logvar)`` its posterior. A mean
    that is None is 0, a logvar that is None is 0; everything else is as there.
    """
    op = "gaussian_log_prob"
    given = (x, *(t for t in (mean, logvar) if t is not None))
    if not all(_alike(x, t, batch_dims) for t in given):
        checks.floating(op, "x", x)
        _samples(op, "x", x, batch_dims)
        mean = None if mean is None else _fitted(op, "mean", mean, "x", x)
        logvar = None if logvar is None else _fitted(op, "logvar", logvar, "x", x)
    return library.gaussian_log_likelihood(x, mean, logvar, None, batch_dims, backend)


def _alike(a: Tensor, b: Tensor, batch_dims: int = 1) -> bool:
    """Whether nothing is wrong and nothing to broadcast: the usual case, looked at in half a microsecond."""
    try:
        return (
            a.shape == b.shape
            and a.dtype in checks.FLOATING
            and b.dtype in checks.FLOATING
            and a.device == b.device
            and a.dim() > batch_dims >= 1
        )
    except (AttributeError, TypeError):
        return False


def _samples(op: str, name: str, value: Tensor, batch_dims: int = 1) -> None:
    if not isinstance(batch_dims, int) or batch_dims < 1:
        raise ValueError(f"{op}: batch_dims must be an int, 1 or more, got {batch_dims!r}")
    if value.dim() <= batch_dims:
        raise ValueError(
            f"{op}: {name} must have shape (batch, ...) of more than {batch_dims} dimensions, got {tuple(value.shape)}"
        )


def _fitted(op: str, name: str, value: Tensor, whole: str, like: Tensor) -> Tensor:
    """``value`` in the shape of ``like``, or the error that says why it cannot be."""
    checks.floating(op, name, value)
    checks.same_device(op, **{whole: like, name: value})
    if value.shape == like.shape:
        return value
    # Widened first, so that the gradient, a sum over what was broadcast, is not rounded before it is added up.
    return _expand(op, name, value.to(torch.promote_types(value.dtype, torch.float32)), whole, like)


def _expand(op: str, name: str, value: Tensor, whole: str, like: Tensor) -> Tensor:
    try:
        if value.dim() < like.dim():
            # First to one sample: autograd then never sums everything at once, which PyTorch does by thread count.
            value = value.expand(like.shape[1:])
        return value.expand(like.shape)
    except RuntimeError:
        raise ValueError(
            f"{op}: {name} must have the shape of {whole}, {tuple(like.shape)}, or broadcast to it, "
            f"got {tuple(value.shape)}"
        ) from None


def _weight(op: str, weight: Tensor, whole: str, like: Tensor) -> Tensor:
    checks.tensor(op, "weight", weight)
    if weight.dtype is torch.bool:
        weight = weight.to(like.dtype)
    checks.floating(op, "weight", weight)
    checks.same_device(op, **{whole: like, "weight": weight})
    return _expand(op, "weight", weight.detach(), whole, like)


def _amount(op: str, name: str, value: float) -> float:
    if not isinstance(value, _NUMBERS):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{op}: {name} must be 0 or more and finite, got {value!r}")
    return value
