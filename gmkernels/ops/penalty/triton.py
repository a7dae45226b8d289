"""Triton kernels of the gradient penalty: interpolation, and norms with the direction in which the penalty grows.

A program takes a few samples and walks each in blocks of columns; the second walk, which scales the gradient, finds it
in the cache. Sums follow the C++ core to the last bit.
"""

from __future__ import annotations

from itertools import chain

import torch
import triton
import triton.language as tl
from torch import Tensor

from gmkernels.core.layout import contiguous_like, rows
from gmkernels.core.triton_launch import INT32_SAFE, ceil_div, launch, power_of_two, single
from gmkernels.core.triton_math import fold_lanes, philox4x32, uniform
from gmkernels.core.triton_rows import columns, read


@triton.jit
def _random_interpolate_kernel(
    a, b, key, out,
    a_b, a_o, a_i, b_b, b_o, b_i,
    batch, length, inner, blocks, first,
    FLAT: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) // blocks
    block = tl.program_id(0) - tile * blocks
    row = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col, inside, outer, place = columns(block, length, inner, COLS, FLAT, WIDE)
    keep = (row < batch)[:, None] & inside[None, :]
    element = row + first
    w0, w1, w2, w3 = philox4x32(element >> 2, tl.load(key), tl.load(key + 1))
    second, odd = (element & 2) != 0, (element & 1) != 0
    eps = uniform(tl.where(second, tl.where(odd, w3, w2), tl.where(odd, w1, w0)))[:, None]
    x = read(a, row, outer, place, a_b, a_o, a_i, keep, FLAT)
    y = read(b, row, outer, place, b_b, b_o, b_i, keep, FLAT)
    tl.store(out + (row * length)[:, None] + col[None, :], tl.fma(eps, x - y, y), mask=keep)


@triton.jit
def _norm_penalty_kernel(
    g, weight, out, penalty,
    g_b, g_o, g_i,
    batch, length, inner, target,
    FLAT: tl.constexpr, WIDE: tl.constexpr, SQUARE: tl.constexpr, ONE_SIDED: tl.constexpr, WEIGHT: tl.constexpr,
    DIRECTION: tl.constexpr, PENALTY: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS, COLS], tl.float32)
    for block in tl.range(0, tl.cdiv(length, COLS)):
        _col, inside, outer, place = columns(block, length, inner, COLS, FLAT, WIDE)
        v = read(g, row, outer, place, g_b, g_o, g_i, (row < batch)[:, None] & inside[None, :], FLAT)
        total += v * v
    squared = fold_lanes(total)
    if SQUARE:
        value = squared
        slope = tl.zeros_like(squared) + 2.0
    else:
        norm = tl.sqrt_rn(squared)
        excess = norm - target
        if ONE_SIDED:
            excess = tl.where(excess < 0.0, 0.0, excess)
        value = excess * excess
        slope = tl.where(norm == 0.0, 0.0, tl.div_rn(2.0 * excess, norm))
    if PENALTY:
        tl.store(penalty + row, value, mask=row < batch)
    if DIRECTION:
        if WEIGHT:
            slope = slope * tl.load(weight + row, mask=row < batch, other=0.0)
        for block in tl.range(0, tl.cdiv(length, COLS)):
            col, inside, outer, place = columns(block, length, inner, COLS, FLAT, WIDE)
            keep = (row < batch)[:, None] & inside[None, :]
            v = read(g, row, outer, place, g_b, g_o, g_i, keep, FLAT)
            tl.store(out + (row * length)[:, None] + col[None, :], slope[:, None] * v, mask=keep)


# Columns of a block: samples of a program. A critic sees few and long ones: one each keeps the device busy.
_TILES = {1: 128, 2: 64, 4: 32, 8: 16, 16: 8, 32: 4, 64: 2, 128: 1}
_WARPS = 4


def _geometry(sizes: tuple[int, int, int]) -> dict[str, int]:
    length = sizes[1] * sizes[2]
    cols = min(128, power_of_two(length))
    return {"FLAT": sizes[1] == 1, "WIDE": length > INT32_SAFE, "ROWS": _TILES[cols], "COLS": cols}


def random_interpolate(a: Tensor, b: Tensor, key: Tensor, first: int) -> Tensor:
    out = contiguous_like(a)
    if a.numel() == 0:
        return out
    sizes, strides, (a, b) = rows(a, b)
    tile, length = _geometry(sizes), sizes[1] * sizes[2]
    blocks = ceil_div(length, tile["COLS"])
    launch(
        _random_interpolate_kernel, ceil_div(sizes[0], tile["ROWS"]) * blocks,
        a, b, key.contiguous(), out, *chain(*strides), sizes[0], length, sizes[2], blocks, first, warps=_WARPS, **tile,
    )  # fmt: skip
    return out


def _norm_penalty(
    g: Tensor, weight: Tensor | None, direction: Tensor | None, penalty: Tensor | None, target: float, one_sided: bool
) -> None:
    if g.numel() == 0:
        if penalty is not None:
            excess = 0.0 - single(target)
            penalty.fill_(0.0 if one_sided else excess * excess)
        return
    sizes, strides, (g,) = rows(g)
    tile = _geometry(sizes)
    launch(
        _norm_penalty_kernel, ceil_div(sizes[0], tile["ROWS"]),
        g, g if weight is None else weight, g if direction is None else direction, g if penalty is None else penalty,
        *strides[0], sizes[0], sizes[1] * sizes[2], sizes[2], single(target),
        SQUARE=target == 0, ONE_SIDED=one_sided, WEIGHT=weight is not None, DIRECTION=direction is not None,
        PENALTY=penalty is not None, warps=_WARPS, **tile,
    )  # fmt: skip


def norm_penalty(g: Tensor, target: float, one_sided: bool) -> Tensor:
    penalty = g.new_empty(g.shape[0], dtype=torch.float32)
    _norm_penalty(g, None, None, penalty, target, one_sided)
    return penalty


def norm_penalty_backward(grad: Tensor, g: Tensor, target: float, one_sided: bool) -> Tensor:
    direction = contiguous_like(g)
    _norm_penalty(g, grad.contiguous(), direction, None, target, one_sided)
    return direction


def norm_penalty_gradient(g: Tensor, target: float, one_sided: bool) -> tuple[Tensor, Tensor]:
    penalty, direction = g.new_empty(g.shape[0], dtype=torch.float32), contiguous_like(g)
    _norm_penalty(g, None, direction, penalty, target, one_sided)
    return penalty, direction
