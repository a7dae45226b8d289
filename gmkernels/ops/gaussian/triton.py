"""Triton kernels of draws from Gaussian posteriors: one program takes a few samples, walking each in blocks of columns.

The noise of an element depends on its place in the stream alone. Where samples are a multiple of four elements long, a
counter is computed once for the four elements it serves, otherwise by each of them. Sums follow the C++ core to the
last bit: 128 running sums, one per position in a block of 128 logical elements, folded by halves at the end.
"""

from __future__ import annotations

from itertools import chain

import torch
import triton
import triton.language as tl
from torch import Tensor

from gmkernels.core.layout import rows
from gmkernels.core.triton_launch import INT32_SAFE, ceil_div, launch, power_of_two, single
from gmkernels.core.triton_math import exp, fold_lanes, normal_pair, philox4x32, uniform
from gmkernels.core.triton_rows import columns, read

from .likelihood_triton import (
    bernoulli_log_likelihood,
    bernoulli_log_likelihood_backward,
    bernoulli_log_likelihood_double_backward,
    gaussian_log_likelihood,
    gaussian_log_likelihood_backward,
    gaussian_log_likelihood_double_backward,
)

__all__ = [
    "bernoulli_log_likelihood",
    "bernoulli_log_likelihood_backward",
    "bernoulli_log_likelihood_double_backward",
    "gaussian_log_likelihood",
    "gaussian_log_likelihood_backward",
    "gaussian_log_likelihood_double_backward",
    "reparameterize_kl",
    "reparameterize_kl_backward",
    "reparameterize_kl_double_backward",
]


