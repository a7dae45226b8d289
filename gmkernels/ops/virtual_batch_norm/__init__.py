"""Virtual batch normalisation: each example by the statistics of a fixed reference batch and its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gmkernels.core import checks

from . import (
    autograd,  # noqa: F401  (registers the derivatives)
    library,
)

__all__ = ["virtual_batch_norm"]

_NUMBERS = (float, int, torch.SymFloat, torch.SymInt)


def virtual_batch_norm(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    examples: float,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """Normalise each example by the statistics of a reference batch, mixed with its own.

    ``y = weight (x - m) / sqrt(v + eps) + bias`` for each channel, m and v the mean and variance of the reference's
    ``examples`` and this one taken together: with e and q the means of x and x^2 over the positions of the example, E
    and Q those over the reference, ``m = (n E + e) / (n + 1)`` and ``v = (n Q + q) / (n + 1) - m^2`` (Salimans et al.,
    "Improved techniques for training GANs", 2016, section 3.5). An output depends on its own example and on the
    reference, never on the rest of its batch, so a penalty on the gradient of each example is well-defined.

    Args:
        x: floating tensor (batch, channels, ...), any strides.
        mean, var: (channels,), the reference's mean E and its variance Q - E^2 (by n, not n - 1), of any floating dtype;
            converted to float32, or float64 for float64 ``x``, which is the dtype of the computation.
        weight, bias: (channels,), likewise.
        examples: n, the size of the reference batch; ``math.inf`` normalises by the reference alone.
        eps: 0 or more.
        backend: ``auto``, ``reference``, ``cpu`` or ``triton``.

    Returns:
        A tensor in the shape and dtype of ``x``, contiguous.

    Twice differentiable in all tensors; gradients reach the network that made the reference's statistics through
    ``mean`` and ``var``. Consumes no randomness. Row-wise and bitwise reproducible. Non-finite values propagate as in
    PyTorch.

    Raises:
        TypeError: an argument has an unsupported type or dtype.
        ValueError: shapes or devices do not fit, or ``examples`` or ``eps`` is out of range.
        BackendError: an explicitly requested backend cannot run.
    """
    op = "virtual_batch_norm"
    checks.floating(op, "x", x)
    if x.dim() < 2:
        raise ValueError(f"{op}: x must have shape (batch, channels, ...), got {tuple(x.shape)}")
    for name, value in (("mean", mean), ("var", var), ("weight", weight), ("bias", bias)):
        checks.floating(op, name, value)
        checks.shape(op, name, value, (x.shape[1],))
        if value.device != x.device:
            checks.same_device(op, x=x, **{name: value})
    for name, number, least in (("examples", examples, 1), ("eps", eps, 0)):
        if not isinstance(number, _NUMBERS):
            raise TypeError(f"{op}: {name} must be a number, got {type(number).__name__}")
        if not number >= least:
            raise ValueError(f"{op}: {name} must be {least} or more, got {number!r}")
    if not eps < math.inf:
        raise ValueError(f"{op}: eps must be finite, got {eps!r}")
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    channels = [value if value.dtype is wide else value.to(wide) for value in (mean, var, weight, bias)]
    return library.virtual_batch_norm(x, *channels, 1.0 / (examples + 1.0), float(eps), backend)
