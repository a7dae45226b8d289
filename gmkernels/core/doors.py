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

OPERATORS: dict[str, Operator] = {}

_library = torch.library.Library("gmkernels", "FRAGMENT")
_PLAIN = (Tensor, Parameter)

# The only place that reaches below PyTorch's public surface; each line has a test in tests/ops/test_doors.py.
_functorch_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_forward_ad = torch.autograd.forward_ad
_unpack_dual = torch._VF._unpack_dual
_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_compiling = torch.compiler.is_compiling
_grad_enabled = torch.is_grad_enabled


def transforming() -> bool:
    """True inside a ``torch.func`` transform (vmap, grad, jvp, ...) or a level of forward-mode AD."""
    return not _compiling() and (_functorch_active() or _forward_ad._current_level >= 0)


class _Node(torch.autograd.Function):
    """The autograd node of every operator, behind either door."""

    @staticmethod
    def forward(ctx: Any, op: Operator, launch: Callable[..., Any], *args: Any) -> Any:
        out = launch(*args)
        n = op.tensors
        ctx.op, ctx.constants = op, args[n:]
        ctx.save_for_backward(*args[:n] if op.saves is None else op.saves(args[:n], out))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        op = ctx.op
        if op.vjp is None:
            raise NotImplementedError(f"{op.name} cannot be differentiated again: {op.family} is twice differentiable")
        inputs = op.vjp(ctx.needs_input_grad[2:], ctx.saved_tensors, ctx.constants, grads)
        return (None, None, *inputs, *[None] * len(ctx.constants))


class Operator:
    """One operator: a schema, its launchers by backend, and two doors.

    Args:
        family: the folder under ``gmkernels/ops``; ``<family>/<backend module>.py`` holds a launcher called ``name``.
        schema: ``name(Tensor a, Tensor? b, int k, str backend) -> (Tensor, Tensor)``. Tensors come first,
            ``backend`` last.
        fake: the same arguments (without ``backend``) to empty outputs of the right shape, dtype and strides.
        backends: those that have a launcher.
    """

    _MODULES = {"cpu": "native", "cuda": "native", "triton": "triton"}

    def __init__(
        self,
        family: str,
        schema: str,
        fake: Callable[..., Any],
        backends: tuple[str, ...] = ("cpu", "triton"),
    ) -> None:
        self.family, self.backends = family, backends
        self.name = schema[: schema.index("(")]
        heads = [part.split()[0] for part in schema[schema.index("(") + 1 : schema.index(")")].split(",")]
        self.tensors = sum(head in ("Tensor", "Tensor?") for head in heads)
        self.saves: Callable[[Sequence[Any], Any], Sequence[Any]] | None = None
        self.vjp: Callable[..., Sequence[Tensor | None]] | None = None
        self._launchers: dict[str, Callable[..., Any]] = {}

        _library.define(schema, tags=torch.Tag.pt2_compliant_tag)
        for key in ("CPU", "CUDA"):
            _library.impl(self.name, self._launch, key)
        _library.impl(self.name, self._autograd, "Autograd")
        torch.library.register_fake(f"gmkernels::{self.name}", lambda *args: fake(*args[:-1]), lib=_library)
        self.handle = getattr(torch.ops.gmkernels, self.name).default
        OPERATORS[self.name] = self

    def derivative(self, saves: Callable[[Sequence[Any], Any], Sequence[Any]] | None = None) -> Callable[..., Any]:
        """Register ``vjp(needs, saved, constants, grads) -> one gradient (or None) per tensor argument``.

        ``saves(tensor_inputs, outputs)`` picks what is kept for backward; by default all tensor inputs. Keep inputs
        and outputs only: an intermediate kept here would make double backward silently wrong.
        """

        def register(vjp: Callable[..., Sequence[Tensor | None]]) -> Callable[..., Sequence[Tensor | None]]:
            self.saves, self.vjp = saves, vjp
            return vjp

        return register

    def launcher(self, backend: str) -> Callable[..., Any]:
        """The function that runs this operator on a backend, imported on first use."""
        found = self._launchers.get(backend)
        if found is None:
            module = importlib.import_module(f"gmkernels.ops.{self.family}.{self._MODULES[backend]}")
            found = self._launchers[backend] = getattr(module, self.name)
        return found

    def _launch(self, *args: Any) -> Any:
        return self.launcher(args[-1])(*args[:-1])

    def _eager(self, *args: Any) -> Any:
        return self._launchers[args[-1]](*args[:-1])

    def _below(self, *args: Any) -> Any:
        with _BelowAutograd():
            return self.handle(*args)

    def _autograd(self, *args: Any) -> Any:
        if any(t is not None and _unpack_dual(t, level=0)[1] is not None for t in args[: self.tensors]):
            # Below, the tangent would be dropped without a word.
            raise NotImplementedError(f"{self.name} has no forward-mode derivative; use backend='reference'")
        if _grad_enabled() and any(t is not None and t.requires_grad for t in args[: self.tensors]):
            return _Node.apply(self, self._below, *args)
        return self._below(*args)

    def __call__(self, *args: Any) -> Any:
        """Run with ``args`` as in the schema, ``backend`` last."""
        if _compiling() or _dispatch_modes():
            return self.handle(*args)
        differentiable = False
        for t in args[: self.tensors]:
            if t is not None:
                if type(t) not in _PLAIN:
                    return self.handle(*args)
                differentiable = differentiable or t.requires_grad
        launch = self._launchers.get(args[-1]) or self.launcher(args[-1])
        if differentiable and _grad_enabled():
            return _Node.apply(self, self._eager, *args)
        return launch(*args[:-1])
