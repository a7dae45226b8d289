"""Triton kernels of affine coupling: one program takes a few samples, and walks each in blocks of columns.

The sums of a sample follow the C++ core to the last bit: 128 running sums, one per position in a block of 128 logical
elements, folded by halves at the end. A narrower block, for samples that are shorter, leaves out sums that stay zero.
Every number is float32 from the moment it is loaded to the moment it is stored.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gmkernels.core.layout import rows
from gmkernels.core.triton_launch import INT32_SAFE, architecture, ceil_div, launch, power_of_two, single
from gmkernels.core.triton_math import atan, exp, fold_lanes, log, logsigmoid, sigmoid, softplus, tanh

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
def _scale(s, c, MAP: tl.constexpr, PLAIN: tl.constexpr, INVERSE: tl.constexpr):
    """Log-scale a, its slope da/ds, and the factor exp(a), or exp(-a) for the inverse. PLAIN: c is zero."""
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
            h = tanh(s)
            a = c * h
            slope = tl.fma(-h, h, 1.0) * c
        elif MAP == "atan":
            a = c * atan(s)
            slope = tl.div_rn(c, tl.fma(s, s, 1.0))
        else:  # soft_clip, with c the reciprocal of the clamp
            q = 1.0 + tl.abs(s) * c
            a = tl.div_rn(s, q)
            slope = tl.div_rn(1.0, q * q)
        factor = exp(-a) if INVERSE else exp(a)
    return a, slope, factor


@triton.jit
def _curvature(s, slope, c, MAP: tl.constexpr):
    """The second derivative of the log-scale."""
    if MAP == "exp":
        second = tl.zeros_like(s)
    elif MAP == "tanh":
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
def _passing(mask, col, inside, MASKED: tl.constexpr):
    """The columns that pass through unchanged."""
    if MASKED:
        return (tl.load(mask + col, mask=inside, other=0) != 0)[None, :]
    else:
        return tl.zeros_like(inside)[None, :]


@triton.jit
def _affine_coupling_kernel(
    x, s, t, mask, y, logdet,
    x_b, x_o, x_i, s_b, s_o, s_i, t_b, t_o, t_i,
    batch, length, inner, c,
    MAP: tl.constexpr, PLAIN: tl.constexpr, INVERSE: tl.constexpr, MASKED: tl.constexpr, FLAT: tl.constexpr,
    WIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS, COLS], tl.float32)
    for block in tl.range(0, tl.cdiv(length, COLS), num_stages=STAGES):
        col, inside, outer, place = _columns(block, length, inner, COLS, FLAT, WIDE)
        keep = (row < batch)[:, None] & inside[None, :]
        passing = _passing(mask, col, inside, MASKED)
        x_ = _read(x, _offsets(row, outer, place, x_b, x_o, x_i, FLAT), keep)
        s_ = _read(s, _offsets(row, outer, place, s_b, s_o, s_i, FLAT), keep)
        t_ = _read(t, _offsets(row, outer, place, t_b, t_o, t_i, FLAT), keep)
        a, slope, factor = _scale(s_, c, MAP, PLAIN, INVERSE)
        y_ = (x_ - t_) * factor if INVERSE else tl.fma(x_, factor, t_)
        a = -a if INVERSE else a
        if MASKED:
            y_ = tl.where(passing, x_, y_)
        total += tl.where(keep & (passing == 0), a, 0.0)
        tl.store(y + (row * length)[:, None] + col[None, :], y_, mask=keep)
    tl.store(logdet + row, fold_lanes(total), mask=row < batch)


@triton.jit
def _affine_coupling_backward_kernel(
    g, l, x, s, t, mask, grad_x, grad_s,
    g_b, g_o, g_i, x_b, x_o, x_i, s_b, s_o, s_i, t_b, t_o, t_i, l_b,
    batch, length, inner, blocks, c,
    MAP: tl.constexpr, PLAIN: tl.constexpr, INVERSE: tl.constexpr, MASKED: tl.constexpr, FLAT: tl.constexpr,
    WIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
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
    a, slope, factor = _scale(s_, c, MAP, PLAIN, INVERSE)
    dx = g_ * factor
    ds = tl.fma(g_ * d, factor, l_) * (-slope if INVERSE else slope)
    if MASKED:
        passing = _passing(mask, col, inside, MASKED)
        dx = tl.where(passing, g_, dx)
        ds = tl.where(passing, 0.0, ds)
    out = (row * length)[:, None] + col[None, :]
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
        a, slope, factor = _scale(s_, c, MAP, PLAIN, INVERSE)
        second = _curvature(s_, slope, c, MAP)
        if INVERSE:
            slope, second = -slope, -second
        # The function differentiated is v g m + w (g d m + l) a', with m the factor, m' = a' m and a, a', a'' signed.
        gm = g_ * factor
        dg = factor * tl.fma(w_ * slope, d, v_)
        dl = w_ * slope
        dx = gm * dl
        ds = tl.fma(gm * slope, tl.fma(dl, d, v_), w_ * second * tl.fma(gm, d, l_))
        if MASKED:
            passing = _passing(mask, col, inside, MASKED)
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
