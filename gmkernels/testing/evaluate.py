"""From a case to everything an operator computes for it, by name."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from .table import Case, OperatorRow

Results = dict[str, Tensor]


def cotangent(like: Tensor, generator: torch.Generator) -> Tensor:
    """Multiples of 1/8 up to 2: exact in every floating dtype, so that one cotangent serves them all."""
    return (torch.randint(-16, 17, like.shape, generator=generator) / 8).to(like.device, like.dtype)


def evaluate(
    row: OperatorRow,
    case: Case,
    backend: str = "auto",
    *,
    order: int | None = None,
    needs: Sequence[str] | None = None,
    spread: bool = False,
    call: object = None,
) -> Results:
    """Outputs, ``grad_<input>``, ``double_<input>`` and ``double_grad_<output>`` of one case.

    Args:
        order: 0 for outputs, 1 for gradients too, 2 for second derivatives too; the row's own by default.
        needs: the inputs that require a gradient; all differentiable ones by default.
        spread: give the cotangents stride 0 and one value, as ``sum()`` does.
        call: a compiled stand-in for ``row.call``.
    """
    order = row.order if order is None else order
    needs = [name for name in (row.differentiable if needs is None else needs) if order]
    tensors = {name: t.detach().requires_grad_(name in needs) for name, t in case.tensors.items()}
    inputs = [tensors[name] for name in needs]
    out = (call or row.call)(Case(tensors, case.constants), backend)  # type: ignore[operator]
    results: Results = dict(zip(row.outputs, out, strict=True))
    live = {name: t for name, t in results.items() if t.requires_grad}
    # What no output depends on has a gradient of zero, which the reference may express by having none.
    if order > 0:
        results |= {f"grad_{name}": torch.zeros_like(tensors[name]) for name in needs}
    if order > 1:
        results |= {f"double_{name}": torch.zeros_like(tensors[name]) for name in needs}
        results |= {f"double_grad_{name}": torch.zeros_like(t) for name, t in zip(row.outputs, out, strict=True)}
    if not live or not inputs:
        return {name: t.detach() for name, t in results.items()}

    generator = torch.Generator().manual_seed(1)
    every = {name: cotangent(results[name], generator) for name in row.outputs}
    if spread:
        every = {k: torch.full((), 0.75, dtype=c.dtype, device=c.device).expand(c.shape) for k, c in every.items()}
    cotangents = [every[name].detach().requires_grad_(order > 1) for name in live]
    grads = torch.autograd.grad(list(live.values()), inputs, cotangents, create_graph=order > 1, materialize_grads=True)
    results |= {f"grad_{name}": grad for name, grad in zip(needs, grads, strict=True)}
    known = [(grad, cotangent(grad, generator)) for grad in grads]
    if order > 1 and (known := [pair for pair in known if pair[0].requires_grad]):
        tops, weights = zip(*known, strict=True)
        doubles = torch.autograd.grad(tops, [*inputs, *cotangents], weights, materialize_grads=True)
        names = [*(f"double_{name}" for name in needs), *(f"double_grad_{name}" for name in live)]
        results |= dict(zip(names, doubles, strict=True))
    return {name: t.detach() for name, t in results.items()}


def mode_of(name: str) -> str:
    """Which of ``forward``, ``backward`` and ``double`` a result of :func:`evaluate` belongs to."""
    return "double" if name.startswith("double_") else "backward" if name.startswith("grad_") else "forward"


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in dtype, shape and every bit, NaN payloads and signs of zero included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return _bytes(a) == _bytes(b)


def different(a: Results, b: Results, names: Iterable[str] | None = None) -> list[str]:
    """The results that do not have the same bits (or exist on one side only)."""
    chosen = set(a) | set(b) if names is None else set(names)
    return sorted(n for n in chosen if n not in a or n not in b or not same_bits(a[n], b[n]))


def digest(results: Results) -> str:
    """A hash of names, dtypes, shapes and bits."""
    state = hashlib.sha256()
    for name, t in sorted(results.items()):
        state.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
        state.update(_bytes(t))
    return state.hexdigest()[:16]


def _bytes(t: Tensor) -> bytes:
    # Left to numpy, because torch's own copies run in threads, which hang in a forked child.
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
    return t.detach().cpu().view(whole).numpy().tobytes()


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with this many intra-op threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
