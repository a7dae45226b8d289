"""Which implementation runs a call, and why another cannot.

A backend is one of

* ``reference`` - the plain-PyTorch definition, on any device;
* ``cpu`` - the C++ core, on CPU tensors;
* ``triton`` - Triton kernels, on CUDA tensors (on CPU tensors only under ``TRITON_INTERPRET=1``);
* ``cuda`` - the CUDA C++ core, on CUDA tensors.

``auto`` takes the fastest that can run and may fall through to ``reference``; any other name is an order: it runs
there or raises :class:`BackendError` with the reason.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

_P = ParamSpec("_P")
_R = TypeVar("_R")

BACKENDS = ("reference", "cpu", "triton", "cuda")


class BackendError(RuntimeError):
    """An explicitly requested backend cannot run this call."""


class setting:
    """The process-wide choice. A plain attribute, because torch.compile can guard on it and not on a ContextVar."""

    name = "auto"


def _checked(name: str, source: str) -> str:
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"{source}: unknown backend {name!r}; expected 'auto', {', '.join(map(repr, BACKENDS))}")
    return name


setting.name = _checked(os.environ.get("GMKERNELS_BACKEND", "auto"), "GMKERNELS_BACKEND")


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every call inside the ``with`` block on one backend (process-wide, like ``torch.set_num_threads``).

    An explicit ``backend=`` argument of a call still wins.
    """
    before, setting.name = setting.name, _checked(name, "use_backend")
    try:
        yield
    finally:
        setting.name = before


def _constant(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """What torch.compiler.assume_constant_result does, without its import of the whole compiler (over a second)."""
    function.__dict__["_dynamo_marked_constant"] = True
    return function


# torch.compile traces through functools.cache, into imports and files; so each cache has a door that it does not open.
@_constant
def unavailable(name: str) -> str | None:
    """Why a backend cannot run on this machine at all; ``None`` if it can."""
    return _unavailable(name)


@functools.cache
def _unavailable(name: str) -> str | None:
    from . import native

    if name == "cpu":
        return native.cpu_error()
    if name == "cuda":
        return native.cuda_error()
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed (pip install 'gmkernels[triton]')"
        if not torch.cuda.is_available() and not interpreting():
            return "no CUDA device is available, and TRITON_INTERPRET=1 is not set"
    return None


def interpreting() -> bool:
    """True when Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not(name: str, tensors: Sequence[Tensor], supported: Sequence[str] = BACKENDS) -> str | None:
    """Why ``name`` cannot run an operator on these tensors; ``None`` if it can."""
    if name == "reference":
        return None
    if name not in supported:
        return f"this operator has no {name!r} implementation (it has {', '.join(supported)})"
    if (reason := unavailable(name)) is not None:
        return reason
    device = tensors[0].device.type if tensors else "cpu"
    if name == "cpu" and device != "cpu":
        return f"the C++ core runs on CPU tensors, got {device}"
    if name == "cuda" and device != "cuda":
        return f"the CUDA core runs on CUDA tensors, got {device}"
    if name == "triton":
        if device == "cpu" and not interpreting():
            return "Triton runs on CUDA tensors (on CPU tensors only under TRITON_INTERPRET=1), got cpu"
        if any(t.dtype == torch.float64 for t in tensors):
            return "the Triton kernels take float16, bfloat16 and float32, got float64"
    return None


@_constant
def _preference(device: str, supported: tuple[str, ...]) -> tuple[str, ...]:
    return _order(device, supported)


@functools.cache
def _order(device: str, supported: tuple[str, ...]) -> tuple[str, ...]:
    order = ("cpu",) if device == "cpu" else ("triton", "cuda") if device == "cuda" else ()
    return tuple(name for name in order if name in supported and unavailable(name) is None)


def resolve(op: str, backend: str, tensors: Sequence[Tensor], supported: tuple[str, ...]) -> str:
    """The backend this call runs on."""
    name = setting.name if backend == "auto" else _checked(backend, op)
    if name == "auto":
        for candidate in _preference(tensors[0].device.type, supported):
            # The C++ core takes every floating dtype, so only the others need to look closer.
            if candidate == "cpu" or why_not(candidate, tensors, supported) is None:
                return candidate
        return "reference"
    if name != "reference" and (reason := why_not(name, tensors, supported)) is not None:
        raise BackendError(f"{op}: backend {name!r} cannot run this call: {reason}")
    return name


def plain_only(op: str, backend: str) -> str:
    """The reference, where nothing else can run: under the transforms of torch.func and forward-mode AD."""
    name = setting.name if backend == "auto" else _checked(backend, op)
    if name not in ("auto", "reference"):
        raise BackendError(
            f"{op}: backend {name!r} cannot run under a torch.func transform or forward-mode AD; use 'reference'"
        )
    return "reference"
