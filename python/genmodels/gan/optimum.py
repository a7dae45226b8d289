"""What a discriminator learns against a fixed generator: ``p_data / (p_data + p_G)``.

Goodfellow et al. 2014, proposition 1: for a given G that is the discriminator which maximises the value of the game. Here
p_data is a density of the plane and p_G a normal one, so that both are known, and a network is trained to tell them
apart:

    python -m genmodels.gan.optimum --density ring --out optimum.png
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import pictures
from ..data import DENSITIES, Batch, Density
from ..record import environment
from .gan import GAN


@dataclass(frozen=True)
class Approach:
    """Fields of D(x) over a grid of points after some numbers of updates, and how far they are from the optimum.

    ``errors`` are means of ``|D(x) - p_data / (p_data + p_G)|`` under ``(p_data + p_G) / 2``, by update; ``losses`` the
    critic's losses and ``bound`` the least possible, ``2 log 2 - 2 JS(p_data, p_G)``.
    """

    optimum: Tensor
    fields: dict[int, Tensor]
    errors: dict[int, float]
    losses: dict[int, float]
    bound: float


def approach(
    density: Density,
    *,
    spread: float = 2.0,
    steps: Sequence[int] = (10, 100, 1000, 4000),
    batch: int = 512,
    hidden: Sequence[int] = (128, 128, 128),
    lr: float = 2e-3,
    seed: int = 0,
    side: int = 121,
) -> Approach:
    """Train a discriminator of ``density`` and a normal of deviation ``spread``, looking at it after ``steps`` updates."""
    torch.manual_seed(seed)
    # The generator hands its normal noise on: p_G is known.
    model = GAN(2, latents=2, generator=nn.Identity(), hidden=hidden, scale=torch.full((2,), spread))
    (left, right), (bottom, top) = density.box
    x, y = torch.linspace(left, right, side), torch.linspace(bottom, top, side)
    points = torch.stack([x.expand(side, -1), y[:, None].expand(-1, side)], -1).view(-1, 2)

    def optimum(at: Tensor) -> Tensor:
        p_g = -0.5 * (at / spread).square().sum(1) - math.log(2 * math.pi * spread**2)
        return (density.log_prob(at) - p_g).sigmoid()

    test = torch.cat([density.held_out(10_000), spread * model.noise(10_000, 1)]).double()
    wanted, half = optimum(test), len(test) // 2
    bound = -float(wanted[:half].log().mean() + (-wanted[half:]).log1p().mean())
    found = Approach(optimum(points.double()).view(side, side).float(), {}, {}, {}, bound)
    optimizer = torch.optim.Adam(model.discriminator.parameters(), lr, (0.5, 0.999), fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps))
    stream = density.stream(batch, seed=seed)
    for step in range(1, max(steps) + 1):
        optimizer.zero_grad()
        model.losses(Batch(next(stream).x), "critic")["loss"].backward()
        optimizer.step()
        schedule.step()
        if step in steps:
            with torch.no_grad():
                found.fields[step] = model.discriminator(model.inside(points)).sigmoid().view(side, side)
                logits = model.discriminator(model.inside(test.float())).double()
            found.errors[step] = float((logits.sigmoid() - wanted).abs().mean())
            found.losses[step] = float(model.judge(logits[:half], logits[half:])["loss"])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, draw the fields beside the optimum, and print the errors as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m genmodels.gan.optimum", description=__doc__)
    parser.add_argument("--density", choices=DENSITIES, default="ring")
    parser.add_argument("--out", type=Path, default=Path("optimum.png"))
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 100, 1000, 4000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="append the errors to this JSON-lines file")
    options = parser.parse_args(arguments)
    density, began = DENSITIES[options.density](), time.monotonic()
    found = approach(density, steps=options.steps, seed=options.seed)
    panels = {f"D(x) after {step} updates": field for step, field in found.fields.items()}
    pictures.plane(options.out, panels | {"p_data / (p_data + p_G)": found.optimum}, {}, density.box)
    figures = {f"error_{step}": round(error, 5) for step, error in found.errors.items()}
    figures |= {f"loss_{step}": round(loss, 5) for step, loss in found.losses.items()}
    row = {
        "model": "discriminator-optimum",
        "data": options.density,
        "seed": options.seed,
        "step": max(options.steps),
        "seconds": round(time.monotonic() - began, 2),
        "figures": figures | {"least_loss": round(found.bound, 5)},
        "recipe": {"data": options.density, "steps": options.steps},
        "environment": environment(),
    }
    print(json.dumps(row["figures"]))
    if options.record:
        with options.record.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
