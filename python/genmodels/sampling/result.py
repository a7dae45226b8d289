"""The one result of every sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .diagnostics import Diagnostics, autocorrelation, effective_sample_size, split_rhat
from .noise import Noise


@dataclass(frozen=True)
class Samples:
    """Samples and what is known about them.

    Attributes:
        samples: (chains, draws, *shape).
        log_densities: (chains, draws), float64, up to the target's unknown constant; None where no density was given.
        log_weights: (chains, draws), float64, of importance sampling; None for equal weights.
        acceptance: (chains,), the share of accepted proposals after burn-in; None where all are.
        scale: (chains,), the proposal's scale after adaptation; None without a proposal.
        final: (chains, *shape), the last state, to go on from; None for independent draws.
    """

    samples: Tensor
    log_densities: Tensor | None = None
    log_weights: Tensor | None = None
    acceptance: Tensor | None = None
    scale: Tensor | None = None
    final: Tensor | None = None

    def flat(self) -> Tensor:
        """All draws of all chains (chains * draws, *shape)."""
        return self.samples.flatten(0, 1)

    def weights(self) -> Tensor:
        """Normalised weights (chains * draws,), float64."""
        if self.log_weights is None:
            n = self.samples.shape[0] * self.samples.shape[1]
            return torch.full((n,), 1 / n, dtype=torch.float64, device=self.samples.device)
        return self.log_weights.flatten().softmax(0)

    def expectation(self, f: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The (self-normalised) mean of ``f``, which maps (n, *shape) to (n, ...); of the samples themselves if None."""
        values = self.flat() if f is None else f(self.flat())
        return torch.tensordot(self.weights(), values.double(), 1)

    def log_normaliser(self) -> tuple[float, float]:
        """Log of the mean weight, an estimate of the log of the target's integral, and its standard error.

        Raises:
            ValueError: the samples have no weights.
        """
        if self.log_weights is None:
            raise ValueError("log_normaliser needs the weights of importance_sampling; these samples have none")
        logs = self.log_weights.flatten()
        relative = (logs - logs.max()).exp()
        mean, n = relative.mean(), len(logs)
        error = relative.std() / mean / n**0.5 if n > 1 else torch.tensor(float("nan"))
        return float(logs.max() + mean.log()), float(error)

    def diagnostics(self, f: Callable[[Tensor], Tensor] | None = None, *, lags: int = 50) -> Diagnostics:
        """Effective sample size, split R-hat and autocorrelation of ``f`` (or of every coordinate of the samples).

        With weights, the effective sample size is ``1 / sum w^2`` (Kong 1992), the same for every ``f``.
        """
        if self.log_weights is not None:
            return Diagnostics(1 / self.weights().square().sum())
        chains, draws = self.samples.shape[:2]
        values = self.samples if f is None else f(self.flat()).unflatten(0, (chains, draws))
        return Diagnostics(effective_sample_size(values), split_rhat(values), autocorrelation(values, lags))

    def resample(self, n: int, *, key: Tensor | int | None = None) -> Tensor:
        """``n`` samples (n, *shape) of equal weight: every draw about ``n`` times its weight (systematic resampling)."""
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise ValueError(f"resample: n must be an int of at least 0, got {n!r}")
        steps = self.weights().cumsum(0)
        start = Noise(key, device=self.samples.device).uniform(1, torch.float64)
        places = (torch.arange(n, device=steps.device) + start) / n * steps[-1]
        return self.flat()[torch.searchsorted(steps, places).clamp_max(len(steps) - 1)]
