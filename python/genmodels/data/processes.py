"""Random processes of known entropy rate, as sound to learn from: what a model lacks is measured in nats per sample."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

import gmkernels as gmk

from .dataset import Batch, Fresh

_TEST, _VALID = 2**62, 2**62 + 1


class Process:
    """A stationary process. A subclass gives ``name``, :meth:`sample`, :meth:`log_prob` and :attr:`entropy`.

    Args:
        length: samples of a training window.

    ``levels`` is the number of values of a sample, or None for real ones; ``rate`` is for the ear only.
    """

    name: str
    levels: int | None = None
    rate = 8000
    classes: tuple[str, ...] = ()

    def __init__(self, length: int = 2000) -> None:
        self.length = length

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    @property
    def entropy(self) -> float:
        """Entropy rate in nats per sample."""
        raise NotImplementedError

    def sample(self, n: int, length: int, key: Tensor, *, first: int = 0) -> Tensor:
        """Rows ``first .. first + n`` (n, length) of the endless table under ``key``."""
        raise NotImplementedError

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-probability or -density of samples (n, length) in nats (n,), the stationary law of the beginning included."""
        raise NotImplementedError

    def stream(self, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1) -> Fresh:
        """Endless fresh samples."""
        return Fresh(functools.partial(self.sample, length=self.length), batch_size, seed=seed, rank=rank, world=world)

    def batches(self, split: str) -> Iterator[Batch]:
        """A fixed sample that no training stream draws."""
        key = torch.tensor([0, _TEST if split == "test" else _VALID])
        x = self.sample(40 if split == "test" else 8, 5 * self.length, key)
        for part in x.split(4):
            yield Batch(part)

    def excerpt(self, length: int, split: str = "test") -> Tensor:
        """A sample that was not trained on, to put beside those of a model; of ``test`` one, and of ``valid`` another."""
        return self.sample(1, length, torch.tensor([0, _TEST + (2 if split == "test" else 3)]))[0]


class AutoregressiveNoise(Process):
    """Noise through two resonances, at 700 and 1800 Hz of 8 kHz: a Gaussian process with four coefficients.

    ``x_t = sum_k a_k x_(t-k) + sigma e_t`` with e_t standard normal, so that the entropy rate is
    ``log(2 pi e sigma^2) / 2`` exactly (T. M. Cover and J. A. Thomas, "Elements of information theory", section 12.5).
    """

    name = "resonances"
    sigma = 0.05
    _poles = ((0.95, 700.0), (0.9, 1800.0))

    @functools.cached_property
    def coefficients(self) -> Tensor:
        """a_1 .. a_4 in float64."""
        polynomial = torch.ones(1, dtype=torch.float64)
        for radius, frequency in self._poles:
            angle = 2 * math.pi * frequency / self.rate
            factor = torch.tensor([1.0, -2 * radius * math.cos(angle), radius * radius], dtype=torch.float64)
            product = torch.zeros(len(polynomial) + 2, dtype=torch.float64)
            for i, c in enumerate(factor):
                product[i : i + len(polynomial)] += c * polynomial
            polynomial = product
        return -polynomial[1:]

    @property
    def entropy(self) -> float:
        return 0.5 * math.log(2 * math.pi * math.e * self.sigma**2)

    @functools.cached_property
    def response(self) -> Tensor:
        """What one e_t leaves behind, until it is below 1e-8: ``x_t = sum_k response_k e_(t-k)``."""
        a, order = self.coefficients.tolist(), len(self.coefficients)
        found = [self.sigma]
        count = math.ceil(math.log(1e-10) / math.log(max(radius for radius, _ in self._poles)))
        for _ in range(count):
            found.append(sum(c * past for c, past in zip(a, found[: -order - 1 : -1], strict=False)))
        return torch.tensor(found, dtype=torch.float64)

    def sample(self, n: int, length: int, key: Tensor, *, first: int = 0) -> Tensor:
        before = len(self.response) - 1
        e = gmk.random.normal(key, (n, length + before), first=first, dtype=torch.float64)
        size = length + 2 * before
        # A convolution by Fourier transforms, long enough that nothing wraps round.
        spectrum = torch.fft.rfft(e, size) * torch.fft.rfft(self.response, size)
        return torch.fft.irfft(spectrum, size)[:, before : before + length].float()

    @functools.cached_property
    def covariance(self) -> Tensor:
        """Of as many neighbouring samples as there are coefficients."""
        r, order = self.response, len(self.coefficients)
        lags = torch.stack([(r[: len(r) - k] * r[k:]).sum() for k in range(order)])
        return lags[(torch.arange(order)[:, None] - torch.arange(order)).abs()]

    def log_prob(self, x: Tensor) -> Tensor:
        order, wide = len(self.coefficients), x.double()
        past = wide.unfold(1, order, 1)[:, :-1].flip(2)
        error = wide[:, order:] - past @ self.coefficients
        steps = -0.5 * (error / self.sigma) ** 2 - math.log(self.sigma) - 0.5 * math.log(2 * math.pi)
        start = torch.distributions.MultivariateNormal(torch.zeros(order, dtype=torch.float64), self.covariance)
        return start.log_prob(wide[:, :order]) + steps.sum(1)


class MarkovLevels(Process):
    """A chain of 16 levels that remembers two samples: a wandering tone with known transition probabilities.

    The next level is near the straight line through the last two, drawn back to the middle: logits
    ``-(l - m)^2 / 4.5`` with ``m = 7.5 + 1.2 (b - 7.5) - 0.6 (a - 7.5)`` after levels a, b. The entropy rate is that of the
    next level, averaged over the stationary law of pairs, which a power iteration gives.
    """

    name = "markov"
    levels = 16

    @functools.cached_property
    def law(self) -> Tensor:
        """p(c | a, b), (16, 16, 16) in float64."""
        n = 16
        place = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
        middle = 1.2 * place[None, :, None] - 0.6 * place[:, None, None]
        return torch.softmax(-((place - middle) ** 2) / 4.5, 2)

    @functools.cached_property
    def stationary(self) -> Tensor:
        """Of pairs (a, b)."""
        p = torch.full((16, 16), 1 / 256, dtype=torch.float64)
        for _ in range(2000):
            p = torch.einsum("ab,abc->bc", p, self.law)
        return p

    @property
    def entropy(self) -> float:
        each = -torch.xlogy(self.law, self.law).sum(2)
        return float((self.stationary * each).sum())

    def sample(self, n: int, length: int, key: Tensor, *, first: int = 0) -> Tensor:
        u = gmk.random.uniform(key, (n, length + 1), first=first, dtype=torch.float64)
        pairs = self.stationary.flatten().cumsum(0)
        pair = torch.searchsorted(pairs, u[:, 0].contiguous() * pairs[-1], right=True).clamp(max=255)
        sums = self.law.cumsum(2).flatten(0, 1)
        states, found = pair, [pair // 16, pair % 16]
        for t in range(1, length - 1):
            rows = sums[states]
            level = (rows[:, :-1] <= (u[:, t] * rows[:, -1])[:, None]).sum(1)
            states = states % 16 * 16 + level
            found.append(level)
        return torch.stack(found[:length], 1)

    def log_prob(self, x: Tensor) -> Tensor:
        start = self.stationary[x[:, 0], x[:, 1]].log()
        return start + self.law[x[:, :-2], x[:, 1:-1], x[:, 2:]].log().sum(1)


PROCESSES: Sequence[type[Process]] = (AutoregressiveNoise, MarkovLevels)
