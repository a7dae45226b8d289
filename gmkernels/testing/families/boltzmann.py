"""Rows for fully connected Boltzmann machines, Hopfield recall, and annealed importance sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gmkernels.ops.gibbs.ais import ais_log_z
from gmkernels.ops.gibbs.boltzmann import boltzmann_gibbs, hopfield_recall

from ..table import Case, ErrorCase, OperatorRow, Sizes, draw

FLOATS = (torch.float32, torch.float64)
_Make = Callable[[Sizes, torch.dtype, torch.Generator], Case]


def _spoil(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda arguments: arguments.update(changes)


def _change(name: str, place: tuple[int, ...], value: float) -> Callable[[dict[str, Any]], None]:
    def change(arguments: dict[str, Any]) -> None:
        arguments[name] = arguments[name].clone()
        arguments[name][place] = value

    return change


# ---- fully connected machines ----------------------------------------------------------------------------------------

# Layouts of the tests would leave no matrix symmetric, so the table's functions take its lower triangle.


def _symmetric(couplings: Tensor) -> Tensor:
    low = couplings.tril(-1)
    return low + low.mT


def _gibbs(*, x: Tensor, couplings: Tensor, turned: bool = False, weight: Tensor | None = None, **rest: Any) -> Tensor:
    if turned:
        rest["order"] = torch.arange(x.shape[1] - 1, -1, -1, device=x.device)
    return boltzmann_gibbs(x, _symmetric(couplings) if weight is None else weight, **rest)


def _recall(*, x: Tensor, couplings: Tensor, weight: Tensor | None = None, **rest: Any) -> tuple[Tensor, Tensor]:
    return hopfield_recall(x, _symmetric(couplings) if weight is None else weight, **rest)


def _states(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator, spin: bool) -> Tensor:
    bits = torch.randint(2, sizes, generator=generator).to(dtype)
    return 2.0 * bits - 1.0 if spin else bits


def _start(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator, spin: bool) -> dict[str, Tensor]:
    units = sizes[1]
    return {
        "x": _states(sizes, dtype, generator, spin),
        "couplings": draw((units, units), dtype, generator, max(1, units) ** -0.5),
        "bias": draw((units,), dtype, generator, 0.3),
    }


def _chains(spin: bool = True, beta: bool = False, clamp: str = "", **constants: Any) -> _Make:
    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        tensors = _start(sizes, dtype, generator, spin)
        tensors["key"] = torch.randint(0, 2**63 - 1, (2,), generator=generator)
        if beta:
            tensors["beta"] = torch.randint(0, 17, sizes[:1], generator=generator).to(dtype) / 8
        if clamp:
            shape = sizes if clamp == "each" else sizes[1:]
            tensors["clamp"] = torch.randint(3, shape, generator=generator) == 0
        return Case(tensors, {"sweeps": 3, "spin": spin, "first": 5, **constants})

    return make


def _chains_part(case: Case, start: int, stop: int) -> Case:
    def cut(name: str, t: Tensor) -> Tensor:
        return t[start:stop] if name in ("x", "beta") or (name == "clamp" and t.dim() == 2) else t

    constants = dict(case.constants)
    if "first" in constants:
        constants["first"] += start
    return Case({name: cut(name, t) for name, t in case.tensors.items()}, constants)


def _patterns(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
    return Case(_start(sizes, dtype, generator, True), {"max_sweeps": 20})


_EYE = torch.eye(4)
_MACHINE_ERRORS = (
    ErrorCase("x is a list", _spoil(x=[[1.0]], weight=_EYE), TypeError, "x must be a torch.Tensor, got list"),
    ErrorCase(
        "half x", _spoil(x=torch.ones(3, 4).half()), TypeError, "x must be float32 or float64, got torch.float16"
    ),
    ErrorCase("double bias", _spoil(bias=torch.zeros(4).double()), TypeError, "share one dtype.*bias torch.float64"),
    ErrorCase("one dimension", _spoil(x=torch.ones(4)), ValueError, r"x must have 2 dimensions .*got shape \(4,\)"),
    ErrorCase("oblong weight", _spoil(weight=torch.ones(4, 5)), ValueError, r"weight must have shape \(4, 4\), got"),
    ErrorCase("long bias", _spoil(bias=torch.zeros(5)), ValueError, r"bias must have shape \(4,\), got \(5,\)"),
    ErrorCase("elsewhere", _spoil(bias=torch.zeros(4, device="meta")), ValueError, "on one device.*bias on meta"),
    ErrorCase("half spin", _change("x", (0, 1), 0.5), ValueError, "x must hold -1 and 1 only.*got 0.5"),
    ErrorCase("state NaN", _change("x", (2, 1), float("nan")), ValueError, "x must hold -1 and 1 only.*got nan"),
    ErrorCase("weight inf", _change("couplings", (2, 1), float("inf")), ValueError, "weight must be finite, got inf"),
    ErrorCase("bias NaN", _change("bias", (1,), float("nan")), ValueError, "bias must be finite, got nan"),
    ErrorCase("diagonal", _spoil(weight=_EYE), ValueError, r"zero diagonal, got weight\[0, 0\] = 1.0"),
    ErrorCase(
        "not symmetric",
        _spoil(weight=torch.ones(4, 4).tril(-1)),
        ValueError,
        r"symmetric, got weight\[0, 1\] = 0.0 and weight\[1, 0\] = 1.0",
    ),
    ErrorCase("backend", _spoil(backend="fast"), ValueError, "unknown backend 'fast'"),
)
_GIBBS_ERRORS = (
    *_MACHINE_ERRORS,
    ErrorCase("bits as spins", _spoil(spin=False), ValueError, "x must hold 0 and 1 only, .*got -1"),
    ErrorCase("sweeps < 0", _spoil(sweeps=-1), ValueError, "sweeps must be a non-negative int, got -1"),
    ErrorCase("sweeps 2.5", _spoil(sweeps=2.5), ValueError, "sweeps must be a non-negative int, got 2.5"),
    ErrorCase("key of floats", _spoil(key=torch.zeros(2)), ValueError, "key must be an int64.*float32"),
    ErrorCase("first < 0", _spoil(first=-1), ValueError, "first must be a non-negative int, got -1"),
    ErrorCase(
        "first 2^32", _spoil(first=2**32 - 2), ValueError, r"numbered up to 2\*\*32 - 1, got first=4294967294 and 3"
    ),
    ErrorCase("beta < 0", _spoil(beta=-0.5), ValueError, "beta must be 0 or more and finite, got -0.5"),
    ErrorCase("beta a list", _spoil(beta=[1.0]), TypeError, "beta must be a number or a tensor, got list"),
    ErrorCase("a beta NaN", _spoil(beta=torch.tensor([1.0, float("nan"), 1.0])), ValueError, "beta must be 0.*got nan"),
    ErrorCase("two betas", _spoil(beta=torch.ones(2)), ValueError, r"beta must have shape \(3,\), got \(2,\)"),
    ErrorCase("clamp of floats", _spoil(clamp=torch.ones(4)), TypeError, "clamp must be a bool tensor, got.*float32"),
    ErrorCase(
        "clamp of 3",
        _spoil(clamp=torch.ones(3) > 0),
        ValueError,
        r"clamp must have shape \(4,\) or \(3, 4\), got \(3,\)",
    ),
    ErrorCase("order a list", _spoil(order=[0, 1, 2, 3]), TypeError, "order must be a torch.Tensor, got list"),
    ErrorCase("order of floats", _spoil(order=torch.ones(4)), TypeError, "order must be an int64 tensor, got.*float32"),
    ErrorCase("order of 3", _spoil(order=torch.arange(3)), ValueError, r"order must have shape \(4,\), got \(3,\)"),
    ErrorCase(
        "a unit twice", _spoil(order=torch.tensor([0, 1, 1, 3])), ValueError, "permutation of the units 0 to 3, got"
    ),
)
_RECALL_ERRORS = (
    *_MACHINE_ERRORS,
    ErrorCase("max_sweeps < 0", _spoil(max_sweeps=-1), ValueError, "max_sweeps must be a non-negative int, got -1"),
)

_COMMON: dict[str, Any] = dict(
    # The last has several tasks of chains, and units in whole and broken packs.
    sizes=((3, 4), (1, 1), (0, 3), (3, 0), (2, 16), (7, 17), (9, 33), (37, 70)),
    ranks=(2,),
    dynamic=((3, 5), (6, 5)),
    limit=1024,
    dtypes=FLOATS,
    part=_chains_part,
)


def _gibbs_row(variant: str, **options: Any) -> OperatorRow:
    return OperatorRow(
        name=f"boltzmann_gibbs[{variant}]",
        operator="boltzmann_gibbs",
        function=_gibbs,
        outputs=("x",),
        make=_chains(**options),
        errors=_GIBBS_ERRORS if variant == "spin" else (),
        exact=("x",),
        same_bits=("x",),
        **_COMMON,
    )


# ---- annealed importance sampling ------------------------------------------------------------------------------------


def _ais(reverse: bool) -> _Make:
    def make(sizes: Sizes, dtype: torch.dtype, generator: torch.Generator) -> Case:
        chains, visible, hidden = sizes
        tensors = {
            "weight": draw((visible, hidden), dtype, generator, max(1, visible, hidden) ** -0.5),
            "visible_bias": draw((visible,), dtype, generator, 0.5),
            "hidden_bias": draw((hidden,), dtype, generator, 0.5),
            "base_visible_bias": draw((visible,), dtype, generator, 0.3),
            "key": torch.randint(0, 2**63 - 1, (2,), generator=generator),
        }
        if reverse:
            tensors["reverse_from"] = _states((chains, visible), dtype, generator, False)
        return Case(tensors, {"num_betas": 7, "first": 5} | ({} if reverse else {"chains": chains}))

    return make


def _ais_part(case: Case, start: int, stop: int) -> Case:
    constants = dict(case.constants, first=case.constants["first"] + start)
    if "chains" in constants:
        constants["chains"] = stop - start
    tensors = {name: t[start:stop] if name == "reverse_from" else t for name, t in case.tensors.items()}
    return Case(tensors, constants)


_AIS_ERRORS = (
    ErrorCase("weight is None", _spoil(weight=None), TypeError, "weight must be a torch.Tensor, got NoneType"),
    ErrorCase("half weight", _spoil(weight=torch.ones(3, 4).half()), TypeError, "weight must be float32 or.*float16"),
    ErrorCase("double bias", _spoil(hidden_bias=torch.ones(4).double()), TypeError, "share one dtype.*float64"),
    ErrorCase("flat weight", _spoil(weight=torch.ones(3)), ValueError, r"weight must have 2 dim.*got shape \(3,\)"),
    ErrorCase("long bias", _spoil(visible_bias=torch.ones(5)), ValueError, r"visible_bias must have shape \(3,\), got"),
    ErrorCase("long base", _spoil(base_visible_bias=torch.ones(5)), ValueError, r"base_visible_bias must have shape"),
    ErrorCase("weight NaN", _change("weight", (0, 0), float("nan")), ValueError, "weight must be finite, got nan"),
    ErrorCase(
        "base inf", _change("base_visible_bias", (0,), float("inf")), ValueError, "base_visible_bias must be fin"
    ),
    ErrorCase("elsewhere", _spoil(hidden_bias=torch.ones(4, device="meta")), ValueError, "one device.*bias on meta"),
    ErrorCase("key is an int", _spoil(key=3), TypeError, "key must be a torch.Tensor, got int"),
    ErrorCase("first < 0", _spoil(first=-1), ValueError, "first must be a non-negative int, got -1"),
    ErrorCase("chains < 0", _spoil(chains=-2), ValueError, "chains must be a non-negative int, got -2"),
    ErrorCase("one beta", _spoil(num_betas=1), ValueError, "num_betas must be 2 or more, got 1"),
    ErrorCase("both", _spoil(betas=torch.linspace(0, 1, 3)), ValueError, "give betas or num_betas, not both"),
    ErrorCase(
        "a schedule from 0.1",
        _spoil(betas=torch.tensor([0.1, 1.0]), num_betas=None),
        ValueError,
        "betas must rise from 0 to 1, got 2 numbers from 0.1",
    ),
    ErrorCase(
        "a schedule that turns back",
        _spoil(betas=torch.tensor([0.0, 0.7, 0.5, 1.0]), num_betas=None),
        ValueError,
        "betas must rise.*do not rise throughout",
    ),
    ErrorCase(
        "grey samples", _spoil(reverse_from=torch.full((2, 3), 0.5)), ValueError, "reverse_from must hold 0 and 1"
    ),
    ErrorCase(
        "long samples", _spoil(reverse_from=torch.ones(2, 5)), ValueError, r"reverse_from must have shape \(2, 3\), got"
    ),
    ErrorCase("other chains", _spoil(reverse_from=torch.ones(3, 3)), ValueError, "chains must be the 3 of.*got 2"),
    ErrorCase("backend", _spoil(backend="gpu"), ValueError, "unknown backend 'gpu'"),
)


def _ais_row(variant: str) -> OperatorRow:
    return OperatorRow(
        name=f"ais_log_z[{variant}]",
        operator="ais_log_z",
        function=ais_log_z,
        outputs=("log_weight",),
        make=_ais(variant == "reverse"),
        # (chains, visible, hidden)
        sizes=((2, 3, 4), (1, 1, 1), (0, 3, 2), (3, 0, 2), (3, 2, 0), (5, 17, 33), (13, 65, 16), (9, 160, 37)),
        ranks=(3,),
        dynamic=((3, 5, 4), (6, 5, 4)),
        limit=2048,
        dtypes=FLOATS,
        errors=_AIS_ERRORS if variant == "forward" else (),
        part=_ais_part,
    )


ROWS = (
    _gibbs_row("spin"),
    _gibbs_row("binary", spin=False),
    _gibbs_row("tempered", beta=True, clamp="each"),
    _gibbs_row("binary, held", spin=False, clamp="all"),
    _gibbs_row("turned", clamp="each", turned=True),
    OperatorRow(
        name="hopfield_recall",
        operator="hopfield_recall",
        function=_recall,
        outputs=("x", "sweeps"),
        make=_patterns,
        errors=_RECALL_ERRORS,
        exact=("x", "sweeps"),
        same_bits=("x", "sweeps"),
        **_COMMON,
    ),
    _ais_row("forward"),
    _ais_row("reverse"),
)
