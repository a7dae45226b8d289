"""Rows for interpolation between samples and for the penalty on their gradients' norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gmkernels.ops.penalty import norm_penalty, norm_penalty_gradient, random_interpolate

from ..table import Case, ErrorCase, OperatorRow, Sizes, draw, narrow

_COMMON: dict[str, Any] = dict(
    sizes=((3, 4), (2, 3, 4, 2), (1, 1), (0, 3), (3, 0), (17, 33), (5, 257), (64, 130)),
    ranks=(2, 3, 4),
    dynamic=((3, 8), (7, 12)),
)


def _spoil(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arguments: arguments.update(changes)


def _pair(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
    tensors = {
        "a": draw(sizes, dtype, generator),
        "b": draw(sizes, dtype, generator),
        "key": torch.randint(0, 2**63 - 1, (2,), generator=generator),
    }
    return Case(tensors, {"first": 5})


def _pair_part(case: Case, start: int, stop: int) -> Case:
    cut = narrow("a", "b")(case, start, stop)
    return Case(cut.tensors, dict(case.constants, first=case.constants["first"] + start))


def _gradients(target: float, one_sided: bool) -> Callable[[Sizes, torch.dtype, torch.Generator], Case]:
    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        g = draw(sizes, torch.float64, generator)
        # Norms on both sides of the target, none so near it that a difference of two of them is lost.
        norm = g.flatten(1).norm(dim=1).clamp_min(1e-3).reshape(-1, *[1] * (len(sizes) - 1))
        length = torch.tensor([0.4, 2.5, 1.7, 0.1]).repeat(len(g) // 4 + 1)[: len(g)].reshape(norm.shape)
        return Case({"g": (g / norm * length).to(dtype)}, {"target": target, "one_sided": one_sided})

    return make


def _extremes(dtype: torch.dtype) -> Case:
    """Norms of nothing, below and above the target, and exactly of it."""
    g = torch.tensor([[0.0, 0.0], [0.6, 0.8], [3.0, 4.0], [-0.003, 0.004], [2.0**-10, 0.0], [120.0, -50.0]])
    return Case({"g": g.to(dtype)}, {"target": 1.0, "one_sided": False})


_PAIR_ERRORS = (
    ErrorCase("a is a list", _spoil(a=[[1.0]]), TypeError, "a must be a torch.Tensor, got list"),
    ErrorCase("integer b", _spoil(b=torch.ones(3, 4, dtype=torch.int64)), TypeError, "b must be float.*int64"),
    ErrorCase("two dtypes", _spoil(b=torch.ones(3, 4, dtype=torch.float16)), TypeError, "share one dtype.*float16"),
    ErrorCase("one dimension", _spoil(a=torch.ones(4)), ValueError, r"a must have shape \(batch, ...\).*got \(4,\)"),
    ErrorCase("wrong shape", _spoil(b=torch.ones(3, 5)), ValueError, r"b must have shape \(3, 4\), got \(3, 5\)"),
    ErrorCase("two devices", _spoil(b=torch.ones(3, 4, device="meta")), ValueError, "one device.*b on meta"),
    ErrorCase("key is an int", _spoil(key=3), TypeError, "key must be a torch.Tensor, got int"),
    ErrorCase("key of floats", _spoil(key=torch.zeros(2)), ValueError, "key must be an int64.*float32"),
    ErrorCase("first < 0", _spoil(first=-1), ValueError, "first must be a non-negative int, got -1"),
    ErrorCase("backend", _spoil(backend="fast"), ValueError, "unknown backend 'fast'"),
)
_NORM_ERRORS = (
    ErrorCase("g is a list", _spoil(g=[[1.0]]), TypeError, "g must be a torch.Tensor, got list"),
    ErrorCase("integer g", _spoil(g=torch.ones(3, 4, dtype=torch.int64)), TypeError, "g must be float.*int64"),
    ErrorCase("one dimension", _spoil(g=torch.ones(4)), ValueError, r"g must have shape \(batch, ...\).*got \(4,\)"),
    ErrorCase("target < 0", _spoil(target=-1.0), ValueError, "target must be 0 or more and finite, got -1.0"),
    ErrorCase("target is a tensor", _spoil(target=torch.ones(())), TypeError, "target must be a number, got Tensor"),
    ErrorCase("backend", _spoil(backend="fast"), ValueError, "unknown backend 'fast'"),
)


def _norm_row(variant: str, target: float, one_sided: bool) -> OperatorRow:
    first = variant == "two-sided"
    return OperatorRow(
        name=f"norm_penalty[{variant}]",
        operator="norm_penalty",
        function=norm_penalty,
        outputs=("penalty",),
        make=_gradients(target, one_sided),
        errors=_NORM_ERRORS if first else (),
        differentiable=("g",),
        order=2,
        endless=True,
        part=narrow("g"),
        batched=("g",),
        same_bits=("penalty", "grad_g"),
        nonfinite=("g",) if first else (),
        extremes=_extremes if first else None,
        **_COMMON,
    )


def _gradient_row(variant: str, target: float, one_sided: bool) -> OperatorRow:
    return OperatorRow(
        name=f"norm_penalty_gradient[{variant}]",
        operator="norm_penalty_gradient",
        function=norm_penalty_gradient,
        outputs=("penalty", "gradient"),
        make=_gradients(target, one_sided),
        errors=_NORM_ERRORS if variant == "two-sided" else (),
        part=narrow("g"),
        batched=("g",),
        same_bits=("penalty", "gradient"),
        nonfinite=("g",) if variant == "two-sided" else (),
        **_COMMON,
    )


ROWS = (
    OperatorRow(
        name="random_interpolate",
        operator="random_interpolate",
        function=random_interpolate,
        outputs=("x",),
        make=_pair,
        errors=_PAIR_ERRORS,
        part=_pair_part,
        batched=("a", "b"),
        same_bits=("x",),
        nonfinite=("a", "b"),
        **_COMMON,
    ),
    _norm_row("two-sided", 1.0, False),
    _norm_row("one-sided", 1.0, True),
    _norm_row("R1", 0.0, False),
    _gradient_row("two-sided", 1.0, False),
    _gradient_row("one-sided", 1.0, True),
    _gradient_row("R1", 0.0, False),
)
