"""Pictures of energy-based models: filters, films of chains, recalls, and curves of likelihoods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import pictures
from ..errors import need
from .rbm import RBM


def whole(images: Tensor) -> Tensor:
    """Expected pixels (n, C, H, W) in [0, 1] as bytes."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def mosaic(path: Path, model: RBM, most: int = 196) -> None:
    """What each hidden unit looks for: its weights as an image, grey for 0; those with the largest weights first."""
    w = model.weight.detach()
    order = w.norm(dim=0).argsort(descending=True)[:most]
    filters = w[:, order].t()
    if model.visible == "softmax":
        # What a unit does to the expected grey level of a pixel.
        levels = torch.linspace(-1, 1, model.categories, dtype=w.dtype, device=w.device)
        filters = filters.unflatten(1, (-1, model.categories)) @ levels
    filters = 0.5 + 0.5 * filters / filters.abs().amax(1, keepdim=True).clamp_min(1e-12)
    title = f"{len(order)} of {model.hidden} filters, largest first"
    pictures.grid(path, whole(filters.view(-1, *model.shape)), columns=max(1, round(len(order) ** 0.5)), title=title)


def film(path: Path, frames: Tensor, title: str) -> None:
    """Frames (frames, n, C, H, W) of ``n`` chains as a strip, a row for each chain; and beside it as a GIF."""
    strip = whole(frames.transpose(0, 1).flatten(0, 1))
    pictures.grid(path, strip, columns=len(frames), title=title, gap=2)
    image = need("PIL.Image", "writing a GIF")
    zoom = max(1, 84 // frames.shape[-1])
    shown = []
    for frame in whole(frames):
        sheet = pictures.tile(frame.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3), columns=len(frame), gap=4)
        sheet = 255 - sheet if len(sheet) == 1 else sheet
        shown.append(image.fromarray(sheet.permute(1, 2, 0).squeeze(2).numpy()))
    shown[0].save(path.with_suffix(".gif"), save_all=True, append_images=shown[1:], duration=120, loop=0)


def compare(path: Path, rows: Sequence[Tensor], title: str, most: int = 12) -> None:
    """The first ``most`` images (n, C, H, W) of each row, what belongs together in one column."""
    table = torch.cat([whole(row[:most]) for row in rows])
    pictures.grid(path, table, columns=len(rows[0][:most]), title=title)


def various(y: Tensor | None, n: int) -> Tensor:
    """An order of ``n`` images that goes through the classes ``y`` in turn."""
    if y is None:
        return torch.arange(n)
    rank = torch.empty(n, dtype=torch.int64)
    for label in y.unique():
        members = (y == label).nonzero()[:, 0]
        rank[members] = torch.arange(len(members))
    return (rank * (int(y.max()) + 1) + y).argsort()


def likelihoods(path: Path, log: Sequence[Mapping[str, Any]]) -> None:
    """Pseudo-likelihood and log-likelihood of the validation data against steps, the latter between its two estimates."""
    judged = [line for line in log if line["event"] == "evaluate"]

    def curve(name: str) -> list[tuple[float, float]]:
        return [(line["step"], line[name]) for line in judged if line.get(name) is not None]

    bands = {"log-likelihood, between AIS and reverse AIS": ("valid_log_likelihood_reverse", "valid_log_likelihood")}
    names = {"pseudo-likelihood": "valid_pseudo_likelihood", "log-likelihood": "valid_log_likelihood"}
    series = {label: found for label, name in names.items() if (found := curve(name))}
    between = {label: (curve(low), curve(high)) for label, (low, high) in bands.items() if curve(low)}
    pictures.lines(path, series, between, x="step", y="nats per image")
