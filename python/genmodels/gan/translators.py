"""Networks that turn images into images, and one that judges them patch by patch."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gmkernels as gmk

from .networks import Closeness, initialise

Norm = Literal["instance", "batch", "virtual", "none"]

_MOST = 8
"""The widest layers have so many times the channels of the first."""
_GRID = 4
"""Cells a side over which a critic's features are averaged to compare images."""


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """Batch norm with learned scales, or instance norm without, as the two papers have them; or virtual batch norm, whose
    network is then called within :func:`gmkernels.nn.virtual_batch`."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "instance":
        return nn.InstanceNorm2d(channels)
    if norm == "virtual":
        return gmk.nn.VirtualBatchNorm(channels)
    if norm != "none":
        raise ValueError(f"norm must be instance, batch, virtual or none, got {norm!r}")
    return nn.Identity()


def halvings(height: int, width: int, most: int = 8) -> int:
    """How often an image can be halved: until a side is odd, or 1."""
    depth = 0
    while depth < most and height % 2 == 0 and width % 2 == 0:
        height, width, depth = height // 2, width // 2, depth + 1
    return depth


class UNet(nn.Module):
    """An encoder and a decoder with a skip from every layer of the one to its mirror image in the other.

    Isola, Zhu, Zhou and Efros, "Image-to-image translation with conditional adversarial networks", 2017, section 6.1.1:
    convolutions 4x4 of stride 2 with ``width, 2 width, 4 width, 8 width, 8 width, ...`` channels and LeakyReLU 0.2, and
    back with transposed ones and ReLU; tanh at the end. The first and the innermost layer have no norm (an image of
    1x1 has no variance), the first three of the decoder have dropout, which is the noise that makes the map stochastic.

    Args:
        inputs, outputs: channels.
        depth: halvings; height and width must be multiples of ``2**depth``.
        width: channels after the first convolution.
        norm: ``instance``, ``batch``, ``virtual`` or ``none``.
        dropout: probability of a dropped unit.
    """

    def __init__(
        self, inputs: int, outputs: int, *, depth: int, width: int = 64, norm: Norm = "batch", dropout: float = 0.5
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"UNet: depth must be at least 1, got {depth}")
        if not 0 <= dropout < 1:
            raise ValueError(f"UNet: dropout must be in [0, 1), got {dropout}")
        self.depth, self.dropout = depth, dropout
        widths = [inputs, *(width * min(2**i, _MOST) for i in range(depth))]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, (few, many) in enumerate(itertools.pairwise(widths)):
            layers: list[nn.Module] = [nn.LeakyReLU(0.2)] if i else []
            layers.append(nn.Conv2d(few, many, 4, 2, 1))
            if 0 < i < depth - 1:
                layers.append(normalisation(norm, many))
            self.down.append(nn.Sequential(*layers))
        for i in range(depth - 1, 0, -1):
            many = widths[i + 1] if i == depth - 1 else 2 * widths[i + 1]
            up = nn.ConvTranspose2d(many, widths[i], 4, 2, 1)
            self.up.append(nn.Sequential(nn.ReLU(), up, normalisation(norm, widths[i])))
        many = widths[1] if depth == 1 else 2 * widths[1]
        self.up.append(nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(many, outputs, 4, 2, 1)))
        initialise(self)

    def forward(self, x: Tensor, key: Tensor | None = None, *, first: int = 0) -> Tensor:
        """Images (B, inputs, H, W) to (B, outputs, H, W) in [-1, 1].

        Args:
            key: of the dropout; None for no noise.
            first: logical index of the first image, so that a batch cut in two is noised as the whole.

        Raises:
            ValueError: the height or the width is not a multiple of ``2**depth``.
        """
        if x.shape[-2] % 2**self.depth or x.shape[-1] % 2**self.depth:
            raise ValueError(
                f"UNet: height and width must be multiples of 2**depth = {2**self.depth}, for each of the {self.depth} "
                f"halvings to meet its skip; got {x.shape[-2]}x{x.shape[-1]}"
            )
        skips = []
        for down in self.down:
            x = down(x)
            skips.append(x)
        x = skips.pop()
        for i, up in enumerate(self.up):
            x = up(torch.cat([x, skips.pop()], 1) if i else x)
            if key is not None and self.dropout and i < min(3, self.depth - 1):
                keep = gmk.random.uniform(key + torch.tensor([0, i], device=key.device), x.shape, first=first)
                x = x * ((keep >= self.dropout).to(x.dtype) / (1 - self.dropout))
        return torch.tanh(x)


class Residual(nn.Module):
    """``x + f(x)`` with two 3x3 convolutions on reflected borders."""

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__()
        self.f = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            normalisation(norm, width),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            normalisation(norm, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


class ResidualTranslator(nn.Module):
    """Down by four, through residual blocks, and up again (Johnson et al. 2016, as in Zhu et al. 2017, section 7.2).

    ``c7s1-w, d2w, d4w, R4w x blocks, u2w, uw, c7s1``: reflected borders, norm and ReLU after every convolution but the
    last, tanh at the end.

    Args:
        inputs, outputs: channels.
        width: w, the channels after the first convolution.
        blocks: residual blocks.
        norm: ``instance``, ``batch``, ``virtual`` or ``none``.
    """

    def __init__(self, inputs: int, outputs: int, *, width: int = 64, blocks: int = 6, norm: Norm = "instance") -> None:
        super().__init__()

        def step(layer: nn.Module, channels: int) -> list[nn.Module]:
            return [layer, normalisation(norm, channels), nn.ReLU()]

        self.layers = nn.Sequential(
            nn.ReflectionPad2d(3),
            *step(nn.Conv2d(inputs, width, 7), width),
            *step(nn.Conv2d(width, 2 * width, 3, 2, 1), 2 * width),
            *step(nn.Conv2d(2 * width, 4 * width, 3, 2, 1), 4 * width),
            *(Residual(4 * width, norm) for _ in range(blocks)),
            *step(nn.ConvTranspose2d(4 * width, 2 * width, 3, 2, 1, 1), 2 * width),
            *step(nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1), width),
            nn.ReflectionPad2d(3),
            nn.Conv2d(width, outputs, 7),
            nn.Tanh(),
        )
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, inputs, H, W) to (B, outputs, H, W) in [-1, 1].

        Raises:
            ValueError: the height or the width is not a multiple of 4, or is below 8.
        """
        if x.shape[-2] % 4 or x.shape[-1] % 4 or min(x.shape[-2:]) < 8:
            raise ValueError(
                f"ResidualTranslator: height and width must be multiples of 4, at least 8; got "
                f"{x.shape[-2]}x{x.shape[-1]}"
            )
        return self.layers(x)


