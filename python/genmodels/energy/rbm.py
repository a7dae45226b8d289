"""The restricted Boltzmann machine: its gradient, and what it can be asked."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path

import torch
from torch import Tensor

import gmkernels as gmk

from ..data import Batch
from ..sampling import Noise
from ..training import checkpoint
from . import learning, units
from .learning import Learning
from .machine import Machine


class IdleUnits(UserWarning):
    """Hidden units that are never or always on, and so say nothing."""


class RBM(Machine):
    """Restricted Boltzmann machine (Smolensky 1986; Hinton 2002): ``p(v, h) = exp(vb . v + hb . h + v W h) / Z``, h in
    {0, 1}, and v binary, Gaussian of unit variance around ``vb + W h``, or one of several categories.

    Args:
        shape: of a sample: an int or a sequence of ints, for images (C, H, W).
        hidden: number of hidden units.
        visible: ``binary``, ``gaussian`` (data are standardised by :meth:`initialise`, and the deviation of each unit is
            learned) or ``softmax``.
        categories: of a softmax unit; integer data with more levels are put into so many classes of grey.
        levels: integer data are divided by ``levels - 1``.
        learning: how the gradient is estimated; see :class:`Learning`.

    Data ``x`` (B, *shape) are integers or floating point. For binary units numbers in [0, 1] are probabilities: training
    draws them anew every time, all else takes the likelier of 0 and 1 unless it says that it draws. For Gaussian units
    any numbers do, for softmax units integers.

    Figures are in nats for a whole sample. Everything random takes ``key`` (a key of ``gmkernels.random.key`` or a seed;
    drawn from torch's generator if None) but training, which depends on ``learning.seed`` and the number of updates
    alone: so it can be stopped and resumed, and under DDP every process knows its share of one run's chains.
    """

    # Learning.

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """A loss whose gradient is minus the estimated gradient of the log-likelihood, and the centred one's if asked for.

        Its value is the squared difference of the means of the data and of the model's samples, averaged over the visible
        units: how far the samples are from the data.
        """
        options = self.learning
        with torch.no_grad():
            x, first = learning.consecutive(batch.x)
            v = self.probabilities(x)
            if self.visible == "binary":
                v = gmk.random.bernoulli(v, self._key(1), first=first)
            if self.visible == "softmax":
                self.zero_sum_gauge()
            if self.visible == "gaussian":
                # A pixel that never changes would be told ever more exactly.
                self.log_scale.clamp_(min=-1.5)
            drawn, p = gmk.rbm_sample_hidden(v, self.weight, self.hidden_bias, key=self._key(2), first=first)
            v_neg, p_neg = self._negative(drawn, first)
            steps: tuple[Tensor, ...] = gmk.cd_statistics(v, p, v_neg, p_neg)
            distance = steps[1].square().mean()
            if options.centred:
                rate = options.offset_rate if self.updates else 1.0
                for kept, found in ((self.visible_mean, v.mean(0)), (self.hidden_mean, p.mean(0))):
                    kept.lerp_(learning.averaged(found), rate)
                steps = learning.centre(steps[0], steps[1], steps[2], self.visible_mean, self.hidden_mean)
            if options.sparsity:
                pull = options.sparsity * (options.target - p.mean(0))
                steps = (steps[0] + torch.outer(v.mean(0), pull), steps[1], steps[2] + pull)
            if self.training:
                self.updates += 1
        machine = [self.weight, self.visible_bias, self.hidden_bias]
        if self.visible == "gaussian":
            # log p(x) = -F(z) - sum log s - log Z at z = (x - shift) / s: Z does not depend on s, so the data alone say
            # how s should change.
            with torch.no_grad():
                residual = v - torch.addmm(self.visible_bias, p, self.weight.t())
                steps = (*steps, ((v * residual).mean(0) - 1).view(self.shape))
            machine.append(self.log_scale)
        terms = {"loss": learning.descent(machine, steps, distance)}
        return terms | {"swap_rate": self.swap_rates.mean()} if options.method == "pt" else terms

    def _negative(self, hidden: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """The model's samples and their hidden probabilities; drives the persistent chains on."""
        options, key = self.learning, self._key(3)
        if options.method == "cd":
            field = torch.addmm(self.visible_bias, hidden, self.weight.t())
            v = units.draw(self.visible, field, self.categories, Noise(key, first=first))
            if options.steps > 1:
                v, _ = self.gibbs(v, options.steps - 1, key=self._key(4), first=first)
            return v, self._activity(v)
        share, rank, world = learning.mine(options.chains)
        v = self._current()[share]
        chains, replicas = v.shape[:2]
        rows = v.flatten(0, 1)
        tempered = replicas > 1
        rows, _ = self.gibbs(
            rows, options.steps, key=key, first=rank * len(rows), beta=self.betas.repeat(chains) if tempered else None
        )
        v = rows.view(chains, replicas, -1)
        if tempered:
            field = torch.addmm(self.hidden_bias, rows, self.weight).view(chains, replicas, -1)
            uniform = self._noise(4, first=rank * chains).uniform((chains, replicas), self.dtype)
            odd = int(self.updates) % 2
            v, tried, rate = learning.swap(v, field, self._hard_energy(v), self.betas, uniform, odd)
            rate, seen = learning.averaged(rate), self.updates // 2
            # A plain mean first, then a running one.
            moved = self.swap_rates.lerp(rate, 1 / (1 + seen.clamp_max(200)).to(rate.dtype))
            self.swap_rates.copy_(torch.where(tried, moved, self.swap_rates))
        self._keep(learning.everyone(v, world))
        samples = v[:, -1].contiguous()
        return samples, self._activity(samples)

    def _activity(self, v: Tensor) -> Tensor:
        """The hidden probabilities of states, by the operator: of few units on, it reads few rows of the weights."""
        return gmk.rbm_sample_hidden(v, self.weight, self.hidden_bias, key=self._key(5))[1]

    @torch.no_grad()
    def zero_sum_gauge(self) -> None:
        """Move what the categories of a softmax unit have in common to the hidden biases; no probability changes."""
        if self.visible == "softmax":
            w, b = self.weight.view(self.sites, self.categories, -1), self.visible_bias.view(self.sites, -1)
            common = w.mean(1, keepdim=True)
            w.sub_(common)
            b.sub_(b.mean(1, keepdim=True))
            self.hidden_bias.add_(common.sum((0, 1)))

    @torch.no_grad()
    def idle(self, x: Tensor) -> tuple[int, int]:
        """How many hidden units are dead and how many saturated: on, over data, less than 1 % or more than 99 %."""
        activity = self.encode(x).mean(0)
        return int((activity < 0.01).sum()), int((activity > 0.99).sum())

    def warn_if_idle(self, x: Tensor) -> tuple[int, int]:
        """:meth:`idle`, with a warning if that is more than a fifth of the units."""
        dead, saturated = self.idle(x)
        if 5 * (dead + saturated) > self.hidden:
            warnings.warn(
                f"of {self.hidden} hidden units {dead} are dead and {saturated} saturated; try a smaller learning rate, "
                "the centred gradient, a sparsity target, or fewer units",
                IdleUnits,
                stacklevel=2,
            )
        return dead, saturated

    # What it can be asked.

    @torch.no_grad()
    def sample(self, n: int, *, steps: int = 1000, temperature: float = 1.0, key: Tensor | int | None = None) -> Tensor:
        """``n`` expected images (n, *shape) given the hidden units of samples."""
        noise = Noise(key, device=self.device)
        v = self.sample_states(n, steps=steps, temperature=temperature, key=noise.key())
        h, _ = gmk.rbm_sample_hidden(v, self.weight, self.hidden_bias, key=noise.key())
        return self.images(self.visible_given(h))

    @torch.no_grad()
    def inpaint(
        self,
        x: Tensor,
        mask: Tensor,
        *,
        steps: int = 200,
        average: int = 100,
        draws: int = 1,
        key: Tensor | int | None = None,
    ) -> Tensor:
        """Images (B, *shape) with their hidden pixels filled in by Gibbs sampling with the visible ones held fixed.

        Args:
            mask: bool, broadcastable to (B, *shape); True marks what is visible. Hidden pixels are not read.
            steps, average: after ``steps - average`` steps, the mean of ``p(v | h)`` over the last ``average``, so what is
                expected; ``average=0`` gives a drawn filling.
            draws: the mean over so many chains: one chain stays with one way to fill in for long.
        """
        if mask.dtype != torch.bool:
            raise TypeError(f"a mask must be bool, True where pixels are visible, got {mask.dtype}")
        if not 0 <= average <= steps or steps < 1 or draws < 1:
            raise ValueError(
                f"steps and draws must be at least 1 and average in 0..steps, got {steps}, {draws} and {average}"
            )
        if draws > 1:
            many, masks = (t.repeat_interleave(draws, 0) for t in (x, mask.expand(len(x), *self.shape)))
            found = self.inpaint(many, masks, steps=steps, average=average, key=key)
            return found.unflatten(0, (len(x), draws)).mean(1)
        shown = mask.to(self.device).expand(len(x), *self.shape)
        clamp = shown.flatten(1).repeat_interleave(self.categories, 1)
        noise = Noise(key, device=self.device)
        start = units.draw(self.visible, self.base.expand(len(x), -1), self.categories, noise)
        seen = self.states(torch.where(shown, x, torch.zeros_like(x)))
        v, _ = self.gibbs(torch.where(clamp, seen, start), steps - average, key=noise.key(), clamp=clamp)
        if not average:
            return torch.where(shown, self.images(seen), self.images(v))
        total = torch.zeros_like(v)
        for _ in range(average):
            v, h = self.gibbs(v, 1, key=noise.key(), clamp=clamp)
            total += self.visible_given(h)
        return torch.where(shown, self.images(seen), self.images(total / average))

    @torch.no_grad()
    def denoise(
        self, x: Tensor, noise: float, *, steps: int = 200, average: int = 100, key: Tensor | int | None = None
    ) -> Tensor:
        """The expected images (B, *shape) given noisy ones, by Gibbs sampling of the true one.

        Args:
            noise: how noisy ``x`` is: the probability of a flipped pixel of a binary machine, of a random category of a
                softmax machine, or (Gaussian) a standard deviation in units of each pixel's ``spread``.
            steps, average: the mean is over the last ``average`` of ``steps``.
        """
        if not 0 < noise < (0.5 if self.visible == "binary" else 1 if self.visible == "softmax" else math.inf):
            raise ValueError(f"denoise: noise of {self.visible} units cannot be {noise}")
        if not 0 < average <= steps:
            raise ValueError(f"denoise: average must be in 1..steps, got {average} of {steps}")
        source, seen = Noise(key, device=self.device), self.states(x)
        field_of_data, precision = units.evidence(self.visible, seen, noise, self.categories)
        v, total = seen, torch.zeros_like(seen)
        spread = (1 + precision) ** -0.5
        for step in range(steps):
            h, _ = gmk.rbm_sample_hidden(v, self.weight, self.hidden_bias, key=source.key())
            field = torch.addmm(self.visible_bias, h, self.weight.t()) + field_of_data
            if self.visible == "gaussian":
                centre = field * spread**2
                v = centre + spread * source.normal(field.shape, field.dtype)
            else:
                centre = units.mean(self.visible, field, self.categories)
                v = units.draw(self.visible, field, self.categories, source)
            if step >= steps - average:
                total += centre
        return self.images(total / average)

    @torch.no_grad()
    def film(self, start: Tensor, frames: int, *, every: int = 10, key: Tensor | int | None = None) -> Tensor:
        """Expected images (frames, n, *shape) along Gibbs chains from visible units (n, V), ``every`` steps apart."""
        noise, v, shown = Noise(key, device=self.device), start, []
        for frame in range(frames):
            v, h = self.gibbs(v, every if frame else 1, key=noise.key())
            shown.append(self.images(self.visible_given(h)))
        return torch.stack(shown)

    # Files.

    def save(self, path: str | Path) -> None:
        """Write the machine, chains and all, to one file."""
        options = {"shape": self.shape, "hidden": self.hidden, "visible": self.visible, "levels": self.levels}
        options |= {"categories": self.categories, "learning": dataclasses.asdict(self.learning)}
        checkpoint.save(Path(path), self.state_dict(), {"rbm": options})

    @classmethod
    def load(cls, path: str | Path) -> RBM:
        """The machine of :meth:`save`."""
        tensors, state = checkpoint.load(Path(path))
        options = state["rbm"]
        model = cls(
            options.pop("shape"), options.pop("hidden"), **options | {"learning": Learning(**options["learning"])}
        )
        model.to(tensors["weight"].dtype).load_state_dict(tensors)
        return model
