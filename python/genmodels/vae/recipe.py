"""How to train, judge and draw variational autoencoders."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import pictures
from ..data import Batch, BatchStream, Dataset, ImageDataset
from ..errors import DataError
from ..masks import hide
from ..recipe import Recipe
from ..training import Fit
from . import pictures as drawn
from .beta import Beta
from .networks import Encoder, Network
from .semi import SemiStream, SemiSupervisedVAE, keep_labels
from .vae import VAE, ConditionalVAE, Likelihood

HALVES = ("right", "bottom", "left", "top")


class PosteriorCollapse(UserWarning):
    """Most latents carry nothing: the decoder ignores them."""


def warn_if_collapsed(kl: Tensor) -> int:
    """The number of latents in use; a warning if they are fewer than half.

    ``kl`` (latents,): nats per latent, from :meth:`VAE.kl_per_latent`.
    """
    used = int((kl >= drawn.COLLAPSED).sum())
    if 2 * used < len(kl):
        warnings.warn(
            f"the posterior has collapsed: {len(kl) - used} of {len(kl)} latents carry less than {drawn.COLLAPSED} "
            "nats; try a smaller beta, a warm-up of beta, free bits, or fewer latents",
            PosteriorCollapse,
            stacklevel=2,
        )
    return used


@dataclass(frozen=True, kw_only=True)
class VAERecipe(Recipe):
    """Variational autoencoder (Kingma and Welling 2014) of images; with --mask-rate 0.8 it fills in hidden regions."""

    summary: ClassVar[str] = "variational autoencoder (Kingma and Welling 2014); --mask-rate teaches it to fill in"
    may_be_zero: ClassVar[frozenset[str]] = frozenset({"depth"})

    batch_size: int = 128
    fit: Fit = field(default_factory=lambda: Fit(max_seconds=120.0, lr=2e-3))
    latents: int = 20
    hidden: int = 400
    """Units of a hidden layer."""
    depth: int = 1
    """Hidden layers of encoder and decoder."""
    network: Network = "mlp"
    likelihood: Likelihood = "bernoulli"
    """Of a pixel: bernoulli, or gaussian with one learned variance."""
    beta: float = 1.0
    """Weight of the KL term."""
    beta_start: float = 0.0
    """Weight at the first update, with --beta-warmup."""
    beta_warmup: int = 0
    """Updates over which the weight rises to --beta; 0 keeps it constant."""
    beta_period: int = 0
    """Updates after which the warm-up starts again; 0 for never."""
    free_bits: float | None = None
    """Nats per latent that cost nothing."""
    mask_rate: float = 0.0
    """Share of training images with a hidden random region; above 0 the model can fill in."""
    binarise: bool = False
    """Draw every pixel anew as 0 or 1, its grey value the probability, so that figures are log-probabilities."""
    samples: int = 50
    """Samples of the importance-weighted bound on the test data."""

    def dataset(self) -> ImageDataset:
        found = super().dataset()
        if not isinstance(found, ImageDataset):
            raise DataError(f"a variational autoencoder is of images, and {self.data!r} is none of them")
        return found

    def options(self, dataset: ImageDataset) -> dict[str, Any]:
        beta = Beta(value=self.beta, start=self.beta_start, warmup=self.beta_warmup, period=self.beta_period)
        names = ("latents", "hidden", "depth", "network", "likelihood", "free_bits", "mask_rate", "binarise")
        return {"levels": dataset.levels, "beta": beta, **{name: getattr(self, name) for name in names}}

    def build(self, dataset: Dataset) -> VAE:
        images = cast(ImageDataset, dataset)
        return VAE(images.shape, **self.options(images))

    def evaluate(self, model: nn.Module, dataset: Dataset, split: str) -> dict[str, float]:
        """The bound and its parts in nats per image; on the test data also the importance-weighted one and fillings."""
        assert isinstance(model, VAE)
        images, test = cast(ImageDataset, dataset), split == "test"
        model.eval()
        sums: dict[str, Tensor] = {}
        carried = torch.zeros(model.latents)
        for i, (x, y) in enumerate(_batches(model, images, split)):
            key = torch.tensor([1, i])
            found = {f"{split}_{name}": value for name, value in self.bounds(model, x, y, key).items()}
            if test:
                found[f"test_iwae{self.samples}"] = self.importance(model, x, y, key)
            for name, value in found.items():
                sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value.double().sum().cpu()
            if test:
                carried += len(x) * model.kl_per_latent(x, y).cpu()
        n = len(images.splits[split].x)
        figures = {name: float(total) / n for name, total in sums.items()}
        if test:
            figures["latents_used"] = warn_if_collapsed(carried / n)
            if model.mask_rate:
                figures |= filling_error(model, images)
        return figures

    def bounds(self, model: Any, x: Tensor, y: Tensor | None, key: Tensor) -> dict[str, Tensor]:
        """Figures (B,) of a batch whose means are reported."""
        with torch.no_grad():
            terms = model.elbo(x, y, key)
        return {"elbo": -(terms.reconstruction + terms.kl), "reconstruction": terms.reconstruction, "kl": terms.kl}

    def importance(self, model: Any, x: Tensor, y: Tensor | None, key: Tensor) -> Tensor:
        with torch.no_grad():
            return cast(Tensor, model.iwae(x, y, samples=self.samples, key=key))

    def draw_samples(
        self, model: nn.Module, dataset: Dataset, path: Path, *, n: int, seed: int, temperature: float
    ) -> None:
        assert isinstance(model, VAE)
        model.eval()
        note = "" if temperature == 1 else f", temperature {temperature:g}"
        if model.classes:
            rows = max(1, n // model.classes)
            y = torch.arange(model.classes, device=model.device).repeat(rows)
            samples, columns, title = (
                model.sample(len(y), y, key=seed, temperature=temperature),
                model.classes,
                "samples by class",
            )
        else:
            samples = model.sample(n, key=seed, temperature=temperature)
            columns, title = max(1, round(math.sqrt(1.6 * n))), "samples"
        pictures.grid(path, drawn.whole(samples), columns=columns, title=title + note)

    def report(
        self, model: nn.Module, dataset: Dataset, out: Path, log: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, float], list[Path]]:
        assert isinstance(model, VAE)
        images = cast(ImageDataset, dataset)
        figures = self.evaluate(model, images, "test")
        files = {name: out / f"{name}.png" for name in self.drawings(model)}
        x, y = images.splits["test"]
        x, y = x.to(model.device), None if y is None else y.to(model.device)
        chosen = _various(y, len(x))
        few, labels = x[chosen], None if y is None or not model.classes else y[chosen]
        self.draw_samples(model, images, files["samples"], n=100 if model.classes else 96, seed=1, temperature=1.0)
        drawn.pairs(files["reconstructions"], model, few[:48], None if labels is None else labels[:48])
        drawn.divergence(files["latents"], _carried(model, images))
        plane = "its two latents" if model.latents == 2 else "the two directions in which the posterior means vary most"
        label = None if labels is None else int(labels[0])
        if label is None:
            grid = model.manifold(20, x=None if model.latents == 2 else x[:2000])
        else:
            assert y is not None
            plane += f", class {images.classes[label] if images.classes else label}"
            grid = model.manifold(20, x=x[:2000], y=y[:2000], label=label)
        drawn.manifold(files["manifold"], grid, plane)
        corners = few if y is None or label is None else x[y == label]
        corners = corners[torch.arange(4) % len(corners)]
        between = model.interpolate(corners, 9, None if label is None else torch.tensor([label], device=model.device))
        pictures.grid(
            files["interpolation"], drawn.whole(between.flatten(0, 1)), columns=9, title="between four test images"
        )
        if "inpainting" in files:
            drawn.fillings(files["inpainting"], model, few, labels, HALVES)
        # Losses go down: so the bound is drawn upside down, beside the loss it belongs to.
        shown = [{**line, "valid_negative_elbo": -line["valid_elbo"]} if "valid_elbo" in line else line for line in log]
        kept = [{k: v for k, v in line.items() if k in _DRAWN} for line in shown]
        pictures.curves(files["loss"], kept, label="nats per image")
        return figures, list(files.values())

    def drawings(self, model: VAE) -> list[str]:
        names = ["samples", "reconstructions", "manifold", "interpolation", "latents", "loss"]
        return [*names, "inpainting"] if model.mask_rate else names


_DRAWN = ("event", "step", "seconds", "loss", "valid_negative_elbo")


@dataclass(frozen=True, kw_only=True)
class BetaVAERecipe(VAERecipe):
    """beta-VAE (Higgins et al. 2017): the KL term weighs more, so that fewer latents are used, each more on its own."""

    summary: ClassVar[str] = "VAE whose KL term weighs more (Higgins et al. 2017)"

    latents: int = 10
    beta: float = 4.0


@dataclass(frozen=True, kw_only=True)
class ConditionalVAERecipe(VAERecipe):
    """Conditional VAE (Sohn et al. 2015): encoder and decoder are told the class, samples are drawn of a class."""

    summary: ClassVar[str] = "VAE whose networks are told the class (Sohn et al. 2015)"

    def build(self, dataset: Dataset) -> ConditionalVAE:
        images = cast(ImageDataset, dataset)
        return ConditionalVAE(images.shape, _classes(images), **self.options(images))


@dataclass(frozen=True, kw_only=True)
class M2Recipe(VAERecipe):
    """Semi-supervised VAE (Kingma et al. 2014, M2): a classifier learns from few labels and many unlabelled images."""

    summary: ClassVar[str] = "semi-supervised VAE that learns to classify from few labels (Kingma et al. 2014, M2)"

    batch_size: int = 64
    """Unlabelled images in a batch."""
    fit: Fit = field(default_factory=lambda: Fit(max_seconds=150.0, lr=1e-3, clip=100.0))
    latents: int = 50
    labels: int = 100
    """Labelled training images, the same number of every class; the other labels are not used."""
    labelled_batch: int | None = None
    """Labelled images in a batch; all up to 50 if not given."""
    alpha: float = 10.0
    """Weight of the labelled images' cross-entropy."""

    def build(self, dataset: Dataset) -> SemiSupervisedVAE:
        images = cast(ImageDataset, dataset)
        return SemiSupervisedVAE(images.shape, _classes(images), alpha=self.alpha, **self.options(images))

    def split(self, dataset: ImageDataset) -> tuple[Batch, Batch]:
        return keep_labels(dataset.splits["train"], self.labels, _classes(dataset), seed=self.fit.seed)

    def stream(self, dataset: Dataset, *, rank: int = 0, world: int = 1) -> BatchStream:
        labelled, unlabelled = self.split(cast(ImageDataset, dataset))
        stream = SemiStream(
            labelled,
            unlabelled,
            self.batch_size,
            self.labelled_batch,
            seed=self.fit.seed,
            rank=rank,
            world=world,
        )
        return cast(BatchStream, stream)

    def evaluate(self, model: nn.Module, dataset: Dataset, split: str) -> dict[str, float]:
        assert isinstance(model, SemiSupervisedVAE)
        found = super().evaluate(model, dataset, split)
        if split == "test":
            images = cast(ImageDataset, dataset)
            alone = [self.classifier_alone(model, images, seed) for seed in range(5)]
            found["test_labels_alone"] = sum(alone) / len(alone)
        return found

    def bounds(self, model: Any, x: Tensor, y: Tensor | None, key: Tensor) -> dict[str, Tensor]:
        return {"elbo": model.bound(x, key), "accuracy": (model.classify(x).argmax(1) == y).float()}

    def importance(self, model: Any, x: Tensor, y: Tensor | None, key: Tensor) -> Tensor:
        return super().importance(model, x, None, key)

    def classifier_alone(self, model: SemiSupervisedVAE, dataset: ImageDataset, seed: int) -> float:
        """Test accuracy of the same classifier network trained on the labelled images alone, to convergence."""
        labelled, _ = self.split(dataset)
        x, y = model.pixels(labelled.x.to(model.device)), cast(Tensor, labelled.y).to(model.device)
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []), torch.enable_grad():
            torch.manual_seed(seed)
            classifier = Encoder(model.shape, model.classes, self.hidden, self.depth, self.network).to(model.device)
            optimizer = torch.optim.AdamW(classifier.parameters(), self.fit.lr, weight_decay=self.fit.weight_decay)
            for _ in range(300):
                optimizer.zero_grad()
                F.cross_entropy(classifier(x), y).backward()
                optimizer.step()
        with torch.no_grad():
            right = [classifier(model.still(x)).argmax(1) == label for x, label in _batches(model, dataset, "test")]
        return float(torch.cat(right).float().mean())


