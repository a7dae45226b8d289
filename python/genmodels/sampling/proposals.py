"""Proposals for Metropolis-Hastings: functions ``(x, noise, scale)`` of the chains' states and scales (chains,).

A symmetric one returns candidates like ``x``; another returns ``(candidates, log q(x | x') - log q(x' | x))``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .noise import Noise

Proposal = Callable[[Tensor, Noise, Tensor], "Tensor | tuple[Tensor, Tensor]"]


def like(scale: Tensor, x: Tensor) -> Tensor:
    """(chains,) shaped to multiply (chains, ...)."""
    return scale.to(x.dtype).view(-1, *[1] * (x.dim() - 1))


def random_walk(x: Tensor, noise: Noise, scale: Tensor) -> Tensor:
    """``x + scale * normal`` in every coordinate; symmetric."""
    return x + like(scale, x) * noise.normal(x.shape, x.dtype)


def single_flip(x: Tensor, noise: Noise, scale: Tensor) -> Tensor:
    """One site, each equally likely, turned from 0 to 1 or back; symmetric. Ignores the scale."""
    flat = x.flatten(1).clone()
    site = noise.integers(flat.shape[1], (len(x), 1))
    return flat.scatter_(1, site, 1 - flat.gather(1, site)).view_as(x)


def langevin(log_density: Callable[[Tensor], Tensor]) -> Proposal:
    """``x + scale^2 / 2 * grad log p(x) + scale * normal``: MALA (Roberts and Tweedie 1996); not symmetric.

    A good rate of acceptance is 0.574.
    """

    def drift(x: Tensor, scale: Tensor) -> Tensor:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(log_density(at).sum(), at)
        return x + 0.5 * like(scale, x).square() * slope

    def propose(x: Tensor, noise: Noise, scale: Tensor) -> tuple[Tensor, Tensor]:
        centre, width = drift(x, scale), like(scale, x)
        new = centre + width * noise.normal(x.shape, x.dtype)
        there, back = ((a - b) / width for a, b in ((new, centre), (x, drift(new, scale))))
        return new, 0.5 * (there.square() - back.square()).flatten(1).double().sum(1)

    return propose
