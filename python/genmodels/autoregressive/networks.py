"""The networks of PixelCNN and Gated PixelCNN: every output depends on the pixels before its own, and on no other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gmkernels as gmk
from gmkernels.nn import GatedMaskedConv2d, MaskedConv2d

Taps = tuple[Tensor, Tensor]


def _taps(layer: nn.Module) -> Taps:
    return layer.weight, layer.bias  # type: ignore[return-value]


class Block(nn.Module):
    """A residual block ``x + expand(relu(masked(relu(reduce(relu(x))))))`` of 2 ``width`` channels.

    (van den Oord et al., "Pixel recurrent neural networks", 2016, figure 5.) A condition is added to what ``masked``
    makes.
    """

    def __init__(self, width: int, kernel: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.reduce = MaskedConv2d(2 * width, width, 1, "B", groups)
        self.masked = MaskedConv2d(width, width, kernel, "B", groups)
        self.expand = MaskedConv2d(width, 2 * width, 1, "B", groups)
        self.dropout = dropout

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        inner = self.masked(self.reduce(x.relu()).relu())
        if condition is not None:
            inner = inner + condition[:, :, None, None]
        return x + self.expand(F.dropout(inner.relu(), self.dropout, self.training))

    def parts(self) -> Iterator[Taps]:
        yield from map(_taps, (self.reduce, self.masked, self.expand))


class Plain(nn.Module):
    """The body of a PixelCNN: a masked convolution A and residual blocks (see :func:`gmkernels.pixelcnn_sample`)."""

    def __init__(
        self, channels: int, width: int, kernels: Sequence[int], groups: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.first = MaskedConv2d(channels, 2 * width, kernels[0], "A", groups)
        self.blocks = nn.ModuleList(Block(width, k, groups, dropout) for k in kernels[1:])
        self.features, self.conditions = 2 * width, (len(self.blocks), width)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Values (B, C, H, W), and a condition (B, blocks, width), to features (B, 2 width, H, W)."""
        x = self.first(x)
        for i, block in enumerate(self.blocks):
            x = block(x, None if condition is None else condition[:, i])
        return x

    def parts(self) -> Iterator[Taps]:
        """Weights and biases in the order of :func:`gmkernels.pixelcnn_sample`."""
        yield _taps(self.first)
        for block in self.blocks:
            yield from block.parts()  # type: ignore[operator]


class Layer(nn.Module):
    """A layer of the two stacks (van den Oord et al., "Conditional image generation with PixelCNN decoders", 2016,
    figure 2): the vertical stack sees rows above, the horizontal one the row so far and, through ``link``, the vertical.

    Neither leaves a blind spot: a pixel of the vertical stack has seen all of a widening cone above it, not only what
    masked convolutions on top of each other can reach.
    """

    def __init__(self, inputs: int, width: int, kernel: int, first: bool, groups: int, dropout: float) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"GatedPixelCNN: kernel sizes must be odd, got {kernel}")
        self.vertical = nn.Conv2d(inputs, 2 * width, (kernel // 2 + 1, kernel))
        self.horizontal = GatedMaskedConv2d(inputs, width, (1, kernel), "A" if first else "B", groups)
        self.link = nn.Conv2d(2 * width, 2 * width, 1)
        self.residual = MaskedConv2d(width, width, 1, "B", groups)
        self.kernel, self.first, self.groups, self.dropout = kernel, first, groups, dropout

    def forward(self, down: Tensor, across: Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        reach = self.kernel // 2
        for_vertical, for_horizontal = (None, None) if condition is None else condition.chunk(2, 1)
        above = self.vertical(F.pad(down, (reach, reach, reach, 0)))
        linked = self.link(above)
        here = self.horizontal(across, linked if for_horizontal is None else linked + for_horizontal[:, :, None, None])
        residual = self.residual(F.dropout(here, self.dropout, self.training))
        return self.gate(above, for_vertical), residual if self.first else across + residual

    def gate(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """``tanh(a) * sigmoid(b)``, ``a`` and ``b`` the two halves of each group of channels."""
        if self.groups == 1:
            return gmk.gated_activation(x, condition)
        # Groups become samples, so that the halves of a sample are those of a group.
        alone = x.unflatten(1, (self.groups, -1)).flatten(0, 1)
        shared = None if condition is None else condition.unflatten(1, (self.groups, -1)).flatten(0, 1)
        return gmk.gated_activation(alone, shared).unflatten(0, (-1, self.groups)).flatten(1, 2)

    def parts(self) -> Iterator[Taps]:
        yield _taps(self.vertical)
        weight, bias = _taps(self.horizontal)
        yield weight[..., : self.kernel // 2 + 1], bias
        yield from map(_taps, (self.link, self.residual))


class Gated(nn.Module):
    """The body of a Gated PixelCNN, of layers of ``width`` channels (see :func:`gmkernels.gated_pixelcnn_sample`)."""

    def __init__(
        self, channels: int, width: int, kernels: Sequence[int], groups: int = 1, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Layer(width if i else channels, width, k, i == 0, groups, dropout if i else 0.0)
            for i, k in enumerate(kernels)
        )
        self.features, self.conditions = width, (len(self.layers), 4 * width)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Values (B, C, H, W), and a condition (B, layers, 4 width), to features (B, width, H, W)."""
        # The row itself must not reach the vertical stack: it begins with the row above.
        down, across = F.pad(x, (0, 0, 1, 0))[:, :, :-1], x
        for i, layer in enumerate(self.layers):
            down, across = layer(down, across, None if condition is None else condition[:, i])
        return across

    def parts(self) -> Iterator[Taps]:
        """Weights and biases in the order of :func:`gmkernels.gated_pixelcnn_sample`."""
        for layer in self.layers:
            yield from layer.parts()  # type: ignore[operator]


class Network(nn.Module):
    """A body, and the two 1x1 convolutions that make the parameters of a law of its features."""

    def __init__(self, body: Plain | Gated, hidden: int, outputs: int, groups: int = 1, classes: int = 0) -> None:
        super().__init__()
        self.body = body
        self.head = MaskedConv2d(body.features, hidden, 1, "B", groups)
        self.output = MaskedConv2d(hidden, outputs, 1, "B", groups)
        self.classes = nn.Parameter(torch.zeros(classes, *body.conditions)) if classes else None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Values (B, C, H, W) and, with classes, labels (B,), to outputs (B, outputs, H, W)."""
        features = self.body(x, self.bias(condition)).relu()
        return self.output(self.head(features).relu())

    def bias(self, labels: Tensor | None) -> Tensor | None:
        """What classes add to each layer: (B, layers, ...)."""
        return None if self.classes is None or labels is None else self.classes[labels]

    def parameters_in_order(self) -> list[Tensor]:
        """Weights and biases as the samplers take them."""
        return [t for taps in (*self.body.parts(), _taps(self.head), _taps(self.output)) for t in taps]
