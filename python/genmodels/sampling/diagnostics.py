"""What chains are worth: effective sample size, split R-hat, autocorrelation.

All take draws (chains, draws, ...) of any dtype and judge every trailing coordinate by itself, in float64. A coordinate
that never changes has no variance to compare with: its figures are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Diagnostics:
    """Figures for each coordinate of a sample, shape (*shape).

    ``ess``: independent draws that would be worth as much. ``rhat``: split R-hat, near 1 when chains agree (above 1.01
    they had better be longer). ``autocorrelation`` (lags + 1, *shape). The last two are None for weighted draws, which
    are independent.
    """

    ess: Tensor
    rhat: Tensor | None = None
    autocorrelation: Tensor | None = None

    def __str__(self) -> str:
        ess = self.ess[~self.ess.isnan()]
        text = f"ESS at least {float(ess.min()):.0f}" if len(ess) else "no coordinate ever changed"
        if self.rhat is not None and len(rhat := self.rhat[~self.rhat.isnan()]):
            text += f", R-hat at most {float(rhat.max()):.3f}"
        return text


def _check(name: str, x: Tensor, least: int) -> None:
    if x.dim() < 2 or x.shape[1] < least or not len(x):
        raise ValueError(f"{name} needs draws of shape (chains, at least {least}, ...), got {tuple(x.shape)}")


def _by_coordinate(figure: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``figure`` (chains, draws, coordinates) -> (..., coordinates), in pieces that do not fill the memory."""
    flat = x.reshape(*x.shape[:2], -1)
    step = max(1, 2**22 // max(1, flat.shape[0] * flat.shape[1]))
    parts = [figure(flat[..., i : i + step].double()) for i in range(0, flat.shape[2], step)]
    found = torch.cat(parts, -1) if parts else figure(flat.double())
    return found.reshape((*found.shape[:-1], *x.shape[2:]))


def _split(x: Tensor) -> Tensor:
    """Halves of chains as chains of their own, so that a drift within a chain shows between them."""
    half = x.shape[1] // 2
    return torch.cat([x[:, :half], x[:, x.shape[1] - half :]])


def _autocovariance(x: Tensor) -> Tensor:
    """Of each chain around its own mean, at all lags, by FFT; divided by the number of draws, not of pairs."""
    n = x.shape[1]
    centred = x - x.mean(1, keepdim=True)
    size = 1 << (2 * n - 1).bit_length()
    spectrum = torch.fft.rfft(centred, size, dim=1)
    return torch.fft.irfft(spectrum.abs().square(), size, dim=1)[:, :n] / n


def _within_and_total(x: Tensor) -> tuple[Tensor, Tensor]:
    """W and var+ (Gelman et al., "Bayesian data analysis", 3rd edition, equations 11.1 to 11.3)."""
    n = x.shape[1]
    within = x.var(1).mean(0)
    # Sums of equal numbers round: what moved less than that did not move.
    still = (x.amax(1) == x.amin(1)).all(0)
    within = torch.where(still, 0.0, within)
    between = x.mean(1).var(0) if len(x) > 1 else torch.zeros_like(within)
    return within, within * (n - 1) / n + torch.where((x == x[:1, :1]).all(0).all(0), 0.0, between)


def split_rhat(x: Tensor) -> Tensor:
    """Split R-hat: ``sqrt(var+ / W)`` of the halves of all chains (Gelman et al., 3rd edition, equation 11.4).

    1 when all halves have one law, infinite when each chain is stuck at a place of its own.
    """
    _check("split_rhat", x, 4)

    def figure(x: Tensor) -> Tensor:
        within, total = _within_and_total(_split(x))
        return (total / within).sqrt()

    return _by_coordinate(figure, x)


def effective_sample_size(x: Tensor) -> Tensor:
    """``chains * draws / (1 + 2 sum_t rho_t)`` with rho of all half-chains together.

    ``rho_t = 1 - (W - mean autocovariance_t) / var+`` (Vehtari et al., "Rank-normalization, folding, and localization",
    2021, equations 10 and 11), summed in pairs while these are positive, each no larger than the one before (Geyer
    1992). Chains that disagree thus count for less. At most ``N log10 N`` of N draws.
    """
    _check("effective_sample_size", x, 4)

    def figure(x: Tensor) -> Tensor:
        x = _split(x)
        chains, n = x.shape[:2]
        within, total = _within_and_total(x)
        rho = 1 - (within - _autocovariance(x).mean(0) * n / (n - 1)) / total
        rho[0] = 1.0
        pairs = rho[: n - n % 2].reshape(n // 2, 2, -1).sum(1)
        pairs = torch.where((pairs > 0).cumprod(0) > 0, pairs.cummin(0).values, 0.0)
        spread = (2 * pairs.sum(0) - 1).clamp_min(1 / math.log10(chains * n))
        return torch.where(total > 0, chains * n / spread, math.nan)

    return _by_coordinate(figure, x)


def autocorrelation(x: Tensor, lags: int | None = None) -> Tensor:
    """Autocorrelation (lags + 1, ...) within chains, averaged over them; all lags if ``lags`` is None."""
    _check("autocorrelation", x, 2)
    keep = x.shape[1] if lags is None else min(lags + 1, x.shape[1])

    def figure(x: Tensor) -> Tensor:
        covariance = _autocovariance(x).mean(0)[:keep]
        return torch.where((x == x[:, :1]).all(1).all(0), math.nan, covariance / covariance[:1])

    return _by_coordinate(figure, x)
