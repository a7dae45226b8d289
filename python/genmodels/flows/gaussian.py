"""The baseline of every flow: one Gaussian with a full covariance, behind the same first steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .flow import Flow
from .fronts import front
from .transforms import Chain, Flatten, Transform


class Whiten(Transform):
    """``z = L^-1 (x - m)`` with a lower triangular ``L``; ``log |det| = -sum(log diag L)``."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(features))
        self.factor = nn.Parameter(torch.eye(features))

    @torch.no_grad()
    def initialise(self, x: Tensor, shrink: float) -> None:
        """Mean and covariance of ``x`` (N, features), its off-diagonal part made smaller by the share ``shrink``."""
        x = x.double()
        covariance = torch.cov(x.t())
        covariance = (1 - shrink) * covariance + shrink * covariance.diag().diag()
        self.mean.copy_(x.mean(0))
        self.factor.copy_(torch.linalg.cholesky(covariance))

    def _logdet(self, x: Tensor) -> Tensor:
        return -self.factor.diag().to(torch.promote_types(x.dtype, torch.float32)).log().sum().expand(len(x))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = torch.linalg.solve_triangular(self.factor, (x - self.mean).t(), upper=False).t()
        return z, self._logdet(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z @ self.factor.tril().t() + self.mean, -self._logdet(z)


class Gaussian(Flow):
    """A Gaussian with a full covariance; of images, in the space behind a logit (or :class:`Equalise`).

    :meth:`initialise` fits it in closed form; nothing else is to be learnt. Takes no context.

    Args:
        shape, levels, alpha, equalise: as for :class:`MAF`.
        shrink: the share by which covariances are made smaller; 0 is maximum likelihood.
        draws: how often the noise of integer samples is drawn for the fit.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        *,
        levels: int | None = None,
        alpha: float = 0.05,
        equalise: bool = False,
        shrink: float = 0.0,
        draws: int = 3,
    ) -> None:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        steps = [*front(shape, levels, alpha, equalise), Flatten(shape), Whiten(math.prod(shape))]
        super().__init__(Chain(steps), shape, levels, contexts=0)
        self.shrink, self.draws = shrink, draws

    @torch.no_grad()
    def initialise(self, x: Tensor, *, key: Tensor | int | None = 0) -> None:
        super().initialise(x, key=key)
        assert isinstance(self.transform, Chain)
        *first, last = self.transform.steps
        assert isinstance(last, Whiten)
        seeds = self._key(key)
        draws = range(1 if x.is_floating_point() else self.draws)
        parts = [x if x.is_floating_point() else self.dequantise(x, seeds + torch.tensor([0, i + 1])) for i in draws]
        every = torch.cat(parts).to(self.device)
        for step in first:
            every = step(every)[0]
        last.initialise(every, self.shrink)
