"""Pictures of a run: grids of images, densities of the plane, and the curves of a log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import need

_INK, _ACCENT, _PALE = "#1f2933", "#c2410c", "#94a3b8"


def _figure(width: float, height: float, **options: Any) -> tuple[Any, Any]:
    need("matplotlib", "drawing pictures")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(**options)


def tile(images: Tensor, columns: int, gap: int = 2, background: int = 255) -> Tensor:
    """Images (N, C, H, W) in rows of ``columns`` as one (C, height, width), ``gap`` pixels apart."""
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    sheet = images.new_full((channels, rows * (height + gap) + gap, columns * (width + gap) + gap), background)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def grid(
    path: Path,
    images: Tensor,
    *,
    columns: int,
    levels: int = 256,
    title: str = "",
    zoom: int | None = None,
    gap: int = 4,
) -> None:
    """Write integer images (N, C, H, W) as a grid; dark ink on white for one channel, colours for three."""
    shown = (images.float() * (255 / (levels - 1))).round().to(torch.uint8)
    if shown.shape[1] == 1:
        shown = 255 - shown
    zoom = zoom or max(1, 56 // shown.shape[-1])
    shown = shown.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
    sheet = tile(shown, columns, gap=gap, background=235 if shown.shape[1] == 1 else 255)
    inches = sheet.shape[2] / 100, sheet.shape[1] / 100 + (0.35 if title else 0)
    figure, axes = _figure(*inches)
    picture = sheet.permute(1, 2, 0).squeeze(2).numpy()
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="none")
    axes.axis("off")
    if title:
        axes.set_title(title, fontsize=9, color=_INK)
    figure.savefig(path, dpi=150)


def plane(
    path: Path, panels: Mapping[str, Tensor], points: Mapping[str, Tensor], box: Sequence[tuple[float, float]]
) -> None:
    """Heat maps (rows are y, upwards) and scatters of points (N, 2), side by side over one box.

    Of points (N, 1), over a box of one side, histograms.
    """
    figure, axes = _figure(3.4 * (len(panels) + len(points)), 3.6, ncols=len(panels) + len(points), squeeze=False)
    (left, right), (bottom, top) = box if len(box) == 2 else (*box, (0.0, 1.0))
    brightest = max((float(panel.max()) for panel in panels.values()), default=1.0)
    for axis, (title, panel) in zip(axes[0], panels.items(), strict=False):
        colours = {"cmap": "magma", "vmin": 0, "vmax": brightest}
        axis.imshow(panel, origin="lower", extent=(left, right, bottom, top), aspect="auto", **colours)
        axis.set_title(title, fontsize=10, color=_INK)
    for axis, (title, xy) in zip(axes[0, len(panels) :], points.items(), strict=True):
        if xy.shape[1] == 1:
            axis.hist(xy[:, 0].numpy(), bins=60, range=(left, right), density=True, color=_ACCENT)
        else:
            axis.scatter(xy[:, 0], xy[:, 1], s=2, alpha=0.35, color=_ACCENT, linewidths=0)
            axis.set(xlim=(left, right), ylim=(bottom, top))
        axis.set_title(title, fontsize=10, color=_INK)
    figure.savefig(path, dpi=130)


def mesh(path: Path, nodes: Tensor, samples: Tensor, title: str) -> None:
    """A grid (rows, columns, 2) of points of the plane drawn as a net over faint samples; its corners marked."""
    figure, axes = _figure(5, 5)
    axes.scatter(samples[:, 0], samples[:, 1], s=2, alpha=0.3, color=_PALE, linewidths=0)
    for line in (*nodes, *nodes.transpose(0, 1)):
        axes.plot(line[:, 0], line[:, 1], color=_ACCENT, linewidth=0.8)
    corners = torch.stack([nodes[0, 0], nodes[0, -1], nodes[-1, 0], nodes[-1, -1]])
    axes.scatter(corners[:, 0], corners[:, 1], s=30, color=_INK, zorder=3)
    axes.set_title(title, fontsize=10, color=_INK)
    figure.savefig(path, dpi=130)


def bars(path: Path, heights: Tensor, *, title: str, x: str, y: str) -> None:
    """Bars of heights (N,), side by side."""
    figure, axes = _figure(6.4, 3)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.bar(range(1, len(heights) + 1), heights.tolist(), color=_ACCENT, width=0.8)
    axes.set_title(title, fontsize=10, color=_INK)
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def curves(path: Path, log: Sequence[Mapping[str, Any]], *, label: str, floor: tuple[str, float] | None = None) -> None:
    """Training loss and the evaluations of a log against steps; ``floor`` is a named level that cannot be beaten."""
    figure, axes = _figure(6.4, 4)
    train = [(line["step"], line["loss"]) for line in log if line["event"] == "train" and line.get("loss") is not None]
    levels = [loss for _, loss in train]
    if train:
        axes.plot(*zip(*train, strict=True), color=_PALE, linewidth=0.8, label="training batches")
    names = {k for line in log if line["event"] == "evaluate" for k in line} - {"event", "step", "seconds"}
    for name, colour in zip(sorted(names), (_ACCENT, "#0f766e", "#6d28d9"), strict=False):
        judged = [line for line in log if line["event"] == "evaluate" and line.get(name) is not None]
        seen = [(line["step"], line[name]) for line in judged]
        axes.plot(*zip(*seen, strict=True), "o-", color=colour, markersize=3.5, label=name.replace("_", " "))
        levels += [value for _, value in seen]
    if floor is not None:
        axes.axhline(floor[1], color=_INK, linestyle="--", linewidth=1, label=floor[0])
        levels.append(floor[1])
    if levels:
        # The first steps are far above everything else and would flatten the rest.
        ordered = sorted(levels)
        top = ordered[int(0.97 * (len(ordered) - 1))]
        margin = 0.06 * (top - ordered[0] or 1.0)
        axes.set_ylim(ordered[0] - margin, top + margin)
    axes.set(xlabel="step", ylabel=label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def lines(
    path: Path,
    series: Mapping[str, Sequence[tuple[float, float]]],
    between: Mapping[str, tuple[Sequence[tuple[float, float]], Sequence[tuple[float, float]]]] | None = None,
    *,
    x: str,
    y: str,
    marks: Mapping[str, float] | None = None,
) -> None:
    """Named curves of points (x, y); shaded areas between two of them; vertical lines at named places."""
    figure, axes = _figure(6.4, 4)
    for (name, points), colour in zip(series.items(), (_ACCENT, "#0f766e", "#6d28d9", _INK), strict=False):
        axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=3.5, label=name)
    for name, (low, high) in (between or {}).items():
        at, bottom = zip(*low, strict=True)
        axes.fill_between(at, bottom, [value for _, value in high], color=_PALE, alpha=0.5, linewidth=0, label=name)
    for name, place in (marks or {}).items():
        axes.axvline(place, color=_INK, linestyle="--", linewidth=1, label=name)
    axes.set(xlabel=x, ylabel=y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if series or between or marks:
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)
