"""How to feed, judge and draw a flow: what the recipes of all of them share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from .. import pictures
from ..data import BatchStream, Dataset, Density, ImageDataset, Table
from ..data.densities import StandardNormal
from ..errors import DataError
from ..recipe import Recipe
from ..training import Fit
from .flow import Flow


@dataclass(frozen=True, kw_only=True)
class FlowRecipe(Recipe):
    """What every flow shares: its first scale and shift from the data, likelihoods as figures, pictures."""

    fit: Fit = field(default_factory=lambda: Fit(max_seconds=150.0, lr=1e-2, ema=0.995))
    batch_size: int | None = None
    """Left at None, 32 images or 512 points of a density or rows of a table."""
    alpha: float | None = None
    """Of the logit transform of images: a 40th of a grey level if not given. With the paper's 0.05 the background, a
    few hundredths wide between inks that are six apart, has to be stretched before anything can be learnt."""
    equalise: bool = False
    """Give every pixel of an image the normal distribution by its histogram, in place of the logit."""
    whiten: bool = False
    """Start from the Gaussian of the training data's covariance (of an image as a vector of pixels): better at once, but
    strokes are harder to find in what is left."""
    shift: int = 0
    """Move training images by up to this many pixels each way: of a few thousand, dense networks learn too much by heart."""

    def flow(self, dataset: Dataset, image: dict[str, Any]) -> Flow:
        """A new flow of the data's shape; ``image`` says how integer samples become real ones."""
        raise NotImplementedError

    def build(self, dataset: Dataset) -> Flow:
        if isinstance(dataset, Table) and (constant := dataset.constant()):
            columns = ", ".join(map(str, constant[:8])) + (", ..." if len(constant) > 8 else "")
            raise DataError(
                f"{dataset.name}: all training rows have one value in column {columns} (counted from 0), where a density "
                "would be infinite: leave it out"
            )
        levels = dataset.levels if isinstance(dataset, ImageDataset) else None
        alpha = self.alpha if self.alpha is not None else 0.025 / (levels or 1)
        model = self.flow(dataset, {"levels": levels, "alpha": alpha, "equalise": self.equalise, "whiten": self.whiten})
        model.initialise(_some(dataset))
        return model

    def batch(self, dataset: Dataset) -> int:
        if self.batch_size is not None:
            return self.batch_size
        return 32 if isinstance(dataset, ImageDataset) else 512

    def stream(self, dataset: Dataset, *, rank: int = 0, world: int = 1) -> BatchStream:
        if isinstance(dataset, ImageDataset):
            return dataset.stream(self.batch(dataset), seed=self.fit.seed, rank=rank, world=world, shift=self.shift)
        return super().stream(dataset, rank=rank, world=world)

    def evaluate(self, model: nn.Module, dataset: Dataset, split: str) -> dict[str, float]:
        assert isinstance(model, Flow)
        model.eval()
        if isinstance(dataset, ImageDataset):
            parts = [
                model.bits_per_dim(batch.x.to(model.device), key=torch.tensor([1, i]))
                for i, batch in enumerate(dataset.batches(split))
                # A validation in the middle of a run must not take a share of a short one.
                if split == "test" or i < 4
            ]
            return {f"{split}_bits_per_dim": float(torch.cat(parts).mean())}
        if isinstance(dataset, Table):
            x = dataset.splits[split].x[: None if split == "test" else 4_000]
        else:
            density = cast(Density, dataset)
            x = density.held_out() if split == "test" else density.sample(4_000, torch.tensor([1, 2**62]))
        with torch.no_grad():
            nats = float(-torch.cat([model.log_prob(part.to(model.device)) for part in x.split(5_000)]).mean())
        if split != "test":
            return {f"{split}_nats": nats}
        if isinstance(dataset, Table):
            gaussian = dataset.gaussian_nats("test")
            return {"test_nats": nats} | ({} if gaussian is None else {"gaussian_nats": gaussian})
        return {"test_nats": nats, "entropy_nats": density.entropy, "gap_nats": nats - density.entropy}

    def draw_samples(
        self, model: nn.Module, dataset: Dataset, path: Path, *, n: int, seed: int, temperature: float
    ) -> None:
        assert isinstance(model, Flow)
        model.eval()
        samples = model.sample(n, key=seed, temperature=temperature).cpu()
        note = "" if temperature == 1 else f", temperature {temperature:g}"
        if isinstance(dataset, ImageDataset):
            columns = max(1, round(math.sqrt(1.6 * n)))
            pictures.grid(path, samples, columns=columns, levels=dataset.levels, title=f"samples{note}")
            return
        if isinstance(dataset, Table):
            x = dataset.splits["test"].x[: len(samples)]
            box = _window(x[:, :2])
            pictures.plane(path, {}, {"data: features 0, 1": x[:, :2], f"samples{note}": samples[:, :2]}, box)
            return
        density = cast(Density, dataset)
        box = _window(density.held_out(4000))
        x, y = (torch.linspace(*side, 160) for side in box)
        points = torch.cartesian_prod(y, x).flip(1)
        with torch.no_grad():
            learnt = model.log_prob(points.to(model.device)).exp().view(160, 160).cpu()
        true = torch.cat([density.log_prob(part) for part in points.split(4000)]).exp().view(160, 160)
        pictures.plane(path, {"density": true, "learnt density": learnt}, {f"samples{note}": samples}, box)

    def report(
        self, model: nn.Module, dataset: Dataset, out: Path, log: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, float], list[Path]]:
        assert isinstance(model, Flow)
        figures = self.evaluate(model, dataset, "test")
        names = ("samples.png", "interpolation.png", "loss.png")
        samples, interpolation, loss = (out / name for name in names)
        image = isinstance(dataset, ImageDataset)
        self.draw_samples(model, dataset, samples, n=96 if image else 3000, seed=1, temperature=1.0)
        if isinstance(dataset, ImageDataset):
            between = model.interpolate(_corners(dataset).to(model.device), 9, key=2).flatten(0, 1).cpu()
            pictures.grid(interpolation, between, columns=9, levels=dataset.levels, title="between four test images")
            pictures.curves(loss, log, label="bits/dim")
        else:
            x = dataset.splits["test"].x[:4000] if isinstance(dataset, Table) else cast(Density, dataset).held_out(4000)
            if x.shape[1] > 1:
                between = model.interpolate(_spread(x).to(model.device), 13).cpu()
                pictures.mesh(interpolation, between[..., :2], x[:, :2], "between four test points")
            floor = None if isinstance(dataset, Table) else ("entropy", cast(Density, dataset).entropy)
            pictures.curves(loss, log, label="nats", floor=floor)
        return figures, [path for path in (samples, interpolation, loss) if path.exists()]


