"""Reading a critic: ``torch.fx`` follows its forward pass, and each layer it meets becomes a step with a rule."""

from __future__ import annotations

import operator
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from . import rules
from .layers import (
    ARITHMETIC,
    CONVOLUTIONS,
    FUNCTIONS,
    MODULES,
    OVERWRITING,
    VIEWS,
    Attribute,
    Piece,
    Unsupported,
    attribute,
    conv_rule,
    couples,
    plain_type,
)
from .program import Known, Make, Program, Step, Value, made, resolve

__all__ = ["Unsupported", "couples", "gather", "read"]

_one_at_a_time = threading.RLock()


class _Tracer(fx.Tracer):
    """Leaves are the layers with rules. A layer of this package is followed through its ``plain_forward``."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = plain_type(m) in MODULES or couples(m)
        return known or super().is_leaf_module(m, module_qualified_name)

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    # While one thread traces, torch.fx has modules of all threads come by here.
    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        home = next((c for c in type(m).__mro__ if "plain_forward" in c.__dict__), None)
        if home is not None and type(m).forward is home.forward and not _changed(m):  # type: ignore[attr-defined]
            forward = m.plain_forward
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


class _Reader:
    """Turns a graph into steps. A node is a tensor that depends on the input (``active``), something else that does,
    such as its size (``looks``), or neither (``constants``: parameters and what is made of them).
    """

    def __init__(self, critic: nn.Module) -> None:
        # Called by something else with one argument, its other arguments have their defaults.
        self.critic, self.graph = critic, _Tracer().trace(nn.Sequential(critic))
        self.steps: list[Step | Make] = []
        self.active: dict[fx.Node, int] = {}
        self.looks: dict[fx.Node, int] = {}
        self.constants: dict[fx.Node, int] = {}
        self.makes: list[Make] = []
        self.readers: Counter[int] = Counter()
        self.overwritten: list[tuple[fx.Node, int]] = []
        self.size = 0

    def read(self) -> Program:
        output = None
        for node in self.graph.nodes:
            try:
                if node.op == "placeholder" and not self.active:
                    self.active[node] = self.value()
                elif node.op == "output":
                    output = self.active.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
                    if output is None:
                        raise Unsupported("the critic returns more than one tensor, or one that ignores its input")
                elif any(source in self.active for source in node.all_input_nodes):
                    self.node(node)
                elif any(source in self.looks for source in node.all_input_nodes):
                    self.steps.append(self.make(node, self.looks, self.value()))
                else:
                    self.constant(node)
            except Unsupported as why:
                raise Unsupported(f"{self.name(node)} {why}" if node.op.startswith("call") else str(why)) from None
        assert output is not None
        self.readers[output] += 1
        return Program(self.settled(), tuple(self.makes), self.size, output)

    def settled(self) -> tuple[Step | Make, ...]:
        """The steps, with leave to overwrite what nobody else reads."""
        made = {step.output: step for step in self.steps if isinstance(step, Step)}

        def alone(value: int) -> bool:
            source = made.get(value)
            view = source is not None and isinstance(source.rule, (rules.Reshape, rules.Map))
            return self.readers[value] == 1 and (not view or source is None or alone(source.inputs[0]))

        for node, value in self.overwritten:
            if not alone(value):
                raise Unsupported(f"{self.name(node)} overwrites what something else reads")
        return tuple(
            replace(
                step, overwrite=step.inputs[0] in made and made[step.inputs[0]].rule.fresh and alone(step.inputs[0])
            )
            if isinstance(step, Step) and len(step.inputs) == 1
            else step
            for step in self.steps
        )

    def value(self) -> int:
        self.size += 1
        return self.size - 1

    def late(self, found: Any) -> Any:
        """Arguments in which what stands for nodes has taken their places."""
        if isinstance(found, fx.Node):
            if found in self.constants:
                return Known(self.constants[found])
            if found in self.looks:
                return Value(self.looks[found])
            self.readers[self.active[found]] += 1
            return Value(self.active[found])
        if isinstance(found, tuple):
            return tuple(map(self.late, found))
        if isinstance(found, list):
            return [*map(self.late, found)]
        return found

    def make(self, node: fx.Node, known: dict[fx.Node, int], place: int) -> Make:
        if node.op == "call_module" or any(isinstance(value, (dict, slice)) for value in node.args):
            raise Unsupported("has no rule")
        function = node.target if node.op == "call_function" else _method(str(node.target))
        args, kwargs = self.late(tuple(node.args)), tuple((k, self.late(v)) for k, v in node.kwargs.items())
        known[node] = place
        return Make(function, args, kwargs, place)  # type: ignore[arg-type]

    def constant(self, node: fx.Node) -> None:
        place = len(self.makes)
        if node.op == "get_attr":
            if not _path(node):
                raise Unsupported("the critic makes a constant tensor; let it be a buffer")
            self.makes.append(Make(None, _path(node), (), place))
        else:
            self.makes.append(self.make(node, self.constants, place))
        self.constants[node] = place

    def name(self, node: fx.Node) -> str:
        if node.op == "call_module":
            where = f"layer {_path(node)!r}" if _path(node) else "the critic"
            return f"{where} ({plain_type(self.layer(node)).__name__})"
        return f"{getattr(node.target, '__name__', node.target)}()"

    def layer(self, node: fx.Node) -> nn.Module:
        return self.critic.get_submodule(_path(node))

    def in_place(self, node: fx.Node) -> bool:
        """Whether a step changes its first argument itself."""
        if node.op == "call_module":
            return bool(getattr(self.layer(node), "inplace", False))
        return node.target in OVERWRITING or bool(node.kwargs.get("inplace", False))

    def add(self, node: fx.Node, pieces: Sequence[Piece], *sources: fx.Node) -> None:
        """Append steps, each of the one before, the first of ``sources``."""
        at = tuple(self.active[source] for source in sources)
        if self.in_place(node):
            self.overwritten.append((node, at[0]))
        for rule, params in pieces:
            self.steps.append(Step(rule, at, params, self.value(), False))
            self.readers.update(at)
            at = (self.size - 1,)
        self.active[node] = at[0]

    def node(self, node: fx.Node) -> None:
        first = node.args[0] if node.args else None
        if node.op == "call_module":
            return self.module(node)
        if node.target in ("size", "dim") or (
            node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")
        ):
            self.steps.append(self.make(node, self.looks, self.value()))
            return None
        if node.target in ARITHMETIC and len(node.args) == 2 and not node.kwargs:
            return self.arithmetic(node, ARITHMETIC[node.target])
        if node.target is operator.getitem:
            return self.part(node)
        if node.target in (torch.cat, torch.concat):
            return self.join(node, *node.args, **node.kwargs)
        if not (isinstance(first, fx.Node) and first in self.active):
            raise Unsupported("has no rule")
        others = [n for n in node.all_input_nodes if n is not first]
        tail, kwargs = tuple(node.args[1:]), dict(node.kwargs)
        if any(n in self.active for n in others):
            raise Unsupported("has no rule for two branches of the critic")
        if node.target in VIEWS:
            view = VIEWS[node.target]
            return self.add(node, [(rules.Reshape(view), self.late((*tail, *kwargs.values())))], first)
        if node.target in (F.linear, *CONVOLUTIONS):
            names, dims = CONVOLUTIONS.get(node.target, (("weight", "bias"), 0))
            given: dict[str, Any] = dict(zip(names, tail, strict=False)) | kwargs
            params = self.late((given.pop("weight"), given.pop("bias", None)))
            return self.add(node, [(conv_rule(dims, False, **given) if dims else rules.Linear(), params)], first)
        if node.target not in FUNCTIONS or others:
            raise Unsupported("has no rule")
        return self.add(node, [(FUNCTIONS[node.target](*tail, **kwargs), ())], first)

    def module(self, node: fx.Node) -> None:
        m = self.layer(node)
        if couples(m):
            raise Unsupported("couples the samples of a batch")
        if _changed(m):
            raise Unsupported("has hooks, or another forward method than its class")
        build = MODULES.get(plain_type(m))
        if build is None or len(node.args) != 1 or node.kwargs:
            raise Unsupported("has no rule")
        pieces = [(rule, tuple(p.of(_path(node)) for p in params)) for rule, params in build(m)]
        self.add(node, pieces, cast("fx.Node", node.args[0]))

    def join(self, node: fx.Node, tensors: Any, dim: Any = 0) -> None:
        if not all(isinstance(t, fx.Node) and t in self.active for t in tensors):
            raise Unsupported("joins with a constant")
        if dim == 0:
            raise Unsupported("joins along the batch")
        self.add(node, [(rules.Concatenate(dim), ())], *tensors)

    def part(self, node: fx.Node) -> None:
        """``h[:, a:b]`` and the like, of every sample alike."""
        source, index = cast("tuple[fx.Node, Any]", node.args)
        if not (isinstance(index, tuple) and index[:1] in ((slice(None),), (Ellipsis,)) and not _nodes(index)):
            raise Unsupported("has no rule")

        def back(a: Tensor, h: Tensor) -> Tensor:
            found = torch.zeros_like(h)
            found[index] = a.to(h.dtype)
            return found

        self.add(node, [(rules.Map(lambda h: h[index], back), ())], source)

    def arithmetic(self, node: fx.Node, kind: str) -> None:
        left, right = cast("tuple[Any, Any]", node.args)
        if isinstance(left, fx.Node) and isinstance(right, fx.Node) and left in self.active and right in self.active:
            rule = {"add": rules.Sum(1.0), "sub": rules.Sum(-1.0), "mul": rules.Product()}.get(kind)
            if rule is None:
                raise Unsupported("has no rule for two branches of the critic")
            return self.add(node, [(rule, ())], left, right)
        leads = isinstance(left, fx.Node) and left in self.active
        branch, other = (left, right) if leads else (right, left)
        number, constant = not isinstance(other, fx.Node), self.late(other)
        if kind in ("add", "mul"):
            params = (None, constant) if kind == "add" else (constant, None)
        elif kind == "sub" and (number or not leads):
            params = (None, -other) if leads else (-1.0, constant)
        elif kind == "div" and number and leads:
            params = (1.0 / other, None)
        else:
            raise Unsupported("has no rule")
        return self.add(node, [(rules.Scale(), params)], branch)


def _changed(m: nn.Module) -> bool:
    """Whether more than its class says happens when a layer is called."""
    hooks = m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
    return bool(hooks) or "forward" in m.__dict__


def _method(name: str) -> Callable[..., Any]:
    return lambda t, *args, **kwargs: getattr(t, name)(*args, **kwargs)


def _nodes(index: tuple[Any, ...]) -> bool:
    parts = [(p.start, p.stop, p.step) if isinstance(p, slice) else (p,) for p in index]
    return any(isinstance(value, (fx.Node, Tensor)) for part in parts for value in part)


def _path(node: fx.Node) -> str:
    """Where a layer or parameter is in the critic; empty for itself."""
    return str(node.target).partition(".")[2]


def gather(program: Program, critic: nn.Module) -> list[tuple[Any, ...]]:
    """The parameters of every step, recording for autograd what is made of the critic's own."""
    known: list[Any] = []
    for make in program.constants:
        known.append(attribute(critic, make.args) if make.function is None else made(make, Known, known))
    found: list[tuple[Any, ...]] = []
    for step in program.steps:
        params = () if isinstance(step, Make) else step.params
        read = [p.read(critic) if isinstance(p, Attribute) else p for p in params]
        found.append(tuple([resolve(p, Known, known) for p in read]))
    return found


def read(critic: nn.Module) -> Program:
    """The critic as a program.

    Raises:
        Unsupported: it has a layer without a rule, or it cannot be followed at all; the message says where.
    """
    with _one_at_a_time:
        return _read(critic)


def _read(critic: nn.Module) -> Program:
    before = [(m, dict(m.__dict__)) for m in critic.modules()]
    kept = [(c, c.copy()) for _, found in before for c in found.values() if type(c) in (list, dict, set)]
    try:
        return _Reader(critic).read()
    except Unsupported:
        raise
    except Exception as error:  # what a forward pass can run into when its input is no tensor has no common class
        raise Unsupported(f"torch.fx cannot follow its forward pass: {str(error).splitlines()[0]}") from error
    finally:
        # What the forward pass notes down must not be of a reading.
        for m, found in before:
            m.__dict__.clear()
            m.__dict__.update(found)
        for container, found in kept:
            container.clear()
            container.extend(found) if isinstance(container, list) else container.update(found)
