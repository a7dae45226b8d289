"""Penalties on the norm of a critic's gradient by its input: WGAN-GP, R1, R2 and DRAGAN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gmkernels.core import checks
from gmkernels.ops import random

from . import (
    autograd,  # noqa: F401  (registers the derivatives)
    library,
)
from .routes import BatchCoupledWarning, Route, penalty, penalty_route

__all__ = [
    "BatchCoupledWarning",
    "Route",
    "dragan_penalty",
    "gradient_penalty",
    "norm_penalty",
    "norm_penalty_gradient",
    "penalty_route",
    "r1_penalty",
    "r2_penalty",
    "random_interpolate",
]

Critic = Callable[[Tensor], Tensor]

_ROUTES = """
    The penalty's gradient by the parameters of ``critic`` is exact by either of two routes.

    * ``first-order``: for critics made of linear layers, convolutions, the usual activations, layer, group and instance
      norm, average and max pooling, dropout, reshapes, sums, products, concatenations, batch norm in evaluation, and
      ``gmk.nn``'s MLP, MaskedLinear, MaskedConv2d and CausalConv1d. Their forward pass is read once by ``torch.fx``;
      value and gradient then come from four passes of first order (see ``program.py``), in 0.5 to 0.8 of the memory and
      about 0.6 of the time that differentiating a backward pass takes, under ``torch.compile`` too. The forward method
      of ``critic`` runs once, to compare, and then only its layers' rules: it must be a function of its input, its
      modules and their attributes. The gradient is ready when the function returns; it is a constant, so a further
      derivative raises.
    * ``double-backward``: any other callable, by ``create_graph=True``.

    Both work under autocast (norms and penalties are float32 or wider), with gradient accumulation, ``GradScaler`` and
    ``DistributedDataParallel`` (hand over the wrapped critic, and sum the penalty with the loss of its forward pass).
    Layers that let the samples of a batch see each other (batch norm in training, minibatch discrimination) leave the
    penalty of one sample undefined: a :class:`BatchCoupledWarning`, where ``critic`` is a module or a method of one.
    :func:`penalty_route` tells which route is taken, and why not the other."""

_SHARED = """
        every: the penalty is computed in every so many steps only, and counts for as many (Karras et al., "Analyzing
            and improving the image quality of StyleGAN", 2020, appendix B). The caller counts the steps.
        route: ``auto``, ``first-order`` or ``double-backward``; an explicit request runs or raises.
        backend: of the kernels that draw, take norms and scale: ``auto``, ``reference``, ``cpu`` or ``triton``.

    Returns:
        A tensor without dimensions, in float32, or float64 for float64 samples: the mean over the batch. No gradient
        flows to the samples. An empty batch has the penalty 0.

    At a gradient of exactly 0 the penalty has no derivative; 0 is taken there, so nothing becomes NaN.

    Raises:
        TypeError, ValueError: an argument has another type, shape, dtype, device or range than it should, or ``critic``
            does not return one number, (batch,) or (batch, 1), for each sample.
        ValueError: ``route="first-order"`` for a critic that cannot take it; the message names the layer.
        BackendError: an explicitly requested backend cannot run."""


def _documented(function: Any) -> Any:
    function.__doc__ = function.__doc__.replace("ROUTES", _ROUTES.strip()).replace("SHARED", _SHARED.strip())
    return function


@_documented
def gradient_penalty(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    *,
    lambda_: float = 10.0,
    target: float = 1.0,
    one_sided: bool = False,
    every: int = 1,
    eps: Tensor | None = None,
    key: Tensor | None = None,
    first: int = 0,
    route: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """The penalty of WGAN-GP: gradients on the way between real and fake samples are to have a norm of ``target``.

    ``lambda_ / B sum_i (|grad_x D(x_i)| - target)^2`` with ``x_i = eps_i real_i + (1 - eps_i) fake_i`` and one uniform
    ``eps_i`` for each sample; the norm is over all dimensions of a sample (Gulrajani et al., "Improved training of
    Wasserstein GANs", 2017, equation 3 and algorithm 1). With ``one_sided``, norms below the target cost nothing (their
    section 4; Petzka et al., "On the regularization of Wasserstein GANs", 2018).

    ROUTES

    Args:
        critic: maps samples (batch, ...) to one number each, (batch,) or (batch, 1).
        real, fake: floating tensors (batch, ...) of one shape, dtype and device. They are taken as constants.
        lambda_: weight of the penalty, 0 or more.
        target: norm that gradients should have, 0 or more.
        one_sided: penalise only norms above the target.
        eps: one number for each sample (batch,) instead of random ones.
        key: int64 tensor (2,) made by :func:`gmkernels.random.key`, for eps; a fresh one if None. Sample i of the batch
            takes uniform number ``first + i`` of its stream.
        first: logical index of the batch's first sample, so that a batch cut in two draws the same as the whole.
        SHARED
    """
    op = "gradient_penalty"
    _samples(op, "real", real)
    _samples(op, "fake", fake)
    checks.shape(op, "fake", fake, real.shape)
    checks.same_dtype(op, real=real, fake=fake)
    checks.same_device(op, real=real, fake=fake)
    if eps is None:
        key = random.key(device=real.device) if key is None else key
        x = random_interpolate(real, fake, key, first=first, backend=backend)
    else:
        checks.floating(op, "eps", eps)
        if eps.numel() != len(real):
            raise ValueError(f"{op}: eps must have one number for each of {len(real)} samples, got {tuple(eps.shape)}")
        x = torch.lerp(fake.detach(), real.detach(), eps.detach().to(real).reshape(-1, *[1] * (real.dim() - 1)))
    how = (_amount(op, "lambda_", lambda_), _amount(op, "target", target), bool(one_sided))
    return penalty(op, critic, x, *how, _count(op, every), route, backend)


@_documented
def r1_penalty(
    critic: Critic, real: Tensor, gamma: float = 10.0, *, every: int = 1, route: str = "auto", backend: str = "auto"
) -> Tensor:
    """The R1 penalty: gradients at real samples are to vanish.

    ``gamma / (2 B) sum_i |grad_x D(real_i)|^2`` (Mescheder et al., "Which training methods for GANs do actually
    converge?", 2018, equation 9).

    ROUTES

    Args:
        critic: maps samples (batch, ...) to one number each, (batch,) or (batch, 1).
        real: floating tensor (batch, ...), taken as a constant.
        gamma: weight of the penalty, 0 or more.
        SHARED
    """
    _samples("r1_penalty", "real", real)
    weight, count = _amount("r1_penalty", "gamma", gamma) / 2, _count("r1_penalty", every)
    return penalty("r1_penalty", critic, real.detach(), weight, 0.0, False, count, route, backend)


@_documented
def r2_penalty(
    critic: Critic, fake: Tensor, gamma: float = 10.0, *, every: int = 1, route: str = "auto", backend: str = "auto"
) -> Tensor:
    """The R2 penalty: gradients at generated samples are to vanish.

    ``gamma / (2 B) sum_i |grad_x D(fake_i)|^2`` (Mescheder et al. 2018, equation 10).

    ROUTES

    Args:
        critic: maps samples (batch, ...) to one number each, (batch,) or (batch, 1).
        fake: floating tensor (batch, ...), taken as a constant.
        gamma: weight of the penalty, 0 or more.
        SHARED
    """
    _samples("r2_penalty", "fake", fake)
    weight, count = _amount("r2_penalty", "gamma", gamma) / 2, _count("r2_penalty", every)
    return penalty("r2_penalty", critic, fake.detach(), weight, 0.0, False, count, route, backend)


@_documented
def dragan_penalty(
    critic: Critic,
    real: Tensor,
    *,
    lambda_: float = 10.0,
    target: float = 1.0,
    scale: float = 0.5,
    every: int = 1,
    key: Tensor | None = None,
    first: int = 0,
    route: str = "auto",
    backend: str = "auto",
) -> Tensor:
    """The penalty of DRAGAN: gradients around real samples are to have a norm of ``target``.

    ``lambda_ / B sum_i (|grad_x D(real_i + delta_i)| - target)^2`` (Kodali et al., "On convergence and stability of
    GANs", 2017, section 2.3), where ``delta = scale * std(real) * n``, with the standard deviation of all numbers of the
    batch and a standard normal ``n`` for each.

    ROUTES

    Args:
        critic: maps samples (batch, ...) to one number each, (batch,) or (batch, 1).
        real: floating tensor (batch, ...), taken as a constant.
        lambda_: weight of the penalty, 0 or more.
        target: norm that gradients should have, 0 or more.
        scale: of the noise, in standard deviations of the data, 0 or more.
        key: int64 tensor (2,) made by :func:`gmkernels.random.key`, for the noise, which is
            ``gmkernels.random.normal(key, real.shape, first=first)``; a fresh one if None.
        first: logical index of the batch's first sample.
        SHARED
    """
    op = "dragan_penalty"
    _samples(op, "real", real)
    real = real.detach()
    key = random.key(device=real.device) if key is None else key
    noise = random.normal(key, real.shape, dtype=real.dtype, first=first, backend=backend)
    spread = _amount(op, "scale", scale) * (real.std(correction=0) if len(real) else 0.0)
    how = (_amount(op, "lambda_", lambda_), _amount(op, "target", target), False)
    return penalty(op, critic, real + spread * noise, *how, _count(op, every), route, backend)


def random_interpolate(a: Tensor, b: Tensor, key: Tensor, *, first: int = 0, backend: str = "auto") -> Tensor:
    """A point at random on the line between each sample of ``a`` and the same of ``b``.

    ``b_i + eps_i (a_i - b_i)``, ``eps_i`` being uniform in (0, 1), one for each sample.

    Args:
        a, b: floating tensors (batch, ...) of one shape, dtype and device, any strides.
        key: int64 tensor (2,) made by :func:`gmkernels.random.key`, on the device of ``a``. Sample i takes uniform
            number ``first + i`` of its stream, as ``gmkernels.random.uniform(key, (batch,), first=first)`` does.
        first: logical index of the batch's first sample.
        backend: ``auto``, ``reference``, ``cpu`` or ``triton``.

    Returns:
        The shape and dtype of ``a``, contiguous. Row-wise and bitwise reproducible. No gradient flows to ``a`` and ``b``.

    Raises:
        TypeError, ValueError: an argument has an unsupported type, shape, dtype, device or range.
        BackendError: an explicitly requested backend cannot run.
    """
    op = "random_interpolate"
    _samples(op, "a", a)
    _samples(op, "b", b)
    checks.shape(op, "b", b, a.shape)
    checks.same_dtype(op, a=a, b=b)
    checks.key(op, key, first)
    checks.same_device(op, a=a, b=b, key=key)
    return library.random_interpolate(a.detach(), b.detach(), key, first, backend)


def norm_penalty(g: Tensor, *, target: float = 1.0, one_sided: bool = False, backend: str = "auto") -> Tensor:
    """How far the norm of each sample's gradient is from where it should be.

    ``(|g_i| - target)^2``, or with ``one_sided`` ``max(0, |g_i| - target)^2``; the norm is over all dimensions but the
    first (Gulrajani et al. 2017, equation 3).

    Args:
        g: floating tensor (batch, ...), any strides.
        target: norm that costs nothing, 0 or more.
        one_sided: let norms below the target cost nothing.
        backend: ``auto``, ``reference``, ``cpu`` or ``triton``.

    Returns:
        (batch,) in float32, or float64 for float64. Computation is in that dtype.

    Differentiable any number of times; at a norm of 0 the gradient is taken to be 0. Consumes no randomness. Row-wise
    and bitwise reproducible.

    Raises:
        TypeError, ValueError: an argument has an unsupported type, shape, dtype or range.
        BackendError: an explicitly requested backend cannot run.
    """
    _samples("norm_penalty", "g", g)
    return library.norm_penalty(g, _amount("norm_penalty", "target", target), bool(one_sided), backend)


def norm_penalty_gradient(
    g: Tensor, *, target: float = 1.0, one_sided: bool = False, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """:func:`norm_penalty` with its gradient, from one visit to each sample.

    Args:
        g, target, one_sided, backend: as for :func:`norm_penalty`.

    Returns:
        The penalty (batch,), and its gradient by ``g``, ``2 (|g_i| - target) g_i / |g_i|`` and 0 at a norm of 0, in the
        shape and dtype of ``g``, contiguous. No gradient flows to ``g``. Row-wise and bitwise reproducible.

    Raises:
        TypeError, ValueError: an argument has an unsupported type, shape, dtype or range.
        BackendError: an explicitly requested backend cannot run.
    """
    op = "norm_penalty_gradient"
    _samples(op, "g", g)
    return library.norm_penalty_gradient(g.detach(), _amount(op, "target", target), bool(one_sided), backend)


def _samples(op: str, name: str, value: Tensor) -> None:
    checks.floating(op, name, value)
    if value.dim() < 2:
        raise ValueError(f"{op}: {name} must have shape (batch, ...), two dimensions or more, got {tuple(value.shape)}")


def _amount(op: str, name: str, value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a number, got {type(value).__name__}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{op}: {name} must be 0 or more and finite, got {value!r}")
    return float(value)


def _count(op: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{op}: every must be a positive int, got {value!r}")
    return value
