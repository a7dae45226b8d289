"""How good the samples of a generator are: distances and shares on images, modes on mixtures, distances on vectors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import metrics
from ..data import Dataset, Density, ImageDataset
from .gan import GAN

_EXTRACTORS = {"fashion-mnist": "fashion28", "mnist5k": "mnist28", "digits": "mnist28"}
KEPT = 0.1
"""The part of its share of the samples that a mode must get to count as kept."""


def extractor_of(dataset: ImageDataset) -> tuple[metrics.Classifier28, bool]:
    """The extractor for a data set, and whether its classes are the data's own. Others are measured by clothing."""
    name = _EXTRACTORS.get(dataset.name, "fashion28")
    make = metrics.mnist28 if name == "mnist28" else metrics.fashion28
    return make(resize=dataset.shape != (1, 28, 28)), dataset.name in _EXTRACTORS


class ImageJudge:
    """Fréchet distance from a split of a data set, classifier score, and the share of every class.

    The features of the real images are taken once.
    """

    def __init__(self, dataset: ImageDataset, split: str, n: int) -> None:
        self.dataset, self.split, self.n = dataset, split, n
        self.extractor, self.own = extractor_of(dataset)
        # Only the first process of several judges.
        self.distance = metrics.FrechetDistance(self.extractor, split=f"{dataset.name} {split}", sync=False)
        for x, _ in dataset.batches(split, 500):
            self.distance.update(_unit(x, dataset.levels), real=True)

    def describe(self) -> str:
        return (
            f"{self.extractor.describe()}, {self.n} samples against {len(self.dataset.splits[self.split].x)} images of "
            f"{self.dataset.name}'s {self.split} split"
        )

    def __call__(self, model: GAN) -> dict[str, float]:
        self.distance.reset("fake")
        self.extractor.to(model.device)
        key, found = torch.tensor([7, 0]), []
        for first in range(0, self.n, 500):
            n = min(500, self.n - first)
            images = model.decode(model.noise(n, key, first=first))
            with torch.inference_mode():
                features = self.extractor(images)
                found.append(self.extractor.head(features).softmax(1).cpu())
            self.distance.update_features(features.cpu(), real=False)
        p = torch.cat(found)
        figures = {f"{self.split}_frechet": float(self.distance.compute())}
        if self.own:
            shares = p.argmax(1).bincount(minlength=p.shape[1]) / len(p)
            figures[f"{self.split}_classifier_score"] = metrics.inception_score(p).mean
            figures[f"{self.split}_smallest_share"] = float(shares.min())
            figures |= {f"share_{i}": float(share) for i, share in enumerate(shares)}
        return figures


def _unit(x: Tensor, levels: int) -> Tensor:
    return x.float() / (levels - 1)


class Modes(NamedTuple):
    """What a sample keeps of a mixture: modes, the share of high quality, and how evenly that is spread."""

    kept: int
    quality: float
    overlap: float


def modes(x: Tensor, centres: Tensor, std: float) -> Modes:
    """What samples (N, 2) keep of a mixture of K equal round Gaussians.

    A sample is of high ``quality`` if it lies within three deviations of the nearest centre (98.9 % of the mixture's own
    do); a mode is ``kept`` if at least a tenth of its share, ``N / K``, of such samples are nearest to it; ``overlap``
    is the sum over the modes of their shares of such samples, each counted up to ``1 / K``.
    """
    squared, nearest = (x.double()[:, None] - centres.double()).square().sum(2).min(1)
    good = squared <= (3 * std) ** 2
    shares = nearest[good].bincount(minlength=len(centres)).double() / len(x)
    full = 1 / len(centres)
    return Modes(int((shares >= KEPT * full).sum()), float(good.double().mean()), float(shares.clamp(max=full).sum()))


class VectorJudge:
    """Sliced Wasserstein distance from a split of the data; of a mixture also what :func:`modes` counts."""

    def __init__(self, dataset: Dataset, split: str, n: int) -> None:
        self.dataset, self.split = dataset, split
        self.real = held_out(dataset, split, n)

    def describe(self) -> str:
        return f"{len(self.real)} samples against as many of {self.dataset.name}'s {self.split} split"

    def __call__(self, model: GAN) -> dict[str, float]:
        found = model.sample(len(self.real), key=7).cpu()
        figures = {f"{self.split}_sliced_wasserstein": float(metrics.wasserstein(found, self.real))}
        centres: Any = getattr(self.dataset, "centres", None)
        if centres is not None:
            kept, quality, overlap = modes(found, centres(), self.dataset.std)  # type: ignore[attr-defined]
            names = ("modes", "high_quality", "overlap")
            figures |= {f"{self.split}_{k}": v for k, v in zip(names, (float(kept), quality, overlap), strict=True)}
        return figures


def held_out(dataset: Dataset, split: str, n: int) -> Tensor:
    """Vectors no training batch has held."""
    if isinstance(dataset, Density):
        # Validation has a key of its own, as the test sample has.
        return dataset.held_out(n) if split == "test" else dataset.sample(n, torch.tensor([1, 2**62]))
    return dataset.splits[split].x[:n]  # type: ignore[attr-defined]
