"""Triton kernels of the likelihoods: one program takes a few samples, and walks each in blocks of columns.

One kernel serves both distributions, with the logits or the mean as the location; an operand may be missing. Sums
follow the C++ core to the last bit, as everywhere: 128 running sums, folded by halves at the end.
"""

from __future__ import annotations

import math
from itertools import chain

import torch
import triton
import triton.language as tl
from torch import Tensor

from gmkernels.core.layout import one_batch, rows, shared_rows
from gmkernels.core.triton_launch import INT32_SAFE, ceil_div, launch, power_of_two
from gmkernels.core.triton_math import exp, fold_lanes, sigmoid, softplus
from gmkernels.core.triton_rows import columns, read

from .library import mean_dtype


@triton.jit
def _read_or(missing, data, row, outer, place, b, o, i, keep, FLAT: tl.constexpr):
    """An operand, or one number everywhere where there is none."""
    if data is None:
        value = tl.full(keep.shape, missing, tl.float32)
    else:
        value = read(data, row, outer, place, b, o, i, keep, FLAT)
    return value


@triton.jit
def _shared(row, samples, SHARED: tl.constexpr):
    """The row of an operand that has one for some samples in turn."""
    if SHARED:
        row = row // samples
    return row


@triton.jit
def _precision(v, logvar):
    return tl.full(v.shape, 1.0, tl.float32) if logvar is None else exp(-v)


@triton.jit
def _log_likelihood_kernel(
    x, location, logvar, weight, out,
    x_b, x_o, x_i, m_b, m_o, m_i, v_b, v_o, v_i, w_b, w_o, w_i,
    x_samples, w_samples, batch, length, inner,
    BERNOULLI: tl.constexpr, SHARED: tl.constexpr, FLAT: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS, COLS], tl.float32)
    for block in tl.range(0, tl.cdiv(length, COLS)):
        col, inside, outer, place = columns(block, length, inner, COLS, FLAT, WIDE)
        keep = (row < batch)[:, None] & inside[None, :]
        x_ = read(x, _shared(row, x_samples, SHARED), outer, place, x_b, x_o, x_i, keep, FLAT)
        m = _read_or(0.0, location, row, outer, place, m_b, m_o, m_i, keep, FLAT)
        w = _read_or(1.0, weight, _shared(row, w_samples, SHARED), outer, place, w_b, w_o, w_i, keep, FLAT)
        if BERNOULLI:
            size = tl.abs(m)
            term = -tl.fma(size, tl.where(m > 0.0, 1.0 - x_, x_), softplus(-size))
        else:
            v = _read_or(0.0, logvar, row, outer, place, v_b, v_o, v_i, keep, FLAT)
            r = x_ - m
            term = -0.5 * tl.fma(r * _precision(v, logvar), r, v + 1.8378770664093453)  # log(2 pi)
        total += tl.where(keep, w * term, 0.0)
    tl.store(out + row, fold_lanes(total), mask=row < batch)


@triton.jit
def _log_likelihood_backward_kernel(
    g, x, location, logvar, weight, grad_location, grad_logvar,
    x_b, x_o, x_i, m_b, m_o, m_i, v_b, v_o, v_i, w_b, w_o, w_i, g_b,
    x_samples, w_samples, batch, length, inner, blocks,
    BERNOULLI: tl.constexpr, SHARED: tl.constexpr, FLAT: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) // blocks
    row = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col, inside, outer, place = columns(tl.program_id(0) - tile * blocks, length, inner, COLS, FLAT, WIDE)
    keep = (row < batch)[:, None] & inside[None, :]
    x_ = read(x, _shared(row, x_samples, SHARED), outer, place, x_b, x_o, x_i, keep, FLAT)
    m = _read_or(0.0, location, row, outer, place, m_b, m_o, m_i, keep, FLAT)
    w = _read_or(1.0, weight, _shared(row, w_samples, SHARED), outer, place, w_b, w_o, w_i, keep, FLAT)
    gw = tl.load(g + row * g_b, mask=row < batch, other=0.0)[:, None] * w
    out = (row * length)[:, None] + col[None, :]
    if BERNOULLI:
        tl.store(grad_location + out, gw * (x_ - sigmoid(m)), mask=keep)
    else:
        v = _read_or(0.0, logvar, row, outer, place, v_b, v_o, v_i, keep, FLAT)
        r = x_ - m
        scaled = r * _precision(v, logvar)
        tl.store(grad_location + out, gw * scaled, mask=keep)
        if logvar is not None:
            tl.store(grad_logvar + out, gw * (0.5 * tl.fma(scaled, r, -1.0)), mask=keep)


