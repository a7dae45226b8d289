"""Launchers of the C++ core: allocate the outputs, hand over addresses and strides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gmkernels.core.layout import address
from gmkernels.core.native import DTYPES, cpu

from .halves import arrange
from .library import gated_gradients, gated_outputs, gradients, like

_core = cpu()
_RULES = {"A": 0, "B": 1}
_CAUSAL = 2


def _image(t: Tensor | None) -> tuple[int, ...] | None:
    """Address and strides; a signal is an image of one row."""
    if t is None or t.numel() == 0:
        return None
    n, c, *pixels = t.stride()
    return (t.data_ptr(), n, c, *([0] * (2 - len(pixels))), *pixels)


def _sizes(x: Tensor, weight: Tensor) -> tuple[int, ...]:
    height, width = x.shape[2:] if x.dim() == 4 else (1, x.shape[2])
    return x.shape[0], x.shape[1], weight.shape[0], height, width


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, kernel: tuple[int, ...]) -> Tensor:
    out, weight, bias = like(x, weight.shape[0]), weight.contiguous(), None if bias is None else bias.contiguous()
    _core.conv_forward(
        _sizes(x, weight), kernel, DTYPES[x.dtype], _image(x), None, _image(out),
        weight.data_ptr(), address(bias), 0, 0,
    )  # fmt: skip
    return out


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, kernel: tuple[int, ...], needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    by_x, by_weight, by_bias = gradients(x, weight, needs)
    weight = weight.contiguous()
    _core.conv_backward(
        _sizes(x, weight), kernel, DTYPES[x.dtype], _image(x), _image(grad), _image(by_x if needs[0] else None),
        weight.data_ptr(), 0, by_weight.data_ptr() if needs[1] else 0, by_bias.data_ptr() if needs[2] else 0,
    )  # fmt: skip
    return by_x, by_weight, by_bias


def _mask(weight: Tensor, mask_type: str, channel_groups: int) -> tuple[int, ...]:
    return weight.shape[2], weight.shape[3], 1, channel_groups, _RULES[mask_type]


def masked_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, mask_type: str, channel_groups: int) -> Tensor:
    return _forward(x, weight, bias, _mask(weight, mask_type, channel_groups))


def masked_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask_type: str,
    channel_groups: int,
    by_x: bool,
    by_weight: bool,
    by_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(grad, x, weight, _mask(weight, mask_type, channel_groups), (by_x, by_weight, by_bias))


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    return _forward(x, weight, bias, (1, weight.shape[2], dilation, 1, _CAUSAL))


def causal_conv1d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, dilation: int, by_x: bool, by_weight: bool, by_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(grad, x, weight, (1, weight.shape[2], dilation, 1, _CAUSAL), (by_x, by_weight, by_bias))


def _gate(entry: Any, x: Tensor, *others: Tensor | None) -> None:
    sizes, operands = arrange(x, *others)
    entry(sizes, *[None if o is None else (o[0].data_ptr(), DTYPES[o[0].dtype], o[1]) for o in operands])


def gated_activation(x: Tensor, cond: Tensor | None) -> Tensor:
    out = like(x, x.shape[1] // 2)
    _gate(_core.gated_activation, x, cond, None, None, out)
    return out


def gated_activation_backward(grad: Tensor, x: Tensor, cond: Tensor | None) -> Tensor:
    by_x = like(x, x.shape[1])
    _gate(_core.gated_activation_backward, x, cond, grad, None, None, by_x)
    return by_x


def gated_activation_double_backward(
    grad_grad: Tensor, grad: Tensor, x: Tensor, cond: Tensor | None
) -> tuple[Tensor, Tensor]:
    by_grad, by_x = like(x, x.shape[1] // 2), like(x, x.shape[1])
    _gate(_core.gated_activation_double_backward, x, cond, grad, grad_grad, by_grad, by_x)
    return by_grad, by_x


def _condition(cond: Tensor | None) -> tuple[int, ...] | None:
    """One that is the same for all pixels is an image whose pixels lie in one place."""
    return _image(cond if cond is None or cond.dim() == 4 else cond[:, :, None, None].expand(-1, -1, 2, 2))


def gated_masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cond: Tensor | None,
    mask_type: str,
    channel_groups: int,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    out, kept = gated_outputs(x, weight, keep)
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    _core.gated_conv_forward(
        _sizes(x, weight), _mask(weight, mask_type, channel_groups), DTYPES[x.dtype], _image(x), None, _image(out),
        weight.data_ptr(), address(bias), 0, 0, _condition(cond), None, 0, kept.data_ptr() if keep else 0,
    )  # fmt: skip
    return out, kept


def gated_masked_conv2d_backward(
    grad: Tensor,
    kept: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cond: Tensor | None,
    mask_type: str,
    channel_groups: int,
    *needs: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    by_x, by_weight, by_bias, by_cond = gated_gradients(x, weight, cond, needs)
    weight = weight.contiguous()
    _core.gated_conv_backward(
        _sizes(x, weight), _mask(weight, mask_type, channel_groups), DTYPES[x.dtype], _image(x), _image(grad),
        _image(by_x if needs[0] else None), weight.data_ptr(), 0, by_weight.data_ptr() if needs[1] else 0,
        by_bias.data_ptr() if needs[2] else 0, None, _image(by_cond) if by_cond.dim() == 4 else None,
        by_cond.data_ptr() if by_cond.dim() == 2 else 0, kept.data_ptr(),
    )  # fmt: skip
    return by_x, by_weight, by_bias, by_cond
