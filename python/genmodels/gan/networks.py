"""Generators and discriminators: perceptrons for anything, strided convolutions for images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gmkernels as gmk

Norm = Literal["batch", "layer", "virtual", "none"]
Shape = tuple[int, ...]
REFERENCES = 64
"""Size of the reference batch of virtual batch norm."""


def normalisation(kind: Norm, shape: Shape) -> list[nn.Module]:
    """A layer, or none, that normalises samples of ``shape``: channels first, or features alone.

    ``batch`` over the batch, ``layer`` over each sample, ``virtual`` over a fixed reference batch and the sample itself.

    Raises:
        ValueError: another kind.
    """
    if kind == "batch":
        return [nn.BatchNorm1d(shape[0]) if len(shape) == 1 else nn.BatchNorm2d(shape[0])]
    if kind == "layer":
        return [nn.LayerNorm(list(shape))]
    if kind == "virtual":
        return [gmk.nn.VirtualBatchNorm(shape[0])]
    if kind != "none":
        raise ValueError(f"norm must be 'batch', 'layer', 'virtual' or 'none', got {kind!r}")
    return []


def halvings(shape: Shape) -> int:
    """How often the convolutional networks halve images of ``shape`` (C, H, W): to 4 to 7 pixels.

    Raises:
        ValueError: a side is odd, or cannot be brought below 8 pixels by halving.
    """
    steps, sides = 0, list(shape[1:])
    while min(sides) >= 8 and all(side % 2 == 0 for side in sides):
        steps, sides = steps + 1, [side // 2 for side in sides]
    if len(shape) != 3 or not steps or min(sides) >= 8:
        raise ValueError(
            "the convolutional networks need images (channels, height, width) whose sides halve evenly to fewer than "
            f"8 pixels, such as 28, 32 or 64, got {tuple(shape)}"
        )
    return steps


def positive(**sizes: int) -> None:
    """Sizes of networks, by their names.

    Raises:
        ValueError: one is below 1.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be 1 or more, got {size}")


class ConvGenerator(nn.Sequential):
    """Latents (B, latents) to images (B, *shape) in [-1, 1], after Radford et al., "Unsupervised representation learning
    with deep convolutional generative adversarial networks", 2016, section 3.

    A linear map to the smallest image, then 4x4 transposed convolutions of stride 2; ReLU and, but for the output,
    normalisation after each; tanh. ``width`` channels before the last, twice as many at every step down.
    """

    def __init__(self, shape: Shape, latents: int, width: int = 64, norm: Norm = "batch") -> None:
        steps = halvings(shape)
        channels, height, width_ = shape[0], shape[1] >> steps, shape[2] >> steps
        wide = width << (steps - 1)
        first = (wide, height, width_)
        layers: list[nn.Module] = [nn.Linear(latents, math.prod(first), bias=norm == "none"), nn.Unflatten(1, first)]
        layers += [*normalisation(norm, first), nn.ReLU(inplace=True)]
        for step in range(1, steps):
            size = (wide >> step, height << step, width_ << step)
            layers.append(nn.ConvTranspose2d(2 * size[0], size[0], 4, 2, 1, bias=norm == "none"))
            layers += [*normalisation(norm, size), nn.ReLU(inplace=True)]
        super().__init__(*layers, nn.ConvTranspose2d(width, channels, 4, 2, 1), nn.Tanh())


class MLPGenerator(nn.Sequential):
    """Latents (B, latents) to vectors, or to images in [-1, 1], through fused linear layers and ReLU."""

    def __init__(self, shape: Shape, latents: int, hidden: Sequence[int] = (256, 256), norm: Norm = "none") -> None:
        positive(latents=latents, hidden=min(hidden, default=1))
        layers: list[nn.Module] = []
        if norm == "none":
            layers.append(gmk.nn.MLP(latents, hidden, math.prod(shape)))
        else:
            for inputs, outputs in zip((latents, *hidden), hidden, strict=False):
                layers += [nn.Linear(inputs, outputs, bias=False), *normalisation(norm, (outputs,)), nn.ReLU()]
            layers.append(nn.Linear((latents, *hidden)[-1], math.prod(shape)))
        super().__init__(*layers, *([nn.Tanh(), nn.Unflatten(1, shape)] if len(shape) > 1 else []))


