"""Triton kernels of restricted Boltzmann machines: one program takes a few chains through all their steps.

The weights stream from the second-level cache, twice a step; product, bias, threshold and random words are one pass, and
the states alone go to memory between the two halves. In fixed point the weights are two float16 planes of eight bits:
products with states are exact, sums of a tile are exact in float32, and tiles are added in integers.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gmkernels.core.triton_launch import ceil_div, launch, power_of_two
from gmkernels.core.triton_math import fold_lanes, normal_pair, philox4x32, sigmoid, softplus, uniform

from .reference import fixed_point

# (chains, drawn units, given units) of a tile, and its warps. A program of many chains reads the weights less often.
_TILE, _WIDE_TILE, _WARPS = (16, 64, 32), (64, 64, 32), 4
_MANY_CHAINS = 4096


@triton.jit
def _words(key, chain, group, half_step):
    """The four words of counters (chain, group)."""
    offset = tl.load(key + 1)
    low = offset & 0xFFFFFFFF
    return philox4x32(group + (chain << 32), tl.load(key) + (offset - low), (low << 32) + half_step)


@triton.jit
def _in_order(a, b, c, d):
    """Four values of each group, unit by unit."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [a.shape[0], 4 * a.shape[1]])


@triton.jit
def _on(x, word):
    """``word < floor(2^32 sigmoid(x))``: the steps of on_single() in the definition, one by one."""
    t = tl.minimum(tl.abs(x), 30.0) * 1.4426950216293335
    magic = t + 12582912.0
    f = t - (magic - 12582912.0)
    e = f * -0.001326472731307149 + 0.009671512991189957
    e = e * f + -0.05550733581185341
    e = e * f + 0.24022242426872253
    e = e * f + -0.6931470036506653
    e = e * f + 1.0
    e = (e.to(tl.int32, bitcast=True) - (magic.to(tl.int32, bitcast=True) << 23)).to(tl.float32, bitcast=True)
    likely = x >= 0.0
    word = tl.where(likely, word ^ 0xFFFFFFFF, word).to(tl.uint32)
    rare = (word.to(tl.float32) + 1.0) * (e + 1.0) <= e * 4294967296.0
    return rare != likely


