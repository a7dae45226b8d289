"""Convolutions that see only what comes before, in raster order or in time, and the gate of PixelCNN and WaveNet."""

from __future__ import annotations

import torch
from torch import Tensor

from gmkernels.core import checks

from . import (
    autograd,  # noqa: F401  (registers the derivatives)
    library,
)

__all__ = ["masked_conv2d", "causal_conv1d", "gated_activation"]

_INTEGERS = (int, torch.SymInt)


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    mask_type: str,
    channel_groups: int = 1,
    backend: str = "auto",
) -> Tensor:
    """A convolution in which every pixel sees the pixels before it in raster order ("same" padding, stride 1).

    ``y[:, :, i, j] = bias + sum of weight[:, :, u, v] x[:, :, i + u - k//2, j + v - k//2]`` over the taps (u, v) above
    the centre and to its left, and at the centre over some of the channels (van den Oord et al., "Pixel recurrent
    neural networks", 2016, section 3.4): with the channels in ``channel_groups`` equal consecutive groups, output group
    i sees the input groups j < i (mask A, for the first layer) or j <= i (mask B, for all others). With one group,
    mask A leaves the centre out and mask B takes it whole; three groups are the paper's order R, G, B.

    Args:
        x: floating tensor (N, C, H, W), any strides.
        weight: (O, C, k, k) of the same dtype, k odd; the two sizes may differ, such as (O, C, 1, 3). It is given
            whole. Masked taps are never read, so that they may hold anything, and their gradient is zero.
        bias: (O) of the same dtype, or None.
        mask_type: ``"A"`` or ``"B"``.
        channel_groups: how many groups of channels a pixel has, a divisor of C and of O.
        backend: ``auto``, ``reference``, ``cpu`` or ``triton``.

    Returns:
        (N, O, H, W) in the dtype of ``x``, in the memory format of ``x``: channels_last if it is that, else contiguous.
        16-bit inputs are accumulated in float32.

    Differentiable any number of times, since the derivatives of a bilinear function are such functions themselves.
    Consumes no randomness. Bitwise reproducible; samples do not depend on each other, nor their bits on the batch.

    Raises:
        TypeError: an argument is not a tensor, or not floating, or the dtypes differ.
        ValueError: shapes or devices do not fit, a kernel size is even, ``mask_type`` is unknown, or the channels
            cannot be divided into the groups.
        BackendError: an explicitly requested backend cannot run.
    """
    op = "masked_conv2d"
    _layer(op, x, weight, bias, 4, "(N, C, H, W)", "(O, C, k, k)")
    if weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
        raise ValueError(f"{op}: the kernel sizes must be odd, got {weight.shape[2]} x {weight.shape[3]}")
    checks.choice(op, "mask_type", mask_type, ("A", "B"))
    if not isinstance(channel_groups, int) or channel_groups < 1:
        raise ValueError(f"{op}: channel_groups must be a positive int, got {channel_groups!r}")
    if x.shape[1] % channel_groups or weight.shape[0] % channel_groups:
        raise ValueError(
            f"{op}: the channels must divide into channel_groups={channel_groups}, "
            f"got {x.shape[1]} in and {weight.shape[0]} out"
        )
    return library.masked_conv2d(x, weight, bias, mask_type, channel_groups, backend)


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, dilation: int = 1, backend: str = "auto"
) -> Tensor:
    """A convolution in which no output sees inputs that come after it.

    ``y[:, :, t] = bias + sum over j < k of weight[:, :, j] x[:, :, t - (k - 1 - j) dilation]``, with zeros before the
    beginning (van den Oord et al., "WaveNet: a generative model for raw audio", 2016, section 2.1).

    Args:
        x: floating tensor (N, C, T), any strides.
        weight: (O, C, k) of the same dtype, k at least 1; tap k - 1 is the present.
        bias: (O) of the same dtype, or None.
        dilation: the distance between taps, at least 1.
        backend: ``auto``, ``reference``, ``cpu`` or ``triton``.

    Returns:
        (N, O, T) in the dtype of ``x``, contiguous. 16-bit inputs are accumulated in float32.

    Differentiable any number of times. Consumes no randomness. Bitwise reproducible; samples do not depend on each
    other, nor their bits on the batch.

    Raises:
        TypeError: an argument is not a tensor, or not floating, or the dtypes differ.
        ValueError: shapes or devices do not fit, or ``dilation`` is not a positive int.
        BackendError: an explicitly requested backend cannot run.
    """
    op = "causal_conv1d"
    _layer(op, x, weight, bias, 3, "(N, C, T)", "(O, C, k)")
    if weight.shape[2] < 1:
        raise ValueError(f"{op}: weight must have at least one tap, got shape {tuple(weight.shape)}")
    if not isinstance(dilation, _INTEGERS) or dilation < 1:
        raise ValueError(f"{op}: dilation must be a positive int, got {dilation!r}")
    return library.causal_conv1d(x, weight, bias, dilation, backend)


