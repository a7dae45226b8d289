"""Pictures of translations: input, output and target; there and back again."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .. import pictures
from .cyclegan import CycleGAN
from .pix2pix import Pix2Pix


def whole(images: Tensor) -> Tensor:
    """Images in [0, 1] as bytes."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def _colours(images: Tensor, *, ink: bool = False) -> Tensor:
    """Bytes (N, 1 or 3, H, W) as three channels; with ``ink``, grey ones dark on white, as the grids draw them."""
    return (255 - images if ink else images).expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def triples(path: Path, model: Pix2Pix, x: Tensor, y: Tensor, *, draws: int = 1, seed: int = 1, sets: int = 5) -> None:
    """Input, ``draws`` outputs with noise of their own, and target, ``sets`` of them in a row."""
    ink = model.shape[0] == 1
    made = [whole(model.translate(x, key=seed + i)) for i in range(draws)]
    shown = [_colours(image.cpu(), ink=ink) for image in (_bytes(x, model), *made, _bytes(y, model))]
    outputs = "output" if draws == 1 else f"{draws} outputs"
    title = "   |   ".join([f"input, {outputs}, target"] * min(sets, 3))
    pictures.grid(path, torch.stack(shown, 1).flatten(0, 1), columns=sets * (draws + 2), title=title, zoom=2)


def cycles(path: Path, model: CycleGAN, x: Tensor, y: Tensor, names: tuple[str, str], *, sets: int = 3) -> None:
    """``x``, its translation and the way back, then the same of ``y``, ``sets`` of each in a row."""
    n = min(len(x), len(y)) // sets * sets
    parts = [whole(part) for part in model.round_trip(x[:n], y[:n])]
    there, back = (torch.stack(three, 1).unflatten(0, (-1, sets)) for three in (parts[:3], parts[3:]))
    sheet = torch.cat([there, back], 1).flatten(0, 2)
    title = f"{names[0]} > {names[1]} > {names[0]}   |   {names[1]} > {names[0]} > {names[1]}"
    pictures.grid(path, sheet, columns=6 * sets, title=title, zoom=2)


def _bytes(images: Tensor, model: Pix2Pix) -> Tensor:
    return whole(images.float() / (model.levels - 1)) if images.dtype == torch.uint8 else whole(images)
