"""Two doors to one launcher.

An operator is declared once: its schema, what its outputs look like (``fake``), and its derivative (``vjp``).
:class:`Operator` then opens two doors to the same launchers.

* The *eager door* is a plain ``autograd.Function`` around the launcher, or the launcher itself when no gradient is
  needed. It costs what ``autograd.Function`` costs.
* The *dispatcher door* is ``torch.ops.gmkernels.<name>``: taken under ``torch.compile`` and ``torch.export``, for
  fake tensors and tensor subclasses, and inside dispatch modes.

A derivative is an operator as well, so second order is the derivative of a derivative. The last operator of a chain
has no ``vjp``: differentiating it raises instead of returning something wrong. The same holds for forward-mode AD.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from . import backends as _backends
from . import native as _native

OPERATORS: dict[str, Operator] = {}
ALIASES: dict[str, str] = {}  # public functions that are an operator with its arguments in another order

_library = torch.library.Library("gmkernels", "FRAGMENT")

# The only place that reaches below PyTorch's public surface; each line has a test in tests/ops/test_doors.py.
_functorch_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_forward_ad = torch.autograd.forward_ad
_unpack_dual = torch._VF._unpack_dual
_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_legacy_batched = torch._C._functorch.is_legacy_batchedtensor
_compiling = torch.compiler.is_compiling
_tracing = torch.jit.is_tracing
_grad_enabled = torch.is_grad_enabled


def transforming() -> bool:
    """True inside a ``torch.func`` transform (vmap, grad, jvp, ...) or a level of forward-mode AD."""
    return not _compiling() and (_functorch_active() or _forward_ad._current_level >= 0)


def _look(args: tuple[Any, ...], n: int) -> bool | None:
    """Whether one of the first n arguments wants a gradient; None if one is not a plain tensor that memory holds as is.

    The C++ core has the same function, for less (csrc/door.h).
    """
    tensors = [t for t in args[:n] if t is not None]
    if any(type(t) not in (Tensor, Parameter) or t.is_neg() for t in tensors):
        return None
    return any(t.requires_grad for t in tensors)


_look_at = getattr(_native.door(), "look", _look)


class _Dispatched(TorchDispatchMode):
    """Changes nothing but the door that operators take."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _Node(torch.autograd.Function):
    """The autograd node of every operator, behind either door."""

    @staticmethod
    def forward(ctx: Any, call: tuple[Operator, Callable[..., Any], tuple[Any, ...], str], *tensors: Any) -> Any:
        ctx.call = call
        op, launch, constants, _ = call
        found, shown = launch(*tensors, *constants), op.shown
        if shown is None:
            ctx.save_for_backward(*tensors)
            return found
        ctx.save_for_backward(*tensors, *(found if op.keeps_outputs else found[shown:]))
        return found[:shown]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        op, _, constants, backend = ctx.call
        if op.vjp is None:
            raise NotImplementedError(f"{op.name} cannot be differentiated again: {op.family} is twice differentiable")
        given = ctx.needs_input_grad[1:], ctx.saved_tensors, (*constants, backend), grads
        try:
            return (None, *op.vjp(*given))
        except RuntimeError:
            if not any(g is not None and _legacy_batched(g) for g in grads):
                raise
        # Many cotangents at once (is_grads_batched, vectorize): the dispatcher takes them one by one.
        with _Dispatched():
            return (None, *op.vjp(*given))


# Function.apply without its look at transforms of torch.func, which the eager door has had: a tenth of a small call.
_record = super(torch.autograd.Function, _Node).apply


