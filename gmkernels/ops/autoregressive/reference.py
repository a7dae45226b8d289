"""The definition of autoregressive sampling: the whole network, over the whole image, for every pixel. Plain PyTorch.

The networks are the PixelCNN of A. van den Oord, N. Kalchbrenner and K. Kavukcuoglu, "Pixel recurrent neural networks"
(ICML 2016), section 3 and figure 5, and the Gated PixelCNN of A. van den Oord et al., "Conditional image generation with
PixelCNN decoders" (NIPS 2016), equation 4 and figure 2.

Random numbers. The draw of a channel of a pixel uses words 0 and 1 of the Philox counter ``(row * width + column, channel,
sample, low word of the offset)``, 32 bits each, under the key ``(low word of the seed, high word of the seed + high word
of the offset)``: word 0 chooses a level, or a component of a mixture (that of channel 0, where one choice serves all
channels), word 1 the value of a mixture. ``u = (word + 1/2) / 2**32``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad, relu

from gmkernels.core import philox

from .network import HEADS, Network

LEAST_LOG_SCALE = -7.0
_MASK = 0xFFFFFFFF


# ---- the network -----------------------------------------------------------------------------------------------------


def split(flat: Tensor, net: Network) -> list[Tensor]:
    """The parameters out of one flat tensor."""
    parts, start = [], 0
    for _, shape in net.parameters():
        count = torch.Size(shape).numel()
        parts.append(flat[start : start + count].view(shape))
        start += count
    return parts


def allowed(weight: Tensor, groups: int, kind: str) -> Tensor:
    """1 at the taps that a masked convolution reads, 0 elsewhere. A kernel of one row ends at its centre tap."""
    out, into, rows, columns = weight.shape
    here = (rows // 2, columns // 2 if rows == columns else columns - 1)
    output_group = torch.arange(out, device=weight.device)[:, None] * groups // max(out, 1)
    input_group = torch.arange(into, device=weight.device) * groups // max(into, 1)
    mask = torch.ones_like(weight)
    mask[:, :, here[0], here[1]] = (input_group < output_group if kind == "A" else input_group <= output_group).to(mask)
    mask[:, :, here[0], here[1] + 1 :] = 0
    mask[:, :, here[0] + 1 :] = 0
    return mask


def masked(x: Tensor, weight: Tensor, bias: Tensor, groups: int, kind: str = "B") -> Tensor:
    rows, columns = weight.shape[2:]
    across = columns // 2 if rows == columns else columns - 1
    room = (across, across if rows == columns else 0, rows // 2, rows // 2)
    return conv2d(pad(x, room), weight * allowed(weight, groups, kind), bias)


def gate(x: Tensor, groups: int, condition: Tensor | None) -> Tensor:
    """``tanh(a) * sigmoid(b)``; in each group of channels ``a`` comes before ``b``."""
    if condition is not None:
        x = x + condition[:, :, None, None]
    a, b = x.unflatten(1, (groups, 2, -1)).unbind(2)
    return (torch.tanh(a) * torch.sigmoid(b)).flatten(1, 2)


def _plain(x: Tensor, net: Network, parameters: Sequence[Tensor], condition: Tensor | None) -> Tensor:
    g = net.groups
    x = masked(x, parameters[0], parameters[1], g, "A")
    for i in range(net.layers):
        w1, b1, w2, b2, w3, b3 = parameters[2 + 6 * i : 8 + 6 * i]
        inner = masked(relu(masked(relu(x), w1, b1, g)), w2, b2, g)
        if condition is not None:
            inner = inner + condition[:, i, :, None, None]
        x = x + masked(relu(inner), w3, b3, g)
    return x


def _gated(x: Tensor, net: Network, parameters: Sequence[Tensor], condition: Tensor | None) -> Tensor:
    g, width = net.groups, net.width
    across, down = x, pad(x, (0, 0, 1, 0))[:, :, : x.shape[2]]  # the vertical stack sees the rows above
    for i, k in enumerate(net.kernels):
        wv, bv, wh, bh, wl, bl, wr, br = parameters[8 * i : 8 * i + 8]
        by_v, by_h = (None, None) if condition is None else condition[:, i].split(2 * width, 1)
        vertical = conv2d(pad(down, (k // 2, k // 2, k // 2, 0)), wv, bv)
        horizontal = masked(across, wh, bh, g, "B" if i else "A") + conv2d(vertical, wl, bl)
        down = gate(vertical, g, by_v)
        residual = masked(gate(horizontal, g, by_h), wr, br, g)
        across = across + residual if i else residual
    return across


def outputs(x: Tensor, net: Network, parameters: Sequence[Tensor], condition: Tensor | None) -> Tensor:
    """The network: what the levels of each pixel are drawn from, for an image of input values."""
    x = (_gated if net.gated else _plain)(x, net, parameters, condition)
    w1, b1, w2, b2 = parameters[-4:]
    return masked(relu(masked(relu(x), w1, b1, net.groups)), w2, b2, net.groups)


# ---- draws -----------------------------------------------------------------------------------------------------------


def words(key: Tensor, samples: Tensor, channels: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Words 0 and 1 of the draws, both int64 (samples, channels, pixels)."""
    (seed, seed_high), (offset, offset_high) = philox.split(key[0]), philox.split(key[1])
    p, c, s = torch.broadcast_tensors(pixels, channels[:, None], samples[:, None, None])
    found = philox.philox4x32((p, c, s, offset.expand_as(p)), (seed, seed_high + offset_high & _MASK))
    return found[0], found[1]


