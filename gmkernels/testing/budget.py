"""Errors in units of half an ULP, and budgets relative to what PyTorch does in the same dtype.

The unit is half the spacing of the result's dtype at the result's own size: a correctly rounded result has an error of
1 at most. Elements that are small for their tensor are measured at the tensor's median magnitude instead, because a
sum that cancels says nothing about whoever computed it.

A kernel passes if its largest error, over a pool of samples, is at most 1.5 times (forward) or 2 times (derivatives)
that of the plain-PyTorch reference in the same dtype. Where PyTorch is exact by luck it counts as correctly rounded,
with an error of 1: that is all one may ask of a kernel.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from .evaluate import Results, mode_of

LIMITS = {"forward": 1.5, "backward": 2.0, "double": 2.0}


def error(result: Tensor, exact: Tensor, *, relative: bool = False) -> float:
    """The largest deviation of ``result`` from the float64 tensor ``exact``, in halves of an ULP.

    Args:
        relative: measure every element at its own magnitude, however small, down to the smallest normal number.

    A NaN or infinity where there should be none (or the reverse) is an infinite error, except next to overflow.
    """
    if result.shape != exact.shape:
        raise ValueError(f"error: result has shape {tuple(result.shape)}, exact {tuple(exact.shape)}")
    if not result.is_floating_point():
        return 0.0 if torch.equal(result, exact.to(result.dtype)) else float("inf")
    info = torch.finfo(result.dtype)
    exact, value = exact.double(), result.double()
    target = exact.to(result.dtype).double()
    settled = ~((exact.abs() > 0.99 * info.max) & (exact.abs() < 1.01 * info.max))
    finite = target.isfinite() & settled
    odd = settled & ~finite
    if not torch.equal(value[odd].nan_to_num(0.5, 2.0, 3.0), target[odd].nan_to_num(0.5, 2.0, 3.0)):
        return float("inf")
    exact, value = exact[finite], value[finite]
    if exact.numel() == 0:
        return 0.0
    if not value.isfinite().all():
        return float("inf")
    size = exact.abs()
    typical = size[size > 0].median() if not relative and (size > 0).any() else torch.zeros_like(size[0])
    weight = torch.maximum(size, typical).clamp_min(info.tiny)
    return ((value - exact).abs() / weight).max().item() / (info.eps / 2)


class ErrorBudget:
    """Pools the largest errors of a kernel and of eager PyTorch, result by result."""

    def __init__(self, relative: bool = False) -> None:
        self.relative = relative
        self.kernel: dict[str, float] = defaultdict(float)
        self.eager: dict[str, float] = defaultdict(float)

    def add(self, kernel: Results, eager: Results, exact: Results) -> None:
        """One sample: the same results by the kernel, by PyTorch in the same dtype, and in float64."""
        if not set(kernel) == set(eager) == set(exact):
            raise ValueError(f"error budget: results differ: {sorted(kernel)}, {sorted(eager)}, {sorted(exact)}")
        for name in kernel:
            if kernel[name].dtype != eager[name].dtype:
                raise ValueError(f"error budget: {name} is {kernel[name].dtype}, expected {eager[name].dtype}")
            for pool, results in ((self.kernel, kernel), (self.eager, eager)):
                pool[name] = max(pool[name], error(results[name], exact[name], relative=self.relative))

    def error(self, mode: str) -> float:
        """The kernel's largest error in a mode (``forward``, ``backward`` or ``double``)."""
        return max((e for name, e in self.kernel.items() if mode_of(name) == mode), default=0.0)

    def ratio(self, mode: str) -> float:
        """The kernel's largest error as a multiple of PyTorch's."""
        chosen = [name for name in self.kernel if mode_of(name) == mode]
        return max((self.kernel[name] / max(self.eager[name], 1.0) for name in chosen), default=0.0)

    def modes(self) -> list[str]:
        return [mode for mode in LIMITS if any(mode_of(name) == mode for name in self.kernel)]

    def excess(self) -> list[str]:
        """One line for every result that is over its budget."""
        return [
            f"{name}: error {self.kernel[name]:.3g} half-ULPs, PyTorch {self.eager[name]:.3g}, limit {LIMITS[mode]} x"
            for name in self.kernel
            if not self.kernel[name] <= LIMITS[mode := mode_of(name)] * max(self.eager[name], 1.0)
        ]
