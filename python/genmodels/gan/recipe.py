"""How to train, judge and draw adversarial models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import pictures
from ..data import AudioDataset, Batch, BatchStream, Dataset, Density, ImageDataset
from ..errors import DataError
from ..recipe import Recipe
from ..training import Best, Fit, Part, Result, fit
from ..vae import SemiStream, keep_labels
from . import pictures as drawn
from .gan import GAN, Penalty
from .judge import ImageJudge, VectorJudge, held_out
from .networks import REFERENCES, Norm, convolutional, perceptrons
from .semi import SemiSupervisedGAN
from .techniques import Techniques
from .wasserstein import WGAN, WGANGP


@dataclass(frozen=True, kw_only=True)
class GANRecipe(Recipe):
    """Generative adversarial network (Goodfellow et al. 2014) of images, tables and densities of the plane.

    Options left at None depend on the model and the data.
    """

    summary: ClassVar[str] = "adversarial network (Goodfellow et al. 2014), images, tables and 2-D densities"
    kind: ClassVar[type[GAN]] = GAN
    latent_default: ClassVar[int] = 64

    fit: Fit = field(
        default_factory=lambda: Fit(
            max_seconds=300.0, lr=2e-4, warmup_steps=0, schedule="constant", clip=0.0, ema=0.999, evaluations=12
        )
    )
    critic_lr: float | None = None
    """Learning rate of the discriminator if it is another than --lr, the generator's."""
    betas: tuple[float, float] | None = None
    """Of Adam (0.5 0.999; of wgan-gp 0 0.9)."""
    n_critic: int | None = None
    """Updates of the critic for one of the generator (1; of the Wasserstein models 5)."""
    latents: int | None = None
    """Size of the noise."""
    network: Literal["mlp", "conv"] | None = None
    """Perceptrons or strided convolutions (of images conv, but of gan mlp)."""
    width: int = 32
    """Channels of the largest inner images of a convolutional network."""
    critic_width: int | None = None
    """The same of the critic, if it is another."""
    hidden: tuple[int, ...] = (256, 256)
    """Hidden layers of a perceptron."""
    norm: Norm | None = None
    """Normalisation of both networks: batch, layer, virtual or none (of convolutions batch, of perceptrons none)."""
    critic_norm: Norm | None = None
    """The same of the critic, if it is another."""
    minibatch: int = 0
    """Closeness features of minibatch discrimination; 0 for none."""
    dropout: float = 0.0
    """Of the discriminator's features."""
    saturating: bool = False
    """Let the generator minimise log(1 - D(G(z)))."""
    penalty: Penalty | None = None
    """On the gradient of the critic's score: none, gradient, r1, r2 or dragan (of wgan-gp gradient, else none)."""
    penalty_weight: float = 10.0
    feature_matching: bool = False
    """Let the generator match the mean features of the data."""
    historical: float = 0.0
    """Weight of the squared distance of the weights from their average over the updates so far."""
    label_smoothing: float = 0.0
    """What is taken off the target 1 of real samples."""
    spherical: bool = True
    """Walk between latents on the sphere, not straight."""
    judged: int = 10_000
    """Samples by which the model is judged on the test data."""

    def dataset(self) -> Dataset:
        found = super().dataset()
        if isinstance(found, AudioDataset) or len(found.shape) not in (1, 3):
            raise DataError(f"an adversarial network is of images and vectors, and {self.data!r} is neither")
        if isinstance(found, ImageDataset) and any(len(part.x) < 2 for part in found.splits.values()):
            sizes = ", ".join(f"{len(part.x)} {name}" for name, part in found.splits.items())
            raise DataError(
                f"an adversarial network is judged on two images or more of each split, and {self.data!r} has {sizes}"
            )
        return found

    def batch(self, dataset: Dataset) -> int:
        if self.batch_size is not None:
            return self.batch_size
        return 64 if isinstance(dataset, ImageDataset) else 256

    # The model.

    def build(self, dataset: Dataset) -> GAN:
        return self.kind(dataset.shape, **self.options(dataset))

    def options(self, dataset: Dataset) -> dict[str, Any]:
        techniques = Techniques(
            feature_matching=self.feature_matching, historical=self.historical, label_smoothing=self.label_smoothing
        )
        found = self.networks(dataset) | {"saturating": self.saturating, "techniques": techniques}
        if self.penalty is not None:
            found["penalty"] = self.penalty
        found["penalty_weight"] = self.penalty_weight
        if isinstance(dataset, ImageDataset):
            return found | {"levels": dataset.levels}
        x = held_out(dataset, "train", 100_000)
        return found | {"location": x.mean(0), "scale": x.std(0).clamp_min(1e-6)}

    def convolves(self, dataset: Dataset) -> bool:
        return (self.network or "conv") == "conv" and isinstance(dataset, ImageDataset)

    def norms(self, dataset: Dataset) -> tuple[Norm, Norm | None]:
        """Of both networks, and of the critic if it is another."""
        return self.norm or ("batch" if self.convolves(dataset) else "none"), self.critic_norm

    def networks(self, dataset: Dataset) -> dict[str, Any]:
        norm, critic_norm = self.norms(dataset)
        common: dict[str, Any] = {
            "latents": self.latent_default if self.latents is None else self.latents,
            "norm": norm,
            "critic_norm": critic_norm,
            "outputs": self.outputs(dataset),
            "minibatch": self.minibatch,
            "dropout": self.dropout,
            "reference": self.reference(dataset) if "virtual" in (norm, critic_norm) else None,
        }
        if self.network == "conv" and not isinstance(dataset, ImageDataset):
            raise DataError(f"a convolutional network is of images, and {self.data!r} is none of them")
        if self.convolves(dataset):
            return convolutional(dataset.shape, width=self.width, critic_width=self.critic_width, **common)
        return perceptrons(dataset.shape, hidden=self.hidden, **common)

    def reference(self, dataset: Dataset) -> Tensor:
        """Training samples, as the discriminator sees them, for virtual batch norm."""
        x = held_out(dataset, "train", 100_000)
        if isinstance(dataset, ImageDataset):
            return x[:REFERENCES].float() * (2 / (dataset.levels - 1)) - 1
        return (x[:REFERENCES] - x.mean(0)) / x.std(0).clamp_min(1e-6)

    def outputs(self, dataset: Dataset) -> int:
        return 1

    def parts(self, model: nn.Module) -> Mapping[str, Part]:
        given = {"critic_lr": self.critic_lr, "betas": self.betas, "n_critic": self.n_critic}
        return cast(GAN, model).parts(lr=self.fit.lr, **{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]

    # How good it is.

    def best(self, dataset: Dataset) -> Best:
        if hasattr(dataset, "centres"):
            # The sliced distance prefers a cloud over all modes to most of them sharp.
            return Best("valid_overlap", "max")
        return Best("valid_frechet" if isinstance(dataset, ImageDataset) else "valid_sliced_wasserstein", "min")

    def judge(self, dataset: Dataset, split: str) -> ImageJudge | VectorJudge:
        if isinstance(dataset, ImageDataset):
            n = self.judged if split == "test" else min(5000, self.judged)
            return ImageJudge(dataset, split, n)
        return VectorJudge(dataset, split, self.judged)

    def judged_by(self, model: nn.Module, dataset: Dataset, split: str) -> str:
        return self.judge(dataset, split).describe()

    def evaluate(self, model: nn.Module, dataset: Dataset, split: str) -> dict[str, float]:
        model.eval()
        return self.figures(cast(GAN, model), dataset, self.judge(dataset, split))

    def figures(self, model: GAN, dataset: Dataset, judge: ImageJudge | VectorJudge) -> dict[str, float]:
        """What a judge, and whatever else a model is for, says of it."""
        return judge(model)

    def train(
        self, model: nn.Module, dataset: Dataset, out: Path, *, rank: int, world: int, fingerprint: Mapping[str, Any]
    ) -> Result:
        judge = self.judge(dataset, "valid")

        def evaluate(judged: nn.Module) -> dict[str, float]:
            if isinstance(dataset, ImageDataset):
                drawn.note_progress(out, cast(GAN, judged))
            return self.figures(cast(GAN, judged), dataset, judge)

        return fit(
            model,
            self.stream(dataset, rank=rank, world=world),
            out,
            self.fit,
            parts=self.parts(model),
            evaluate=evaluate,
            fingerprint=fingerprint,
            best=self.best(dataset),
        )

    # What it looks like.

    def draw_samples(
        self, model: nn.Module, dataset: Dataset, path: Path, *, n: int, seed: int, temperature: float
    ) -> None:
        assert isinstance(model, GAN)
        model.eval()
        samples = model.sample(n, key=seed, temperature=temperature)
        if isinstance(dataset, ImageDataset):
            note = "" if temperature == 1 else f", temperature {temperature:g}"
            pictures.grid(path, drawn.whole(samples), columns=max(1, round(math.sqrt(1.6 * n))), title="samples" + note)
        else:
            box = dataset.box if isinstance(dataset, Density) else _box(held_out(dataset, "train", 5000))
            pictures.plane(path, {}, {"samples": samples[:, :2].cpu()}, box)

    def report(
        self, model: nn.Module, dataset: Dataset, out: Path, log: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, float], list[Path]]:
        assert isinstance(model, GAN)
        figures = self.evaluate(model, dataset, "test")
        images = isinstance(dataset, ImageDataset)
        names = ["samples", "losses", "figure", *(["interpolation", "arithmetic", "progress"] if images else [])]
        names += ["plane"] if isinstance(dataset, Density) else []
        files = {name: out / f"{name}.png" for name in names}
        self.draw_samples(model, dataset, files["samples"], n=96 if images else 5000, seed=1, temperature=1.0)
        drawn.losses(files["losses"], log)
        drawn.figure(files["figure"], log, self.best(dataset))
        if images:
            drawn.interpolations(files["interpolation"], model, spherical=self.spherical)
            drawn.arithmetic(files["arithmetic"], model)
            drawn.progress(files["progress"], out)
        elif isinstance(dataset, Density):
            drawn.plane(files["plane"], model, dataset)
        return figures, [path for path in files.values() if path.exists()]


