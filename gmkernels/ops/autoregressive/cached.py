"""The sampler with row caches in plain PyTorch, for devices without a kernel: what the rows above give is computed a row
at a time, and of a pixel only what changed. A pixel takes five to eight operations a layer, whatever the image's size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from . import reference
from .network import Network


def _here(weight: Tensor, groups: int, kind: str = "B") -> Tensor:
    """The taps of a pixel's own row, up to it, as a matrix (taps * inputs, outputs)."""
    rows, columns = weight.shape[2:]
    taps = (weight * reference.allowed(weight, groups, kind))[:, :, rows // 2]
    last = columns // 2 if rows == columns else columns - 1
    return taps[:, :, : last + 1].permute(2, 1, 0).flatten(0, 1).contiguous()


class _Rows:
    """The rows of an activation that a kernel looks back on, and views of the last one: the pixels, and the windows
    that end with them."""

    def __init__(self, like: Tensor, batch: int, width: int, channels: int, beside: int, above: int) -> None:
        self.rows = like.new_zeros(batch, above + 1, width + 2 * beside, channels)
        last = self.rows[:, -1]
        self.pixels = [last[:, beside + x] for x in range(width)]
        self.windows = [last[:, x : x + beside + 1].flatten(1) for x in range(width)]

    def shift(self) -> None:
        self.rows[:, :-1] = self.rows[:, 1:].clone()

    def convolve(self, weight: Tensor, bias: Tensor) -> Tensor:
        """(batch, outputs, 1, width) of the first rows, as many as the kernel has."""
        return conv2d(self.rows[:, : weight.shape[2]].permute(0, 3, 1, 2), weight, bias)


class _Masked:
    def __init__(self, weight: Tensor, bias: Tensor, kind: str, batch: int, width: int, groups: int) -> None:
        outputs, inputs, kernel, _ = weight.shape
        self.rows = _Rows(weight, batch, width, inputs, kernel // 2, kernel // 2)
        self.above, self.bias, self.here = weight[:, :, : kernel // 2], bias, _here(weight, groups, kind)
        self.ahead = weight.new_empty(batch, width, outputs)
        self.starts = self.ahead.unbind(1)

    def begin_row(self, condition: Tensor | None) -> None:
        self.rows.shift()
        if self.above.shape[2]:
            self.ahead.copy_(self.rows.convolve(self.above, self.bias)[:, :, 0].mT)
        else:
            self.ahead.copy_(self.bias)
        if condition is not None:
            self.ahead += condition[:, None]

    def at(self, x: int) -> Tensor:
        return torch.addmm(self.starts[x], self.rows.windows[x], self.here)


class _Plain:
    def __init__(self, net: Network, parts: Sequence[Tensor], condition: Tensor | None, batch: int, width: int) -> None:
        g = net.groups
        self.condition = condition
        self.first = _Masked(parts[0], parts[1], "A", batch, width, g)
        self.blocks = []
        self.middle = parts[0].new_ones(batch, net.width + 1)  # the last column multiplies a bias
        for i in range(net.layers):
            w1, b1, w2, b2, w3, b3 = parts[2 + 6 * i : 8 + 6 * i]
            expand = torch.cat((_here(w3, g), b3[None]))
            self.blocks.append((_here(w1, g), b1, _Masked(w2, b2, "B", batch, width, g), expand))

    def begin_row(self) -> None:
        self.first.begin_row(None)
        for i, (_, _, masked, _) in enumerate(self.blocks):
            masked.begin_row(None if self.condition is None else self.condition[:, i])

    def put(self, x: int, values: Tensor) -> None:
        self.first.rows.pixels[x].copy_(values)

    def pixel(self, x: int) -> Tensor:
        middle = self.middle[:, :-1]
        stream = self.first.at(x)
        for reduce, bias, masked, expand in self.blocks:
            torch.clamp_min(torch.addmm(bias, stream.relu(), reduce), 0, out=masked.rows.pixels[x])
            torch.clamp_min(masked.at(x), 0, out=middle)
            stream.addmm_(self.middle, expand)
        return stream


class _GatedLayer:
    def __init__(self, parts: Sequence[Tensor], first: bool, condition: Tensor | None, batch: int, width: int,
                 groups: int) -> None:  # fmt: skip
        self.vertical, self.vertical_bias, horizontal, bias, self.link, link_bias, residual, self.bias = parts
        inputs, kernel = self.vertical.shape[1], self.vertical.shape[3]
        self.down = _Rows(self.vertical, batch, width, inputs, kernel // 2, kernel // 2)
        self.across = _Rows(self.vertical, batch, width, inputs, kernel // 2, 0)
        self.horizontal, self.residual = _here(horizontal, groups, "A" if first else "B"), _here(residual, groups)
        self.link_bias = bias + link_bias
        self.by_v = None if condition is None else condition[:, : condition.shape[1] // 2]
        self.by_h = None if condition is None else condition[:, condition.shape[1] // 2 :]
        self.groups, self.first = groups, first
        self.ahead = self.vertical.new_empty(batch, width, self.vertical.shape[0])
        self.starts = self.ahead.unbind(1)

    def begin_row(self) -> Tensor:
        """The next layer's row of the vertical stack."""
        found = self.down.convolve(self.vertical, self.vertical_bias)
        self.ahead.copy_(conv2d(found, self.link, self.link_bias)[:, :, 0].mT)
        if self.by_h is not None:
            self.ahead += self.by_h[:, None]
        return reference.gate(found, self.groups, self.by_v)[:, :, 0].mT

    def at(self, x: int) -> Tensor:
        """The next layer's pixel of the horizontal stack."""
        pre = torch.addmm(self.starts[x], self.across.windows[x], self.horizontal)
        a, b = pre.unflatten(1, (self.groups, 2, -1)).unbind(2)
        gate = torch.tanh(a).mul_(torch.sigmoid(b)).flatten(1)
        residual = torch.addmm(self.bias, gate, self.residual)
        return residual if self.first else residual.add_(self.across.pixels[x])


class _Gated:
    def __init__(self, net: Network, parts: Sequence[Tensor], condition: Tensor | None, batch: int, width: int) -> None:
        self.layers = [
            _GatedLayer(
                parts[8 * i : 8 * i + 8], i == 0, None if condition is None else condition[:, i], batch, width,
                net.groups,
            ) for i in range(net.layers)
        ]  # fmt: skip

    def begin_row(self) -> None:
        self.layers[0].down.shift()
        self.layers[0].down.rows[:, -1] = self.layers[0].across.rows[:, -1]
        for layer, after in zip(self.layers, [*self.layers[1:], None], strict=True):
            row = layer.begin_row()
            if after is not None:
                after.down.shift()
                beside = after.vertical.shape[3] // 2
                after.down.rows[:, -1, beside : beside + row.shape[1]] = row

    def put(self, x: int, values: Tensor) -> None:
        self.layers[0].across.pixels[x].copy_(values)

    def pixel(self, x: int) -> Tensor:
        for layer, after in zip(self.layers, self.layers[1:], strict=False):
            after.across.pixels[x].copy_(layer.at(x))
        return self.layers[-1].at(x)


@torch.no_grad()
def pixelcnn_sample(
    parameters: Tensor,
    values: Tensor,
    key: Tensor,
    x_init: Tensor | None,
    mask: Tensor | None,
    condition: Tensor | None,
    shape: Sequence[int],
    network: Sequence[int],
    temperature: float,
    first: int,
    on_row: Callable[[int, Tensor], object] | None = None,
) -> Tensor:
    net = Network.of(network)
    parts = reference.split(parameters, net)
    batch, channels, height, width = shape
    image = torch.zeros(tuple(shape), dtype=torch.int64, device=key.device)
    held = None
    if mask is not None and x_init is not None:
        held = mask.expand(batch, height, width)
        image.copy_(torch.where(held[:, None], x_init, image))
    if not image.numel():
        return image
    stacks = (_Gated if net.gated else _Plain)(net, parts, condition, batch, width)
    (w1, b1), (w2, b2) = ((_here(w, net.groups), b) for w, b in (parts[-4:-2], parts[-2:]))
    every = torch.arange(channels, device=key.device)
    samples = torch.arange(batch, device=key.device) + first
    columns = torch.arange(width, device=key.device)
    for row in range(height):
        stacks.begin_row()
        choice, value = reference.words(key, samples, every, columns + row * width)
        for x in range(width):
            # A pass computes all groups with masked weights; those that are not drawn yet come out right in their own.
            stacks.put(x, values[image[:, :, row, x]])
            for group, drawn in enumerate(torch.arange(channels).chunk(net.groups)):
                top = torch.addmm(b1, stacks.pixel(x).relu_(), w1).relu_()
                found = torch.addmm(b2, top, w2).chunk(net.groups, 1)[group]
                some = slice(int(drawn[0]), int(drawn[-1]) + 1)
                fresh = reference.draw(found, net, (choice[:, some, x], value[:, some, x]), temperature)
                if held is not None:
                    fresh = torch.where(held[:, row, x, None], image[:, some, row, x], fresh)
                image[:, some, row, x] = fresh
                stacks.put(x, values[image[:, :, row, x]])
        if on_row is not None:
            on_row(row, image.clone())
    return image
