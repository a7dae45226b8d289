"""Networks that turn images into the features and class probabilities that metrics compare."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import CheckpointError, need

WEIGHTS = Path(__file__).resolve().parent / "weights"
CHECKSUMS = WEIGHTS / "SHA256SUMS"
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the grey of PNG and JPEG libraries


@runtime_checkable
class Extractor(Protocol):
    """What metrics ask of a network: ``extractor(images) -> features`` and a line that says what it is.

    ``images`` are (B, C, H, W), uint8 or floating in [0, 1]; features are (B, d). A figure means something only beside
    the extractor and the resizer it was taken with, so both are part of ``describe()``.
    """

    def __call__(self, images: Tensor) -> Tensor: ...
    def probabilities(self, images: Tensor) -> Tensor:
        """(B, K) class probabilities of the same images."""

    def describe(self) -> str:
        """Extractor and resizer in one line."""


def unit_images(images: Tensor) -> Tensor:
    """Images as float32 in [0, 1], or an error that says what was got.

    Raises:
        TypeError: neither uint8 nor floating.
        ValueError: not (B, C, H, W), or floating values that lie outside [0, 1] by more than rounding.
    """
    if images.dim() != 4:
        raise ValueError(f"images must have shape (B, C, H, W), got {tuple(images.shape)}")
    if images.dtype == torch.uint8:
        return images.float() / 255.0
    if not images.is_floating_point():
        raise TypeError(f"images must be uint8, or floating in [0, 1], got {images.dtype}")
    if images.numel():
        low, high = (float(v) for v in images.aminmax())
        if low < -1e-3 or high > 1.0 + 1e-3:
            raise ValueError(f"floating images must lie in [0, 1], got values from {low:.4g} to {high:.4g}")
    return images.float().clamp(0.0, 1.0)


class Classifier28(nn.Module):
    """A small classifier of 28x28 grey images whose last hidden layer, 128 rectified units, are the features.

    Two 3x3 convolutions (32 and 64 channels, each rectified and pooled to half), a layer of 128, ten classes:
    421,642 weights, about 4.2 million multiplications an image.

    Args:
        name: what ``describe()`` calls it.
        resize: take images of any size and 1 or 3 channels, and bring them to 28x28 grey (antialiased bilinear, BT.601
            luma). By default such images are an error, because a figure then depends on the resizer too.
    """

    features = 128

    def __init__(self, name: str = "classifier28", *, classes: int = 10, resize: bool = False) -> None:
        super().__init__()
        self.name, self.resize = name, resize
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(64 * 7 * 7, self.features), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(self.features, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(self.prepare(images))

    def probabilities(self, images: Tensor) -> Tensor:
        return self.head(self(images)).softmax(dim=1)

    def prepare(self, images: Tensor) -> Tensor:
        """(B, 1, 28, 28) float32 in [0, 1]."""
        x = unit_images(images)
        if x.shape[1:] == (1, 28, 28):
            return x
        if not self.resize or x.shape[1] not in (1, 3):
            hint = "" if self.resize else f"; {self.name}(resize=True) takes other sizes and colour"
            raise ValueError(
                f"{self.name} takes images (B, {'1 or 3, H, W' if self.resize else '1, 28, 28'}), "
                f"got {tuple(images.shape)}{hint}"
            )
        if x.shape[1] == 3:
            x = (x * x.new_tensor(_LUMA).view(3, 1, 1)).sum(dim=1, keepdim=True)
        return F.interpolate(x, size=(28, 28), mode="bilinear", antialias=True)

    def describe(self) -> str:
        resizer = "antialiased bilinear to 28x28 grey" if self.resize else "none (28x28 grey)"
        return f"extractor {self.name} ({self.features} features), resizer {resizer}"


def fashion28(*, resize: bool = False) -> Classifier28:
    """The extractor trained on the 60,000 training images of Fashion-MNIST; it names 91.1 % of the test images rightly."""
    return _shipped("fashion28", resize)


def mnist28(*, resize: bool = False) -> Classifier28:
    """The extractor trained on 4,500 digits of ``mnist5k``, shifted by up to two pixels; 98.6 % of its test digits."""
    return _shipped("mnist28", resize)


def _shipped(name: str, resize: bool) -> Classifier28:
    network = Classifier28(name, resize=resize)
    network.load_state_dict({key: value.float() for key, value in read_weights(name).items()})
    return network.eval().requires_grad_(False)


def read_weights(name: str, folder: Path = WEIGHTS) -> dict[str, Tensor]:
    """The tensors of ``folder/name.safetensors``, whose SHA-256 must be the one that ``SHA256SUMS`` beside it gives.

    Raises:
        CheckpointError: the file or its checksum is missing, or they do not agree.
    """
    safetensors = need("safetensors.torch", f"extractor {name!r}")
    path = folder / f"{name}.safetensors"
    try:
        lines = (folder / CHECKSUMS.name).read_text().splitlines()
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"extractor {name!r}: cannot read its weights ({error}); reinstall genmodels") from None
    sums = {name: digest for digest, name in map(str.split, lines)}
    found, expected = hashlib.sha256(raw).hexdigest(), sums.get(path.name, "no line for this file")
    if found != expected:
        raise CheckpointError(
            f"extractor {name!r}: {path} is damaged: its SHA-256 is {found}, {CHECKSUMS.name} says {expected}; "
            "reinstall genmodels, or train it again: python -m genmodels.metrics.train_extractor"
        )
    return safetensors.load(raw)


def write_weights(network: Classifier28, folder: Path = WEIGHTS) -> Path:
    """Save the weights in float16 and enter their SHA-256 into ``SHA256SUMS``."""
    safetensors = need("safetensors.torch", "saving an extractor")
    folder.mkdir(parents=True, exist_ok=True)
    path, sums = folder / f"{network.name}.safetensors", folder / CHECKSUMS.name
    raw = safetensors.save({key: value.half().contiguous() for key, value in network.state_dict().items()})
    path.write_bytes(raw)
    lines = sums.read_text().splitlines() if sums.exists() else []
    lines = [line for line in lines if line.split()[1] != path.name]
    sums.write_text(
        "\n".join(sorted([*lines, f"{hashlib.sha256(raw).hexdigest()}  {path.name}"], key=str.split)) + "\n"
    )
    return path
