"""Two-dimensional densities with an exact sampler, an exact log-density, and a known entropy.

What a flow has learnt of one is measured in nats: its cross-entropy on samples, minus the entropy, is the Kullback-
Leibler divergence from the density to the flow.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import gmkernels as gmk

from .dataset import Fresh

_LN_2PI = math.log(2 * math.pi)


class Density:
    """A density on the plane. A subclass gives ``name``, ``box``, :meth:`sample` and :meth:`log_prob`.

    ``box`` is ``((left, right), (bottom, top))``: it holds all but less than 1e-8 of the mass. ``nodes`` is the
    order of the quadrature over it.
    """

    name: str
    box: tuple[tuple[float, float], tuple[float, float]]
    shape: tuple[int, ...] = (2,)
    nodes: int = 400
    smooth: bool = True
    """Whether the logarithm of the density has a gradient that leads to where its mass is."""

    def sample(self, n: int, key: Tensor, *, first: int = 0) -> Tensor:
        """``n`` exact samples (n, 2) in float32; rows ``first .. first + n`` of the endless table under ``key``."""
        raise NotImplementedError

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of points (..., 2) in nats, normalised."""
        raise NotImplementedError

    def potential(self, x: Tensor) -> Tensor:
        """:meth:`log_prob`, but finite everywhere, so that a model's own samples can be pulled to where the mass is.

        Where the density ends abruptly, a steep slope takes the place of the edge.
        """
        return self.log_prob(x)

    @functools.cached_property
    def entropy(self) -> float:
        """Differential entropy in nats; by quadrature unless a subclass has a closed form."""
        return self.quadrature(torch.neg)

    def quadrature(self, f: Callable[[Tensor], Tensor], nodes: int | None = None) -> float:
        """The expectation of ``f(log p)`` by a Gauss-Legendre rule of ``nodes`` x ``nodes`` points over the box."""
        nodes = nodes or self.nodes
        (x, wx), (y, wy) = (_gauss_legendre(*side, nodes) for side in self.box)
        log_p = torch.cat([self.log_prob(torch.cartesian_prod(part, y)) for part in x.split(50)]).view(nodes, nodes)
        terms = torch.where(log_p.exp() > 0, log_p.exp() * f(log_p), 0.0)
        return float(wx @ terms @ wy)

    def stream(self, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1) -> Fresh:
        """Endless fresh samples."""
        return Fresh(self.sample, batch_size, seed=seed, rank=rank, world=world)

    def held_out(self, n: int = 20_000) -> Tensor:
        """The test sample: fixed, and drawn under a key that no training stream uses."""
        return self.sample(n, torch.tensor([0, 2**62]))


def _gauss_legendre(low: float, high: float, nodes: int) -> tuple[Tensor, Tensor]:
    x, w = np.polynomial.legendre.leggauss(nodes)
    half = (high - low) / 2
    return torch.from_numpy(low + half * (x + 1)), torch.from_numpy(half * w)


def _normal_log_prob(x: Tensor, mean: Tensor | float = 0.0, std: float = 1.0) -> Tensor:
    return -0.5 * ((x - mean) / std) ** 2 - math.log(std) - 0.5 * _LN_2PI


def _mixture(x: Tensor, centres: Tensor, weights: Tensor, std: float) -> Tensor:
    """Log-density at points (..., 2) of round Gaussians at ``centres`` (K, 2) with ``weights`` (K,)."""
    squared = x.square().sum(-1, keepdim=True) - 2 * (x @ centres.T) + centres.square().sum(-1)
    return (weights.log() - squared / (2 * std**2)).logsumexp(-1) - 2 * math.log(std) - _LN_2PI


def _uniforms(key: Tensor, n: int, columns: int, first: int) -> Tensor:
    return gmk.random.uniform(key, (n, columns), first=first, dtype=torch.float64)


def _gaussians(u: Tensor) -> Tensor:
    """Two standard normals (n, 2) from two uniforms (n, 2), by Box and Muller."""
    radius, angle = (-2 * u[:, 0].log()).sqrt(), 2 * math.pi * u[:, 1]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


