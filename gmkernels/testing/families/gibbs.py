"""Rows for restricted Boltzmann machines: block Gibbs steps, half-steps, and the free energy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gmkernels.ops.gibbs import library, rbm_gibbs, rbm_sample_hidden, rbm_sample_visible

from ..table import Case, ErrorCase, OperatorRow, Sizes, draw, narrow

FLOATS = (torch.float32, torch.float64)
_Make = Callable[[Sizes, torch.dtype, torch.Generator], Case]

# (chains, visible units); hidden units are made of that.
_SIZES = ((3, 5), (4, 9), (1, 1), (0, 3), (3, 0), (5, 70), (33, 17), (9, 129))
_COMMON: dict[str, Any] = dict(sizes=_SIZES, ranks=(2,), dynamic=((3, 8), (7, 12)), dtypes=FLOATS)


def _spoil(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arguments: arguments.update(changes)


def _hidden(visible: int) -> int:
    return 2 * visible // 3 + 1


def _machine(visible: int, dtype: torch.dtype, generator: torch.Generator) -> dict[str, Tensor]:
    hidden = _hidden(visible)
    return {
        "weight": draw((visible, hidden), dtype, generator, 1.5 / (1.0 + visible) ** 0.5),
        "visible_bias": draw((visible,), dtype, generator),
        "hidden_bias": draw((hidden,), dtype, generator),
    }


def _bits(shape: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randint(2, shape, generator=generator).to(dtype)


def _key(generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2**63 - 1, (2,), generator=generator)


# ---- steps -----------------------------------------------------------------------------------------------------------


def _chains(form: str, **constants: Any) -> _Make:
    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        chains, visible = sizes
        gaussian = constants.get("visible") == "gaussian"
        tensors = {
            "v": draw(sizes, dtype, generator) if gaussian else _bits(sizes, dtype, generator),
            **_machine(visible, dtype, generator),
            "key": _key(generator),
        }
        if form in ("tempered", "all"):
            tensors["beta"] = (torch.randint(1, 9, (chains,), generator=generator) / 4).to(dtype)
        if form in ("clamped", "all"):
            tensors["clamp"] = torch.randint(3, sizes if form == "all" else sizes[1:], generator=generator) == 0
        # A first chain far from 0, so that its number is looked at.
        return Case(tensors, {"first": 2**31 + 5, **constants})

    return make


def _part(*batched: str) -> Callable[[Case, int, int], Case]:
    cut = narrow(*batched)

    def part(case: Case, start: int, stop: int) -> Case:
        return Case(cut(case, start, stop).tensors, dict(case.constants, first=case.constants["first"] + start))

    return part


def _no_number(name: str, value: float) -> Callable[[dict[str, Any]], None]:
    def change(arguments: dict[str, Any]) -> None:
        arguments[name] = arguments[name].clone()
        arguments[name].view(-1)[-1] = value

    return change


_KEY_ERRORS = (
    ErrorCase("key is an int", _spoil(key=3), TypeError, "key must be a torch.Tensor, got int"),
    ErrorCase("key elsewhere", _spoil(key=torch.zeros(2, dtype=torch.int64, device="meta")), ValueError, "key on meta"),
    ErrorCase("first < 0", _spoil(first=-1), ValueError, "first must be a non-negative int, got -1"),
    ErrorCase("too many chains", _spoil(first=2**32 - 2), ValueError, "chains are numbered up to 2.*first=4294967294"),
    ErrorCase("beta of a pair", _spoil(beta=torch.ones(2)), ValueError, r"beta must have shape \(3,\), got \(2,\)"),
    ErrorCase("beta is a number", _spoil(beta=1.0), TypeError, "beta must be a torch.Tensor, got float"),
    ErrorCase("beta < 0", _spoil(beta=torch.tensor([1.0, 0.5, -0.25])), ValueError, "beta must be 0 or more.*got -0.25"),
    ErrorCase("infinite beta", _spoil(beta=torch.full((3,), float("inf"))), ValueError, "beta must be .*finite, got inf"),
    ErrorCase("weight of a list", _spoil(weight=[[1.0]]), TypeError, "weight must be a torch.Tensor, got list"),
    ErrorCase("flat weight", _spoil(weight=torch.ones(5)), ValueError, r"weight must have 2 dimensions .visible, hidden"),
    ErrorCase("weight NaN", _no_number("weight", float("nan")), ValueError, "weight must be finite, got nan"),
    ErrorCase("infinite weight", _no_number("weight", -float("inf")), ValueError, "weight must be finite, got -inf"),
    ErrorCase("backend", _spoil(backend="gpu"), ValueError, "unknown backend 'gpu'"),
)  # fmt: skip

_GIBBS_ERRORS = (
    *_KEY_ERRORS,
    ErrorCase("v is None", _spoil(v=None), TypeError, "v must be a torch.Tensor, got NoneType"),
    ErrorCase("half v", _spoil(v=torch.zeros(3, 5, dtype=torch.float16)), TypeError, "v must be float32 or .*float16"),
    ErrorCase("wide v", _spoil(v=torch.zeros(3, 6)), ValueError, r"v must have shape \(batch, 5\).*got \(3, 6\)"),
    ErrorCase("grey v", _no_number("v", 0.5), ValueError, "v must hold 0 and 1 only, as binary units do, got 0.5"),
    ErrorCase("v NaN", _no_number("v", float("nan")), ValueError, "v must hold 0 and 1 only.*got nan"),
    ErrorCase("long bias", _spoil(hidden_bias=torch.ones(5)), ValueError, r"hidden_bias must have shape \(4,\).*\(5,\)"),
    ErrorCase(
        "two dtypes", _spoil(visible_bias=torch.ones(5, dtype=torch.float64)), TypeError, "share one dtype.*float64"
    ),
    ErrorCase("infinite bias", _no_number("visible_bias", float("inf")), ValueError, "visible_bias must be finite, got inf"),
    ErrorCase("two devices", _spoil(hidden_bias=torch.ones(4, device="meta")), ValueError, "one device.*hidden_bias on m"),
    ErrorCase("steps < 0", _spoil(steps=-1), ValueError, "steps must be from 0 to 2.*got -1"),
    ErrorCase("steps 1.0", _spoil(steps=1.0), TypeError, "steps must be an int, got float"),
    ErrorCase("clamp of floats", _spoil(clamp=torch.ones(3, 5)), TypeError, "clamp must be bool, got torch.float32"),
    ErrorCase(
        "clamp of another shape", _spoil(clamp=torch.ones(3, 4, dtype=torch.bool)), ValueError,
        r"clamp must have shape \(3, 5\) or \(5,\), got \(3, 4\)",
    ),
    ErrorCase("visible", _spoil(visible="softmax"), ValueError, "visible must be one of 'binary', 'gaussian'.*softmax"),
    ErrorCase("precision", _spoil(precision="int8"), ValueError, "precision must be one of 'exact', 'fixed'.*int8"),
    ErrorCase(
        "fixed and Gaussian", _spoil(precision="fixed", visible="gaussian"), ValueError, "'fixed' needs binary visible"
    ),
)  # fmt: skip
_GAUSSIAN_ERRORS = (
    ErrorCase("v NaN", _no_number("v", float("nan")), ValueError, "v must be finite, got nan"),
    ErrorCase("beta 0", _spoil(beta=torch.zeros(3)), ValueError, "beta must be more than 0, for Gaussian.*got 0"),
)


def _gibbs(variant: str, form: str, errors: tuple[ErrorCase, ...] = (), **constants: Any) -> OperatorRow:
    fixed, gaussian = constants.get("precision") == "fixed", constants.get("visible") == "gaussian"
    batched = ["v", *["beta"] * (form in ("tempered", "all")), *["clamp"] * (form == "all")]
    return OperatorRow(
        name=f"rbm_gibbs[{variant}]",
        operator="rbm_gibbs",
        function=rbm_gibbs,
        outputs=("v", "h"),
        make=_chains(form, **constants),
        errors=errors,
        part=_part(*batched),
        exact=() if gaussian else ("v", "h"),
        same_bits=("v", "h") if fixed else (),
        **_COMMON,
    )


# ---- half-steps ------------------------------------------------------------------------------------------------------


def _half(side: str, grey: bool = False, tempered: bool = False, **constants: Any) -> _Make:
    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        chains, visible = sizes
        machine = _machine(visible, dtype, generator)
        given, bias = ("v", "hidden_bias") if side == "hidden" else ("h", "visible_bias")
        shape = sizes if side == "hidden" else (chains, _hidden(visible))
        states = torch.randint(257, shape, generator=generator) / 256 if grey else _bits(shape, dtype, generator)
        tensors = {given: states.to(dtype), "weight": machine["weight"], bias: machine[bias], "key": _key(generator)}
        if tempered:
            tensors["beta"] = (torch.randint(1, 9, (chains,), generator=generator) / 4).to(dtype)
        return Case(tensors, {"first": 5, **constants})

    return make


def _conditional(variant: str, side: str, errors: tuple[ErrorCase, ...] = (), **options: Any) -> OperatorRow:
    batched = ["v" if side == "hidden" else "h", *["beta"] * bool(options.get("tempered"))]
    return OperatorRow(
        name=f"rbm_sample_{side}[{variant}]",
        operator="rbm_conditional",
        function=rbm_sample_hidden if side == "hidden" else rbm_sample_visible,
        outputs=("sample", "mean"),
        make=_half(side, **options),
        errors=errors,
        part=_part(*batched),
        exact=() if options.get("visible") == "gaussian" else ("sample",),
        **_COMMON,
    )


_CONDITIONAL_ERRORS = (
    *_KEY_ERRORS,
    ErrorCase("v is a list", _spoil(v=[[1.0]]), TypeError, "v must be a torch.Tensor, got list"),
    ErrorCase("bias of 5", _spoil(hidden_bias=torch.ones(5)), ValueError, r"hidden_bias must have shape \(4,\)"),
    ErrorCase("v infinite", _no_number("v", float("inf")), ValueError, "states must be finite, got inf"),
)


# ---- the free energy -------------------------------------------------------------------------------------------------


def hidden_free_energy(field: Tensor, *, backend: str = "auto") -> Tensor:
    """The operator inside :func:`gmkernels.rbm_free_energy`: what follows PyTorch's own matrix product."""
    return library.rbm_softplus_sum(field, backend)


