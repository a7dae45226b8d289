"""How to train, judge and draw Boltzmann machines."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import pictures
from ..data import Dataset, ImageDataset
from ..errors import DataError
from ..masks import hide
from ..recipe import Recipe
from ..sampling import Noise
from ..training import Fit, Part
from . import pictures as drawn
from .boltzmann import BoltzmannMachine
from .learning import Learning, Method, ascent
from .rbm import RBM
from .units import Visible

FLIPPED = 0.1
"""Share of pixels flipped where denoising is measured."""


class _Images(Recipe):
    """What the machines have in common: images, and how well hidden halves and flipped pixels are told."""

    def dataset(self) -> ImageDataset:
        found = super().dataset()
        if not isinstance(found, ImageDataset):
            raise DataError(f"an energy-based model is of images, and {self.data!r} is none of them")
        return found

    def draw_samples(
        self, model: nn.Module, dataset: Dataset, path: Path, *, n: int, seed: int, temperature: float
    ) -> None:
        assert isinstance(model, RBM | BoltzmannMachine)
        note = "" if temperature == 1 else f", temperature {temperature:g}"
        samples = model.sample(n, key=seed, temperature=temperature)
        pictures.grid(path, drawn.whole(samples), columns=_columns(n), title=f"samples{note}")


def completion(
    machine: RBM | BoltzmannMachine, black: Callable[[Tensor], Tensor], data: ImageDataset
) -> dict[str, float]:
    """The Brier score of the hidden bottom half of black-and-white test images, filled in and by the mean image."""
    mask = hide("bottom", cast(Any, data.shape))
    x, mean = black(data.splits["test"].x), black(data.splits["train"].x).mean(0)
    filled = machine.inpaint(x, mask, draws=4, key=2)
    below = ~mask.expand(data.shape)
    return {
        "test_brier_filled": float((filled - x)[:, below].square().mean()),
        "test_brier_mean_image": float((mean - x)[:, below].square().mean()),
    }


def noisy(x: Tensor, key: int) -> Tensor:
    """Black-and-white images with every pixel flipped with probability ``FLIPPED``."""
    return torch.where(Noise(key).uniform(x.shape) < FLIPPED, 1 - x, x)


def median(x: Tensor) -> Tensor:
    """The median of 3x3 pixels of images (n, C, H, W), edges repeated."""
    n, channels, height, width = x.shape
    windows = F.unfold(F.pad(x, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None], 3)
    return windows.median(1).values.view(n, channels, height, width)


def denoising(
    machine: RBM | BoltzmannMachine, black: Callable[[Tensor], Tensor], data: ImageDataset
) -> dict[str, float]:
    """The share of wrong pixels after denoising, and after a 3x3 median, of test images with flipped pixels."""
    x = black(data.splits["test"].x)
    flipped = noisy(x, 3)
    clean = machine.denoise(flipped, FLIPPED, key=4).round()
    return {
        "test_wrong_denoised": float((clean != x).float().mean()),
        "test_wrong_median": float((median(flipped) != x).float().mean()),
    }


@dataclass(frozen=True, kw_only=True)
class RBMRecipe(_Images):
    """Restricted Boltzmann machine (Smolensky 1986) of images, by (persistent) contrastive divergence or tempering."""

    summary: ClassVar[str] = "restricted Boltzmann machine (Smolensky 1986): CD-k, PCD, parallel tempering"

    batch_size: int = 100
    fit: Fit = field(default_factory=lambda: Fit(max_seconds=110.0, lr=0.1, clip=0.0, warmup_steps=0, evaluations=5))
    """lr is that of plain gradient ascent, for Gaussian units a tenth of it; weight_decay acts on the weights."""
    hidden: int = 500
    visible: Visible = "binary"
    categories: int = 8
    """Grey levels of softmax units."""
    momentum: float = 0.0
    method: Method = "pcd"
    """Where the model's samples come from: cd, pcd or pt (parallel tempering)."""
    steps: int = 1
    """Gibbs steps for each update."""
    chains: int = 100
    """Persistent chains, of pcd and pt."""
    replicas: int = 8
    """Temperatures of pt."""
    beta_min: float = 0.3
    """Smallest inverse temperature of pt."""
    centred: bool = True
    """Centred gradient."""
    sparsity: float = 0.0
    """Weight of the pull of hidden units' mean activity towards --target."""
    target: float = 0.1
    ais_chains: int = 100
    """Chains of annealed importance sampling, in each direction."""
    ais_betas: int = 1000
    """Intermediate machines of the same, while training."""
    ais_betas_test: int = 10_000
    """And on the test data, where the figure is to be trusted."""

    def build(self, dataset: Dataset) -> RBM:
        images = cast(ImageDataset, dataset)
        if self.visible == "softmax" and self.categories > images.levels:
            raise DataError(
                f"{self.categories} categories cannot be told apart among the {images.levels} levels of {self.data!r}"
            )
        names = ("method", "steps", "chains", "replicas", "beta_min", "centred", "sparsity", "target")
        learning = Learning(seed=self.fit.seed, **{name: getattr(self, name) for name in names})
        model = RBM(
            images.shape,
            self.hidden,
            visible=self.visible,
            categories=self.categories,
            levels=images.levels,
            learning=learning,
        )
        model.initialise(images.splits["train"].x)
        return model

    def parts(self, model: nn.Module) -> dict[str, Part]:
        assert isinstance(model, RBM)
        rate = self.fit.lr * (0.1 if self.visible == "gaussian" else 1.0)
        decay = self.fit.weight_decay
        return {"rbm": Part(ascent(model.weight, model.biases(), rate, momentum=self.momentum, weight_decay=decay))}

    def evaluate(self, model: nn.Module, dataset: Dataset, split: str) -> dict[str, float]:
        """Nats per image: pseudo-likelihood, log-likelihood between its two estimates; idle units; on the test data also
        how well bottom halves are filled in and flipped pixels put right."""
        assert isinstance(model, RBM)
        model.eval()
        images = cast(ImageDataset, dataset)
        x = images.splits[split].x.to(model.device)
        v = model.states(x, key=1)
        figures: dict[str, float] = {}
        if model.visible != "gaussian":
            figures[f"{split}_pseudo_likelihood"] = float(model.pseudo_likelihood(v, exact=True).mean())
        betas = self.ais_betas_test if split == "test" else self.ais_betas
        z = model.log_z(chains=self.ais_chains, betas=betas, key=1)
        figures[f"{split}_log_likelihood"] = float(model.log_likelihood(v, z.low).mean())
        if z.exact and split == "test":
            # What annealing would have said, where the truth is known.
            annealed = model.log_z(chains=self.ais_chains, betas=betas, exact=False, key=1)
            figures["ais_minus_exact"] = annealed.low - z.low
        if not z.exact:
            figures[f"{split}_log_likelihood_reverse"] = float(model.log_likelihood(v, z.high).mean())
            figures["ais_ess"] = z.ess
        dead, saturated = model.warn_if_idle(x)
        figures |= {"dead": float(dead), "saturated": float(saturated)}
        if model.learning.method == "pt":
            figures["swap_rate_min"] = float(model.swap_rates.min())
        if split == "test" and model.visible == "binary":
            black = lambda x: model.images(model.states(x.to(model.device)))  # noqa: E731
            figures |= completion(model, black, images) | denoising(model, black, images)
        return figures

    def report(
        self, model: nn.Module, dataset: Dataset, out: Path, log: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, float], list[Path]]:
        assert isinstance(model, RBM)
        images = cast(ImageDataset, dataset)
        figures = self.evaluate(model, images, "test")
        names = ("samples", "filters", "chains", "inpainting", "denoising", "likelihood")
        files = {name: out / f"{name}.png" for name in names}
        self.draw_samples(model, images, files["samples"], n=96, seed=1, temperature=1.0)
        drawn.mosaic(files["filters"], model)
        x = _few(images).to(model.device)
        v = model.states(x[:10])
        drawn.film(files["chains"], model.film(v, 20, key=5), "chains that start at test images, 10 steps a frame")
        clean = model.images(model.states(x))
        _draw_repairs(model, clean, x, files["inpainting"], files["denoising"], self.visible)
        drawn.likelihoods(files["likelihood"], log)
        return figures, [*files.values(), files["chains"].with_suffix(".gif")]