class StandardNormal(Density):
    """The latents of a flow of the plane: two independent standard normal numbers."""

    name = "normal"
    box = ((-7.0, 7.0), (-7.0, 7.0))
    entropy = 1.0 + _LN_2PI

    def sample(self, n: int, key: Tensor, *, first: int = 0) -> Tensor:
        return _gaussians(_uniforms(key, n, 2, first)).float()

    def log_prob(self, x: Tensor) -> Tensor:
        return _normal_log_prob(x).sum(-1)


class Banana(Density):
    """x2 ~ N(0, 4), x1 | x2 ~ N(x2**2 / 4, 1): Figure 1 of Papamakarios et al., "Masked autoregressive flow", 2017."""

    name = "banana"
    box = ((-8.0, 56.0), (-14.0, 14.0))
    entropy = 1.0 + _LN_2PI + math.log(2.0)

    def sample(self, n: int, key: Tensor, *, first: int = 0) -> Tensor:
        e = _gaussians(_uniforms(key, n, 2, first))
        x2 = 2 * e[:, 0]
        return torch.stack([x2**2 / 4 + e[:, 1], x2], 1).float()

    def log_prob(self, x: Tensor) -> Tensor:
        x1, x2 = x.unbind(-1)
        return _normal_log_prob(x2, 0.0, 2.0) + _normal_log_prob(x1, x2**2 / 4)


class Checkerboard(Density):
    """Uniform on the eight dark squares of a 4 x 4 board with side 4."""

    name = "checkerboard"
    smooth = False
    box = ((-2.0, 2.0), (-2.0, 2.0))
    entropy = math.log(8.0)

    def sample(self, n: int, key: Tensor, *, first: int = 0) -> Tensor:
        u = _uniforms(key, n, 2, first)
        column = (4 * u[:, 0]).floor()
        row = (2 * u[:, 1]).floor()
        x2 = 2 * u[:, 1] - row + 2 * row + column % 2 - 2
        return torch.stack([4 * u[:, 0] - 2, x2], 1).float()

    def log_prob(self, x: Tensor) -> Tensor:
        square = x.floor()
        inside = (square[..., 0] + square[..., 1]) % 2 == 0
        inside &= ((square >= -2) & (square < 2)).all(-1)
        return torch.where(inside, -math.log(8.0), -math.inf).to(x.dtype)


class Ring(Density):
    """Eight Gaussians of standard deviation 0.2, evenly on a circle of radius 2."""

    name = "ring"
    box = ((-4.0, 4.0), (-4.0, 4.0))
    modes, radius, std = 8, 2.0, 0.2

    def centres(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The means (8, 2)."""
        angle = 2 * math.pi * torch.arange(self.modes, dtype=dtype) / self.modes
        return self.radius * torch.stack([angle.cos(), angle.sin()], 1)

    def sample(self, n: int, key: Tensor, *, first: int = 0) -> Tensor:
        u = _uniforms(key, n, 3, first)
        mode = (self.modes * u[:, 2]).long()
        return (self.centres()[mode] + self.std * _gaussians(u[:, :2])).float()

    def log_prob(self, x: Tensor) -> Tensor:
        weights = torch.full((self.modes,), 1 / self.modes, dtype=x.dtype)
        return _mixture(x, self.centres(x.dtype), weights, self.std)


class Grid25(Density):
    """Twenty-five Gaussians of standard deviation 0.05 on a 5 x 5 grid with spacing 2: on what Srivastava et al.,
    "VEEGAN", 2017, count the modes that a generator keeps.
    """

    name = "grid25"
    box = ((-4.5, 4.5), (-4.5, 4.5))
    edge, spacing, std = 5, 2.0, 0.05
    # Their overlap is below rounding.
    entropy = math.log(25.0) + 1.0 + _LN_2PI + 2 * math.log(0.05)

    def centres(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The means (25, 2), row by row."""
        line = self.spacing * (torch.arange(self.edge, dtype=dtype) - (self.edge - 1) / 2)
        return torch.cartesian_prod(line, line)

    def sample(self, n: int, key: Tensor, *, first: int = 0) -> Tensor:
        u = _uniforms(key, n, 3, first)
        mode = (self.edge**2 * u[:, 2]).long()
        return (self.centres()[mode] + self.std * _gaussians(u[:, :2])).float()

    def log_prob(self, x: Tensor) -> Tensor:
        weights = torch.full((self.edge**2,), 1 / self.edge**2, dtype=x.dtype)
        return _mixture(x, self.centres(x.dtype), weights, self.std)


class Moons(Density):
    """Two interleaved half circles of radius 1, uniform along the arc, blurred by a Gaussian of deviation 0.1.

    The density is an integral over the arc, taken with 128 Gauss-Legendre nodes (exact to rounding at this blur).
    """

    name = "moons"
    box = ((-2.1, 2.1), (-1.35, 1.35))
    std, arc_nodes, nodes = 0.1, 128, 200

    @staticmethod
    def _arc(angle: Tensor, lower: Tensor) -> Tensor:
        upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], -1)
        return torch.where(lower[..., None], -upper, upper)

    def sample(self, n: int, key: Tensor, *, first: int = 0) -> Tensor:
        u = _uniforms(key, n, 4, first)
        return (self._arc(math.pi * u[:, 2], u[:, 3] < 0.5) + self.std * _gaussians(u[:, :2])).float()

    def log_prob(self, x: Tensor) -> Tensor:
        angle, weight = (part.to(x.dtype) for part in _gauss_legendre(0.0, math.pi, self.arc_nodes))
        sides = torch.tensor([[False], [True]])
        arc = self._arc(angle.expand(2, -1), sides).flatten(0, 1)
        return _mixture(x, arc, weight.repeat(2) / (2 * math.pi), self.std)


