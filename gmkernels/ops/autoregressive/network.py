"""What a network is, as the sampler takes it: sizes, and the shapes of its parameters in their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

HEADS = ("bernoulli", "categorical", "mixture")


class Network(NamedTuple):
    """A PixelCNN or Gated PixelCNN.

    Args:
        gated: which of the two.
        channels: of the image.
        groups: passes a pixel takes: 1, or one a channel.
        width: h of a PixelCNN, whose residual stream has 2 h channels; C of a Gated PixelCNN.
        hidden: channels between the last two 1x1 convolutions.
        outputs: channels of the last one.
        head: place of the output's kind in ``HEADS``.
        levels: values a pixel can have.
        kernels: sizes of the first convolution and of one in each block; or of each layer.
    """

    gated: bool
    channels: int
    groups: int
    width: int
    hidden: int
    outputs: int
    head: int
    levels: int
    kernels: tuple[int, ...]

    @classmethod
    def of(cls, numbers: Sequence[int]) -> Network:
        gated, channels, groups, width, hidden, outputs, head, levels, *kernels = numbers
        return cls(bool(gated), channels, groups, width, hidden, outputs, head, levels, tuple(kernels))

    @property
    def numbers(self) -> list[int]:
        return [int(self.gated), *self[1:8], *self.kernels]

    @property
    def layers(self) -> int:
        """Layers, or residual blocks, that a class condition reaches."""
        return len(self.kernels) - (not self.gated)

    @property
    def condition_width(self) -> int:
        return 4 * self.width if self.gated else self.width

    def parameters(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the parameters in order."""
        for name, shape in self._gated() if self.gated else self._plain():
            yield f"{name}.weight", shape
            yield f"{name}.bias", shape[:1]

    def _plain(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        h, first = self.width, self.kernels[0]
        yield "first", (2 * h, self.channels, first, first)
        for i, k in enumerate(self.kernels[1:]):
            yield f"blocks[{i}].reduce", (h, 2 * h, 1, 1)
            yield f"blocks[{i}].masked", (h, h, k, k)
            yield f"blocks[{i}].expand", (2 * h, h, 1, 1)
        yield from self._head(2 * h)

    def _gated(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        c, before = self.width, self.channels
        for i, k in enumerate(self.kernels):
            yield f"layers[{i}].vertical", (2 * c, before, k // 2 + 1, k)
            yield f"layers[{i}].horizontal", (2 * c, before, 1, k // 2 + 1)
            yield f"layers[{i}].link", (2 * c, 2 * c, 1, 1)
            yield f"layers[{i}].residual", (c, c, 1, 1)
            before = c
        yield from self._head(c)

    def _head(self, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "head", (self.hidden, width, 1, 1)
        yield "output", (self.outputs, self.hidden, 1, 1)


def infer(gated: bool, parameters: Sequence[Tensor], channels: int, groups: int, head: int, levels: int) -> Network:
    """The network that parameters of the right number and of at least one dimension speak of, right or wrong."""
    per_layer = 8 if gated else 6
    start = 0 if gated else 2
    spatial = range(0, len(parameters) - 4, per_layer) if gated else (0, *range(4, len(parameters) - 4, per_layer))
    assert (len(parameters) - start - 4) % per_layer == 0
    return Network(
        gated, channels, groups, parameters[0].shape[0] // 2, parameters[-4].shape[0], parameters[-2].shape[0], head,
        levels, tuple(parameters[i].shape[-1] for i in spatial),
    )  # fmt: skip
