"""The recipes of the flows: which options each has, and which defaults suit which data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..data import Dataset
from .flow_recipe import FlowRecipe
from .realnvp import RealNVP


@dataclass(frozen=True, kw_only=True)
class RealNVPRecipe(FlowRecipe):
    """RealNVP (Dinh et al. 2017): a normalising flow of affine couplings, for images and for densities of the plane.

    Options left at None depend on the data.
    """

    summary: ClassVar[str] = "normalising flow of affine couplings (Dinh et al. 2017), images and 2-D densities"

    couplings: int | None = None
    """Couplings of a vector (8); of an image, couplings of each kind and scale (3)."""
    widths: tuple[int, ...] | None = None
    """Channels of an image's conditioners, one number a scale (16 32 48)."""
    blocks: int = 1
    """Residual blocks of an image's conditioners."""
    tail: int | None = None
    """Couplings of all remaining latents after the last scale of an image (6)."""
    hidden: int | None = None
    """Hidden units of the conditioners of vectors (64) and of an image's tail (256)."""
    depth: int = 2
    """Hidden layers of the same."""
    dropout: float = 0.0
    """Dropout of the same."""
    linear: bool | None = None
    """A learned matrix after every second coupling of a vector. Left at None, for points of a density."""
    flat: bool = False
    """Treat an image as a vector of pixels."""
    scale_map: str = "soft_clip"
    """How a conditioner's output becomes a log-scale: see gmkernels.affine_coupling."""
    clamp: float = 5.0
    """Largest log-scale of a coupling."""

    def flow(self, dataset: Dataset, levels: int | None, alpha: float) -> RealNVP:
        shape = dataset.shape
        image = levels is not None and not self.flat
        return RealNVP(
            shape,
            levels=levels,
            alpha=alpha,
            couplings=self.couplings or (3 if image else 8),
            widths=self.widths or (16, 32, 48)[: _scales(shape)],
            blocks=self.blocks,
            linear=self.linear if self.linear is not None else levels is None,
            tail=self.tail if self.tail is not None else 6,
            hidden=self.hidden or (64 if levels is None else 256),
            depth=self.depth,
            dropout=self.dropout,
            flat=self.flat,
            scale_map=self.scale_map,
            clamp=self.clamp,
        )


def _scales(shape: tuple[int, ...]) -> int:
    """Up to three, halving the image while it stays even and at least 7 pixels wide."""
    scales, edges = 1, shape[1:]
    while scales < 3 and edges and all(edge % 2 == 0 and edge >= 14 for edge in edges):
        scales, edges = scales + 1, tuple(edge // 2 for edge in edges)
    return scales
