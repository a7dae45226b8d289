"""Trains the extractors that are shipped: ``python -m genmodels.metrics.train_extractor fashion28``.

One thread and Philox orders make a run repeat itself bit for bit on one kind of processor. The test images are looked
at once, at the end, with the weights rounded to float16 as they are saved.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import Batch, ImageDataset, Shuffled, fashion_mnist, mnist5k
from .extractor import WEIGHTS, Classifier28, write_weights


@dataclass(frozen=True)
class Recipe:
    """How one extractor is trained: everything but the test split is trained on."""

    epochs: int
    batch: int = 128
    lr: float = 2e-3
    shift: int = 0


RECIPES = {"fashion28": Recipe(epochs=4), "mnist28": Recipe(epochs=24, shift=2)}
DATA = {"fashion28": fashion_mnist, "mnist28": mnist5k}


def train(name: str, data: ImageDataset, recipe: Recipe, *, seed: int = 0, quiet: bool = False) -> Classifier28:
    """An extractor trained with Adam under a one-cycle schedule (Smith and Topin, 2018) and cross-entropy."""
    splits = [data.splits[part] for part in ("train", "valid")]
    whole = Batch(torch.cat([b.x for b in splits]), torch.cat([_labels(b) for b in splits]))
    stream = Shuffled(whole, recipe.batch, seed=seed, shift=recipe.shift)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Classifier28(name)
    steps = recipe.epochs * stream.batches_per_epoch
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps)
    start = time.perf_counter()
    for step in range(steps):
        batch = next(stream)
        loss = F.cross_entropy(network.head(network(batch.x)), _labels(batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if not quiet and (step + 1) % stream.batches_per_epoch == 0:
            print(f"{name}: step {step + 1}/{steps}, loss {loss.item():.4f}, {time.perf_counter() - start:.0f} s")
    return network.eval().requires_grad_(False)


def accuracy(network: Classifier28, batch: Batch) -> float:
    """The share of images whose most probable class is their label."""
    parts = zip(batch.x.split(1000), _labels(batch).split(1000), strict=True)
    return sum(int((network.probabilities(x).argmax(1) == y).sum()) for x, y in parts) / len(batch.x)


def _labels(batch: Batch) -> Tensor:
    if batch.y is None:
        raise ValueError("an extractor is trained on labelled images, and these have no labels")
    return batch.y


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="genmodels.metrics.train_extractor", description=__doc__)
    parser.add_argument("names", nargs="*", default=list(RECIPES), help=f"which (default: {' '.join(RECIPES)})")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the weights (default: inside the package)")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.names) - set(RECIPES):
        parser.error(f"unknown extractor {', '.join(sorted(unknown))}; known are {', '.join(RECIPES)}")
    torch.set_num_threads(1)
    for name in chosen.names:
        data = DATA[name]()
        network = train(name, data, RECIPES[name], seed=chosen.seed)
        network.half().float()
        path = write_weights(network, chosen.out)
        print(f"{name}: {accuracy(network, data.splits['test']):.2%} of {data.name}'s test images, {path}")


if __name__ == "__main__":
    main()