@triton.jit
def _noise(key, sample, block, col, length, COLS: tl.constexpr, FOURS: tl.constexpr, WIDE: tl.constexpr):
    """The normals of some samples (by logical index) and columns; FOURS: no counter serves two samples."""
    seed = tl.load(key)
    offset = tl.load(key + 1)
    if FOURS:
        group = tl.arange(0, COLS // 4)
        if WIDE:
            group = group + (tl.zeros([COLS // 4], tl.int64) + block) * (COLS // 4)
        else:
            group = group + block * (COLS // 4)
        counter = (sample * (length // 4))[:, None] + group.to(tl.int64)[None, :]
        a, b, c, d = philox4x32(counter, seed, offset)
        z0, z1 = normal_pair(uniform(a), uniform(b))
        z2, z3 = normal_pair(uniform(c), uniform(d))
        eps = tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), [sample.shape[0], COLS])
    else:
        element = (sample * length)[:, None] + col[None, :]
        a, b, c, d = philox4x32(element >> 2, seed, offset)
        second = (element & 2) != 0
        even, odd = normal_pair(uniform(tl.where(second, c, a)), uniform(tl.where(second, d, b)))
        eps = tl.where((element & 1) != 0, odd, even)
    return eps


@triton.jit
def _reparameterize_kl_kernel(
    mu, logvar, key, z, kl,
    m_b, m_o, m_i, v_b, v_o, v_i,
    batch, length, inner, first, beta, free_bits,
    FLAT: tl.constexpr, WIDE: tl.constexpr, FOURS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS, COLS], tl.float32)
    for block in tl.range(0, tl.cdiv(length, COLS)):
        col, inside, outer, place = columns(block, length, inner, COLS, FLAT, WIDE)
        keep = (row < batch)[:, None] & inside[None, :]
        m = read(mu, row, outer, place, m_b, m_o, m_i, keep, FLAT)
        v = read(logvar, row, outer, place, v_b, v_o, v_i, keep, FLAT)
        divergence = 0.5 * tl.fma(m, m, (exp(v) - 1.0) - v)
        divergence = tl.where(divergence < free_bits, free_bits, divergence)
        total += tl.where(keep, divergence, 0.0)
        eps = _noise(key, row + first, block, col, length, COLS, FOURS, WIDE)
        tl.store(z + (row * length)[:, None] + col[None, :], tl.fma(exp(0.5 * v), eps, m), mask=keep)
    tl.store(kl + row, beta * fold_lanes(total), mask=row < batch)


@triton.jit
def _reparameterize_kl_backward_kernel(
    g, l, mu, logvar, key, grad_mu, grad_logvar,
    g_b, g_o, g_i, m_b, m_o, m_i, v_b, v_o, v_i, l_b,
    batch, length, inner, blocks, first, beta, free_bits,
    FLAT: tl.constexpr, WIDE: tl.constexpr, FOURS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) // blocks
    block = tl.program_id(0) - tile * blocks
    row = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col, inside, outer, place = columns(block, length, inner, COLS, FLAT, WIDE)
    keep = (row < batch)[:, None] & inside[None, :]
    eps = _noise(key, row + first, block, col, length, COLS, FOURS, WIDE)
    g_ = read(g, row, outer, place, g_b, g_o, g_i, keep, FLAT)
    m = read(mu, row, outer, place, m_b, m_o, m_i, keep, FLAT)
    v = read(logvar, row, outer, place, v_b, v_o, v_i, keep, FLAT)
    l_ = (beta * tl.load(l + row * l_b, mask=row < batch, other=0.0))[:, None]
    variance = exp(v)
    live = tl.where(0.5 * tl.fma(m, m, (variance - 1.0) - v) < free_bits, 0.0, l_)
    out = (row * length)[:, None] + col[None, :]
    tl.store(grad_mu + out, tl.fma(live, m, g_), mask=keep)
    tl.store(grad_logvar + out, 0.5 * tl.fma(g_ * exp(0.5 * v), eps, live * (variance - 1.0)), mask=keep)


@triton.jit
def _reparameterize_kl_double_backward_kernel(
    v_mu, v_logvar, g, l, mu, logvar, key, grad_g, grad_l, grad_mu, grad_logvar,
    a_b, a_o, a_i, b_b, b_o, b_i, g_b, g_o, g_i, m_b, m_o, m_i, v_b, v_o, v_i, l_b,
    batch, length, inner, first, beta, free_bits,
    FLAT: tl.constexpr, WIDE: tl.constexpr, FOURS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    l_ = (beta * tl.load(l + row * l_b, mask=row < batch, other=0.0))[:, None]
    total = tl.zeros([ROWS, COLS], tl.float32)
    for block in tl.range(0, tl.cdiv(length, COLS)):
        col, inside, outer, place = columns(block, length, inner, COLS, FLAT, WIDE)
        keep = (row < batch)[:, None] & inside[None, :]
        eps = _noise(key, row + first, block, col, length, COLS, FOURS, WIDE)
        a = read(v_mu, row, outer, place, a_b, a_o, a_i, keep, FLAT)
        b = 0.5 * read(v_logvar, row, outer, place, b_b, b_o, b_i, keep, FLAT)
        g_ = read(g, row, outer, place, g_b, g_o, g_i, keep, FLAT)
        m = read(mu, row, outer, place, m_b, m_o, m_i, keep, FLAT)
        v = read(logvar, row, outer, place, v_b, v_o, v_i, keep, FLAT)
        variance = exp(v)
        held = 0.5 * tl.fma(m, m, (variance - 1.0) - v) < free_bits
        # The function differentiated is a (g + l m) + b (g s eps + l (s^2 - 1)), l = 0 where free bits hold.
        swing = b * exp(0.5 * v) * eps
        live = tl.where(held, 0.0, l_)
        out = (row * length)[:, None] + col[None, :]
        tl.store(grad_g + out, a + swing, mask=keep)
        tl.store(grad_mu + out, a * live, mask=keep)
        tl.store(grad_logvar + out, tl.fma(0.5 * g_, swing, b * variance * live), mask=keep)
        total += tl.where(keep, tl.where(held, 0.0, tl.fma(a, m, b * (variance - 1.0))), 0.0)
    tl.store(grad_l + row, beta * fold_lanes(total), mask=row < batch)


# Columns of a block: samples of a program. A counter and its four normals take many registers, so tiles are small.
_TILES = {1: 128, 2: 64, 4: 64, 8: 32, 16: 16, 32: 16, 64: 8, 128: 4}
_WARPS = 4


def _geometry(sizes: tuple[int, int, int]) -> dict[str, int]:
    length = sizes[1] * sizes[2]
    cols = min(128, power_of_two(length))
    return {
        "FLAT": sizes[1] == 1,
        "WIDE": length > INT32_SAFE,
        "FOURS": length % 4 == 0,
        "ROWS": _TILES[cols],
        "COLS": cols,
    }


def reparameterize_kl(
    mu: Tensor, logvar: Tensor, key: Tensor, beta: float, free_bits: float, first: int
) -> tuple[Tensor, Tensor]:
    z, kl = mu.new_empty(mu.shape), mu.new_empty(mu.shape[0], dtype=torch.float32)
    if mu.numel() == 0:
        return z, kl.zero_()
    sizes, strides, operands = rows(mu, logvar)
    tile = _geometry(sizes)
    launch(
        _reparameterize_kl_kernel, ceil_div(sizes[0], tile["ROWS"]),
        *operands, key.contiguous(), z, kl, *chain(*strides),
        sizes[0], sizes[1] * sizes[2], sizes[2], first, single(beta), single(free_bits), warps=_WARPS, **tile,
    )  # fmt: skip
    return z, kl


def reparameterize_kl_backward(
    grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, key: Tensor, beta: float, free_bits: float, first: int
) -> tuple[Tensor, Tensor]:
    grad_mu, grad_logvar = mu.new_empty(mu.shape), mu.new_empty(mu.shape)
    if mu.numel() == 0:
        return grad_mu, grad_logvar
    sizes, strides, (g, m, v) = rows(grad_z, mu, logvar)
    tile, length = _geometry(sizes), sizes[1] * sizes[2]
    blocks = ceil_div(length, tile["COLS"])
    launch(
        _reparameterize_kl_backward_kernel, ceil_div(sizes[0], tile["ROWS"]) * blocks,
        g, grad_kl, m, v, key.contiguous(), grad_mu, grad_logvar, *chain(*strides), grad_kl.stride(0),
        sizes[0], length, sizes[2], blocks, first, single(beta), single(free_bits), warps=_WARPS, **tile,
    )  # fmt: skip
    return grad_mu, grad_logvar


def reparameterize_kl_double_backward(
    grad_grad_mu: Tensor, grad_grad_logvar: Tensor, grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor,
    key: Tensor, beta: float, free_bits: float, first: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    out_z, out_mu, out_logvar = mu.new_empty(mu.shape), mu.new_empty(mu.shape), mu.new_empty(mu.shape)
    out_kl = mu.new_empty(mu.shape[0], dtype=torch.float32)
    if mu.numel() == 0:
        return out_z, out_kl.zero_(), out_mu, out_logvar
    sizes, strides, (a, b, g, m, v) = rows(grad_grad_mu, grad_grad_logvar, grad_z, mu, logvar)
    tile = _geometry(sizes)
    launch(
        _reparameterize_kl_double_backward_kernel, ceil_div(sizes[0], tile["ROWS"]),
        a, b, g, grad_kl, m, v, key.contiguous(), out_z, out_kl, out_mu, out_logvar,
        *chain(*strides), grad_kl.stride(0), sizes[0], sizes[1] * sizes[2], sizes[2], first,
        single(beta), single(free_bits), warps=_WARPS, **tile,
    )  # fmt: skip
    return out_z, out_kl, out_mu, out_logvar
