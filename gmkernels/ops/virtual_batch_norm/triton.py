"""Triton kernels of virtual batch normalisation: a program takes some rows, each one example and channel.

A row is read three times, the second and third time from a cache: for its mean, for its variance about that mean, and for
the output. Gradients by what all examples share are written row by row and then added up, in the order of the C++ core.
Letters are those of ``autograd.py``; sums have 64 lanes.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gmkernels.core.triton_launch import INT32_SAFE, ceil_div, launch, power_of_two, single

from .library import planes

__all__ = ["virtual_batch_norm", "virtual_batch_norm_backward", "virtual_batch_norm_double_backward"]


@triton.jit
def _columns(block, length, COLS: tl.constexpr, WIDE: tl.constexpr):
    lane = tl.arange(0, COLS)
    if WIDE:
        col = (tl.zeros([COLS], tl.int64) + block) * COLS + lane
    else:
        col = block * COLS + lane
    return col.to(tl.int64), col < length


@triton.jit
def _fold(x):
    """``fold_lanes`` in another guise, for kernels with many sums: here the compiler gives no thread a row of its own."""
    for level in tl.static_range(6):
        if x.shape[1] == (64 >> level):
            x = tl.sum(tl.reshape(x, [x.shape[0], 2, 32 >> level]), axis=1)
    return tl.sum(x, axis=1)


@triton.jit
def _elements(data, start, col, step, keep):
    return tl.load(data + start[:, None] + col[None, :] * step, mask=keep, other=0.0).to(tl.float32)


@triton.jit
def _virtual_batch_norm_kernel(
    x, g, v, mean, var, weight, bias, v_mean, v_var, v_weight, v_bias, out, by_grad, parts,
    x_b, x_c, x_s, g_b, g_c, g_s, v_b, v_c, v_s,
    rows, channels, length, own, rest, eps, inverse,
    ORDER: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """ORDER 0: y. 1: dx, and this row's part of the shared gradients. 2: the tangents of both along the cotangents v."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = row < rows
    b = row // channels
    c = row - b * channels
    x_start = b * x_b + c * x_c
    g_start = b * g_b + c * g_c
    v_start = b * v_b + c * v_c
    blocks = tl.cdiv(length, COLS)
    sum_x = tl.zeros([ROWS, COLS], tl.float32)
    sum_g = tl.zeros([ROWS, COLS], tl.float32)
    sum_v = tl.zeros([ROWS, COLS], tl.float32)
    for block in tl.range(0, blocks):
        col, inside = _columns(block, length, COLS, WIDE)
        keep = real[:, None] & inside[None, :]
        sum_x += _elements(x, x_start, col, x_s, keep)
        if ORDER > 0:
            sum_g += _elements(g, g_start, col, g_s, keep)
        if ORDER > 1:
            sum_v += _elements(v, v_start, col, v_s, keep)
    e = _fold(sum_x) * inverse
    e_d = _fold(sum_v) * inverse
    sum_xx = tl.zeros([ROWS, COLS], tl.float32)
    sum_gx = tl.zeros([ROWS, COLS], tl.float32)
    sum_xv = tl.zeros([ROWS, COLS], tl.float32)
    sum_gv = tl.zeros([ROWS, COLS], tl.float32)
    for block in tl.range(0, blocks):
        col, inside = _columns(block, length, COLS, WIDE)
        keep = real[:, None] & inside[None, :]
        centred = tl.where(keep, _elements(x, x_start, col, x_s, keep) - e[:, None], 0.0)
        sum_xx += centred * centred
        if ORDER > 0:
            g_ = _elements(g, g_start, col, g_s, keep)
            sum_gx += g_ * centred
        if ORDER > 1:
            tangent = tl.where(keep, _elements(v, v_start, col, v_s, keep) - e_d[:, None], 0.0)
            sum_xv += centred * tangent
            sum_gv += g_ * tangent
    square = _fold(sum_xx) * inverse

    d = e - tl.load(mean + c, mask=real, other=0.0)
    w = tl.load(weight + c, mask=real, other=0.0)
    offset = rest * d
    mixed = tl.fma(rest, tl.load(var + c, mask=real, other=1.0), own * tl.fma(offset, d, square))
    r = tl.div_rn(1.0, tl.sqrt_rn(mixed + eps))
    gain = r * w
    if ORDER > 0:
        total_g = _fold(sum_g)
        gu = tl.fma(offset, total_g, _fold(sum_gx))
        r2 = r * r
        by_mean = -(gain * total_g)
        p = -(0.5 * (r2 * gain))
        by_var = p * gu
        q = 2.0 * (own * offset) * by_var
        slope = 2.0 * own * by_var * inverse
        part = parts + row
    if ORDER == 1:
        level = (own * by_mean + q) * inverse
        tl.store(part, rest * by_mean - q, mask=real)
        tl.store(part + rows, rest * by_var, mask=real)
        tl.store(part + 2 * rows, r * gu, mask=real)
        tl.store(part + 3 * rows, total_g, mask=real)
    if ORDER > 1:
        d_d = e_d - tl.load(v_mean + c, mask=real, other=0.0)
        v_w = tl.load(v_weight + c, mask=real, other=0.0)
        offset_d = rest * d_d
        square_d = 2.0 * _fold(sum_xv) * inverse
        mixed_d = tl.fma(rest, tl.load(v_var + c, mask=real, other=0.0), own * tl.fma(2.0 * offset, d_d, square_d))
        r_d = -(0.5 * (r2 * r)) * mixed_d
        gain_d = tl.fma(r_d, w, r * v_w)
        gu_d = tl.fma(offset_d, total_g, _fold(sum_gv))
        by_mean_d = -(gain_d * total_g)
        p_d = -(0.5 * tl.fma(r2, gain_d, 2.0 * (r * r_d) * gain))
        by_var_d = tl.fma(p_d, gu, p * gu_d)
        q_d = 2.0 * own * tl.fma(offset_d, by_var, offset * by_var_d)
        slope_d = 2.0 * own * by_var_d * inverse
        level_d = (own * by_mean_d + q_d) * inverse
        tl.store(part, rest * by_mean_d - q_d, mask=real)
        tl.store(part + rows, rest * by_var_d, mask=real)
        tl.store(part + 2 * rows, tl.fma(r_d, gu, r * gu_d), mask=real)
        shift_d = tl.load(v_bias + c, mask=real, other=0.0)[:, None]
    else:
        shift = tl.load(bias + c, mask=real, other=0.0)[:, None]
    for block in tl.range(0, blocks):
        col, inside = _columns(block, length, COLS, WIDE)
        keep = real[:, None] & inside[None, :]
        place = (row * length)[:, None] + col[None, :]
        centred = _elements(x, x_start, col, x_s, keep) - e[:, None]
        if ORDER == 0:
            tl.store(out + place, tl.fma(centred + offset[:, None], gain[:, None], shift), mask=keep)
        if ORDER == 1:
            g_ = _elements(g, g_start, col, g_s, keep)
            found = tl.fma(gain[:, None], g_, tl.fma(slope[:, None], centred, level[:, None]))
            tl.store(out + place, found, mask=keep)
        if ORDER > 1:
            g_ = _elements(g, g_start, col, g_s, keep)
            tangent = _elements(v, v_start, col, v_s, keep) - e_d[:, None]
            rising = tl.fma(slope_d[:, None], centred, tl.fma(slope[:, None], tangent, level_d[:, None]))
            tl.store(out + place, tl.fma(gain_d[:, None], g_, rising), mask=keep)
            moved = tl.fma(tangent + offset_d[:, None], gain[:, None], shift_d)
            tl.store(by_grad + place, tl.fma(centred + offset[:, None], gain_d[:, None], moved), mask=keep)


