"""The operator table: what there is to know about an operator in order to test it.

A row describes one public operator, or one variant of it that deserves every test (a scale map, a direction). The
generated suite in ``tests/ops`` asks nothing else, so a new operator gets all of its rigour by adding a row to
``gmkernels/testing/families/<family>.py``. The idea of such a table is PyTorch's OpInfo.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gmkernels.core import doors

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One call: its tensors by argument name, and every other keyword argument."""

    tensors: dict[str, Tensor]
    constants: dict[str, Any] = field(default_factory=dict)

    def map(self, change: Callable[[Tensor], Tensor]) -> Case:
        return replace(self, tensors={name: change(t) for name, t in self.tensors.items()})

    def to(self, target: torch.dtype | torch.device | str) -> Case:
        """Every floating tensor, and a ``dtype`` constant, in another dtype; or everything on another device."""
        if not isinstance(target, torch.dtype):
            return self.map(lambda t: t.to(target))
        constants = {name: target if name == "dtype" else value for name, value in self.constants.items()}
        return Case(self.map(lambda t: t.to(target) if t.is_floating_point() else t).tensors, constants)


@dataclass(frozen=True)
class ErrorCase:
    """A call that must raise. ``change`` takes the arguments of a good call and spoils them in place."""

    name: str
    change: Callable[[dict[str, Any]], None]
    error: type[Exception]
    match: str


@dataclass(frozen=True, repr=False)
class OperatorRow:
    """One operator, or one variant of it, as the generated tests see it.

    Args:
        name: unique; the operator's name, variants in brackets.
        operator: its name in ``gmkernels.core.doors.OPERATORS``.
        function: the public function, called with tensors and constants by keyword.
        outputs: a name for every output.
        make: ``make(sizes, dtype, generator)`` gives a case on the CPU.
        sizes: size tuples worth a test each; the first one is small enough for a slow gradcheck.
        ranks: the lengths a size tuple may have.
        limit: no random size tuple has a larger product than this.
        dynamic: two size tuples that one compiled graph with dynamic shapes must serve.
        errors: calls that must raise.
        dtypes: what ``make`` takes.
        differentiable: the tensors that have gradients.
        order: how often it can be differentiated, 0 or 2.
        endless: it has derivatives of every order, so that a third one is right and does not raise.
        part: ``part(case, start, stop)``, the case of some of the rows; None if it is not row-wise.
        batched: the tensors with a row for each row of the outputs, whose gradients split like the outputs.
        exact: outputs whose value does not depend on the backend at all (integers, 0 and 1, uniforms).
        same_bits: outputs and gradients that the C++ core and Triton must agree on bit for bit.
        nonfinite: tensors in which NaN and infinities have to do what they do in the reference.
        extremes: a case of tiny, huge and boundary values, one per row.
    """

    name: str
    operator: str
    function: Callable[..., Any]
    outputs: tuple[str, ...]
    make: Callable[[Sizes, torch.dtype, torch.Generator], Case]
    sizes: tuple[Sizes, ...]
    ranks: tuple[int, ...]
    dynamic: tuple[Sizes, Sizes]
    errors: tuple[ErrorCase, ...] = ()
    limit: int = 4096
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    differentiable: tuple[str, ...] = ()
    order: int = 0
    endless: bool = False
    part: Callable[[Case, int, int], Case] | None = None
    batched: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()
    same_bits: tuple[str, ...] = ()
    nonfinite: tuple[str, ...] = ()
    extremes: Callable[[torch.dtype], Case] | None = None

    def __repr__(self) -> str:
        return self.name

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.name)  # what hypothesis shows

    @property
    def backends(self) -> tuple[str, ...]:
        """The backends that claim this operator, the reference first."""
        return ("reference", *doors.OPERATORS[self.operator].backends)

    def case(self, sizes: Sizes, dtype: torch.dtype = torch.float32, seed: int = 0) -> Case:
        return self.make(sizes, dtype, torch.Generator().manual_seed(seed))

    def call(self, case: Case, backend: str = "auto") -> tuple[Tensor, ...]:
        out = self.function(**case.tensors, **case.constants, backend=backend)
        return out if isinstance(out, tuple) else (out,)


def draw(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator, scale: float = 1.0) -> Tensor:
    """Bell-shaped numbers of about this standard deviation, within four of them.

    Made of integers, because ``torch.randn`` differs in its last bits from one instruction set to another and the
    error ledger must not.
    """
    sides = torch.randint(-(2**20), 2**20 + 1, (5, *shape), generator=generator)
    return (sides.sum(0).double() * (scale * 0.77459 * 2.0**-20)).to(dtype)


def narrow(*names: str) -> Callable[[Case, int, int], Case]:
    """The ``part`` of an operator whose tensors ``names`` are cut along dimension 0."""

    def part(case: Case, start: int, stop: int) -> Case:
        cut = {name: t[start:stop] if name in names else t for name, t in case.tensors.items()}
        return replace(case, tensors=cut)

    return part


@functools.cache
def rows() -> dict[str, OperatorRow]:
    """Every row of the table by name, from the modules of ``gmkernels.testing.families``."""
    from . import families as folder

    found: dict[str, OperatorRow] = {}
    for module in pkgutil.iter_modules(folder.__path__):
        for row in importlib.import_module(f"{folder.__name__}.{module.name}").ROWS:
            if row.name in found:
                raise ValueError(f"the operator table has two rows called {row.name!r}")
            found[row.name] = row
    return found


def public_operators() -> list[str]:
    """The registered operators that users call: all but the derivatives, which end in ``_backward``."""
    return [name for name in doors.OPERATORS if not name.endswith("_backward")]