@dataclass(frozen=True, kw_only=True)
class VariationalRecipe(FlowRecipe):
    """A flow whose samples are cheap: it can be trained from them and an unnormalised density alone."""

    may_be_zero: ClassVar[frozenset[str]] = frozenset({"anneal"})

    objective: Literal["reverse-kl", "likelihood"] | None = None
    """reverse-kl: from samples of the flow and a density's potential (of samples of the density only mean and deviation
    are taken); likelihood: from samples of the data. Left at None, see the model."""
    anneal: int = 3600
    """Updates over which reverse-kl turns the potential up, so that all modes are found."""

    def from_samples(self, dataset: Dataset) -> bool:
        """Whether training is by likelihood."""
        return self.objective == "likelihood"

    def build(self, dataset: Dataset) -> Flow:
        model = super().build(dataset)
        if not self.from_samples(dataset):
            if not isinstance(dataset, Density) or not dataset.smooth:
                raise DataError(
                    f"reverse KL needs a density with a gradient, and {dataset.name!r} has none: "
                    "use --objective likelihood"
                )
            model.fit_to(dataset.potential, self.anneal)
        return model

    def stream(self, dataset: Dataset, *, rank: int = 0, world: int = 1) -> BatchStream:
        if self.from_samples(dataset):
            return super().stream(dataset, rank=rank, world=world)
        return StandardNormal().stream(self.batch(dataset), seed=self.fit.seed, rank=rank, world=world)


def _some(dataset: Dataset) -> Tensor:
    """Enough samples of the data to take means and deviations of."""
    if isinstance(dataset, ImageDataset):
        return dataset.splits["train"].x[:4000]
    if isinstance(dataset, Table):
        return dataset.splits["train"].x[:20_000]
    return cast(Density, dataset).sample(20_000, torch.tensor([2, 2**62]))


def _corners(dataset: ImageDataset) -> Tensor:
    """Four test images, of different classes where there are labels."""
    x, y = dataset.splits["test"]
    if y is None or len(y.unique()) < 4:
        return x[torch.arange(4) % len(x)]
    labels = y.unique()
    return torch.stack([x[y == labels[i * len(labels) // 4]][:2][-1] for i in range(4)])


def _spread(x: Tensor) -> Tensor:
    """Four points far from each other, found one by one."""
    chosen = [x[x.sub(x.mean(0)).norm(dim=1).argmax()]]
    while len(chosen) < 4:
        chosen.append(x[torch.cdist(x, torch.stack(chosen)).min(1).values.argmax()])
    return torch.stack(chosen)


def _window(x: Tensor) -> list[tuple[float, float]]:
    low, high = x.min(0).values, x.max(0).values
    margin = 0.08 * (high - low)
    return [(float(a), float(b)) for a, b in zip(low - margin, high + margin, strict=True)]
