"""RealNVP: affine couplings, for vectors and for images (Dinh et al., "Density estimation using Real NVP", 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import gmkernels as gmk
import torch
from torch import Tensor

from .conditioners import MLP, ResNet
from .flow import Flow
from .transforms import Chain, FactorOut, Flatten, Logit, Permute, Squeeze, Standardise, Transform


class RealNVP(Flow):
    """A stack of affine couplings.

    For vectors (one number in ``shape``) couplings alternate between the two halves of the features, which are
    permuted in between if there are more than two. For images they follow section 3.6 of the paper: at each scale
    couplings with checkerboard masks, a squeeze, couplings of channel halves, and half of the channels become latents;
    the last scale has ``couplings + 1`` checkerboard couplings only.

    Args:
        shape: of one sample: (D,) or (C, H, W), H and W divisible by ``2 ** (len(widths) - 1)``.
        levels: the integer levels of the samples (256 for 8-bit images), or None for real values.
        alpha: of the logit transform that takes (0, 1) to the line; used with ``levels`` only. The paper's 0.05
            keeps logits within +-3.
        couplings: couplings of a vector; of an image, couplings of each kind and scale.
        hidden, depth, dropout: width and number of hidden layers of a vector's conditioners, and their dropout.
        widths: channels of an image's conditioners, one number a scale.
        blocks: residual blocks of an image's conditioners.
        flat: treat an image as a vector of pixels.
        scale_map, clamp: of ``gmkernels.affine_coupling``.
        contexts: length of a context vector that conditions every coupling; 0 for none.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        *,
        levels: int | None = None,
        alpha: float = 0.05,
        couplings: int = 3,
        hidden: int = 128,
        depth: int = 2,
        widths: Sequence[int] = (16, 32, 64),
        blocks: int = 1,
        flat: bool = False,
        scale_map: str = "tanh",
        clamp: float | None = None,
        dropout: float = 0.0,
        contexts: int = 0,
    ) -> None:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self._map = {"scale_map": scale_map, "clamp": clamp}
        before: list[Transform] = [] if levels is None else [Logit(alpha)]
        if len(shape) == 1 or flat:
            if len(shape) > 1:
                before.append(Flatten(shape))
            body = self._vector(math.prod(shape), couplings, hidden, depth, contexts, dropout)
        elif len(shape) == 3:
            body = self._image(shape, couplings, list(widths), blocks, contexts)
        else:
            raise ValueError(f"RealNVP: shape must be (D,) or (C, H, W), got {shape}")
        standardise = Standardise(shape if not (len(shape) > 1 and flat) else (math.prod(shape),))
        super().__init__(Chain([*before, standardise, body]), shape, levels)

    def _vector(self, features: int, couplings: int, hidden: int, depth: int, contexts: int, dropout: float) -> Chain:
        if features < 2:
            raise ValueError(f"RealNVP: a vector needs at least 2 features, got {features}")
        half = features // 2
        steps: list[torch.nn.Module] = []
        for i in range(couplings):
            if features > 2 and i and i % 2 == 0:
                steps.append(Permute(features, seed=i))
            conditioning, split = (half, half) if i % 2 == 0 else (features - half, half - features)
            net = MLP(conditioning, 2 * (features - conditioning), hidden, depth, contexts, dropout)
            steps.append(gmk.nn.AffineCoupling(net, split=split, **self._map))
        return Chain(steps)

    def _image(
        self, shape: tuple[int, ...], couplings: int, widths: list[int], blocks: int, contexts: int
    ) -> Transform:
        channels, height, width = shape
        last = len(widths) == 1
        if not last and (height % 2 or width % 2):
            raise ValueError(f"RealNVP: {len(widths)} scales need an even size at all but the last, got {height}x{width}")
        steps: list[torch.nn.Module] = []
        for i in range(couplings + last):
            net = ResNet(channels, 2 * channels, widths[0], blocks, contexts)
            steps.append(gmk.nn.AffineCoupling(net, mask=checkerboard(height, width, i % 2 == 0), **self._map))
        if last:
            return Chain([*steps, Flatten(shape)])
        squeezed = (4 * channels, height // 2, width // 2)
        half = 2 * channels
        steps.append(Squeeze())
        for i in range(couplings):
            net = ResNet(half, 2 * half, widths[0], blocks, contexts)
            steps.append(gmk.nn.AffineCoupling(net, split=half if i % 2 == 0 else -half, **self._map))
        inner = self._image((half, *squeezed[1:]), couplings, widths[1:], blocks, contexts)
        return Chain([*steps, FactorOut(squeezed, inner)])

    @torch.no_grad()
    def initialise(self, x: Tensor, *, key: Tensor | int | None = 0) -> None:
        """Set the first scale and shift so that the transformed ``x`` (a sample of the data) has mean 0, deviation 1."""
        x = x.to(self.device)
        x = x if x.is_floating_point() else self.dequantise(x, key)
        assert isinstance(self.transform, Chain)
        for step in self.transform.steps:
            if isinstance(step, Standardise):
                step.initialise(x)
                return
            x = step(x)[0]


def checkerboard(height: int, width: int, even: bool) -> Tensor:
    """Bool (1, height, width): True where row + column is even (or odd)."""
    parity = (torch.arange(height)[:, None] + torch.arange(width)) % 2
    return (parity == (0 if even else 1))[None]
