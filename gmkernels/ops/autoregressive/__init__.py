"""Sampling of PixelCNN and Gated PixelCNN networks, every activation computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import library, validation
from .made import made_inverse
from .wavenet import wavenet_sample

__all__ = ["gated_pixelcnn_sample", "made_inverse", "pixelcnn_sample", "wavenet_sample"]

OnRow = Callable[[int, Tensor], object]


def pixelcnn_sample(
    parameters: Sequence[Tensor],
    shape: Sequence[int],
    *,
    key: Tensor,
    head: str = "bernoulli",
    levels: int = 2,
    value_range: tuple[float, float] = (0.0, 1.0),
    channel_groups: int = 1,
    x_init: Tensor | None = None,
    mask: Tensor | None = None,
    condition: Tensor | None = None,
    temperature: float = 1.0,
    first: int = 0,
    on_row: OnRow | None = None,
    backend: str = "auto",
) -> Tensor:
    """Draws images from a PixelCNN, pixel after pixel in raster order, in one call.

    The network (A. van den Oord et al., "Pixel recurrent neural networks", 2016, section 3 and figure 5) is a masked
    convolution A from the image to 2 h channels; residual blocks
    ``x + expand(relu(masked(relu(reduce(relu(x))))))`` of a 1x1 convolution 2 h -> h, a k x k masked convolution B and a
    1x1 convolution h -> 2 h; then relu, a 1x1 convolution ``head``, relu, and a 1x1 convolution ``output``. All are of
    the same size as the image, with zeros round it.

    Args:
        parameters: weight and bias in turn, float32 or float64, all finite: of ``first`` (2h, channels, k, k); of
            ``reduce`` (h, 2h, 1, 1), ``masked`` (h, h, k, k) and ``expand`` (2h, h, 1, 1) of every block; of ``head``
            (any, 2h, 1, 1) and ``output`` (outputs, any, 1, 1). Kernels are whole and of odd sizes; taps that a mask
            covers are never read.
        shape: (batch, channels, height, width) of the images.
        key: int64 tensor (2,) made by :func:`gmkernels.random.key`, on the device of the parameters.
        head: what the outputs of a pixel are.

            * ``"bernoulli"``: a logit for each channel, of two levels.
            * ``"categorical"``: ``levels`` logits for each channel.
            * ``"mixture"``: ``n`` discretised logistics (T. Salimans et al., "PixelCNN++", 2017). For one channel, n
              logits, n means, n log-scales. For three channels with ``channel_groups=1``, n logits, and then for each
              channel n means, n log-scales and n coefficients, of which the three rows are green by red, blue by red and
              blue by green, through tanh. Means and scales are in units where the levels spread over [-1, 1], and
              log-scales are -7 or more.

        levels: how many values a channel can take, 2 to 65536.
        value_range: what the network sees for level 0 and for the last; those between are spread evenly.
        channel_groups: 3 for colours one after another: channels of every layer are three equal consecutive groups, and
            at the centre tap a group sees itself (but for the first convolution) and the groups before it, also in
            1x1 convolutions. A pixel then takes three passes. With more than one channel, only ``"mixture"`` does without.
        x_init: integers of ``shape``, levels; read where ``mask`` is True.
        mask: bool, (height, width) or (batch, height, width). True holds a pixel, in all its channels, at ``x_init``. It
            has to be causal: no held pixel after a drawn one in raster order. The pixels before could not know of it, so
            what is drawn would not follow the law given what is held.
        condition: (batch, blocks, h) in the dtype of the parameters, finite: added to the result of ``masked`` of each
            block; a class condition, for example.
        temperature: more than 0. Logits are divided by it, scales of logistics are multiplied.
        first: logical number of the batch's first image, so that a batch cut in two draws the same as the whole. Images
            are numbered in 32 bits.
        on_row: called as ``on_row(row, images)`` after each row, with the levels so far (and 0 below). An exception ends
            the sampling. Not inside ``torch.compile``.
        backend: ``auto``, ``reference`` or ``cpu``. The reference runs the whole network for every pixel and channel
            group; the C++ core keeps a row cache for each layer, computes what comes from the rows above once a row, and
            every activation once. On a GPU ``auto`` does so in PyTorch operations.

    Returns:
        The levels, int64 of ``shape``.

    Randomness: two 32-bit words for each channel of each pixel, by its place in the image and the image's number (the
    layout is in ``reference.py``). A level is the number of cumulative probabilities at or below the uniform. The C++ core
    adds up every sum in one fixed order: its images do not depend on batch split, threads or instruction set.
    Between backends, a pixel may differ where the uniform comes within a rounding error of a cumulative probability, and
    then so may all that follow it.

    Not differentiable. On a GPU the values of ``x_init``, ``mask`` and the parameters are not looked at.

    Raises:
        TypeError: an argument has an unsupported type or dtype, or dtypes differ.
        ValueError: shapes, devices, kernels or groups do not fit, a level is out of range, the mask is not causal, a
            parameter is not finite, or another value is out of range.
        BackendError: an explicitly requested backend cannot run.
    """
    return _sample("pixelcnn_sample", False, parameters, shape, key, head, levels, value_range, channel_groups, x_init,
                   mask, condition, temperature, first, on_row, backend)  # fmt: skip


def gated_pixelcnn_sample(
    parameters: Sequence[Tensor],
    shape: Sequence[int],
    *,
    key: Tensor,
    head: str = "bernoulli",
    levels: int = 2,
    value_range: tuple[float, float] = (0.0, 1.0),
    channel_groups: int = 1,
    x_init: Tensor | None = None,
    mask: Tensor | None = None,
    condition: Tensor | None = None,
    temperature: float = 1.0,
    first: int = 0,
    on_row: OnRow | None = None,
    backend: str = "auto",
) -> Tensor:
    """Draws images from a Gated PixelCNN, pixel after pixel in raster order, in one call.

    The network (A. van den Oord et al., "Conditional image generation with PixelCNN decoders", 2016, equation 4 and
    figure 2) has two stacks of C channels. The vertical one, ``v``, begins with the image shifted down by a row, the
    horizontal one, ``s``, with the image. With ``gate(x) = tanh(x_1) * sigmoid(x_2)`` of the halves of x, a layer is

    ``p = vertical(v)``, ``v' = gate(p + condition_v)``,
    ``s' = residual(gate(horizontal(s) + link(p) + condition_h))``, plus ``s`` in all layers but the first.

    ``vertical`` reads rows r - k // 2 to r of ``v`` and k columns; ``horizontal`` the k // 2 pixels to the left and, but in the
    first layer, the pixel itself; ``link`` and ``residual`` are 1x1. Together they see all pixels before theirs and no
    other. Then relu, a 1x1 convolution ``head``, relu, and a 1x1 convolution ``output`` of the last ``s``.

    Args:
        parameters: weight and bias in turn, float32 or float64, all finite: of ``vertical`` (2C, C, k // 2 + 1, k),
            ``horizontal`` (2C, C, 1, k // 2 + 1), ``link`` (2C, 2C, 1, 1) and ``residual`` (C, C, 1, 1) of every layer, with the
            image's channels for the inputs of the first two of the first layer; of ``head`` (any, C, 1, 1) and ``output``
            (outputs, any, 1, 1). The last column of ``horizontal`` is the pixel itself; taps that a mask covers are
            never read.
        channel_groups: as for :func:`pixelcnn_sample`, for the horizontal stack and the head; each group of 2 C / 3 of
            what a gate takes is the group's two halves. The vertical stack and ``link`` mix all groups.
        condition: (batch, layers, 4C): for each layer the 2 C numbers of ``condition_v`` and then those of ``condition_h``.

    Everything else is as for :func:`pixelcnn_sample`.
    """
    return _sample("gated_pixelcnn_sample", True, parameters, shape, key, head, levels, value_range, channel_groups,
                   x_init, mask, condition, temperature, first, on_row, backend)  # fmt: skip


def _sample(
    op: str,
    gated: bool,
    parameters: Sequence[Tensor],
    shape: Sequence[int],
    key: Tensor,
    head: str,
    levels: int,
    value_range: tuple[float, float],
    channel_groups: int,
    x_init: Tensor | None,
    mask: Tensor | None,
    condition: Tensor | None,
    temperature: float,
    first: int,
    on_row: OnRow | None,
    backend: str,
) -> Tensor:
    net = validation.network(op, gated, parameters, shape, head, levels, channel_groups)
    validation.sampling(op, parameters, net, shape, key, first, temperature, condition)
    validation.start(op, x_init, mask, shape, levels, key)
    values = torch.linspace(*value_range, levels, dtype=torch.float64).to(parameters[0])
    flat = torch.cat([t.detach().reshape(-1) for t in parameters])
    given = (
        flat, values, key, None if x_init is None else x_init.long(), mask,
        None if condition is None else condition.detach(), list(shape), net.numbers, float(temperature), first,
    )  # fmt: skip
    return library.sample(op, given, on_row, backend)