class Spirals(Density):
    """Two spiral arms, r = 0.5 + 2.5 t at angle 3 pi t, t uniform on (0, 1), blurred with deviation 0.15."""

    name = "spirals"
    box = ((-4.0, 4.0), (-4.0, 4.0))
    std, arc_nodes, nodes = 0.15, 192, 200

    @staticmethod
    def _arm(t: Tensor, second: Tensor) -> Tensor:
        r, angle = 0.5 + 2.5 * t, 3 * math.pi * t
        arm = torch.stack([r * angle.cos(), r * angle.sin()], -1)
        return torch.where(second[..., None], -arm, arm)

    def sample(self, n: int, key: Tensor, *, first: int = 0) -> Tensor:
        u = _uniforms(key, n, 4, first)
        return (self._arm(u[:, 2], u[:, 3] < 0.5) + self.std * _gaussians(u[:, :2])).float()

    def log_prob(self, x: Tensor) -> Tensor:
        t, weight = (part.to(x.dtype) for part in _gauss_legendre(0.0, 1.0, self.arc_nodes))
        arm = self._arm(t.expand(2, -1), torch.tensor([[False], [True]])).flatten(0, 1)
        return _mixture(x, arm, weight.repeat(2) / 2, self.std)


class Potential1(Density):
    """U1 of Rezende and Mohamed, "Variational inference with normalizing flows", 2015, Table 1: two facing arcs.

    ``p ~ exp(-U1)``; its normaliser comes from quadrature, its samples from rejection.
    """

    name = "potential1"
    box = ((-5.0, 5.0), (-5.0, 5.0))

    @staticmethod
    def _unnormalised(x: Tensor) -> Tensor:
        x1 = x[..., 0]
        lobes = torch.logaddexp(-0.5 * ((x1 - 2) / 0.6) ** 2, -0.5 * ((x1 + 2) / 0.6) ** 2)
        return lobes - 0.5 * ((x.norm(dim=-1) - 2) / 0.4) ** 2

    @functools.cached_property
    def _log_normaliser(self) -> float:
        (x, wx), (y, wy) = (_gauss_legendre(*side, 400) for side in self.box)
        return math.log(float(wx @ self._unnormalised(torch.cartesian_prod(x, y)).view(400, 400).exp() @ wy))

    def sample(self, n: int, key: Tensor, *, first: int = 0) -> Tensor:
        # Proposals have the lobes for x1 and are uniform in x2; what is left of the density is the chance to accept.
        out = torch.full((n, 2), math.nan, dtype=torch.float64)
        attempt = 0
        while (missing := out[:, 0].isnan()).any():
            u = _uniforms(key + torch.tensor([0, attempt << 32]), n, 40, first).view(n * 8, 5)
            x1 = 0.6 * _gaussians(u[:, :2])[:, 0] + torch.where(u[:, 2] < 0.5, -2.0, 2.0)
            proposal = torch.stack([x1, 10 * u[:, 3] - 5], 1)
            accepted = (u[:, 4].log() < -0.5 * ((proposal.norm(dim=1) - 2) / 0.4) ** 2).view(n, 8)
            hit = missing & accepted.any(1)
            out[hit] = proposal.view(n, 8, 2)[hit, accepted[hit].int().argmax(1)]
            attempt += 1
        return out.float()

    def log_prob(self, x: Tensor) -> Tensor:
        return self._unnormalised(x) - self._log_normaliser


