"""Pictures of adversarial models: samples over training, walks and sums in latent space, the discriminator's field."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import pictures
from ..data import Density
from ..errors import DAMAGED
from ..training import Best
from ..training.checkpoint import write_atomically
from .gan import GAN
from .networks import batch_coupled

_PROGRESS = "progress"


def whole(images: Tensor) -> Tensor:
    """Images in [0, 1] as bytes."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def note_progress(out: Path, model: GAN, columns: int = 12) -> None:
    """Keep a row of samples, of the same noise every time, under the number of generator updates so far."""
    folder = out / _PROGRESS
    folder.mkdir(parents=True, exist_ok=True)
    row = io.BytesIO()
    np.save(row, whole(model.sample(columns, key=3)).numpy())
    write_atomically(folder / f"{int(model.updates):08d}.npy", row.getvalue())


def progress(path: Path, out: Path, rows: int = 12) -> bool:
    """What :func:`note_progress` kept, row by row; False if there is nothing."""
    kept = {}
    for file in sorted((out / _PROGRESS).glob("*.npy")):
        try:
            kept[file.stem.lstrip("0") or "0"] = np.load(file)
        except DAMAGED as error:
            warnings.warn(f"a row of {path.name} is left out: cannot read {file}: {error}", stacklevel=2)
    if not kept:
        return False
    chosen = [list(kept)[i] for i in torch.linspace(0, len(kept) - 1, min(rows, len(kept))).round().long().tolist()]
    images = torch.from_numpy(np.concatenate([kept[step] for step in chosen]))
    title = f"the same noise after updates {', '.join(chosen)}"
    pictures.grid(path, images, columns=len(images) // len(chosen), title=title)
    return True


def interpolations(path: Path, model: GAN, rows: int = 8, steps: int = 12, *, spherical: bool = True) -> None:
    """Walks between pairs of latents."""
    a, b = model.noise(2 * rows, 5).chunk(2)
    walks = model.interpolate(a, b, steps, spherical=spherical)
    kind = "the sphere" if spherical else "straight lines"
    pictures.grid(path, whole(walks.flatten(0, 1)), columns=steps, title=f"between latents, along {kind}")


def arithmetic(path: Path, model: GAN, rows: int = 8) -> None:
    """Two sums a row: three latents and what z1 - z2 + z3 makes."""
    z = model.noise(6 * rows, 6).view(3, 2 * rows, -1)
    columns = [model.decode(part) for part in z] + [model.arithmetic(*z)]
    pictures.grid(path, whole(torch.stack(columns, 1).flatten(0, 1)), columns=8, title="z1, z2, z3, and z1 - z2 + z3")


def plane(path: Path, model: GAN, density: Density, n: int = 5000) -> None:
    """The discriminator's score over the plane, the data, and the samples."""
    (left, right), (bottom, top) = density.box
    x, y = torch.linspace(left, right, 161), torch.linspace(bottom, top, 161)
    points = torch.stack([x.expand(161, -1), y[:, None].expand(-1, 161)], -1).view(-1, 2).to(model.device)
    with torch.no_grad():
        score = _scores(model, points, density.sample(480, torch.tensor([2, 2**62])).to(model.device))
    field = score.sigmoid() if model.bounded else (score - score.min()) / (score.max() - score.min()).clamp_min(1e-12)
    name = "D(x)" if model.bounded else "critic, from low to high"
    samples = {"data": density.held_out(n), "samples": model.sample(n, key=1).cpu()}
    pictures.plane(path, {name: field.view(161, 161).cpu()}, samples, density.box)


def _scores(model: GAN, points: Tensor, company: Tensor) -> Tensor:
    """The critic's scores of points: where samples of a batch see each other, of a few at a time among the data's."""
    if not batch_coupled(model.discriminator):
        return torch.cat([model.critic()(model.inside(part)) for part in points.split(4096)])
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0)).to(points.device)
    mixed = [torch.cat([part, company]) for part in points[order].split(32)]
    found = [model.critic()(model.inside(batch))[: len(batch) - len(company)] for batch in mixed]
    return torch.cat(found)[order.argsort()]


def losses(path: Path, log: Sequence[Mapping[str, Any]], points: int = 200) -> None:
    """The losses of both players against steps, each point the mean of what it stands for."""
    trained = [line for line in log if line["event"] == "train"]
    series = {}
    for part in ("critic", "generator"):
        found = [(line["step"], line[f"{part}.loss"]) for line in trained if line.get(f"{part}.loss") is not None]
        stride = -(-len(found) // points) or 1
        series[f"{part}'s loss"] = [
            (float(np.mean([s for s, _ in some])), float(np.mean([v for _, v in some])))
            for some in (found[i : i + stride] for i in range(0, len(found), stride))
        ]
    pictures.lines(path, {name: curve for name, curve in series.items() if curve}, x="step", y="loss")


def figure(path: Path, log: Sequence[Mapping[str, Any]], best: Best) -> None:
    """The figure that decides which weights are best, against steps, with its best value marked."""
    name, label = best.metric, best.metric.replace("_", " ")
    judged = [(line["step"], line[name]) for line in log if line["event"] == "evaluate" and line.get(name) is not None]
    choose = min if best.direction == "min" else max
    top = choose(judged, key=lambda point: point[1], default=None)
    marks = {f"best: {top[1]:.3g}": top[0]} if top else {}
    pictures.lines(path, {label: judged} if judged else {}, x="step", y=label, marks=marks)
