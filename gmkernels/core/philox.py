"""Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) in plain PyTorch.

This is the definition of the project's random stream; the C++, Triton and CUDA cores produce the same integers.

* The key of Philox is ``seed``; its 128-bit counter is ``(index, offset)``, each 64 bits wide, low word first.
* Element ``i`` of a tensor is word ``i mod 4`` of counter ``(i div 4, offset)``.
* A uniform is ``((word >> 9) + 0.5) * 2**-23``: exact in float32 and strictly between 0 and 1. (With 24 bits,
  ``(2**24 - 1) + 0.5`` would round to ``2**24`` in float32 and the uniform to 1.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Ten rounds on four counter words and two key words, all int64 tensors holding 32-bit values."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The products wrap modulo 2**64, which leaves both 32-bit halves right.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32 & _MASK) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32 & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def split(word: Tensor) -> tuple[Tensor, Tensor]:
    """The low and high 32 bits of int64 values."""
    return word & _MASK, word >> 32 & _MASK


def words(key: Tensor, start: int, count: int) -> Tensor:
    """Elements ``start .. start + count`` of the stream as int64 in ``[0, 2**32)``."""
    first, last = start // 4, (start + count + 3) // 4
    seed, offset = key[0], key[1]
    index = torch.arange(first, last, device=key.device)
    block = torch.stack(philox4x32((*split(index), *split(offset.expand_as(index))), split(seed)), dim=1)
    return block.reshape(-1)[start - 4 * first :][:count]


def to_uniform(word: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """32-bit words to the open interval (0, 1)."""
    return ((word >> 9).to(dtype) + 0.5) * 2.0**-23


def to_normal(pair: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Words ``(..., 2)`` to two standard normals each (Box and Muller, 1958): radius from the first, angle from the second."""
    u = to_uniform(pair, torch.float64 if dtype == torch.float64 else torch.float32)
    radius = torch.sqrt(-2.0 * torch.log(u[..., 0]))
    angle = 2.0 * math.pi * u[..., 1]
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).to(dtype)


def normals(key: Tensor, start: int, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The normals of elements ``start .. start + count`` of the stream."""
    # Whole pairs, so that a batch cut inside a pair still gets its half of it.
    lead = start % 2
    pairs = words(key, start - lead, (count + lead + 1) // 2 * 2).reshape(-1, 2)
    return to_normal(pairs, dtype).reshape(-1)[lead:][:count]
