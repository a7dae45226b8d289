"""The Inception network of 2015 that published Fréchet distances and inception scores are taken with.

Its weights are not shipped; they come as a file ``pt_inception-2015-12-05-*.pth``, converted from TensorFlow, which is a
dictionary of tensors. This is the network that they belong to (Szegedy et al., "Rethinking the Inception architecture for
computer vision", 2016) with what the TensorFlow graph does differently: averages leave out the padding, the last block
takes a maximum in place of an average, and images are resized as TensorFlow 1 did, with no regard to pixel centres.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import DAMAGED, CheckpointError
from .extractor import unit_images

SIZE = 299
# One convolution: name, channels, kernel (height, width), stride. A list is a chain, a tuple at its end a fork.
Step = tuple[str, int, tuple[int, int], int]


def _step(name: str, channels: int, kernel: int | tuple[int, int] = 1, stride: int = 1) -> Step:
    return name, channels, (kernel, kernel) if isinstance(kernel, int) else kernel, stride


def _chain(prefix: str, *steps: tuple[int, int | tuple[int, int]], last_stride: int = 1) -> list[Step]:
    strides = [1] * (len(steps) - 1) + [last_stride]
    return [_step(f"{prefix}_{i}", *s, stride) for i, (s, stride) in enumerate(zip(steps, strides, strict=True), 1)]


class Convolution(nn.Module):
    """Convolution, batch norm, rectifier. Strided ones are not padded, the others keep the size."""

    def __init__(
        self, inputs: int, channels: int, kernel: tuple[int, int], stride: int = 1, *, pad: bool = True
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if pad and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(inputs, channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)).relu_()


class Block(nn.Module):
    """Chains of convolutions side by side and a pool, joined along the channels.

    Args:
        chains: each ends with one step, or with a fork of two that both take what came before.
        pool: ``average`` or ``max``, 3x3.
        pooled: channels of the convolution after the pool; None for none, with a stride of 2.
    """

    def __init__(
        self, inputs: int, chains: Sequence[Sequence[Step | tuple[Step, Step]]], pool: str, pooled: int | None = None
    ) -> None:
        super().__init__()
        self.chains: list[list[tuple[str, ...]]] = []
        self.pool, self.pooled = pool, pooled
        for chain in chains:
            names, width = [], inputs
            for part in chain:
                fork: tuple[Step, ...] = part if isinstance(part[0], tuple) else (part,)
                for name, channels, kernel, stride in fork:
                    self.add_module(name, Convolution(width, channels, kernel, stride))
                names.append(tuple(step[0] for step in fork))
                width = fork[-1][1]
            self.chains.append(names)
        if pooled is not None:
            self.branch_pool = Convolution(inputs, pooled, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for chain in self.chains:
            y = [x]
            for fork in chain:
                y = [self.get_submodule(name)(y[0]) for name in fork]
            found += y
        if self.pooled is None:
            return torch.cat((*found, F.max_pool2d(x, 3, 2)), dim=1)
        if self.pool == "average":
            x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        else:
            x = F.max_pool2d(x, 3, 1, 1)
        return torch.cat((*found, self.branch_pool(x)), dim=1)


def _a(inputs: int, pooled: int) -> Block:
    chains = (
        [_step("branch1x1", 64)],
        _chain("branch5x5", (48, 1), (64, 5)),
        _chain("branch3x3dbl", (64, 1), (96, 3), (96, 3)),
    )
    return Block(inputs, chains, "average", pooled)


def _b(inputs: int) -> Block:
    chains = ([_step("branch3x3", 384, 3, 2)], _chain("branch3x3dbl", (64, 1), (96, 3), (96, 3), last_stride=2))
    return Block(inputs, chains, "max")


def _c(width: int) -> Block:
    across, down = (1, 7), (7, 1)
    chains = (
        [_step("branch1x1", 192)],
        _chain("branch7x7", (width, 1), (width, across), (192, down)),
        _chain("branch7x7dbl", (width, 1), (width, down), (width, across), (width, down), (192, across)),
    )
    return Block(768, chains, "average", 192)


def _d(inputs: int) -> Block:
    chains = (
        _chain("branch3x3", (192, 1), (320, 3), last_stride=2),
        _chain("branch7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3), last_stride=2),
    )
    return Block(inputs, chains, "max")


def _e(inputs: int, pool: str) -> Block:
    def fork(name: str) -> tuple[Step, Step]:
        return _step(name + "a", 384, (1, 3)), _step(name + "b", 384, (3, 1))

    chains: list[list[Step | tuple[Step, Step]]] = [
        [_step("branch1x1", 320)],
        [_step("branch3x3_1", 384), fork("branch3x3_2")],
        [_step("branch3x3dbl_1", 448), _step("branch3x3dbl_2", 384, 3), fork("branch3x3dbl_3")],
    ]
    return Block(inputs, chains, pool, 192)


class Inception(nn.Module):
    """The network: images of any size to the 2,048 averages before its last layer.

    uint8 images are taken as they are; floating ones in [0, 1] are first rounded to 256 levels, so that an image counts the
    same in either form. Grey images are repeated in three channels. ``probabilities`` leave out the bias of the last
    layer, as the inception score does.

    Args:
        weights: what ``describe()`` says about their source.
    """

    features = 2048

    def __init__(self, weights: str = "random weights") -> None:
        super().__init__()
        self.weights = weights
        self.Conv2d_1a_3x3 = Convolution(3, 32, (3, 3), 2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, (3, 3), pad=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Convolution(80, 192, (3, 3), pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a = _b(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = _c(128), _c(160), _c(160), _c(192)
        self.Mixed_7a = _d(768)
        self.Mixed_7b, self.Mixed_7c = _e(1280, "average"), _e(2048, "max")
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: Tensor) -> Tensor:
        x = self.prepare(images)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean(dim=(2, 3))

    def probabilities(self, images: Tensor) -> Tensor:
        return F.linear(self(images), self.fc.weight).softmax(dim=1)

    def prepare(self, images: Tensor) -> Tensor:
        """(B, 3, 299, 299) in [-1, 1)."""
        if images.dim() != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"Inception takes images (B, 1 or 3, H, W), got {tuple(images.shape)}")
        x = images.float() if images.dtype == torch.uint8 else (unit_images(images) * 255.0).round()
        return (resize(x.expand(-1, 3, -1, -1), SIZE) - 128.0) / 128.0

    def describe(self) -> str:
        return (
            f"extractor Inception 2015 ({self.features} features, {self.weights}), resizer TensorFlow 1 bilinear to 299"
        )


def resize(x: Tensor, size: int) -> Tensor:
    """Bilinear, as TensorFlow 1 did: output pixel i lies at ``i * (input size / size)``, and nothing is averaged."""
    for dim in (3, 2):
        count = x.shape[dim]
        at = torch.arange(size, dtype=torch.float32, device=x.device) * torch.tensor(count / size, dtype=torch.float32)
        low = at.long()
        first, second = x.index_select(dim, low), x.index_select(dim, (low + 1).clamp_max(count - 1))
        x = first + (second - first) * (at - low).view(-1, *[1] * (3 - dim))
    return x


def inception(file: str | os.PathLike[str]) -> Inception:
    """The network with the weights of a file ``pt_inception-2015-12-05-*.pth``.

    Raises:
        CheckpointError: the file cannot be read, or holds other tensors.
    """
    path = Path(file)
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (*DAMAGED, RuntimeError, LookupError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"cannot read Inception weights {path}: {str(error).splitlines()[0]}") from None
    network = Inception(f"weights {path.name}, SHA-256 {digest}...")
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} does not hold the weights of the Inception network of 2015: {reason}") from None
    return network.eval().requires_grad_(False)
