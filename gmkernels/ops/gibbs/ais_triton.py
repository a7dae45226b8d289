"""Triton kernel of annealed importance sampling: one program takes sixteen chains through the whole schedule.

The weights stream from the second-level cache, twice per temperature. Products are float32 throughout; a pass over the
fields of the hidden units gives the ratio of the two distributions and the draw. States lie in memory between passes.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gmkernels.core.triton_launch import ceil_div, launch
from gmkernels.core.triton_math import softplus

from .ais_reference import log_base
from .boltzmann_triton import logits, unit_word

_CHAINS, _COLS, _DEPTH, _WARPS = 16, 64, 32, 4


@triton.jit
def _product(state, weight, row, col, rows, cols, wide, step_row, step_col, chains, CHAINS: tl.constexpr,
             COLS: tl.constexpr, DEPTH: tl.constexpr):  # fmt: skip
    """(CHAINS, COLS) of states times weights: ``weight[i * step_row + j * step_col]``, i < rows, j < cols."""
    total = tl.zeros([CHAINS, COLS], tl.float32)
    for start in tl.range(0, rows, DEPTH):
        i = start + tl.arange(0, DEPTH)
        s = tl.load(
            state + row[:, None] * wide + i[None, :], mask=(row < chains)[:, None] & (i < rows)[None, :], other=0.0
        )
        place = i.to(tl.int64)[:, None] * step_row + col.to(tl.int64)[None, :] * step_col
        w = tl.load(weight + place, mask=(i < rows)[:, None] & (col < cols)[None, :], other=0.0)
        total = tl.dot(s, w, total, input_precision="ieee")
    return total


@triton.jit
def _ais_log_z_kernel(
    weight, visible_bias, hidden_bias, key, betas, base, start, v, h, out, log_base, visible, hidden, chains, steps, first,
    REVERSE: tl.constexpr, CHAINS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * CHAINS + tl.arange(0, CHAINS)
    real = row < chains
    chain = (row + first)[:, None]
    along = tl.zeros([CHAINS], tl.float32)  # v . (vb - a)
    for s in tl.range(0, visible, COLS):
        col = s + tl.arange(0, COLS)
        inside = col < visible
        keep = real[:, None] & inside[None, :]
        a = tl.load(base + col, mask=inside, other=0.0)
        if REVERSE:
            drawn = tl.load(start + row[:, None] * visible + col[None, :], mask=keep, other=0.0)
        else:
            limit = logits(unit_word(col.to(tl.int64)[None, :], chain, tl.program_id(0) * 0, key))
            drawn = tl.where(a[None, :] > limit, 1.0, 0.0)
        shift = tl.load(visible_bias + col, mask=inside, other=0.0) - a
        along += tl.sum(tl.where(keep, drawn * shift[None, :], 0.0), axis=1)
        tl.store(v + row[:, None] * visible + col[None, :], drawn, mask=keep)
    tl.debug_barrier()
    total = tl.zeros([CHAINS], tl.float64)
    for step in tl.range(1, steps):
        if REVERSE:
            old = tl.load(betas + (steps - step))
            now = tl.load(betas + (steps - 1 - step))
        else:
            old = tl.load(betas + step - 1)
            now = tl.load(betas + step)
        change = (now - old) * along
        for s in tl.range(0, hidden, COLS):
            col = s + tl.arange(0, COLS)
            inside = col < hidden
            keep = real[:, None] & inside[None, :]
            f = _product(v, weight, row, col, visible, hidden, visible, hidden, 1, chains, CHAINS, COLS, DEPTH)
            f += tl.load(hidden_bias + col, mask=inside, other=0.0)[None, :]
            change += tl.sum(tl.where(keep, softplus(now * f) - softplus(old * f), 0.0), axis=1)
            limit = logits(unit_word(col.to(tl.int64)[None, :], chain, 2 * step - 1, key))
            tl.store(h + row[:, None] * hidden + col[None, :], tl.where(now * f > limit, 1.0, 0.0), mask=keep)
        tl.debug_barrier()
        total += change.to(tl.float64)
        if step + 1 < steps:
            along = tl.zeros([CHAINS], tl.float32)
            for s in tl.range(0, visible, COLS):
                col = s + tl.arange(0, COLS)
                inside = col < visible
                keep = real[:, None] & inside[None, :]
                a = tl.load(base + col, mask=inside, other=0.0)
                shift = tl.load(visible_bias + col, mask=inside, other=0.0) - a
                f = _product(h, weight, row, col, hidden, visible, hidden, 1, hidden, chains, CHAINS, COLS, DEPTH)
                f = a[None, :] + now * (shift[None, :] + f)
                limit = logits(unit_word(col.to(tl.int64)[None, :], chain, 2 * step, key))
                drawn = tl.where(f > limit, 1.0, 0.0)
                along += tl.sum(tl.where(keep, drawn * shift[None, :], 0.0), axis=1)
                tl.store(v + row[:, None] * visible + col[None, :], drawn, mask=keep)
            tl.debug_barrier()
    if REVERSE:
        total = -total
    tl.store(out + row, (tl.load(log_base) + total).to(tl.float32), mask=real)


def ais_log_z(
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    key: Tensor,
    betas: Tensor,
    base_bias: Tensor,
    reverse_from: Tensor | None,
    chains: int,
    first: int,
) -> Tensor:
    (visible, hidden), out = weight.shape, weight.new_empty(chains)
    launch(
        _ais_log_z_kernel, ceil_div(chains, _CHAINS),
        weight.contiguous(), visible_bias.contiguous(), hidden_bias.contiguous(), key.contiguous(), betas.contiguous(),
        base_bias.contiguous(), None if reverse_from is None else reverse_from.contiguous(),
        weight.new_empty(chains, visible), weight.new_empty(chains, hidden), out, log_base(base_bias, hidden),
        visible, hidden, chains, betas.shape[0], first,
        warps=_WARPS, registers=255, REVERSE=reverse_from is not None, CHAINS=_CHAINS, COLS=_COLS, DEPTH=_DEPTH,
    )  # fmt: skip
    return out
