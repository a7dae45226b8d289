"""Small restricted Boltzmann machines, and what enumeration says of them."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from genmodels.energy import RBM

DISCRETE = [("binary", {}), ("softmax", {"categories": 3})]


def states(n: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)))


def machine(visible: str = "binary", sites: int = 5, hidden: int = 3, *, seed: int = 0, **options: object) -> RBM:
    """A small machine with weights large enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    model = RBM(sites, hidden, visible=visible, levels=2, **options)
    with torch.no_grad():
        for p, size in ((model.weight, 1.0), (model.visible_bias, 0.7), (model.hidden_bias, 0.5)):
            p.copy_(size * torch.randn(p.shape, generator=generator))
    return model


def joint_energy(model: RBM, v: Tensor, h: Tensor) -> Tensor:
    """E(v, h) (n, m) of all pairs, by definition."""
    w, vb, hb = (p.detach().double() for p in (model.weight, model.visible_bias, model.hidden_bias))
    v, h = v.double(), h.double()
    apart = 0.5 * (v - vb).square().sum(1) if model.visible == "gaussian" else -(v @ vb)
    return apart[:, None] - (h @ hb)[None] - v @ w @ h.t()


def every_visible(model: RBM) -> Tensor:
    if model.visible == "binary":
        return states(model.sites)
    one_hot = torch.eye(model.categories)
    rows = itertools.product(range(model.categories), repeat=model.sites)
    return torch.stack([one_hot[list(row)].flatten() for row in rows])


def law(model: RBM) -> Tensor:
    """p(v) of ``every_visible``, by definition."""
    scores = -joint_energy(model, every_visible(model), states(model.hidden))
    return scores.flatten().softmax(0).view_as(scores).sum(1)
