"""Walking strided samples in Triton kernels: blocks of logical columns, as ``core/layout.py`` describes them."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def columns(block, length, inner, COLS: tl.constexpr, FLAT: tl.constexpr, WIDE: tl.constexpr):
    """Logical columns of a block, which of them exist, and their place as (outer, inner) index.

    FLAT: there is one outer index. WIDE: a sample has more columns than 32 bits count.
    """
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
def read(data, row, outer, place, batch_stride, outer_stride, inner_stride, keep, FLAT: tl.constexpr):
    """The elements of some samples and columns in float32; 0 where ``keep`` is not set."""
    across = place * inner_stride
    if not FLAT:
        across += outer * outer_stride
    return tl.load(data + (row * batch_stride)[:, None] + across[None, :], mask=keep, other=0.0).to(tl.float32)
