"""How to train, judge and draw BiGANs: as any adversarial model, and by what their encoder knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from .. import pictures
from ..data import Dataset, ImageDataset
from ..errors import DataError
from ..training import Fit
from . import pictures as drawn
from .bigan import BiGAN
from .gan import GAN
from .judge import ImageJudge, VectorJudge
from .recipe import GANRecipe


@dataclass(frozen=True, kw_only=True)
class BiGANRecipe(GANRecipe):
    """BiGAN (Donahue et al. 2017): a generator and the encoder that inverts it, judged as pairs. Of images.

    The networks are convolutional. That latents and images come back from the other side is asked for beside the game
    (Li et al. 2017): they then do, and samples are better, but neighbours in E(x) are of one class less often (on
    Fashion-MNIST 74.5 % instead of 80.6 %). --latent-weight 0 --pixel-weight 0 leaves the game alone.
    """

    summary: ClassVar[str] = "GAN with an encoder that inverts the generator (Donahue et al. 2017), images"
    kind: ClassVar[type[GAN]] = BiGAN
    latent_default: ClassVar[int] = 16

    fit: Fit = field(
        default_factory=lambda: Fit(max_seconds=480.0, lr=5e-4, warmup_steps=0, clip=0.0, ema=0.999, evaluations=8)
    )
    hidden: tuple[int, ...] = (256,)
    """Units of the discriminator's layers after the convolutions."""
    latent_weight: float = 1.0
    """Weight of the squared distance of E(G(z)) from z in the loss of the encoder (in the paper 0)."""
    latent_share: float = 0.2
    """How much of that, from 0 to 1, the generator minimises too."""
    pixel_weight: float = 1.0
    """Weight of the distance of G(E(x)) from x in the loss of generator and encoder (in the paper 0)."""

    def dataset(self) -> Dataset:
        found = super().dataset()
        if not isinstance(found, ImageDataset):
            raise DataError(f"a BiGAN is of images, and {self.data!r} is none of them")
        return found

    def options(self, dataset: Dataset) -> dict[str, Any]:
        refused = {
            "--critic-width": self.critic_width is not None,
            "--network mlp": self.network == "mlp",
        }
        if any(refused.values()):
            names = ", ".join(name for name, given in refused.items() if given)
            raise DataError(f"a BiGAN, whose networks are convolutional and of one width, does not offer {names}")
        if len(self.hidden) != 1:
            raise DataError(f"--hidden of a BiGAN is one number, got {len(self.hidden)}")
        found = super().options(dataset)
        norm, critic_norm = self.norm or "batch", self.critic_norm or "none"
        return found | {
            "latents": self.latent_default if self.latents is None else self.latents,
            "width": self.width,
            "norm": norm,
            "critic_norm": critic_norm,
            "minibatch": self.minibatch,
            "reference": self.reference(dataset) if "virtual" in (norm, critic_norm) else None,
            "hidden": self.hidden[0],
            "dropout": self.dropout,
            "latent_weight": self.latent_weight,
            "latent_share": self.latent_share,
            "pixel_weight": self.pixel_weight,
        }

    def networks(self, dataset: Dataset) -> dict[str, Any]:
        return {}

    def figures(self, model: GAN, dataset: Dataset, judge: ImageJudge | VectorJudge) -> dict[str, float]:
        """Also how well E inverts G, on 2,000 latents: the correlation of E(G(z)) and z, the share of the variance of z that
        it explains as it stands, and the share of latents to which their own E(G(z)) is nearer than the 1,999 others';
        and mean |G(E(x)) - x| with images in [0, 1]. On the test data, where there are labels, the shares of images
        whose nearest training image has their label, by E, by E as it was before it learnt, and by pixels."""
        assert isinstance(model, BiGAN)
        images, split = cast(ImageDataset, dataset), judge.split
        found = super().figures(model, dataset, judge)
        z = model.noise(2000, torch.tensor([8, 0]))
        back = model.encode(model.decode(z))
        found[f"{split}_latent_correlation"] = float(torch.corrcoef(torch.stack([z.flatten(), back.flatten()]))[0, 1])
        found[f"{split}_latent_r2"] = 1 - float((back - z).square().mean() / z.var())
        own = torch.cdist(z, back).argmin(1) == torch.arange(len(z), device=z.device)
        found[f"{split}_latent_found"] = float(own.float().mean())
        x = images.splits[split].x[:2000]
        still = model.outside(model.inside(x.to(model.device))).cpu()
        found[f"{split}_reconstruction_l1"] = float((model.reconstruct(x).cpu() - still).abs().mean())
        if split == "test" and images.splits["train"].y is not None:
            found["test_neighbour_encoder"] = nearest(model.encode, images)
            found["test_neighbour_random"] = nearest(self.unlearnt(images).to(model.device).encode, images)
            found["test_neighbour_pixels"] = nearest(lambda x: x.flatten(1).float(), images)
        return found

    def unlearnt(self, dataset: ImageDataset, batches: int = 20) -> BiGAN:
        """A new model whose batch norm knows the data, and nothing else does: what the architecture alone is worth."""
        with torch.random.fork_rng():
            torch.manual_seed(self.fit.seed + 1)
            model = cast(BiGAN, self.build(dataset))
        with torch.no_grad():
            for i in range(batches):
                model.encoder(model.inside(dataset.splits["train"].x[64 * i : 64 * (i + 1)]))
        return model.eval()

    def report(
        self, model: nn.Module, dataset: Dataset, out: Path, log: Sequence[Mapping[str, Any]]
    ) -> tuple[dict[str, float], list[Path]]:
        assert isinstance(model, BiGAN)
        figures, files = super().report(model, dataset, out, log)
        images = cast(ImageDataset, dataset)
        here, there = out / "reconstructions.png", out / "inversions.png"
        x = images.splits["test"].x[:64].to(model.device)
        both(here, model.outside(model.inside(x)), model.reconstruct(x), "test images x, each above G(E(x))")
        samples = model.sample(64, key=2)
        both(there, samples, model.reconstruct(samples), "samples G(z), each above G(E(G(z)))")
        return figures, [*files, here, there]


def both(path: Path, above: Tensor, below: Tensor, title: str, columns: int = 16) -> None:
    """Rows of images, each above its counterpart."""
    rows = [drawn.whole(part) for pair in zip(above.split(columns), below.split(columns), strict=True) for part in pair]
    pictures.grid(path, torch.cat(rows), columns=columns, title=title)


@torch.no_grad()
def nearest(encode: Callable[[Tensor], Tensor], dataset: ImageDataset) -> float:
    """The share of test images with the label of the training image nearest to them in what ``encode`` makes of both."""
    (x, y), (test, labels) = dataset.splits["train"], dataset.splits["test"]
    assert y is not None and labels is not None
    known = encode(x).cpu()
    found = [y[torch.cdist(part, known).argmin(1)] for part in encode(test).cpu().split(500)]
    return float((torch.cat(found) == labels).double().mean())