def _extremes(dtype: torch.dtype) -> Case:
    sizes = [0.0, 1e-30, 1e-5, 0.7, 1.0, 8.0, 16.0, 17.5, 50.0, 88.0, 89.0, 104.0, 1e4, 1e30]
    return Case({"field": torch.tensor([[sign * size] for size in sizes for sign in (1.0, -1.0)]).to(dtype)})


_ENERGY = OperatorRow(
    name="rbm_free_energy[field]",
    operator="rbm_softplus_sum",
    function=hidden_free_energy,
    outputs=("energy",),
    make=lambda sizes, dtype, generator: Case({"field": draw(sizes, dtype, generator, 3.0)}),
    errors=(ErrorCase("backend", _spoil(backend="gpu"), ValueError, "unknown backend 'gpu'"),),
    differentiable=("field",),
    order=2,
    part=narrow("field"),
    batched=("field",),
    same_bits=("energy", "grad_field", "double_field"),
    nonfinite=("field",),
    extremes=_extremes,
    **{**_COMMON, "dtypes": (*FLOATS, torch.float16, torch.bfloat16)},
)

ROWS = (
    _gibbs("exact", "plain", _GIBBS_ERRORS, steps=2),
    _gibbs("exact, tempered and clamped", "all", steps=3),
    _gibbs("exact, no step", "plain", steps=0),
    _gibbs("fixed", "plain", _GIBBS_ERRORS, steps=3, precision="fixed"),
    _gibbs("fixed, tempered", "tempered", steps=2, precision="fixed"),
    _gibbs("fixed, clamped", "clamped", steps=2, precision="fixed"),
    _gibbs("Gaussian", "all", _GAUSSIAN_ERRORS, steps=2, visible="gaussian"),
    _conditional("states", "hidden", _CONDITIONAL_ERRORS),
    _conditional("grey values, tempered", "hidden", grey=True, tempered=True),
    _conditional("states", "visible"),
    _conditional("Gaussian", "visible", visible="gaussian", grey=True, tempered=True),
    _ENERGY,
)
