"""Two routes to a penalty's gradient by the critic's parameters, and the choice between them."""

from __future__ import annotations

import contextlib
import gc
import types
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gmkernels.core import checks
from gmkernels.core.backends import _constant

from . import library, trace
from .layers import attribute
from .program import Passes, Program

FIRST_ORDER, DOUBLE_BACKWARD = "first-order", "double-backward"


class BatchCoupledWarning(UserWarning):
    """A critic's layer lets samples of a batch see each other, so the gradient of one sample's score is not its own."""


class Route(NamedTuple):
    """The route ``name`` that a penalty takes, and ``why_not`` first order, if it does not."""

    name: str
    why_not: str | None


def penalty_route(critic: Callable[[Tensor], Tensor]) -> Route:
    """Which route the gradient penalties take for a critic as it is now (in training or evaluation), and why.

    Args:
        critic: as for :func:`gmkernels.gradient_penalty`.
    """
    found = _program(_bare(critic))
    return Route(DOUBLE_BACKWARD, found) if isinstance(found, str) else Route(FIRST_ORDER, None)


def _bare(critic: Any) -> Any:
    """A module without the wrappers of torch.compile and of distributed training."""
    while True:
        if hasattr(critic, "_orig_mod"):
            critic = critic._orig_mod
        elif isinstance(critic, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            critic = critic.module
        else:
            return critic


@dataclass
class _Reading:
    """What was made of a critic of some structure, or why nothing was, and whether it has been compared with it."""

    structure: list[Any]
    found: Program | str
    compared: bool = False


_readings: weakref.WeakKeyDictionary[nn.Module, _Reading] = weakref.WeakKeyDictionary()
_warned: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_INTERNAL = frozenset(nn.Module().__dict__) - {"training"}


# Modules and tensors a program knows; what functions and classes hold is theirs.
_BY_IDENTITY = (nn.Module, Tensor, type, types.FunctionType, types.MethodType, types.ModuleType)


def _value(found: Any, depth: int = 3) -> Any:
    """An attribute as something to compare later: plain values, and containers and objects of them; all else by identity."""
    if found is None or isinstance(found, (bool, int, float, complex, str, torch.dtype)):
        return found
    if isinstance(found, (list, tuple)):
        return [_value(part, depth) for part in found]
    if isinstance(found, dict):
        return [(_value(k, depth), _value(v, depth)) for k, v in found.items()]
    if depth > 0 and not isinstance(found, _BY_IDENTITY) and hasattr(found, "__dict__"):
        return id(found), [(k, _value(v, depth - 1)) for k, v in vars(found).items()]
    return id(found)


def _structure(critic: nn.Module) -> list[Any]:
    """All of a critic that its program depends on."""
    found: list[Any] = []
    for name, m in critic.named_modules():
        own = [(k, _value(v)) for k, v in m.__dict__.items() if k not in _INTERNAL]
        hooks = bool(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)
        absent = [k for k, p in m._parameters.items() if p is None] + [k for k, b in m._buffers.items() if b is None]
        found.append((name, id(m), type(m), hooks, own, absent))
    return found


def _reading(critic: Any) -> _Reading:
    if not isinstance(critic, nn.Module):
        return _Reading([], f"the critic is a {type(critic).__name__}, not a module whose layers can be read")
    structure, known = _structure(critic), _readings.get(critic)
    if known is None or known.structure != structure:
        try:
            known = _Reading(structure, trace.read(critic))
        except trace.Unsupported as why:
            known = _Reading(structure, str(why))
        _readings[critic] = known
    return known


def _program(critic: Any, x: Tensor | None = None) -> Program | str:
    """The critic's program, or why it has none; with samples, after a look at whether it does what the critic does."""
    reading = _reading(critic)
    if x is not None and len(x) and not reading.compared and not isinstance(reading.found, str):
        agrees = _agrees(critic, reading.found, x[:4])
        reading.compared = agrees is not None
        if agrees is False:
            reading.found = "its forward pass has other scores or gradients than its layers one after another"
    return reading.found


@contextlib.contextmanager
def _copied_buffers(critic: nn.Module) -> Iterator[None]:
    """Copies in the place of buffers: writing to them, even what they hold, would break graphs of earlier calls."""
    places = [(m._buffers, k, b) for m in critic.modules() for k, b in m._buffers.items() if b is not None]
    copies = {b: b.detach().clone() for _, _, b in places}
    for held, name, b in places:
        held[name] = copies[b]
    try:
        yield
    finally:
        for held, name, b in places:
            held[name] = b


def _agrees(critic: nn.Module, program: Program, x: Tensor) -> bool | None:
    """Whether scores and input gradients are those of the critic's own forward pass: it may switch gradients off, or
    call what its layers do not show. Random numbers and buffers are left as they were. None: numbers that are not finite
    say nothing.
    """
    devices = [x.device] if x.is_cuda else []
    with torch.autocast(x.device.type, enabled=False), torch.inference_mode(False):
        x = x.detach().clone()
        with torch.random.fork_rng(devices), torch.enable_grad(), _copied_buffers(critic):
            leaf = x.clone().requires_grad_()
            scores = critic(leaf)
            if not isinstance(scores, Tensor) or scores.shape[:1] != x.shape[:1] or scores.numel() != len(x):
                return True  # refused with a message of its own
            graph = scores.requires_grad
            g = torch.autograd.grad(scores.sum(), leaf, allow_unused=True)[0] if graph else None
        with torch.no_grad(), torch.random.fork_rng(devices), _copied_buffers(critic):
            passes = Passes(program, trace.gather(program, critic), None)
            ours = passes.forward(x)
            found = passes.backward(torch.ones_like(ours))
    pairs = [(ours, scores.detach()), (torch.zeros_like(x) if g is None else g, x if found is None else found)]
    if not all(bool(b.isfinite().all()) for _, b in pairs):
        return None
    # Not rounding, but another function, is looked for.
    close = 4 * torch.finfo(x.dtype).eps ** 0.5
    return g is not None and all(
        float((a - b).abs().max()) <= close * max(float(b.abs().max()), torch.finfo(b.dtype).tiny) or a.equal(b)
        for a, b in pairs
    )


# Programs by the address of their critic, for a compiler: it cannot follow the reading, and what it takes for a constant
# result must be a number or a text.
_compiled: dict[int, Program | str] = {}
_watched: dict[int, tuple[tuple[str, str, Any], ...]] = {}


@_constant
def _read_for_compiler(address: int) -> bool:
    """Reads the module at an address, as it is when a call is compiled; whether it could be read."""
    critic = next(m for m in gc.get_objects() if id(m) == address)
    found = _compiled[address] = _program(critic)
    _watched[address] = tuple(
        (path, name, value)
        for path, m in critic.named_modules()
        for name, value in m.__dict__.items()
        if name not in _INTERNAL and isinstance(value, (bool, int, float, str))
    )
    return not isinstance(found, str)


def _program_when_compiling(critic: nn.Module) -> Program | str:
    _read_for_compiler(id(critic))
    # What the compiler sees compared it watches, and compiles anew when it changes.
    for path, name, value in _watched[id(critic)]:
        if getattr(attribute(critic, path) if path else critic, name) != value:
            return f"{name} of layer {path!r} changed while it was read"
    return _compiled[id(critic)]


def _warn_if_coupled(op: str, critic: Any) -> None:
    critic = getattr(critic, "__self__", critic)  # of a bound method
    if not isinstance(critic, nn.Module) or critic in _warned:
        return
    for name, m in critic.named_modules():
        if trace.couples(m):
            _warned.add(critic)
            warnings.warn(
                f"{op}: layer {name!r} ({type(m).__name__}) lets the samples of a batch see each other, so the penalty of "
                "one sample is not defined; use layer or instance norm in a critic with a gradient penalty",
                BatchCoupledWarning,
                stacklevel=4,
            )
            return


def penalty(
    op: str,
    critic: Callable[[Tensor], Tensor],
    x: Tensor,
    weight: float,
    target: float,
    one_sided: bool,
    every: int,
    route: str,
    backend: str,
) -> Tensor:
    """``weight * every / B sum_i p(|grad D(x_i)|)`` at given points."""
    checks.choice(op, "route", route, ("auto", FIRST_ORDER, DOUBLE_BACKWARD))
    bare = _bare(critic)
    scale = weight * every / max(1, len(x))
    if route != DOUBLE_BACKWARD:
        if torch.compiler.is_compiling() and isinstance(bare, nn.Module):
            program = _program_when_compiling(bare)
        else:
            program = _program(bare, x)
        if not isinstance(program, str):
            params = trace.gather(program, bare)
            return _first_order(_Call(op, program, params, scale, target, one_sided, backend, _autocast(x)), x)
        if route == FIRST_ORDER:
            raise ValueError(f"{op}: this critic has no first-order route: {program}")
    _warn_if_coupled(op, bare)
    return _double_backward(op, critic, x, scale, target, one_sided, backend)


def _scores(op: str, found: Any, x: Tensor) -> Tensor:
    if not isinstance(found, Tensor):
        raise TypeError(f"{op}: critic must return a tensor, got {type(found).__name__}")
    if found.dim() == 0 or found.shape[0] != len(x) or found.numel() != len(x):
        raise ValueError(
            f"{op}: critic must return one number for each of {len(x)} samples, ({len(x)},) or ({len(x)}, 1), "
            f"got shape {tuple(found.shape)}"
        )
    return found


def _double_backward(
    op: str, critic: Callable[[Tensor], Tensor], x: Tensor, scale: float, target: float, one_sided: bool, backend: str
) -> Tensor:
    record = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        scores = _scores(op, critic(x), x)
        if not scores.requires_grad:
            raise ValueError(f"{op}: the critic's output does not depend on its input by differentiable operations")
        # Each score depends on its own sample alone, so the gradient of their sum holds the gradient of each.
        (g,) = torch.autograd.grad(scores.sum(), x, create_graph=record, allow_unused=True)
    if g is None:
        raise ValueError(f"{op}: the critic's output does not depend on its input")
    return scale * library.norm_penalty(g, target, one_sided, backend).sum()


class _Call(NamedTuple):
    op: str
    program: Program
    params: list[tuple[Any, ...]]
    scale: float
    target: float
    one_sided: bool
    backend: str
    dtype: torch.dtype | None


class FirstOrderPenalty(torch.autograd.Function):
    """The value of a penalty, whose gradients by the parameters are there already."""

    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, *tensors: Tensor) -> Tensor:
        value, found = _passes(call, x, tensors, ctx.needs_input_grad[2:])
        ctx.places = [i for i, g in enumerate(found) if g is not None]
        ctx.save_for_backward(*[g for g in found if g is not None])
        ctx.count = len(tensors)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "the gradient of a first-order penalty is a constant; to differentiate it, use route='double-backward'"
            )
        found: list[Tensor | None] = [None] * ctx.count
        for i, g in zip(ctx.places, torch._foreach_mul(list(ctx.saved_tensors), grad), strict=True):
            found[i] = g
        return None, None, *found


