"""Rows for the multilayer perceptron, by itself and in a coupling."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gmkernels.ops import mlp as family

from ..table import Case, ErrorCase, OperatorRow, Sizes, draw, narrow

_NORM = ("log_scale", "shift")


def _listed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The operator with its weights and biases by name."""

    def call(**arguments: Any) -> Any:
        given = {name: arguments.pop(name) for name in list(arguments) if name[:-1] in ("weight", "bias")}
        weights = [given[name] for name in sorted(given) if name.startswith("weight")]
        biases = [given.get(f"bias{i + 1}") for i in range(len(weights))]
        norm = [arguments.pop(name) for name in _NORM if name in arguments]
        if norm:
            arguments["actnorm"] = tuple(norm)
        return function(weights=weights, biases=biases, **arguments)

    call.__name__ = function.__name__
    return call


def _layers(widths: tuple[int, ...], bias: bool, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
    tensors = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths), start=1):
        tensors[f"weight{i}"] = draw((outputs, inputs), dtype, generator, 0.8 * max(inputs, 1) ** -0.5)
        if bias:
            tensors[f"bias{i}"] = draw((outputs,), dtype, generator, 0.5)
    return tensors


def _perceptron(depth: int, bias: bool, activation: str, rows: int) -> Callable[..., Case]:
    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        batch, inputs, hidden, outputs = sizes
        widths = (inputs, *[hidden] * (depth - 1), outputs)
        tensors = {"x": draw((batch, inputs), dtype, generator), **_layers(widths, bias, dtype, generator)}
        if rows:
            tensors["each"] = draw((rows, inputs), dtype, generator)
        return Case(tensors, {"activation": activation})

    return make


def _decoder(depth: int, samples: int, activation: str) -> Callable[..., Case]:
    """Images of which each judges some samples in turn."""

    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        images, latents, hidden, features = sizes
        widths = (latents, *[hidden] * (depth - 1), features)
        pixels = torch.randint(257, (images, features), generator=generator) / 256
        z = draw((images * samples, latents), dtype, generator)
        tensors = {"z": z, **_layers(widths, True, dtype, generator), "x": pixels.to(dtype)}
        return Case(tensors, {"activation": activation})

    return make


def _coupling(scale_map: str, split_first: bool, activation: str, inverse: bool, actnorm: bool) -> Callable[..., Case]:
    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        batch, kept, hidden, changed = sizes
        kept, changed = max(kept, 1), max(changed, 1)  # nothing to keep, or to change, is an error
        tensors = {
            "x": draw((batch, kept + changed), dtype, generator),
            **_layers((kept, hidden, hidden, 2 * changed), True, dtype, generator),
        }
        if actnorm:
            tensors |= {name: draw((kept + changed,), dtype, generator, 0.5) for name in _NORM}
        constants = {"activation": activation, "scale_map": scale_map, "inverse": inverse}
        return Case(tensors, {"split": kept if split_first else -kept, **constants})

    return make


