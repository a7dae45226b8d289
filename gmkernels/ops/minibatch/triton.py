"""Triton kernels of minibatch discrimination: one program takes a kernel b and a tile of samples i, and walks all j.

A tile of pairs has the samples i along the lanes of a warp and the samples j inside a thread, so that every sum over j
stays in a thread's own registers: nothing is exchanged between threads, and no pair is written to memory. Distances are
rebuilt in backward and double backward.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from gmkernels.core.triton_launch import architecture, ceil_div, launch
from gmkernels.core.triton_math import exp

__all__ = [
    "minibatch_discrimination",
    "minibatch_discrimination_backward",
    "minibatch_discrimination_double_backward",
]


@triton.jit
def _coordinate(data, index, c, stride, stride_c, count):
    """Coordinate c of the samples in ``index``; 0 beyond the batch."""
    across = (tl.zeros([1], tl.int64) + c) * stride_c
    return tl.load(data + index.to(tl.int64) * stride + across, mask=index < count, other=0.0).to(tl.float32)


@triton.jit
def _own(data, i, stride, stride_c, count, COUNT: tl.constexpr):
    """The first COUNT coordinates of the samples i, to stay in registers."""
    coordinates = ()
    for c in tl.static_range(COUNT):
        coordinates = coordinates + (_coordinate(data, i, c, stride, stride_c, count)[None, :],)
    return coordinates


@triton.jit
def _sign(d):
    return tl.where(d > 0.0, 1.0, tl.where(d < 0.0, -1.0, 0.0))


@triton.jit
def _minibatch_kernel(
    m, out, batch, kernels, tiles, dim, stride_i, stride_b, stride_c,
    HELD: tl.constexpr, WHOLE: tl.constexpr, I: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """o_i = sum_j e. A program holds HELD coordinates of its samples, all there are if WHOLE."""
    b = (tl.program_id(0) // tiles).to(tl.int64)
    i = (tl.program_id(0) % tiles) * I + tl.arange(0, I)
    m += b * stride_b
    own = _own(m, i, stride_i, stride_c, batch, HELD)
    total = tl.zeros([I], tl.float32)
    for tile in tl.range(0, tl.cdiv(batch, J), num_stages=1):
        j = tile * J + tl.arange(0, J)
        distance = tl.zeros([J, I], tl.float32)
        for c in tl.static_range(HELD):
            distance += tl.abs(own[c] - _coordinate(m, j, c, stride_i, stride_c, batch)[:, None])
        if not WHOLE:
            for c in tl.range(HELD, dim, num_stages=1):
                m_i = _coordinate(m, i, c, stride_i, stride_c, batch)[None, :]
                distance += tl.abs(m_i - _coordinate(m, j, c, stride_i, stride_c, batch)[:, None])
        pair = (j < batch)[:, None] & (j[:, None] != i[None, :])
        total += tl.sum(tl.where(pair, exp(-distance), 0.0), axis=0)
    tl.store(out + i.to(tl.int64) * kernels + b, total, mask=i < batch)


@triton.jit
def _minibatch_gradient_kernel(
    m, v, grad, out, out_m, batch, kernels, tiles, chunks, dim,
    stride_i, stride_b, stride_c, v_i, v_b, v_c, g_i, g_b,
    DOUBLE: tl.constexpr, HELD: tl.constexpr, WHOLE: tl.constexpr, WIDTH: tl.constexpr, SINGLE: tl.constexpr,
    I: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """First derivative dM_i = -sum_j (g_i + g_j) e s, or its tangent along v, in which e turns into -e p.

    A program holds HELD coordinates of its samples, all there are if WHOLE. It sums for WIDTH of them; if that is not
    all, each chunk of WIDTH has its own programs, which all rebuild the distances.
    """
    chunk = tl.program_id(0) % chunks
    rest = tl.program_id(0) // chunks
    b = (rest // tiles).to(tl.int64)
    i = (rest % tiles) * I + tl.arange(0, I)
    m += b * stride_b
    grad += b * g_b
    g = tl.load(grad + i.to(tl.int64) * g_i, mask=i < batch, other=0.0).to(tl.float32)[None, :]
    own = _own(m, i, stride_i, stride_c, batch, HELD)
    # The last chunk is as wide as the others and begins earlier, so that a coordinate is a constant step from here.
    start = tl.zeros([1], tl.int64) + tl.minimum(chunk * WIDTH, dim - WIDTH)
    part = m + start * stride_c
    if not SINGLE:
        summed = _own(part, i, stride_i, stride_c, batch, WIDTH)
    if DOUBLE:
        v += b * v_b
        own_v = _own(v, i, v_i, v_c, batch, HELD)
    total = tl.zeros([I], tl.float32)
    sums = ()
    for _ in tl.static_range(WIDTH):
        sums = sums + (tl.zeros([I], tl.float32),)
    for tile in tl.range(0, tl.cdiv(batch, J), num_stages=1):
        j = tile * J + tl.arange(0, J)
        distance = tl.zeros([J, I], tl.float32)
        p = tl.zeros([J, I], tl.float32)
        signs = ()
        for c in tl.static_range(HELD):
            d = own[c] - _coordinate(m, j, c, stride_i, stride_c, batch)[:, None]
            distance += tl.abs(d)
            if DOUBLE:
                p = tl.fma(_sign(d), own_v[c] - _coordinate(v, j, c, v_i, v_c, batch)[:, None], p)
            if SINGLE:
                signs = signs + (_sign(d),)
        if not WHOLE:
            for c in tl.range(HELD, dim, num_stages=1):
                m_i = _coordinate(m, i, c, stride_i, stride_c, batch)[None, :]
                d = m_i - _coordinate(m, j, c, stride_i, stride_c, batch)[:, None]
                distance += tl.abs(d)
                if DOUBLE:
                    v_c_i = _coordinate(v, i, c, v_i, v_c, batch)[None, :]
                    p = tl.fma(_sign(d), v_c_i - _coordinate(v, j, c, v_i, v_c, batch)[:, None], p)
        pair = (j < batch)[:, None] & (j[:, None] != i[None, :])
        weight = -exp(-distance)
        if DOUBLE:
            weight *= p
            total += tl.sum(tl.where(pair, weight, 0.0), axis=0)
            weight = -weight
        weight *= g + tl.load(grad + j.to(tl.int64) * g_i, mask=j < batch, other=0.0).to(tl.float32)[:, None]
        weight = tl.where(pair, weight, 0.0)
        added = ()
        for k in tl.static_range(WIDTH):
            if SINGLE:
                added = added + (sums[k] + tl.sum(weight * signs[k], axis=0),)
            else:
                d = summed[k] - _coordinate(part, j, k, stride_i, stride_c, batch)[:, None]
                added = added + (sums[k] + tl.sum(weight * _sign(d), axis=0),)
        sums = added
    rows = i.to(tl.int64) * kernels + b
    if DOUBLE:
        tl.store(out + rows, total, mask=(i < batch) & (start == 0))
    for k in tl.static_range(WIDTH):
        tl.store(out_m + rows * dim + start + k, sums[k], mask=(i < batch) & (start + k >= chunk * WIDTH))


# Up to so many coordinates, a program sums for all of them; of more, for so many at a time.
_FEW = 16
# How many coordinates a program holds: forward, backward, double backward. What it does not, it reads again and again.
_HELD = (64, 56, 32)
# (samples i, samples j, warps, registers) of a tile for few coordinates and for more, by the size of the batch.
_SMALL_BATCH = 512
_FORWARD = {"small": ((32, 8, 1, 168),) * 2, "large": ((128, 8, 2, 168), (64, 8, 2, 168))}
_GRADIENT = {"small": ((32, 4, 1, 255),) * 2, "large": ((64, 4, 2, 255),) * 2}
_TILES = {80: (_FORWARD, _GRADIENT, _GRADIENT), 90: (_FORWARD, _GRADIENT, _GRADIENT)}


def _tile(m: Tensor, order: int) -> dict[str, Any]:
    batch, _, dim = m.shape
    table = _TILES[architecture(m)][order]["small" if batch <= _SMALL_BATCH else "large"]
    i, j, warps, registers = table[dim > _FEW]
    held = min(dim, _HELD[order])
    return {"HELD": held, "WHOLE": held == dim, "I": i, "J": j, "warps": warps, "registers": registers}


def minibatch_discrimination(m: Tensor) -> Tensor:
    batch, kernels, dim = m.shape
    out = m.new_empty(batch, kernels)
    if out.numel() == 0:
        return out
    tile = _tile(m, 0)
    tiles = ceil_div(batch, tile["I"])
    launch(_minibatch_kernel, kernels * tiles, m, out, batch, kernels, tiles, dim, *m.stride(), **tile)
    return out


def minibatch_discrimination_backward(grad: Tensor, m: Tensor) -> Tensor:
    return _gradient(None, grad, m)[1]


def minibatch_discrimination_double_backward(grad_grad_m: Tensor, grad: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
    out, out_m = _gradient(grad_grad_m, grad, m)
    assert out is not None
    return out, out_m


def _gradient(v: Tensor | None, grad: Tensor, m: Tensor) -> tuple[Tensor | None, Tensor]:
    batch, kernels, dim = m.shape
    out, out_m = None if v is None else m.new_empty(batch, kernels), m.new_empty(m.shape)
    if m.numel() == 0:
        return None if out is None else out.zero_(), out_m
    tile = _tile(m, 1 if v is None else 2)
    tiles, chunks = ceil_div(batch, tile["I"]), ceil_div(dim, _FEW)
    launch(
        _minibatch_gradient_kernel, kernels * tiles * chunks,
        m, v, grad, out, out_m, batch, kernels, tiles, chunks, dim,
        *m.stride(), *((0, 0, 0) if v is None else v.stride()), *grad.stride(),
        DOUBLE=v is not None, WIDTH=ceil_div(dim, chunks), SINGLE=chunks == 1, **tile,
    )  # fmt: skip
    return out, out_m
