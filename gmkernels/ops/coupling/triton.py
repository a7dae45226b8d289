"""Triton kernels of affine coupling: one program takes a few samples, and walks each in blocks of columns.

The sums of a sample follow the C++ core to the last bit: 128 running sums, one per position in a block of 128 logical
elements, folded by halves at the end. A narrower block, for samples that are shorter, leaves out sums that stay zero.
Every number is float32 from the moment it is loaded to the moment it is stored.
"""

from __future__ import annotations

from itertools import chain

import torch
import triton
import triton.language as tl
from torch import Tensor

from gmkernels.core.layout import rows
from gmkernels.core.triton_launch import INT32_SAFE, architecture, ceil_div, launch, power_of_two, single
from gmkernels.core.triton_math import atan, exp, fold_lanes, log, logsigmoid, sigmoid, softplus, tanh

from .library import inner_like
from .planar_triton import planar_flow, planar_flow_backward, planar_flow_double_backward

__all__ = [
    "affine_coupling",
    "affine_coupling_backward",
    "affine_coupling_double_backward",
    "planar_flow",
    "planar_flow_backward",
    "planar_flow_double_backward",
]


@triton.jit
def _inner(s, MAP: tl.constexpr):
    """The elementary function inside a map whose log-scale is a constant times that function; else s itself."""
    if MAP == "tanh":
        h = tanh(s)
    elif MAP == "atan":
        h = atan(s)
    else:
        h = s
    return h


@triton.jit
def _scale(s, h, c, MAP: tl.constexpr, PLAIN: tl.constexpr, INVERSE: tl.constexpr):
    """Log-scale a, its slope da/ds, and the factor exp(a), or exp(-a) for the inverse. PLAIN: c is zero.

    h is _inner(s).
    """
    if MAP == "sigmoid" or MAP == "reciprocal_sigmoid":
        shifted = s + 2.0
        g = sigmoid(shifted)
        e = g + c
        a = logsigmoid(shifted) if PLAIN else log(e)
        slope = tl.div_rn(g * sigmoid(-shifted), e)
        if MAP == "reciprocal_sigmoid":
            a, slope = -a, -slope
        factor = tl.div_rn(1.0, e) if INVERSE != (MAP == "reciprocal_sigmoid") else e
    elif MAP == "softplus":
        p = softplus(s) + 1e-3
        over = p > c
        e = tl.where(over, c, p)
        a = log(e)
        slope = tl.where(over, 0.0, tl.div_rn(sigmoid(s), e))
        factor = tl.div_rn(1.0, e) if INVERSE else e
    else:
        if MAP == "exp":
            a = tl.where(s < -c, -c, tl.where(s > c, c, s))
            slope = tl.where((s < -c) | (s > c), 0.0, 1.0)
        elif MAP == "tanh":
            a = c * h
            slope = tl.fma(-h, h, 1.0) * c
        elif MAP == "atan":
            a = c * h
            slope = tl.div_rn(c, tl.fma(s, s, 1.0))
        else:  # soft_clip, with c the reciprocal of the clamp
            q = 1.0 + tl.abs(s) * c
            a = tl.div_rn(s, q)
            slope = tl.div_rn(1.0, q * q)
        factor = exp(-a) if INVERSE else exp(a)
    return a, slope, factor


@triton.jit
def _curvature(s, slope, c, MAP: tl.constexpr):
    """The second derivative of the log-scale, of every map but exp, which has none."""
    if MAP == "tanh":
        second = -2.0 * tanh(s) * slope
    elif MAP == "atan":
        second = tl.div_rn(-2.0 * s * slope, tl.fma(s, s, 1.0))
    elif MAP == "sigmoid":
        second = slope * (sigmoid(-(s + 2.0)) - sigmoid(s + 2.0) - slope)
    elif MAP == "reciprocal_sigmoid":
        second = slope * (sigmoid(-(s + 2.0)) - sigmoid(s + 2.0) + slope)
    elif MAP == "softplus":
        second = slope * (sigmoid(-s) - slope)  # zero where it is clamped
    else:
        q = 1.0 + tl.abs(s) * c
        sign = tl.where(s > 0.0, 1.0, tl.where(s < 0.0, -1.0, 0.0))
        second = tl.div_rn(-2.0 * sign * c, q * q * q)
    return second


