"""Strided tensors as the native core takes them: addresses and (batch, outer, inner), without copies.

The row-wise kernels walk the elements of one sample in logical (row-major) order. A sample of any shape is described
by two dimensions whenever the strides allow it: the half of a channel split, ``params[:, 0::2]`` of an image or an
expanded tensor all do. What does not is copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .native import DTYPES, takes_tensors

Strides = tuple[int, int, int]


def address(t: Tensor | None) -> int:
    """Where a tensor's first element is, 0 for None."""
    return 0 if t is None else t.data_ptr()


def contiguous_like(t: Tensor) -> Tensor:
    """An uninitialised contiguous tensor of the shape and dtype of ``t``; twice as quick as ``new_empty``."""
    return torch.empty_like(t, memory_format=torch.contiguous_format)


def cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    """``t.to(dtype)``, at no cost if it has that dtype, where ``to`` looks at its arguments all the same."""
    return t if t.dtype is dtype else t.to(dtype)


def operands(first: Tensor, *others: Tensor | None) -> tuple[tuple[int, int, int], Sequence[Any], Any]:
    """Sizes, each tensor or None as the core takes it, and what must live until the kernel is done.

    The core takes (address, dtype, strides), or a matrix as it is. All have the shape of the first.
    """
    tensors, shape = (first, *others), first.shape
    if len(shape) == 2:  # most calls: spare them the search for dimensions to merge
        if takes_tensors():
            return (shape[0], 1, shape[1]), tensors, tensors
        found = [None if t is None else (t.data_ptr(), DTYPES[t.dtype], _matrix(*t.stride())) for t in tensors]
        return (shape[0], 1, shape[1]), found, tensors
    sizes, strides, alive = rows(*[t for t in tensors if t is not None])
    known = ((t.data_ptr(), DTYPES[t.dtype], s) for t, s in zip(alive, strides, strict=True))
    return sizes, [None if t is None else next(known) for t in tensors], alive


def one_batch(t: Tensor, batch_dims: int) -> Tensor:
    """``t`` with its first ``batch_dims`` dimensions made one."""
    return t if batch_dims == 1 else t.flatten(0, batch_dims - 1)


def shared_rows(t: Tensor, batch_dims: int) -> tuple[Tensor, int]:
    """:func:`one_batch` of ``t`` without the rows that expanding it repeated in turn, and how often it did."""
    dims, repeated = batch_dims, 1
    while dims > 1 and t.numel() and (t.shape[dims - 1] == 1 or t.stride(dims - 1) == 0):
        dims -= 1
        repeated *= t.shape[dims]
        t = t.select(dims, 0)
    return one_batch(t, dims), repeated


def _matrix(batch: int, feature: int) -> Strides:
    return batch, 0, feature


def rows(*tensors: Tensor) -> tuple[tuple[int, int, int], list[Strides], list[Tensor]]:
    """Sizes (batch, outer, inner), the element strides of each tensor over them, and the tensors (copied if need be).

    All tensors have one shape, of two dimensions or more. Element ``i`` of a sample is at
    ``(i // inner) * outer_stride + (i % inner) * inner_stride``.
    """
    shape = tensors[0].shape
    batch, features = shape[0], math.prod(shape[1:])
    if all(t.is_contiguous() for t in tensors):
        return (batch, 1, features), [(features, 0, 1)] * len(tensors), list(tensors)
    strides = [t.stride() for t in tensors]
    if len(shape) == 2:
        return (batch, 1, features), [(s[0], 0, s[1]) for s in strides], list(tensors)
    # Merge neighbouring dimensions that every tensor steps through evenly; sizes of 1 have no stride to speak of.
    merged: list[list[int]] = []  # the dimensions of each group, outermost first
    for d in range(1, len(shape)):
        if shape[d] == 1:
            continue
        if merged and all(s[merged[-1][-1]] == s[d] * shape[d] for s in strides):
            merged[-1].append(d)
        else:
            merged.append([d])
    if len(merged) > 2:
        return rows(*[t.contiguous() for t in tensors])
    sizes = [math.prod(shape[d] for d in group) for group in merged]
    outer, inner = ([1, 1] + sizes)[-2:]

    def steps(stride: tuple[int, ...]) -> Strides:
        outer_step, inner_step = [0, 1, *(stride[group[-1]] for group in merged)][-2:]
        return stride[0], outer_step, inner_step

    return (batch, outer, inner), [steps(s) for s in strides], list(tensors)
