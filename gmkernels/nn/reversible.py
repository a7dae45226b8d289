"""Chains of invertible steps whose backward needs no stored activations."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gmkernels.core.doors import transforming

from .mlp import MLP

Grads = dict[Tensor, Tensor]


class Reversible(nn.Module):
    """Invertible steps one after another, run so that peak memory does not grow with their number.

    ``forward(x, context=None)`` returns ``(y, logdet)``, the sum of the steps' log-determinants, and ``inverse`` undoes it.
    Only ``x`` and ``y`` are kept for backward, which goes from the last step to the first: it restores a step's input by
    inverting it, evaluates that one step again under autograd, and drops it (Gomez et al., "The reversible residual
    network: backpropagation without storing activations", 2017). For an :class:`AffineCoupling` the conditioner is
    evaluated once for both, which makes a training step cost about 4/3 of an ordinary one.

    **Drift.** Inverting rounds, so restored inputs differ from the true ones. What is left of the difference at the
    first step is measured against ``x``: up to ``tolerance * (1 + max|x|)`` the gradients are those of inputs that far
    away; beyond it (scales of many orders, non-finite values) the batch is evaluated again from ``x`` in the ordinary
    way, at the ordinary memory, and a warning says so once. ``drift`` is the last measured difference. With float64,
    scales between e^-0.5 and e^0.5 and a hundred couplings it is below 1e-12; with float32 below 1e-4.

    Args:
        steps: modules with ``forward(x, context) -> (y, logdet)`` and ``inverse(y, context) -> (x, logdet)``. A step whose
            forward is not a function of its input alone, such as batch normalisation in training, also has ``used``, the
            tensors of its last forward that inverting it takes; ``undo(y, used, context) -> x``; and ``replay(x, context)``,
            its forward without side effects. What a step draws from PyTorch's generators is drawn again.
        fewest: with fewer steps than this, ordinary autograd: there is little to save.
        tolerance: relative drift from which on the gradient is computed the ordinary way.

    Works under autocast (which is entered again in backward), gradient accumulation and DistributedDataParallel. Second
    derivatives are exact and take the ordinary way, from ``x``. Under ``torch.compile`` the chain is a graph break. Side
    effects of the conditioners, such as running averages of their own batch normalisation, happen twice.
    """

    _outside: ClassVar[Callable[..., tuple[Tensor, Tensor]] | None] = None

    def __init__(self, steps: Iterable[nn.Module], *, fewest: int = 3, tolerance: float = 1e-3) -> None:
        super().__init__()
        if not tolerance > 0:
            raise ValueError(f"Reversible: tolerance must be positive, got {tolerance!r}")
        self.steps = nn.ModuleList(steps)
        self.fewest, self.tolerance = fewest, tolerance
        self.drift: Tensor | None = None

    def extra_repr(self) -> str:
        return f"fewest={self.fewest}, tolerance={self.tolerance}"

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        plain = not torch.is_grad_enabled() or transforming() or x.is_meta
        if plain or len(self.steps) < max(self.fewest, 1):
            return self._run(x, context)
        return self._reversibly(x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = _no_change(y)
        step: Any  # a module with an inverse
        for step in reversed(self.steps):
            y, logdet = step.inverse(y, context)
            total = total + logdet
        return y, total

    def _run(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        total = _no_change(x)
        for step in self.steps:
            x, logdet = _call(step, x, context)
            total = total + logdet
        return x, total

    def _reversibly(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if Reversible._outside is None:  # made at first use, because it loads the compiler
            Reversible._outside = staticmethod(torch.compiler.disable(_apply))
        return Reversible._outside(self, x, context)

    def _drifted(self, restored: Tensor, x: Tensor) -> bool:
        self.drift = (restored - x).abs().amax() if x.numel() else x.new_zeros(())
        if not x.numel() or x.is_cuda and torch.cuda.is_current_stream_capturing():
            return False
        if bool(self.drift <= self.tolerance * (1 + x.abs().amax())):
            return False
        warnings.warn(
            f"Reversible: inverting {len(self.steps)} steps gave an input off by {float(self.drift):.3g}, more than the "
            f"tolerance {self.tolerance:g} allows; this gradient is computed from the true input, with the memory of an "
            "ordinary backward. Smaller scales (clamp) or float64 avoid it.",
            RuntimeWarning,
            stacklevel=2,
        )
        return True


def _apply(chain: Reversible, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    parameters = [p for p in chain.parameters() if p.requires_grad]
    return _Chain.apply(chain, x, context, *parameters)


class _Chain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chain: Reversible, x: Tensor, context: Tensor | None, *parameters: Tensor) -> Any:
        y, total, ctx.memory = x, _no_change(x), []
        # Saved for backward too, which tells whether they were changed since; hooks may hand back other tensors.
        ctx.places, ctx.parameters = _places(chain), parameters
        for step in chain.steps:
            random = _Random.now(x) if _may_draw(step, x) else None
            y, logdet = _call(step, y, context)
            drew = random is not None and random != _Random.now(x)
            ctx.memory.append((getattr(step, "used", ()), random if drew else None))
            total = total + logdet
        ctx.chain, ctx.autocast = chain, _Autocast(x.device.type)
        ctx.modes = [(module, module.training) for module in chain.modules()]
        ctx.save_for_backward(x, y, context, *parameters)
        return y, total

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_logdet: Tensor) -> Any:
        (x, y, context, *_), parameters = ctx.saved_tensors, ctx.parameters
        inputs = [t for t in (x, context, *parameters) if t is not None and t.requires_grad]
        grads: Grads | None = None
        if not torch.is_grad_enabled():
            with ctx.autocast.again(), _training(ctx.modes), _installed(ctx.places):
                grads = _reverse(ctx.chain, ctx.memory, x, y, context, grad_y, grad_logdet)
        if grads is None:
            grads = _directly(ctx, inputs, x, context, (grad_y, grad_logdet))
        return (None, *(None if t is None else grads.get(t) for t in (x, context, *parameters)))


def _reverse(
    chain: Reversible,
    memory: Sequence[tuple[tuple[Tensor, ...], _Random | None]],
    x: Tensor,
    y: Tensor,
    context: Tensor | None,
    grad_y: Tensor,
    grad_logdet: Tensor,
) -> Grads | None:
    """Gradients of everything, from the last step to the first; None if the restored input is too far from x."""
    grads: Grads = {}
    for step, (used, random) in zip(reversed(chain.steps), reversed(memory), strict=True):
        with _restored(random):
            pull = getattr(step, "pull_back", None) or _Pull(step)
            y, grad_y, rest = pull(y, context, used, grad_y, grad_logdet)
        for tensor, grad in rest.items():
            grads[tensor] = grads[tensor] + grad if tensor in grads else grad
    if chain._drifted(y, x):
        return None
    return grads | {x: grad_y}


class _Pull:
    """:meth:`AffineCoupling.pull_back` for any step: one inversion, then one evaluation under autograd."""

    def __init__(self, step: nn.Module) -> None:
        self.step = step

    def __call__(
        self, y: Tensor, context: Tensor | None, used: tuple[Tensor, ...], grad_y: Tensor, grad_logdet: Tensor
    ) -> tuple[Tensor, Tensor, Grads]:
        step: Any = self.step
        x = step.undo(y, used, context) if used else step.inverse(y, context)[0]
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            outputs = _again(step, leaf, context)
            grads = pull(outputs, (grad_y, grad_logdet), [leaf, *sources(step, context)])
        return x, grads.pop(leaf, torch.zeros_like(x)), grads


def sources(step: nn.Module, context: Tensor | None) -> list[Tensor]:
    """What a step's gradient goes to beside its input."""
    wanted: list[Tensor] = [p for p in step.parameters() if p.requires_grad]
    return wanted if context is None or not context.requires_grad else [*wanted, context]


def pull(outputs: Sequence[Tensor], grads: Sequence[Tensor], inputs: Sequence[Tensor], *, again: bool = False) -> Grads:
    """The gradient of each input that the outputs depend on; with ``again`` differentiable."""
    pairs = [(t, g) for t, g in zip(outputs, grads, strict=True) if t.requires_grad]
    if not pairs:
        return {}
    found = torch.autograd.grad([t for t, _ in pairs], inputs, [g for _, g in pairs], None, again, allow_unused=True)
    return {t: g for t, g in zip(inputs, found, strict=True) if g is not None}


def _directly(ctx: Any, inputs: list[Tensor], x: Tensor, context: Tensor | None, grads: tuple[Tensor, Tensor]) -> Grads:
    """Gradients by ordinary autograd from the chain's input, differentiable again if the caller asks for that."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad(), ctx.autocast.again(), _training(ctx.modes), _installed(ctx.places):
        if not differentiable:
            x = x.detach().requires_grad_(x.requires_grad)
        total, y = _no_change(x), x
        for step, (_, random) in zip(ctx.chain.steps, ctx.memory, strict=True):
            with _restored(random):
                y, logdet = _again(step, y, context)
            total = total + logdet
        wanted = [x if t is ctx.saved_tensors[0] else t for t in inputs]
        found = pull((y, total), grads, wanted, again=differentiable)
    return {t: found[w] for t, w in zip(inputs, wanted, strict=True) if w in found}


def _call(step: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    return step(x) if context is None else step(x, context)


def _again(step: nn.Module, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    replay = getattr(step, "replay", step)
    return replay(x) if context is None else replay(x, context)


def _no_change(x: Tensor) -> Tensor:
    return x.new_zeros(len(x), dtype=torch.promote_types(x.dtype, torch.float32))


def _may_draw(step: nn.Module, x: Tensor) -> bool:
    """Whether to look at the generators' state around a step: always, but while a graph of CUDA is captured, which
    forbids it; there at the layers that are known to draw."""
    if not (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        return True
    dropouts = (nn.modules.dropout._DropoutNd, nn.RReLU)
    return any(m.training and (isinstance(m, dropouts) or isinstance(m, MLP) and m.dropout > 0) for m in step.modules())


class _Random:
    """The state of PyTorch's generators on the CPU and on a tensor's device."""

    def __init__(self, cpu: Tensor, device: torch.device, there: Tensor | None) -> None:
        self.cpu, self.device, self.there = cpu, device, there

    @classmethod
    def now(cls, x: Tensor) -> _Random:
        there = torch.cuda.get_rng_state(x.device) if x.is_cuda else None
        return cls(torch.get_rng_state(), x.device, there)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Random) or not torch.equal(self.cpu, other.cpu):
            return False
        return self.there is None or other.there is not None and torch.equal(self.there, other.there)


@contextmanager
def _restored(random: _Random | None) -> Iterator[None]:
    if random is None:
        yield
        return
    with torch.random.fork_rng([random.device] if random.there is not None else []):
        torch.set_rng_state(random.cpu)
        if random.there is not None:
            torch.cuda.set_rng_state(random.there, random.device)
        yield


_Places = list[tuple[dict[str, Any], str, Tensor]]


def _places(chain: nn.Module) -> _Places:
    """Where every parameter and buffer is held, and which."""
    held = [d for m in chain.modules() for d in (m._parameters, m._buffers)]
    return [(d, name, t) for d in held for name, t in d.items() if t is not None]


@contextmanager
def _installed(places: _Places) -> Iterator[None]:
    """The parameters and buffers of the forward pass, which torch.func.functional_call lends for its time alone."""
    changed = [(held, name, held[name], t) for held, name, t in places if held.get(name) is not t]
    for held, name, _, t in changed:
        held[name] = t
    try:
        yield
    finally:
        for held, name, own, _ in changed:
            held[name] = own


@contextmanager
def _training(modes: Sequence[tuple[nn.Module, bool]]) -> Iterator[None]:
    """Modules in training, or not, as they were in the forward pass."""
    changed = [(module, module.training) for module, training in modes if module.training is not training]
    for module, training in modes:
        module.training = training
    yield
    for module, training in changed:
        module.training = training


class _Autocast:
    """The autocast settings at the time of the forward pass."""

    def __init__(self, device: str) -> None:
        self.device, self.dtype = device, torch.get_autocast_dtype(device)
        self.enabled, self.cached = torch.is_autocast_enabled(device), torch.is_autocast_cache_enabled()

    def again(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype, self.enabled, self.cached)
