"""The restricted Boltzmann machine of the benchmarks: trained once on mnist5k, then kept."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

import gmkernels as gmk
from genmodels.data import mnist5k

VISIBLE, HIDDEN, UPDATES = 784, 500, 4000
CACHE = Path(__file__).resolve().parents[1] / "data" / f"rbm-{VISIBLE}x{HIDDEN}-{UPDATES}.pt"


def _train() -> dict[str, Tensor]:
    images = mnist5k().splits["train"].x.flatten(1) / 255.0
    generator = torch.Generator().manual_seed(0)
    mean = images.mean(0)
    weight = 0.01 * torch.randn(VISIBLE, HIDDEN, generator=generator)
    visible_bias, hidden_bias = torch.logit(mean.clamp(0.01, 0.99)), torch.zeros(HIDDEN)
    chains = torch.bernoulli(mean.expand(100, VISIBLE), generator=generator)
    for update in range(UPDATES):
        rate = 0.05 * (0.001 / 0.05) ** (update / UPDATES)
        data = torch.bernoulli(images[torch.randint(len(images), (100,), generator=generator)], generator=generator)
        key = torch.tensor([1, update])
        chains, _ = gmk.rbm_gibbs(chains, weight, visible_bias, hidden_bias, steps=1, key=key)
        phases = (
            (data, torch.sigmoid(hidden_bias + data @ weight)),
            (chains, torch.sigmoid(hidden_bias + chains @ weight)),
        )
        by_weight, by_visible, by_hidden = gmk.cd_statistics(*phases[0], *phases[1])
        weight += rate * (by_weight - 1e-4 * weight)
        visible_bias += rate * by_visible
        hidden_bias += rate * by_hidden
    start = torch.bernoulli(images[:512], generator=generator)
    return {"v": start, "weight": weight, "visible_bias": visible_bias, "hidden_bias": hidden_bias}


@functools.cache
def machine() -> dict[str, Tensor]:
    """The trained machine, and 512 states to start from."""
    if not CACHE.exists():
        CACHE.parent.mkdir(exist_ok=True)
        partial = CACHE.with_suffix(".tmp")
        torch.save(_train(), partial)
        partial.replace(CACHE)
    return torch.load(CACHE, weights_only=True)
