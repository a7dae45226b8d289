"""Data without a network: :func:`load` by name, or use the loaders directly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import DataError
from .audio import AudioDataset, Varied, alsa, read_wav, resample, wav_folder, write_wav
from .colour import apart, emoji, photos
from .dataset import Batch, BatchStream, Dataset, ImageDataset, Shuffled, shifted, stratified
from .densities import DENSITIES, Density
from .images import digits, fashion_mnist, image_folder, mnist5k
from .pairs import TASKS, PairDataset, PairStream, UnpairedDataset, UnpairedStream, paired, unpaired
from .processes import AutoregressiveNoise, MarkovLevels, Process
from .tables import Table, is_table, table

__all__ = [
    "DENSITIES",
    "IMAGES",
    "SOUNDS",
    "TASKS",
    "AudioDataset",
    "AutoregressiveNoise",
    "Batch",
    "BatchStream",
    "Dataset",
    "Density",
    "ImageDataset",
    "MarkovLevels",
    "PairDataset",
    "PairStream",
    "Process",
    "Shuffled",
    "Table",
    "UnpairedDataset",
    "UnpairedStream",
    "Varied",
    "alsa",
    "apart",
    "digits",
    "emoji",
    "fashion_mnist",
    "image_folder",
    "load",
    "mnist5k",
    "paired",
    "photos",
    "read_wav",
    "resample",
    "shifted",
    "sound",
    "stratified",
    "table",
    "unpaired",
    "wav_folder",
    "write_wav",
]

IMAGES: dict[str, Callable[..., ImageDataset]] = {
    "mnist5k": mnist5k, "digits": digits, "fashion-mnist": fashion_mnist, "emoji": emoji, "photos": photos
}  # fmt: skip
_SIZED = ("emoji", "photos")
SOUNDS: dict[str, Callable[..., AudioDataset | Process]] = {
    "alsa": alsa, "resonances": AutoregressiveNoise, "markov": MarkovLevels
}  # fmt: skip


def load(name: str, *, size: int = 32, channels: int = 3) -> ImageDataset | Density | Table:
    """A data set by name: one of ``IMAGES`` or ``DENSITIES``, or the path of a folder of pictures or of a table.

    ``size`` applies to pictures, emoji and photos only, ``channels`` to pictures; a path is recognised by containing a
    separator or existing, a table by the ending .npy, by a file train.npy in the folder, or as a file of :mod:`.archives`.
    """
    if name in _SIZED:
        return IMAGES[name](size)
    if name in IMAGES:
        return IMAGES[name]()
    if name in DENSITIES:
        return DENSITIES[name]()
    if is_table(name):
        return table(name)
    if Path(name).is_dir() or "/" in name:
        return image_folder(name, size, channels)
    known = ", ".join([*IMAGES, *DENSITIES])
    raise DataError(f"unknown data set {name!r}; expected one of {known}, a folder of pictures, or a table (.npy)")


def sound(name: str, *, rate: int = 8000, length: int = 2000) -> AudioDataset | Process:
    """Sound by name: one of ``SOUNDS``, or the path of a folder of WAV files.

    ``rate`` is what recordings are brought to, in samples a second; ``length`` is that of a training window.
    """
    if name == "alsa":
        return alsa(rate, length)
    if name in SOUNDS:
        return SOUNDS[name](length)
    if Path(name).is_dir() or "/" in name:
        return wav_folder(name, rate, length)
    raise DataError(f"unknown sound {name!r}; expected one of {', '.join(SOUNDS)}, or a folder of WAV files")
