"""Which pixels a model may see: random regions to train with, and named halves to show and measure."""

from __future__ import annotations

import torch
from torch import Tensor

import gmkernels as gmk

REGIONS = ("left", "right", "top", "bottom", "centre")


def hide(region: str, shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """The mask (1, H, W) of images of ``shape`` (C, H, W) that hides a region; True marks what is visible.

    ``left``, ``right``, ``top`` and ``bottom`` are halves, ``centre`` the middle quarter of the image.
    """
    _, height, width = shape
    mask = torch.ones(1, height, width, dtype=torch.bool, device=device)
    h, w = height // 2, width // 2
    hidden = {
        "left": (slice(None), slice(None, w)),
        "right": (slice(None), slice(w, None)),
        "top": (slice(None, h), slice(None)),
        "bottom": (slice(h, None), slice(None)),
        "centre": (slice(height // 4, height // 4 + h), slice(width // 4, width // 4 + w)),
    }
    if region not in hidden:
        raise ValueError(f"region must be one of {', '.join(REGIONS)}, got {region!r}")
    rows, columns = hidden[region]
    mask[0, rows, columns] = False
    return mask


def random_masks(n: int, shape: tuple[int, ...], key: Tensor, rate: float = 1.0) -> Tensor:
    """``n`` random masks (n, 1, H, W); True marks what is visible.

    With probability ``rate`` a mask hides something: a half-plane with an edge parallel to a side, a rectangle, or
    single pixels, one kind in three. How much is hidden is uniform: up to all of the image but one row for half-planes,
    each side of a rectangle from a quarter to the whole, up to 90 % of the pixels.
    """
    _, height, width = shape
    draw = gmk.random.uniform(key, (n, 8))
    kind, some = (3 * draw[:, 0]).floor(), draw[:, 1] < rate
    rows, columns = torch.arange(height, device=key.device), torch.arange(width, device=key.device)

    # A half-plane is a rectangle that reaches three sides.
    side, share = (4 * draw[:, 2]).floor(), draw[:, 3]
    half = kind == 0
    size = torch.stack([0.25 + 0.75 * draw[:, 4], 0.25 + 0.75 * draw[:, 5]])
    size[0] = torch.where(half, torch.where(side < 2, share, 1.0), size[0])
    size[1] = torch.where(half, torch.where(side < 2, 1.0, share), size[1])
    place = draw[:, 6:8].t().clone()
    place[0] = torch.where(half, (side == 1).float(), place[0])
    place[1] = torch.where(half, (side == 3).float(), place[1])
    extent = torch.tensor([[height], [width]], device=key.device)
    length = (size * extent).floor()
    start = (place * (extent - length)).round()
    inside = [
        (line >= s[:, None]) & (line < (s + l)[:, None])
        for line, s, l in zip((rows, columns), start, length, strict=True)
    ]
    hidden = inside[0][:, :, None] & inside[1][:, None, :]

    pixels = gmk.random.uniform(key + torch.tensor([0, 1], device=key.device), (n, height, width))
    hidden = torch.where((kind == 2)[:, None, None], pixels < 0.9 * share[:, None, None], hidden)
    return ~(hidden & some[:, None, None])[:, None]