@triton.jit
def _add_examples_kernel(
    parts, out_mean, out_var, out_weight, out_bias, rows, channels, blocks, piece, COLS: tl.constexpr
):  # fmt: skip
    """The sums of the rows' parts over all examples, piece after piece, one of the shared tensors a program."""
    which = tl.program_id(0) // blocks
    c = (tl.program_id(0) - which * blocks) * COLS + tl.arange(0, COLS)
    real = c < channels
    batch = rows // channels
    start = parts + which.to(tl.int64) * rows + c
    total = tl.zeros([COLS], tl.float32)
    for k in tl.range(0, tl.cdiv(batch, piece)):
        part = tl.zeros([COLS], tl.float32)
        for b in tl.range(k * piece, tl.minimum((k + 1) * piece, batch)):
            part += tl.load(start + (tl.zeros([1], tl.int64) + b) * channels, mask=real, other=0.0)
        total += part
    if which == 0:
        tl.store(out_mean + c, total, mask=real)
    if which == 1:
        tl.store(out_var + c, total, mask=real)
    if which == 2:
        tl.store(out_weight + c, total, mask=real)
    if which == 3:
        tl.store(out_bias + c, total, mask=real)


# Columns of a block: rows of a program.
_TILES = {1: 128, 2: 64, 4: 64, 8: 32, 16: 16, 32: 16, 64: 8}
_WARPS = 4
_LANES = 64
_PIECE = 64  # examples added up at a time where a row is a single number, as in the C++ core