@triton.jit
def _log_likelihood_double_backward_kernel(
    g, v_location, v_logvar, x, location, logvar, weight, grad_g, grad_location, grad_logvar,
    a_b, a_o, a_i, b_b, b_o, b_i, x_b, x_o, x_i, m_b, m_o, m_i, v_b, v_o, v_i, w_b, w_o, w_i, g_b,
    x_samples, w_samples, batch, length, inner,
    BERNOULLI: tl.constexpr, SHARED: tl.constexpr, FLAT: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    g_ = tl.load(g + row * g_b, mask=row < batch, other=0.0)[:, None]
    total = tl.zeros([ROWS, COLS], tl.float32)
    for block in tl.range(0, tl.cdiv(length, COLS)):
        col, inside, outer, place = columns(block, length, inner, COLS, FLAT, WIDE)
        keep = (row < batch)[:, None] & inside[None, :]
        a = read(v_location, row, outer, place, a_b, a_o, a_i, keep, FLAT)
        x_ = read(x, _shared(row, x_samples, SHARED), outer, place, x_b, x_o, x_i, keep, FLAT)
        m = _read_or(0.0, location, row, outer, place, m_b, m_o, m_i, keep, FLAT)
        w = _read_or(1.0, weight, _shared(row, w_samples, SHARED), outer, place, w_b, w_o, w_i, keep, FLAT)
        gw = g_ * w
        out = (row * length)[:, None] + col[None, :]
        if BERNOULLI:
            s = sigmoid(m)
            tl.store(grad_location + out, -gw * (s * sigmoid(-m) * a), mask=keep)
            term = a * (x_ - s)
        else:
            # The function differentiated is g w (a r p + b (r^2 p - 1) / 2).
            b = 0.5 * _read_or(0.0, v_logvar, row, outer, place, b_b, b_o, b_i, keep, FLAT)
            v = _read_or(0.0, logvar, row, outer, place, v_b, v_o, v_i, keep, FLAT)
            r = x_ - m
            p = _precision(v, logvar)
            scaled = r * p
            tl.store(grad_location + out, -gw * tl.fma(2.0 * b, scaled, a * p), mask=keep)
            if logvar is not None:
                tl.store(grad_logvar + out, -gw * scaled * tl.fma(b, r, a), mask=keep)
            term = tl.fma(a, scaled, b * tl.fma(scaled, r, -1.0))
        total += tl.where(keep, w * term, 0.0)
    tl.store(grad_g + row, fold_lanes(total), mask=row < batch)


# Columns of a block: samples of a program.
_TILES = {1: 256, 2: 128, 4: 64, 8: 32, 16: 16, 32: 16, 64: 8, 128: 4}
_WARPS = 4


def _operands(
    batch_dims: int, x: Tensor, weight: Tensor | None, *others: Tensor | None
) -> tuple[dict[str, int], tuple[int, ...], list[Tensor | None], list[int]]:
    """Tile; samples that have one row of x, and of the weight, with the shape (batch, length, inner); the operands, the
    weight last; and three strides of each. A missing operand has zeros.
    """
    x_rows, x_samples = shared_rows(x, batch_dims)
    w_rows, w_samples = (None, 1) if weight is None else shared_rows(weight, batch_dims)
    tensors = [*(None if t is None else one_batch(t, batch_dims) for t in others), w_rows]
    tensors.insert(len(others) - 2, x_rows)
    sizes, strides, present = rows(*[t for t in tensors if t is not None])
    length = sizes[1] * sizes[2]
    cols = min(128, power_of_two(length))
    shared = x_samples > 1 or w_samples > 1
    tile = {"SHARED": shared, "FLAT": sizes[1] == 1, "WIDE": length > INT32_SAFE, "ROWS": _TILES[cols], "COLS": cols}
    known = zip(present, strides, strict=True)
    pairs = [(None, (0, 0, 0)) if t is None else next(known) for t in tensors]
    shape = (x_samples, w_samples, math.prod(x.shape[:batch_dims]), length, sizes[2])
    return tile, shape, [t for t, _ in pairs], list(chain(*(s for _, s in pairs)))


def _forward(
    x: Tensor, location: Tensor | None, logvar: Tensor | None, weight: Tensor | None, batch_dims: int, bernoulli: bool
) -> Tensor:
    out = x.new_empty(x.shape[:batch_dims], dtype=torch.float32)
    if x.numel() == 0:
        return out.zero_()
    tile, shape, operands, strides = _operands(batch_dims, x, weight, location, logvar)
    launch(
        _log_likelihood_kernel, ceil_div(shape[2], tile["ROWS"]),
        *operands, out, *strides, *shape, BERNOULLI=bernoulli, warps=_WARPS, **tile,
    )  # fmt: skip
    return out


def _backward(
    grad: Tensor, x: Tensor, location: Tensor | None, logvar: Tensor | None, weight: Tensor | None, batch_dims: int,
    out: Tensor, out_logvar: Tensor | None,
) -> None:  # fmt: skip
    if x.numel() == 0:
        return
    grad = grad.reshape(-1)
    tile, shape, operands, strides = _operands(batch_dims, x, weight, location, logvar)
    blocks = ceil_div(shape[3], tile["COLS"])
    launch(
        _log_likelihood_backward_kernel, ceil_div(shape[2], tile["ROWS"]) * blocks,
        grad, *operands, out, out_logvar, *strides, grad.stride(0), *shape, blocks,
        BERNOULLI=out_logvar is None, warps=_WARPS, **tile,
    )  # fmt: skip


def _double_backward(
    v: Tensor, v_logvar: Tensor | None, grad: Tensor, x: Tensor, location: Tensor | None, logvar: Tensor | None,
    weight: Tensor | None, batch_dims: int, out: Tensor, out_logvar: Tensor | None,
) -> Tensor:  # fmt: skip
    out_grad = x.new_empty(x.shape[:batch_dims], dtype=torch.float32)
    if x.numel() == 0:
        return out_grad.zero_()
    grad = grad.reshape(-1)
    tile, shape, operands, strides = _operands(batch_dims, x, weight, v, v_logvar, location, logvar)
    launch(
        _log_likelihood_double_backward_kernel, ceil_div(shape[2], tile["ROWS"]),
        grad, *operands, out_grad, out, out_logvar, *strides, grad.stride(0), *shape,
        BERNOULLI=out_logvar is None, warps=_WARPS, **tile,
    )  # fmt: skip
    return out_grad


def bernoulli_log_likelihood(logits: Tensor, x: Tensor, weight: Tensor | None, batch_dims: int) -> Tensor:
    return _forward(x, logits, None, weight, batch_dims, True)


def bernoulli_log_likelihood_backward(
    grad: Tensor, logits: Tensor, x: Tensor, weight: Tensor | None, batch_dims: int
) -> Tensor:
    out = logits.new_empty(logits.shape)
    _backward(grad, x, logits, None, weight, batch_dims, out, None)
    return out


def bernoulli_log_likelihood_double_backward(
    grad_grad: Tensor, grad: Tensor, logits: Tensor, x: Tensor, weight: Tensor | None, batch_dims: int
) -> tuple[Tensor, Tensor]:
    out = logits.new_empty(logits.shape)
    return _double_backward(grad_grad, None, grad, x, logits, None, weight, batch_dims, out, None), out


def _gradients(x: Tensor, mean: Tensor | None, logvar: Tensor | None) -> tuple[Tensor, Tensor]:
    by_mean = x.new_empty(x.shape, dtype=mean_dtype(x, mean))
    return by_mean, x.new_empty(0) if logvar is None else logvar.new_empty(x.shape)


def gaussian_log_likelihood(
    x: Tensor, mean: Tensor | None, logvar: Tensor | None, weight: Tensor | None, batch_dims: int
) -> Tensor:
    return _forward(x, mean, logvar, weight, batch_dims, False)


def gaussian_log_likelihood_backward(
    grad: Tensor, x: Tensor, mean: Tensor | None, logvar: Tensor | None, weight: Tensor | None, batch_dims: int
) -> tuple[Tensor, Tensor]:
    out, out_logvar = _gradients(x, mean, logvar)
    _backward(grad, x, mean, logvar, weight, batch_dims, out, out_logvar)
    return out, out_logvar


def gaussian_log_likelihood_double_backward(
    grad_grad_mean: Tensor, grad_grad_logvar: Tensor, grad: Tensor, x: Tensor, mean: Tensor | None,
    logvar: Tensor | None, weight: Tensor | None, batch_dims: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    out, out_logvar = _gradients(x, mean, logvar)
    along = None if logvar is None else grad_grad_logvar
    by_grad = _double_backward(grad_grad_mean, along, grad, x, mean, logvar, weight, batch_dims, out, out_logvar)
    return by_grad, out, out_logvar
