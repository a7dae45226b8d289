"""Rows for masked and causal convolutions and the gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gmkernels.ops.masked_conv import causal_conv1d, gated_activation, gated_masked_conv2d, masked_conv2d

from ..table import Case, ErrorCase, OperatorRow, Sizes, draw, narrow

_Make = Callable[[Sizes, torch.dtype, torch.Generator], Case]


def _spoil(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arguments: arguments.update(changes)


# ---- convolutions ----------------------------------------------------------------------------------------------------


def _layer(kernel: tuple[int, ...], groups: int, bias: bool, constants: dict[str, Any]) -> _Make:
    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        batch, inputs, outputs, *image = sizes
        inputs, outputs = inputs * groups, outputs * groups
        tensors = {
            "x": draw((batch, inputs, *image), dtype, generator),
            "weight": draw((outputs, inputs, *kernel), dtype, generator, 0.3),
        }
        if bias:
            tensors["bias"] = draw((outputs,), dtype, generator)
        return Case(tensors, dict(constants))

    return make


# (batch, channels in, channels out, height, width), channels per group
_IMAGES = (
    *((2, 2, 3, 4, 3), (3, 1, 3, 5, 4), (0, 2, 3, 4, 4), (2, 0, 2, 3, 3), (2, 3, 0, 3, 3), (1, 1, 1, 1, 1)),
    *((2, 2, 2, 0, 3), (1, 17, 5, 3, 7), (2, 5, 33, 6, 29), (3, 19, 17, 9, 14)),
)
_ERRORS_2D = (
    ErrorCase("x is a list", _spoil(x=[1.0]), TypeError, "x must be a torch.Tensor, got list"),
    ErrorCase("integer weight", lambda a: a.update(weight=a["weight"].long()), TypeError, "weight must be .*int64"),
    ErrorCase("complex bias", lambda a: a.update(bias=a["bias"] + 0j), TypeError, "bias must be float.*complex"),
    ErrorCase(
        "two dtypes", lambda a: a.update(bias=a["bias"].half()), TypeError, "share one dtype.*bias torch.float16"
    ),
    ErrorCase("three dimensions", lambda a: a.update(x=a["x"][0]), ValueError, r"x must have 4 dimensions \(N, C, H"),
    ErrorCase("flat weight", lambda a: a.update(weight=a["weight"][0]), ValueError, r"weight must have 4 dimensions"),
    ErrorCase("channels", lambda a: a.update(x=a["x"][:, :1]), ValueError, r"weight must have.*with C = 1, got \(3, 2"),
    ErrorCase("bias of 2", lambda a: a.update(bias=a["bias"][:2]), ValueError, r"bias must have shape \(3,\), got"),
    ErrorCase("even kernel", lambda a: a.update(weight=a["weight"][..., :2]), ValueError, "must be odd, got 3 x 2"),
    ErrorCase("mask C", _spoil(mask_type="C"), ValueError, "mask_type must be one of 'A', 'B', got 'C'"),
    ErrorCase("no groups", _spoil(channel_groups=0), ValueError, "channel_groups must be a positive int, got 0"),
    ErrorCase("half a group", _spoil(channel_groups=1.5), ValueError, "channel_groups must be a positive int, got 1.5"),
    ErrorCase("two groups", _spoil(channel_groups=2), ValueError, "must divide into channel_groups=2, got 2 in and 3"),
    ErrorCase(
        "two devices", lambda a: a.update(weight=a["weight"].to("meta")), ValueError, "one device.*weight on meta"
    ),
    ErrorCase("backend", _spoil(backend="gpu"), ValueError, "unknown backend 'gpu'"),
)


def _image_row(
    variant: str, mask_type: str, kernel: tuple[int, int], groups: int = 1, bias: bool = True, **more: Any
) -> OperatorRow:
    constants = {"mask_type": mask_type, "channel_groups": groups}
    names = ("x", "weight", "bias") if bias else ("x", "weight")
    return OperatorRow(
        name=f"masked_conv2d[{variant}]",
        operator="masked_conv2d",
        function=masked_conv2d,
        outputs=("y",),
        make=_layer(kernel, groups, bias, constants),
        sizes=_IMAGES,
        ranks=(5,),
        dynamic=((2, 4, 6, 8, 9), (11, 4, 6, 10, 12)),
        limit=1024,
        differentiable=names,
        order=2,
        endless=True,
        part=narrow("x"),
        batched=("x",),
        nonfinite=names,
        **more,
    )


# (batch, channels in, channels out, time)
_SIGNALS = (
    *((2, 2, 3, 5), (3, 1, 3, 4), (0, 2, 3, 4), (2, 0, 2, 3), (2, 3, 0, 3), (2, 2, 2, 0), (1, 1, 1, 1)),
    *((1, 17, 5, 31), (2, 5, 33, 130), (3, 19, 17, 67)),
)
_ERRORS_1D = (
    ErrorCase("x is None", _spoil(x=None), TypeError, "x must be a torch.Tensor, got NoneType"),
    ErrorCase("two dtypes", lambda a: a.update(weight=a["weight"].half()), TypeError, "share one dtype.*float16"),
    ErrorCase("an image", lambda a: a.update(x=a["x"][None]), ValueError, r"x must have 3 dimensions \(N, C, T\)"),
    ErrorCase("channels", lambda a: a.update(x=a["x"][:, :1]), ValueError, r"weight must have.*with C = 1"),
    ErrorCase("no taps", lambda a: a.update(weight=a["weight"][..., :0]), ValueError, "at least one tap"),
    ErrorCase("dilation 0", _spoil(dilation=0), ValueError, "dilation must be a positive int, got 0"),
    ErrorCase("dilation 1.5", _spoil(dilation=1.5), ValueError, "dilation must be a positive int, got 1.5"),
    ErrorCase("backend", _spoil(backend="gpu"), ValueError, "unknown backend 'gpu'"),
)


def _signal_row(variant: str, kernel: int, dilation: int, bias: bool = True, **more: Any) -> OperatorRow:
    names = ("x", "weight", "bias") if bias else ("x", "weight")
    return OperatorRow(
        name=f"causal_conv1d[{variant}]",
        operator="causal_conv1d",
        function=causal_conv1d,
        outputs=("y",),
        make=_layer((kernel,), 1, bias, {"dilation": dilation}),
        sizes=_SIGNALS,
        ranks=(4,),
        dynamic=((5, 3, 4, 15), (7, 3, 4, 18)),
        limit=1024,
        differentiable=names,
        order=2,
        endless=True,
        part=narrow("x"),
        batched=("x",),
        nonfinite=names,
        **more,
    )


# ---- a convolution and its gate ------------------------------------------------------------------------------------


def _gated(kernel: tuple[int, int], groups: int, bias: bool, cond: str, constants: dict[str, Any]) -> _Make:
    layer = _layer(kernel, groups, bias, constants)

    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        batch, inputs, half, *image = sizes
        case = layer((batch, inputs, 2 * half, *image), dtype, generator)
        outputs = 2 * half * groups
        shapes = {"label": (batch, outputs), "map": (batch, outputs, *image)}
        if cond:
            case.tensors["cond"] = draw(shapes[cond], dtype, generator)
        return case

    return make


_ERRORS_GATED = (
    *(case for case in _ERRORS_2D if "bias" not in case.name and "groups" not in case.name and case.name != "channels"),
    ErrorCase("bias of 2", lambda a: a.update(bias=a["bias"][:2]), ValueError, r"bias must have shape \(6,\), got"),
    ErrorCase(
        "odd outputs", lambda a: a.update(weight=a["weight"][:5], bias=a["bias"][:5]), ValueError, "two halves.*5"
    ),
    ErrorCase(
        "cond of 5", lambda a: a.update(cond=a["cond"][:, :5]), ValueError, r"cond must be broadcastable.*\(2, 5"
    ),
    ErrorCase(
        "cond in three", lambda a: a.update(cond=a["cond"][..., None]), ValueError, r"broadcastable.*\(2, 6, 1\)"
    ),
    ErrorCase("cond is a list", _spoil(cond=[1.0]), TypeError, "cond must be a torch.Tensor, got list"),
    ErrorCase("half cond", lambda a: a.update(cond=a["cond"].half()), TypeError, "share one dtype.*cond torch.float16"),
)


def _gated_row(
    variant: str, mask_type: str, kernel: tuple[int, int], cond: str, groups: int = 1, bias: bool = True, **more: Any
) -> OperatorRow:
    constants = {"mask_type": mask_type, "channel_groups": groups}
    names = ("x", "weight", *(["bias"] if bias else []), *(["cond"] if cond else []))
    batched = tuple(name for name in names if name in ("x", "cond"))
    return OperatorRow(
        name=f"gated_masked_conv2d[{variant}]",
        operator="gated_masked_conv2d",
        function=gated_masked_conv2d,
        outputs=("y",),
        make=_gated(kernel, groups, bias, cond, constants),
        sizes=_IMAGES,
        ranks=(5,),
        dynamic=((2, 4, 6, 8, 9), (11, 4, 6, 10, 12)),
        limit=1024,
        differentiable=names,
        order=2,
        part=narrow(*batched),
        batched=batched,
        nonfinite=names,
        **more,
    )


# ---- the gate --------------------------------------------------------------------------------------------------------


def _gate(cond: str) -> _Make:
    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        batch, channels, *image = sizes
        tensors = {"x": draw((batch, 2 * channels, *image), dtype, generator, 1.5)}
        shapes = {"label": (batch, 2 * channels), "map": (batch, 2 * channels, *image), "shared": (1, 1, *image)}
        if cond:
            tensors["cond"] = draw(shapes[cond], dtype, generator)
        return Case(tensors)

    return make


def _gate_extremes(dtype: torch.dtype) -> Case:
    values = [0.0, 1e-30, 1e-6, 0.3, 0.9, 1.0, 8.0, 9.1, 17.0, 50.0, 88.0, 104.0, 1e4, 1e30]
    signed = torch.tensor([sign * value for value in values for sign in (1.0, -1.0)], dtype=torch.float64)
    return Case({"x": torch.cartesian_prod(signed, signed).to(dtype)})


_ERRORS_GATE = (
    ErrorCase("x is a float", _spoil(x=1.0), TypeError, "x must be a torch.Tensor, got float"),
    ErrorCase("integer x", lambda a: a.update(x=a["x"].long()), TypeError, "x must be float.*int64"),
    ErrorCase("one dimension", _spoil(x=torch.ones(4)), ValueError, r"x must have shape \(N, 2C, ...\), got \(4,\)"),
    ErrorCase("odd channels", _spoil(x=torch.ones(2, 3)), ValueError, r"x must have shape \(N, 2C, ...\), got \(2, 3"),
    ErrorCase("cond is a list", _spoil(cond=[1.0]), TypeError, "cond must be a torch.Tensor, got list"),
    ErrorCase("two dtypes", _spoil(cond=torch.ones(3, 8).half()), TypeError, "share one dtype.*cond torch.float16"),
    ErrorCase("cond of 5", _spoil(cond=torch.ones(3, 5)), ValueError, r"cond must be broadcastable .*got \(3, 5\)"),
    ErrorCase("cond of 3 dimensions", _spoil(cond=torch.ones(3, 8, 1)), ValueError, r"broadcastable.*got \(3, 8, 1\)"),
    ErrorCase("two devices", _spoil(cond=torch.ones(3, 8, device="meta")), ValueError, "one device.*cond on meta"),
    ErrorCase("backend", _spoil(backend="gpu"), ValueError, "unknown backend 'gpu'"),
)


def _gate_row(cond: str, ranks: tuple[int, ...], sizes: tuple[Sizes, ...], **more: Any) -> OperatorRow:
    return OperatorRow(
        name=f"gated_activation[{cond or 'plain'}]",
        operator="gated_activation",
        function=gated_activation,
        outputs=("y",),
        make=_gate(cond),
        sizes=sizes,
        ranks=ranks,
        dynamic=((3, 4, 5, 6), (5, 4, 7, 9)),
        differentiable=("x", "cond") if cond else ("x",),
        order=2,
        part=narrow("x") if cond == "shared" else narrow("x", "cond"),
        batched=("x",) if cond in ("", "shared") else ("x", "cond"),
        same_bits=("y", "grad_x"),
        nonfinite=("x",),
        **more,
    )


_PLANES: tuple[Sizes, ...] = ((3, 4, 2, 3), (2, 1, 1, 1), (0, 2, 3, 3), (2, 0, 3, 2), (2, 3, 0, 2), (2, 33, 5, 3))
_ANY: tuple[Sizes, ...] = ((3, 4), (2, 3, 5), *_PLANES, (17, 130))

ROWS = (
    _image_row("B3", "B", (3, 3), errors=_ERRORS_2D),
    _image_row("A3, no bias", "A", (3, 3), bias=False),
    _image_row("A7", "A", (7, 7)),
    _image_row("B5, RGB", "B", (5, 5), groups=3),
    _image_row("A3, RGB", "A", (3, 3), groups=3),
    _image_row("B1", "B", (1, 1)),
    _image_row("A1x5", "A", (1, 5)),
    _gated_row("B3, label", "B", (3, 3), "label", errors=_ERRORS_GATED),
    _gated_row("A5", "A", (5, 5), ""),
    _gated_row("B1x3, map", "B", (1, 3), "map"),
    _gated_row("B3, RGB, label, no bias", "B", (3, 3), "label", 3, False),
    _signal_row("2", 2, 1, errors=_ERRORS_1D),
    _signal_row("3, dilated, no bias", 3, 4, bias=False),
    _gate_row("", (2, 3, 4), _ANY, errors=_ERRORS_GATE, extremes=_gate_extremes),
    _gate_row("label", (2, 3, 4), _ANY),
    _gate_row("map", (2, 3, 4), _ANY),
    _gate_row("shared", (4,), _PLANES),
)