class Operator:
    """One operator: a schema, its launchers by backend, and two doors.

    Args:
        family: the folder under ``gmkernels/ops``; ``<family>/<backend module>.py`` holds a launcher called ``name``.
        schema: ``name(Tensor a, Tensor? b, int k, str backend) -> (Tensor, Tensor)``. Tensors come first,
            ``backend`` last.
        fake: the same arguments (without ``backend``) to empty outputs of the right shape, dtype and strides.
        reference: the plain-PyTorch definition, with the same arguments as ``fake``; None for a derivative, whose
            backend was settled when its operator was called.
        backends: those that have a launcher.
        keeps_outputs: hand the derivative the outputs too, after the tensor arguments. (There are two or more.)
        internal: the last so many outputs are for the derivative only, which gets them after the tensor arguments;
            the eager door does not show them, and the reference need not have them.
    """

    _MODULES = {"cpu": "native", "cuda": "native", "triton": "triton"}

    def __init__(
        self,
        family: str,
        schema: str,
        fake: Callable[..., Any],
        reference: Callable[..., Any] | None = None,
        backends: tuple[str, ...] = ("cpu", "triton"),
        keeps_outputs: bool = False,
        internal: int = 0,
    ) -> None:
        self.family, self.reference, self.backends = family, reference, backends
        self.keeps_outputs, self.internal = keeps_outputs, internal
        self.name = schema[: schema.index("(")]
        heads = [part.split()[0] for part in schema[schema.index("(") + 1 : schema.index(")")].split(",")]
        self.tensors = sum(head in ("Tensor", "Tensor?") for head in heads)
        outputs = schema[schema.index("->") :].count("Tensor")
        self.shown = outputs - internal if keeps_outputs or internal else None  # None: all there are
        self.vjp: Callable[..., Sequence[Tensor | None]] | None = None
        self._launchers: dict[str, Callable[..., Any]] = {}
        self._cpu_default: str | None = None

        _library.define(schema, tags=torch.Tag.pt2_compliant_tag)
        for key in ("CPU", "CUDA"):
            _library.impl(self.name, self._launch, key)
        _library.impl(self.name, self._autograd, "Autograd")
        torch.library.register_fake(f"gmkernels::{self.name}", lambda *args: fake(*args[:-1]), lib=_library)
        self.handle = getattr(torch.ops.gmkernels, self.name).default
        OPERATORS[self.name] = self

    def derivative(self, vjp: Callable[..., Sequence[Tensor | None]]) -> Callable[..., Sequence[Tensor | None]]:
        """Decorator: register ``vjp(needs, saved, constants, grads) -> one gradient (or None) per tensor argument``.

        ``saved`` are all tensor arguments, then what ``keeps_outputs`` or ``internal`` add. Internal outputs have no
        gradient: the next derivative has to see them as functions of the arguments, or double backward would be silently
        wrong. ``constants`` are the other arguments, the backend last.
        """
        self.vjp = vjp
        return vjp

    def launcher(self, backend: str) -> Callable[..., Any]:
        """The function that runs this operator on a backend, imported on first use."""
        found = self._launchers.get(backend)
        if found is None:
            module = importlib.import_module(f"gmkernels.ops.{self.family}.{self._MODULES[backend]}")
            found = self._launchers[backend] = getattr(module, self.name)
        return found

    def __call__(self, *args: Any) -> Any:
        """Run with ``args`` as in the schema. The last is the backend the caller asked for, ``"auto"`` included."""
        if _compiling() or _dispatch_modes() or _functorch_active() or _forward_ad._current_level >= 0:
            return self._unusual(*args)
        recorded = _look_at(args, self.tensors)
        if recorded is None:
            return self._unusual(*args)
        backend, args = args[-1], args[:-1]
        if self.reference is not None:
            wanted, usual = _backends.setting.name if backend == "auto" else backend, self._cpu_default
            if args[0].is_cpu and (wanted == "auto" or wanted == usual is not None):
                backend = usual or self._settle_cpu_default(args)
            else:
                backend = self._resolve(args, backend)
            if backend == "reference":
                return self.reference(*args)
        launch = self._launchers.get(backend) or self.launcher(backend)
        if recorded and _grad_enabled():
            return _record((self, launch, args[self.tensors :], backend), *args[: self.tensors])
        if _tracing():
            return self._unusual(*args, backend)
        return launch(*args) if self.shown is None else launch(*args)[: self.shown]

    def _settle_cpu_default(self, args: Sequence[Any]) -> str:
        self._cpu_default = self._resolve(args, "auto")
        return self._cpu_default

    def _resolve(self, args: Sequence[Any], backend: str) -> str:
        tensors = [t for t in args[: self.tensors] if t is not None]
        return _backends.resolve(self.name, backend, tensors, self.backends)

    def _unusual(self, *args: Any) -> Any:
        """The reference under transforms of torch.func, which need plain operations to look into; else the dispatcher."""
        *rest, backend = args
        if transforming():
            backend = _backends.plain_only(self.name, backend)
        elif self.reference is not None:
            backend = self._resolve(rest, backend)
        if backend == "reference" and self.reference is not None:
            return self.reference(*rest)
        found = self.handle(*rest, backend)
        return found if self.shown is None else found[: self.shown]

    # ---- behind the dispatcher ----

    def _launch(self, *args: Any) -> Any:
        return self.launcher(args[-1])(*args[:-1])

    def _autograd(self, *args: Any) -> Any:
        *rest, backend = args
        tensors = [t for t in rest[: self.tensors] if t is not None]

        internal: list[Tensor] = []

        def below(*inner: Any) -> Any:
            with _BelowAutograd():
                found = self.handle(*inner, backend)
            internal.extend(found[self.shown :] if self.internal else ())
            return found

        if any(_unpack_dual(t, level=0)[1] is not None for t in tensors):
            # Below, the tangent would be dropped without a word.
            raise NotImplementedError(f"{self.name} has no forward-mode derivative; use backend='reference'")
        if _grad_enabled() and any(t.requires_grad for t in tensors):
            shown = _Node.apply((self, below, tuple(rest[self.tensors :]), backend), *rest[: self.tensors])
            return (*shown, *internal) if self.internal else shown
        return below(*rest)


def backend_for(op: str | Callable[..., object], *tensors: Tensor) -> str:
    """The backend that ``auto`` takes for an operator on these tensors, without running it.

    Args:
        op: the public function or its name, such as ``gmkernels.affine_coupling`` or ``"affine_coupling"``.
        tensors: the tensors of the call.
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", repr(op))
    operator = OPERATORS.get(ALIASES.get(name, name)) or OPERATORS.get(f"random_{name}")
    if operator is None:
        known = [found.name.removeprefix("random_") for found in OPERATORS.values() if found.reference is not None]
        raise ValueError(f"backend_for: unknown operator {name!r}; known are {', '.join(sorted((*known, *ALIASES)))}")
    if not tensors:
        raise ValueError(f"backend_for: give the tensors of the call of {name}")
    return _backends.resolve(name, "auto", tensors, operator.backends)
