"""Convolutions that see only what comes before, in raster order or in time, and the gate of PixelCNN and WaveNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gmkernels.core import checks

from . import (
    autograd,  # noqa: F401  (registers the derivatives)
    library,
)

__all__ = ["masked_conv2d", "causal_conv1d", "gated_activation", "gated_masked_conv2d"]


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
    _masked("masked_conv2d", x, weight, bias, mask_type, channel_groups)
    return library.masked_conv2d(x, weight, bias, mask_type, channel_groups, backend)


def _masked(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, mask_type: str, channel_groups: int) -> None:
    """The checks of masked convolutions."""
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
    if not isinstance(dilation, checks.INTEGERS) or dilation < 1:
        raise ValueError(f"{op}: dilation must be a positive int, got {dilation!r}")
    return library.causal_conv1d(x, weight, bias, min(dilation, max(1, x.shape[2])), backend)


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
        cond = _condition(op, x, cond, x.shape, "of x").expand(x.shape)
    return library.gated_activation(x, cond, backend)


def gated_masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    cond: Tensor | None = None,
    *,
    mask_type: str,
    channel_groups: int = 1,
    backend: str = "auto",
) -> Tensor:
    """A masked convolution and its gate: ``tanh(a) * sigmoid(b)``, ``a`` and ``b`` the halves of what is convolved.

    With one group of channels this is ``gated_activation(masked_conv2d(x, weight, bias), cond)``, the layer of a Gated
    PixelCNN (van den Oord et al., "Conditional image generation with PixelCNN decoders", 2016, equations 2 and 3). With
    several, ``a`` and ``b`` are the two halves of each group, so that the outputs keep the order of the groups. The sums go
    through the gate, and gradients come through it, while they are in the cache; where no gradient is wanted, the C++ core
    never writes 2C channels.

    Args:
        x: floating tensor (N, C', H, W), any strides.
        weight: (2C, C', k, k) of the same dtype, k odd, as for :func:`masked_conv2d`.
        bias: (2C) of the same dtype, or None.
        cond: of the same dtype, added to what is convolved: (N, 2C), or broadcastable to (N, 2C, H, W), such as what
            another stack gives; None for no condition.
        mask_type: ``"A"`` or ``"B"``.
        channel_groups: how many groups of channels a pixel has, a divisor of C' and of C.
        backend: ``auto``, ``reference``, ``cpu`` or ``triton``.

    Returns:
        (N, C, H, W) in the dtype of ``x`` and its memory format, channels_last or else contiguous. Computed in float32, or
        in float64 for float64 inputs, and rounded once.

    Twice differentiable. The C++ core keeps tanh(a) and sigmoid(b) for backward, Triton what goes into them. Consumes no
    randomness. Bitwise reproducible; samples do not depend on each other, nor their bits on the batch.

    Raises:
        TypeError: an argument is not a tensor, or not floating, or the dtypes differ.
        ValueError: shapes or devices do not fit, a kernel size is even, ``mask_type`` is unknown, or the channels
            cannot be divided into the groups and their halves.
        BackendError: an explicitly requested backend cannot run.
    """
    op = "gated_masked_conv2d"
    _masked(op, x, weight, bias, mask_type, channel_groups)
    if weight.shape[0] % (2 * channel_groups):
        raise ValueError(
            f"{op}: each of the {channel_groups} groups must have two halves of outputs, got {weight.shape[0]} outputs"
        )
    if cond is not None:
        shape = x.shape[0], weight.shape[0], *x.shape[2:]
        cond = _condition(op, x, cond, shape, "(N, 2C, H, W)")
        cond = cond[:, :, 0, 0].expand(shape[:2]) if cond.shape[2:] == (1, 1) else cond.expand(shape)
    given = (x, weight, bias, cond)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
    return library.gated_masked_conv2d(*given, mask_type, channel_groups, keep, backend)[0]


def _condition(op: str, x: Tensor, cond: Tensor, shape: Sequence[int], meaning: str) -> Tensor:
    """A condition in as many dimensions as what it is added to."""
    checks.floating(op, "cond", cond)
    checks.same_dtype(op, x=x, cond=cond)
    checks.same_device(op, x=x, cond=cond)
    given = tuple(cond.shape)
    if cond.dim() == 2:
        cond = cond.reshape(*given, *[1] * (len(shape) - 2))
    if cond.dim() != len(shape) or any(c not in (1, n) for c, n in zip(cond.shape, shape, strict=True)):
        raise ValueError(f"{op}: cond must be broadcastable to the shape {meaning}, {tuple(shape)}, got {given}")
    return cond


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
