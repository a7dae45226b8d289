"""The definitions of masked and causal convolution and of the gate: plain PyTorch over the taps that are not masked.

A masked tap is left out, not multiplied by zero: what lies under it, NaN included, reaches neither outputs nor
gradients. 16-bit inputs are computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv1d, conv2d, pad

from gmkernels.core.product import no_autocast


def wide(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)


def masked_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, mask_type: str = "B", channel_groups: int = 1
) -> Tensor:
    # van den Oord et al., "Pixel recurrent neural networks", 2016, section 3.4: all rows above, the pixels to the left,
    # and of the pixel itself the channels that come before (mask A), or those and its own (mask B).
    dtype, (out_channels, channels, kernel, kernel_width) = wide(x), weight.shape
    x_, w_, (height, width) = x.to(dtype), weight.to(dtype), x.shape[2:]
    up, left = kernel // 2, kernel_width // 2
    out = x_.new_zeros(x.shape[0], out_channels, height, width)
    if bias is not None:
        out = out + bias.to(dtype).reshape(-1, 1, 1)
    if x.numel() == 0 or out_channels == 0:
        return out.to(x.dtype)
    inputs, outputs = channels // channel_groups, out_channels // channel_groups
    seen = [inputs * (i + (mask_type == "B")) for i in range(channel_groups)]
    with no_autocast(x):
        if up > 0:
            out = out + conv2d(pad(x_, (left, left, up, 0))[:, :, :-1], w_[:, :, :up])
        if left > 0:
            out = out + conv2d(pad(x_, (left, 0))[..., :-1], w_[:, :, up : up + 1, :left])
        centre = [
            conv2d(x_[:, :n], w_[i * outputs : (i + 1) * outputs, :n, up : up + 1, left : left + 1])
            if n > 0
            else torch.zeros_like(out[:, :outputs])
            for i, n in enumerate(seen)
        ]
    return (out + torch.cat(centre, 1)).to(x.dtype)


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> Tensor:
    # van den Oord et al., "WaveNet", 2016, section 2.1: no output sees the inputs that come after it.
    dtype, out_channels, kernel = wide(x), weight.shape[0], weight.shape[2]
    if x.numel() == 0 or out_channels == 0 or kernel == 0:
        out = x.new_zeros(x.shape[0], out_channels, x.shape[2], dtype=dtype)
        return (out if bias is None else out + bias.to(dtype).reshape(-1, 1)).to(x.dtype)
    bias = None if bias is None else bias.to(dtype)
    before = pad(x.to(dtype), ((kernel - 1) * dilation, 0))
    with no_autocast(x):
        return conv1d(before, weight.to(dtype), bias, dilation=dilation).to(x.dtype)


def gated_activation(x: Tensor, cond: Tensor | None = None) -> Tensor:
    # van den Oord et al., "Conditional image generation with PixelCNN decoders", 2016, equations 2 and 3.
    pre = x.to(wide(x)) if cond is None else x.to(wide(x)) + cond.to(wide(x))
    a, b = pre.tensor_split(2, 1)
    return (torch.tanh(a) * torch.sigmoid(b)).to(x.dtype)


def gated_masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    cond: Tensor | None = None,
    mask_type: str = "B",
    channel_groups: int = 1,
    keep: bool = False,
) -> tuple[Tensor]:
    """The gated outputs; what kernels keep for backward besides is of no use to autograd."""
    dtype = wide(x)
    parameters = weight.to(dtype), None if bias is None else bias.to(dtype)
    pre = masked_conv2d(x.to(dtype), *parameters, mask_type, channel_groups)
    if cond is not None:
        pre = pre + spread(cond.to(dtype))
    halves = alone(pre, channel_groups)
    return (together(gated_activation(halves), channel_groups).to(x.dtype),)


def spread(cond: Tensor) -> Tensor:
    """A condition of shape (N, 2C), for every pixel."""
    return cond[:, :, None, None] if cond.dim() == 2 else cond


def alone(t: Tensor, groups: int) -> Tensor:
    """Groups of channels as samples, so that the halves of a sample are those of a group."""
    return t if groups == 1 else t.unflatten(1, (groups, t.shape[1] // groups)).flatten(0, 1)


def together(t: Tensor, groups: int) -> Tensor:
    return t if groups == 1 else t.unflatten(0, (t.shape[0] // groups, groups)).flatten(1, 2)
