"""Random numbers that depend on a key and an element's index, and on nothing else.

One stream on every backend: the same key gives the same bits in plain PyTorch, C++, Triton and CUDA, whatever the
thread count, tile size or batch split (Philox4x32-10, Salmon et al. 2011; layout in :mod:`gmkernels.core.philox`).
None of these functions is differentiable, and none reads a torch generator: only :func:`key` does.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from gmkernels.core import checks

from . import library

__all__ = ["key", "bits", "uniform", "normal", "bernoulli"]


def key(
    generator: torch.Generator | None = None, *, seed: int | None = None, device: torch.device | str | None = None
) -> Tensor:
    """A fresh key: an int64 tensor ``(seed, offset)`` drawn from a torch generator.

    The draw is an ordinary aten operation, so ``torch.manual_seed``, CUDA graphs and ``torch.compile`` all behave.

    Args:
        generator: the generator to draw from; the default generator of ``device`` if None.
        seed: use this seed and offset 0 instead of drawing.
        device: where the key (and everything sampled with it) lives; the generator's device, or the default one.

    Returns:
        int64 tensor of shape (2,); what is drawn is in ``[0, 2**63 - 1)``.

    Raises:
        TypeError: ``generator`` is no generator, or ``seed`` not an int.
        ValueError: both are given, or ``seed`` does not fit 64 bits with a sign.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"key: generator must be a torch.Generator, got {generator!r}; a number is given as key(seed=...)"
        )
    if seed is not None:
        if generator is not None:
            raise ValueError("key: give a generator or a seed, not both")
        if not isinstance(seed, (int, torch.SymInt)):
            try:
                seed = operator.index(seed)
            except TypeError:
                raise TypeError(f"key: seed must be an int, got {seed!r}") from None
        if not -(2**63) <= seed < 2**63:
            raise ValueError(f"key: seed must fit 64 bits with a sign, got {seed}")
        return torch.tensor([seed, 0], dtype=torch.int64, device=device)
    if device is None and generator is not None:
        device = generator.device
    return torch.randint(0, 2**63 - 1, (2,), dtype=torch.int64, generator=generator, device=device)


def _shape(op: str, shape: int | Sequence[int]) -> list[int]:
    try:
        sizes = [shape] if isinstance(shape, checks.INTEGERS) else list(shape)
        sizes = [size if isinstance(size, checks.INTEGERS) else operator.index(size) for size in sizes]
    except TypeError:
        raise TypeError(f"{op}: shape must be an int or a sequence of ints, got {shape!r}") from None
    if any(size < 0 for size in sizes):
        raise ValueError(f"{op}: shape must not have negative sizes, got {tuple(sizes)}")
    return sizes


def bits(key: Tensor, shape: int | Sequence[int], *, first: int = 0, backend: str = "auto") -> Tensor:
    """Uniform 32-bit words.

    Element ``i`` (row-major) is word ``i mod 4`` of Philox counter ``(i div 4, offset)`` under ``seed``.

    Args:
        key: int64 tensor (2,) made by :func:`key`; its device is the result's.
        shape: an int or a sequence of ints.
        first: logical index of the first row (dimension 0), so that a batch cut in two draws the same as the whole.
        backend: ``auto``, ``reference``, ``cpu``, ``triton`` or ``cuda``.

    Returns:
        int64 tensor with values in ``[0, 2**32)``.
    """
    checks.key("bits", key, first)
    sizes = _shape("bits", shape)
    return library.random_bits(key, sizes, first, backend)


def uniform(
    key: Tensor,
    shape: int | Sequence[int],
    *,
    first: int = 0,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> Tensor:
    """Uniform numbers in the open interval (0, 1): ``((word >> 9) + 0.5) * 2**-23``.

    The value is the same in float32 and float64. Half precision is refused: rounding would reach 0 and 1.
    Arguments as for :func:`bits`.
    """
    checks.key("uniform", key, first)
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"uniform: dtype must be float32 or float64, got {dtype}")
    sizes = _shape("uniform", shape)
    return library.random_uniform(key, sizes, first, dtype, backend)


def normal(
    key: Tensor,
    shape: int | Sequence[int],
    *,
    first: int = 0,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> Tensor:
    """Standard normal numbers (Box and Muller 1958).

    Elements ``2 q`` and ``2 q + 1`` are ``r cos(2 pi u')`` and ``r sin(2 pi u')``, ``r = sqrt(-2 ln u)``, with ``u``
    and ``u'`` the uniforms of stream elements ``2 q`` and ``2 q + 1``. Largest magnitude 5.77. Computed in float32
    (float64 for float64) and rounded to ``dtype``, any floating one. Other arguments as for :func:`bits`.
    """
    checks.key("normal", key, first)
    if dtype not in checks.FLOATING:
        raise TypeError(f"normal: dtype must be float32, float64, float16 or bfloat16, got {dtype}")
    sizes = _shape("normal", shape)
    return library.random_normal(key, sizes, first, dtype, backend)


def bernoulli(p: Tensor, key: Tensor, *, first: int = 0, backend: str = "auto") -> Tensor:
    """Zeros and ones with probabilities ``p``, decided between integers: ``word < floor(p * 2**32)``.

    Args:
        p: probabilities, floating point, any shape. Values outside [0, 1] act as 0 or 1; NaN stays NaN.
        key, first, backend: as for :func:`bits`.

    Returns:
        0 and 1 in the dtype and shape of ``p``; no gradient flows to ``p``.
    """
    checks.floating("bernoulli", "p", p)
    checks.key("bernoulli", key, first)
    checks.same_device("bernoulli", p=p, key=key)
    p = p.detach()
    return library.random_bernoulli(p, key, first, backend)
