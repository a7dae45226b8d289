"""The Boltzmann machine: all units connected, some of them hidden."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gmkernels as gmk

from ..data import Batch
from ..sampling import Noise
from . import learning
from .learning import Learning

ENUMERABLE = 20


class BoltzmannMachine(nn.Module):
    """Boltzmann machine (Ackley, Hinton and Sejnowski 1985): ``p(x) = exp(x W x / 2 + b . x) / Z`` over visible and hidden
    units, all connected.

    Args:
        shape: of the visible part: an int, or (C, H, W) of images.
        hidden: number of hidden units, 0 for none.
        spin: units are -1 and 1; else 0 and 1, which suits images whose background is 0.
        levels: integer data are divided by ``levels - 1``.
        positive_sweeps: Gibbs sweeps of the hidden units with the data clamped.
        learning: ``steps`` are the sweeps of the free chains between updates; ``method`` must be ``pcd``.

    Data ``x`` (B, *shape) in [0, 1], or integers, are probabilities of a unit being on (1): training draws them anew
    every time, all else takes the likelier. Randomness as for :class:`genmodels.energy.RBM`.
    """

    updates: Tensor
    chains: Tensor
    mean: Tensor

    def __init__(
        self,
        shape: int | Sequence[int],
        hidden: int,
        *,
        spin: bool = False,
        levels: int = 256,
        positive_sweeps: int = 3,
        learning: Learning | None = None,
    ) -> None:
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.learning = learning or Learning()
        if hidden < 0 or not self.shape or min(self.shape) < 1:
            raise ValueError(f"BoltzmannMachine: shape must be positive and hidden 0 or more, got {shape} and {hidden}")
        if self.learning.method != "pcd":
            raise ValueError(f"BoltzmannMachine: learning.method must be 'pcd', got {self.learning.method!r}")
        if positive_sweeps < 1:
            raise ValueError(f"BoltzmannMachine: positive_sweeps must be at least 1, got {positive_sweeps}")
        self.visible, self.hidden, self.units = math.prod(self.shape), hidden, math.prod(self.shape) + hidden
        self.spin, self.levels, self.positive_sweeps = spin, levels, positive_sweeps
        random = (0.01 * torch.randn(self.units, self.units)).triu(1)
        self.weight = nn.Parameter(random + random.t())
        self.bias = nn.Parameter(torch.zeros(self.units))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("chains", torch.zeros(self.learning.chains, self.units, dtype=torch.uint8))
        self.register_buffer("mean", torch.full((self.units,), 0.0 if spin else 0.5))

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def extra_repr(self) -> str:
        return f"{self.shape}, hidden={self.hidden}, spin={self.spin}"

    # States are what the units hold, on or off what they say.

    def _state(self, on: Tensor) -> Tensor:
        on = on.to(self.weight.dtype)
        return 2 * on - 1 if self.spin else on

    def _on(self, state: Tensor) -> Tensor:
        return (state + 1) / 2 if self.spin else state

    def probabilities(self, x: Tensor) -> Tensor:
        """Data as probabilities (B, visible) of being on.

        Raises:
            ValueError: another shape, or values outside [0, 1].
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"expected data (batch, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        x = x.to(self.weight.dtype) if x.is_floating_point() else x.to(self.weight.dtype) / (self.levels - 1)
        if x.numel() and not (float(x.min()) >= 0 and float(x.max()) <= 1):
            raise ValueError(f"expected data in [0, 1], got values from {float(x.min())} to {float(x.max())}")
        return x.flatten(1)

    @property
    def _clamp(self) -> Tensor:
        return torch.arange(self.units, device=self.device) < self.visible

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Start from the data's means: biases of the machine without weights, and chains drawn from it."""
        p = (self.probabilities(x).sum(0) + 0.5) / (len(x) + 1)
        self.bias[: self.visible] = (p / (1 - p)).log() * (0.5 if self.spin else 1.0)
        on = torch.cat([p, p.new_full((self.hidden,), 0.5)])
        self.mean.copy_(self._state(on))
        self.chains.copy_(Noise(self._key(7)).bernoulli(on.expand(len(self.chains), -1)))

    def _key(self, purpose: int) -> Tensor:
        seed = torch.full_like(self.updates, self.learning.seed)
        return torch.stack([seed, 8 * self.updates + purpose])

    def gibbs(
        self,
        state: Tensor,
        sweeps: int,
        *,
        key: Tensor,
        first: int = 0,
        clamp: Tensor | None = None,
        beta: float = 1.0,
    ) -> Tensor:
        """Sweeps of states (B, units); see ``gmkernels.boltzmann_gibbs``."""
        return gmk.boltzmann_gibbs(
            state, self.weight, self.bias, sweeps=sweeps, key=key, first=first, beta=beta, clamp=clamp, spin=self.spin
        )

    def field(self, state: Tensor) -> Tensor:
        """The log-odds (B, units) of each unit being on given all others."""
        return torch.addmm(self.bias, state, self.weight) * (2.0 if self.spin else 1.0)

    def _with_hidden(self, on: Tensor, sweeps: int, noise: Noise) -> Tensor:
        """States (B, units) of visible units (B, visible), the hidden ones drawn given them."""
        hidden = noise.bernoulli(on.new_full((len(on), self.hidden), 0.5))
        state = self._state(torch.cat([on, hidden], 1))
        if not self.hidden:
            return state
        return self.gibbs(state, sweeps, key=noise.key(), first=noise.first, clamp=self._clamp)

    # Learning.

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """A loss whose gradient is minus ``<x x^T> - <x x^T>`` of the machine with the data clamped and free.

        Its value is the squared difference of the two phases' means, averaged over the units: how far the free machine is
        from the data.
        """
        with torch.no_grad():
            x, first = learning.consecutive(batch.x)
            on = gmk.random.bernoulli(self.probabilities(x), self._key(1), first=first)
            clamped = self._with_hidden(on, self.positive_sweeps, Noise(self._key(2), first=first))
            share, rank, world = learning.mine(len(self.chains))
            start = self._state(self.chains[share])
            free = self.gibbs(start, self.learning.steps, key=self._key(3), first=rank * len(start))
            self.chains.copy_(self._on(learning.everyone(free, world)))
            by_weight, by_bias, _ = gmk.cd_statistics(clamped, clamped, free, free)
            if self.learning.centred:
                self.mean.lerp_(learning.averaged(clamped.mean(0)), self.learning.offset_rate if self.updates else 1.0)
                # The bias is counted once, though it stands on both sides of the weights.
                by_weight = by_weight.addr(self.mean, by_bias, alpha=-1).addr(by_bias, self.mean, alpha=-1)
                by_weight.fill_diagonal_(0)
                by_bias = by_bias - by_weight @ self.mean
            by_weight = ((by_weight + by_weight.t()) / 2).fill_diagonal_(0)
            distance = (clamped.mean(0) - free.mean(0)).square().mean()
            if self.training:
                self.updates += 1
        return {"loss": learning.descent([self.weight, self.bias], [by_weight, by_bias], distance)}

    # Likelihoods.

    @torch.no_grad()
    def log_likelihood(self, x: Tensor) -> Tensor:
        """``log p`` (B,), float64, of data by adding up all states; of machines with at most 20 units."""
        if self.units > ENUMERABLE:
            raise ValueError(f"log_likelihood adds up all states of at most {ENUMERABLE} units, got {self.units}")
        number = torch.arange(2**self.units, device=self.device)
        every = (number[:, None] >> torch.arange(self.units, device=self.device) & 1).double()
        s = 2 * every - 1 if self.spin else every
        log_p = (0.5 * ((s @ self.weight.double()) * s).sum(1) + s @ self.bias.double()).log_softmax(0)
        of_visible = log_p.view(2**self.hidden, 2**self.visible).logsumexp(0)
        place = 2 ** torch.arange(self.visible, device=self.device)
        return of_visible[(self.probabilities(x).round().long() * place).sum(1)]

    @torch.no_grad()
    def pseudo_likelihood(self, x: Tensor, *, sweeps: int = 10, key: Tensor | int | None = None) -> Tensor:
        """``sum_i log p(x_i | all others)`` (B,) over the visible units of data (Besag 1975).

        Hidden units are drawn given the data first, by ``sweeps`` sweeps; without any it is exact.
        """
        state = self._with_hidden(self.probabilities(x).round(), sweeps, Noise(key, device=self.device))
        sign = (2 * self._on(state) - 1)[:, : self.visible]
        return F.logsigmoid(sign * self.field(state)[:, : self.visible]).sum(1)

    # What it can be asked.

    @torch.no_grad()
    def sample(self, n: int, *, sweeps: int = 200, temperature: float = 1.0, key: Tensor | int | None = None) -> Tensor:
        """``n`` images (n, *shape): each unit's probability given all others, in chains that go on from the free ones."""
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        start = self._state(self.chains.repeat(-(-n // len(self.chains)), 1)[:n])
        noise = Noise(key, device=self.device)
        state = self.gibbs(start, sweeps, key=noise.key(), beta=1 / temperature)
        return self.field(state)[:, : self.visible].sigmoid().view(n, *self.shape)

    @torch.no_grad()
    def inpaint(
        self,
        x: Tensor,
        mask: Tensor,
        *,
        sweeps: int = 100,
        average: int = 50,
        draws: int = 1,
        key: Tensor | int | None = None,
    ) -> Tensor:
        """Images (B, *shape) with hidden pixels filled in: what is expected given the visible ones.

        Args:
            mask: bool, broadcastable to (B, *shape); True marks what is visible. Hidden pixels are not read.
            sweeps, average: Gibbs sweeps with the visible pixels clamped, and over how many of the last the mean is taken.
            draws: the mean over so many chains: one chain stays with one way to fill in for long.
        """
        if mask.dtype != torch.bool:
            raise TypeError(f"a mask must be bool, True where pixels are visible, got {mask.dtype}")
        if not 0 < average <= sweeps or draws < 1:
            raise ValueError(f"inpaint: average must be in 1..sweeps, got {average} of {sweeps}, and draws positive")
        if draws > 1:
            many, masks = (t.repeat_interleave(draws, 0) for t in (x, mask.expand(len(x), *self.shape)))
            found = self.inpaint(many, masks, sweeps=sweeps, average=average, key=key)
            return found.unflatten(0, (len(x), draws)).mean(1)
        noise = Noise(key, device=self.device)
        shown = mask.to(self.device).expand(len(x), *self.shape)
        on = self.probabilities(torch.where(shown, x, torch.zeros_like(x))).round()
        start = noise.bernoulli(self._on(self.mean).clamp(0, 1).expand(len(x), -1))
        clamp = torch.cat([shown.flatten(1), shown.new_zeros(len(x), self.hidden)], 1)
        state = self._state(torch.where(clamp, torch.cat([on, start[:, self.visible :]], 1), start))
        state = self.gibbs(state, sweeps - average, key=noise.key(), clamp=clamp)
        total = torch.zeros_like(on)
        for _ in range(average):
            state = self.gibbs(state, 1, key=noise.key(), clamp=clamp)
            total += self.field(state)[:, : self.visible].sigmoid()
        return torch.where(shown, on.view(x.shape), (total / average).view(x.shape))

    @torch.no_grad()
    def denoise(
        self, x: Tensor, noise: float, *, sweeps: int = 60, average: int = 30, key: Tensor | int | None = None
    ) -> Tensor:
        """The expected images (B, *shape) given ones of whose pixels a share ``noise`` was flipped.

        A larger machine does it: every visible unit gets a partner, clamped to the pixel that was seen, with the weight
        that makes them differ with probability ``noise``.
        """
        if not 0 < noise < 0.5:
            raise ValueError(f"denoise: noise must be in (0, 0.5), got {noise}")
        if not 0 < average <= sweeps:
            raise ValueError(f"denoise: average must be in 1..sweeps, got {average} of {sweeps}")
        source, seen = Noise(key, device=self.device), self.probabilities(x).round()
        odds, n, visible = math.log((1 - noise) / noise), self.units, self.visible
        weight = self.weight.new_zeros(n + visible, n + visible)
        weight[:n, :n] = self.weight
        bias = torch.cat([self.bias, self.bias.new_zeros(visible)])
        # With y in {0, 1}: (2 y - 1) times the odds is the field; with spins half of it, for the field counts twice.
        link = torch.arange(visible, device=self.device)
        weight[link, n + link] = weight[n + link, link] = odds / 2 if self.spin else 2 * odds
        if not self.spin:
            bias[:visible] -= odds
        hidden = source.bernoulli(self._on(self.mean).clamp(0, 1)[visible:].expand(len(x), -1))
        state = self._state(torch.cat([seen, hidden, seen], 1))
        clamp = torch.arange(n + visible, device=self.device) >= n
        total = torch.zeros_like(seen)
        for step in range(sweeps):
            state = gmk.boltzmann_gibbs(
                state, weight, bias, sweeps=1, key=source.key(), clamp=clamp, spin=self.spin
            )  # fmt: skip
            if step >= sweeps - average:
                field = torch.addmm(bias, state, weight)[:, :visible] * (2.0 if self.spin else 1.0)
                total += field.sigmoid()
        return (total / average).view(x.shape)
