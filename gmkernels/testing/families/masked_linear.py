"""Rows for the masked linear layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gmkernels.ops.masked_linear import masked_linear

from ..table import Case, ErrorCase, OperatorRow, Sizes, draw, narrow


def _layer(bias: bool, ascending: bool, constants: dict[str, Any]) -> Callable[..., Case]:
    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        batch, inputs, outputs = sizes
        degrees = [torch.randint(0, 9, (n,), generator=generator) for n in (inputs, outputs)]
        if ascending:
            degrees = [d.sort().values for d in degrees]
        tensors = {
            "x": draw((batch, inputs), dtype, generator),
            "weight": draw((outputs, inputs), dtype, generator, 0.3),
        }
        if bias:
            tensors["bias"] = draw((outputs,), dtype, generator)
        return Case({**tensors, "in_degree": degrees[0], "out_degree": degrees[1]}, dict(constants))

    return make


def _spoil(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arguments: arguments.update(changes)


_ERRORS = (
    ErrorCase("x is a list", _spoil(x=[1.0]), TypeError, "x must be a torch.Tensor, got list"),
    ErrorCase("integer weight", lambda a: a.update(weight=a["weight"].long()), TypeError, "weight must be .*int64"),
    ErrorCase("two dtypes", lambda a: a.update(bias=a["bias"].half()), TypeError, "share one dtype.*bias torch.float16"),
    ErrorCase("a signal", lambda a: a.update(x=a["x"][None]), ValueError, r"x must have 2 dimensions \(batch, inputs\)"),
    ErrorCase("a row", lambda a: a.update(weight=a["weight"][0]), ValueError, "weight must have 2 dimensions"),
    ErrorCase("inputs", lambda a: a.update(x=a["x"][:, :2]), ValueError, r"x must have shape \(2, 4\), got \(2, 2\)"),
    ErrorCase("bias of 2", lambda a: a.update(bias=a["bias"][:2]), ValueError, r"bias must have shape \(5,\), got \(2,\)"),
    ErrorCase("no degree", _spoil(in_degree=None), TypeError, "in_degree must be a torch.Tensor, got NoneType"),
    ErrorCase("half a degree", _spoil(out_degree=torch.ones(5)), TypeError, "out_degree must be int64, got .*float32"),
    ErrorCase("few degrees", _spoil(in_degree=torch.ones(3).long()), ValueError, r"in_degree must have shape \(4,\), got"),
    ErrorCase("two devices", lambda a: a.update(weight=a["weight"].to("meta")), ValueError, "one device.*on meta"),
    ErrorCase("backend", _spoil(backend="gpu"), ValueError, "unknown backend 'gpu'"),
)  # fmt: skip


def _row(variant: str, bias: bool = True, ascending: bool = True, errors: tuple[ErrorCase, ...] = (),
         **constants: Any) -> OperatorRow:  # fmt: skip
    names = ("x", "weight", "bias") if bias else ("x", "weight")
    return OperatorRow(
        name=f"masked_linear[{variant}]",
        operator="masked_linear",
        function=masked_linear,
        outputs=("y",),
        make=_layer(bias, ascending, constants),
        # (batch, inputs, outputs)
        sizes=(
            *((2, 4, 5), (3, 1, 2), (0, 3, 2), (2, 0, 3), (3, 2, 0), (1, 1, 1), (33, 7, 19), (17, 65, 31)),
            (100, 63, 40),
        ),
        ranks=(3,),
        dynamic=((3, 4, 5), (7, 4, 5)),
        errors=errors,
        differentiable=names,
        order=2,
        endless=True,
        part=narrow("x"),
        batched=("x",),
    )


ROWS = (
    _row("ascending", errors=_ERRORS),
    _row("strict", strict=True),
    _row("relu, no bias", bias=False, relu=True),
    _row("any order", ascending=False, relu=True),
)
