"""Fréchet distance and inception score between two sets of images: ``python -m genmodels.metrics REAL FAKE``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import data
from ..errors import DataError, GenmodelsError, at_least
from . import Extractor, FrechetDistance, fashion28, inception, inception_score, mnist28

EXTRACTORS = {"fashion28": fashion28, "mnist28": mnist28}


@dataclass
class Images:
    """All that is measured of a split of a data set, or of the pictures in a folder: (N, C, H, W), values below levels."""

    x: Tensor
    levels: int

    def batches(self, size: int = 250) -> Iterator[Tensor]:
        """In [0, 1]."""
        yield from (x.float() / (self.levels - 1) for x in self.x.split(size))


def _images(name: str, size: int, channels: int, most: int) -> Images:
    source, _, split = name.partition(":")
    found = data.load(source, size=size, channels=channels)
    if not isinstance(found, data.ImageDataset):
        raise DataError(f"{source!r} has no images")
    splits = [split] if split else ["test"] if source in data.IMAGES else list(found.splits)
    if unknown := set(splits) - set(found.splits):
        raise DataError(f"{source!r} has no split {unknown.pop()!r}; it has {', '.join(found.splits)}")
    x = torch.cat([found.splits[split].x for split in splits])[:most]
    if len(x) < 2:
        raise DataError(f"{name!r} has {len(x)} images, and a distance needs two at least")
    return Images(x, found.levels)


def measure(real: Images, fake: Images, extractor: Extractor, *, split: str, splits: int) -> list[str]:
    """One line a figure: the Fréchet distance, and the inception score of the second set."""
    metric, probabilities = FrechetDistance(extractor, split=split), []
    for images in real.batches():
        metric.update(images, real=True)
    for images in fake.batches():
        metric.update(images, real=False)
        with torch.inference_mode():
            probabilities.append(extractor.probabilities(images))
    p = torch.cat(probabilities)
    # Folders come class by class, and a part of the score must not be a part of the classes.
    order = torch.randperm(len(p), generator=torch.Generator().manual_seed(0))
    return [str(metric.compute()), str(inception_score(p[order], min(splits, len(p)), extractor=extractor))]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="genmodels.metrics", description=__doc__)
    parser.add_argument(
        "real", help="a data set (fashion-mnist, mnist5k:train, ...; its test split) or a folder of pictures"
    )
    parser.add_argument("fake", help="likewise")
    parser.add_argument("--extractor", choices=list(EXTRACTORS), default="fashion28")
    parser.add_argument(
        "--inception-weights", metavar="FILE", help="pt_inception-2015-12-05-*.pth: the standard network"
    )
    parser.add_argument("--size", type=int, help="bring pictures of folders to this size (28; for Inception 32)")
    parser.add_argument("--splits", type=int, default=10, help="parts of the inception score (default: %(default)s)")
    parser.add_argument("--most", type=int, default=50_000, help="images of each set, at most (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    try:
        for name, least in (("most", 2), ("splits", 1), ("size", 1)):
            at_least(name, getattr(chosen, name), least)
        standard, names = chosen.inception_weights is not None, (chosen.real, chosen.fake)
        size, channels = chosen.size or (32 if standard else 28), 3 if standard else 1
        real, fake = (_images(name, size, channels, chosen.most) for name in names)
        fits = all(images.x.shape[1:] == (1, 28, 28) for images in (real, fake))
        network = inception(chosen.inception_weights) if standard else EXTRACTORS[chosen.extractor](resize=not fits)
        for line in measure(real, fake, network, split=chosen.real, splits=chosen.splits):
            print(line)
        if any(name.partition(":")[0] not in data.IMAGES for name in names):
            print(f"pictures of folders: their central square, bicubic, antialiased, to {size}x{size}")
    except (GenmodelsError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
