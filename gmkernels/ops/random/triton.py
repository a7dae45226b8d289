"""Triton kernels of the random stream: a program takes BLOCK counters, four elements each, and stores them in order.

The key is read from memory inside the kernel, so that a captured CUDA graph draws anew at each replay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gmkernels.core import triton_math
from gmkernels.core.triton_launch import ceil_div, launch

_BLOCK = 256  # counters, 1,024 elements: two counters a thread keep the ten rounds and a pair of normals in registers
_WARPS = 4


@triton.jit
def _words(key, low, BLOCK: tl.constexpr):
    """The four words of each of this program's counters."""
    counter = low + tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return triton_math.philox4x32(counter, tl.load(key), tl.load(key + 1))


@triton.jit
def _in_order(a, b, c, d):
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [4 * a.shape[0]])


@triton.jit
def _places(skip, count, BLOCK: tl.constexpr):
    """Where this program's elements go in the output, and which of them exist."""
    at = tl.program_id(0).to(tl.int64) * (4 * BLOCK) + tl.arange(0, 4 * BLOCK) - skip
    return at, (at >= 0) & (at < count)


@triton.jit
def _random_bits_kernel(out, key, low, skip, count, BLOCK: tl.constexpr):
    a, b, c, d = _words(key, low, BLOCK)
    at, real = _places(skip, count, BLOCK)
    tl.store(out + at, _in_order(a, b, c, d).to(tl.int64), mask=real)


@triton.jit
def _random_uniform_kernel(out, key, low, skip, count, BLOCK: tl.constexpr):
    a, b, c, d = _words(key, low, BLOCK)
    at, real = _places(skip, count, BLOCK)
    # The float32 value is exact, so float64 is a conversion of it.
    tl.store(out + at, triton_math.uniform(_in_order(a, b, c, d)).to(out.dtype.element_ty), mask=real)


@triton.jit
def _normal_pair(first, second, WIDE: tl.constexpr):
    u, v = triton_math.uniform(first), triton_math.uniform(second)
    if WIDE:
        radius = tl.sqrt(-2.0 * tl.log(u.to(tl.float64)))
        s, c = triton_math.sincos2pi_wide(v.to(tl.float64))
        z0, z1 = radius * c, radius * s
    else:
        z0, z1 = triton_math.normal_pair(u, v)
    return z0, z1


@triton.jit
def _random_normal_kernel(out, key, low, skip, count, BLOCK: tl.constexpr):
    a, b, c, d = _words(key, low, BLOCK)
    at, real = _places(skip, count, BLOCK)
    a, b = _normal_pair(a, b, out.dtype.element_ty == tl.float64)
    c, d = _normal_pair(c, d, out.dtype.element_ty == tl.float64)
    tl.store(out + at, _in_order(a, b, c, d).to(out.dtype.element_ty), mask=real)


@triton.jit
def _random_bernoulli_kernel(out, key, p, low, skip, count, BLOCK: tl.constexpr):
    a, b, c, d = _words(key, low, BLOCK)
    at, real = _places(skip, count, BLOCK)
    chance = tl.load(p + at, mask=real, other=0.0).to(tl.float32)
    # floor(p 2^32) against the word, between integers; the product is exact.
    clipped = tl.where(chance > 0.0, tl.where(chance < 1.0, chance, 1.0), 0.0)
    drawn = _in_order(a, b, c, d).to(tl.int64) < (clipped * 4294967296.0).to(tl.int64)
    value = tl.where(chance != chance, chance, tl.where(drawn, 1.0, 0.0))
    tl.store(out + at, value.to(out.dtype.element_ty), mask=real)


def _draw(kernel: Any, out: Tensor, key: Tensor, first: int, *operands: Tensor) -> Tensor:
    count = out.numel()
    low, skip = divmod(first * math.prod(out.shape[1:]), 4)
    programs = ceil_div(ceil_div(count + skip, 4), _BLOCK) if count else 0
    launch(kernel, programs, out, key.contiguous(), *operands, low, skip, count, warps=_WARPS, BLOCK=_BLOCK)
    return out


def random_bits(key: Tensor, shape: Sequence[int], first: int) -> Tensor:
    return _draw(_random_bits_kernel, key.new_empty(shape), key, first)


def random_uniform(key: Tensor, shape: Sequence[int], first: int, dtype: torch.dtype) -> Tensor:
    return _draw(_random_uniform_kernel, key.new_empty(shape, dtype=dtype), key, first)


def random_normal(key: Tensor, shape: Sequence[int], first: int, dtype: torch.dtype) -> Tensor:
    return _draw(_random_normal_kernel, key.new_empty(shape, dtype=dtype), key, first)


def random_bernoulli(p: Tensor, key: Tensor, first: int) -> Tensor:
    return _draw(_random_bernoulli_kernel, p.new_empty(p.shape), key, first, p.contiguous())
