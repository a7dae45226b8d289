"""How to train, judge and draw PixelCNNs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from .. import pictures
from ..data import BatchStream, Dataset, ImageDataset
from ..energy.pictures import various
from ..errors import DataError
from ..recipe import Recipe
from ..training import Fit
from . import pictures as drawn
from .binary import binarised
from .heads import Kind
from .pixelcnn import GatedPixelCNN, PixelCNN, PixelModel


@dataclass(frozen=True, kw_only=True)
class _PixelRecipe(Recipe):
    """What both models share."""

    batch_size: int = 16
    fit: Fit = field(default_factory=lambda: Fit(max_seconds=600.0, lr=3e-3, ema=0.995, evaluations=5))
    head: Kind = "bernoulli"
    """Law of a pixel: bernoulli, of black-and-white images drawn anew every epoch with grey values as probabilities;
    categorical (a softmax over all levels) or mixture (of discretised logistics), of images as they are."""
    components: int = 10
    """Logistics of a mixture."""
    width: int = 36
    """h of a PixelCNN, C of a Gated PixelCNN; a multiple of 3 for colours."""
    kernel: int = 3
    """Size of the convolutions but the first."""
    first_kernel: int = 7
    hidden: int = 48
    """Channels before the last convolution; a multiple of 3 for colours."""
    conditional: bool = False
    """Tell the network the class."""
    dropout: float = 0.0
    shift: int = 0
    """Move training images by up to this many pixels each way."""

    def dataset(self) -> ImageDataset:
        found = super().dataset()
        if not isinstance(found, ImageDataset):
            raise DataError(f"a PixelCNN is of images, and {self.data!r} is none of them")
        return binarised(found) if self.head == "bernoulli" else found

    def options(self, images: ImageDataset) -> dict[str, Any]:
        names = ("head", "components", "width", "kernel", "first_kernel", "hidden", "dropout")
        classes = _classes(images) if self.conditional else 0
        return {"levels": images.levels, "classes": classes, **{name: getattr(self, name) for name in names}}

    def stream(self, dataset: Dataset, *, rank: int = 0, world: int = 1) -> BatchStream:
        images = cast(ImageDataset, dataset)
        return images.stream(self.batch_size, seed=self.fit.seed, rank=rank, world=world, shift=self.shift)

    def evaluate(self, model: nn.Module, dataset: Dataset, split: str) -> dict[str, float]:
        """Nats per image of black-and-white images, bits per dimension of others; with the test data, also of the
        validation and test data together, neither of which has been trained on."""
        assert isinstance(model, PixelModel)
        images = cast(ImageDataset, dataset)
        model.eval()
        unit, scale = ("nats", 1.0) if self.head == "bernoulli" else ("bits_per_dim", _bits(model))
        sums = {name: _nats(model, images, name) for name in ([split] if split == "valid" else ["valid", "test"])}
        figures = {f"{split}_{unit}": scale * sums[split] / len(images.splits[split].x)}
        if split == "test":
            n = sum(len(images.splits[name].x) for name in sums)
            figures[f"held_out_{unit}"] = scale * sum(sums.values()) / n
        return figures

    def draw_samples(
        self, model: nn.Module, dataset: Dataset, path: Path, *, n: int, seed: int, temperature: float
    ) -> None:
        assert isinstance(model, PixelModel)
        model.eval()
        y, columns = _arranged(model, n)
        samples = model.sample(n if y is None else len(y), y, key=seed, temperature=temperature).cpu()
        title = ("samples" if y is None else "samples by class") + (
            "" if temperature == 1 else f", temperature {temperature:g}"
        )
        pictures.grid(path, samples, columns=columns, levels=model.levels, title=title)

    def report(
        self, model: nn.Module, dataset: Dataset, out: Path, log: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, float], list[Path]]:
        assert isinstance(model, PixelModel)
        images = cast(ImageDataset, dataset)
        figures = self.evaluate(model, images, "test")
        files = {name: out / name for name in ("samples.png", "completion.png", "growing.gif", "loss.png")}
        self.draw_samples(model, images, files["samples.png"], n=100 if model.classes else 96, seed=1, temperature=1.0)
        x, y = images.splits["test"]
        chosen = various(y, len(x))[:20]
        few = None if y is None or not model.classes else y[chosen].to(model.device)
        drawn.completions(files["completion.png"], model, x[chosen].to(model.device), few)
        labels, columns = _arranged(model, 40)
        n = 40 if labels is None else len(labels)
        drawn.growing(files["growing.gif"], model, labels, columns=columns, n=n)
        unit, name = ("nats per image", "nats") if self.head == "bernoulli" else ("bits/dim", "loss")
        kept = [{**line, "loss": line[name]} if line["event"] == "train" else line for line in log]
        pictures.curves(files["loss.png"], kept, label=unit)
        return figures, list(files.values())


@dataclass(frozen=True, kw_only=True)
class PixelCNNRecipe(_PixelRecipe):
    """PixelCNN (van den Oord et al. 2016) of images: masked convolutions, exact log-probabilities, completion."""

    summary: ClassVar[str] = "PixelCNN (van den Oord et al. 2016): pixel after pixel, completes half-hidden images"
    may_be_zero: ClassVar[frozenset[str]] = frozenset({"blocks"})

    blocks: int = 10
    """Residual blocks."""

    def build(self, dataset: Dataset) -> PixelCNN:
        images = cast(ImageDataset, dataset)
        return PixelCNN(images.shape, blocks=self.blocks, **self.options(images))


@dataclass(frozen=True, kw_only=True)
class GatedPixelCNNRecipe(_PixelRecipe):
    """Gated PixelCNN (van den Oord et al. 2016): a vertical and a horizontal stack, no blind spot."""

    summary: ClassVar[str] = "Gated PixelCNN (van den Oord et al. 2016): two stacks, no blind spot"

    layers: int = 8
    width: int = 24
    kernel: int = 5

    def build(self, dataset: Dataset) -> GatedPixelCNN:
        images = cast(ImageDataset, dataset)
        return GatedPixelCNN(images.shape, layers=self.layers, **self.options(images))


def _bits(model: PixelModel) -> float:
    """Bits per dimension of a nat."""
    return 1 / (math.log(2) * math.prod(model.shape))


@torch.no_grad()
def _nats(model: PixelModel, images: ImageDataset, split: str) -> float:
    """``-log p`` summed over a split."""
    total = 0.0
    for x, y in images.batches(split, 100):
        labels = None if y is None or not model.classes else y.to(model.device)
        total -= float(model.log_prob(x.to(model.device), labels).double().sum())
    return total


def _classes(images: ImageDataset) -> int:
    y = images.splits["train"].y
    if y is None:
        raise DataError(f"{images.name} has no labels, which --conditional needs")
    return len(images.classes) or int(y.max()) + 1


def _arranged(model: PixelModel, n: int) -> tuple[Tensor | None, int]:
    """Labels of about ``n`` samples, a column for each class, and the number of columns."""
    if not model.classes:
        return None, max(1, round(math.sqrt(1.6 * n)))
    return torch.arange(model.classes, device=model.device).repeat(max(1, n // model.classes)), model.classes