def _run(
    order: int, x: Tensor, g: Tensor | None, v: Tensor | None, shared: list[Tensor | None], own: float, eps: float
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """``shared``: mean, var, weight, bias, and their cotangents. Gives out, by_grad and the shared gradients."""
    out, by_grad = x.new_empty(x.shape), x.new_empty(x.shape) if order == 2 else None
    mean = shared[0]
    assert mean is not None
    sums = [mean.new_empty(mean.shape) for _ in range((0, 4, 3)[order])]
    views = [None if t is None else planes(t) for t in (x, g, v)]
    batch, channels, length = views[0].shape  # type: ignore[union-attr]
    rows = batch * channels
    if x.numel() == 0:
        return out, by_grad, [t.zero_() for t in sums]
    parts = mean.new_empty(len(sums) * rows) if order else None
    cols = min(_LANES, power_of_two(length))
    strides = [step for t in views for step in ((0, 0, 0) if t is None else t.stride())]
    share = single(own)
    held = [None if t is None else t.contiguous() for t in shared]
    launch(
        _virtual_batch_norm_kernel, ceil_div(rows, _TILES[cols]),
        *views, *held, out, by_grad, parts, *strides, rows, channels, length,
        share, single(1.0 - share), single(eps), single(1.0 / length),
        ORDER=order, WIDE=length > INT32_SAFE, ROWS=_TILES[cols], COLS=cols, warps=_WARPS,
        registers=168 if order == 2 else 128,
    )  # fmt: skip
    if order:
        blocks = ceil_div(channels, 32)
        launch(
            _add_examples_kernel, len(sums) * blocks, parts, *sums, *sums[:4 - len(sums)], rows, channels, blocks,
            _PIECE if length == 1 else 1, COLS=32, warps=1,
        )  # fmt: skip
    return out, by_grad, sums


def virtual_batch_norm(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, own: float, eps: float
) -> Tensor:
    return _run(0, x, None, None, [mean, var, weight, bias, *[None] * 4], own, eps)[0]


def virtual_batch_norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, own: float, eps: float
) -> tuple[Tensor, ...]:
    # The bias moves no gradient; the weight stands in for it.
    out, _, sums = _run(1, x, grad, None, [mean, var, weight, weight, *[None] * 4], own, eps)
    return (out, *sums)


def virtual_batch_norm_double_backward(
    v_x: Tensor, v_mean: Tensor, v_var: Tensor, v_weight: Tensor, v_bias: Tensor,
    grad: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, own: float, eps: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    shared = [mean, var, weight, None, v_mean, v_var, v_weight, v_bias]
    out, by_grad, sums = _run(2, x, grad, v_x, shared, own, eps)
    assert by_grad is not None
    return (by_grad, out, *sums)