@triton.jit
def _field(
    given, weight, low, bias, row, unit, chains, n_given, n_drawn, step_given, step_drawn,
    FIXED: tl.constexpr, CHAINS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Bias plus states times weights, (CHAINS, UNITS); in FIXED point an integer, still unscaled."""
    inside = unit < n_drawn
    total = tl.zeros([CHAINS, UNITS], tl.int32 if FIXED else tl.float32)
    for start in tl.range(0, n_given, DEPTH):
        i = start + tl.arange(0, DEPTH)
        keep = (row < chains)[:, None] & (i < n_given)[None, :]
        s = tl.load(given + row[:, None] * n_given + i[None, :], mask=keep, other=0.0)
        place = i.to(tl.int64)[:, None] * step_given + unit.to(tl.int64)[None, :] * step_drawn
        there = (i < n_given)[:, None] & inside[None, :]
        w = tl.load(weight + place, mask=there, other=0.0)
        if FIXED:
            on = s.to(tl.float16)
            total += tl.dot(on, w).to(tl.int32) * 256
            total += tl.dot(on, tl.load(low + place, mask=there, other=0.0)).to(tl.int32)
        else:
            total = tl.dot(s, w, total, input_precision="ieee")
    b = tl.load(bias + unit, mask=inside, other=0.0)
    return (total + b[None, :]).to(tl.float32)


@triton.jit
def _half_step(
    given, drawn, weight, low, bias, key, scale, clamp, row, first, half_step, chains, n_given, n_drawn,
    step_given, step_drawn, clamp_step, FIXED: tl.constexpr, NORMAL: tl.constexpr, HELD: tl.constexpr,
    CHAINS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    beta = tl.load(scale + row, mask=row < chains, other=1.0)[:, None]
    for start in tl.range(0, n_drawn, UNITS):
        unit = start + tl.arange(0, UNITS)
        field = _field(
            given, weight, low, bias, row, unit, chains, n_given, n_drawn, step_given, step_drawn,
            FIXED, CHAINS, UNITS, DEPTH,
        )  # fmt: skip
        group = (start // 4 + tl.arange(0, UNITS // 4)).to(tl.int64)
        a, b, c, d = _words(key, (row + first)[:, None], group[None, :], half_step)
        if NORMAL:
            value = _gaussian(field, beta, a, b, c, d)
        else:
            value = tl.where(_on(field * beta, _in_order(a, b, c, d)), 1.0, 0.0)
        place = drawn + row[:, None] * n_drawn + unit[None, :]
        keep = (row < chains)[:, None] & (unit < n_drawn)[None, :]
        if HELD:
            held = tl.load(clamp + row[:, None] * clamp_step + unit[None, :], mask=keep, other=1)
            keep = keep & (held == 0)
        tl.store(place, value, mask=keep)
    tl.debug_barrier()  # what one thread has stored the others will load


@triton.jit
def _gaussian(mean, beta, a, b, c, d):
    z0, z1 = normal_pair(uniform(a), uniform(b))
    z2, z3 = normal_pair(uniform(c), uniform(d))
    return tl.fma(_in_order(z0, z1, z2, z3), tl.div_rn(1.0, tl.sqrt_rn(beta)) + tl.zeros_like(mean), mean)


@triton.jit
def _rbm_gibbs_kernel(
    v, h, weight, low, visible_bias, hidden_bias, key, scale, clamp, halves, first, chains, visible, hidden, clamp_step,
    FIXED: tl.constexpr, GAUSSIAN: tl.constexpr, HELD: tl.constexpr,
    CHAINS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * CHAINS + tl.arange(0, CHAINS)
    for half in tl.range(0, halves):
        if half % 2 == 0:
            _half_step(
                v, h, weight, low, hidden_bias, key, scale, clamp, row, first, half, chains, visible, hidden,
                hidden, 1, clamp_step, FIXED, False, False, CHAINS, UNITS, DEPTH,
            )  # fmt: skip
        else:
            _half_step(
                h, v, weight, low, visible_bias, key, scale, clamp, row, first, half, chains, hidden, visible,
                1, hidden, clamp_step, FIXED, GAUSSIAN, HELD, CHAINS, UNITS, DEPTH,
            )  # fmt: skip


@triton.jit
def _rbm_conditional_kernel(
    given, sample, mean, weight, bias, key, scale, tiles, half_step, first, chains, n_given, n_drawn,
    step_given, step_drawn, GAUSSIAN: tl.constexpr, CHAINS: tl.constexpr, UNITS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) // tiles
    start = (tl.program_id(0) - tile * tiles) * UNITS
    row = tile.to(tl.int64) * CHAINS + tl.arange(0, CHAINS)
    unit = start + tl.arange(0, UNITS)
    field = _field(
        given, weight, weight, bias, row, unit, chains, n_given, n_drawn, step_given, step_drawn,
        False, CHAINS, UNITS, DEPTH,
    )  # fmt: skip
    beta = tl.load(scale + row, mask=row < chains, other=1.0)[:, None]
    group = (start // 4 + tl.arange(0, UNITS // 4)).to(tl.int64)
    a, b, c, d = _words(key, (row + first)[:, None], group[None, :], half_step)
    if GAUSSIAN:
        expected = field
        value = _gaussian(field, beta, a, b, c, d)
    else:
        expected = sigmoid(field * beta)
        value = tl.where(_on(field * beta, _in_order(a, b, c, d)), 1.0, 0.0)
    place = row[:, None] * n_drawn + unit[None, :]
    keep = (row < chains)[:, None] & (unit < n_drawn)[None, :]
    tl.store(mean + place, expected, mask=keep)
    tl.store(sample + place, value, mask=keep)


def _doubt(*parameters: Tensor) -> Tensor | float:
    """0, or NaN if a parameter is not finite; the host does not wait for it."""
    return sum(t.abs().amax() * 0.0 for t in parameters if t.numel())


def _named(tile: tuple[int, int, int]) -> dict[str, int]:
    return dict(zip(("CHAINS", "UNITS", "DEPTH"), tile, strict=True))


def rbm_gibbs(
    v: Tensor,
    weight: Tensor,
    visible_bias: Tensor,
    hidden_bias: Tensor,
    key: Tensor,
    beta: Tensor | None,
    clamp: Tensor | None,
    steps: int,
    first: int,
    gaussian: bool,
    fixed: bool,
) -> tuple[Tensor, Tensor]:
    (chains, visible), hidden = v.shape, weight.shape[1]
    out_h = v.new_empty(chains, hidden)
    out_v = v.new_empty(v.shape).copy_(v if gaussian else v != 0)
    scale = v.new_ones(chains) if beta is None else beta
    w, low, vb, hb = weight.contiguous(), weight, visible_bias.contiguous(), hidden_bias.contiguous()
    if fixed:
        integers, vb, hb, bits = fixed_point(weight, visible_bias, hidden_bias)
        scale = scale * torch.ldexp(v.new_ones(()), -bits)
        high = (integers + 128) >> 8  # so that the low plane is from -128 to 127
        w, low = high.to(torch.float16), (integers - 256 * high).to(torch.float16)
        vb, hb = vb.to(torch.int32), hb.to(torch.int32)
    held = None if clamp is None else clamp.contiguous().view(torch.uint8)
    tile = _named(_WIDE_TILE if chains >= _MANY_CHAINS else _TILE)
    launch(
        _rbm_gibbs_kernel, ceil_div(chains, tile["CHAINS"]),
        out_v, out_h, w, low.contiguous(), vb, hb, key.contiguous(), scale.contiguous(), held, max(2 * steps, 1), first,
        chains, visible, hidden, 0 if clamp is None or clamp.dim() == 1 else visible,
        FIXED=fixed, GAUSSIAN=gaussian, HELD=clamp is not None, warps=_WARPS, registers=255, **tile,
    )  # fmt: skip
    doubt = _doubt(weight, visible_bias, hidden_bias)
    return out_v.add_(doubt), out_h.add_(doubt)


def rbm_conditional(
    given: Tensor,
    weight: Tensor,
    bias: Tensor,
    key: Tensor,
    beta: Tensor | None,
    first: int,
    to_visible: bool,
    gaussian: bool,
) -> tuple[Tensor, Tensor]:
    chains, n_given, n_drawn, hidden = *given.shape, bias.shape[0], weight.shape[1]
    sample, mean = given.new_empty(chains, n_drawn), given.new_empty(chains, n_drawn)
    scale = given.new_ones(chains) if beta is None else beta.contiguous()
    tile = _named(_TILE)
    tiles = ceil_div(n_drawn, tile["UNITS"])
    launch(
        _rbm_conditional_kernel, ceil_div(chains, tile["CHAINS"]) * tiles,
        given.contiguous(), sample, mean, weight.contiguous(), bias.contiguous(), key.contiguous(), scale,
        tiles, int(to_visible), first, chains, n_given, n_drawn, *((1, hidden) if to_visible else (hidden, 1)),
        GAUSSIAN=gaussian, warps=_WARPS, registers=255, **tile,
    )  # fmt: skip
    doubt = _doubt(weight, bias)
    return sample.add_(doubt), mean


# ---- the free energy -------------------------------------------------------------------------------------------------


@triton.jit
def _rbm_softplus_sum_kernel(field, out, batch, units, ROWS: tl.constexpr, COLS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS, COLS], tl.float32)
    for start in tl.range(0, units, COLS):
        col = start + tl.arange(0, COLS)
        keep = (row < batch)[:, None] & (col < units)[None, :]
        x = tl.load(field + row[:, None] * units + col[None, :], mask=keep, other=0.0).to(tl.float32)
        total += tl.where(keep, softplus(x), 0.0)
    tl.store(out + row, fold_lanes(total), mask=row < batch)


@triton.jit
def _rbm_softplus_sum_backward_kernel(
    grad, field, v, out, out_field, batch, units, DOUBLE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    g = tl.load(grad + row, mask=row < batch, other=0.0)[:, None]
    total = tl.zeros([ROWS, COLS], tl.float32)
    for start in tl.range(0, units, COLS):
        col = start + tl.arange(0, COLS)
        keep = (row < batch)[:, None] & (col < units)[None, :]
        place = row[:, None] * units + col[None, :]
        x = tl.load(field + place, mask=keep, other=0.0).to(tl.float32)
        likely = sigmoid(x)
        if DOUBLE:
            along = tl.load(v + place, mask=keep, other=0.0).to(tl.float32)
            total += tl.where(keep, along * likely, 0.0)
            value = g * along * (likely * sigmoid(-x))
        else:
            value = g * likely
        tl.store(out_field + place, value, mask=keep)
    if DOUBLE:
        tl.store(out + row, fold_lanes(total), mask=row < batch)


def _rows(field: Tensor) -> tuple[int, dict[str, Any]]:
    """Programs, and the tile: 128 columns, as in the C++ core, so that sums have one order."""
    rows = min(4, power_of_two(field.shape[0]))
    return ceil_div(field.shape[0], rows), {"ROWS": rows, "COLS": 128, "warps": _WARPS}


def rbm_softplus_sum(field: Tensor) -> Tensor:
    out = field.new_empty(field.shape[0], dtype=torch.float32)
    programs, tile = _rows(field)
    launch(_rbm_softplus_sum_kernel, programs, field.contiguous(), out, *field.shape, **tile)
    return out


def rbm_softplus_sum_backward(grad: Tensor, field: Tensor) -> Tensor:
    return _gradient(None, grad, field)[1]


def rbm_softplus_sum_double_backward(grad_grad: Tensor, grad: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
    return _gradient(grad_grad.contiguous(), grad, field)


def _gradient(v: Tensor | None, grad: Tensor, field: Tensor) -> tuple[Tensor, Tensor]:
    out = field.new_empty(field.shape[0], dtype=torch.float32)
    out_field = field.new_empty(field.shape)
    programs, tile = _rows(field)
    launch(
        _rbm_softplus_sum_backward_kernel, programs, grad.contiguous(), field.contiguous(), v, out, out_field,
        *field.shape, DOUBLE=v is not None, **tile,
    )  # fmt: skip
    return out, out_field
