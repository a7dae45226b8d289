"""The masked linear layer of autoregressive networks: no masked weight is read, multiplied or given a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from gmkernels.core import checks

from . import (
    autograd,  # noqa: F401  (registers the derivatives)
    library,
)

__all__ = ["masked_linear", "staircase"]


def masked_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    in_degree: Tensor,
    out_degree: Tensor,
    strict: bool = False,
    relu: bool = False,
    backend: str = "auto",
) -> Tensor:
    """A linear layer in which output o sees input i only if ``in_degree[i] <= out_degree[o]``.

    ``y[b, o] = bias[o] + sum over the i that o sees of weight[o, i] * x[b, i]`` (M. Germain et al., "MADE: masked
    autoencoder for distribution estimation", 2015, equations 8 to 13). Masked weights are never read, and their gradient is
    exactly zero.

    Args:
        x: floating tensor (batch, inputs), any strides.
        weight: (outputs, inputs), and bias: (outputs), in the dtype of ``x``.
        in_degree, out_degree: int64 tensors (inputs) and (outputs). It is quickest when the inputs come in ascending
            order of degree: the unmasked weights are then a staircase, and its rows are read as they lie. Otherwise
            ``x`` and ``weight`` are put in order first. :class:`gmkernels.nn.MaskedLinear` looks at the degrees once.
        strict: demand ``in_degree[i] < out_degree[o]``, as the last layer of a MADE does.
        relu: take ``relu(x)`` in place of ``x``.
        backend: ``auto``, ``reference`` or ``cpu``.

    Returns:
        y (batch, outputs) in the dtype of ``x``, contiguous.

    Differentiable any number of times in ``x``, ``weight`` and ``bias``. Consumes no randomness. Row-wise: a sample's
    result does not depend on the rest of the batch, nor do bits depend on threads or vector width. What an
    output does not see cannot reach it in the C++ core, NaN included; the reference multiplies it by zero.

    Raises:
        TypeError: an argument is not a tensor or has an unsupported dtype, or dtypes differ.
        ValueError: shapes or devices do not fit.
        BackendError: an explicitly requested backend cannot run.
    """
    op = "masked_linear"
    for name, value in (("x", x), ("weight", weight), *((("bias", bias),) if bias is not None else ())):
        checks.floating(op, name, value)
    checks.dims(op, "x", x, 2, "(batch, inputs)")
    checks.dims(op, "weight", weight, 2, "(outputs, inputs)")
    outputs, inputs = weight.shape
    checks.shape(op, "x", x, (x.shape[0], inputs))
    checks.same_dtype(op, x=x, weight=weight, **({} if bias is None else {"bias": bias}))
    if bias is not None:
        checks.shape(op, "bias", bias, (outputs,))
    for name, degree, count in (("in_degree", in_degree, inputs), ("out_degree", out_degree, outputs)):
        if checks.tensor(op, name, degree).dtype != torch.int64:
            raise TypeError(f"{op}: {name} must be int64, got {degree.dtype}")
        checks.shape(op, name, degree, (count,))
    checks.same_device(op, x=x, weight=weight, bias=bias, in_degree=in_degree, out_degree=out_degree)
    columns, seen = staircase(in_degree, out_degree, strict)
    if not _ascending(in_degree):
        x, weight = x[:, columns], weight[:, columns]
    return library.masked_linear(x, weight, bias, seen, relu, backend)


def staircase(in_degree: Tensor, out_degree: Tensor, strict: bool = False) -> tuple[Tensor, Tensor]:
    """The order that puts inputs in ascending degree, and how many of the first inputs, so ordered, each output sees."""
    degrees, columns = torch.sort(in_degree, stable=True)
    return columns, torch.searchsorted(degrees, out_degree.contiguous(), right=not strict)


def _ascending(degree: Tensor) -> bool:
    """Whether these degrees are known to be in order; where values are not to be looked at, they are not."""
    visible = type(degree) is Tensor and degree.is_cpu and not torch.compiler.is_compiling()
    return visible and bool((degree[1:] >= degree[:-1]).all())
