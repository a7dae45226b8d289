"""Derivatives of the Gaussian operators.

Reparameterisation, with s = exp(logvar / 2) and m = 1 where a dimension's divergence is above its free bits, else 0:
for cotangents (g, l) of (z, kl)

* dmu = g + beta l m mu, dlogvar = (g s eps + beta l m (s^2 - 1)) / 2, with eps drawn again from the key;
* the second derivative is the tangent of these along the cotangents (Pearlmutter, 1994), as for affine coupling.

Bernoulli, for a cotangent g of the sample: dlogits = g w (x - sigmoid(logits)), dx = g w logits. Gaussian, with
r = x - mean and p = exp(-logvar): dmean = g w r p = -dx, dlogvar = g w (r^2 p - 1) / 2.

What is a product or a negative of known tensors (the gradient by x) is left to plain PyTorch, which can differentiate
it again, and is computed only if asked for.
"""

from __future__ import annotations

from torch import Tensor

from . import library


@library.reparameterize_kl.derivative
def _draw_first(needs, saved, constants, grads):
    return *library.reparameterize_kl_backward(*grads, *saved, *constants), None


@library.reparameterize_kl_backward.derivative
def _draw_second(needs, saved, constants, grads):
    return *library.reparameterize_kl_double_backward(*grads, *saved, *constants), None


def _times(grad: Tensor, weight: Tensor | None, value: Tensor) -> Tensor:
    """A sample's cotangent times the weight and the value of each of its elements, in the dtype of the cotangent.

    Its own derivative by the cotangent is a sum, which PyTorch takes in the order that elements have in memory.
    """
    product = grad.reshape(*grad.shape, *[1] * (value.dim() - grad.dim())) * value.contiguous()
    return product if weight is None else product * weight.contiguous()


@library.bernoulli_log_likelihood.derivative
def _bernoulli_first(needs, saved, constants, grads):
    logits, x, weight = saved
    by_logits = library.bernoulli_log_likelihood_backward(grads[0], *saved, *constants) if needs[0] else None
    return by_logits, _times(grads[0], weight, logits).to(x.dtype) if needs[1] else None, None


@library.bernoulli_log_likelihood_backward.derivative
def _bernoulli_second(needs, saved, constants, grads):
    grad, _, x, weight = saved
    by_x = _times(grad, weight, grads[0]).to(x.dtype) if needs[2] else None
    return *library.bernoulli_log_likelihood_double_backward(grads[0], *saved, *constants), by_x, None


def _gradients(needs, x, mean, by_mean, by_logvar):
    """By x, mean, logvar and weight, from what the kernel returns."""
    return (
        -by_mean.to(x.dtype) if needs[0] else None,
        by_mean.to(mean.dtype) if needs[1] else None,
        by_logvar if needs[2] else None,
        None,
    )


@library.gaussian_log_likelihood.derivative
def _gaussian_first(needs, saved, constants, grads):
    by_mean, by_logvar = library.gaussian_log_likelihood_backward(grads[0], *saved, *constants)
    return _gradients(needs, saved[0], saved[1], by_mean, by_logvar)


@library.gaussian_log_likelihood_backward.derivative
def _gaussian_second(needs, saved, constants, grads):
    by_grad, by_mean, by_logvar = library.gaussian_log_likelihood_double_backward(*grads, *saved, *constants)
    return by_grad, *_gradients(needs[1:], saved[1], saved[2], by_mean, by_logvar)