def _box(x: Tensor) -> list[tuple[float, float]]:
    low, high = x[:, :2].min(0).values.tolist(), x[:, :2].max(0).values.tolist()
    return list(zip(low, high, strict=True))


@dataclass(frozen=True, kw_only=True)
class OriginalRecipe(GANRecipe):
    """Generative adversarial network (Goodfellow et al. 2014), of perceptrons; images, tables and 2-D densities.

    Options left at None depend on the model and the data. Perceptrons learn images from many cheap steps and a critic
    held smooth: --hidden 512 512 --norm batch --critic-norm none --penalty r1 --lr 1.5e-3 --schedule cosine.
    """

    network: Literal["mlp", "conv"] | None = "mlp"


@dataclass(frozen=True, kw_only=True)
class DCGANRecipe(GANRecipe):
    """DCGAN (Radford et al. 2016): strided convolutions, batch norm, LeakyReLU 0.2, Adam 2e-4 / 0.5. Of images."""

    summary: ClassVar[str] = "GAN of strided convolutions with batch norm (Radford et al. 2016), images"
    latent_default: ClassVar[int] = 100

    batch_size: int | None = 128
    network: Literal["mlp", "conv"] | None = "conv"


@dataclass(frozen=True, kw_only=True)
class WGANRecipe(GANRecipe):
    """Wasserstein GAN with weight clipping (Arjovsky et al. 2017): RMSProp at 5e-5, five updates of the critic."""

    summary: ClassVar[str] = (
        "Wasserstein GAN with weight clipping (Arjovsky et al. 2017), images, tables, 2-D densities"
    )
    kind: ClassVar[type[GAN]] = WGAN

    fit: Fit = field(
        default_factory=lambda: Fit(
            max_seconds=300.0, lr=5e-5, warmup_steps=0, schedule="constant", clip=0.0, ema=0.999, evaluations=12
        )
    )
    clip_weights: float = 0.01
    """Bound of the critic's weights."""

    def options(self, dataset: Dataset) -> dict[str, Any]:
        return super().options(dataset) | {"clip": self.clip_weights}