def _classes(dataset: ImageDataset) -> int:
    y = dataset.splits["train"].y
    if y is None:
        raise DataError(f"{dataset.name} has no labels, which this model needs")
    return len(dataset.classes) or int(y.max()) + 1


def _batches(model: VAE, dataset: ImageDataset, split: str) -> Iterator[tuple[Tensor, Tensor | None]]:
    for x, y in dataset.batches(split):
        yield x.to(model.device), None if y is None else y.to(model.device)


def _carried(model: VAE, dataset: ImageDataset) -> Tensor:
    parts = [len(x) * model.kl_per_latent(x, y) for x, y in _batches(model, dataset, "test")]
    return torch.stack(parts).sum(0) / len(dataset.splits["test"].x)


def filling_error(model: VAE, dataset: ImageDataset) -> dict[str, float]:
    """The Brier score of the hidden right half of the test images, filled in and by the mean training image.

    Mean over the hidden pixels of ``(p - x)^2``; fillings are averages of 16 draws.
    """
    mask = hide("right", model.shape, model.device)
    hidden = ~mask.expand(model.shape)
    mean = model.still(dataset.splits["train"].x[:4000].to(model.device)).mean(0)
    ours, theirs, n = 0.0, 0.0, 0
    for i, (x, y) in enumerate(_batches(model, dataset, "test")):
        pixels = model.still(x)
        filled = model.inpaint(x, mask, y=y if model.classes else None, draws=16, key=torch.tensor([2, i]))
        ours += float((filled - pixels)[:, hidden].square().sum())
        theirs += float((mean - pixels)[:, hidden].square().sum())
        n += len(x) * int(hidden.sum())
    return {"test_brier_filled": ours / n, "test_brier_mean_image": theirs / n}


def _various(y: Tensor | None, n: int) -> Tensor:
    """An order of the images that goes through the classes in turn."""
    if y is None:
        return torch.arange(n)
    rank = torch.empty(n, dtype=torch.int64)
    for label in y.unique():
        members = (y.cpu() == label.cpu()).nonzero()[:, 0]
        rank[members] = torch.arange(len(members))
    return (rank * (int(y.max()) + 1) + y.cpu()).argsort()