@triton.jit
def _columns(block, length, inner, COLS: tl.constexpr, FLAT: tl.constexpr, WIDE: tl.constexpr):
    """Logical columns of a block, which of them exist, and their place as (outer, inner) index."""
    lane = tl.arange(0, COLS)
    if WIDE:
        col = tl.zeros([COLS], tl.int64) + block
        col = col * COLS + lane
    else:
        col = block * COLS + lane
    if FLAT:
        outer = tl.zeros_like(col)
        place = col
    else:
        outer = col // inner
        place = col - outer * inner
    return col.to(tl.int64), col < length, outer.to(tl.int64), place.to(tl.int64)


@triton.jit
def _offsets(row, outer, place, batch_stride, outer_stride, inner_stride, FLAT: tl.constexpr):
    across = place * inner_stride
    if not FLAT:
        across += outer * outer_stride
    return (row * batch_stride)[:, None] + across[None, :]


@triton.jit
def _read(data, offsets, keep):
    return tl.load(data + offsets, mask=keep, other=0.0).to(tl.float32)


@triton.jit
def _passing(mask, col, inside):
    """The columns that pass through unchanged."""
    return (tl.load(mask + col, mask=inside, other=0) != 0)[None, :]


@triton.jit
def _affine_coupling_kernel(
    x, s, t, mask, y, logdet, kept,
    x_b, x_o, x_i, s_b, s_o, s_i, t_b, t_o, t_i,
    batch, length, inner, c,
    MAP: tl.constexpr, PLAIN: tl.constexpr, INVERSE: tl.constexpr, MASKED: tl.constexpr, FLAT: tl.constexpr,
    WIDE: tl.constexpr, KEEP: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS, COLS], tl.float32)
    for block in tl.range(0, tl.cdiv(length, COLS), num_stages=STAGES):
        col, inside, outer, place = _columns(block, length, inner, COLS, FLAT, WIDE)
        keep = (row < batch)[:, None] & inside[None, :]
        x_ = _read(x, _offsets(row, outer, place, x_b, x_o, x_i, FLAT), keep)
        s_ = _read(s, _offsets(row, outer, place, s_b, s_o, s_i, FLAT), keep)
        t_ = _read(t, _offsets(row, outer, place, t_b, t_o, t_i, FLAT), keep)
        h = _inner(s_, MAP)
        a, slope, factor = _scale(s_, h, c, MAP, PLAIN, INVERSE)
        y_ = (x_ - t_) * factor if INVERSE else tl.fma(x_, factor, t_)
        a = -a if INVERSE else a
        if MASKED:
            passing = _passing(mask, col, inside)
            y_ = tl.where(passing, x_, y_)
            a = tl.where(passing, 0.0, a)
        total += tl.where(keep, a, 0.0)
        out = (row * length)[:, None] + col[None, :]
        tl.store(y + out, y_, mask=keep)
        if KEEP:
            tl.store(kept + out, h, mask=keep)
    tl.store(logdet + row, fold_lanes(total), mask=row < batch)


@triton.jit
def _affine_coupling_backward_kernel(
    g, l, x, s, t, mask, kept, grad_x, grad_s,
    g_b, g_o, g_i, x_b, x_o, x_i, s_b, s_o, s_i, t_b, t_o, t_i, l_b,
    batch, length, inner, blocks, c,
    MAP: tl.constexpr, PLAIN: tl.constexpr, INVERSE: tl.constexpr, MASKED: tl.constexpr, FLAT: tl.constexpr,
    WIDE: tl.constexpr, KEEP: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) // blocks
    row = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col, inside, outer, place = _columns(tl.program_id(0) - tile * blocks, length, inner, COLS, FLAT, WIDE)
    keep = (row < batch)[:, None] & inside[None, :]
    g_ = _read(g, _offsets(row, outer, place, g_b, g_o, g_i, FLAT), keep)
    s_ = _read(s, _offsets(row, outer, place, s_b, s_o, s_i, FLAT), keep)
    d = _read(x, _offsets(row, outer, place, x_b, x_o, x_i, FLAT), keep)
    if INVERSE:
        d -= _read(t, _offsets(row, outer, place, t_b, t_o, t_i, FLAT), keep)
    l_ = tl.load(l + row * l_b, mask=row < batch, other=0.0)[:, None]
    out = (row * length)[:, None] + col[None, :]
    if KEEP:
        h = tl.load(kept + out, mask=keep, other=0.0)
    else:
        h = _inner(s_, MAP)
    a, slope, factor = _scale(s_, h, c, MAP, PLAIN, INVERSE)
    dx = g_ * factor
    ds = tl.fma(g_ * d, factor, l_) * (-slope if INVERSE else slope)
    if MASKED:
        passing = _passing(mask, col, inside)
        dx = tl.where(passing, g_, dx)
        ds = tl.where(passing, 0.0, ds)
    tl.store(grad_x + out, dx, mask=keep)
    tl.store(grad_s + out, ds, mask=keep)


