"""Pictures of autoregressive models: half-hidden images completed, and images while they grow."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .. import pictures
from ..errors import need
from ..masks import hide
from .pixelcnn import PixelModel

_HIDDEN = (0.70, 0.76, 0.84)
"""Blue-grey: no shade of an image, so that hidden cannot be taken for white or black."""


def _ink(images: Tensor, levels: int) -> Tensor:
    """Levels (N, C, H, W) as colours in [0, 1]; dark ink on white for one channel."""
    shown = images.cpu().float() / (levels - 1)
    return (1 - shown if shown.shape[1] == 1 else shown).expand(-1, 3, -1, -1).clone()


def _hide(images: Tensor, hidden: Tensor) -> Tensor:
    return torch.where(hidden, images.new_tensor(_HIDDEN)[:, None, None], images)


def _bytes(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


def completions(path: Path, model: PixelModel, x: Tensor, y: Tensor | None, *, draws: int = 6, seed: int = 1) -> None:
    """Two columns of: what is visible of an image, several ways to draw the lower half, the image."""
    mask = hide("bottom", model.shape, model.device)
    shown, many = x.repeat_interleave(draws, 0), None if y is None else y.repeat_interleave(draws, 0)
    drawn = _ink(model.inpaint(shown, mask, many, key=seed), model.levels).unflatten(0, (len(x), draws))
    original = _ink(x, model.levels)
    visible = _hide(original, ~mask.cpu())
    table = torch.cat([visible[:, None], drawn, original[:, None]], 1).flatten(0, 1)
    title = f"visible | {draws} ways to draw the rest | original"
    pictures.grid(path, _bytes(table), columns=2 * (draws + 2), title=f"{title}   |   {title}", zoom=2)


def growing(path: Path, model: PixelModel, y: Tensor | None, *, columns: int, n: int, seed: int = 2) -> None:
    """A GIF of ``n`` samples while they are drawn, a frame for each row."""
    image = need("PIL.Image", "writing a GIF")
    zoom, height = max(1, 56 // model.shape[2]), model.shape[1]
    rows = torch.arange(height)[:, None]
    frames = []

    def look(row: int, images: Tensor) -> None:
        frame = _bytes(_hide(_ink(images, model.levels), rows > row))
        sheet = pictures.tile(
            frame.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3), columns, gap=4, background=235
        )
        frames.append(image.fromarray(sheet.permute(1, 2, 0).numpy()))

    model.sample(n, y, key=seed, on_row=look)
    # The finished picture stays for a while before it starts again.
    pace = [max(40, 2400 // height)] * (len(frames) - 1) + [2500]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=pace, loop=0)
