"""Triton kernels of sequential sweeps and of Hopfield recall: one program takes one chain through all its sweeps.

The fields of a chain lie in memory of its own, which stays in the nearest cache; every 64 sweeps they are summed anew. A program looks at BLOCK units at once;
those that change are found one after the other, and each adds its row of the weights to all fields. Sums have the order
of the definition, so states have the bits of the C++ core.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gmkernels.core.triton_launch import launch, power_of_two
from gmkernels.core.triton_math import log, philox4x32

_WARPS = 4


@triton.jit
def unit_word(unit, chain, half_step, key):
    """The random word of each unit: unit and chain are int64 tensors that broadcast to each other."""
    offset = tl.load(key + 1)
    low = offset & 0xFFFFFFFF
    seed = tl.load(key) + (offset - low)
    counter = (unit >> 2) + (chain << 32)
    a, b, c, d = philox4x32(counter, seed, (low << 32) + half_step)
    lane = (unit & 3) + tl.zeros_like(counter)
    return tl.where(lane < 2, tl.where(lane == 0, a, b), tl.where(lane == 2, c, d))


@triton.jit
def logits(word):
    """log(u / (1 - u)) of the uniforms u = (word + 1/2) 2^-32."""
    up = word.to(tl.float32) + 0.5
    down = (word ^ 0xFFFFFFFF).to(tl.float32) + 0.5
    return log(tl.div_rn(up, down))


@triton.jit
def _sum_fields(field, state, weight, bias, units, SPIN: tl.constexpr, COLS: tl.constexpr):
    for start in tl.range(0, units, COLS):
        col = start + tl.arange(0, COLS)
        inside = col < units
        total = tl.load(bias + col, mask=inside, other=0.0)
        if SPIN:
            row = weight + col
            for _ in tl.range(0, units):
                total -= tl.load(row, mask=inside, other=0.0)
                row += units
        row = weight + col
        for first in tl.range(0, units, 4):
            four = tl.zeros([COLS], tl.float32)
            for k in tl.static_range(4):
                real = first + k < units
                change = tl.load(state + first + k, mask=real, other=-1.0 if SPIN else 0.0)
                if SPIN:
                    change += 1.0
                four += change * tl.load(row, mask=col < tl.where(real, units, 0), other=0.0)
                row += units
            total += four
        tl.store(field + col, total, mask=inside)
    tl.debug_barrier()


@triton.jit
def _add_row(field, row, by, units, COLS: tl.constexpr):
    tl.debug_barrier()  # all have read the fields of the block
    for start in tl.range(0, units, COLS):
        col = start + tl.arange(0, COLS)
        inside = col < units
        total = tl.load(field + col, mask=inside, other=0.0) + by * tl.load(row + col, mask=inside, other=0.0)
        tl.store(field + col, total, mask=inside)
    tl.debug_barrier()


@triton.jit
def _boltzmann_gibbs_kernel(
    x, weight, bias, key, beta, clamp, order, out, field, units, sweeps, first,
    SPIN: tl.constexpr, HELD: tl.constexpr, ORDERED: tl.constexpr, BLOCK: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    chain = tl.program_id(0).to(tl.int64)
    x += chain * units
    out += chain * units
    field += chain * units
    low: tl.constexpr = -1.0 if SPIN else 0.0
    slope = tl.load(beta + chain)
    if SPIN:
        slope = slope + slope
    for start in tl.range(0, units, COLS):
        col = start + tl.arange(0, COLS)
        tl.store(out + col, tl.load(x + col, mask=col < units, other=0.0), mask=col < units)
    tl.debug_barrier()
    lane = tl.arange(0, BLOCK)
    for sweep in tl.range(0, sweeps):
        if sweep % 64 == 0:
            _sum_fields(field, out, weight, bias, units, SPIN, COLS)
        for start in tl.range(0, units, BLOCK):
            unit = start + lane
            free = unit < units
            named = unit.to(tl.int64)
            if ORDERED:
                named = tl.load(order + unit, mask=unit < units, other=0)
            limit = logits(unit_word(named, chain + first, sweep, key))
            if HELD:
                free = free & (tl.load(clamp + chain * units + unit, mask=unit < units, other=1) == 0)
            state = tl.load(out + unit, mask=unit < units, other=low)
            wanted = tl.where(slope * tl.load(field + unit, mask=unit < units, other=0.0) > limit, 1.0, low)
            at = tl.min(tl.where(free & (wanted != state), lane, BLOCK), axis=0)
            while at < BLOCK:
                new = tl.sum(tl.where(lane == at, wanted, 0.0), axis=0)
                by = new - tl.sum(tl.where(lane == at, state, 0.0), axis=0)
                state = tl.where(lane == at, new, state)
                _add_row(field, weight + (start + at).to(tl.int64) * units, by, units, COLS)
                wanted = tl.where(slope * tl.load(field + unit, mask=unit < units, other=0.0) > limit, 1.0, low)
                at = tl.min(tl.where(free & (wanted != state) & (lane > at), lane, BLOCK), axis=0)
            tl.store(out + unit, state, mask=unit < units)
        tl.debug_barrier()


@triton.jit
def _recalled(field, state):
    return tl.where(field > 0.0, 1.0, tl.where(field < 0.0, -1.0, state))


@triton.jit
def _hopfield_recall_kernel(
    x, weight, bias, out, field, used, units, sweeps, BLOCK: tl.constexpr, COLS: tl.constexpr
):  # fmt: skip
    chain = tl.program_id(0).to(tl.int64)
    x += chain * units
    out += chain * units
    field += chain * units
    for start in tl.range(0, units, COLS):
        col = start + tl.arange(0, COLS)
        tl.store(out + col, tl.load(x + col, mask=col < units, other=0.0), mask=col < units)
    tl.debug_barrier()
    lane = tl.arange(0, BLOCK)
    sweep = tl.program_id(0) * 0
    count = sweep
    going = sweep < sweeps
    while going:
        if sweep % 64 == 0:
            _sum_fields(field, out, weight, bias, units, True, COLS)
        for start in tl.range(0, units, BLOCK):
            unit = start + lane
            inside = unit < units
            state = tl.load(out + unit, mask=inside, other=1.0)
            wanted = _recalled(tl.load(field + unit, mask=inside, other=0.0), state)
            at = tl.min(tl.where(wanted != state, lane, BLOCK), axis=0)
            while at < BLOCK:
                new = tl.sum(tl.where(lane == at, wanted, 0.0), axis=0)
                state = tl.where(lane == at, new, state)
                _add_row(field, weight + (start + at).to(tl.int64) * units, new + new, units, COLS)
                wanted = _recalled(tl.load(field + unit, mask=inside, other=0.0), state)
                at = tl.min(tl.where((wanted != state) & (lane > at), lane, BLOCK), axis=0)
                count = sweep + 1
            tl.store(out + unit, state, mask=inside)
        tl.debug_barrier()
        sweep += 1
        going = (count == sweep) & (sweep < sweeps)
    tl.store(used + chain, count.to(tl.int64))


def _tile(units: int) -> dict[str, int]:
    return {"BLOCK": 32, "COLS": max(32, min(1024, power_of_two(units)))}


def boltzmann_gibbs(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    key: Tensor,
    beta: Tensor,
    clamp: Tensor | None,
    order: Tensor | None,
    sweeps: int,
    first: int,
    spin: bool,
) -> Tensor:
    turned = x.new_empty(x.shape)
    if x.numel() == 0:
        return turned
    if order is not None:
        x, weight, bias = x[:, order], weight[order][:, order], bias[order]
        clamp = None if clamp is None else clamp[:, order]
    out = turned if order is None else x.new_empty(x.shape)
    held = None if clamp is None else clamp.contiguous().view(torch.uint8)
    launch(
        _boltzmann_gibbs_kernel, x.shape[0],
        x.contiguous(), weight.contiguous(), bias.contiguous(), key.contiguous(), beta.contiguous(), held,
        None if order is None else order.contiguous(), out, x.new_empty(x.shape), x.shape[1], sweeps, first,
        warps=_WARPS, SPIN=spin, HELD=held is not None, ORDERED=order is not None, **_tile(x.shape[1]),
    )  # fmt: skip
    if order is not None:
        turned[:, order] = out
    return turned


def hopfield_recall(x: Tensor, weight: Tensor, bias: Tensor, max_sweeps: int) -> tuple[Tensor, Tensor]:
    out, used = x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=torch.int64)
    if x.numel() == 0:
        return out, used.zero_()
    launch(
        _hopfield_recall_kernel, x.shape[0],
        x.contiguous(), weight.contiguous(), bias.contiguous(), out, x.new_empty(x.shape), used, x.shape[1], max_sweeps,
        warps=_WARPS, **_tile(x.shape[1]),
    )  # fmt: skip
    return out, used
