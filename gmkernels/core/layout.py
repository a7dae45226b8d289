"""Strided tensors as (batch, outer, inner), without copies.

The row-wise kernels walk the elements of one sample in logical (row-major) order. A sample of any shape is described
by two dimensions whenever the strides allow it: the half of a channel split, ``params[:, 0::2]`` of an image or an
expanded tensor all do. What does not is copied.
"""

from __future__ import annotations

import math

from torch import Tensor

Strides = tuple[int, int, int]


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