class PatchGAN(nn.Module):
    """A critic that says real or fake of every overlapping patch (Isola et al. 2017, section 3.2.2 and 6.1.2).

    Convolutions 4x4: ``layers`` of stride 2 with ``width, 2 width, 4 width, 8 width, ...`` channels, one of stride 1, and
    one to a single channel; LeakyReLU 0.2; no norm after the first. Each output sees :attr:`receptive_field` pixels
    square: 16, 34, 70, 142 for 1, 2, 3, 4 layers.

    With ``minibatch`` the last convolution sees, beside the features of its patch, how close the image is to the others
    of the batch: minibatch discrimination (Salimans et al. 2016, section 3.2) of its features averaged over a grid of
    4x4, the same numbers for every patch. (An average over the whole image says little after instance norm.)

    Args:
        inputs: channels; of input and output together, if it judges pairs.
        width: channels after the first convolution.
        layers: convolutions of stride 2.
        norm: ``instance``, ``batch``, ``virtual`` or ``none``.
        minibatch: closeness features of minibatch discrimination; 0 for none.
    """

    def __init__(
        self, inputs: int, *, width: int = 64, layers: int = 3, norm: Norm = "batch", minibatch: int = 0
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"PatchGAN: layers must be at least 1, got {layers}")
        steps: list[nn.Module] = [nn.Conv2d(inputs, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        widths = [width * min(2**i, _MOST) for i in range(layers + 1)]
        for i, (few, many) in enumerate(itertools.pairwise(widths)):
            stride = 2 if i < layers - 1 else 1
            steps += [nn.Conv2d(few, many, 4, stride, 1), normalisation(norm, many), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*steps, nn.Conv2d(widths[-1] + minibatch, 1, 4, 1, 1))
        # With these first weights images are at distances of about 1, whatever the number of features.
        self.cells = widths[-1] * _GRID**2
        self.closeness = Closeness(self.cells, minibatch, init_std=self.cells**-0.5) if minibatch else None
        initialise(self)

    @property
    def receptive_field(self) -> int:
        """Height and width of the patch that one output sees."""
        field = 1
        for layer in reversed(self.layers):
            if isinstance(layer, nn.Conv2d):
                field = (field - 1) * layer.stride[0] + layer.kernel_size[0]
        return field

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, inputs, H, W) to logits (B, 1, H', W'), one for each patch.

        Raises:
            ValueError: as :meth:`features`; or the image has no others to be compared with.
        """
        features = self.features(x)
        if self.closeness is not None:
            if len(x) < 2:
                raise ValueError(f"PatchGAN: minibatch discrimination compares the images of a batch, got {len(x)}")
            cells = F.adaptive_avg_pool2d(features, _GRID).flatten(1)
            near = self.closeness(cells)[:, self.cells :, None, None]
            features = torch.cat([features, near.expand(-1, -1, *features.shape[2:])], 1)
        return self.layers[-1](features)

    def features(self, x: Tensor) -> Tensor:
        """What the layers before the last make of images: (B, channels, H'', W'').

        Raises:
            ValueError: the image is too small for a single patch.
        """
        smallest = 3 * 2 ** (sum(layer.stride[0] == 2 for layer in self.layers if isinstance(layer, nn.Conv2d)))
        if min(x.shape[-2:]) < smallest:
            raise ValueError(
                f"PatchGAN: height and width must be at least {smallest}, got {x.shape[-2]}x{x.shape[-1]}: fewer layers "
                "take smaller images"
            )
        return self.layers[:-1](x)
