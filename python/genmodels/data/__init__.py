"""Data without a network: :func:`load` by name, or use the loaders directly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import DataError
from .dataset import Batch, BatchStream, Dataset, ImageDataset, Shuffled, shifted, stratified
from .densities import DENSITIES, Density
from .images import digits, fashion_mnist, image_folder, mnist5k

__all__ = [
    "DENSITIES",
    "IMAGES",
    "Batch",
    "BatchStream",
    "Dataset",
    "Density",
    "ImageDataset",
    "Shuffled",
    "digits",
    "fashion_mnist",
    "image_folder",
    "load",
    "mnist5k",
    "shifted",
    "stratified",
]

IMAGES: dict[str, Callable[[], ImageDataset]] = {"mnist5k": mnist5k, "digits": digits, "fashion-mnist": fashion_mnist}


def load(name: str, *, size: int = 32, channels: int = 3) -> ImageDataset | Density:
    """A data set by name: one of ``IMAGES`` or ``DENSITIES``, or the path of a folder of pictures.

    ``size`` and ``channels`` apply to folders only; a folder is recognised by containing a path separator or existing.
    """
    if name in IMAGES:
        return IMAGES[name]()
    if name in DENSITIES:
        return DENSITIES[name]()
    if Path(name).is_dir() or "/" in name:
        return image_folder(name, size, channels)
    known = ", ".join([*IMAGES, *DENSITIES])
    raise DataError(f"unknown data set {name!r}; expected one of {known}, or a folder of pictures")