def _few(images: ImageDataset) -> Tensor:
    """Test images of different classes."""
    x, y = images.splits["test"]
    return x[drawn.various(y, len(x))[:12]]


def _columns(n: int) -> int:
    return max(1, round(math.sqrt(1.6 * n)))


def _draw_repairs(
    model: RBM | BoltzmannMachine, clean: Tensor, x: Tensor, inpainting: Path, denoising: Path, kind: str = "binary"
) -> None:
    mask = hide("bottom", cast(Any, model.shape))
    shown = torch.where(mask, clean, torch.full_like(clean, 0.5))
    one, expected = (model.inpaint(x, mask, key=6, average=n) for n in (1, 50))
    drawn.compare(inpainting, [shown, one, expected, clean], "visible, one filling, what is expected, original")
    if kind == "binary":
        flipped, title = noisy(clean, 3), "with flipped pixels, denoised, original"
        drawn.compare(denoising, [flipped, model.denoise(flipped, FLIPPED, key=4), clean], title)
    elif kind == "gaussian":
        assert isinstance(model, RBM)
        spoilt = clean + model.spread.detach() * Noise(3).normal(clean.shape)
        fixed = model.denoise(spoilt, 1.0, key=4)
        drawn.compare(denoising, [spoilt, fixed, clean], "with noise of every unit's deviation, denoised, original")
    else:
        levels = model.levels
        lottery = Noise(3)
        spoilt = torch.where(lottery.uniform(x.shape) < FLIPPED, lottery.integers(levels, x.shape).to(x.dtype), x)
        fixed = model.denoise(spoilt, FLIPPED, key=4)
        drawn.compare(denoising, [spoilt / (levels - 1), fixed, clean], "with random pixels, denoised, original")


