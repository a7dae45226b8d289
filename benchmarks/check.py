"""Is a provider's result right? Its outputs, and in ``fwd+bwd`` its gradients, against the float64 truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .case import Inputs, Program

# About 170 units in the last place for float32: room for sums of some thousand terms, and none for a missing term.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def runner(program: Program, inputs: Inputs, mode: str) -> tuple[Callable[[], Sequence[Tensor]], bool]:
    """What is timed, and whether the autograd graph is recorded meanwhile."""
    if mode != "fwd+bwd":
        return program.call, program.records or mode == "step"
    call, leaves, cotangents, grad = program.call, program.leaves, inputs.cotangents, torch.autograd.grad

    def both() -> Sequence[Tensor]:
        outputs = call()
        return (*outputs, *grad(outputs, leaves, cotangents))

    return both, True


def canonical(program: Program, results: Sequence[Tensor], mode: str) -> list[Tensor]:
    """Results of a run in the form of the definition."""
    if program.results is not None:
        return [t.detach() for t in program.results(results)]
    if mode != "fwd+bwd":
        return [t.detach() for t in results]
    outputs = len(results) - len(program.leaves)
    return [t.detach() for t in (*results[:outputs], *program.gradients(results[outputs:]))]


def error(results: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest error of any result, each relative to the largest number of its truth. A missing result is infinite.

    Raises:
        ValueError: a result has another shape than its truth.
    """
    if len(results) != len(truth):
        raise ValueError(f"{len(results)} results, expected {len(truth)}")
    worst = 0.0
    for i, (got, want) in enumerate(zip(results, truth, strict=True)):
        if got.shape != want.shape:
            raise ValueError(f"result {i} has shape {tuple(got.shape)}, expected {tuple(want.shape)}")
        if want.numel() == 0:
            continue
        scale = want.abs().max().item() or 1.0
        difference = (got.to(want) - want).abs().max().item() / scale
        # A NaN compares as false, so it is asked for by name.
        worst = float("inf") if difference != difference else max(worst, difference)
    return worst


def reason_if_wrong(found: float, dtype: torch.dtype) -> str | None:
    if found <= TOLERANCE[dtype]:
        return None
    return f"wrong: error {found:.1e} against float64, allowed {TOLERANCE[dtype]:.0e}"
