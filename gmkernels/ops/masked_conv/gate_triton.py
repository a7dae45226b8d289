"""Triton kernels of the gate: one program takes a block of columns of a few samples. The C++ core has the same bits."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from gmkernels.core.triton_launch import INT32_SAFE, ceil_div, launch, power_of_two
from gmkernels.core.triton_math import sigmoid, tanh
from gmkernels.core.triton_rows import columns, read

from .halves import Operand, arrange
from .library import like


@triton.jit
def _gate_kernel(
    a, b, cond_a, cond_b, grad, v_a, v_b, out, out_a, out_b,
    a_b, a_o, a_i, b_b, b_o, b_i, ca_b, ca_o, ca_i, cb_b, cb_o, cb_i, g_b, g_o, g_i, va_b, va_o, va_i, vb_b, vb_o, vb_i,
    o_b, o_o, oa_b, oa_o, ob_b, ob_o,
    batch, length, inner, blocks,
    COND: tl.constexpr, ORDER: tl.constexpr, FLAT: tl.constexpr, WIDE: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """The gate, its gradient (ORDER 1), or the gradient of <v, gradient> (ORDER 2)."""
    tile = tl.program_id(0) // blocks
    block = tl.program_id(0) - tile * blocks
    row = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    _col, inside, outer, place = columns(block, length, inner, COLS, FLAT, WIDE)
    keep = (row < batch)[:, None] & inside[None, :]
    x = read(a, row, outer, place, a_b, a_o, a_i, keep, FLAT)
    y = read(b, row, outer, place, b_b, b_o, b_i, keep, FLAT)
    if COND:
        x += read(cond_a, row, outer, place, ca_b, ca_o, ca_i, keep, FLAT)
        y += read(cond_b, row, outer, place, cb_b, cb_o, cb_i, keep, FLAT)
    t = tanh(x)
    s = sigmoid(y)
    if ORDER == 0:
        tl.store(out + (row * o_b)[:, None] + (outer * o_o + place)[None, :], t * s, mask=keep)
    else:
        g = read(grad, row, outer, place, g_b, g_o, g_i, keep, FLAT)
        dt = tl.fma(-t, t, 1.0)
        ds = tl.fma(-s, s, s)
        if ORDER == 1:
            by_a = g * (s * dt)
            by_b = g * (t * ds)
        else:
            va = read(v_a, row, outer, place, va_b, va_o, va_i, keep, FLAT)
            vb = read(v_b, row, outer, place, vb_b, vb_o, vb_i, keep, FLAT)
            by_a = g * dt * tl.fma(-2.0 * t * s, va, ds * vb)
            by_b = g * ds * tl.fma(t * tl.fma(s, -2.0, 1.0), vb, dt * va)
            by_g = tl.fma(s * dt, va, t * ds * vb)
            tl.store(out + (row * o_b)[:, None] + (outer * o_o + place)[None, :], by_g, mask=keep)
        tl.store(out_a + (row * oa_b)[:, None] + (outer * oa_o + place)[None, :], by_a, mask=keep)
        tl.store(out_b + (row * ob_b)[:, None] + (outer * ob_o + place)[None, :], by_b, mask=keep)


def gate(order: int, x: Tensor, *others: Tensor | None) -> None:
    (batch, outer, inner), operands = arrange(x, *others)
    length = outer * inner
    if batch * length == 0:
        return

    def pointer(o: Operand) -> Tensor:
        return x if o is None else o[0]  # anything in the place of what is not used

    def strides(o: Operand, count: int) -> tuple[int, ...]:
        return (0,) * count if o is None else o[1][:count]

    columns = min(1024, power_of_two(length))
    rows = min(1024 // columns, power_of_two(batch))
    blocks = ceil_div(length, columns)
    steps: list[Any] = [s for o in operands[:7] for s in strides(o, 3)]
    steps += [s for o in operands[7:] for s in strides(o, 2)]
    launch(
        _gate_kernel, ceil_div(batch, rows) * blocks, *map(pointer, operands), *steps, batch, length, inner, blocks,
        COND=operands[2] is not None, ORDER=order, FLAT=outer == 1, WIDE=length > INT32_SAFE, ROWS=rows, COLS=columns,
        warps=4,
    )  # fmt: skip


def gated_activation(x: Tensor, cond: Tensor | None) -> Tensor:
    out = like(x, x.shape[1] // 2)
    gate(0, x, cond, None, None, out)
    return out


def gated_activation_backward(grad: Tensor, x: Tensor, cond: Tensor | None) -> Tensor:
    by_x = like(x, x.shape[1])
    gate(1, x, cond, grad, None, None, by_x)
    return by_x


def gated_activation_double_backward(
    grad_grad: Tensor, grad: Tensor, x: Tensor, cond: Tensor | None
) -> tuple[Tensor, Tensor]:
    by_grad, by_x = like(x, x.shape[1] // 2), like(x, x.shape[1])
    gate(2, x, cond, grad, grad_grad, by_grad, by_x)
    return by_grad, by_x
