"""The definition of WaveNet sampling: the whole network over all samples so far, for every sample. Plain PyTorch.

The network is that of A. van den Oord et al., "WaveNet: a generative model for raw audio" (2016), section 2 and figures 3
and 4. A draw uses words 0 and 1 of the Philox counter ``(time, 0, number of the sample, low word of the offset)``, as in
``reference.py``: word 0 a level or the component of a mixture, word 1 the mixture's value; both the number of a Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv1d, one_hot, pad, relu

from gmkernels.core.product import no_autocast

from . import reference
from .wavenet_network import HEADS, Stack

OnChunk = Callable[[int, Tensor], object]


def split(flat: Tensor, net: Stack) -> list[Tensor]:
    """The parameters out of one flat tensor."""
    parts, begin = [], 0
    for _, shape in net.parameters():
        count = torch.Size(shape).numel()
        parts.append(flat[begin : begin + count].view(shape))
        begin += count
    return parts


def seen(x: Tensor, net: Stack, values: Tensor) -> Tensor:
    """What the network sees of samples (B, T) before each of T + 1 times: (B, inputs, T + 1), zeros at the first."""
    if net.real:
        shown = x[:, None]
    elif net.inputs == 1:
        shown = values[x][:, None]
    else:
        shown = one_hot(x, net.levels).mT.to(values)
    return pad(shown, (1, 0))


def outputs(x: Tensor, net: Stack, parameters: Sequence[Tensor], condition: Tensor | None = None,
            local: Tensor | None = None, local_weight: Tensor | None = None) -> Tensor:  # fmt: skip
    """The network: (B, inputs, T) that ends one sample before, to (B, outputs, T)."""
    first, bias, *body, w1, b1, w2, b2 = parameters
    h = conv1d(pad(x, (net.first - 1, 0)), first, bias)
    total = h.new_zeros(())
    for i, d in enumerate(net.dilations):
        dilated, dilated_bias, mix, mix_bias = body[4 * i : 4 * i + 4]
        inner = conv1d(pad(h, ((net.kernel - 1) * d, 0)), dilated, dilated_bias, dilation=d)
        if condition is not None:
            inner = inner + condition[:, i, :, None]
        if local is not None and local_weight is not None:
            inner = inner + local_weight[i] @ local
        a, b = inner.chunk(2, 1)
        mixed = conv1d(torch.tanh(a) * torch.sigmoid(b), mix, mix_bias)
        total = total + mixed[:, -net.skip :]
        if i + 1 < net.layers:
            h = h + mixed[:, : net.residual]
    return conv1d(relu(conv1d(relu(total), w1, b1)), w2, b2)


def normal(word: tuple[Tensor, Tensor]) -> Tensor:
    """A standard normal number in float64 out of two words (G. E. P. Box and M. E. Muller, 1958)."""
    return torch.sqrt(-2.0 * torch.log(reference.uniform(word[0]))) * torch.cos(
        2.0 * math.pi * reference.uniform(word[1])
    )


def draw(found: Tensor, net: Stack, word: tuple[Tensor, Tensor], temperature: float) -> Tensor:
    """Samples (B,) out of outputs (B, outputs) and words (B,) each."""
    if HEADS[net.head] == "categorical":
        return reference.categorical(found, word[0], temperature)
    if HEADS[net.head] == "mixture":
        each = (word[0][:, None], word[1][:, None])
        return reference.mixture(found, net.levels, each, temperature)[:, 0]
    mean, log_scale = found.double().unbind(1)
    scale = temperature * torch.exp(log_scale.clamp(min=reference.LEAST_LOG_SCALE))
    return (mean + scale * normal(word)).to(found.dtype)


def words(key: Tensor, batch: int, first: int, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """The words of times ``begin`` to ``end``, both (batch, times)."""
    numbers = torch.arange(batch, device=key.device) + first
    times = torch.arange(begin, end, device=key.device)
    choice, value = reference.words(key, numbers, times.new_zeros(1), times)
    return choice[:, 0], value[:, 0]


def begun(net: Stack, parameters: Tensor, x_init: Tensor | None, shape: Sequence[int]) -> tuple[Tensor, int]:
    """Samples (batch, time), of which the first are given, and how many."""
    x = parameters.new_zeros(tuple(shape), dtype=parameters.dtype if net.real else torch.int64)
    held = 0 if x_init is None else x_init.shape[1]
    if x_init is not None:
        x[:, :held] = x_init
    return x, held


def wavenet_sample(
    parameters: Tensor,
    values: Tensor,
    key: Tensor,
    x_init: Tensor | None,
    condition: Tensor | None,
    local: Tensor | None,
    local_weight: Tensor | None,
    shape: Sequence[int],
    network: Sequence[int],
    temperature: float = 1.0,
    first: int = 0,
    on_chunk: OnChunk | None = None,
    chunk: int = 1024,
) -> Tensor:
    net = Stack.of(network)
    parts = split(parameters, net)
    batch, time = shape
    x, held = begun(net, parameters, x_init, shape)
    if not batch:
        return x
    for t in range(time):
        if t >= held:
            here = None if local is None else local[:, :, : t + 1]
            with no_autocast(x):
                found = outputs(seen(x[:, :t], net, values), net, parts, condition, here, local_weight)[:, :, t]
            choice, value = words(key, batch, first, t, t + 1)
            x[:, t] = draw(found, net, (choice[:, 0], value[:, 0]), temperature)
        if on_chunk is not None and ((t + 1) % chunk == 0 or t + 1 == time):
            on_chunk(begin := t // chunk * chunk, x[:, begin : t + 1].clone())
    return x
