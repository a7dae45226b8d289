"""The baseline of every flow: one Gaussian with a full covariance, behind the same first steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .flow import Flow
from .fronts import Whiten, front
from .transforms import Chain, Flatten


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
        steps = [*front(shape, levels, alpha, equalise), Flatten(shape), Whiten(math.prod(shape), shrink)]
        super().__init__(Chain(steps), shape, levels, contexts=0)
        self.draws = draws

    @torch.no_grad()
    def initialise(self, x: Tensor, *, key: Tensor | int | None = 0) -> None:
        # The noise of integers is drawn once for the first steps, and more often for the covariance.
        super().initialise(x, key=key)
        assert isinstance(self.transform, Chain)
        *first, last = self.transform.steps
        assert isinstance(last, Whiten)
        seeds = self.key(key)
        draws = range(1 if x.is_floating_point() else self.draws)
        parts = [x if x.is_floating_point() else self.dequantise(x, seeds + torch.tensor([0, i + 1])) for i in draws]
        every = torch.cat(parts).to(self.device)
        for step in first:
            every = step(every)[0]
        last.initialise(every)