class Closeness(nn.Module):
    """Minibatch discrimination whose closeness features are means over the other samples, not sums.

    So they stay within [0, 1] whatever the batch. With first weights of deviation ``init_std``, larger than the layer's
    own default, hidden features of different samples lie a few units apart, where ``exp(-distance)`` tells near from far.
    """

    def __init__(self, in_features: int, num_kernels: int, kernel_dim: int = 5, init_std: float = 0.3) -> None:
        super().__init__()
        self.layer = gmk.nn.MinibatchDiscrimination(in_features, num_kernels, kernel_dim, init_std=init_std)

    def forward(self, x: Tensor) -> Tensor:
        features, close = self.layer(x).split([x.shape[1], self.layer.num_kernels], 1)
        return torch.cat([features, close / max(1, len(x) - 1)], 1)


class Discriminator(nn.Module):
    """A trunk that makes features of samples, and a head that makes a score, or several, of features.

    Args:
        trunk: samples (B, ...) to features (B, features).
        features: their number.
        outputs: scores of a sample.
        minibatch: closeness features of minibatch discrimination that the head sees beside them (Salimans et al. 2016,
            section 3.2); 0 for none.
        minibatch_dim: the size of the space each is measured in.
        dropout: probability for the features, in training.

    ``forward``: (B, ...) to (B,), or (B, outputs) if these are several.
    """

    def __init__(
        self,
        trunk: nn.Module,
        features: int,
        outputs: int = 1,
        *,
        minibatch: int = 0,
        minibatch_dim: int = 5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.trunk, self.outputs = trunk, outputs
        head: list[nn.Module] = [nn.Dropout(dropout)] if dropout else []
        if minibatch:
            head.append(Closeness(features, minibatch, minibatch_dim))
        self.head = nn.Sequential(*head, nn.Linear(features + minibatch, outputs))

    def features(self, x: Tensor) -> Tensor:
        """What the trunk makes of samples: (B, features)."""
        return self.trunk(x)

    def score(self, features: Tensor) -> Tensor:
        """What the head makes of features."""
        found = self.head(features)
        return found.squeeze(1) if self.outputs == 1 else found

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.features(x))


