"""Checks that the operators share. Values are looked at on the CPU only (see values.py), and at a speed that fits calls
of a millisecond."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from gmkernels.core import checks

from . import values

_FLOATS = (torch.float32, torch.float64)

# The weights that were found in order last, and their version then.
_known: list[tuple[weakref.ref[Tensor], int]] = []


def floats(op: str, **tensors: Tensor) -> None:
    """Tensors of one dtype, float32 or float64, on one device."""
    for name, value in tensors.items():
        checks.tensor(op, name, value)
        if value.dtype not in _FLOATS:
            raise TypeError(f"{op}: {name} must be float32 or float64, got {value.dtype}")
    checks.same_dtype(op, **tensors)
    checks.same_device(op, **tensors)


def finite(op: str, **tensors: Tensor) -> None:
    for name, value in tensors.items():
        if values.visible_here(value):
            values.finite(op, **{name: value})


def machine(op: str, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """States (chains, units), weights (units, units) and biases (units,) that fit each other."""
    floats(op, x=x, weight=weight, bias=bias)
    checks.dims(op, "x", x, 2, "(chains, units)")
    checks.shape(op, "weight", weight, (x.shape[1], x.shape[1]))
    checks.shape(op, "bias", bias, x.shape[1:])
    finite(op, bias=bias)
    if values.visible_here(weight):
        _symmetric(op, weight)


def _symmetric(op: str, weight: Tensor) -> None:
    versioned = not weight.is_inference()
    if versioned and _known and _known[0][0]() is weight and _known[0][1] == weight._version:
        return
    values.finite(op, weight=weight)
    values.symmetric(op, "weight", weight)
    if versioned:
        _known[:] = [(weakref.ref(weight), weight._version)]


def states(op: str, name: str, x: Tensor, spin: bool) -> None:
    if values.visible_here(x):
        (values.spins if spin else values.binary)(op, name, x)


def count(op: str, name: str, value: int) -> None:
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{op}: {name} must be a non-negative int, got {value!r}")


def chains(op: str, key: Tensor, first: int, batch: int) -> None:
    """A key, and numbers of chains that fit a word of the counter."""
    checks.key(op, key, first)
    if first + batch > 2**32:
        raise ValueError(f"{op}: chains are numbered up to 2**32 - 1, got first={first} and {batch} chains")
