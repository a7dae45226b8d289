"""Rows for the inverse of a masked autoregressive layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gmkernels.ops.autoregressive import made_inverse
from gmkernels.ops.autoregressive.made_network import Made

from ..table import Case, ErrorCase, OperatorRow, Sizes, draw, narrow

Call = dict[str, Any]


def _invert(*, reverse: bool, **given: Any) -> tuple[Tensor, Tensor]:
    """Lists from loose tensors ``p_00``, ... and ``d_0``, ...; the degrees of features backwards, if asked for."""
    lists = {start: [given.pop(n) for n in sorted(given) if n.startswith(start)] for start in ("p_", "d_")}
    z = given["z"]
    if reverse and "order" not in given:
        given["order"] = torch.arange(z.shape[1], 0, -1, device=z.device)
    return made_inverse(
        parameters=given.pop("parameters", lists["p_"]),
        hidden_degrees=given.pop("hidden_degrees", lists["d_"]),
        **given,
    )


def _layer(widths: tuple[int, ...], condition: bool, ascending: bool, constants: Call) -> Callable[..., Case]:
    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        batch, features = sizes[0], max(1, sizes[1])
        degrees = [torch.randint(0, features, (width,), generator=generator) for width in widths]
        if ascending:
            degrees = [d.sort().values for d in degrees]
        tensors = {"z": draw((batch, features), dtype, generator)}
        if condition:
            tensors["condition"] = draw((batch, widths[0]), dtype, generator, 0.5)
        shapes = Made(features, widths, constants["residual"]).shapes()
        for i, (out, into) in enumerate(shapes):
            tensors[f"p_{2 * i:02}"] = draw((out, into), dtype, generator, 1.2 / max(1, into) ** 0.5)
            tensors[f"p_{2 * i + 1:02}"] = draw((out,), dtype, generator, 0.3)
        return Case({**tensors, **{f"d_{i}": d for i, d in enumerate(degrees)}}, dict(constants))

    return make


def _spoil(**changes: Any) -> Callable[[Call], None]:
    return lambda arguments: arguments.update(changes)


def _change(name: str, change: Callable[[Tensor], Any]) -> Callable[[Call], None]:
    return lambda arguments: arguments.update({name: change(arguments[name])})


def _infinite(t: Tensor) -> Tensor:
    t = t.clone()
    t[1, 2] = float("inf")
    return t


_ERRORS = (
    ErrorCase("z is a list", _spoil(z=torch.zeros(3)), ValueError, r"z must have 2 dimensions \(batch, D\)"),
    ErrorCase("half", _change("z", Tensor.half), TypeError, "z must be float32 or float64, got torch.float16"),
    ErrorCase("no features", _change("z", lambda t: t[:, :0]), ValueError, r"at least one feature, got shape \(2, 0\)"),
    ErrorCase("no layers", _spoil(hidden_degrees=[]), ValueError, "hidden_degrees must have at least one layer, got none"),
    ErrorCase("degrees of floats", _change("d_0", Tensor.float), TypeError, "hidden_degrees must be int64, got .*float32"),
    ErrorCase("no row", _change("d_0", lambda t: t[None]), ValueError, r"hidden_degrees\[0\] must have 1 dimensions"),
    ErrorCase("degree 3", _change("d_0", lambda t: t + 3), ValueError, r"\[0\] must be 0 to 2 for 3 features, got \d"),
    ErrorCase("a few", _spoil(parameters=[]), ValueError, "2 hidden_degrees take 6 parameters, weight and bias in turn, got 0"),
    ErrorCase("narrow", _change("p_02", lambda t: t[:, 1:]), ValueError, r"parameters\[2\] must have shape \(7, 5\), got"),
    ErrorCase("double", _change("p_03", Tensor.double), TypeError, r"share one dtype.*parameters\[3\] torch.float64"),
    ErrorCase("elsewhere", _change("p_01", lambda t: t.to("meta")), ValueError, r"one device.*parameters\[1\] on meta"),
    ErrorCase("condition", _spoil(condition=torch.zeros(2, 3)), ValueError, r"condition must have shape \(2, 5\), got"),
    ErrorCase("order of floats", _spoil(order=torch.ones(3)), TypeError, "order must be int64, got torch.float32"),
    ErrorCase("order of 2", _spoil(order=torch.tensor([1, 2])), ValueError, r"order must have shape \(3,\), got \(2,\)"),
    ErrorCase("twice", _spoil(order=torch.tensor([1, 2, 2])), ValueError, r"permutation of 1 to 3, got \[1, 2, 2\]"),
    ErrorCase("act", _spoil(activation="sine"), ValueError, "activation must be one of 'relu', 'tanh', got 'sine'"),
    ErrorCase("map", _spoil(scale_map="cosh"), ValueError, "scale_map must be one of 'exp', .* got 'cosh'"),
    ErrorCase("clamp", _spoil(clamp=-1.0), ValueError, "clamp of 'soft_clip' must be positive, got -1.0"),
    ErrorCase("infinite", _change("z", _infinite), ValueError, "z must be finite, got row 1 that is not"),
    ErrorCase("backend", _spoil(backend="gpu"), ValueError, "unknown backend 'gpu'"),
)  # fmt: skip


def _row(variant: str, widths: tuple[int, ...] = (5, 7), condition: bool = False, ascending: bool = True,
         errors: tuple[ErrorCase, ...] = (), **constants: Any) -> OperatorRow:  # fmt: skip
    constants = {"residual": False, "reverse": False, **constants}
    shapes = len(Made(1, widths, constants["residual"]).shapes())
    names = ("z", *(("condition",) if condition else ()), *(f"p_{i:02}" for i in range(2 * shapes)))
    return OperatorRow(
        name=f"made_inverse[{variant}]",
        operator="made_inverse",
        function=_invert,
        outputs=("x", "logdet"),
        make=_layer(widths, condition, ascending, constants),
        # (batch, features)
        sizes=((2, 3), (1, 1), (0, 4), (19, 5), (5, 21)),
        ranks=(2,),
        dynamic=((3, 4), (7, 4)),
        limit=64,
        dtypes=(torch.float32, torch.float64),
        errors=errors,
        differentiable=names,
        order=2,
        endless=True,
        part=narrow("z", "condition"),
        batched=("z", "condition") if condition else ("z",),
    )


ROWS = (
    _row("plain", errors=_ERRORS),
    _row("any degrees, condition", condition=True, ascending=False, scale_map="tanh"),
    _row("residual", (7, 5, 9), residual=True, scale_map="sigmoid", clamp=1e-3),
    _row(
        "residual, tanh",
        (6, 5),
        condition=True,
        residual=True,
        activation="tanh",
        scale_map="exp",
        clamp=2.0,
        ascending=False,
    ),
    _row("three layers", (9, 17, 6), activation="tanh", scale_map="softplus"),
    _row("one layer", (19,), scale_map="atan"),
    _row("backwards", (5, 4), reverse=True, ascending=False, scale_map="reciprocal_sigmoid"),
)
