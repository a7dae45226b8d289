"""Real colour images that need no network: the emoji of a Debian font, and crops of scikit-learn's two photographs."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import gmkernels as gmk

from ..errors import DataError, need
from .dataset import Batch, ImageDataset

DEBIAN_EMOJI = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
PHOTO_CLASSES = ("china", "flower")

_SKIN = range(0x1F3FB, 0x1F400)
_JOINERS = {0x200D, 0xFE0F, 0x2640, 0x2642}
_PEOPLE = {0x1F468: 0x1F9D1, 0x1F469: 0x1F9D1}


def apart(
    groups: Sequence[object], fractions: tuple[float, float, float] = (0.7, 0.1, 0.2), seed: int = 0
) -> dict[str, Tensor]:
    """Indices of a train, valid and test split that keeps equal elements of ``groups`` together.

    The distinct groups, in order of first appearance, are ordered by Philox words under ``seed`` and cut at the rounded
    fractions: the same on every machine.
    """
    number: dict[object, int] = {}
    of = torch.tensor([number.setdefault(group, len(number)) for group in groups])
    order = gmk.random.bits(gmk.random.key(seed=seed), len(number)).argsort(stable=True)
    ends = [round(len(number) * fractions[0]), round(len(number) * (fractions[0] + fractions[1]))]
    parts = zip(("train", "valid", "test"), order.tensor_split(ends), strict=True)
    return {name: torch.isin(of, part).nonzero()[:, 0] for name, part in parts}


def emoji(size: int = 32, path: str | os.PathLike[str] | None = None) -> ImageDataset:
    """3,916 different colour emoji (Noto, SIL OFL 1.1) from Debian's fonts-noto-color-emoji, on white; 70 / 10 / 20 %.

    The bitmaps of 136x128 pixels are composited on white, made square and resized to ``size`` (antialiased). The skin
    tones and genders of one emoji are in one split, so that no test image has its twin among the training images.

    Args:
        size: height and width.
        path: the font file; where Debian puts it if None.
    """
    need("PIL.Image", "data 'emoji'")
    fonts = need("fontTools.ttLib", "data 'emoji'")
    place = DEBIAN_EMOJI if path is None else Path(path)
    if not place.is_file():
        raise DataError(f"data 'emoji' not found: {place} is missing: apt-get install fonts-noto-color-emoji")
    try:
        font = fonts.TTFont(place)
        bitmaps, names = font["CBDT"].strikeData[0], _sequences(font)
        # Of bitmaps that are the same, the first; told apart before they shrink, so that no split depends on the size.
        first = {bitmap.imageData: glyph for glyph, bitmap in reversed(bitmaps.items())}
        kept = [glyph for glyph, bitmap in bitmaps.items() if first[bitmap.imageData] == glyph]
        pictures = np.stack([_drawn(bitmaps[glyph].imageData, size) for glyph in kept])
    except (fonts.TTLibError, KeyError, IndexError, AttributeError, OSError) as error:
        raise DataError(f"data 'emoji': {place} is not the bitmap font of fonts-noto-color-emoji: {error}") from None
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    splits = apart([_family(names[glyph]) if glyph in names else glyph for glyph in kept])
    return ImageDataset("emoji", {name: Batch(x[i]) for name, i in splits.items()}, 256, (), str(place))


def _drawn(png: bytes, size: int) -> np.ndarray:
    """A bitmap on a white square of ``size`` pixels."""
    image = need("PIL.Image", "data 'emoji'")
    picture = image.open(io.BytesIO(png)).convert("RGBA")
    edge = max(picture.size)
    white = image.new("RGBA", (edge, edge), "white")
    white.alpha_composite(picture, ((edge - picture.width) // 2, (edge - picture.height) // 2))
    return np.asarray(white.convert("RGB").resize((size, size), image.Resampling.BOX))


def _sequences(font: object) -> dict[str, tuple[int, ...]]:
    """The code points of every glyph: of its own, or of the parts that a ligature joins (tables cmap and GSUB)."""
    found: dict[str, tuple[int, ...]] = {}
    for code, glyph in font.getBestCmap().items():  # type: ignore[attr-defined]
        found.setdefault(glyph, (code,))
    ligatures: list[tuple[str, list[str]]] = [
        (ligature.LigGlyph, [first, *ligature.Component])
        for lookup in font["GSUB"].table.LookupList.Lookup  # type: ignore[index]
        if lookup.LookupType == 4
        for table in lookup.SubTable
        for first, several in table.ligatures.items()
        for ligature in several
    ]
    before = -1
    # A part may itself be a ligature, which comes later in the table.
    while before != len(found):
        before = len(found)
        for glyph, parts in ligatures:
            if glyph not in found and all(part in found for part in parts):
                found[glyph] = tuple(code for part in parts for code in found[part])
    return found


def _family(codes: Iterable[int]) -> tuple[int, ...]:
    """The code points without skin tone and gender."""
    return tuple(_PEOPLE.get(code, code) for code in codes if code not in _SKIN and code not in _JOINERS)


def photos(size: int = 32) -> ImageDataset:
    """Crops of two colour photographs of 427x640, a temple and a flower, from scikit-learn (CC-BY); 70 / 10 / 20 %.

    Each photograph is cut into 5 x 8 tiles, and every tile belongs to one split; crops of ``size`` x ``size``, 6 pixels
    apart, stay inside their tile, so that no pixel is in two splits. The label is the photograph.
    """
    datasets = need("sklearn.datasets", "data 'photos'")
    rows, columns, step = 5, 8, 6
    crops: dict[str, list[Tensor]] = {"train": [], "valid": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "valid": [], "test": []}
    for label, picture in enumerate(datasets.load_sample_images().images):
        x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        height, width = x.shape[1] // rows, x.shape[2] // columns
        if not 4 <= size <= min(height, width):
            raise ValueError(f"photos: size must be between 4 and {min(height, width)}, got {size}")
        tiles = x[:, : rows * height, : columns * width].unfold(1, height, height).unfold(2, width, width)
        tiles = tiles.permute(1, 2, 0, 3, 4).flatten(0, 1)
        for name, chosen in apart(range(len(tiles)), seed=label).items():
            found = tiles[chosen].unfold(2, size, step).unfold(3, size, step)
            found = found.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
            crops[name].append(found)
            labels[name] += [label] * len(found)
    splits = {name: Batch(torch.cat(parts).contiguous(), torch.tensor(labels[name])) for name, parts in crops.items()}
    return ImageDataset("photos", splits, 256, PHOTO_CLASSES, "scikit-learn")