def gated_activation(x: Tensor, cond: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """``tanh(a) * sigmoid(b)`` with ``a`` and ``b`` the halves of the channels of ``x``, or of ``x + cond``.

    Van den Oord et al., "Conditional image generation with PixelCNN decoders", 2016, equations 2 and 3.

    Args:
        x: floating tensor (N, 2C, ...), any strides.
        cond: of the same dtype, added to ``x``: (N, 2C), or as many dimensions as ``x`` has, broadcastable to it; None
            for no condition.
        backend: ``auto``, ``reference``, ``cpu`` or ``triton``.

    Returns:
        (N, C, ...) in the dtype of ``x``: channels_last if ``x`` is a channels_last image, else contiguous. Computed in
        float32, or in float64 for float64 inputs.

    Twice differentiable. Consumes no randomness. Elementwise and bitwise reproducible.

    Raises:
        TypeError: an argument is not a tensor, or not floating, or the dtypes differ.
        ValueError: shapes or devices do not fit, or the number of channels is odd.
        BackendError: an explicitly requested backend cannot run.
    """
    op = "gated_activation"
    checks.floating(op, "x", x)
    if x.dim() < 2 or x.shape[1] % 2:
        raise ValueError(f"{op}: x must have shape (N, 2C, ...), got {tuple(x.shape)}")
    if cond is not None:
        checks.floating(op, "cond", cond)
        checks.same_dtype(op, x=x, cond=cond)
        checks.same_device(op, x=x, cond=cond)
        given = tuple(cond.shape)
        if cond.dim() == 2:
            cond = cond.reshape(*given, *[1] * (x.dim() - 2))
        if cond.dim() != x.dim() or any(c not in (1, n) for c, n in zip(cond.shape, x.shape, strict=True)):
            raise ValueError(f"{op}: cond must be broadcastable to the shape of x, {tuple(x.shape)}, got {given}")
        cond = cond.expand(x.shape)
    return library.gated_activation(x, cond, backend)


def _layer(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, rank: int, of_x: str, of_weight: str) -> None:
    """The checks that the convolutions have in common."""
    checks.floating(op, "x", x)
    checks.floating(op, "weight", weight)
    checks.dims(op, "x", x, rank, of_x)
    checks.dims(op, "weight", weight, rank, of_weight)
    if weight.shape[1] != x.shape[1]:
        raise ValueError(f"{op}: weight must have shape {of_weight} with C = {x.shape[1]}, got {tuple(weight.shape)}")
    if bias is None:
        checks.same_dtype(op, x=x, weight=weight)
        checks.same_device(op, x=x, weight=weight)
    else:
        checks.floating(op, "bias", bias)
        checks.shape(op, "bias", bias, weight.shape[:1])
        checks.same_dtype(op, x=x, weight=weight, bias=bias)
        checks.same_device(op, x=x, weight=weight, bias=bias)
