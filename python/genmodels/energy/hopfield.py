"""Hopfield networks: patterns are stored at once and recalled by going downhill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gmkernels as gmk

from ..sampling import Noise

Rule = Literal["hebb", "pseudo-inverse"]
RULES = ("hebb", "pseudo-inverse")


class Recall(NamedTuple):
    """``states`` (B, units); the ``sweeps`` (B,) that changed each; which ``converged`` (B,) to a fixed point for sure."""

    states: Tensor
    sweeps: Tensor
    converged: Tensor


class Hopfield(nn.Module):
    """Hopfield network (Hopfield 1982) of ``units`` units that are -1 or 1.

    >>> network = Hopfield(784)
    >>> network.store(patterns)
    >>> network.recall(noisy).states

    ``weight`` (units, units) is symmetric with a zero diagonal; ``patterns`` (stored, units) are kept for dense recall,
    for the pseudo-inverse rule and for :meth:`overlap`.
    """

    weight: Tensor
    patterns: Tensor

    def __init__(self, units: int) -> None:
        super().__init__()
        if units < 1:
            raise ValueError(f"Hopfield: units must be positive, got {units}")
        self.units = units
        self.register_buffer("weight", torch.zeros(units, units))
        self.register_buffer("patterns", torch.zeros(0, units))

    def extra_repr(self) -> str:
        return f"{self.units}, stored={len(self.patterns)}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}patterns")
        if stored is not None and stored.dim() == 2:
            self.patterns = self.patterns.new_zeros(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def states(self, x: Tensor) -> Tensor:
        """Patterns (B, ...) as states (B, units).

        Raises:
            ValueError: not so many units, or values other than -1 and 1.
        """
        found = x.to(self.weight.dtype).flatten(1)
        if found.shape[1] != self.units:
            raise ValueError(f"expected patterns of {self.units} units, got {tuple(x.shape)}")
        if not bool((found.abs() == 1).all()):
            raise ValueError(
                f"patterns must hold -1 and 1, got values from {float(found.min())} to {float(found.max())}"
            )
        return found

    @torch.no_grad()
    def store(self, patterns: Tensor, rule: Rule = "hebb") -> None:
        """Add patterns (n, ...) of -1 and 1 to those stored.

        ``hebb``: ``W = sum_p x_p x_p^T / units`` (Hopfield 1982, equation 2), good for about 0.138 random patterns a
        unit. ``pseudo-inverse``: the projection onto all patterns stored so far (Personnaz, Guyon and Dreyfus 1985),
        good for correlated ones and for fewer than one a unit. In both the diagonal is zero.
        """
        if rule not in RULES:
            raise ValueError(f"rule must be 'hebb' or 'pseudo-inverse', got {rule!r}")
        x = self.states(patterns)
        self.patterns = torch.cat([self.patterns, x])
        if rule == "hebb":
            self.weight += x.t() @ x / self.units
        else:
            known = self.patterns.double()
            projection = torch.linalg.pinv(known) @ known
            # What is left of zero by rounding would turn units over: recall looks at signs.
            rounding = 8 * self.units * torch.finfo(torch.float64).eps
            self.weight.copy_(projection.where(projection.abs() > rounding, 0.0))
        # A product need not be symmetric to the last bit; recall asks for it.
        self.weight.copy_(self.weight.triu(1) + self.weight.triu(1).t())

    @torch.no_grad()
    def recall(self, x: Tensor, max_sweeps: int = 50) -> Recall:
        """Follow the energy down from states (B, ...), one unit at a time, to a fixed point or for ``max_sweeps``."""
        states, sweeps = gmk.hopfield_recall(self.states(x), self.weight, max_sweeps=max_sweeps)
        return Recall(states, sweeps, sweeps < max_sweeps)

    @torch.no_grad()
    def recall_dense(self, x: Tensor, beta: float = 0.1, steps: int = 1) -> Tensor:
        """Modern (dense) recall: ``x <- sign(softmax(beta x X^T) X)`` with the stored patterns X, ``steps`` times.

        The update of Ramsauer et al., "Hopfield networks is all you need", 2021, equation 3, rounded to states at the
        end. It is attention over the patterns, and needs no (B, patterns) matrix.
        """
        if not len(self.patterns):
            raise ValueError("recall_dense: nothing has been stored")
        if not beta > 0 or steps < 1:
            raise ValueError(f"recall_dense: beta must be positive and steps at least 1, got {beta} and {steps}")
        q, known = self.states(x), self.patterns
        for _ in range(steps):
            q = F.scaled_dot_product_attention(q[None, None], known[None, None], known[None, None], scale=beta)[0, 0]
        return torch.where(q >= 0, 1.0, -1.0).to(q.dtype)

    @torch.no_grad()
    def energy(self, x: Tensor) -> Tensor:
        """``-x W x / 2`` (B,)."""
        s = self.states(x)
        return -0.5 * ((s @ self.weight) * s).sum(1)

    @torch.no_grad()
    def overlap(self, x: Tensor) -> Tensor:
        """``x . pattern / units`` (B, stored): 1 for a pattern itself, -1 for its negative."""
        return self.states(x) @ self.patterns.t() / self.units


def random_patterns(n: int, units: int, noise: Noise) -> Tensor:
    """``n`` patterns of independent, equally likely -1 and 1."""
    return 2 * noise.bernoulli(torch.full((n, units), 0.5)) - 1


def flip(x: Tensor, share: float, noise: Noise) -> Tensor:
    """States with every unit turned over with probability ``share``."""
    return torch.where(noise.uniform(x.shape) < share, -x, x)


def capacity_curve(
    units: int,
    loads: Sequence[float],
    *,
    noise: float = 0.1,
    recalls: int = 40,
    rule: Rule = "hebb",
    max_sweeps: int = 20,
    key: Tensor | int | None = 0,
) -> Tensor:
    """Mean overlap of a recalled pattern with the true one, for each load (patterns a unit).

    Random patterns, ``noise`` of whose units are turned over; ``recalls`` of them (all, if there are fewer) are recalled
    for each load. By Hebb's rule the overlap falls off a cliff at a load of 0.138 (Amit, Gutfreund and Sompolinsky
    1985).
    """
    source, found = Noise(key), []
    for load in loads:
        patterns = random_patterns(max(1, round(load * units)), units, source)
        network = Hopfield(units)
        network.store(patterns, rule)
        some = patterns[:recalls]
        states = network.recall(flip(some, noise, source), max_sweeps).states
        found.append((states * some).mean())
    return torch.stack(found)
