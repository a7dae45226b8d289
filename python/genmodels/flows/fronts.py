"""What comes first in a flow: from data of any scale to numbers that are roughly standard normal, one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .transforms import Flatten, Logit, Standardise, Transform


def front(
    shape: Sequence[int], levels: int | None, alpha: float, equalise: bool = False, whiten: bool = False
) -> list[nn.Module]:
    """The first steps of a flow: a logit for images (or :class:`Equalise` in its place), and a learned scale and shift.

    With ``whiten`` then a vector of the elements, through :class:`Whiten`.
    """
    if whiten:
        return [*front(shape, levels, alpha, equalise), Flatten(shape), Whiten(math.prod(shape))]
    if levels is None:
        if equalise:
            raise ValueError("equalise is for integer samples: give levels=")
        return [Standardise(shape)]
    return [Equalise(shape, levels)] if equalise else [Logit(alpha), Standardise(shape)]


class Equalise(Transform):
    """Each element to normal scores: ``z = Phi^-1(F(x))`` with ``F`` the element's own distribution in the training data.

    ``F`` is piecewise linear over the integer levels, a fixed histogram; ``log |dz/dx| = log F'(x) - log phi(z)``. What a
    flow sees of an image is then standard normal pixel by pixel, and only their dependence is left to be learnt:
    under a logit, background (a level wide) and ink (many wide) stay far apart, and no affine layer brings a pixel that is
    now one and now the other to a normal number.

    Args:
        shape: of one sample, values in (0, 1).
        levels: integer levels; the histogram has as many bins.
        prior: how many images' worth of counts the histogram of all elements together adds to each element's own;
            one image's worth more is spread evenly.

    The histogram is even until :meth:`initialise` has seen data.
    """

    mass: Tensor

    def __init__(self, shape: Sequence[int], levels: int, prior: float = 8.0) -> None:
        super().__init__()
        self.levels, self.prior = levels, prior
        self.register_buffer("mass", torch.full((math.prod(shape), levels), 1 / levels))

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Take the histograms of ``x`` (N, *shape)."""
        level = (x.flatten(1) * self.levels).floor().clamp(0, self.levels - 1).long().t()
        counts = torch.zeros_like(self.mass, dtype=torch.float64)
        counts.scatter_add_(1, level, torch.ones_like(level, dtype=torch.float64))
        together = counts.sum(0) / counts.sum()
        counts += self.prior * together + 1 / self.levels
        self.mass.copy_(counts / counts.sum(1, keepdim=True))

    def _below(self) -> tuple[Tensor, Tensor]:
        """The mass of each level, and of all below it: (elements, levels) and (elements, levels + 1)."""
        mass = self.mass.double()
        total = mass.cumsum(1)
        mass, total = mass / total[:, -1:], total / total[:, -1:]
        return mass, torch.cat([torch.zeros_like(total[:, :1]), total], 1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mass, below = self._below()
        place = x.flatten(1).double() * self.levels
        level = place.detach().floor().clamp(0, self.levels - 1).long()
        here, under = mass.gather(1, level.t()).t(), below.gather(1, level.t()).t()
        # Beyond eight deviations a double has no digits left for the upper tail.
        z = torch.special.ndtri((under + here * (place - level)).clamp(1e-15, 1 - 1e-15))
        return z.view_as(x).to(x.dtype), self._slope(here, z).sum(1).to(torch.promote_types(x.dtype, torch.float32))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mass, below = self._below()
        wide = z.flatten(1).double()
        u = torch.special.ndtr(wide)
        level = (torch.searchsorted(below, u.t().detach().contiguous(), right=True) - 1).clamp(0, self.levels - 1)
        here, under = mass.gather(1, level).t(), below.gather(1, level).t()
        x = (level.t() + ((u - under) / here).clamp(0.0, 1.0)) / self.levels
        slope = -self._slope(here, wide).sum(1)
        return x.view_as(z).to(z.dtype), slope.to(torch.promote_types(z.dtype, torch.float32))

    def _slope(self, here: Tensor, z: Tensor) -> Tensor:
        return here.log() + math.log(self.levels) + 0.5 * (z * z + math.log(2 * math.pi))


class Whiten(Transform):
    """``z = L^-1 (x - m)`` of vectors, with a lower triangular ``L``; ``log |det| = -sum(log diag L)``.

    The autoregressive layer whose networks are linear and whose best weights are known: :meth:`initialise` takes mean and
    covariance from data, with the covariances made smaller by the share ``shrink``. They stay as they are in training.
    """

    def __init__(self, features: int, shrink: float = 0.01) -> None:
        super().__init__()
        self.shrink = shrink
        self.mean = nn.Parameter(torch.zeros(features), requires_grad=False)
        self.factor = nn.Parameter(torch.eye(features), requires_grad=False)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        x = x.double()
        covariance = torch.atleast_2d(torch.cov(x.t()))
        covariance = (1 - self.shrink) * covariance + self.shrink * covariance.diag().diag()
        self.mean.copy_(x.mean(0))
        factor, bad = torch.linalg.cholesky_ex(covariance)
        if len(x) < 2 or bool(bad):
            raise ValueError(
                f"the covariance of {len(x)} samples of {x.shape[1]} features cannot be inverted: there are too few "
                "samples, or a feature is constant"
            )
        self.factor.copy_(factor)

    def _logdet(self, x: Tensor) -> Tensor:
        return -self.factor.diag().to(torch.promote_types(x.dtype, torch.float32)).log().sum().expand(len(x))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = torch.linalg.solve_triangular(self.factor, (x - self.mean).t(), upper=False).t()
        return z, self._logdet(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z @ self.factor.tril().t() + self.mean, -self._logdet(z)
