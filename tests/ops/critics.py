"""Critics for the tests of gradient penalties, and what both routes have to agree on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import gmkernels as gmk


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fill(critic: nn.Module, seed: int) -> nn.Module:
    """Parameters of which none is special, so that no gradient is 0 by accident."""
    generator = seeded(seed)
    with torch.no_grad():
        for p in critic.parameters():
            scale = 1.0 / max(1, p[0].numel()) ** 0.5 if p.dim() > 1 else 0.5
            p.copy_(torch.randn(p.shape, generator=generator) * scale + (0.3 if p.dim() == 1 else 0.0))
    return critic


def pair(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    return (
        torch.randn(shape, generator=generator, dtype=dtype),
        torch.randn(shape, generator=generator, dtype=dtype),
    )


def gradients(critic: nn.Module, penalty: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(penalty, list(critic.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(critic.parameters(), found, strict=True)]


def both(critic: nn.Module, real: Tensor, fake: Tensor, tolerance: float = 1e-10, **how: object) -> None:
    """The penalty and its gradients by the first-order route are those by the other."""
    found = {}
    for route in ("first-order", "double-backward"):
        penalty = gmk.gradient_penalty(critic, real, fake, key=torch.tensor([3, 4]), route=route, **how)
        found[route] = penalty.detach(), gradients(critic, penalty)
    ours, theirs = found["first-order"], found["double-backward"]
    torch.testing.assert_close(ours[0], theirs[0], rtol=tolerance, atol=tolerance)
    # Of the largest gradient: those that vanish in theory are rounding in both.
    size = max(float(g.abs().max()) for g in theirs[1])
    for (name, _), a, b in zip(critic.named_parameters(), *(f[1] for f in (ours, theirs)), strict=True):
        assert float((a - b).abs().max()) <= tolerance * max(1.0, size), (name, a, b)


def critic_of_images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 8, 3, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(32, 1)
    )
