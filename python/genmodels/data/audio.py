"""Sound: folders of WAV files, read with the standard library, in windows for training."""

from __future__ import annotations

import math
import struct
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import gmkernels as gmk

from ..errors import DataError, need
from .dataset import Batch, Shuffled

ALSA = Path("/usr/share/sounds/alsa")
_PIECES, _VALID, _TEST = 20, 6, 13
"""Where recordings are few, each is cut into so many pieces, of which these are held out."""
_SPANS = (
    ("train", 0, _VALID), ("valid", _VALID, _VALID + 1), ("train", _VALID + 1, _TEST), ("test", _TEST, _TEST + 1),
    ("train", _TEST + 1, _PIECES),
)  # fmt: skip


@dataclass(frozen=True)
class AudioDataset:
    """Recordings in memory.

    Attributes:
        name: what it was loaded as.
        rate: samples a second.
        splits: ``train``, ``valid`` and ``test``: pieces of recordings, float32 (T,) within [-1, 1], of any lengths.
        labels: the class of each piece.
        classes: names of sub-folders, speakers for example; empty where there are none.
        length: samples of a window; pieces are cut into windows, and what is left at an end is left out of training.
    """

    name: str
    rate: int
    splits: dict[str, list[Tensor]]
    labels: dict[str, list[int]]
    classes: tuple[str, ...]
    length: int = 2000
    levels: int | None = None
    entropy: float | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """That of a window."""
        return (self.length,)

    def stream(self, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1) -> Shuffled:
        """Endless shuffled windows of the training pieces, half overlapping; see :class:`Shuffled`."""
        return Shuffled(self.windows("train", self.length // 2), batch_size, seed=seed, rank=rank, world=world)

    def windows(self, split: str, step: int) -> Batch:
        """All whole windows (N, length) of a split, a new one every ``step`` samples, and their classes (N,)."""
        found, labels = [], []
        for piece, label in zip(self.splits[split], self.labels[split], strict=True):
            if len(piece) >= self.length:
                cut = piece.unfold(0, self.length, step)
                found.append(cut)
                labels += [label] * len(cut)
        if not found:
            longest = max(len(piece) for piece in self.splits[split])
            raise DataError(
                f"{self.name}: windows of {self.length} samples do not fit its pieces of {longest} at most: "
                "give a smaller --length"
            )
        return Batch(torch.cat(found), torch.tensor(labels))

    def batches(self, split: str) -> Iterator[Batch]:
        """Whole pieces of a split, one by one, so that nothing but their beginnings lacks a past."""
        for piece, label in zip(self.splits[split], self.labels[split], strict=True):
            yield Batch(piece[None], torch.tensor([label]))

    def excerpt(self, length: int, split: str = "test") -> Tensor:
        """A stretch of a split, by default one that nothing was trained or chosen on, to put beside samples."""
        return max(self.splits[split], key=len)[:length]


class Varied:
    """A stream of sound in which every window is played a little slower and at another loudness, every second one
    backwards: new voices saying new things, for models that must deal with sounds of which there are few.

    Args:
        stream: of windows (B, T).
        share: by how much windows are slowed down at most, and their logarithm of loudness changed either way.
        seed: of all this; a window's changes depend on it, on its place in the stream, and on ``rank``.
    """

    def __init__(self, stream: Shuffled, share: float, *, seed: int = 0, rank: int = 0) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"Varied: share must be at least 0 and less than 1, got {share}")
        self.stream, self.share, self.seed, self.rank = stream, share, seed, rank

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.load_state_dict(state)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        place = self.stream.epoch * self.stream.batches_per_epoch + self.stream.position
        x, y = next(self.stream)
        u = gmk.random.uniform(torch.tensor([self.seed, 2**61 + place]), (3, len(x), 1), first=3 * len(x) * self.rank)
        x = torch.where(u[0] < 0.5, x.flip(1), x)
        # Between two samples a straight line will do: speech has little so high up.
        at = torch.arange(x.shape[1]) * (1 - self.share * u[1])
        before = at.long().clamp(max=x.shape[1] - 2)
        x = torch.lerp(x.gather(1, before), x.gather(1, before + 1), at - before)
        return Batch(x * torch.exp(self.share * (2 * u[2] - 1)), y)


def read_wav(path: Path) -> tuple[Tensor, int]:
    """The samples of a PCM WAV file (8, 16, 24 or 32 bits), float32 (T,) within [-1, 1], channels averaged; and its rate.

    Raises:
        DataError: the file is no PCM WAV file, holds less than it says, or holds nothing.
    """
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate, frames = file.getparams()[:4]
            data = file.readframes(frames)
    except (wave.Error, EOFError, struct.error) as error:
        raise DataError(f"{path} is not a PCM WAV file: {str(error) or 'it ends too early'}") from None
    if width not in (1, 2, 3, 4) or not channels or not rate:
        raise DataError(f"{path}: samples must be of 8, 16, 24 or 32 bits, got {8 * width}")
    if len(data) < frames * channels * width:
        raise DataError(
            f"{path} is damaged: its header speaks of {frames} samples, it holds {len(data) // (channels * width)}"
        )
    if not frames:
        raise DataError(f"{path} holds no samples")
    if width == 1:
        whole = np.frombuffer(data, np.uint8).astype(np.float64) - 128
    elif width == 3:
        # The three bytes become the upper ones of four.
        padded = np.zeros((len(data) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        whole = (padded.view("<i4")[:, 0] >> 8).astype(np.float64)
    else:
        whole = np.frombuffer(data, f"<i{width}").astype(np.float64)
    mono = whole.reshape(-1, channels).mean(1) / 2 ** (8 * width - 1)
    return torch.from_numpy(mono.astype(np.float32)), rate


def write_wav(path: Path, x: Tensor, rate: int) -> None:
    """Samples (T,) within [-1, 1] (others are clipped) as a 16-bit WAV file."""
    whole = (x.detach().cpu().double().clamp(-1, 1) * 32767).round().to(torch.int16)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, len(whole), "NONE", "not compressed"))
        file.writeframes(whole.numpy().astype("<i2").tobytes())


def resample(x: Tensor, rate: int, to: int) -> Tensor:
    """Samples (T,) at another rate, through a windowed-sinc filter below half the smaller one (SciPy's polyphase)."""
    if rate == to:
        return x
    shared = math.gcd(rate, to)
    signal = need("scipy.signal", "resampling")
    return torch.from_numpy(signal.resample_poly(x.double().numpy(), to // shared, rate // shared)).float()


def wav_folder(folder: str | Path, rate: int = 8000, length: int = 2000, skip: Sequence[str] = ()) -> AudioDataset:
    """The WAV files of a folder and of those in it, whose names are then classes: speakers, for example.

    Every recording is brought to ``rate`` samples a second and to a peak of 0.9. One in ten recordings, and at least one,
    is for testing, as many for validation; of less than four recordings, one in twenty pieces of each.

    Args:
        rate: samples a second.
        length: samples of a window.
        skip: names of files to leave out.

    Raises:
        DataError: the folder is missing or has no WAV files, or one of them is damaged.
    """
    if rate < 1 or length < 2:
        raise DataError(f"rate must be positive and length at least 2, got {rate} and {length}")
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder of WAV files")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() == ".wav" and p.name not in skip)
    if not paths:
        raise DataError(f"{root} has no WAV files")
    splits: dict[str, list[Tensor]] = {"train": [], "valid": [], "test": []}
    labels: dict[str, list[int]] = {name: [] for name in splits}
    classes = sorted({str(p.parent.relative_to(root)) for p in paths} - {"."})
    # The same recordings everywhere, and none picked because of its name.
    order = gmk.random.bits(gmk.random.key(seed=0), len(paths)).argsort(stable=True).tolist()
    held = max(1, len(paths) // 10)
    for place, path in enumerate(paths[i] for i in order):
        x = resample(*read_wav(path), rate)
        x = x * (0.9 / x.abs().max().clamp(min=1e-4))
        whole = "test" if place < held else "valid" if place < 2 * held else "train"
        spans = ((whole, 0, _PIECES),) if len(paths) >= 4 else _SPANS
        for name, begin, end in spans:
            splits[name].append(x[len(x) * begin // _PIECES : len(x) * end // _PIECES])
            parent = str(path.parent.relative_to(root))
            labels[name].append(classes.index(parent) if parent in classes else 0)
    return AudioDataset(root.name, rate, splits, labels, tuple(classes), length)


def alsa(rate: int = 8000, length: int = 2000) -> AudioDataset:
    """Eight spoken words ("front center", "side left", ...), a second and a half each, of Debian's alsa-utils."""
    if not ALSA.is_dir():
        raise DataError(f"alsa is not here: {ALSA} comes with Debian's package alsa-utils (apt install alsa-utils)")
    found = wav_folder(ALSA, rate, length, skip=("Noise.wav",))
    return AudioDataset("alsa", found.rate, found.splits, found.labels, found.classes, found.length)