def _first_order(call: _Call, x: Tensor) -> Tensor:
    tensors = [p for step in call.params for p in step if isinstance(p, Tensor)]
    with torch.autocast(x.device.type, enabled=False):
        if not torch.is_grad_enabled():
            return _passes(call, x, tensors, [False] * len(tensors))[0]
        if not torch.compiler.is_compiling():
            return FirstOrderPenalty.apply(call, x, *tensors)
        needs = [t.requires_grad for t in tensors]
        with torch.no_grad():
            value, found = _passes(call, x, tensors, needs)
        # A number that is 0 and has the gradients we know: what a compiler sees through, unlike a Function with a
        # program for an argument.
        for t, g in zip(tensors, found, strict=True):
            if g is not None:
                along = (t * g).sum()
                value = value + (along - along.detach())
        return value


def _passes(
    call: _Call, x: Tensor, tensors: Sequence[Tensor], needs: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """The penalty, and its gradient by each of ``tensors`` that needs one (None where it is 0 throughout)."""
    op, program, params, scale, *how, dtype = call
    given, need = iter(tensors), iter(needs)
    passes = Passes(
        program, [tuple(next(given) if isinstance(p, Tensor) else p for p in step) for step in params], dtype
    )
    scores = _scores(op, passes.forward(x), x)
    g = passes.backward(torch.ones_like(scores))
    if g is None:
        raise ValueError(f"{op}: the critic's output does not depend on its input")
    g = g.to(x.dtype)
    if not any(needs):
        return scale * library.norm_penalty(g, *how).sum(), [None] * len(tensors)
    values, v = library.norm_penalty_gradient(g, *how)
    wanted = [[isinstance(p, Tensor) and next(need) for p in step] for step in params]
    found = [g for gs in passes.gradients(v, wanted) for g in gs]
    tensor = [isinstance(p, Tensor) for step in params for p in step]
    grads = [g for g, counts in zip(found, tensor, strict=True) if counts]
    # Scaled at the end: in half precision, the weight of a small share of a batch would be lost on the way.
    return scale * values.sum(), [
        None if g is None else (g.to(t.dtype) * scale).reshape(t.shape) for t, g in zip(tensors, grads, strict=True)
    ]


def _autocast(x: Tensor) -> torch.dtype | None:
    kind = x.device.type
    if not torch.is_autocast_enabled(kind) or x.dtype is torch.float64:
        return None
    return torch.get_autocast_dtype(kind)