@triton.jit
def _affine_coupling_double_backward_kernel(
    v, w, g, l, x, s, t, mask, grad_g, grad_l, grad_x, grad_s,
    v_b, v_o, v_i, w_b, w_o, w_i, g_b, g_o, g_i, x_b, x_o, x_i, s_b, s_o, s_i, t_b, t_o, t_i, l_b,
    batch, length, inner, c,
    MAP: tl.constexpr, PLAIN: tl.constexpr, INVERSE: tl.constexpr, MASKED: tl.constexpr, FLAT: tl.constexpr,
    WIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    l_ = tl.load(l + row * l_b, mask=row < batch, other=0.0)[:, None]
    total = tl.zeros([ROWS, COLS], tl.float32)
    for block in tl.range(0, tl.cdiv(length, COLS), num_stages=STAGES):
        col, inside, outer, place = _columns(block, length, inner, COLS, FLAT, WIDE)
        keep = (row < batch)[:, None] & inside[None, :]
        v_ = _read(v, _offsets(row, outer, place, v_b, v_o, v_i, FLAT), keep)
        w_ = _read(w, _offsets(row, outer, place, w_b, w_o, w_i, FLAT), keep)
        g_ = _read(g, _offsets(row, outer, place, g_b, g_o, g_i, FLAT), keep)
        s_ = _read(s, _offsets(row, outer, place, s_b, s_o, s_i, FLAT), keep)
        d = _read(x, _offsets(row, outer, place, x_b, x_o, x_i, FLAT), keep)
        if INVERSE:
            d -= _read(t, _offsets(row, outer, place, t_b, t_o, t_i, FLAT), keep)
        a, slope, factor = _scale(s_, _inner(s_, MAP), c, MAP, PLAIN, INVERSE)
        slope = -slope if INVERSE else slope
        # The function differentiated is v g m + w (g d m + l) a', with m the factor, m' = a' m and a, a', a'' signed.
        gm = g_ * factor
        dg = factor * tl.fma(w_ * slope, d, v_)
        dl = w_ * slope
        dx = gm * dl
        ds = gm * slope * tl.fma(dl, d, v_)
        if MAP != "exp":
            second = _curvature(s_, -slope if INVERSE else slope, c, MAP)
            ds = tl.fma(w_ * (-second if INVERSE else second), tl.fma(gm, d, l_), ds)
        if MASKED:
            passing = _passing(mask, col, inside)
            dg = tl.where(passing, v_, dg)
            dl = tl.where(passing, 0.0, dl)
            dx = tl.where(passing, 0.0, dx)
            ds = tl.where(passing, 0.0, ds)
        total += tl.where(keep, dl, 0.0)
        out = (row * length)[:, None] + col[None, :]
        tl.store(grad_g + out, dg, mask=keep)
        tl.store(grad_x + out, dx, mask=keep)
        tl.store(grad_s + out, ds, mask=keep)
    tl.store(grad_l + row, fold_lanes(total), mask=row < batch)


# Columns of a block: (samples of a program, warps, stages of the software pipeline). Blocks of up to 64 columns hold
# whole samples, so there is nothing to pipeline. In the narrowest, the addresses of the samples take the registers.
_SHORT = {cols: ((256 if cols <= 16 else 512) // cols, 4, 1) for cols in (1, 2, 4, 8, 16, 32, 64)}
_TILES = {80: {**_SHORT, 128: (4, 4, 3)}, 90: {**_SHORT, 128: (4, 4, 4)}}
# Up to this many samples, one each: there are too few to keep every multiprocessor busy.
_FEW, _FEW_TILES = 512, {80: (1, 4, 3), 90: (1, 4, 4)}
# Backward has no sums, so any block will do. Columns: (samples, warps).
_FLAT_TILES = {cols: (1024 // cols, 4) for cols in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)}


def _tile(x: Tensor, batch: int, length: int) -> dict[str, int]:
    cols = min(128, power_of_two(length))
    table = _TILES[architecture(x)]
    count, warps, stages = _FEW_TILES[architecture(x)] if cols == 128 and batch <= _FEW else table[cols]
    return {"ROWS": count, "COLS": cols, "STAGES": stages, "warps": warps, "stages": stages}


def _constants(
    mask: Tensor | None, sizes: tuple[int, int, int], scale_map: str, clamp: float, inverse: bool
) -> dict[str, object]:
    return {
        "MAP": scale_map,
        "PLAIN": clamp == 0,
        "INVERSE": inverse,
        "MASKED": mask is not None,
        "FLAT": sizes[1] == 1,
        "WIDE": sizes[1] * sizes[2] > INT32_SAFE,
    }


def _parameter(scale_map: str, clamp: float) -> float:
    """The number a map works with, rounded once from double."""
    return single(0.636 * clamp if scale_map == "atan" else 1.0 / clamp if scale_map == "soft_clip" else clamp)


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.view(torch.uint8)


def affine_coupling(
    x: Tensor, log_scale: Tensor, shift: Tensor, mask: Tensor | None,
    scale_map: str, clamp: float, inverse: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    y, logdet = x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=torch.float32)
    kept = inner_like(x, torch.float32, keep)
    if x.numel() == 0:
        return y, logdet.zero_(), kept
    sizes, strides, operands = rows(x, log_scale, shift)
    batch, length = sizes[0], sizes[1] * sizes[2]
    tile = _tile(x, batch, length)
    launch(
        _affine_coupling_kernel, ceil_div(batch, tile["ROWS"]),
        *operands, _bytes(mask), y, logdet, kept, *chain(*strides), batch, length, sizes[2], _parameter(scale_map, clamp),
        **_constants(mask, sizes, scale_map, clamp, inverse), KEEP=keep, **tile,
    )  # fmt: skip
    return y, logdet, kept


def affine_coupling_backward(
    grad_y: Tensor, grad_logdet: Tensor, x: Tensor, log_scale: Tensor, shift: Tensor, mask: Tensor | None, inner: Tensor,
    scale_map: str, clamp: float, inverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    grad_x, grad_s = x.new_empty(x.shape), log_scale.new_empty(x.shape)
    if x.numel() == 0:
        return grad_x, grad_s
    sizes, strides, (g, *operands) = rows(grad_y, x, log_scale, shift)
    batch, length = sizes[0], sizes[1] * sizes[2]
    cols = min(1024, power_of_two(length))
    count, warps = _FLAT_TILES[cols]
    blocks = ceil_div(length, cols)
    launch(
        _affine_coupling_backward_kernel, ceil_div(batch, count) * blocks,
        g, grad_logdet, *operands, _bytes(mask), inner.contiguous(), grad_x, grad_s, *chain(*strides), grad_logdet.stride(0),
        batch, length, sizes[2], blocks, _parameter(scale_map, clamp),
        **_constants(mask, sizes, scale_map, clamp, inverse), KEEP=inner.numel() > 0, ROWS=count, COLS=cols, warps=warps,
    )  # fmt: skip
    return grad_x, grad_s


def affine_coupling_double_backward(
    grad_grad_x: Tensor, grad_grad_s: Tensor, grad_y: Tensor, grad_logdet: Tensor,
    x: Tensor, log_scale: Tensor, shift: Tensor, mask: Tensor | None, scale_map: str, clamp: float, inverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    out_g, out_x, out_s = x.new_empty(x.shape), x.new_empty(x.shape), log_scale.new_empty(x.shape)
    out_l = x.new_empty(x.shape[0], dtype=torch.float32)
    if x.numel() == 0:
        return out_g, out_l.zero_(), out_x, out_s
    sizes, strides, (v, w, g, *operands) = rows(grad_grad_x, grad_grad_s, grad_y, x, log_scale, shift)
    batch, length = sizes[0], sizes[1] * sizes[2]
    tile = _tile(x, batch, length)
    launch(
        _affine_coupling_double_backward_kernel, ceil_div(batch, tile["ROWS"]),
        v, w, g, grad_logdet, *operands, _bytes(mask), out_g, out_l, out_x, out_s, *chain(*strides),
        grad_logdet.stride(0), batch, length, sizes[2], _parameter(scale_map, clamp),
        **_constants(mask, sizes, scale_map, clamp, inverse), **tile,
    )  # fmt: skip
    return out_g, out_l, out_x, out_s
