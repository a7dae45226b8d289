"""The definition of the random operators: plain PyTorch over :mod:`gmkernels.core.philox`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gmkernels.core import philox


def _span(shape: Sequence[int], first: int) -> tuple[int, int]:
    """The first element's index in the stream, and how many there are."""
    return first * math.prod(shape[1:]), math.prod(shape)


def random_bits(key: Tensor, shape: Sequence[int], first: int = 0) -> Tensor:
    return philox.words(key, *_span(shape, first)).reshape(tuple(shape))


def random_uniform(key: Tensor, shape: Sequence[int], first: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return philox.to_uniform(random_bits(key, shape, first), dtype)


def random_normal(key: Tensor, shape: Sequence[int], first: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return philox.normals(key, *_span(shape, first), dtype).reshape(tuple(shape))


def random_bernoulli(p: Tensor, key: Tensor, first: int = 0) -> Tensor:
    threshold = (p.double() * 2.0**32).clamp(0.0, 2.0**32).nan_to_num(0.0).floor().to(torch.int64)
    drawn = random_bits(key, p.shape, first) < threshold
    return torch.where(p.isnan(), p, drawn.to(p.dtype))
