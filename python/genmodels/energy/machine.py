"""The laws of a restricted Boltzmann machine: conditionals, Gibbs chains, free energy and likelihoods."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gmkernels as gmk

from ..sampling import Noise
from . import partition, units
from .learning import Learning
from .partition import LogZ
from .units import Visible


class Machine(nn.Module):
    """What a restricted Boltzmann machine is; :class:`genmodels.energy.RBM` learns and is asked."""

    updates: Tensor
    chains: Tensor
    base: Tensor
    shift: Tensor
    scale: Tensor
    visible_mean: Tensor
    hidden_mean: Tensor
    swap_rates: Tensor
    betas: Tensor

    def __init__(
        self,
        shape: int | Sequence[int],
        hidden: int,
        *,
        visible: Visible = "binary",
        categories: int = 2,
        levels: int = 256,
        learning: Learning | None = None,
    ) -> None:
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if hidden < 1 or not self.shape or min(self.shape) < 1:
            raise ValueError(f"RBM: shape and hidden must be positive, got {self.shape} and {hidden}")
        if visible not in units.VISIBLE:
            raise ValueError(f"RBM: visible must be one of {', '.join(units.VISIBLE)}, got {visible!r}")
        if visible == "softmax" and categories < 2:
            raise ValueError(f"RBM: categories must be at least 2, got {categories}")
        self.visible, self.levels, self.hidden = visible, levels, hidden
        self.categories = categories if visible == "softmax" else 1
        self.sites = math.prod(self.shape)
        self.learning = learning or Learning()
        wide = self.sites * self.categories
        self.weight = nn.Parameter(0.01 * torch.randn(wide, hidden))
        self.visible_bias = nn.Parameter(torch.zeros(wide))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        if visible == "gaussian":
            self.log_scale = nn.Parameter(torch.zeros(self.shape))
        betas = self.learning.ladder
        persistent = 0 if self.learning.method == "cd" else self.learning.chains
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        # Integers, also for Gaussian units (their bits): an average of the weights must not average chains.
        kind = torch.int32 if visible == "gaussian" else torch.uint8
        self.register_buffer("chains", torch.zeros(persistent, len(betas), wide, dtype=kind))
        self.register_buffer("betas", betas)
        self.register_buffer("swap_rates", torch.zeros(len(betas) - 1))
        self.register_buffer("base", torch.zeros(wide))
        self.register_buffer("shift", torch.zeros(self.shape))
        self.register_buffer("scale", torch.ones(self.shape))
        self.register_buffer("visible_mean", torch.zeros(wide))
        self.register_buffer("hidden_mean", torch.full((hidden,), 0.5))

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.weight.dtype

    def extra_repr(self) -> str:
        return f"{self.shape}, hidden={self.hidden}, visible={self.visible!r}, {self.learning}"

    def biases(self) -> list[nn.Parameter]:
        """All parameters but the weights."""
        return [p for p in self.parameters() if p is not self.weight]

    @property
    def spread(self) -> Tensor:
        """What a Gaussian unit's standard deviation, 1, is on the scale of the data (*shape); learned."""
        return self.scale * self.log_scale.exp()

    # What goes in and out.

    def probabilities(self, x: Tensor) -> Tensor:
        """Data as visible units (B, V): of binary units what they are drawn with.

        Raises:
            ValueError: another shape, numbers outside [0, 1] for binary units, no integers for softmax units.
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"expected data (batch, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        if self.visible == "softmax":
            if x.is_floating_point():
                raise ValueError(f"softmax units need integer data, got {x.dtype}")
            level = x.long().flatten(1) * self.categories // max(self.levels, self.categories)
            if level.numel() and not 0 <= int(level.min()) <= int(level.max()) < self.categories:
                raise ValueError(f"softmax units need integers in 0..{self.levels - 1}, got up to {int(x.max())}")
            return F.one_hot(level, self.categories).flatten(1).to(self.dtype)
        x = x.to(self.dtype) if x.is_floating_point() else x.to(self.dtype) / (self.levels - 1)
        if self.visible == "gaussian":
            return ((x - self.shift) / self.spread.detach()).flatten(1)
        if x.numel() and not (float(x.min()) >= 0 and float(x.max()) <= 1):
            raise ValueError(f"binary units need data in [0, 1], got values from {float(x.min())} to {float(x.max())}")
        return x.flatten(1)

    def states(self, x: Tensor, key: Tensor | int | None = None) -> Tensor:
        """Visible units (B, V) in the states that data are in: drawn with ``key``, else the likelier."""
        p = self.probabilities(x)
        if self.visible != "binary":
            return p
        return p.round() if key is None else Noise(key, device=self.device).bernoulli(p)

    def images(self, v: Tensor) -> Tensor:
        """Visible units, or their means, as data in [0, 1] (Gaussian: on the scale of the data) (B, *shape)."""
        if self.visible == "softmax":
            levels = torch.arange(self.categories, dtype=v.dtype, device=v.device) / (self.categories - 1)
            v = v.unflatten(1, (-1, self.categories)) @ levels
        v = v.view(len(v), *self.shape)
        return v * self.spread.detach() + self.shift if self.visible == "gaussian" else v

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Start from the data's means: biases so that the machine without weights draws every unit as often as they are
        on (Hinton 2010, section 8.1), standardisation, centres, and chains drawn from that machine."""
        if self.visible == "gaussian":
            values = (x.to(self.dtype) if x.is_floating_point() else x.to(self.dtype) / (self.levels - 1)).double()
            variance = values.var(0, correction=0)
            # What hardly varies must not be blown up to unit variance.
            scale = (variance + 0.01 * variance.mean()).sqrt()
            self.shift.copy_(values.mean(0))
            self.scale.copy_(torch.where(scale > 0, scale, 1.0))
        v = self.probabilities(x)
        if self.visible == "binary":
            p = (v.sum(0) + 0.5) / (len(v) + 1)
            self.visible_bias.copy_((p / (1 - p)).log())
        elif self.visible == "softmax":
            p = ((v.sum(0) + 0.5) / (len(v) + 0.5 * self.categories)).view(-1, self.categories)
            # Zero-sum gauge: of the parameters that mean the same, those that add up to nothing.
            self.visible_bias.copy_((p.log() - p.log().mean(1, keepdim=True)).flatten())
        self.base.copy_(self.visible_bias)
        self.visible_mean.copy_(v.mean(0))
        if self.chains.numel():
            start = units.draw(
                self.visible, self.base.expand(self.chains.shape[:2].numel(), -1), self.categories, self._noise(7)
            )
            self._keep(start.view(self.chains.shape))

    def _noise(self, purpose: int, first: int = 0) -> Noise:
        return Noise(self._key(purpose), first=first)

    def _key(self, purpose: int) -> Tensor:
        """The key of one purpose of this update."""
        seed = torch.full_like(self.updates, self.learning.seed)
        return torch.stack([seed, 8 * self.updates + purpose])

    # The conditional laws.

    def hidden_given(self, v: Tensor) -> Tensor:
        """``p(h = 1 | v)`` (B, hidden)."""
        return torch.addmm(self.hidden_bias, v, self.weight).sigmoid()

    def visible_given(self, h: Tensor) -> Tensor:
        """The means of ``p(v | h)`` (B, V)."""
        return units.mean(self.visible, torch.addmm(self.visible_bias, h, self.weight.t()), self.categories)

    def encode(self, x: Tensor) -> Tensor:
        """Probabilities of the hidden units (B, hidden) of data."""
        return self.hidden_given(self.states(x))

    def reconstruct(self, x: Tensor) -> Tensor:
        """Data through the hidden probabilities and back (B, *shape)."""
        return self.images(self.visible_given(self.encode(x)))

    @torch.no_grad()
    def gibbs(
        self,
        v: Tensor,
        steps: int = 1,
        *,
        key: Tensor | int | None = None,
        first: int = 0,
        beta: Tensor | None = None,
        clamp: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``steps`` block Gibbs steps of visible units (B, V); returns (v, h). See ``gmkernels.rbm_gibbs``."""
        noise = Noise(key, first=first, device=self.device)
        if self.visible != "softmax":
            return gmk.rbm_gibbs(
                v, self.weight, self.visible_bias, self.hidden_bias, steps=steps, key=noise.key(), first=first,
                beta=beta, clamp=clamp, visible=self.visible,
            )  # fmt: skip
        h = v.new_empty(len(v), self.hidden)
        for _ in range(steps):
            h, _ = gmk.rbm_sample_hidden(v, self.weight, self.hidden_bias, key=noise.key(), first=first, beta=beta)
            field = torch.addmm(self.visible_bias, h, self.weight.t())
            new = units.draw("softmax", field if beta is None else beta[:, None] * field, self.categories, noise)
            v = new if clamp is None else torch.where(clamp, v, new)
        return v, h

    def _current(self) -> Tensor:
        """The persistent chains' visible units (chains, replicas, V)."""
        return (
            self.chains.view(torch.float32).to(self.dtype) if self.visible == "gaussian" else self.chains.to(self.dtype)
        )

    def _keep(self, v: Tensor) -> None:
        self.chains.copy_(v.float().view(torch.int32) if self.visible == "gaussian" else v)

    @torch.no_grad()
    def sample_states(
        self, n: int, *, steps: int = 1000, temperature: float = 1.0, key: Tensor | int | None = None
    ) -> Tensor:
        """``n`` samples (n, V): Gibbs chains from the persistent ones, or from the machine without weights."""
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        noise = Noise(key, device=self.device)
        if self.chains.numel():
            v = self._current()[:, -1]
            v = v.repeat(-(-n // len(v)), 1)[:n].contiguous()
        else:
            v = units.draw(self.visible, self.base.expand(n, -1), self.categories, noise)
        beta = None if temperature == 1 else v.new_full((n,), 1 / temperature)
        return self.gibbs(v, steps, key=noise.key(), beta=beta)[0]

    # Likelihoods.

    def _hard_energy(self, v: Tensor) -> Tensor:
        """The energy of visible units by themselves."""
        if self.visible == "gaussian":
            return 0.5 * (v - self.visible_bias).square().sum(-1)
        return -(v @ self.visible_bias)

    def free_energy(self, v: Tensor) -> Tensor:
        """``-log sum_h exp(-E(v, h))`` (B,) of visible units (B, V); twice differentiable."""
        kind = "gaussian" if self.visible == "gaussian" else "binary"
        return gmk.rbm_free_energy(v, self.weight, self.visible_bias, self.hidden_bias, visible=kind)

    @torch.no_grad()
    def log_z(
        self,
        *,
        chains: int = 100,
        betas: int = 1000,
        burn_in: int = 500,
        exact: bool | None = None,
        key: Tensor | int | None = None,
    ) -> LogZ:
        """The log of the normalising constant, exactly or as the bracket of two annealed importance samplings.

        Args:
            chains, betas: of each direction; intermediate machines at equal distances, from one without weights.
            burn_in: Gibbs steps that the persistent chains go on for to become the samples that reverse annealing starts
                from; without persistent chains, that the machine without weights is followed for.
            exact: add up all states of the smaller side; None does it where that has at most 16 units. Up to 25.
        """
        small = min(self.hidden, self.sites if self.visible == "binary" else self.hidden)
        if exact or (exact is None and small <= 16):
            if small > partition.ENUMERABLE:
                raise ValueError(f"log_z: exact needs a side of at most {partition.ENUMERABLE} units, got {small}")
            return LogZ(value := self._exact_log_z(), value, True, math.inf)
        noise = Noise(key, device=self.device)

        def run(start: Tensor | None = None) -> Tensor:
            machine = (t.detach() for t in (self.weight, self.visible_bias, self.hidden_bias, self.base))
            return partition.log_weights(
                self.visible, self.categories, *machine, chains=chains, betas=betas, key=noise.key(), start=start
            )

        start = self.sample_states(chains, steps=burn_in, key=noise.key())
        found = partition.bracket(run(), run(start))
        offset = self._offset()
        return found._replace(low=found.low - offset, high=found.high - offset)

    def _offset(self) -> float:
        """Gaussian energies are written around ``vb``."""
        return 0.5 * float(self.visible_bias.double().square().sum()) if self.visible == "gaussian" else 0.0

    def _exact_log_z(self) -> float:
        w, vb, hb = (t.detach().double() for t in (self.weight, self.visible_bias, self.hidden_bias))
        if self.visible == "binary" and self.sites < self.hidden:
            return partition.enumerate_log_z(w, vb, lambda f: units.log_partition("binary", f, 1), hb)
        summed = lambda f: units.log_partition(self.visible, f, self.categories)  # noqa: E731
        return partition.enumerate_log_z(w.t().contiguous(), hb, summed, vb) - self._offset()

    @torch.no_grad()
    def log_likelihood(self, v: Tensor, log_z: float) -> Tensor:
        """``log p`` (B,), float64, of visible units; of Gaussian ones the density on the scale of the data."""
        found = -self.free_energy(v).double() - log_z
        return found - self.spread.double().log().sum() if self.visible == "gaussian" else found

    @torch.no_grad()
    def pseudo_likelihood(self, v: Tensor, *, exact: bool = False, key: Tensor | int | None = None) -> Tensor:
        """``sum_i log p(v_i | all others)`` (B,) of visible units (Besag 1975), for the whole sample.

        Unless ``exact``, one site of each sample is drawn and its term multiplied by the number of sites: unbiased, and
        the cheaper by that number.

        Raises:
            ValueError: Gaussian units, whose conditional densities have no closed form.
        """
        if self.visible == "gaussian":
            raise ValueError("pseudo_likelihood: the conditional densities of Gaussian units have no closed form")
        if not exact:
            site = Noise(key, device=self.device).integers(self.sites, (len(v), 1))
            return self.sites * self._site_terms(v, site)[:, 0]
        step = max(1, 2**22 // (max(1, len(v)) * self.hidden * max(2, self.categories)))
        sites = torch.arange(self.sites, device=v.device).split(step)
        return torch.stack([self._site_terms(v, part.expand(len(v), -1)).sum(1) for part in sites]).sum(0)

    def _site_terms(self, v: Tensor, sites: Tensor) -> Tensor:
        """``log p(v_site | all others)`` (B, m) of sites (B, m)."""
        field = torch.addmm(self.hidden_bias, v, self.weight)[:, None]
        if self.visible == "binary":
            # By how much turning the unit over changes log p; of its two values only the other one has to be worked out.
            turn = 1 - 2 * v.gather(1, sites)
            other = F.softplus(field + turn[:, :, None] * self.weight[sites]).sum(2)
            return F.logsigmoid(F.softplus(field).sum(2) - other - turn * self.visible_bias[sites])
        unit = sites[:, :, None] * self.categories + torch.arange(self.categories, device=v.device)
        rows, now = self.weight[unit], v.unflatten(1, (-1, self.categories)).argmax(2).gather(1, sites)
        old = rows.gather(2, now[:, :, None, None].expand(-1, -1, 1, self.hidden))
        logits = self.visible_bias[unit] + F.softplus(field[:, :, None] - old + rows).sum(3)
        return logits.log_softmax(2).gather(2, now[:, :, None])[:, :, 0]
