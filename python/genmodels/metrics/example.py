"""Why WGAN measures a distance: ``python -m genmodels.metrics.example [--out PICTURE]``.

A law on one place and the same law some way off (Arjovsky et al., "Wasserstein generative adversarial networks", 2017,
example 1, here with intervals of a tenth): as soon as they do not overlap, their Jensen-Shannon divergence is log 2
wherever the second one stands, and its slope is zero; the Wasserstein distance is how far there is to go.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .. import pictures
from .distances import jensen_shannon, wasserstein

WIDTH = 0.1
"""The length of the interval that each law is uniform on."""


class Point(NamedTuple):
    """Both distances of the laws on [0, WIDTH] and [shift, shift + WIDTH], and their slopes in the shift."""

    shift: float
    jensen_shannon: float
    jensen_shannon_slope: float
    wasserstein: float
    wasserstein_slope: float


def measure(shift: float, *, samples: int = 1000) -> Point:
    """The Jensen-Shannon divergence of the densities, the Wasserstein distance of evenly spread samples."""
    at = torch.tensor(float(shift), dtype=torch.float64, requires_grad=True)
    divergence = _divergence(at)
    x = WIDTH * (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
    distance = wasserstein(x, x + at)
    return Point(shift, divergence.item(), _slope(divergence, at), distance.item(), _slope(distance, at))


def _divergence(shift: Tensor) -> Tensor:
    # The densities are constant on three pieces: the first law's alone, the second's alone, and what they share.
    shared = (1.0 - shift.abs() / WIDTH).clamp(min=0.0)
    own, none = 1.0 - shared, torch.zeros_like(shared)
    return jensen_shannon(torch.stack((own, none, shared)), torch.stack((none, own, shared)))


def _slope(value: Tensor, by: Tensor) -> float:
    return float(torch.autograd.grad(value, by)[0]) + 0.0  # never -0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="genmodels.metrics.example", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("wgan-argument.png"), help="the picture (default: %(default)s)"
    )
    chosen = parser.parse_args(arguments)
    print(f"Two uniform laws of width {WIDTH}; log 2 = {math.log(2):.6f}")
    print("   shift   Jensen-Shannon    slope   Wasserstein    slope")
    for shift in (-1.0, -0.5, -0.2, -0.05, 0.05, 0.2, 0.5, 1.0):
        print("{:8.2f}{:17.6f}{:9.3f}{:14.6f}{:9.3f}".format(*measure(shift)))
    points = [measure(shift / 40.0) for shift in range(-40, 41)]
    curves = {
        "Jensen-Shannon divergence (nats)": [(point.shift, point.jensen_shannon) for point in points],
        "Wasserstein distance": [(point.shift, point.wasserstein) for point in points],
    }
    pictures.lines(chosen.out, curves, x="where the second law stands", y="distance from the first")
    print(f"Picture: {chosen.out}")


if __name__ == "__main__":
    main()
