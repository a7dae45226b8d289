"""Which random decisions a rounding error may flip."""

from __future__ import annotations

import torch
from torch import Tensor


def boundary_band(words: Tensor, p: Tensor, width: float) -> Tensor:
    """Where a Bernoulli decision ``word < p * 2**32`` could differ if ``p`` were off by ``width``.

    Two backends that compute ``p`` with different rounding draw the same bits everywhere else, so a sampler is
    compared bit for bit outside the band and the band itself is counted: it holds about ``2 * width`` of the elements.

    Args:
        words: the 32-bit words as int64, from ``gmkernels.random.bits``.
        p: probabilities of the same shape.
        width: the largest absolute error of ``p``.
    """
    distance = (words.double() + 0.5) * 2.0**-32 - p.double()
    # A threshold is floor(p * 2**32), so one step of the grid belongs to the band as well.
    return distance.abs() <= width + 2.0**-32 * torch.ones_like(distance)
