"""Triton kernels of minibatch discrimination: one program takes a kernel b and a tile of samples i, and walks all j.

A tile of pairs has the samples i along the lanes of a warp and the samples j inside a thread, so that every sum over j
stays in a thread's own registers: nothing is exchanged between threads, and no pair is written to memory. Distances are
rebuilt in backward and double backward.
"""

from __future__ import annotations

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
def _own(data, i, stride, stride_c, count, WIDTH: tl.constexpr):
    """The first WIDTH coordinates of the samples i, to stay in registers."""
    coordinates = ()
    for c in tl.static_range(WIDTH):
        coordinates = coordinates + (_coordinate(data, i, c, stride, stride_c, count)[None, :],)
    return coordinates


@triton.jit
def _sign(d):
    return tl.where(d > 0.0, 1.0, tl.where(d < 0.0, -1.0, 0.0))


@triton.jit
def _minibatch_kernel(
    m, out, batch, kernels, tiles, dim, stride_i, stride_b, stride_c,
    WIDTH: tl.constexpr, WHOLE: tl.constexpr, I: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """o_i = sum_j e. A program holds WIDTH coordinates of its samples, all there are if WHOLE."""
    b = (tl.program_id(0) // tiles).to(tl.int64)
    i = (tl.program_id(0) % tiles) * I + tl.arange(0, I)
    m += b * stride_b
    own = _own(m, i, stride_i, stride_c, batch, WIDTH)
    total = tl.zeros([I], tl.float32)
    for tile in tl.range(0, tl.cdiv(batch, J), num_stages=1):
        j = tile * J + tl.arange(0, J)
        distance = tl.zeros([J, I], tl.float32)
        for c in tl.static_range(WIDTH):
            distance += tl.abs(own[c] - _coordinate(m, j, c, stride_i, stride_c, batch)[:, None])
        if not WHOLE:
            for c in tl.range(WIDTH, dim, num_stages=1):
                m_i = _coordinate(m, i, c, stride_i, stride_c, batch)[None, :]
                distance += tl.abs(m_i - _coordinate(m, j, c, stride_i, stride_c, batch)[:, None])
        pair = (j < batch)[:, None] & (j[:, None] != i[None, :])
        total += tl.sum(tl.where(pair, exp(-distance), 0.0), axis=0)
    tl.store(out + i.to(tl.int64) * kernels + b, total, mask=i < batch)


@triton.jit
def _minibatch_gradient_kernel(
    m, v, grad, out, out_m, batch, kernels, tiles, chunks, dim,
    stride_i, stride_b, stride_c, v_i, v_b, v_c, g_i, g_b,
    DOUBLE: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr, I: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """First derivative dM_i = -sum_j (g_i + g_j) e s, or its tangent along v, in which e turns into -e p.

    A program sums for WIDTH coordinates, all there are if WHOLE; else each chunk of coordinates has its own programs,
    which all rebuild the distances.
    """
    chunk = tl.program_id(0) % chunks
    rest = tl.program_id(0) // chunks
    b = (rest // tiles).to(tl.int64)
    i = (rest % tiles) * I + tl.arange(0, I)
    m += b * stride_b
    grad += b * g_b
    g = tl.load(grad + i.to(tl.int64) * g_i, mask=i < batch, other=0.0).to(tl.float32)[None, :]
    own = _own(m, i, stride_i, stride_c, batch, WIDTH)
    if DOUBLE:
        v += b * v_b
        own_v = _own(v, i, v_i, v_c, batch, WIDTH)
    total = tl.zeros([I], tl.float32)
    sums = ()
    for _ in tl.static_range(WIDTH):
        sums = sums + (tl.zeros([I], tl.float32),)
    for tile in tl.range(0, tl.cdiv(batch, J), num_stages=1):
        j = tile * J + tl.arange(0, J)
        distance = tl.zeros([J, I], tl.float32)
        p = tl.zeros([J, I], tl.float32)
        for c in tl.static_range(WIDTH):
            d = own[c] - _coordinate(m, j, c, stride_i, stride_c, batch)[:, None]
            distance += tl.abs(d)
            if DOUBLE:
                p = tl.fma(_sign(d), own_v[c] - _coordinate(v, j, c, v_i, v_c, batch)[:, None], p)
        if not WHOLE:
            for c in tl.range(WIDTH, dim, num_stages=1):
                m_i = _coordinate(m, i, c, stride_i, stride_c, batch)[None, :]
                d = m_i - _coordinate(m, j, c, stride_i, stride_c, batch)[:, None]
                distance += tl.abs(d)
                if DOUBLE:
                    along_i = _coordinate(v, i, c, v_i, v_c, batch)[None, :]
                    p = tl.fma(_sign(d), along_i - _coordinate(v, j, c, v_i, v_c, batch)[:, None], p)
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
            if WHOLE:
                d = own[k] - _coordinate(m, j, k, stride_i, stride_c, batch)[:, None]
            else:
                c = tl.minimum(chunk * WIDTH + k, dim - 1)
                m_i = _coordinate(m, i, c, stride_i, stride_c, batch)[None, :]
                d = m_i - _coordinate(m, j, c, stride_i, stride_c, batch)[:, None]
            added = added + (sums[k] + tl.sum(weight * _sign(d), axis=0),)
        sums = added
    rows = i.to(tl.int64) * kernels + b
    start = tl.zeros([1], tl.int32) + chunk * WIDTH
    if DOUBLE:
        tl.store(out + rows, total, mask=(i < batch) & (start == 0))
    for k in tl.static_range(WIDTH):
        c = start + k
        tl.store(out_m + rows * dim + c, sums[k], mask=(i < batch) & (c < dim))


# Up to so many coordinates a program holds them all; beyond, distances are rebuilt for each chunk of WIDTH.
_WHOLE, _WIDTH = 64, 32
# (samples i, samples j, warps) of a tile by the size of the batch and by whether there are few coordinates, which leave
# registers for two samples i in a thread.
_FEW_COORDINATES = 16
_SMALL, _LARGE = {True: (32, 16, 1), False: (32, 8, 1)}, {True: (128, 8, 2), False: (64, 8, 2)}
_TILES = {80: {"small": _SMALL, "large": _LARGE}, 90: {"small": _SMALL, "large": _LARGE}}
_SMALL_BATCH = 512


def _tile(m: Tensor) -> tuple[dict[str, int], int]:
    """Constants of a launch, and its chunks of coordinates."""
    batch, _, dim = m.shape
    bucket = _TILES[architecture(m)]["small" if batch <= _SMALL_BATCH else "large"]
    i, j, warps = bucket[dim <= _FEW_COORDINATES]
    whole = dim <= _WHOLE
    width = dim if whole else _WIDTH
    return {"WIDTH": width, "WHOLE": whole, "I": i, "J": j, "warps": warps}, 1 if whole else ceil_div(dim, width)


def minibatch_discrimination(m: Tensor) -> Tensor:
    batch, kernels, dim = m.shape
    out = m.new_empty(batch, kernels)
    if out.numel() == 0:
        return out
    tile, _ = _tile(m)
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
    tile, chunks = _tile(m)
    tiles = ceil_div(batch, tile["I"])
    launch(
        _minibatch_gradient_kernel, kernels * tiles * chunks,
        m, v, grad, out, out_m, batch, kernels, tiles, chunks, dim,
        *m.stride(), *((0, 0, 0) if v is None else v.stride()), *grad.stride(),
        DOUBLE=v is not None, **tile,
    )  # fmt: skip
    return out, out_m