def conv_trunk(
    shape: Shape, width: int = 64, norm: Norm = "batch", dropout: float = 0.0, *, smallest: int = 7
) -> tuple[nn.Sequential, int]:
    """The counterpart of :class:`ConvGenerator`, and how many features it makes.

    4x4 convolutions of stride 2 and LeakyReLU 0.2 until no more than ``smallest`` pixels a side are left; ``width``
    channels after the first, twice as many at every step down; no normalisation at the input. ``dropout`` drops
    channels.
    """
    halvings(shape)
    layers: list[nn.Module] = []
    size, channels = shape, width
    while min(size[1:]) > smallest:
        inputs, size = size[0], (channels, size[1] // 2, size[2] // 2)
        normal = normalisation(norm, size) if layers else []
        layers += [nn.Conv2d(inputs, channels, 4, 2, 1, bias=not normal), *normal, nn.LeakyReLU(0.2, inplace=True)]
        layers += [nn.Dropout2d(dropout)] if dropout else []
        channels *= 2
    return nn.Sequential(*layers, nn.Flatten()), math.prod(size)


def mlp_trunk(shape: Shape, hidden: Sequence[int] = (256, 256), norm: Norm = "none") -> tuple[nn.Sequential, int]:
    """Fused linear layers with ReLU between and after, and how many features they make.

    Raises:
        ValueError: there is no hidden layer, or one of no units.
    """
    if not hidden:
        raise ValueError("hidden must name the units of at least one layer, got none")
    positive(hidden=min(hidden))
    layers: list[nn.Module] = [nn.Flatten()]
    if norm == "none":
        layers += [gmk.nn.MLP(math.prod(shape), hidden[:-1], hidden[-1]), nn.ReLU()]
    else:
        for i, (inputs, outputs) in enumerate(zip((math.prod(shape), *hidden), hidden, strict=False)):
            layers += [nn.Linear(inputs, outputs), *(normalisation(norm, (outputs,)) if i else []), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers), hidden[-1]


def convolutional(
    shape: Sequence[int],
    *,
    latents: int = 100,
    width: int = 64,
    critic_width: int | None = None,
    norm: Norm = "batch",
    critic_norm: Norm | None = None,
    outputs: int = 1,
    minibatch: int = 0,
    dropout: float = 0.0,
    reference: Tensor | None = None,
) -> dict[str, Any]:
    """Both networks of an image model and the size of its latents, as options of :class:`genmodels.gan.GAN`.

    ``critic_width`` and ``critic_norm`` are those of the discriminator if they are others. Networks with batch norm
    begin as :func:`initialise` makes them, others as torch does. ``reference`` is the batch, as the discriminator sees
    it, by which virtual batch norm in there normalises; that of the generator is noise.
    """
    shape, critic = tuple(shape), norm if critic_norm is None else critic_norm
    critic_width = width if critic_width is None else critic_width
    positive(latents=latents, width=width, critic_width=critic_width)
    generator = ConvGenerator(shape, latents, width, norm)
    trunk = conv_trunk(shape, critic_width, critic, dropout, smallest=4)
    discriminator = Discriminator(*trunk, outputs, minibatch=minibatch)
    for network, kind in ((generator, norm), (discriminator, critic)):
        if kind in ("batch", "virtual"):
            initialise(network)
        # The order of memory in which CPUs and tensor cores convolve.
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _with_references(generator, norm, discriminator, critic, latents, reference)


def perceptrons(
    shape: Sequence[int],
    *,
    latents: int = 64,
    hidden: Sequence[int] = (256, 256),
    norm: Norm = "none",
    critic_norm: Norm | None = None,
    outputs: int = 1,
    minibatch: int = 0,
    dropout: float = 0.0,
    reference: Tensor | None = None,
) -> dict[str, Any]:
    """The same of linear layers, for samples of any shape."""
    shape, critic = tuple(shape), norm if critic_norm is None else critic_norm
    generator = MLPGenerator(shape, latents, hidden, norm)
    discriminator = Discriminator(*mlp_trunk(shape, hidden, critic), outputs, minibatch=minibatch, dropout=dropout)
    return _with_references(generator, norm, discriminator, critic, latents, reference)


def _with_references(
    generator: nn.Module, norm: Norm, critic: Discriminator, critic_norm: Norm, latents: int, reference: Tensor | None
) -> dict[str, Any]:
    """Networks with virtual batch norm together with the batch that they normalise by."""
    if norm == "virtual":
        generator = referring(generator, torch.randn(REFERENCES, latents))
    if critic_norm == "virtual":
        critic.trunk = referring(critic.trunk, reference)
    return {"generator": generator, "discriminator": critic, "latents": latents}


def referring(network: nn.Module, reference: Tensor | None) -> nn.Module:
    """A network together with the batch that its virtual batch norm normalises by; as it is if it has no such layer.

    Raises:
        ValueError: there is no reference.
    """
    if reference is None:
        raise ValueError("virtual batch norm needs a reference batch of samples, got None")
    # A single convolution, as images of few pixels have, is not normalised at all.
    return gmk.nn.VirtualBatch(network, reference) if virtual(network) else network


def virtual(network: nn.Module) -> bool:
    """Whether a network has virtual batch norm."""
    return any(isinstance(layer, gmk.nn.VirtualBatchNorm) for layer in network.modules())


def initialise(network: nn.Module, std: float = 0.02) -> None:
    """Radford et al. 2016, section 4: weights from N(0, std), here also of the scales of batch norm round 1."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            nn.init.normal_(layer.weight, 0.0, std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(layer.weight, 1.0, std)
            nn.init.zeros_(layer.bias)


def batch_coupled(network: nn.Module) -> list[str]:
    """The layers of a network in which samples of a batch see each other."""
    kinds = (nn.modules.batchnorm._BatchNorm, gmk.nn.MinibatchDiscrimination)
    return [f"{name} ({type(layer).__name__})" for name, layer in network.named_modules() if isinstance(layer, kinds)]


def slerp(a: Tensor, b: Tensor, t: Tensor | float) -> Tensor:
    """From ``a`` (t = 0) to ``b`` (t = 1) along the great circle between their directions, lengths going straight.

    Normal latents of many dimensions lie near a sphere, whose inside, where the straight line passes, no generator has
    seen (White, "Sampling generative networks", 2016). Falls back to the straight line between parallel vectors, and
    where one is 0 and has no direction.
    """
    length_a, length_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    one, other = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    angle = (one * other).sum(-1, keepdim=True).clamp(-1, 1).acos()
    sine = torch.where(torch.minimum(length_a, length_b) < 1e-12, 0.0, angle.sin())
    direction = (((1 - t) * angle).sin() * one + (t * angle).sin() * other) / sine
    return torch.where(sine.abs() < 1e-6, (1 - t) * a + t * b, direction * ((1 - t) * length_a + t * length_b))