@dataclass(frozen=True, kw_only=True)
class BoltzmannRecipe(_Images):
    """Boltzmann machine (Ackley, Hinton and Sejnowski 1985) of black-and-white images: all units connected."""

    summary: ClassVar[str] = "Boltzmann machine, all units connected (Ackley, Hinton and Sejnowski 1985)"
    may_be_zero: ClassVar[frozenset[str]] = frozenset({"hidden"})

    batch_size: int = 100
    fit: Fit = field(default_factory=lambda: Fit(max_seconds=120.0, lr=0.02, clip=0.0, warmup_steps=0))
    """lr is that of plain gradient ascent; weight_decay acts on the weights."""
    hidden: int = 10
    spin: bool = False
    """Units are -1 and 1 instead of 0 and 1."""
    sweeps: int = 1
    """Gibbs sweeps of the free chains for each update."""
    positive_sweeps: int = 3
    """Gibbs sweeps of the hidden units with the data clamped."""
    chains: int = 100
    centred: bool = True
    """Centred gradient."""

    def build(self, dataset: Dataset) -> BoltzmannMachine:
        images = cast(ImageDataset, dataset)
        model = BoltzmannMachine(
            images.shape,
            self.hidden,
            spin=self.spin,
            levels=images.levels,
            positive_sweeps=self.positive_sweeps,
            learning=Learning(seed=self.fit.seed, steps=self.sweeps, chains=self.chains, centred=self.centred),
        )
        model.initialise(images.splits["train"].x)
        return model

    def parts(self, model: nn.Module) -> dict[str, Part]:
        assert isinstance(model, BoltzmannMachine)
        return {"boltzmann": Part(ascent(model.weight, [model.bias], self.fit.lr, weight_decay=self.fit.weight_decay))}

    def evaluate(self, model: nn.Module, dataset: Dataset, split: str) -> dict[str, float]:
        """Pseudo-likelihood in nats per image; on the test data also how well images are completed and denoised."""
        assert isinstance(model, BoltzmannMachine)
        model.eval()
        images = cast(ImageDataset, dataset)
        x = images.splits[split].x.to(model.device)
        figures = {f"{split}_pseudo_likelihood": float(model.pseudo_likelihood(x, key=1).mean())}
        if split == "test":
            black = lambda x: model.probabilities(x.to(model.device)).round().view(x.shape)  # noqa: E731
            figures |= completion(model, black, images) | denoising(model, black, images)
        return figures

    def report(
        self, model: nn.Module, dataset: Dataset, out: Path, log: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, float], list[Path]]:
        assert isinstance(model, BoltzmannMachine)
        images = cast(ImageDataset, dataset)
        figures = self.evaluate(model, images, "test")
        files = {name: out / f"{name}.png" for name in ("samples", "inpainting", "denoising", "likelihood")}
        self.draw_samples(model, images, files["samples"], n=96, seed=1, temperature=1.0)
        x = _few(images).to(model.device)
        clean = model.probabilities(x).round().view(x.shape)
        _draw_repairs(model, clean, x, files["inpainting"], files["denoising"])
        drawn.likelihoods(files["likelihood"], log)
        return figures, list(files.values())
