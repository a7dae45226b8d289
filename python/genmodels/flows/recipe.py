"""The recipes of the flows: which options each has, and which defaults suit which data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from torch import nn

from ..data import Dataset, Density
from ..errors import DataError
from ..training import Fit, Result, write_down
from .autoregressive import IAF, MADE, MAF
from .flow_recipe import FlowRecipe, VariationalRecipe
from .gaussian import Gaussian
from .planar import PlanarFlow
from .realnvp import RealNVP

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RealNVPRecipe(FlowRecipe):
    """RealNVP (Dinh et al. 2017): a normalising flow of affine couplings, for images and for densities of the plane.

    Options left at None depend on the data.
    """

    summary: ClassVar[str] = "normalising flow of affine couplings (Dinh et al. 2017), images and 2-D densities"
    may_be_zero: ClassVar[frozenset[str]] = frozenset({"couplings", "tail", "depth", "blocks"})

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
    batch_norm: bool = False
    """Normalise after every coupling by the statistics of the batch."""
    reversible: bool = False
    """Restore activations in backward: the memory of training hardly grows with depth, a step takes a third longer."""

    def flow(self, dataset: Dataset, image: dict[str, Any]) -> RealNVP:
        shape = dataset.shape
        vector, scales = image["levels"] is None or self.flat, _scales(shape)
        return RealNVP(
            shape,
            **image,
            couplings=_or(self.couplings, 8 if vector else 3),
            widths=_or(self.widths, (16, 32, 48)[:scales]),
            blocks=self.blocks,
            linear=_or(self.linear, len(shape) == 1),
            tail=_or(self.tail, 6),
            hidden=_or(self.hidden, 64 if len(shape) == 1 else 256),
            depth=self.depth,
            dropout=self.dropout,
            flat=self.flat,
            scale_map=self.scale_map,
            clamp=self.clamp,
            batch_norm=self.batch_norm,
            reversible=self.reversible,
        )


@dataclass(frozen=True, kw_only=True)
class GaussianRecipe(FlowRecipe):
    """One Gaussian with a full covariance, fitted in closed form: what every flow should beat."""

    summary: ClassVar[str] = "one full-covariance Gaussian, the baseline of the flows; images, tables and 2-D densities"

    fit: Fit = field(default_factory=lambda: Fit(max_steps=1))
    """Only the seed matters: the fit is in closed form."""
    shrink: float = 0.01
    """Share by which covariances are made smaller."""

    def flow(self, dataset: Dataset, image: dict[str, Any]) -> Gaussian:
        # It whitens by itself.
        image = {name: value for name, value in image.items() if name != "whiten"}
        return Gaussian(dataset.shape, shrink=self.shrink, **image)

    def train(
        self, model: nn.Module, dataset: Dataset, out: Path, *, rank: int, world: int, fingerprint: Mapping[str, Any]
    ) -> Result:
        """The fit is done by ``build``; what is left is to write the run down."""
        if rank:
            return Result(1, 0.0, None)
        figures = self.evaluate(model, dataset, "valid")
        return write_down(model, out, figures, fingerprint=fingerprint, processes=world)


@dataclass(frozen=True, kw_only=True)
class PlanarRecipe(VariationalRecipe):
    """Planar flow (Rezende and Mohamed 2015), for densities of the plane: trained by reverse KL unless told otherwise."""

    summary: ClassVar[str] = "planar normalising flow (Rezende and Mohamed 2015), 2-D densities by reverse KL"

    data: str = "potential1"
    """A density of `genmodels list`."""
    fit: Fit = field(default_factory=lambda: Fit(max_seconds=150.0, max_steps=9000, lr=1e-2, ema=0.995))
    flows: int = 32
    """Planar steps."""

    def flow(self, dataset: Dataset, image: dict[str, Any]) -> PlanarFlow:
        if len(dataset.shape) != 1:
            raise DataError(f"a planar flow is of vectors, and {dataset.name!r} has samples of shape {dataset.shape}")
        return PlanarFlow(dataset.shape[0], self.flows)


@dataclass(frozen=True, kw_only=True)
class AutoregressiveRecipe(FlowRecipe):
    """What MADE, MAF and IAF share. Options left at None depend on the data."""

    equalise: bool = True
    """Give every pixel of an image the normal distribution by its histogram; with --no-equalise images go through a logit."""
    hidden: tuple[int, ...] | None = None
    """Widths of the hidden layers of each network (64 64; of an image 512 512)."""
    residual: bool = False
    """Residual blocks: of the stream and of the inside of each block."""
    activation: Literal["relu", "tanh"] = "relu"
    scale_map: str = "soft_clip"
    """How a network's output becomes a log-scale: see gmkernels.affine_coupling."""
    clamp: float = 5.0
    """Largest log-scale of a layer."""

    def options(self, dataset: Dataset, image: dict[str, Any]) -> dict[str, Any]:
        return {
            "hidden": _or(self.hidden, (64, 64) if len(dataset.shape) == 1 else (512, 512)),
            "residual": self.residual,
            "activation": self.activation,
            "scale_map": self.scale_map,
            "clamp": self.clamp,
            **image,
            "equalise": self.equalise and image["levels"] is not None,
        }


