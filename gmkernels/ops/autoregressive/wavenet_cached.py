"""The sampler with ring buffers in plain PyTorch, for devices without a kernel: of every layer, only what is new."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import wavenet_reference as reference
from .wavenet_network import Stack


class _Layer:
    """A layer, the activations that it looks back on, and where its gate's output goes."""

    def __init__(self, net: Stack, parts: Sequence[Tensor], dilation: int, gates: Tensor, start: Tensor) -> None:
        dilated, bias, mix, mix_bias = parts
        # (taps * R, 2 G): one product for all taps.
        self.weight = dilated.permute(2, 1, 0).flatten(0, 1).contiguous()
        self.start = start + bias
        self.residual = mix[: -net.skip, :, 0].T.contiguous()
        self.residual_bias = mix_bias[: -net.skip]
        self.length = (net.kernel - 1) * dilation + 1
        self.ring = gates.new_zeros(self.length, len(gates), net.residual).unbind(0)
        self.offsets = [dilation * k for k in range(net.kernel - 1, -1, -1)]
        self.gates, self.width = gates, net.gate

    def __call__(self, t: int, h: Tensor, local: Tensor | None) -> Tensor:
        """The next layer's activation, or nothing of use from the last one."""
        self.ring[t % self.length].copy_(h)
        window = torch.cat([self.ring[(t - back) % self.length] for back in self.offsets], 1)
        inner = torch.addmm(self.start if local is None else self.start + local, window, self.weight)
        torch.mul(torch.tanh(inner[:, : self.width]), torch.sigmoid(inner[:, self.width :]), out=self.gates)
        return torch.addmm(self.residual_bias, self.gates, self.residual).add_(h) if len(self.residual_bias) else h


@torch.no_grad()
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
    on_chunk: reference.OnChunk | None = None,
    chunk: int = 1024,
) -> Tensor:
    net = Stack.of(network)
    begin_weight, begin_bias, *body, w1, b1, w2, b2 = reference.split(parameters, net)
    batch, time = shape
    x, held = reference.begun(net, parameters, x_init, shape)
    if not x.numel():
        return x
    gates = parameters.new_empty(batch, net.layers * net.gate)
    layers = [
        _Layer(
            net, body[4 * i : 4 * i + 4], d, gates[:, i * net.gate : (i + 1) * net.gate],
            gates.new_zeros(batch, 2 * net.gate) if condition is None else condition[:, i],
        ) for i, d in enumerate(net.dilations)
    ]  # fmt: skip
    # The skip sums of all layers are one product.
    mixes = [body[4 * i + 2][-net.skip :, :, 0] for i in range(net.layers)]
    skip = torch.cat(mixes, 1).T.contiguous()
    skip_bias = torch.stack([body[4 * i + 3][-net.skip :] for i in range(net.layers)]).sum(0)
    w1, w2 = w1[:, :, 0].T.contiguous(), w2[:, :, 0].T.contiguous()
    columns = begin_weight.permute(2, 1, 0).flatten(0, 1).contiguous()
    window = gates.new_zeros(batch, net.first, net.inputs)
    for t in range(time):
        if t % chunk == 0:
            choice, value = reference.words(key, batch, first, t, min(t + chunk, time))
            if local is not None and local_weight is not None:
                # (layers, batch, times, 2 G)
                ahead = torch.einsum("lgc,bct->lbtg", local_weight, local[:, :, t : t + chunk])
        h = torch.addmm(begin_bias, window.flatten(1), columns)
        for i, layer in enumerate(layers):
            h = layer(t, h, None if local is None else ahead[i, :, t % chunk])
        if t >= held:
            top = torch.addmm(b1, torch.addmm(skip_bias, gates, skip).relu_(), w1).relu_()
            here = (choice[:, t % chunk], value[:, t % chunk])
            x[:, t] = reference.draw(torch.addmm(b2, top, w2), net, here, temperature)
        window[:, :-1] = window[:, 1:].clone()
        window[:, -1] = reference.seen(x[:, t : t + 1], net, values)[:, :, 1]
        if on_chunk is not None and ((t + 1) % chunk == 0 or t + 1 == time):
            on_chunk(begin := t // chunk * chunk, x[:, begin : t + 1].clone())
    return x
