"""Rows for minibatch discrimination."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gmkernels.ops.minibatch import minibatch_discrimination

from ..table import Case, ErrorCase, OperatorRow, Sizes, draw


def _make(scale: float) -> Callable[[Sizes, torch.dtype, torch.Generator], Case]:
    return lambda sizes, dtype, generator: Case({"m": draw(sizes, dtype, generator, scale)})


def _extremes(dtype: torch.dtype) -> Case:
    """Samples that coincide, almost coincide, and are too far apart for their similarity to be a normal number."""
    m = torch.tensor([0.0, 0.0, 1e-6, 1.0, 1.0, 60.0, -30.0, 104.0, 1e4, -1e4], dtype=dtype)
    return Case({"m": m.reshape(-1, 1, 1)})


_ERRORS = (
    ErrorCase("not a tensor", lambda a: a.update(m=3.0), TypeError, "m must be a torch.Tensor, got float"),
    ErrorCase("complex", lambda a: a.update(m=a["m"] + 0j), TypeError, "m must be float.*complex"),
    ErrorCase(
        "two dimensions", lambda a: a.update(m=a["m"][0]), ValueError, r"m must have 3 dimensions \(batch, num_k"
    ),
    ErrorCase("backend", lambda a: a.update(backend="gpu"), ValueError, "unknown backend 'gpu'"),
)


def _row(variant: str, scale: float) -> OperatorRow:
    return OperatorRow(
        name=f"minibatch_discrimination[{variant}]",
        operator="minibatch_discrimination",
        function=minibatch_discrimination,
        outputs=("o",),
        make=_make(scale),
        # (batch, num_kernels, kernel_dim); the last is more than one tile of samples
        sizes=(
            *((4, 2, 3), (0, 3, 2), (1, 3, 2), (2, 1, 1), (5, 0, 3), (5, 3, 0)),
            *((17, 7, 5), (33, 5, 3), (65, 18, 4), (300, 2, 3)),
        ),
        ranks=(3,),
        dynamic=((4, 3, 5), (7, 3, 5)),
        errors=_ERRORS if variant == "near" else (),
        limit=2048,
        differentiable=("m",),
        order=2,
        nonfinite=("m",) if variant == "near" else (),
        extremes=_extremes if variant == "near" else None,
    )


ROWS = (_row("near", 0.4), _row("far", 4.0))
