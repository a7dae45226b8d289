"""Rows for affine coupling, one for every scale map, direction and special form, and for planar flows."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch

from gmkernels.ops.coupling import affine_coupling, planar_flow

from ..table import Case, ErrorCase, OperatorRow, Sizes, draw, narrow

LOW = (torch.float16, torch.bfloat16)


def _affine_make(form: str, **constants: Any) -> Callable[[Sizes, torch.dtype, torch.Generator], Case]:
    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        tensors = {
            # With 16-bit parameters, x stays float32: a flow under mixed precision.
            "x": draw(sizes, torch.float32 if form == "mixed" else dtype, generator, 1.5),
            "log_scale": draw(sizes, dtype, generator, 1.5),
            "shift": draw(sizes, dtype, generator),
        }
        if form == "mask":
            tensors["mask"] = torch.randint(2, sizes[1:], generator=generator) == 0
        if form == "channel mask":
            tensors["mask"] = torch.randint(2, (sizes[1], *[1] * (len(sizes) - 2)), generator=generator) == 0
        if form == "broadcast":
            tensors["log_scale"] = tensors["log_scale"][..., :1]
            tensors["shift"] = tensors["shift"][:1]
        return Case(tensors, dict(constants))

    return make


def _affine_extremes(**constants: Any) -> Callable[[torch.dtype], Case]:
    """Every pair of a log-scale and an x, one per sample, so that no sum blurs them."""
    scales = [0.0, 1e-30, 1e-6, 0.37, 1.0, 2.0, 3.0, 9.7, 17.3, 31.0, 50.0, 80.0, 87.0, 88.5, 89.0, 103.0, 150.0]
    scales += [1e3, 1e10, 3e38]
    values = [0.0, 1e-30, 0.7, 1e3, 1e30]

    def extremes(dtype: torch.dtype) -> Case:
        signed = [sign * s for s in scales for sign in (1.0, -1.0)]
        pairs = torch.tensor(list(itertools.product(signed, values)), dtype=torch.float64).clamp(
            -torch.finfo(dtype).max, torch.finfo(dtype).max
        )
        s, x = pairs.to(dtype).unsqueeze(2).unbind(1)
        return Case({"x": x, "log_scale": s, "shift": torch.zeros_like(x)}, dict(constants))

    return extremes


def _spoil(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arguments: arguments.update(changes)


_AFFINE_ERRORS = (
    ErrorCase("x is a list", _spoil(x=[[1.0]]), TypeError, "x must be a torch.Tensor, got list"),
    ErrorCase("integer x", _spoil(x=torch.ones(3, 4, dtype=torch.int64)), TypeError, "x must be float.*int64"),
    ErrorCase("integer shift", _spoil(shift=torch.ones(3, 4, dtype=torch.int32)), TypeError, "shift must be float.*int32"),
    ErrorCase("two dtypes", _spoil(log_scale=torch.ones(3, 4, dtype=torch.float16)), TypeError, "share one dtype.*float16"),
    ErrorCase("one dimension", _spoil(x=torch.ones(4), log_scale=torch.ones(4), shift=torch.ones(4)), ValueError,
              r"two dimensions or more, got \(4,\)"),
    ErrorCase("wrong shape", _spoil(log_scale=torch.ones(3, 5)), ValueError, r"log_scale must have the shape.*\(3, 5\)"),
    ErrorCase("larger shift", _spoil(shift=torch.ones(2, 3, 4)), ValueError, r"shift must have the shape.*\(2, 3, 4\)"),
    ErrorCase("scale map", _spoil(scale_map="cosh"), ValueError, "scale_map must be one of 'exp'.*got 'cosh'"),
    ErrorCase("clamp 0", _spoil(scale_map="tanh", clamp=0.0), ValueError, "clamp of 'tanh' must be positive, got 0.0"),
    ErrorCase("clamp < 0", _spoil(scale_map="sigmoid", clamp=-1.0), ValueError, "must be 0 or more, got -1.0"),
    ErrorCase("clamp NaN", _spoil(clamp=float("nan")), ValueError, "must be positive, got nan"),
    ErrorCase("float mask", _spoil(mask=torch.ones(4)), TypeError, "mask must be bool, got torch.float32"),
    ErrorCase("mask shape", _spoil(mask=torch.ones(3, dtype=torch.bool)), ValueError, r"mask must broadcast.*\(3,\)"),
    ErrorCase("two devices", _spoil(shift=torch.ones(3, 4, device="meta")), ValueError, "one device.*shift on meta"),
    ErrorCase("backend", _spoil(backend="fast"), ValueError, "unknown backend 'fast'"),
)  # fmt: skip


def _affine(variant: str, form: str = "", **constants: Any) -> OperatorRow:
    plain = form == ""
    return OperatorRow(
        name=f"affine_coupling[{variant}]",
        operator="affine_coupling",
        function=affine_coupling,
        outputs=("y", "logdet"),
        make=_affine_make(form, **constants),
        sizes=((3, 4), (2, 3, 4, 2), (1, 1), (0, 3), (3, 0), (17, 33), (5, 257), (64, 130)),
        ranks=(2, 3, 4),
        dynamic=((3, 8), (7, 12)),
        errors=_AFFINE_ERRORS if variant == "exp" else (),
        dtypes=LOW if form == "mixed" else (torch.float32, torch.float64, *LOW),
        differentiable=("x", "log_scale", "shift"),
        order=2,
        part=narrow("x", "log_scale", "shift") if form != "broadcast" else None,
        batched=("x", "log_scale", "shift"),
        same_bits=("y", "logdet"),
        nonfinite=("x", "log_scale", "shift") if plain else (),
        extremes=_affine_extremes(**constants) if plain else None,
    )


_PLANAR_ERRORS = (
    ErrorCase("z is None", _spoil(z=None), TypeError, "z must be a torch.Tensor, got NoneType"),
    ErrorCase("integer b", _spoil(b=torch.ones(2, dtype=torch.int64)), TypeError, "b must be float.*int64"),
    ErrorCase(
        "z of three dimensions", _spoil(z=torch.ones(3, 4, 1)), ValueError, r"z must have 2 dimensions \(batch, D\)"
    ),
    ErrorCase("u of one dimension", _spoil(u=torch.ones(4)), ValueError, r"u must have 2 dimensions \(K, D\)"),
    ErrorCase("u of another D", _spoil(u=torch.ones(2, 5)), ValueError, r"u must have shape \(2, 4\), got \(2, 5\)"),
    ErrorCase("w of another K", _spoil(w=torch.ones(3, 4)), ValueError, r"w must have shape \(2, 4\), got \(3, 4\)"),
    ErrorCase("b of another K", _spoil(b=torch.ones(3)), ValueError, r"b must have shape \(2,\), got \(3,\)"),
    ErrorCase("two dtypes", _spoil(w=torch.ones(2, 4, dtype=torch.float16)), TypeError, "share one dtype.*float16"),
    ErrorCase("two devices", _spoil(u=torch.ones(2, 4, device="meta")), ValueError, "one device.*u on meta"),
)


def _planar_make(scale: float) -> Callable[[Sizes, torch.dtype, torch.Generator], Case]:
    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        batch, dim, flows = sizes
        # w.z and w.u as large in any dimension: where tanh saturates, a log-determinant is a rounding error.
        side = scale * min(1.0, (4 / max(1, dim)) ** 0.5)
        return Case(
            {
                "z": draw((batch, dim), dtype, generator),
                "u": draw((flows, dim), dtype, generator, side),
                "w": draw((flows, dim), dtype, generator, side),
                "b": draw((flows,), dtype, generator),
            }
        )

    return make


def _planar_extremes(dtype: torch.dtype) -> Case:
    """One sample each of small and large z; |w.u| from 0 to 1e4, where softplus(a) - 1 - a cancels completely."""
    z = torch.tensor([[0.0, 0.0], [1e-20, 1.0], [0.5, -0.5], [30.0, 1.0], [1e4, -1e4]], dtype=dtype)
    u = torch.tensor([[1.0, 0.0], [100.0, 3.0], [-100.0, 3.0], [1e-3, -7.0]], dtype=dtype)
    w = torch.tensor([[0.0, 1.0], [100.0, 0.5], [100.0, -0.5], [1e-3, -6.0]], dtype=dtype)
    return Case({"z": z, "u": u, "w": w, "b": torch.zeros(4, dtype=dtype)})


def _planar(variant: str, scale: float) -> OperatorRow:
    return OperatorRow(
        name=f"planar_flow[{variant}]",
        operator="planar_flow",
        function=planar_flow,
        outputs=("z_K", "logdet"),
        make=_planar_make(scale),
        # (batch, D, K)
        sizes=((3, 4, 2), (0, 4, 2), (4, 1, 1), (5, 3, 0), (17, 7, 5), (33, 2, 8), (65, 17, 3)),
        ranks=(3,),
        dynamic=((3, 4, 2), (7, 4, 2)),
        errors=_PLANAR_ERRORS if variant == "mild" else (),
        limit=2048,
        differentiable=("z", "u", "w", "b"),
        order=2,
        part=narrow("z"),
        batched=("z",),
        nonfinite=("z",),
        extremes=_planar_extremes if variant == "mild" else None,
    )


ROWS = (
    *(_affine(scale_map, scale_map=scale_map)
      for scale_map in ("exp", "tanh", "atan", "sigmoid", "reciprocal_sigmoid", "softplus", "soft_clip")),
    *(_affine(f"{scale_map}, inverse", scale_map=scale_map, inverse=True)
      for scale_map in ("exp", "tanh", "atan", "sigmoid", "reciprocal_sigmoid", "softplus", "soft_clip")),
    _affine("exp, clamp", scale_map="exp", clamp=1.25),
    _affine("tanh, clamp", scale_map="tanh", clamp=0.8, inverse=True),
    _affine("sigmoid, clamp", scale_map="sigmoid", clamp=1e-3),
    _affine("reciprocal_sigmoid, clamp", scale_map="reciprocal_sigmoid", clamp=1e-3, inverse=True),
    _affine("softplus, clamp", scale_map="softplus", clamp=3.0),
    _affine("tanh, mask", form="mask", scale_map="tanh"),
    _affine("exp, channel mask, inverse", form="channel mask", scale_map="exp", inverse=True),
    _affine("tanh, broadcast", form="broadcast", scale_map="tanh"),
    _affine("exp, mixed", form="mixed", scale_map="exp"),
    _affine("soft_clip, mixed, inverse", form="mixed", scale_map="soft_clip", inverse=True),
    _planar("mild", 0.7),
    _planar("steep", 1.5),
)  # fmt: skip
