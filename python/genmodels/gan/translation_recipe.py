"""How to train, judge and draw the models that translate images: Pix2Pix from pairs, CycleGAN without."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from .. import pictures
from ..data import BatchStream, Dataset, ImageDataset, PairDataset, UnpairedDataset, paired, unpaired
from ..errors import DataError
from ..recipe import Recipe
from ..training import Best, Fit, Part
from . import translation_pictures as drawn
from .cyclegan import CycleGAN
from .pix2pix import Pix2Pix, Translator
from .techniques import Techniques
from .translation_judge import distance, judge
from .translators import Norm


def _images(found: Dataset, model: str) -> ImageDataset:
    if not isinstance(found, ImageDataset):
        raise DataError(f"{model} is of images, and {found.name!r} is none of them")
    return found


_REFERENCES = 16
"""Images of a reference batch: of each there are as many values of a channel as it has pixels."""


def _pick(among: int, n: int) -> Tensor:
    """Indices of ``n`` things, or all, from the first to the last at equal steps."""
    return torch.linspace(0, among - 1, min(n, among)).round().long()


@dataclass(frozen=True, kw_only=True)
class _TranslationRecipe(Recipe):
    """What both models share."""

    norm: Norm = "instance"
    """Of all networks: instance, batch, virtual or none."""
    layers: int = 1
    """Stride-2 convolutions of a critic: 1, 2, 3 judge patches of 16, 34, 70 pixels; 3 in the papers, for 256x256."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Of Adam."""
    feature_matching: bool = False
    """Let generators match the mean features of real images instead of fooling the critic."""
    historical: float = 0.0
    """Weight of the squared distance of the weights from their average over the updates so far."""
    label_smoothing: float = 0.0
    """What is taken off the target 1 of real images."""
    minibatch: int = 0
    """Closeness features of the critics' minibatch discrimination; 0 for none."""

    def techniques(self) -> Techniques:
        names = ("feature_matching", "historical", "label_smoothing")
        return Techniques(**{name: getattr(self, name) for name in names})

    def reference(self, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Training images for virtual batch norm, if that is wanted: from all over the data, where neighbours are alike."""
        if self.norm != "virtual" or y is None:
            return None
        return x[_pick(len(x), _REFERENCES)], y[_pick(len(y), _REFERENCES)]

    def part(self, model: Translator, name: str, *networks: nn.Module) -> Part:
        parameters = [p for network in networks for p in network.parameters()]
        optimizer = torch.optim.Adam(parameters, self.fit.lr, self.betas)
        return Part(optimizer, after_update=functools.partial(model.updated, name))


@dataclass(frozen=True, kw_only=True)
class Pix2PixRecipe(_TranslationRecipe):
    """Pix2Pix (Isola et al. 2017): a U-Net that translates images, taught by targets and by a critic of patches."""

    summary: ClassVar[str] = "translates images, learnt from pairs (Isola et al. 2017): edges or grey to pictures"

    data: str = "emoji"
    batch_size: int = 16
    fit: Fit = field(default_factory=lambda: Fit(max_seconds=480.0, lr=2e-4, clip=0.0, evaluations=5))
    task: Literal["edges", "grey"] = "edges"
    """How inputs are made of the images: their edges, or without colour."""
    mirror: bool = True
    """Mirror training pairs at random."""
    width: int = 32
    """Channels of the first layers."""
    depth: int | None = None
    """Halvings of the U-Net; as many as the size allows if not given."""
    dropout: float = 0.5
    """Of the decoder, the only noise."""
    l1: float = 100.0
    """Weight of the distance to the target."""
    adversarial: float = 1.0
    """Weight of the critic's verdict; 0 for the distance alone."""

    def dataset(self) -> Dataset:
        return cast(Dataset, paired(_images(super().dataset(), "Pix2Pix"), self.task))

    def build(self, dataset: Dataset) -> Pix2Pix:
        pairs = cast(PairDataset, dataset)
        names = ("width", "depth", "layers", "norm", "dropout", "l1", "adversarial", "minibatch")
        options = {name: getattr(self, name) for name in names} | {"reference": self.reference(*pairs.splits["train"])}
        return Pix2Pix(pairs.input_shape, pairs.shape, levels=pairs.levels, techniques=self.techniques(), **options)

    def stream(self, dataset: Dataset, *, rank: int = 0, world: int = 1) -> BatchStream:
        pairs = cast(PairDataset, dataset)
        return pairs.stream(self.batch_size, seed=self.fit.seed, rank=rank, world=world, mirror=self.mirror)

    def best(self, dataset: Dataset) -> Best:
        # The Fréchet distance, which sees blur too, needs more images than a validation split may have.
        return Best("valid_l1", "min")

    def parts(self, model: nn.Module) -> Mapping[str, Part] | None:
        assert isinstance(model, Pix2Pix)
        generator = {"generator": self.part(model, "generator", model.generator)}
        return generator if model.critic is None else {"critic": self.part(model, "critic", model.critic), **generator}

    def evaluate(self, model: nn.Module, dataset: Dataset, split: str) -> dict[str, float]:
        """Mean |y - G(x)| with images in [0, 1], that of the mean training image, and, of the test data (a validation split
        may be too small for it), the Fréchet distance to the targets.

        A translation has its noise of the key 1 and its row.
        """
        assert isinstance(model, Pix2Pix)
        pairs = cast(PairDataset, dataset)
        model.eval()
        targets = pairs.splits[split].y
        train = pairs.splits["train"].y
        assert targets is not None and train is not None
        made = torch.cat([model.translate(x, 1, first=256 * i).cpu() for i, (x, _) in enumerate(pairs.batches(split))])
        real, mean = targets.float() / 255, train.float().mean(0) / 255
        figures = {
            f"{split}_l1": float((made - real).abs().mean()),
            f"{split}_l1_mean_image": float((mean - real).abs().mean()),
        }
        if split == "test":
            figures["test_frechet"] = distance(judge(model.shape[0]), targets, made.split(500))
        return figures

    def judged_by(self, model: nn.Module, dataset: Dataset, split: str) -> str:
        assert isinstance(model, Pix2Pix)
        if split != "test":
            return ""
        n = len(cast(PairDataset, dataset).splits[split].x)
        return f"{judge(model.shape[0]).describe()}, N {n} real and {n} translated, split {dataset.name} {split}"

    def draw_samples(
        self, model: nn.Module, dataset: Dataset, path: Path, *, n: int, seed: int, temperature: float
    ) -> None:
        """``n`` test images, three times each with other noise; ``temperature`` has no meaning here."""
        assert isinstance(model, Pix2Pix)
        model.eval()
        x, y = _spread(cast(PairDataset, dataset), n)
        drawn.triples(path, model, x, y, draws=3, seed=seed, sets=3)

    def report(
        self, model: nn.Module, dataset: Dataset, out: Path, log: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, float], list[Path]]:
        assert isinstance(model, Pix2Pix)
        figures = self.evaluate(model, dataset, "test")
        files = [out / f"{name}.png" for name in ("translations", "noise", "loss")]
        drawn.triples(files[0], model, *_spread(cast(PairDataset, dataset), 40))
        self.draw_samples(model, dataset, files[1], n=24, seed=1, temperature=1.0)
        _loss(files[2], log, "valid_l1")
        return figures, files