def uniform(word: Tensor) -> Tensor:
    return (word.double() + 0.5) * 2.0**-32


def cumulative(logits: Tensor, temperature: float) -> Tensor:
    """The running sums of exp((logits - largest) / temperature) over the last dimension, in float64."""
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature
    return torch.exp(scaled).double().cumsum(-1)


def categorical(logits: Tensor, word: Tensor, temperature: float) -> Tensor:
    """How many of the cumulative probabilities lie at or below u; (..., levels) and (...) to (...)."""
    sums = cumulative(logits, temperature)
    return (sums[..., :-1] <= (uniform(word) * sums[..., -1])[..., None]).sum(-1)


def bernoulli(logits: Tensor, word: Tensor, temperature: float) -> Tensor:
    """1 where ``word < floor(2**32 sigmoid(logits / temperature))``; a probability next to 1 keeps its digits."""
    field = logits.double() / temperature
    likely = field >= 0
    e = torch.exp(-field.abs())
    rare = (torch.where(likely, _MASK - word, word) + 1).double() * (1.0 + e) <= e * 2.0**32
    return (rare != likely).long()


def logistic(mean: Tensor, log_scale: Tensor, word: Tensor, temperature: float) -> Tensor:
    """A quantile of the logistic distribution, float64."""
    u = torch.log((word.double() + 0.5) / ((_MASK - word).double() + 0.5))
    return mean + temperature * torch.exp(log_scale.clamp(min=LEAST_LOG_SCALE)) * u


def level(quantile: Tensor, levels: int) -> Tensor:
    """The level whose interval holds a quantile; levels are spread evenly over [-1, 1], and the outer two go on."""
    place = torch.ceil((quantile + 1.0) * (0.5 * (levels - 1)) - 0.5)
    return place.nan_to_num(0.0).clamp(0, levels - 1).long()


def mixture(found: Tensor, count: int, word: tuple[Tensor, Tensor], temperature: float) -> Tensor:
    """(M, outputs) and words (M, channels) to levels (M, channels) of ``count``, channel after channel.

    T. Salimans et al., "PixelCNN++" (ICLR 2017), equations 2 and 3: means of later channels depend linearly on the
    channels before them.
    """
    several = word[0].shape[1] > 1
    components = found.shape[1] // (1 + 3 * word[0].shape[1] if several else 3)
    chosen = categorical(found[:, :components], word[0][:, 0], temperature)[:, None, None]
    rest = found[:, components:].unflatten(1, (word[0].shape[1], -1, components)).double()
    mean, log_scale, *more = rest.gather(3, chosen[..., None].expand(*rest.shape[:3], 1)).squeeze(3).unbind(2)
    slope = torch.tanh(more[0]) if several else mean
    levels: list[Tensor] = []
    for c in range(word[0].shape[1]):
        centre = mean[:, c]
        for before, place in zip(levels, range(c * (c - 1) // 2, c * (c + 1) // 2), strict=True):
            centre = centre + slope[:, place] * (before.double() * (2.0 / (count - 1)) - 1.0)
        levels.append(level(logistic(centre, log_scale[:, c], word[1][:, c], temperature), count))
    return torch.stack(levels, 1)


def draw(found: Tensor, net: Network, word: tuple[Tensor, Tensor], temperature: float) -> Tensor:
    """Levels (M, C) of the C channels that a pass draws, from its outputs (M, ...) and words (M, C) each."""
    if HEADS[net.head] == "bernoulli":
        return bernoulli(found, word[0], temperature)
    if HEADS[net.head] == "categorical":
        return categorical(found, word[0][:, 0], temperature)[:, None]
    return mixture(found, net.levels, word, temperature)


# ---- the loop --------------------------------------------------------------------------------------------------------


def pixelcnn_sample(
    parameters: Tensor,
    values: Tensor,
    key: Tensor,
    x_init: Tensor | None,
    mask: Tensor | None,
    condition: Tensor | None,
    shape: Sequence[int],
    network: Sequence[int],
    temperature: float = 1.0,
    first: int = 0,
    on_row: Callable[[int, Tensor], object] | None = None,
) -> Tensor:
    net = Network.of(network)
    parts = split(parameters, net)
    batch, channels, height, width = shape
    image = torch.zeros(tuple(shape), dtype=torch.int64, device=key.device)
    held = torch.zeros((batch, height, width), dtype=torch.bool, device=key.device)
    if mask is not None and x_init is not None:
        held = mask.expand(batch, height, width)
        image.copy_(torch.where(held[:, None], x_init, image))
    samples = torch.arange(batch, device=key.device) + first
    every = torch.arange(channels, device=key.device)
    for pixel in range(height * width if batch else 0):
        row, column = pixel // width, pixel % width  # what the compiler traces; it knows no divmod
        for group, drawn in enumerate(every.chunk(net.groups)):
            found = outputs(values[image], net, parts, condition)[:, :, row, column].chunk(net.groups, 1)[group]
            word = words(key, samples, drawn, every.new_tensor([pixel]))
            fresh = draw(found, net, (word[0][:, :, 0], word[1][:, :, 0]), temperature)
            kept = image[:, drawn, row, column]
            image[:, drawn, row, column] = torch.where(held[:, row, column, None], kept, fresh)
        if on_row is not None and column == width - 1:
            on_row(row, image.clone())
    return image
