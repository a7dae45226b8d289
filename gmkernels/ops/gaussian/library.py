"""Schemas and fakes of the Gaussian operators and their derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from gmkernels.core.doors import ALIASES, Operator

from . import reference
from .reference import wide


def _per_sample(x: Tensor, *others: Tensor | None, batch_dims: int = 1) -> Tensor:
    return x.new_empty(x.shape[:batch_dims], dtype=wide(x, *others))


def _fake(mu, logvar, key, beta, free_bits, first):
    return mu.new_empty(mu.shape), _per_sample(mu)


def _fake_backward(grad_z, grad_kl, mu, logvar, key, beta, free_bits, first):
    return mu.new_empty(mu.shape), logvar.new_empty(mu.shape)


def _fake_double_backward(v_mu, v_logvar, grad_z, grad_kl, mu, logvar, key, beta, free_bits, first):
    return mu.new_empty(mu.shape), _per_sample(mu), mu.new_empty(mu.shape), logvar.new_empty(mu.shape)


_NOISE = "Tensor key, float beta, float free_bits, SymInt first, str backend"

reparameterize_kl = Operator(
    "gaussian",
    f"reparameterize_kl(Tensor mu, Tensor logvar, {_NOISE}) -> (Tensor, Tensor)",
    _fake,
    reference.reparameterize_kl,
)
reparameterize_kl_backward = Operator(
    "gaussian",
    f"reparameterize_kl_backward(Tensor grad_z, Tensor grad_kl, Tensor mu, Tensor logvar, {_NOISE})"
    " -> (Tensor, Tensor)",
    _fake_backward,
)
reparameterize_kl_double_backward = Operator(
    "gaussian",
    "reparameterize_kl_double_backward(Tensor grad_grad_mu, Tensor grad_grad_logvar, Tensor grad_z, Tensor grad_kl,"
    f" Tensor mu, Tensor logvar, {_NOISE}) -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_double_backward,
)


def _fake_bernoulli(logits, x, weight, batch_dims):
    return _per_sample(logits, x, weight, batch_dims=batch_dims)


def _fake_bernoulli_backward(grad, logits, x, weight, batch_dims):
    return logits.new_empty(logits.shape)


def _fake_bernoulli_double_backward(grad_grad, grad, logits, x, weight, batch_dims):
    return _per_sample(logits, x, weight, batch_dims=batch_dims), logits.new_empty(logits.shape)


bernoulli_log_likelihood = Operator(
    "gaussian",
    "bernoulli_log_likelihood(Tensor logits, Tensor x, Tensor? weight, int batch_dims, str backend) -> Tensor",
    _fake_bernoulli,
    reference.bernoulli_log_likelihood,
)
bernoulli_log_likelihood_backward = Operator(
    "gaussian",
    "bernoulli_log_likelihood_backward(Tensor grad, Tensor logits, Tensor x, Tensor? weight, int batch_dims,"
    " str backend) -> Tensor",
    _fake_bernoulli_backward,
)
bernoulli_log_likelihood_double_backward = Operator(
    "gaussian",
    "bernoulli_log_likelihood_double_backward(Tensor grad_grad, Tensor grad, Tensor logits, Tensor x, Tensor? weight,"
    " int batch_dims, str backend) -> (Tensor, Tensor)",
    _fake_bernoulli_double_backward,
)


def mean_dtype(x: Tensor, mean: Tensor | None) -> torch.dtype:
    """The dtype of the gradient by the mean, whose negative is that by x: the wider of theirs."""
    return x.dtype if mean is None else torch.promote_types(x.dtype, mean.dtype)


def _fake_gaussian(x, mean, logvar, weight, batch_dims):
    return _per_sample(x, mean, logvar, weight, batch_dims=batch_dims)


def _fake_gaussian_backward(grad, x, mean, logvar, weight, batch_dims):
    by_mean = x.new_empty(x.shape, dtype=mean_dtype(x, mean))
    return by_mean, x.new_empty(0) if logvar is None else logvar.new_empty(x.shape)


def _fake_gaussian_double_backward(grad_grad_mean, grad_grad_logvar, grad, x, mean, logvar, weight, batch_dims):
    first = _per_sample(x, mean, logvar, weight, batch_dims=batch_dims)
    return first, *_fake_gaussian_backward(grad, x, mean, logvar, weight, batch_dims)


_DENSITY = "Tensor x, Tensor? mean, Tensor? logvar, Tensor? weight, int batch_dims, str backend"

# Without a mean it is 0 and without a logvar that is 0; the second gradient is then empty.
gaussian_log_likelihood = Operator(
    "gaussian",
    f"gaussian_log_likelihood({_DENSITY}) -> Tensor",
    _fake_gaussian,
    reference.gaussian_log_likelihood,
)
gaussian_log_likelihood_backward = Operator(
    "gaussian",
    f"gaussian_log_likelihood_backward(Tensor grad, {_DENSITY}) -> (Tensor, Tensor)",
    _fake_gaussian_backward,
)
gaussian_log_likelihood_double_backward = Operator(
    "gaussian",
    "gaussian_log_likelihood_double_backward(Tensor grad_grad_mean, Tensor grad_grad_logvar, Tensor grad,"
    f" {_DENSITY}) -> (Tensor, Tensor, Tensor)",
    _fake_gaussian_double_backward,
)

ALIASES["gaussian_log_prob"] = gaussian_log_likelihood.name
