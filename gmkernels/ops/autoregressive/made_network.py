"""What a MADE is, as its inversion takes it: widths, the shapes of its parameters in their order, and who sees whom.

Units of a hidden layer, and inputs, come in ascending order of degree. Inputs have the degrees 1 to D. A hidden unit sees what has
its degree or less; an output of degree m sees hidden units of less. So what one unit sees is always the first few of
the layer before, and ``seen`` says how many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ACTIVATIONS = ("relu", "tanh")


class Made(NamedTuple):
    """Sizes of a MADE with one log-scale and one shift for each feature.

    Args:
        features: D.
        widths: of the hidden layers; with ``residual``, of the stream and then of the inside of each block.
        residual: blocks ``h + W2 act(W1 act(h))`` instead of layers ``W act(h)``.
    """

    features: int
    widths: tuple[int, ...]
    residual: bool

    def links(self) -> Iterator[tuple[int, int]]:
        """(from, to) of each linear layer, as places in ``widths``; -1 is the input, and ``len(widths)`` the output."""
        last = len(self.widths)
        if self.residual:
            yield -1, 0
            for inner in range(1, last):
                yield 0, inner
                yield inner, 0
            yield 0, last
        else:
            yield from ((i - 1, i) for i in range(last + 1))

    def _width(self, place: int) -> int:
        return self.features if place < 0 else self.widths[place] if place < len(self.widths) else 2 * self.features

    def shapes(self) -> list[tuple[int, int]]:
        """Of the weights; each has a bias after it."""
        return [(self._width(to), self._width(start)) for start, to in self.links()]

    def split(self, flat: Tensor) -> list[Tensor]:
        """Weights and biases in turn, out of one flat tensor."""
        sizes = [size for out, into in self.shapes() for size in (out * into, out)]
        parts = list(flat.split(sizes))
        parts[::2] = [part.view(shape) for part, shape in zip(parts[::2], self.shapes(), strict=True)]
        return parts

    def seen(self, degrees: Tensor) -> list[Tensor]:
        """For each linear layer, how many of its inputs each of its outputs sees.

        Args:
            degrees: of the hidden units, all in one; ascending in each layer.
        """
        features = torch.arange(1, self.features + 1, device=degrees.device)
        layers = degrees.split(self.widths)
        found = []
        for start, to in self.links():
            before = features if start < 0 else layers[start]
            output = to == len(self.widths)
            limit = features.repeat(2) if output else layers[to]
            found.append(torch.searchsorted(before.contiguous(), limit.contiguous(), right=not output))
        return found


def infer(features: int, hidden: Sequence[Tensor], residual: bool) -> Made:
    return Made(features, tuple(d.shape[0] for d in hidden), residual)
