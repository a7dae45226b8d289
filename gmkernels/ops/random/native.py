"""Launchers of the compiled cores, chosen by the device of the key: C++ on a CPU, CUDA on a GPU."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gmkernels.core import native


class _Arguments(ctypes.Structure):
    """gmk_random_args of csrc/include/gmk/abi.h; the CUDA core reads seed and offset from the device instead."""

    _fields_ = [
        ("count", ctypes.c_int64),
        ("start", ctypes.c_int64),
        ("seed", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("dtype", ctypes.c_int32),
        ("p", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
    ]


def _draw(name: str, key: Tensor, out: Tensor, first: int, p: Tensor | None = None) -> Tensor:
    count, start = out.numel(), first * math.prod(out.shape[1:])
    dtype = native.DTYPES.get(out.dtype, 0)
    if out.is_cuda:
        key = key.contiguous()
        arguments = _Arguments(count, start, 0, 0, dtype, None if p is None else p.data_ptr(), out.data_ptr())
        with torch.cuda.device(out.device):
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            launch = getattr(native.cuda(), f"gmk_{name}_cuda")
            native.cuda_check(launch(ctypes.byref(arguments), ctypes.c_void_p(key.data_ptr()), stream))
        return out
    seed, offset = (word & 0xFFFFFFFFFFFFFFFF for word in key.tolist())
    operands = [] if p is None else [p.data_ptr()]
    if name != "random_bits":
        operands.append(dtype)
    getattr(native.cpu(), name)(out.data_ptr(), *operands, count, start, seed, offset)
    return out


def random_bits(key: Tensor, shape: Sequence[int], first: int) -> Tensor:
    return _draw("random_bits", key, key.new_empty(shape), first)


def random_uniform(key: Tensor, shape: Sequence[int], first: int, dtype: torch.dtype) -> Tensor:
    return _draw("random_uniform", key, key.new_empty(shape, dtype=dtype), first)


def random_normal(key: Tensor, shape: Sequence[int], first: int, dtype: torch.dtype) -> Tensor:
    return _draw("random_normal", key, key.new_empty(shape, dtype=dtype), first)


def random_bernoulli(p: Tensor, key: Tensor, first: int) -> Tensor:
    return _draw("random_bernoulli", key, p.new_empty(p.shape), first, p.contiguous())
