"""Launchers of the C++ core: allocate the outputs, hand over addresses and strides."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gmkernels.core.layout import contiguous_like
from gmkernels.core.native import DTYPES, cpu

from .library import planes

_core = cpu()


def _steps(t: Tensor) -> tuple[int, ...]:
    batch, channel, position = t.stride()
    # Where there is one position, the channels are what the kernel walks.
    return (batch, 0, channel) if t.shape[2] == 1 else (batch, channel, position)


def _call(
    entry: Any, x: Tensor, grad: Tensor | None, v_x: Tensor | None, own: float, eps: float,
    channels: list[Tensor | None], out: list[Tensor | None],
) -> None:  # fmt: skip
    """Channels: mean, var, weight, bias, and their cotangents; out: by x, by grad, and by each channel tensor."""
    views = [None if t is None else planes(t) for t in (x, grad, v_x)]
    rows = [None if t is None else (t.data_ptr(), DTYPES[t.dtype], _steps(t)) for t in views]
    held = [None if t is None else t.contiguous() for t in channels]
    addresses = [0 if t is None else t.data_ptr() for t in (*held, *out)]
    entry(tuple(views[0].shape), *rows, addresses, own, eps)  # type: ignore[union-attr]


def virtual_batch_norm(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, own: float, eps: float
) -> Tensor:
    y = contiguous_like(x)
    none = [None] * 4
    _call(_core.virtual_batch_norm, x, None, None, own, eps, [mean, var, weight, bias, *none], [y, *none, None])
    return y


def virtual_batch_norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, own: float, eps: float
) -> tuple[Tensor, ...]:
    out = [contiguous_like(x), *(contiguous_like(mean) for _ in range(4))]
    _call(
        _core.virtual_batch_norm_backward, x, grad, None, own, eps, [mean, var, weight, *[None] * 5],
        [out[0], None, *out[1:]],
    )  # fmt: skip
    return tuple(out)


def virtual_batch_norm_double_backward(
    v_x: Tensor, v_mean: Tensor, v_var: Tensor, v_weight: Tensor, v_bias: Tensor,
    grad: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, own: float, eps: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    by_grad, by_x, *by_channels = (
        contiguous_like(x),
        contiguous_like(x),
        *(contiguous_like(mean) for _ in range(3)),
    )
    _call(
        _core.virtual_batch_norm_double_backward, x, grad, v_x, own, eps,
        [mean, var, weight, None, v_mean, v_var, v_weight, v_bias], [by_x, by_grad, *by_channels, None],
    )  # fmt: skip
    return (by_grad, by_x, *by_channels)
