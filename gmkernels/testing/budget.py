"""Errors in units of half an ULP, and budgets relative to what PyTorch does in the same dtype.

The unit is half the spacing of the result's dtype at the result's own size: a correctly rounded result has an error of
1 at most. Elements that are small for their tensor are measured at the tensor's median magnitude instead, because a
sum that cancels says nothing about whoever computed it.

The errors of one tensor are summed up by their root mean square; where that of PyTorch is below 1 it counts as 1, for
PyTorch may be exact by luck, and correct rounding is all one may ask of a kernel. The budget: the geometric mean over
many samples of the ratio of the two is at most 1.5 (forward) or 2 (derivatives). A mean and not a maximum, because the
largest of two equally good sets of errors is a coin toss. What the mean might hide - one sample, or one element, that
is wrong - is held by a second line: nowhere may the largest error exceed ten times PyTorch's largest for that result.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
from torch import Tensor

from .evaluate import Results, mode_of

LIMITS = {"forward": 1.5, "backward": 2.0, "double": 2.0}
WORST = 10.0


def _errors(result: Tensor, exact: Tensor, relative: bool) -> Tensor:
    """The deviation of every element, in halves of an ULP; infinite where finite and non-finite do not agree."""
    if result.shape != exact.shape:
        raise ValueError(f"error: result has shape {tuple(result.shape)}, exact {tuple(exact.shape)}")
    if not result.is_floating_point():
        return torch.where(result == exact.to(result.dtype), 0.0, math.inf).double()
    info = torch.finfo(result.dtype)
    exact, value = exact.double(), result.double()
    target = exact.to(result.dtype).double()
    finite = target.isfinite() & value.isfinite()
    size = torch.where(finite, exact.abs(), 0.0)
    typical = size[size > 0].median() if not relative and bool((size > 0).any()) else size.new_zeros(())
    found = (value - exact).abs() / torch.maximum(size, typical).clamp_min(info.tiny) / (info.eps / 2)
    same = (value == target) | value.isnan() & target.isnan()
    # Next to overflow either side may round to infinity.
    edge = (exact.abs() > 0.99 * info.max) & (exact.abs() < 1.01 * info.max)
    return torch.where(finite, found, torch.where(same | edge, 0.0, math.inf))


def error(result: Tensor, exact: Tensor, *, relative: bool = False) -> float:
    """The largest deviation of ``result`` from the float64 tensor ``exact``, in halves of an ULP.

    Args:
        relative: measure every element at its own magnitude, however small, down to the smallest normal number.

    A NaN or infinity where there should be none (or the reverse) is an infinite error, except next to overflow.
    """
    found = _errors(result, exact, relative)
    return found.max().item() if found.numel() else 0.0


class ErrorBudget:
    """Pools the errors of a kernel and of eager PyTorch over samples, result by result."""

    def __init__(self, relative: bool = False) -> None:
        self.relative = relative
        self.kernel: dict[str, float] = defaultdict(float)
        self.eager: dict[str, float] = defaultdict(float)
        self._ratios: dict[str, list[float]] = defaultdict(list)

    def add(self, kernel: Results, eager: Results, exact: Results) -> None:
        """One sample: the same results by the kernel, by PyTorch in the same dtype, and in float64."""
        if not set(kernel) == set(eager) == set(exact):
            raise ValueError(f"error budget: results differ: {sorted(kernel)}, {sorted(eager)}, {sorted(exact)}")
        for name in kernel:
            if kernel[name].dtype != eager[name].dtype:
                raise ValueError(f"error budget: {name} is {kernel[name].dtype}, expected {eager[name].dtype}")
            ours, theirs = (_errors(results[name], exact[name], self.relative) for results in (kernel, eager))
            if ours.numel() == 0:
                continue
            self.kernel[name] = max(self.kernel[name], ours.max().item())
            self.eager[name] = max(self.eager[name], theirs.max().item())
            a, b = (max(1.0, e.square().mean().sqrt().item()) for e in (ours, theirs))
            # Where PyTorch alone is wrong beyond all numbers, as with a level that float32 cannot decide, nothing is learnt.
            self._ratios[name].append(1.0 if a == b or math.isinf(b) else a / b)

    def error(self, mode: str) -> float:
        """The kernel's largest error in a mode (``forward``, ``backward`` or ``double``)."""
        return max((e for name, e in self.kernel.items() if mode_of(name) == mode), default=0.0)

    def ratio_of(self, name: str) -> float:
        """Geometric mean over the samples of the kernel's error as a multiple of PyTorch's."""
        logs = [math.log(r) for r in self._ratios[name]]
        return math.exp(math.fsum(logs) / len(logs)) if all(map(math.isfinite, logs)) else math.inf

    def ratio(self, mode: str) -> float:
        """The worst :meth:`ratio_of` of a mode."""
        return max((self.ratio_of(name) for name in self.kernel if mode_of(name) == mode), default=0.0)

    def modes(self) -> list[str]:
        return [mode for mode in LIMITS if any(mode_of(name) == mode for name in self.kernel)]

    def excess(self) -> list[str]:
        """One line for every result that is over its budget."""
        lines = []
        for name, worst in self.kernel.items():
            limit = LIMITS[mode_of(name)]
            if not self.ratio_of(name) <= limit:
                lines.append(f"{name}: typical error is {self.ratio_of(name):.3g} times PyTorch's, limit {limit}")
            if not worst <= WORST * max(1.0, self.eager[name]):
                lines.append(f"{name}: error {worst:.3g} half-ULPs, PyTorch's largest is {self.eager[name]:.3g}")
        return lines
