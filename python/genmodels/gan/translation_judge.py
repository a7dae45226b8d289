"""What translated images are measured with: the shipped extractor of 28x28 grey images, on every channel by itself."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..metrics import Classifier28, FrechetDistance, fashion28


class EveryChannel:
    """The features of each channel as a grey image of its own, side by side: (B, channels * features).

    Unlike the features of the luminance, those of the channels see whether colours belong together.

    Args:
        extractor: of 28x28 grey images.
        channels: of the images.
    """

    def __init__(self, extractor: Classifier28, channels: int) -> None:
        self.extractor, self.channels = extractor, channels

    def __call__(self, images: Tensor) -> Tensor:
        shades = self._shades(images)
        return self.extractor(shades).unflatten(0, (len(images), self.channels)).flatten(1)

    def probabilities(self, images: Tensor) -> Tensor:
        """The mean over the channels (B, classes)."""
        return self.extractor.probabilities(self._shades(images)).unflatten(0, (len(images), self.channels)).mean(1)

    def _shades(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[1] != self.channels:
            raise ValueError(f"expected images (B, {self.channels}, H, W), got {tuple(images.shape)}")
        shades = (images.float() / 255 if images.dtype == torch.uint8 else images).flatten(0, 1).unsqueeze(1)
        if tuple(shades.shape[2:]) != (28, 28):
            shades = F.interpolate(shades, (28, 28), mode="bilinear", antialias=True).clamp(0, 1)
        return shades

    def describe(self) -> str:
        return (
            f"extractor {self.extractor.name} of each of {self.channels} channels "
            f"({self.channels * self.extractor.features} features), resizer antialiased bilinear to 28x28"
        )


def judge(channels: int) -> Classifier28 | EveryChannel:
    """The extractor for images of so many channels and any size."""
    return fashion28(resize=True) if channels == 1 else EveryChannel(fashion28(), channels)


def distance(extractor: Classifier28 | EveryChannel, real: Tensor, fake: Iterable[Tensor]) -> float:
    """The Fréchet distance of batches of images to real ones, all uint8 or in [0, 1]."""
    metric = FrechetDistance(extractor, sync=False)
    for part in real.split(500):
        metric.update(part.cpu(), real=True)
    for part in fake:
        metric.update(part.cpu(), real=False)
    return float(metric.compute())
