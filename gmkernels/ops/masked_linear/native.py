"""Launchers of the C++ core: allocate the outputs, hand over addresses and strides. 16-bit tensors go in and out as
float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gmkernels.core.layout import address
from gmkernels.core.native import DTYPES, cpu

from .library import gradients

_core = cpu()
_NARROW = (torch.float16, torch.bfloat16)


def _rows(t: Tensor) -> tuple[Any, ...]:
    batch, feature = t.stride()
    return t.data_ptr(), DTYPES[t.dtype], (batch, 0, feature)


def masked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, seen: Tensor, relu: bool) -> Tensor:
    if x.dtype in _NARROW:
        wide = masked_linear(x.float(), weight.float(), None if bias is None else bias.float(), seen, relu)
        return wide.to(x.dtype)
    weight, seen = weight.contiguous(), seen.contiguous()
    bias = None if bias is None else bias.contiguous()
    out = x.new_empty(x.shape[0], weight.shape[0])
    _core.masked_linear(
        weight.shape[0], (x.shape[0], 1, x.shape[1]), _rows(x), None, weight.data_ptr(), address(bias), seen.data_ptr(),
        relu, out.data_ptr(), 0, 0,
    )  # fmt: skip
    return out


def masked_linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, seen: Tensor, relu: bool, by_x: bool, by_weight: bool, by_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if x.dtype in _NARROW:
        wide = masked_linear_backward(grad.float(), x.float(), weight.float(), seen, relu, by_x, by_weight, by_bias)
        return wide[0].to(x.dtype), wide[1].to(x.dtype), wide[2].to(x.dtype)
    weight, seen = weight.contiguous(), seen.contiguous()
    needs = (by_x, by_weight, by_bias)
    found = gradients(x, weight, needs)
    _core.masked_linear_backward(
        weight.shape[0], (x.shape[0], 1, x.shape[1]), _rows(x), _rows(grad), weight.data_ptr(), 0, seen.data_ptr(), relu,
        *[t.data_ptr() if need else 0 for t, need in zip(found, needs, strict=True)],
    )  # fmt: skip
    return found
