"""Schemas and fakes of the random operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gmkernels.core.doors import Operator

from . import reference

_BACKENDS = ("cpu", "triton", "cuda")


def _fake_bits(key: Tensor, shape: Sequence[int], first: int) -> Tensor:
    return key.new_empty(shape)


def _fake_real(key: Tensor, shape: Sequence[int], first: int, dtype: torch.dtype) -> Tensor:
    return key.new_empty(shape, dtype=dtype)


def _fake_bernoulli(p: Tensor, key: Tensor, first: int) -> Tensor:
    return p.new_empty(p.shape)


random_bits = Operator(
    "random",
    "random_bits(Tensor key, SymInt[] shape, SymInt first, str backend) -> Tensor",
    _fake_bits,
    reference.random_bits,
    _BACKENDS,
)
random_uniform = Operator(
    "random",
    "random_uniform(Tensor key, SymInt[] shape, SymInt first, ScalarType dtype, str backend) -> Tensor",
    _fake_real,
    reference.random_uniform,
    _BACKENDS,
)
random_normal = Operator(
    "random",
    "random_normal(Tensor key, SymInt[] shape, SymInt first, ScalarType dtype, str backend) -> Tensor",
    _fake_real,
    reference.random_normal,
    _BACKENDS,
)
random_bernoulli = Operator(
    "random",
    "random_bernoulli(Tensor p, Tensor key, SymInt first, str backend) -> Tensor",
    _fake_bernoulli,
    reference.random_bernoulli,
    _BACKENDS,
)
