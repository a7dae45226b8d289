"""The gradient penalty of a critic, and its exact gradient by the critic's parameters, in four passes of first order.

With g_i the gradient of D(x_i) by x_i and p_i the penalty of its norm, held fixed in v_i = dp_i / dg_i,

    d/dtheta sum_i p_i = d/dtheta sum_i <v_i, g_i> = d/dtheta sum_i (the derivative of D at x_i along v_i),

so that one needs the values forward, the cotangents ``a`` backward (which end as g), the tangents ``t`` forward along v,
and the gradients of the parameters from ``a`` and ``t`` (the idea is Pearlmutter's, "Fast exact multiplication by the
Hessian", 1994). Where a layer is curved, the derivative of its slope sends further cotangents ``b`` backward; critics
of piecewise linear layers, the most common, have none. Everything is an ordinary kernel of the library: there is no
graph of a backward pass, and nothing has to be differentiable twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .rules import Rule


@dataclass(frozen=True)
class Step:
    """One layer: ``values[output] = rule(params; values[inputs])``."""

    rule: Rule
    inputs: tuple[int, ...]
    params: tuple[Any, ...]
    output: int
    overwrite: bool
    """Nobody else reads the input."""


@dataclass(frozen=True)
class Make:
    """Something that is not a tensor of the samples: ``[output] = function(*args)``, or an attribute of the critic.

    Among a program's steps it is what is known of a value on the way only, such as a size, and ``output`` the place of a
    value; among its ``constants`` it is made of parameters, before the passes.
    """

    function: Callable[..., Any] | None
    args: Any
    kwargs: Any
    output: int


@dataclass(frozen=True)
class Value:
    """Stands for a value in the arguments of a step."""

    index: int


@dataclass(frozen=True)
class Known:
    """Stands for a constant in the arguments of a step."""

    index: int


@dataclass(frozen=True)
class Program:
    """A critic as a list of steps from value 0, its input."""

    steps: tuple[Step | Make, ...]
    constants: tuple[Make, ...]
    size: int
    output: int


def resolve(found: Any, kind: type[Value] | type[Known], values: Sequence[Any]) -> Any:
    """``found`` with everything of ``kind`` in it replaced by what it stands for."""
    if isinstance(found, kind):
        return values[found.index]
    if isinstance(found, list):
        return [resolve(part, kind, values) for part in found]
    if isinstance(found, tuple):
        return tuple([resolve(part, kind, values) for part in found])
    return found


def made(make: Make, kind: type[Value] | type[Known], values: Sequence[Any]) -> Any:
    assert make.function is not None
    named = {name: resolve(value, kind, values) for name, value in make.kwargs}
    return make.function(*resolve(make.args, kind, values), **named)


def _add(into: list[Any], index: int, term: Tensor | None) -> None:
    if term is not None:
        into[index] = term if into[index] is None else into[index] + term


class Passes:
    """The passes over one batch. Parameters are those of ``program.gather``, step by step."""

    def __init__(self, program: Program, params: Sequence[tuple[Any, ...]], dtype: torch.dtype | None) -> None:
        self.program, self.params, self.dtype = program, list(params), dtype
        self.saved: list[Any] = [None] * len(program.steps)
        self.cotangents: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        program = self.program
        values: list[Any] = [None] * program.size
        values[0] = x
        for i, step in enumerate(program.steps):
            if isinstance(step, Make):
                values[step.output] = made(step, Value, values)
                continue
            self.params[i] = resolve(self.params[i], Value, values)
            inputs = [values[j] for j in step.inputs]
            values[step.output], self.saved[i] = step.rule.value(
                self.params[i], *inputs, dtype=self.dtype, overwrite=step.overwrite
            )
            if step.overwrite:
                values[step.inputs[0]] = None
        return values[program.output]

    def backward(self, a: Tensor) -> Tensor | None:
        """The cotangent of the input, for that of the output."""
        program = self.program
        found: list[Any] = [None] * program.size
        found[program.output] = a
        self.cotangents = [None] * len(program.steps)
        for i in reversed(range(len(program.steps))):
            step = program.steps[i]
            if isinstance(step, Make) or found[step.output] is None:
                continue
            a, found[step.output] = found[step.output], None
            if step.rule.curved or step.params:
                self.cotangents[i] = a
            for j, term in zip(step.inputs, step.rule.pull(self.params[i], self.saved[i], a), strict=True):
                _add(found, j, term)
        return found[0]

    def gradients(self, v: Tensor, wanted: Sequence[Sequence[bool]]) -> list[list[Tensor | None]]:
        """Gradients of ``<v, g>`` by the parameters that are wanted, for each step."""
        program = self.program
        last_use = [0] * program.size
        for i, step in enumerate(program.steps):
            for j in () if isinstance(step, Make) else step.inputs:
                last_use[j] = i
        tangents: list[Any] = [None] * program.size
        tangents[0] = v
        sources: list[Any] = [None] * len(program.steps)
        grads: list[list[Tensor | None]] = [[None] * len(some) for some in wanted]
        for i, step in enumerate(program.steps):
            if isinstance(step, Make):
                continue
            a, p, saved = self.cotangents[i], self.params[i], self.saved[i]
            t = [tangents[j] for j in step.inputs]
            if a is not None:
                if any(wanted[i]):
                    _merge(grads[i], step.rule.weigh(p, saved, a, t[0]), wanted[i])
                if step.rule.curved:
                    sources[i] = step.rule.bend(p, saved, a, *t)
                self.cotangents[i] = None
            if step.output != program.output:
                tangents[step.output] = step.rule.push(p, saved, *t)
            for j in step.inputs:
                if last_use[j] == i:
                    tangents[j] = None
        if any(step_sources is not None for step_sources in sources):
            self._curvature(sources, wanted, grads)
        return grads

    def _curvature(
        self, sources: list[Any], wanted: Sequence[Sequence[bool]], grads: list[list[Tensor | None]]
    ) -> None:
        program = self.program
        found: list[Any] = [None] * program.size
        for i in reversed(range(len(program.steps))):
            step = program.steps[i]
            if isinstance(step, Make):
                continue
            b, found[step.output] = found[step.output], None
            if b is not None:
                p, saved = self.params[i], self.saved[i]
                if any(wanted[i]):
                    _merge(grads[i], step.rule.credit(p, saved, b), wanted[i])
                for j, term in zip(step.inputs, step.rule.pull(p, saved, b), strict=True):
                    _add(found, j, term)
            for j, term in zip(step.inputs, sources[i] or (), strict=False):
                _add(found, j, term)


def _merge(into: list[Tensor | None], terms: Sequence[Tensor | None], wanted: Sequence[bool]) -> None:
    for k, (term, want) in enumerate(zip(terms, wanted, strict=False)):
        if want:
            _add(into, k, term)