def _spread(pairs: PairDataset, n: int) -> tuple[Tensor, Tensor]:
    """``n`` test pairs from all over the split: neighbours in it are alike."""
    x, y = pairs.splits["test"]
    assert y is not None
    pick = _pick(len(x), n)
    return x[pick], y[pick]


@dataclass(frozen=True, kw_only=True)
class CycleGANRecipe(_TranslationRecipe):
    """CycleGAN (Zhu et al. 2017): two domains of images, two generators that undo each other, no pairs."""

    summary: ClassVar[str] = "translates between two domains without pairs (Zhu et al. 2017): sneakers to boots"

    data: str = "fashion-mnist"
    batch_size: int = 8
    fit: Fit = field(default_factory=lambda: Fit(max_seconds=480.0, lr=2e-4, clip=0.0, evaluations=5))
    domains: tuple[str, str] = ("sneaker", "ankle boot")
    """Two classes of the data."""
    mirror: bool = False
    """Mirror training images at random."""
    width: int = 16
    """Channels of the first layers."""
    blocks: int = 3
    """Residual blocks of a generator."""
    layers: int = 2
    cycle: float = 10.0
    """Weight of the way there and back."""
    identity: float = 0.0
    """Weight, relative to the cycle's, of leaving alone what is of the other domain already."""
    pool: int = 50
    """Earlier translations that a critic is shown; 0 for none."""

    def dataset(self) -> Dataset:
        return cast(Dataset, unpaired(_images(super().dataset(), "CycleGAN"), *self.domains))

    def build(self, dataset: Dataset) -> CycleGAN:
        both = cast(UnpairedDataset, dataset)
        names = ("width", "blocks", "layers", "norm", "cycle", "identity", "pool", "minibatch")
        options = {name: getattr(self, name) for name in names} | {"reference": self.reference(*both.splits["train"])}
        return CycleGAN(both.shape, levels=both.levels, techniques=self.techniques(), **options)

    def stream(self, dataset: Dataset, *, rank: int = 0, world: int = 1) -> BatchStream:
        both = cast(UnpairedDataset, dataset)
        return both.stream(self.batch_size, seed=self.fit.seed, rank=rank, world=world, mirror=self.mirror)

    def best(self, dataset: Dataset) -> Best:
        # A way there and back is shortest for generators that leave everything as it is.
        return Best("valid_frechet", "min")

    def parts(self, model: nn.Module) -> Mapping[str, Part] | None:
        assert isinstance(model, CycleGAN)
        return {
            "critic": self.part(model, "critic", model.critic_x, model.critic_y),
            "generator": self.part(model, "generator", model.to_x, model.to_y),
        }

    def evaluate(self, model: nn.Module, dataset: Dataset, split: str) -> dict[str, float]:
        """Mean |F(G(x)) - x| and |G(F(y)) - y| with images in [0, 1]; and the Fréchet distances of X, and of what Y became,
        to X, and the other way round; the mean of those of translations is ``frechet``."""
        assert isinstance(model, CycleGAN)
        both = cast(UnpairedDataset, dataset)
        model.eval()
        x, y = (model.outside(model.inside(images, model.shape, split)).cpu() for images in both.splits[split])
        to_y, to_x = _through(model, x, "y"), _through(model, y, "x")
        back_x, back_y = _through(model, to_y, "x"), _through(model, to_x, "y")
        extractor = judge(model.shape[0])
        frechet = [distance(extractor, *pair) for pair in ((y, to_y.split(500)), (x, to_x.split(500)))]
        return {
            f"{split}_cycle_l1_x": float((back_x - x).abs().mean()),
            f"{split}_cycle_l1_y": float((back_y - y).abs().mean()),
            f"{split}_frechet_domains": distance(extractor, y, x.split(500)),
            f"{split}_frechet_to_y": frechet[0],
            f"{split}_frechet_to_x": frechet[1],
            f"{split}_frechet": sum(frechet) / 2,
        }

    def judged_by(self, model: nn.Module, dataset: Dataset, split: str) -> str:
        assert isinstance(model, CycleGAN)
        x, y = (len(images) for images in cast(UnpairedDataset, dataset).splits[split])
        return f"{judge(model.shape[0]).describe()}, N {x} and {y}, split {dataset.name} {split}"

    def draw_samples(
        self, model: nn.Module, dataset: Dataset, path: Path, *, n: int, seed: int, temperature: float
    ) -> None:
        """About ``n`` test images of each domain, there and back, drawn from the split under ``seed``; ``temperature`` has
        no meaning here."""
        assert isinstance(model, CycleGAN)
        model.eval()
        both = cast(UnpairedDataset, dataset)
        x, y = (
            images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:n]]
            for images in both.splits["test"]
        )
        drawn.cycles(path, model, x, y, both.domains)

    def report(
        self, model: nn.Module, dataset: Dataset, out: Path, log: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, float], list[Path]]:
        figures = self.evaluate(model, dataset, "test")
        files = [out / f"{name}.png" for name in ("cycles", "loss")]
        self.draw_samples(model, dataset, files[0], n=24, seed=1, temperature=1.0)
        _loss(files[1], log, "valid_cycle_l1_x")
        return figures, files


def _through(model: CycleGAN, images: Tensor, to: str) -> Tensor:
    return torch.cat([model.translate(part, to).cpu() for part in images.split(250)])


def _loss(path: Path, log: Sequence[Mapping[str, Any]], figure: str) -> None:
    """The training loss that pulls images to their places, and one figure of the evaluations."""
    names = ("l1", "generator.l1", "generator.cycle")
    kept = []
    for line in log:
        distance = next((line[name] for name in names if line.get(name) is not None), None)
        # Training has images in [-1, 1], figures have them in [0, 1].
        kept.append({"loss": None if distance is None else distance / 2} | {k: line[k] for k in _KEPT if k in line})
        if figure in line:
            kept[-1][figure] = line[figure]
    pictures.curves(path, kept, label="mean absolute difference, images in [0, 1]")


_KEPT = ("event", "step", "seconds")