def _spoil(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arguments: arguments.update(changes)


_ERRORS = (
    ErrorCase("x is a list", _spoil(x=[1.0]), TypeError, "x must be a torch.Tensor, got list"),
    ErrorCase("integer weight", lambda a: a.update(weight1=a["weight1"].long()), TypeError, r"weights\[0\] must be"),
    ErrorCase("two dtypes", lambda a: a.update(bias2=a["bias2"].half()), TypeError, "share one dtype.*float16"),
    ErrorCase(
        "a signal", lambda a: a.update(x=a["x"][None]), ValueError, r"x must have 2 dimensions \(batch, inputs\)"
    ),
    ErrorCase("a row", lambda a: a.update(weight2=a["weight2"][0]), ValueError, r"weights\[1\] must have 2 dimensions"),
    ErrorCase("inputs", lambda a: a.update(x=a["x"][:, :2]), ValueError, r"weights\[0\] must have shape \(5, 2\), got"),
    ErrorCase("bias of 2", lambda a: a.update(bias1=a["bias1"][:2]), ValueError, r"biases\[0\] must have shape \(5,\)"),
    ErrorCase("activation", _spoil(activation="gelu"), ValueError, "activation must be one of 'relu', .* got 'gelu'"),
    ErrorCase("two devices", lambda a: a.update(weight1=a["weight1"].to("meta")), ValueError, "one device.*on meta"),
    ErrorCase("backend", _spoil(backend="gpu"), ValueError, "unknown backend 'gpu'"),
)
_EACH_ERRORS = (
    ErrorCase("rows are a list", _spoil(each=[[1.0]]), TypeError, "each must be a torch.Tensor, got list"),
    ErrorCase("one row", lambda a: a.update(each=a["each"][0]), ValueError, r"each must have 2 dimensions \(rows, inp"),
    ErrorCase("short rows", lambda a: a.update(each=a["each"][:, :3]), ValueError,
              r"each must have shape \(2, 4\), got \(2, 3\)"),
    ErrorCase("two dtypes", lambda a: a.update(each=a["each"].half()), TypeError, "share one dtype.*float16"),
    ErrorCase("two devices", lambda a: a.update(each=a["each"].to("meta")), ValueError, "one device.*on meta"),
)  # fmt: skip
_DECODER_ERRORS = (
    ErrorCase("z is a list", _spoil(z=[1.0]), TypeError, "z must be a torch.Tensor, got list"),
    ErrorCase("a pixel less", lambda a: a.update(x=a["x"][:, :2]), ValueError, r"x must have shape \(2, 3\), got"),
    ErrorCase("bytes", lambda a: a.update(x=a["x"].byte()), TypeError, "x must be float.*uint8"),
    ErrorCase("another number", lambda a: a.update(z=a["z"][:1]), ValueError, "multiple of the images, got 1 samples of 2"),
    ErrorCase("no images", lambda a: a.update(x=a["x"][:0]), ValueError, "multiple of the images, got 2 samples of 0"),
    ErrorCase("two dtypes", lambda a: a.update(x=a["x"].half()), TypeError, "share one dtype.*float16"),
)  # fmt: skip
_COUPLING_ERRORS = (
    ErrorCase("x is a list", _spoil(x=[1.0]), TypeError, "x must be a torch.Tensor, got list"),
    ErrorCase("split of all", _spoil(split=6), ValueError, r"leave some features on both sides, got \(2, 6\) and 6"),
    ErrorCase("split of none", _spoil(split=0), ValueError, "leave some features on both sides"),
    ErrorCase("another split", _spoil(split=4), ValueError, r"weights\[0\] must have shape \(4, 4\), got \(4, 3\)"),
    ErrorCase("outputs", lambda a: a.update(weight3=a["weight3"][:4], bias3=a["bias3"][:4]), ValueError,
              "must give 6 numbers .*, got 4"),
    ErrorCase("map", _spoil(scale_map="cube"), ValueError, "affine_coupling_mlp: scale_map must be one of"),
    ErrorCase("clamp", _spoil(clamp=-1.0), ValueError, "affine_coupling_mlp: clamp of .* must be .*, got -1.0"),
    ErrorCase("backend", _spoil(backend="gpu"), ValueError, "unknown backend 'gpu'"),
)  # fmt: skip
_NORM_ERRORS = (
    ErrorCase("a number", _spoil(shift=1.0), TypeError, "actnorm's shift must be a torch.Tensor, got float"),
    ErrorCase("too few", lambda a: a.update(log_scale=a["log_scale"][:5]), ValueError,
              r"actnorm's log_scale must have shape \(6,\), got \(5,\)"),
    ErrorCase("two dtypes", lambda a: a.update(shift=a["shift"].half()), TypeError, "share one dtype.*float16"),
    ErrorCase("two devices", lambda a: a.update(shift=a["shift"].to("meta")), ValueError, "one device.*on meta"),
)  # fmt: skip


def _row(depth: int, activation: str, bias: bool = True, rows: int = 0, **more: Any) -> OperatorRow:
    names = ["x"]
    for i in range(1, depth + 1):
        names += [f"weight{i}", f"bias{i}"] if bias else [f"weight{i}"]
    if rows:
        names.append("each")
    return OperatorRow(
        name=f"mlp[{depth}, {activation}{'' if bias else ', no bias'}{', each' if rows else ''}]",
        operator="mlp",
        function=_listed(family.mlp),
        outputs=("y",),
        make=_perceptron(depth, bias, activation, rows),
        # (batch, inputs, hidden, outputs)
        sizes=(
            *((2, 4, 5, 3), (3, 1, 1, 1), (0, 3, 2, 4), (2, 0, 3, 2), (3, 2, 0, 2), (3, 2, 3, 0), (1, 17, 16, 15)),
            *((33, 20, 33, 18), (9, 70, 65, 66)),
        ),
        ranks=(4,),
        dynamic=((3, 4, 5, 6), (7, 4, 5, 6)),
        differentiable=tuple(names),
        order=2,
        endless=True,
        part=narrow("x"),
        batched=("x",),
        nonfinite=("x",),
        **more,
    )


def _decoder_row(depth: int, samples: int, activation: str, **more: Any) -> OperatorRow:
    names = ["z", *(f"{kind}{i}" for i in range(1, depth + 1) for kind in ("weight", "bias")), "x"]
    return OperatorRow(
        name=f"bernoulli_log_likelihood_mlp[{depth}, {samples}]",
        operator="bernoulli_log_likelihood_mlp",
        function=_listed(family.bernoulli_log_likelihood_mlp),
        outputs=("log_likelihood",),
        make=_decoder(depth, samples, activation),
        # (images, latents, hidden, features)
        sizes=(
            *((2, 4, 5, 3), (3, 1, 1, 1), (0, 3, 2, 4), (2, 0, 3, 2), (3, 2, 0, 2), (3, 2, 3, 0), (1, 17, 16, 15)),
            *((33, 20, 33, 18), (9, 70, 65, 66)),
        ),
        ranks=(4,),
        dynamic=((3, 4, 5, 8), (7, 4, 5, 8)),
        differentiable=tuple(names),
        order=2,
        part=narrow("z", "x") if samples == 1 else None,
        batched=("z", "x") if samples == 1 else (),
        nonfinite=("z",),
        **more,
    )


def _coupling_row(
    scale_map: str, activation: str, first: bool, inverse: bool = False, actnorm: bool = False, **more: Any
) -> OperatorRow:
    names = ("x", *(f"{kind}{i}" for i in (1, 2, 3) for kind in ("weight", "bias")), *(_NORM if actnorm else ()))
    kind = f"{', inverse' if inverse else ''}{', actnorm' if actnorm else ''}"
    return OperatorRow(
        name=f"affine_coupling_mlp[{scale_map}, {activation}{kind}]",
        operator="affine_coupling_mlp",
        function=_listed(family.affine_coupling_mlp),
        outputs=("y", "logdet"),
        make=_coupling(scale_map, first, activation, inverse, actnorm),
        # (batch, kept, hidden, changed)
        sizes=(
            *((2, 3, 4, 3), (3, 1, 1, 1), (0, 3, 2, 4), (3, 2, 0, 2), (1, 17, 16, 15)),
            *((33, 20, 33, 18), (9, 34, 65, 130)),
        ),
        ranks=(4,),
        dynamic=((3, 4, 5, 6), (7, 4, 5, 6)),
        differentiable=names,
        order=2,
        part=narrow("x"),
        batched=("x",),
        nonfinite=("x",),
        **more,
    )


ROWS = (
    _row(2, "relu", errors=_ERRORS),
    _row(3, "silu"),
    _row(4, "tanh"),
    _row(1, "relu", bias=False),
    _row(3, "relu", bias=False),
    _row(1, "relu", rows=2, errors=_EACH_ERRORS),
    _row(2, "relu", rows=8),
    _decoder_row(2, 1, "relu", errors=_DECODER_ERRORS),
    _decoder_row(1, 2, "relu"),
    _coupling_row("exp", "relu", True, errors=_COUPLING_ERRORS),
    _coupling_row("tanh", "silu", False),
    _coupling_row("soft_clip", "tanh", True, inverse=True),
    _coupling_row("sigmoid", "relu", False, inverse=True),
    _coupling_row("softplus", "silu", True),
    _coupling_row("exp", "silu", False, actnorm=True, errors=_NORM_ERRORS),
    _coupling_row("tanh", "relu", True, inverse=True, actnorm=True),
)
