"""What a call costs before any work is done: ``affine_coupling`` on 8 elements through every door.

* ``launcher``: the function that calls the kernel; no graph.
* ``bare``: a plain ``autograd.Function`` around the launcher, recording: the least any custom gradient costs.
* ``operator``: the door without validation. Here and below, ``-grad`` records a graph for inputs that require one.
* ``public``: ``gmkernels.affine_coupling``, validation and choice of backend included.
* ``dispatcher``: ``torch.ops.gmkernels.affine_coupling``.
* ``compiled``: ``gmkernels.affine_coupling`` inside ``torch.compile``, guards included.
* ``eager``: plain PyTorch.

In ``fwd`` only the call is timed, in ``fwd+bwd`` the gradient as well. ``extra_us`` is the difference to ``bare``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import gmkernels as gmk
from gmkernels.core import doors
from gmkernels.ops.coupling import library

from .case import Case, Inputs, Program, Provider, Refused, Setting, differentiate, leaf

_HOW = ("tanh", 2.0, False)
_CALL = (None, *_HOW, True)  # tanh is kept for backward


def _inputs(setting: Setting) -> Inputs:
    normal = setting.stream()
    return Inputs({name: normal(2, 4) for name in "xst"}, (normal(2, 4), normal(2, wide=True)))


def _truth(inputs: Inputs, maths: str, mode: str) -> list[Tensor]:
    def definition(x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return gmk.affine_coupling(x, s, t, scale_map="tanh", backend="reference")

    return differentiate(definition, list(inputs.tensors.values()), inputs, mode)


def _backend(x: Tensor) -> str:
    """The fastest backend that has a launcher."""
    name = gmk.backend_for(gmk.affine_coupling, x)
    if name == "reference":
        raise Refused("no kernel runs here; python -m gmkernels says why")
    return name


class _Bare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, launch: Any, launch_backward: Any, x: Tensor, s: Tensor, t: Tensor) -> Any:
        ctx.launch_backward = launch_backward
        y, logdet, inner = launch(x, s, t, *_CALL)
        ctx.save_for_backward(x, s, t, inner)
        return y, logdet

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_logdet: Tensor) -> Any:
        *inputs, inner = ctx.saved_tensors
        grad_x, grad_s = ctx.launch_backward(grad_y, grad_logdet, *inputs, None, inner, *_HOW)
        return None, None, grad_x, grad_s, grad_y


def _public(x: Tensor, s: Tensor, t: Tensor) -> Sequence[Tensor]:
    return gmk.affine_coupling(x, s, t, scale_map="tanh")


def _plain(x: Tensor, s: Tensor, t: Tensor) -> Sequence[Tensor]:
    a = 2.0 * torch.tanh(s)
    return x * torch.exp(a) + t, a.sum(dim=1)


def _launcher(backend: str) -> Callable[..., Any]:
    launch = library.affine_coupling.launcher(backend)
    return lambda x, s, t: launch(x, s, t, *_CALL)[:2]


def _bare(backend: str) -> Callable[..., Any]:
    launch = library.affine_coupling.launcher(backend)
    launch_backward = library.affine_coupling_backward.launcher(backend)
    return lambda x, s, t: _Bare.apply(launch, launch_backward, x, s, t)


def _operator(backend: str) -> Callable[..., Any]:
    operator: doors.Operator = library.affine_coupling
    return lambda x, s, t: operator(x, s, t, *_CALL, backend)


def _dispatcher(backend: str) -> Callable[..., Any]:
    handle = torch.ops.gmkernels.affine_coupling.default
    return lambda x, s, t: handle(x, s, t, *_CALL, backend)[:2]


def _compiled(backend: str) -> Callable[..., Any]:
    return torch.compile(_public, fullgraph=True, dynamic=False)


def _modes(records: bool) -> tuple[str, ...]:
    return ("fwd", "fwd+bwd") if records else ("fwd",)


def _provider(name: str, door: Callable[[str], Callable[..., Any]], records: bool) -> Provider:
    def build(inputs: Inputs, mode: str) -> Program:
        backend = _backend(inputs["x"])
        leaves = [leaf(t) if records else t for t in inputs.tensors.values()]
        function, (x, s, t) = door(backend), leaves
        return Program(lambda: function(x, s, t), leaves, records=records, backend=backend)

    return Provider(name, build, modes=_modes(records), library=True)


def _eager(records: bool) -> Provider:
    def build(inputs: Inputs, mode: str) -> Program:
        x, s, t = leaves = [leaf(t) if records else t for t in inputs.tensors.values()]
        return Program(lambda: _plain(x, s, t), leaves, records=records)

    return Provider("eager-grad" if records else "eager", build, modes=_modes(records))


_DOORS = {"operator": _operator, "public": lambda backend: _public, "dispatcher": _dispatcher, "compiled": _compiled}
CASES = (
    Case(
        family="overhead",
        name="call-8",
        shape="2 x 4",
        inputs=_inputs,
        truth=_truth,
        providers=[
            _provider("launcher", _launcher, records=False),
            _provider("bare", _bare, records=True),
            *(
                _provider(name + ("-grad" if records else ""), door, records)
                for name, door in _DOORS.items()
                for records in (False, True)
            ),
            _eager(False),
            _eager(True),
        ],
        relative_to="bare",
    ),
)
