"""Rows for virtual batch normalisation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from gmkernels.ops.virtual_batch_norm import virtual_batch_norm

from ..table import Case, ErrorCase, OperatorRow, Sizes, draw, narrow


def _make(examples: float) -> Callable[[Sizes, torch.dtype, torch.Generator], Case]:
    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        wide = torch.promote_types(dtype, torch.float32)
        channels = sizes[1:2]
        tensors = {
            "x": draw(sizes, dtype, generator),
            "mean": draw(channels, wide, generator, 0.3),
            "var": 0.5 + draw(channels, wide, generator, 0.5).square(),
            "weight": 1.0 + draw(channels, wide, generator, 0.3),
            "bias": draw(channels, wide, generator, 0.3),
        }
        # A large eps keeps the square root real where a test turns the sign of everything.
        return Case(tensors, {"examples": examples, "eps": 5.0})

    return make


def _extremes(dtype: torch.dtype) -> Case:
    """Examples that are constant, far from the reference, of tiny and of huge spread, and a reference without any."""
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1e4, 1e4], [1e4, -1e4], [1e-4, -1e-4], [-3.0, 5.0]], dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    ones = torch.ones(1, dtype=wide)
    tensors = {"x": x[:, None], "mean": 0.0 * ones, "var": 0.0 * ones, "weight": ones, "bias": ones}
    return Case(tensors, {"examples": 3, "eps": 1e-5})


_ERRORS = (
    ErrorCase("not a tensor", lambda a: a.update(x=3.0), TypeError, "x must be a torch.Tensor, got float"),
    ErrorCase("integers", lambda a: a.update(x=a["x"].long()), TypeError, "x must be float.*int64"),
    ErrorCase("one dimension", lambda a: a.update(x=a["x"][:, 0, 0]), ValueError, r"\(batch, channels, \.\.\.\), got"),
    ErrorCase("complex", lambda a: a.update(var=a["var"] + 0j), TypeError, "var must be float.*complex"),
    ErrorCase("mean", lambda a: a.update(mean=a["mean"][:-1]), ValueError, r"mean must have shape \(3,\), got \(2,\)"),
    ErrorCase("weight", lambda a: a.update(weight=a["weight"][None]), ValueError, r"weight must have shape \(3,\)"),
    ErrorCase(
        "meta", lambda a: a.update(bias=a["bias"].to("meta")), ValueError, "one device, got x on .* bias on meta"
    ),
    ErrorCase("examples", lambda a: a.update(examples=0), ValueError, "examples must be 1 or more, got 0"),
    ErrorCase("a word", lambda a: a.update(examples="all"), TypeError, "examples must be a number, got str"),
    ErrorCase("eps", lambda a: a.update(eps=-1.0), ValueError, "eps must be 0 or more, got -1.0"),
    ErrorCase("eps nan", lambda a: a.update(eps=math.nan), ValueError, "eps must be 0 or more, got nan"),
    ErrorCase("eps inf", lambda a: a.update(eps=math.inf), ValueError, "eps must be finite, got inf"),
    ErrorCase("backend", lambda a: a.update(backend="gpu"), ValueError, "unknown backend 'gpu'"),
)


def _row(variant: str, examples: float) -> OperatorRow:
    mixed = variant == "mixed"
    return OperatorRow(
        name=f"virtual_batch_norm[{variant}]",
        operator="virtual_batch_norm",
        function=virtual_batch_norm,
        outputs=("y",),
        make=_make(examples),
        # (batch, channels, ...); 67 examples of one position are more than one piece, 131 positions more than one block
        sizes=(
            *((2, 3, 2), (0, 3, 2), (5, 3), (2, 3, 17)),
            *(((1, 1), (4, 0, 3), (3, 2, 0), (2, 1, 1), (67, 5), (3, 131), (5, 2, 3, 5), (2, 3, 131)) if mixed else ()),
        ),
        ranks=(2, 3, 4),
        dynamic=((4, 3, 5), (7, 3, 6)),
        errors=_ERRORS if mixed else (),
        limit=2048,
        differentiable=("x", "mean", "var", "weight", "bias"),
        order=2,
        part=narrow("x"),
        batched=("x",),
        same_bits=("y", "grad_x", "grad_mean", "grad_var", "grad_weight", "grad_bias"),
        nonfinite=("x", "weight") if mixed else (),
        extremes=_extremes if mixed else None,
    )


ROWS = (_row("mixed", 4), _row("reference", math.inf))
