"""How to store images in a Hopfield network, and what it can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from .. import pictures
from ..data import Dataset, ImageDataset
from ..errors import DataError
from ..recipe import Recipe
from ..sampling import Noise
from ..training import Fit, Result, write_down
from . import pictures as drawn
from .hopfield import Hopfield, Rule, capacity_curve, flip

LOADS = (0.05, 0.08, 0.10, 0.12, 0.138, 0.15, 0.16, 0.18, 0.20)
JUDGED = (0.10, 0.16)
"""The loads on both sides of the cliff at 0.138 that figures are given for."""


@dataclass(frozen=True, kw_only=True)
class HopfieldRecipe(Recipe):
    """Hopfield network (Hopfield 1982): stores black-and-white images at once and recalls them from noisy ones."""

    summary: ClassVar[str] = "Hopfield network (Hopfield 1982): stores images at once, recalls them from noisy ones"

    fit: Fit = field(default_factory=lambda: Fit(max_steps=1))
    """Only the seed matters: storing is no optimisation."""
    patterns: int = 20
    """Training images to store, the first ones of each class in turn."""
    rule: Rule = "pseudo-inverse"
    """hebb or pseudo-inverse; images resemble each other too much for Hebb's rule."""
    noise: float = 0.1
    """Share of pixels flipped before recall."""
    max_sweeps: int = 50
    units: int = 1000
    """Units of the networks of random patterns that the capacity is measured with."""
    recalls: int = 40
    """Random patterns recalled for each load."""

    def dataset(self) -> ImageDataset:
        found = super().dataset()
        if not isinstance(found, ImageDataset):
            raise DataError(f"a Hopfield network stores images, and {self.data!r} is none of them")
        return found

    def build(self, dataset: Dataset) -> Hopfield:
        images = cast(ImageDataset, dataset)
        x, y = images.splits["train"]
        if not 1 <= self.patterns <= len(x):
            raise ValueError(f"patterns must be between 1 and the {len(x)} training images, got {self.patterns}")
        if not 0 <= self.noise < 0.5:
            raise ValueError(f"noise must be in [0, 0.5), got {self.noise}")
        x = x[drawn.various(y, len(x))]
        network = Hopfield(x[0].numel())
        network.store(spins(x[: self.patterns], images.levels), self.rule)
        return network

    def train(
        self, model: nn.Module, dataset: Dataset, out: Path, *, rank: int, world: int, fingerprint: Mapping[str, Any]
    ) -> Result:
        """Storing is done by ``build``; what is left is to write the run down."""
        if rank:
            return Result(1, 0.0, None)
        return write_down(model, out, self.stored(cast(Hopfield, model)), fingerprint=fingerprint, processes=world)

    def stored(self, model: Hopfield) -> dict[str, float]:
        """How well what is stored comes back: as it is, and from noise."""
        x = model.patterns
        fixed = model.recall(x, self.max_sweeps).states
        found = model.recall(flip(x, self.noise, Noise(self.fit.seed)), self.max_sweeps)
        return {
            "stable": float((fixed == x).all(1).float().mean()),
            "overlap": float((found.states * x).mean()),
            "sweeps": float(found.sweeps.float().mean()),
        }

    def evaluate(self, model: nn.Module, dataset: Dataset, split: str) -> dict[str, float]:
        """Recall of the stored images, and of random patterns on both sides of the capacity."""
        assert isinstance(model, Hopfield)
        overlaps = capacity_curve(self.units, JUDGED, noise=0.1, recalls=self.recalls, key=self.fit.seed)
        names = [f"overlap_at_{load:.2f}" for load in JUDGED]
        return self.stored(model) | dict(zip(names, overlaps.tolist(), strict=True))

    def draw_samples(
        self, model: nn.Module, dataset: Dataset, path: Path, *, n: int, seed: int, temperature: float
    ) -> None:
        """Recalls of stored images, up to ``n`` of them."""
        assert isinstance(model, Hopfield)
        shape = cast(ImageDataset, dataset).shape
        x = model.patterns[: min(n, 24)]
        worn = flip(x, self.noise, Noise(seed))
        rows = [worn, model.recall(worn, self.max_sweeps).states, x]
        shown = [(row.view(-1, *shape) + 1) / 2 for row in rows]
        drawn.compare(path, shown, "noisy, recalled, stored", most=len(x))

    def report(
        self, model: nn.Module, dataset: Dataset, out: Path, log: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, float], list[Path]]:
        figures = self.evaluate(model, dataset, "test")
        recalls, capacity = out / "recalls.png", out / "capacity.png"
        self.draw_samples(model, dataset, recalls, n=12, seed=1, temperature=1.0)
        overlaps = capacity_curve(self.units, LOADS, noise=0.1, recalls=self.recalls, key=self.fit.seed)
        curve = list(zip(LOADS, overlaps.tolist(), strict=True))
        name = f"Hebb's rule, {self.units} units, 10 % noise"
        pictures.lines(capacity, {name: curve}, x="patterns a unit", y="overlap after recall", marks={"0.138": 0.138})
        return figures, [recalls, capacity]


def spins(x: Tensor, levels: int) -> Tensor:
    """Integer images as -1 and 1: lighter than half, or not."""
    return torch.where(x.float() * 2 > levels - 1, 1.0, -1.0).flatten(1)
