"""What a benchmark case is made of, and what its providers may say.

A :class:`Case` declares inputs, the float64 truth, and its providers. A :class:`Provider` builds a :class:`Program`:
a call without arguments that computes the case once. Adding a family is a file with a tuple ``CASES`` and its name in
``FAMILIES``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import gmkernels as gmk

FAMILIES = (
    "coupling", "minibatch", "penalty", "gaussian", "vae", "gan", "flows",
    "realnvp", "masked_conv", "masked_linear", "mlp", "gibbs", "autoregressive", "made", "random", "overhead",
    "virtual_batch_norm", "metrics",
)  # fmt: skip
MODES = ("fwd", "fwd+bwd", "inverse", "sample", "step")


class Missing(Exception):
    """A provider is not installed here: no row, unless it was asked for by name."""


class Refused(Exception):
    """A provider cannot run this case: a row with the reason instead of a speed."""


@dataclass(frozen=True)
class Setting:
    """Where and in which dtype a case runs."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    seed: int = 0

    def stream(self) -> Callable[..., Tensor]:
        """``normal(*shape, scale=1.0, wide=False)``: numbers that are the same on every device, drawn in float32 and
        then rounded to the dtype, or with ``wide`` to that of log-determinants."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int, scale: float = 1.0, wide: bool = False) -> Tensor:
            dtype = torch.promote_types(self.dtype, torch.float32) if wide else self.dtype
            return (torch.randn(*shape, generator=generator) * scale).to(self.device, dtype)

        return normal


@dataclass(frozen=True)
class Inputs:
    """Tensors by name, and the fixed random cotangents of the outputs."""

    tensors: Mapping[str, Tensor]
    cotangents: Sequence[Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors.values())


@dataclass(frozen=True)
class Program:
    """One provider, ready to run.

    Args:
        call: computes the outputs in the form of the definition.
        leaves: what ``fwd+bwd`` differentiates by.
        gradients: the gradients of the leaves as gradients of the case's inputs. Used by the check, never timed.
        results: in its place for a case that draws noise: outputs and gradients without what depends on the draw.
        records: build the autograd graph in ``fwd`` mode too.
        backend: what runs it, where the provider can say.
        times: the case is this many such calls, of equal work. The row says so by its variant.
    """

    call: Callable[[], Sequence[Tensor]]
    leaves: Sequence[Tensor] = ()
    gradients: Callable[[Sequence[Tensor]], Sequence[Tensor]] = tuple
    results: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = None
    records: bool = False
    backend: str | None = None
    times: float = 1.0


Built = Program | Mapping[str, Callable[[], Program]]


@dataclass(frozen=True)
class Provider:
    """One column of a table.

    Args:
        build: ``(inputs, mode) -> Program``, or several by name, of which the fastest correct one counts.
        maths: which function it computes, where providers of a case differ in it; ratios are taken within one.
        package: the distribution whose version a row records.
        needs: ``mode -> bytes`` it is known to allocate, so that a machine too small for it is not brought down.
        modes: those it takes part in, of the case's.
        library: it measures a part of this library under another name than ``gmkernels``.
    """

    name: str
    build: Callable[[Inputs, str], Built]
    maths: str = ""
    package: str | None = None
    needs: Callable[[str], int] | None = None
    modes: Sequence[str] = MODES
    library: bool = False

    @property
    def ours(self) -> bool:
        """Whether its speed depends on this library."""
        return self.name == "gmkernels" or self.library

    @property
    def key(self) -> str:
        return f"{self.name} [{self.maths}]" if self.maths else self.name


@dataclass(frozen=True)
class Case:
    """One line of a table.

    Args:
        inputs: ``setting -> Inputs``.
        truth: ``(inputs, maths, mode)`` to the outputs in float64, followed in ``fwd+bwd`` by the gradients.
        elements: how many numbers each mode must move between memory and core (a memory-bound case).
        flops: how many operations each mode must do (a compute-bound case).
        accounting: how they were counted.
        relative_to: the provider whose time is subtracted from the others' (an overhead case).
    """

    family: str
    name: str
    shape: str
    inputs: Callable[[Setting], Inputs]
    truth: Callable[[Inputs, str, str], Sequence[Tensor]]
    providers: Sequence[Provider]
    modes: Sequence[str] = ("fwd", "fwd+bwd")
    elements: Mapping[str, int] = field(default_factory=dict)
    flops: Mapping[str, int] = field(default_factory=dict)
    accounting: str = ""
    relative_to: str | None = None

    @property
    def id(self) -> str:
        return f"{self.family}:{self.name}"


def cases(selection: Sequence[str] = ("all",)) -> list[Case]:
    """The cases that ``FAMILY``, ``FAMILY:CASE`` or ``all`` select, in order."""
    known = [case for family in FAMILIES for case in importlib.import_module(f"benchmarks.{family}").CASES]
    for wanted in selection:
        if wanted != "all" and not any(wanted in (case.family, case.id) for case in known):
            names = ", ".join(["all", *FAMILIES, *(case.id for case in known)])
            raise ValueError(f"unknown case {wanted!r}; expected one of {names}")
    return [case for case in known if {"all", case.family, case.id} & set(selection)]


@functools.cache
def declared_in() -> dict[str, str]:
    """The file of each case, by the case's id."""
    return {case.id: file for file in FAMILIES for case in importlib.import_module(f"benchmarks.{file}").CASES}


def peer(package: str, module: str | None = None) -> ModuleType:
    """Import a peer, or say how to get it."""
    try:
        return importlib.import_module(module or package)
    except ImportError as error:
        raise Missing(f"{package} cannot be imported ({error}); pip install '.[peers]'") from error


def version_of(package: str | None) -> str | None:
    return importlib.metadata.version(package) if package else None


def leaf(value: Tensor) -> Tensor:
    """A view of the same memory, same strides, that gradients can be asked for."""
    return value.detach().requires_grad_()


def differentiate(
    function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor], inputs: Inputs, mode: str
) -> list[Tensor]:
    """The truth of a mode from a definition: ``function`` of the tensors in float64, and its gradients."""
    wide = [t.detach().double().requires_grad_(mode == "fwd+bwd") for t in tensors]
    outputs = list(function(*wide))
    if mode != "fwd+bwd":
        return outputs
    cotangents = [c.double() for c in inputs.cotangents]
    return [t.detach() for t in (*outputs, *torch.autograd.grad(outputs, wide, cotangents))]


def plain(function: Callable[..., Sequence[Tensor]], leaves: Sequence[Tensor]) -> Program:
    """A program that calls ``function`` on the leaves."""
    return Program(lambda: function(*leaves), leaves)


def compiled(
    formulations: Mapping[str, Callable[..., Any]], leaves: Sequence[Tensor]
) -> Mapping[str, Callable[[], Program]]:
    """Every formulation under ``torch.compile``, in its default mode and with ``max-autotune``; the fastest counts."""

    def build(function: Callable[..., Any], mode: str) -> Callable[[], Program]:
        return lambda: plain(torch.compile(function, fullgraph=True, dynamic=False, mode=mode), leaves)

    return {
        f"{name}{mode}".strip(", "): build(function, mode)
        for name, function in formulations.items()
        for mode in ("default", "max-autotune")
    }


def backend_of(operator: Callable[..., object], *tensors: Tensor) -> str:
    return gmk.backend_for(operator, *tensors)