class _Wave(Density):
    """x1 uniform on (-4, 4), and x2 | x1 a mixture of Gaussians round waves: exact where the paper's U is left open."""

    box = ((-4.0, 4.0), (-6.0, 6.0))
    slope = 0.1

    def branches(self, x1: Tensor) -> list[tuple[float, Tensor, float]]:
        """Weight, mean and standard deviation of each Gaussian of x2 | x1."""
        raise NotImplementedError

    @staticmethod
    def _w1(x1: Tensor) -> Tensor:
        return (math.pi * x1 / 2).sin()

    def sample(self, n: int, key: Tensor, *, first: int = 0) -> Tensor:
        u = _uniforms(key, n, 4, first)
        x1, e = 8 * u[:, 2] - 4, _gaussians(u[:, :2])[:, 0]
        branches = self.branches(x1)
        choice = torch.bucketize(u[:, 3].contiguous(), torch.tensor([b[0] for b in branches[:-1]]).cumsum(0))
        x2 = torch.stack([mean + std * e for _, mean, std in branches], 1)
        return torch.stack([x1, x2.gather(1, choice[:, None])[:, 0]], 1).float()

    def _unbounded(self, x: Tensor) -> Tensor:
        x1, x2 = x.unbind(-1)
        each = [math.log(weight) + _normal_log_prob(x2, mean, std) for weight, mean, std in self.branches(x1)]
        return torch.stack(each).logsumexp(0) - math.log(8.0)

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.where(x[..., 0].abs() < 4, self._unbounded(x), -math.inf)

    def potential(self, x: Tensor) -> Tensor:
        beyond = (x[..., 0].abs() - 4 + self.slope).clamp(min=0)
        return self._unbounded(x) - 0.5 * (beyond / self.slope) ** 2


class Potential2(_Wave):
    """U2 of the same table: a sine wave of deviation 0.4, x1 uniform on (-4, 4)."""

    name = "potential2"
    entropy = math.log(8.0) + 0.5 * (1 + _LN_2PI) + math.log(0.4)

    def branches(self, x1: Tensor) -> list[tuple[float, Tensor, float]]:
        return [(1.0, self._w1(x1), 0.4)]


class Potential3(_Wave):
    """U3 of the same table: two waves that part near x1 = 1."""

    name = "potential3"

    def branches(self, x1: Tensor) -> list[tuple[float, Tensor, float]]:
        gap = 3 * (-0.5 * ((x1 - 1) / 0.6) ** 2).exp()
        return [(0.5, self._w1(x1), 0.35), (0.5, self._w1(x1) - gap, 0.35)]


class Potential4(_Wave):
    """U4 of the same table: two waves that part for good at x1 = 1; the mass is in proportion to the deviations."""

    name = "potential4"

    def branches(self, x1: Tensor) -> list[tuple[float, Tensor, float]]:
        gap = 3 * ((x1 - 1) / 0.3).sigmoid()
        return [(0.4 / 0.75, self._w1(x1), 0.4), (0.35 / 0.75, self._w1(x1) - gap, 0.35)]


DENSITIES: dict[str, type[Density]] = {
    density.name: density
    for density in (Banana, Checkerboard, Grid25, Moons, Ring, Spirals, Potential1, Potential2, Potential3, Potential4)
}