@dataclass(frozen=True, kw_only=True)
class WGANGPRecipe(GANRecipe):
    """Wasserstein GAN with gradient penalty (Gulrajani et al. 2017): Adam 1e-4 / (0, 0.9), five updates of the critic."""

    summary: ClassVar[str] = (
        "Wasserstein GAN with gradient penalty (Gulrajani et al. 2017), images, tables, 2-D densities"
    )
    kind: ClassVar[type[GAN]] = WGANGP

    fit: Fit = field(
        default_factory=lambda: Fit(
            max_seconds=300.0, lr=1e-4, warmup_steps=0, schedule="constant", clip=0.0, ema=0.999, evaluations=12
        )
    )

    def norms(self, dataset: Dataset) -> tuple[Norm, Norm | None]:
        return super().norms(dataset)[0], self.critic_norm or "none"


@dataclass(frozen=True, kw_only=True)
class SemiSupervisedRecipe(GANRecipe):
    """Semi-supervised GAN (Salimans et al. 2016): the discriminator classifies, from few labels, into K + 1 classes."""

    summary: ClassVar[str] = "GAN whose discriminator learns to classify from few labels (Salimans et al. 2016)"
    kind: ClassVar[type[GAN]] = SemiSupervisedGAN
    feature_matching: bool = True
    labels: int = 100
    """Labelled training images, the same number of every class; the other labels are not used."""
    labelled_batch: int | None = None
    """Labelled images in a batch; all up to 50 if not given."""

    def dataset(self) -> Dataset:
        found = super().dataset()
        if not isinstance(found, ImageDataset) or found.splits["train"].y is None:
            raise DataError(f"semi-supervised learning needs images with labels, and {self.data!r} has none")
        return found

    def options(self, dataset: Dataset) -> dict[str, Any]:
        return super().options(dataset) | {"classes": self.outputs(dataset)}

    def outputs(self, dataset: Dataset) -> int:
        images = cast(ImageDataset, dataset)
        return len(images.classes) or int(cast(Tensor, images.splits["train"].y).max()) + 1

    def split(self, dataset: Dataset) -> Any:
        train = cast(ImageDataset, dataset).splits["train"]
        return keep_labels(train, self.labels, self.outputs(dataset), seed=self.fit.seed)

    def stream(self, dataset: Dataset, *, rank: int = 0, world: int = 1) -> BatchStream:
        few, rest = self.split(dataset)
        stream = SemiStream(
            few, rest, self.batch(dataset), self.labelled_batch, seed=self.fit.seed, rank=rank, world=world
        )
        return cast(BatchStream, stream)

    def best(self, dataset: Dataset) -> Best:
        return Best("valid_few_accuracy", "max")

    def few(self, dataset: ImageDataset) -> Batch:
        """As many labelled validation images as there are labelled training images: to choose weights by the accuracy on
        thousands would be to learn from their labels (Oliver et al., "Realistic evaluation of deep semi-supervised
        learning algorithms", 2018, section 4.6)."""
        valid, classes = dataset.splits["valid"], self.outputs(dataset)
        each = min(self.labels // classes, int(cast(Tensor, valid.y).bincount(minlength=classes).min()))
        return keep_labels(valid, each * classes, classes, seed=self.fit.seed)[0] if each else valid

    def figures(self, model: GAN, dataset: Dataset, judge: ImageJudge | VectorJudge) -> dict[str, float]:
        """Also the share of images classified rightly; on the validation data also of only as many as have labels in
        training, on the test data beside that of the same classifier alone."""
        assert isinstance(model, SemiSupervisedGAN)
        images, split = cast(ImageDataset, dataset), judge.split
        found = super().figures(model, dataset, judge)
        found[f"{split}_accuracy"] = _accuracy(model, model.discriminator, images.splits[split])
        if split == "valid":
            found["valid_few_accuracy"] = _accuracy(model, model.discriminator, self.few(images))
        if split == "test":
            alone = [self.classifier_alone(model, images, seed) for seed in range(5)]
            found["test_labels_alone"] = sum(alone) / len(alone)
        return found

    def classifier_alone(self, model: SemiSupervisedGAN, dataset: ImageDataset, seed: int, steps: int = 300) -> float:
        """Test accuracy of the same discriminator trained to classify the labelled images, and nothing else."""
        x, y = self.split(dataset)[0].to(model.device)
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []), torch.enable_grad():
            torch.manual_seed(seed)
            classifier = self.networks(dataset)["discriminator"].to(model.device)
            optimizer = torch.optim.Adam(classifier.parameters(), 1e-3)
            for _ in range(steps):
                optimizer.zero_grad()
                F.cross_entropy(classifier(model.inside(x)), y).backward()
                optimizer.step()
        return _accuracy(model, classifier.eval(), dataset.splits["test"])


@torch.no_grad()
def _accuracy(model: SemiSupervisedGAN, classifier: nn.Module, data: Batch) -> float:
    found = [classifier(model.inside(x.to(model.device))).argmax(1).cpu() for x in data.x.split(256)]
    return float((torch.cat(found) == cast(Tensor, data.y)).double().mean())