@dataclass(frozen=True, kw_only=True)
class MADERecipe(AutoregressiveRecipe):
    """MADE (Germain et al. 2015) as a density: every feature Gaussian given those before it."""

    summary: ClassVar[str] = "one masked autoregressive layer (Germain et al. 2015), images, tables and 2-D densities"

    def flow(self, dataset: Dataset, image: dict[str, Any]) -> MADE:
        return MADE(dataset.shape, **self.options(dataset, image))


@dataclass(frozen=True, kw_only=True)
class StackRecipe(AutoregressiveRecipe):
    """What MAF and IAF share."""

    layers: int | None = None
    """Autoregressive layers (8)."""
    permutation: Literal["reverse", "random", "linear"] | None = None
    """Between layers: linear is a learned matrix. Left at None, linear for points of a density, random for pixels, else
    reverse. In the order of rows, forward or back, a pixel sees the one beside it through hidden units of a single degree, of
    which there is one at best; in a random order through hundreds."""
    batch_norm: bool = False
    """Normalise between layers by the batch's statistics."""

    def options(self, dataset: Dataset, image: dict[str, Any]) -> dict[str, Any]:
        usual = "linear" if isinstance(dataset, Density) else "reverse" if len(dataset.shape) == 1 else "random"
        return super().options(dataset, image) | {
            "layers": _or(self.layers, 8),
            "permutation": self.permutation or usual,
            "batch_norm": self.batch_norm,
        }


@dataclass(frozen=True, kw_only=True)
class MAFRecipe(StackRecipe):
    """Masked autoregressive flow (Papamakarios et al. 2017): fast densities, sequential samples."""

    summary: ClassVar[str] = "masked autoregressive flow (Papamakarios et al. 2017), images, tables and 2-D densities"

    def flow(self, dataset: Dataset, image: dict[str, Any]) -> MAF:
        return MAF(dataset.shape, **self.options(dataset, image))


@dataclass(frozen=True, kw_only=True)
class IAFRecipe(StackRecipe, VariationalRecipe):
    """Inverse autoregressive flow (Kingma et al. 2016): fast samples, sequential densities of given data.

    Trained by likelihood unless told otherwise, through the sequential direction.
    """

    summary: ClassVar[str] = "inverse autoregressive flow (Kingma et al. 2016), images, tables and 2-D densities"

    def from_samples(self, dataset: Dataset) -> bool:
        return self.objective != "reverse-kl"

    def flow(self, dataset: Dataset, image: dict[str, Any]) -> IAF:
        return IAF(dataset.shape, **self.options(dataset, image))


def _or(given: T | None, usual: T) -> T:
    return usual if given is None else given


def _scales(shape: tuple[int, ...]) -> int:
    """Up to three, halving the image while it stays even and at least 7 pixels wide."""
    scales, edges = 1, shape[1:]
    while scales < 3 and edges and all(edge % 2 == 0 and edge >= 14 for edge in edges):
        scales, edges = scales + 1, tuple(edge // 2 for edge in edges)
    return scales
