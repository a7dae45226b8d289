"""Small restricted Boltzmann machines and their states, for the tests of Gibbs sampling and of energies."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import gmkernels as gmk
from gmkernels.core import backends

from . import support

BACKENDS = [
    pytest.param(name, marks=[pytest.mark.triton] if name == "triton" else [])
    for name in ("reference", "cpu", "triton")
    if backends.unavailable(name) is None and name in ("reference", *gmk.core.doors.OPERATORS["rbm_gibbs"].backends)
]
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def key(seed: int = 1) -> Tensor:
    return torch.tensor([seed, 2**40 + 17 * seed])


def machine(visible: int, hidden: int, seed: int = 0, scale: float = 1.0, dtype=torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((visible, hidden), (visible,), (hidden,))
    return tuple((torch.randn(s, generator=generator, dtype=torch.float64) * scale).to(dtype) for s in shapes)


def states(units: int) -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=units)), dtype=torch.float64)


def index(x: Tensor) -> Tensor:
    """The row of states() that each sample is."""
    return (x.double() @ 2.0 ** torch.arange(x.shape[1] - 1, -1, -1, dtype=torch.float64)).long()


def on(backend: str, *tensors: Tensor) -> list[Tensor]:
    return [t.to(support.device(backend)) for t in tensors]
