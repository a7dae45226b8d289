"""Encoders and decoders: multilayer perceptrons or convolutions, on an image and, where there are classes, a class."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gmkernels as gmk

Network = Literal["mlp", "conv"]
Shape = tuple[int, int, int]


class Joint(nn.Module):
    """The linear map of a vector and a class: ``W [x; onehot(y)] + b = W_x x + W_y[:, y] + b``.

    Split this way, the product with ``x`` does not depend on the class: :meth:`every` does it once for all of them.
    """

    def __init__(self, inputs: int, outputs: int, classes: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.classes = nn.Parameter(torch.empty(classes, outputs)) if classes else None
        if self.classes is not None:
            # As large as what x contributes, whatever its length: a class must not drown in 784 pixels.
            nn.init.normal_(self.classes, std=1 / math.sqrt(3))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """``x`` (B, inputs) and ``y`` (B,) to (B, outputs)."""
        h = _perceptron(x, [self.linear])
        return h if self.classes is None else h + F.embedding(y, self.classes)  # type: ignore[arg-type]

    def every(self, x: Tensor) -> Tensor:
        """``x`` (B, inputs), or (B, classes, inputs), with every class: (B, classes, outputs)."""
        h = _perceptron(x.flatten(0, -2), [self.linear]).unflatten(0, x.shape[:-1])
        return (h if h.dim() == 3 else h.unsqueeze(1)) + self.classes


def _layers(widths: list[int]) -> nn.Sequential:
    """ReLU, linear, ReLU, linear, ...: what follows a first linear layer of ``widths[0]`` outputs."""
    steps: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        steps += [nn.ReLU(), nn.Linear(inputs, outputs)]
    return nn.Sequential(*steps)


def _linears(rest: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in rest if isinstance(layer, nn.Linear)]


def _fast(x: Tensor) -> bool:
    return x.is_cpu and not torch.is_autocast_enabled("cpu")


def _perceptron(x: Tensor, layers: list[nn.Linear], each: Tensor | None = None) -> Tensor:
    """Linear layers with ReLU between them, in one call where the kernels are the faster way; ``each`` as there."""
    if _fast(x) and 0 < len(layers) <= 4:
        return gmk.mlp(x, [layer.weight for layer in layers], [layer.bias for layer in layers], each=each)
    if each is not None:
        x = (x.unsqueeze(1) + each).relu_()
    for i, layer in enumerate(layers):
        x = layer(x.relu() if i else x)
    return x


def _through(first: Joint, rest: nn.Sequential, x: Tensor, y: Tensor | None) -> Tensor:
    """All layers."""
    if first.classes is None:
        return _perceptron(x, [first.linear, *_linears(rest)])
    return _after(rest, first(x, y))


def _after(rest: nn.Sequential, h: Tensor) -> Tensor:
    """What follows a first layer, of its output (..., hidden), which is overwritten."""
    layers = _linears(rest)
    return _perceptron(h.relu_().flatten(0, -2), layers).unflatten(0, h.shape[:-1]) if layers else h


def _quarter(shape: Shape) -> tuple[int, int]:
    if shape[1] % 4 or shape[2] % 4:
        raise ValueError(
            f"the convolutional network needs a height and width divisible by 4, got {shape[1]}x{shape[2]}"
        )
    return shape[1] // 4, shape[2] // 4


class Encoder(nn.Module):
    """Images (B, *shape), and a class each, to (B, outputs).

    The convolutional one halves the image twice, to 64 channels, before the layers that know the class.
    ``depth`` is the number of hidden layers of ``hidden`` units; 0 makes a linear map.
    """

    def __init__(
        self, shape: Shape, outputs: int, hidden: int = 400, depth: int = 1, network: Network = "mlp", classes: int = 0
    ) -> None:
        super().__init__()
        self.trunk: nn.Module
        if network == "conv":
            height, width = _quarter(shape)
            down = [nn.Conv2d(shape[0], 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.ReLU()]
            self.trunk, features = nn.Sequential(*down, nn.Flatten()), 64 * height * width
        else:
            self.trunk, features = nn.Flatten(), math.prod(shape)
        widths = [*[hidden] * depth, outputs]
        self.first, self.rest = Joint(features, widths[0], classes), _layers(widths)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return _through(self.first, self.rest, self.trunk(x), y)

    def every(self, x: Tensor) -> Tensor:
        """``x`` with every class: (B, classes, outputs)."""
        layers = _linears(self.rest)
        if not layers:
            return self.first.every(self.trunk(x))
        return _perceptron(_perceptron(self.trunk(x), [self.first.linear]), layers, self.first.classes)


class Decoder(nn.Module):
    """Latents (B, latents), and a class each, to images (B, *shape) of logits or means; the mirror of the encoder."""

    one_hot: Tensor

    def __init__(
        self, shape: Shape, latents: int, hidden: int = 400, depth: int = 1, network: Network = "mlp", classes: int = 0
    ) -> None:
        super().__init__()
        self.head: nn.Module
        if network == "conv":
            height, width = _quarter(shape)
            features = 64 * height * width
            up = [nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, shape[0], 4, 2, 1)]
            self.head = nn.Sequential(nn.ReLU(), nn.Unflatten(1, (64, height, width)), *up)
        else:
            features, self.head = math.prod(shape), nn.Unflatten(1, shape)
        widths = [*[hidden] * depth, features]
        self.first, self.rest = Joint(latents, widths[0], classes), _layers(widths)
        self.register_buffer("one_hot", torch.eye(classes), persistent=False)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.head(_through(self.first, self.rest, z, y))

    def every(self, z: Tensor) -> Tensor:
        """``z`` (B, classes, latents), one for each class, to (B, classes, *shape)."""
        layers = self.in_one(z, None)
        h = _after(self.rest, self.first.every(z)).flatten(0, 1) if layers is None else gmk.mlp(*layers)
        return self.head(h).unflatten(0, z.shape[:2])

    def log_likelihood(self, z: Tensor, y: Tensor | None, x: Tensor) -> Tensor | None:
        """``log p(x|z)`` (B,) of latents (B, latents) under Bernoulli pixels, decoder and likelihood in one call.

        Or ``z`` (B, classes, latents), one for each class, to (B, classes). None where the two are better apart.
        """
        layers = self.in_one(z, y) if isinstance(self.head, nn.Unflatten) else None
        if layers is None:
            return None
        return gmk.bernoulli_log_likelihood_mlp(*layers, x=x.flatten(1)).view(z.shape[:-1])

    def in_one(self, z: Tensor, y: Tensor | None) -> tuple[Tensor, list[Tensor], list[Tensor]] | None:
        """What one call makes an output of: latents and one-hot classes side by side, weights and biases.

        ``z`` (B, latents) and ``y`` (B,), or ``z`` (B, classes, latents) and every class. Unlike an image, latents are few,
        and what joins them to a class is cheap to do anew for each. None where layer after layer is the faster way.
        """
        layers = [self.first.linear, *_linears(self.rest)]
        if not _fast(z) or len(layers) > 4:
            return None
        weights: list[Tensor] = [layer.weight for layer in layers]
        if self.first.classes is not None:
            classes = self.one_hot.expand(len(z), -1, -1) if z.dim() == 3 else self.one_hot[y]
            z = torch.cat([z, classes], -1).flatten(0, -2)
            weights[0] = torch.cat([weights[0], self.first.classes.t()], 1)
        return z, weights, [layer.bias for layer in layers]
