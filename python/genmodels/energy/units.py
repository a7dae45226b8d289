"""What a visible unit of a restricted Boltzmann machine can be, given its field ``vb + W h``.

``binary``: 0 or 1. ``gaussian``: a number, of unit variance. ``softmax``: one of K categories, written as K units of
which one is on (multinomial units; Hinton, "A practical guide to training restricted Boltzmann machines", 2010, section
13.1). Up to ``vb`` and ``W``, their law is ``exp(v . field)`` times 1, ``exp(-v^2 / 2)`` and 1.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from ..sampling import Noise

Visible = Literal["binary", "gaussian", "softmax"]
VISIBLE = ("binary", "gaussian", "softmax")


def mean(kind: str, field: Tensor, categories: int) -> Tensor:
    """Expected visible units of fields (..., V)."""
    if kind == "softmax":
        return field.unflatten(-1, (-1, categories)).softmax(-1).flatten(-2)
    return field.sigmoid() if kind == "binary" else field


def draw(kind: str, field: Tensor, categories: int, noise: Noise) -> Tensor:
    """Visible units drawn from fields (chains, V)."""
    if kind == "softmax":
        chosen = noise.categorical(field.unflatten(-1, (-1, categories)))
        return F.one_hot(chosen, categories).flatten(-2).to(field.dtype)
    if kind == "binary":
        return noise.bernoulli(field.sigmoid())
    return field + noise.normal(field.shape, field.dtype)


def log_partition(kind: str, field: Tensor, categories: int) -> Tensor:
    """Log of the sum (the integral) over visible units of their law, (...,) of fields (..., V)."""
    if kind == "softmax":
        return field.unflatten(-1, (-1, categories)).logsumexp(-1).sum(-1)
    if kind == "binary":
        return F.softplus(field, threshold=math.inf).sum(-1)
    return 0.5 * field.square().sum(-1) + 0.5 * field.shape[-1] * math.log(2 * math.pi)


def evidence(kind: str, seen: Tensor, noise: float, categories: int) -> tuple[Tensor, float]:
    """What a noisy observation adds to the field, and to the precision 1, of the units it is of.

    The noise of binary units is the probability of a flip, of softmax units that of a uniformly chosen category in
    place of the true one, of Gaussian units a standard deviation.
    """
    if kind == "gaussian":
        return seen / noise**2, noise**-2
    odds = (1 - noise) / noise if kind == "binary" else 1 + (1 - noise) * categories / noise
    return (2 * seen - 1 if kind == "binary" else seen) * math.log(odds), 0.0
