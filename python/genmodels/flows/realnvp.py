"""RealNVP: affine couplings, for vectors and for images (Dinh et al., "Density estimation using Real NVP", 2017)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import gmkernels as gmk

from .conditioners import MLP, ResNet
from .flow import Flow
from .fronts import front
from .transforms import BatchNorm, Chain, FactorOut, Flatten, Linear, Permute, Squeeze


class RealNVP(Flow):
    """A stack of affine couplings.

    For vectors (one number in ``shape``) couplings alternate between the two halves of the features, which are
    permuted between pairs of couplings if there are more than two, or with ``linear`` go through a learned matrix. For
    images they follow section 3.6 of the paper: at each scale couplings with checkerboard masks, a squeeze, couplings of
    channel halves, and half of the channels become latents; the last scale has ``couplings + 1`` checkerboard couplings
    only.

    Args:
        shape: of one sample: (D,) or (C, H, W), H and W divisible by ``2 ** (len(widths) - 1)``.
        levels: the integer levels of the samples (256 for 8-bit images), or None for real values.
        alpha: of the logit transform that takes (0, 1) to the line; used with ``levels`` only. The paper's 0.05
            keeps logits within +-3.
        equalise: :class:`Equalise` integer samples in place of the logit.
        whiten: start a vector (or with ``flat`` an image) from the Gaussian of the data's covariance (:class:`Whiten`).
        couplings: couplings of a vector; of an image, couplings of each kind and scale.
        hidden, depth, dropout: width and number of hidden layers of a vector's conditioners, and their dropout.
        widths: channels of an image's conditioners, one number a scale.
        blocks: residual blocks of an image's conditioners.
        linear: let a vector go through a learned matrix after every second coupling.
        tail: couplings of a vector that follow the last scale of an image; they see all of it at once.
        flat: treat an image as a vector of pixels.
        scale_map, clamp: of ``gmkernels.affine_coupling``.
        contexts: length of a context vector that conditions every coupling; 0 for none.
        batch_norm: normalise after every coupling, by the batch's statistics in training (section 3.7 of the paper).
        reversible: restore activations in backward instead of keeping them: memory in training hardly grows with the
            number of couplings, and a step takes about a third longer.
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        *,
        levels: int | None = None,
        alpha: float = 0.05,
        equalise: bool = False,
        whiten: bool = False,
        couplings: int = 3,
        hidden: int = 128,
        depth: int = 2,
        widths: Sequence[int] = (16, 32, 64),
        blocks: int = 1,
        linear: bool = False,
        tail: int = 0,
        flat: bool = False,
        scale_map: str = "tanh",
        clamp: float | None = None,
        dropout: float = 0.0,
        contexts: int = 0,
        batch_norm: bool = False,
        reversible: bool = False,
    ) -> None:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if len(shape) not in (1, 3):
            raise ValueError(f"RealNVP: shape must be (D,) or (C, H, W), got {shape}")

        def coupling(features: int, conditioner: nn.Module, **parts: Any) -> list[nn.Module]:
            layer = gmk.nn.AffineCoupling(conditioner, scale_map=scale_map, clamp=clamp, **parts)
            return [layer, BatchNorm(features)] if batch_norm else [layer]

        chain = functools.partial(Chain, reversible=reversible)
        if whiten and not flat and len(shape) > 1:
            raise ValueError("RealNVP: whiten needs vectors: give flat=True with it for images")
        steps = front(shape, levels, alpha, equalise, whiten)
        if len(shape) == 1 or flat:
            net = functools.partial(MLP, hidden=hidden, depth=depth, contexts=contexts, dropout=dropout)
            steps += [
                *([] if whiten else [Flatten(shape)]),
                *_vector_steps(math.prod(shape), couplings, coupling, net, linear),
            ]
        else:
            nets = [functools.partial(ResNet, width=width, blocks=blocks, contexts=contexts) for width in widths]
            net = functools.partial(MLP, hidden=hidden, depth=depth, contexts=contexts, dropout=dropout)
            last = functools.partial(_vector_steps, couplings=tail, coupling=coupling, net=net, linear=linear)
            steps += _image_steps(shape, couplings, coupling, nets, last, chain)
        super().__init__(chain(steps), shape, levels, contexts=contexts)


def _vector_steps(
    features: int,
    couplings: int,
    coupling: Callable[..., list[nn.Module]],
    net: Callable[[int, int], nn.Module],
    linear: bool,
) -> list[nn.Module]:
    if features < 2:
        raise ValueError(f"RealNVP: a vector needs at least 2 features, got {features}")
    half = features // 2
    steps: list[nn.Module] = []
    for i in range(couplings):
        if i and i % 2 == 0:
            if linear:
                steps.append(Linear(features, seed=i))
            elif features > 2:
                steps.append(Permute(features, seed=i))
        reads, split = (half, half) if i % 2 == 0 else (features - half, half - features)
        steps += coupling(features, net(reads, 2 * (features - reads)), split=split)
    return steps


def _image_steps(
    shape: tuple[int, ...],
    couplings: int,
    coupling: Callable[..., list[nn.Module]],
    nets: Sequence[Callable[[int, int], nn.Module]],
    tail: Callable[[int], list[nn.Module]],
    chain: Callable[[list[nn.Module]], Chain],
) -> list[nn.Module]:
    """One scale, and inside its last step the scales after it: one network maker each; after the last, ``tail``."""
    channels, height, width = shape
    net, *deeper = nets
    if deeper and (height % 2 or width % 2):
        raise ValueError(f"RealNVP: all scales but the last need an even size, got {height}x{width} at one of them")
    steps: list[nn.Module] = []
    for i in range(couplings + (not deeper)):
        steps += coupling(channels, net(channels, 2 * channels), mask=checkerboard(height, width, i % 2 == 0))
    if not deeper:
        return [*steps, Flatten(shape), *tail(math.prod(shape))]
    half = 2 * channels
    steps.append(Squeeze())
    for i in range(couplings):
        steps += coupling(2 * half, net(half, 2 * half), split=half if i % 2 == 0 else -half)
    inner = _image_steps((half, height // 2, width // 2), couplings, coupling, deeper, tail, chain)
    return [*steps, FactorOut((4 * channels, height // 2, width // 2), chain(inner))]


def checkerboard(height: int, width: int, even: bool) -> Tensor:
    """Bool (1, height, width): True where row + column is even (or odd)."""
    parity = (torch.arange(height)[:, None] + torch.arange(width)) % 2
    return (parity == (0 if even else 1))[None]
