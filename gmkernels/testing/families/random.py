"""Rows for the random operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from gmkernels.ops import random
from gmkernels.ops.random import library

from ..table import Case, ErrorCase, OperatorRow, Sizes, draw

SIZES = ((3, 4), (1,), (0,), (2, 0), (7,), (129,), (5, 13), (33, 3, 2), (1023,))


def _key(generator: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 2**63 - 1, (2,), generator=generator)


def _make(with_dtype: bool) -> Callable[[Sizes, torch.dtype, torch.Generator], Case]:
    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        constants: dict[str, Any] = {"shape": sizes, "first": 5}
        return Case({"key": _key(generator)}, constants | ({"dtype": dtype} if with_dtype else {}))

    return make


def _bernoulli(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
    # Probabilities on both sides of [0, 1], where they count as 0 and 1.
    return Case({"p": draw(sizes, dtype, generator, 0.4) + 0.5, "key": _key(generator)}, {"first": 5})


def _part(case: Case, start: int, stop: int) -> Case:
    constants = dict(case.constants, first=case.constants["first"] + start)
    if "shape" in constants:
        constants["shape"] = (stop - start, *constants["shape"][1:])
        return replace(case, constants=constants)
    return Case({**case.tensors, "p": case.tensors["p"][start:stop]}, constants)


def _extreme_p(dtype: torch.dtype) -> Case:
    """Probabilities at and outside the ends: decided without a drop of luck, or with one chance in 2**32."""
    tiny = torch.finfo(dtype).tiny
    p = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, tiny, -tiny, 1e30, -1e30, float("inf"), -float("inf"), float("nan")])
    return Case({"p": p.to(dtype).repeat(11), "key": torch.tensor([3, 4])}, {"first": 0})


def _errors(op: str, *more: ErrorCase) -> tuple[ErrorCase, ...]:
    return (
        ErrorCase("key is an int", lambda a: a.update(key=3), TypeError, f"{op}: key must be a torch.Tensor, got int"),
        ErrorCase("key of floats", lambda a: a.update(key=torch.zeros(2)), ValueError, "key must be an int64.*float32"),
        ErrorCase(
            "long key", lambda a: a.update(key=a["key"].repeat(2)), ValueError, r"got torch.int64 of shape \(4,\)"
        ),
        ErrorCase("first < 0", lambda a: a.update(first=-1), ValueError, "first must be a non-negative int, got -1"),
        ErrorCase("first 0.5", lambda a: a.update(first=0.5), ValueError, "first must be a non-negative int, got 0.5"),
        *more,
    )


_SHAPE = ErrorCase("negative size", lambda a: a.update(shape=(3, -1)), ValueError, r"negative sizes, got \(3, -1\)")


def _dtype_error(op: str, dtype: torch.dtype) -> ErrorCase:
    return ErrorCase("dtype", lambda a: a.update(dtype=dtype), TypeError, f"{op}: dtype must be float32.*got {dtype}")


_COMMON: dict[str, Any] = dict(sizes=SIZES, ranks=(1, 2, 3), dynamic=((3, 5), (6, 5)), part=_part)
FLOATS = (torch.float32, torch.float64)

ROWS = (
    OperatorRow(
        name="random.bits",
        operator=library.random_bits.name,
        function=random.bits,
        outputs=("bits",),
        make=_make(False),
        dtypes=(torch.float32,),  # takes none: one round of tests is enough
        errors=_errors("bits", _SHAPE),
        exact=("bits",),
        same_bits=("bits",),
        **_COMMON,
    ),
    OperatorRow(
        name="random.uniform",
        operator=library.random_uniform.name,
        function=random.uniform,
        outputs=("uniform",),
        make=_make(True),
        dtypes=FLOATS,
        errors=_errors("uniform", _SHAPE, _dtype_error("uniform", torch.float16)),
        exact=("uniform",),
        same_bits=("uniform",),
        **_COMMON,
    ),
    OperatorRow(
        name="random.normal",
        operator=library.random_normal.name,
        function=random.normal,
        outputs=("normal",),
        make=_make(True),
        errors=_errors("normal", _SHAPE, _dtype_error("normal", torch.int64)),
        same_bits=("normal",),
        **_COMMON,
    ),
    OperatorRow(
        name="random.bernoulli",
        operator=library.random_bernoulli.name,
        function=random.bernoulli,
        outputs=("sample",),
        make=_bernoulli,
        errors=_errors(
            "bernoulli", ErrorCase("integer p", lambda a: a.update(p=a["key"]), TypeError, "p must be float")
        ),
        exact=("sample",),
        same_bits=("sample",),
        nonfinite=("p",),
        extremes=_extreme_p,
        **_COMMON,
    ),
)
