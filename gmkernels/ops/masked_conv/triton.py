"""Triton kernels of the convolutions: implicit matrix products over the taps that are not masked.

One program computes a tile of pixels and channels, summing over taps and channels with the pixels read where they lie:
no image is unfolded or padded. The gradient by x is the same kernel with the taps reversed and the weights transposed;
that by the weight sums over pixels for one tap at a time, in parts of the batch whose number depends on the problem
alone. float32 is multiplied as float32 (``input_precision="ieee"``), 16-bit values with sums in float32.

In row-major order the unmasked taps of a masked kernel are its first ones, and so are all taps of a causal one; the
centre, where groups of channels see some of the others, is the last of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from gmkernels.core.triton_launch import ceil_div, launch, power_of_two

from .gate_triton import gate, gated_activation, gated_activation_backward, gated_activation_double_backward
from .library import channels_last, gated_outputs, gradients, like
from .reference import alone, spread

__all__ = [
    "causal_conv1d",
    "causal_conv1d_backward",
    "gated_activation",
    "gated_activation_backward",
    "gated_activation_double_backward",
    "gated_masked_conv2d",
    "gated_masked_conv2d_backward",
    "masked_conv2d",
    "masked_conv2d_backward",
]


@triton.jit
def _visible(out_channel, in_channel, out_size, in_size, OWN: tl.constexpr):
    """Where the centre tap of an output channel sees an input channel, by the groups that they are of."""
    own = out_channel // out_size
    other = in_channel // in_size
    if OWN:
        return other <= own
    else:
        return other < own


@triton.jit
def _conv_kernel(
    x, weight, bias, out,
    x_n, x_c, x_h, x_w, w_m, w_k, w_t, o_n, o_c, o_h, o_w,
    blocks, pixels, height, width, channels, summed, tiles, taps, columns, up, left, dilation, size_m, size_k,
    BIAS: tl.constexpr, TRANSPOSED: tl.constexpr, GROUPED: tl.constexpr, OWN: tl.constexpr,
    P: tl.constexpr, M: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """out[p, m] = bias[m] + sum over taps and k of x[p + tap, k] weight[m, k, tap]; p - tap if TRANSPOSED.

    The pixels of a tile are of one image, so that an image's bits do not depend on the batch that it is in.
    """
    tile = tl.program_id(0) // tiles
    m = (tl.program_id(0) - tile * tiles) * M + tl.arange(0, M)
    n = (tile // blocks).to(tl.int64)
    p = (tile % blocks) * P + tl.arange(0, P)
    i = p // width
    j = p - i * width
    lane = tl.arange(0, K)
    total = tl.zeros([P, M], tl.float32)
    if BIAS:
        total += tl.load(bias + m, mask=m < channels, other=0.0).to(tl.float32)[None, :]
    for t in tl.range(0, taps, num_stages=1):
        down = t // columns - up
        right = (t % columns - left) * dilation
        if TRANSPOSED:
            down = -down
            right = -right
        u = i + down
        v = j + right
        inside = (p < pixels) & (u >= 0) & (u < height) & (v >= 0) & (v < width)
        here = x + (n * x_n + u.to(tl.int64) * x_h + v.to(tl.int64) * x_w)
        for start in tl.range(0, summed, K):
            k = start + lane
            a = tl.load(
                here[:, None] + (k.to(tl.int64) * x_c)[None, :], mask=inside[:, None] & (k < summed)[None, :], other=0.0
            )
            seen = (k < summed)[:, None] & (m < channels)[None, :]
            if GROUPED:
                if TRANSPOSED:
                    centre = _visible(k[:, None], m[None, :], size_k, size_m, OWN)
                else:
                    centre = _visible(m[None, :], k[:, None], size_m, size_k, OWN)
                before = (tl.zeros([1, 1], tl.int32) + t) < taps - 1
                seen = seen & (before | centre)
            at = (k.to(tl.int64) * w_k)[:, None] + (m.to(tl.int64) * w_m)[None, :] + t * w_t
            total = tl.dot(a, tl.load(weight + at, mask=seen, other=0.0), total, input_precision="ieee")
    to = (n * o_n + i.to(tl.int64) * o_h + j.to(tl.int64) * o_w)[:, None] + (m.to(tl.int64) * o_c)[None, :]
    tl.store(out + to, total, mask=(p < pixels)[:, None] & (m < channels)[None, :])


@triton.jit
def _conv_weight_kernel(
    grad, x, out,
    g_n, g_c, g_h, g_w, x_n, x_c, x_h, x_w,
    pixels, each, height, width, outputs, inputs, tiles_o, tiles_i, taps, columns, up, left, dilation,
    P: tl.constexpr, O: tl.constexpr, I: tl.constexpr,
):  # fmt: skip
    """out[part, tap, o, i] = sum over the pixels p of a part of grad[p, o] x[p + tap, i]."""
    rest = tl.program_id(0)
    i = (rest % tiles_i) * I + tl.arange(0, I)
    rest = rest // tiles_i
    o = (rest % tiles_o) * O + tl.arange(0, O)
    rest = rest // tiles_o
    t = rest % taps
    part = (rest // taps).to(tl.int64)
    down = t // columns - up
    right = (t % columns - left) * dilation
    total = tl.zeros([O, I], tl.float32)
    for start in tl.range(0, each, P):
        at = start + tl.arange(0, P)
        p = part * each + at
        real = (at < each) & (p < pixels)
        n = p // (height * width)
        q = (p - n * (height * width)).to(tl.int32)
        row = q // width
        col = q - row * width
        u = row + down
        v = col + right
        inside = real & (u >= 0) & (u < height) & (v >= 0) & (v < width)
        g_at = n * g_n + row.to(tl.int64) * g_h + col.to(tl.int64) * g_w
        x_at = n * x_n + u.to(tl.int64) * x_h + v.to(tl.int64) * x_w
        a = tl.load(
            grad + g_at[None, :] + (o.to(tl.int64) * g_c)[:, None],
            mask=inside[None, :] & (o < outputs)[:, None],
            other=0.0,
        )
        b = tl.load(
            x + x_at[:, None] + (i.to(tl.int64) * x_c)[None, :], mask=inside[:, None] & (i < inputs)[None, :], other=0.0
        )
        total = tl.dot(a, b, total, input_precision="ieee")
    to = ((part * taps + t) * outputs + o.to(tl.int64))[:, None] * inputs + i[None, :]
    tl.store(out + to, total, mask=(o < outputs)[:, None] & (i < inputs)[None, :])


@dataclass(frozen=True)
class _Rule:
    """Which taps there are: the first ``taps``, in rows of ``columns``; ``own``: a group sees itself at the centre."""

    taps: int
    columns: int
    up: int
    left: int
    dilation: int = 1
    groups: int = 1
    own: bool = True

    @property
    def where(self) -> tuple[int, int, int, int, int]:
        return self.taps, self.columns, self.up, self.left, self.dilation


def _image(t: Tensor) -> Tensor:
    return t if t.dim() == 4 else t.unsqueeze(2)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, rule: _Rule, transposed: bool) -> None:
    x, out, weight = _image(x), _image(out), weight.contiguous()
    (batch, summed, height, width), channels = x.shape, out.shape[1]
    pixels, places = height * width, weight[0, 0].numel() if weight.numel() else 0
    if out.numel() == 0:
        return
    along = (weight.shape[1] * places, places)
    step_m, step_k = along[::-1] if transposed else along
    # float32 is multiplied without tensor cores, out of registers: larger tiles would not fit into them.
    most_m, most_k = (32, 16) if x.dtype == torch.float32 else (64, 32)
    p, m, k = 64, min(most_m, max(16, power_of_two(channels))), min(most_k, max(16, power_of_two(summed)))
    tiles, blocks = ceil_div(channels, m), ceil_div(pixels, p)
    grouped = rule.groups > 1
    launch(
        _conv_kernel, batch * blocks * tiles,
        x, weight, x if bias is None else bias.contiguous(), out, *x.stride(), step_m, step_k, 1, *out.stride(),
        blocks, pixels, height, width, channels, summed, tiles, *rule.where, channels // rule.groups, summed // rule.groups,
        BIAS=bias is not None, TRANSPOSED=transposed, GROUPED=grouped, OWN=rule.own, P=p, M=m, K=k,
        warps=4, stages=2, registers=255,
    )  # fmt: skip


def _correlate(grad: Tensor, x: Tensor, weight: Tensor, rule: _Rule) -> Tensor:
    """The gradient by the weight, which is zero where it is masked."""
    grad, x, (outputs, inputs) = _image(grad), _image(x), weight.shape[:2]
    batch, _, height, width = x.shape
    pixels = batch * height * width
    by_weight = weight.new_zeros(outputs, inputs, weight[0, 0].numel() if weight.numel() else 0)
    if pixels == 0 or by_weight.numel() == 0 or rule.taps == 0:
        return by_weight.reshape(weight.shape)
    o, i = (min(32, max(16, power_of_two(n))) for n in (outputs, inputs))
    parts = min(64, ceil_div(pixels, 4096))
    each, tiles_o, tiles_i = ceil_div(pixels, parts), ceil_div(outputs, o), ceil_div(inputs, i)
    sums = x.new_empty(parts, rule.taps, outputs, inputs, dtype=torch.float32)
    launch(
        _conv_weight_kernel, parts * rule.taps * tiles_o * tiles_i,
        grad, x, sums, *grad.stride(), *x.stride(), pixels, each, height, width, outputs, inputs, tiles_o, tiles_i,
        *rule.where, P=16 if x.dtype == torch.float32 else 64, O=o, I=i, warps=4, stages=2, registers=255,
    )  # fmt: skip
    found = sums.sum(0)
    if rule.groups > 1:
        group_o = torch.arange(outputs, device=x.device) // (outputs // rule.groups)
        group_i = torch.arange(inputs, device=x.device) // (inputs // rule.groups)
        seen = group_i <= group_o[:, None] if rule.own else group_i < group_o[:, None]
        found[-1] = torch.where(seen, found[-1], 0.0)
    by_weight[:, :, : rule.taps] = found.permute(1, 2, 0)
    return by_weight.reshape(weight.shape)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, rule: _Rule) -> Tensor:
    out = like(x, weight.shape[0])
    _convolve(x, weight, bias, out, rule, False)
    return out


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, rule: _Rule, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    by_x, by_weight, by_bias = gradients(x, weight, (needs[0], False, False))
    if needs[0]:
        _convolve(grad, weight, None, by_x, rule, True)
    if needs[1]:
        by_weight = _correlate(grad, x, weight, rule)
    if needs[2]:
        by_bias = grad.transpose(0, 1).flatten(1).sum(1, dtype=torch.float32).to(weight.dtype)
    return by_x, by_weight, by_bias


def _masked(weight: Tensor, mask_type: str, channel_groups: int) -> _Rule:
    height, width = weight.shape[2:]
    up, left, own = height // 2, width // 2, mask_type == "B"
    return _Rule(up * width + left + (own or channel_groups > 1), width, up, left, 1, channel_groups, own)


def _causal(weight: Tensor, dilation: int) -> _Rule:
    kernel = weight.shape[2]
    return _Rule(kernel, kernel, 0, kernel - 1, dilation)


def masked_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, mask_type: str, channel_groups: int) -> Tensor:
    return _forward(x, weight, bias, _masked(weight, mask_type, channel_groups))


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
    return _backward(grad, x, weight, _masked(weight, mask_type, channel_groups), (by_x, by_weight, by_bias))


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    return _forward(x, weight, bias, _causal(weight, dilation))


def causal_conv1d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, dilation: int, by_x: bool, by_weight: bool, by_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(grad, x, weight, _causal(weight, dilation), (by_x, by_weight, by_bias))


def gated_masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cond: Tensor | None,
    mask_type: str,
    channel_groups: int,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Convolution, then gate. What backward wants is what is between them, without the condition."""
    out, pre = gated_outputs(x, weight, True)
    _convolve(x, weight, bias, pre, _masked(weight, mask_type, channel_groups), False)
    _gate(0, channel_groups, pre, cond, None, out)
    return out, pre if keep else pre.new_empty(0)


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
    by_pre, by_cond = like(x, weight.shape[0]), x.new_empty(0)
    _gate(1, channel_groups, kept, cond, grad, by_pre)
    if cond is not None and needs[3]:
        by_cond = by_pre if cond.dim() == 4 else by_pre.sum((2, 3), dtype=torch.float32).to(x.dtype)
    return *_backward(by_pre, x, weight, _masked(weight, mask_type, channel_groups), needs[:3]), by_cond


def _gate(order: int, groups: int, pre: Tensor, cond: Tensor | None, grad: Tensor | None, out: Tensor) -> None:
    """The gate of each group's halves, or its gradient."""
    last = groups > 1 and channels_last(out)  # there, groups are not samples without a copy
    to = torch.empty_like(out, memory_format=torch.contiguous_format) if last else out
    wide = None if cond is None else spread(cond).expand(pre.shape)
    given = [None if t is None else alone(t, groups) for t in (pre, wide, grad)]
    gate(order, *given, None, *((alone(to, groups),) if order == 0 else (None, alone(to, groups))))
    if last:
        out.copy_(to)
