"""Kernels that call the device functions of gmkernels.core.triton_math, for tests. Importing this needs Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from gmkernels.core import triton_math as math


@triton.jit
def functions(x, out, count, BLOCK: tl.constexpr):
    """One row of ``count`` results for each function of test_vmath.FUNCTIONS."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = at < count
    value = tl.load(x + at, mask=real, other=0.25)
    tl.store(out + at, math.exp(value), mask=real)
    tl.store(out + count + at, math.log(value), mask=real)
    tl.store(out + 2 * count + at, math.log1p(value), mask=real)
    tl.store(out + 3 * count + at, math.sigmoid(value), mask=real)
    tl.store(out + 4 * count + at, math.softplus(value), mask=real)
    tl.store(out + 5 * count + at, math.logsigmoid(value), mask=real)
    tl.store(out + 6 * count + at, math.tanh(value), mask=real)
    tl.store(out + 7 * count + at, math.atan(value), mask=real)
    sine, cosine = math.sincos2pi(value)
    tl.store(out + 8 * count + at, sine, mask=real)
    tl.store(out + 9 * count + at, cosine, mask=real)


@triton.jit
def folds(x, out, ROWS: tl.constexpr, LANES: tl.constexpr):
    """The sums of ROWS rows, then that of the first row alone."""
    at = tl.arange(0, ROWS)
    tl.store(out + at, math.fold_lanes(tl.load(x + at[:, None] * LANES + tl.arange(0, LANES)[None, :])))
    tl.store(out + ROWS, math.fold_lanes(tl.load(x + tl.arange(0, LANES))))


@triton.jit
def philox(index, offset, seed, out):
    """The words of one counter, in each of sixteen lanes."""
    lanes = tl.arange(0, 16)
    at = tl.load(index) + tl.zeros([16], tl.int64)
    a, b, c, d = math.philox4x32(at, tl.load(seed), tl.load(offset))
    tl.store(out + lanes, a.to(tl.int64))
    tl.store(out + 16 + lanes, b.to(tl.int64))
    tl.store(out + 32 + lanes, c.to(tl.int64))
    tl.store(out + 48 + lanes, d.to(tl.int64))
