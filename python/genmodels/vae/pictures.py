"""Pictures of variational autoencoders: pairs, manifolds, fillings, and what each latent carries."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .. import pictures
from ..masks import hide
from .vae import VAE

COLLAPSED = 0.01
"""Nats below which a latent counts as unused."""


def whole(images: Tensor) -> Tensor:
    """Expected pixels as bytes."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def pairs(path: Path, model: VAE, x: Tensor, y: Tensor | None, columns: int = 16) -> None:
    """Images above their reconstructions, row by row."""
    rows = []
    for i in range(0, len(x), columns):
        part = x[i : i + columns].to(model.device)
        label = None if y is None else y[i : i + columns]
        rows += [whole(model.still(part)), whole(model.reconstruct(part, label))]
    pictures.grid(path, torch.cat(rows), columns=columns, title="test images, each above its reconstruction")


def manifold(path: Path, images: Tensor, title: str) -> None:
    """A square of images (side, side, C, H, W) without gaps."""
    pictures.grid(path, whole(images.flatten(0, 1)), columns=images.shape[1], title=title, zoom=1, gap=0)


def fillings(path: Path, model: VAE, x: Tensor, y: Tensor | None, regions: tuple[str, ...], draws: int = 5) -> None:
    """For each region, two rows of: what is visible, several ways to fill in the rest, what is expected, the image."""
    x = x[: 2 * len(regions)].to(model.device)
    shown = []
    for i, image in enumerate(x):
        mask = hide(regions[i // 2], model.shape, model.device)
        label = None if y is None else y[i : i + 1].to(model.device)
        many = None if label is None else label.expand(draws)
        fills = model.inpaint(image.expand(draws, *model.shape), mask, y=many, key=i)
        mean = model.inpaint(image[None], mask, y=label, draws=64, key=i)
        row = torch.cat([model.still(image[None]), fills, mean, model.still(image[None])])
        colour = (1 - row if row.shape[1] == 1 else row).expand(-1, 3, -1, -1).clone()
        # Blue-grey: no shade of an image, so that hidden cannot be taken for white.
        hidden = colour.new_tensor([0.70, 0.76, 0.84])[:, None, None]
        colour[0] = torch.where(mask, colour[0], hidden)
        shown.append(whole(colour))
    title = f"visible | {draws} ways to fill in the rest | expected | original"
    pictures.grid(path, torch.cat(shown), columns=draws + 3, title=title)


def divergence(path: Path, kl: Tensor) -> None:
    """What each latent carries, in nats, largest first, and the level below which it counts as unused."""
    unused = int((kl < COLLAPSED).sum())
    title = f"{float(kl.sum()):.1f} nats in {len(kl)} latents, {unused} unused (below {COLLAPSED} nats)"
    pictures.bars(path, kl.sort(descending=True).values.cpu(), title=title, x="latent", y="KL, nats per image")
