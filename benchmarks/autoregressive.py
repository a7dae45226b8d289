"""Drawing binary images of 28 x 28 from a PixelCNN (h = 64, 12 blocks) and a Gated PixelCNN (C = 64, 8 layers).

* ``gmkernels`` is ``pixelcnn_sample`` and ``gated_pixelcnn_sample``;
* ``naive`` is the loop of the tutorials: the whole network for every pixel, its weights masked beforehand. It draws the
  last 16 of the 784 pixels, and its time is multiplied by 49: every pixel costs it the same;
* ``cached`` is a sampler in eager PyTorch with a row cache for each layer, the vertical stack once a row, and five to
  eight operations a layer and pixel, on views that are made once.

All draw with the same key. What is checked is every decision, given the pixels before it: the network's probabilities in
float64, from the images that came out, must lead to the same images from the same random words, except where a
uniform is within 1e-5 of its probability. (One decision inside that band may turn all that follow it, so images themselves
are not compared.) The first 8 images are looked at.

Operations are those of the taps that masks leave, each once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad, relu

import gmkernels as gmk
from gmkernels.ops.autoregressive import cached, reference
from gmkernels.ops.autoregressive.network import HEADS, Network

from . import wavenet
from .case import Built, Case, Inputs, Program, Provider, Setting, backend_of

SIDE, DRAWN, BAND, LOOKED_AT = 28, 16, 1e-5, 8
NETWORKS = {
    "pixelcnn": Network(False, 1, 1, 64, 128, 1, HEADS.index("bernoulli"), 2, (7,) + (3,) * 12),
    "gated": Network(True, 1, 1, 64, 64, 1, HEADS.index("bernoulli"), 2, (7,) + (3,) * 7),
}


def _inputs(name: str, setting: Setting) -> Inputs:
    """Random parameters that keep activations near 1."""
    normal = setting.stream()
    tensors = {
        label: normal(*shape, scale=torch.Size(shape[1:]).numel() ** -0.5 if len(shape) > 1 else 0.1)
        for label, shape in NETWORKS[name].parameters()
    }
    return Inputs(tensors, ())


def _key(inputs: Inputs) -> Tensor:
    return gmk.random.key(seed=7, device=next(iter(inputs.tensors.values())).device)


def _unmasked(net: Network) -> int:
    """Multiplications a pixel that no mask covers."""
    count = 0
    for i, (name, shape) in enumerate(net.parameters()):
        if name.endswith("weight"):
            kind = "A" if i == 0 or name == "layers[0].horizontal.weight" else "B"
            whole = net.gated and ("vertical" in name or "link" in name)
            taps = torch.ones(shape) if whole else reference.allowed(torch.ones(shape), net.groups, kind)
            count += int(taps.sum())
    return count


def _wrong(name: str, inputs: Inputs, images: Tensor) -> int:
    """Decisions that do not follow from the pixels before them."""
    net, x = NETWORKS[name], images[:LOOKED_AT]
    logits = reference.outputs(x.double(), net, [t.double() for t in inputs.tensors.values()], None)[:, 0].flatten(1)
    places = torch.arange(SIDE * SIDE, device=x.device)
    word = reference.words(_key(inputs), torch.arange(len(x), device=x.device), places[:1], places)[0][:, 0]
    p, u = torch.sigmoid(logits), reference.uniform(word)
    return int((((u < p).long() != x[:, 0].flatten(1)) & ((u - p).abs() > BAND)).sum())


def _results(name: str, inputs: Inputs, results: Sequence[Tensor]) -> list[Tensor]:
    return [torch.tensor([1.0 + _wrong(name, inputs, results[0])], dtype=torch.float64)]


def _ours(name: str, batch: int, inputs: Inputs, mode: str) -> Program:
    parameters, key = list(inputs.tensors.values()), _key(inputs)
    sample = gmk.gated_pixelcnn_sample if NETWORKS[name].gated else gmk.pixelcnn_sample
    return Program(
        lambda: (sample(parameters, (batch, 1, SIDE, SIDE), key=key),),
        results=functools.partial(_results, name, inputs),
        backend=backend_of(gmk.pixelcnn_sample, parameters[0]),
    )


def _cached(name: str, batch: int, inputs: Inputs, mode: str) -> Program:
    parameters, key = list(inputs.tensors.values()), _key(inputs)
    flat, values = torch.cat([t.flatten() for t in parameters]), parameters[0].new_tensor([0.0, 1.0])
    shape, numbers = [batch, 1, SIDE, SIDE], NETWORKS[name].numbers
    return Program(
        lambda: (cached.pixelcnn_sample(flat, values, key, None, None, None, shape, numbers, 1.0, 0),),
        results=functools.partial(_results, name, inputs),
    )


def _network(net: Network, parameters: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """The network with its masks multiplied in, as a tutorial would write it."""
    masked = []
    for (name, shape), t in zip(net.parameters(), parameters, strict=True):
        whole = len(shape) == 1 or net.gated and ("vertical" in name or "link" in name)
        kind = "A" if name in ("first.weight", "layers[0].horizontal.weight") else "B"
        masked.append(t if whole else t * reference.allowed(t, 1, kind))
    *body, w1, b1, w2, b2 = masked

    def plain(x: Tensor) -> Tensor:
        x = conv2d(x, body[0], body[1], padding="same")
        for i in range(2, len(body), 6):
            wr, br, wm, bm, we, be = body[i : i + 6]
            inner = relu(conv2d(relu(x), wr, br))
            x = x + conv2d(relu(conv2d(inner, wm, bm, padding="same")), we, be)
        return x

    def gated(x: Tensor) -> Tensor:
        down = pad(x, (0, 0, 1, -1))
        for i in range(0, len(body), 8):
            wv, bv, wh, bh, wl, bl, wr, br = body[i : i + 8]
            k = wv.shape[3] // 2
            vertical = conv2d(pad(down, (k, k, k, 0)), wv, bv)
            a, b = vertical.chunk(2, 1)
            down = torch.tanh(a) * torch.sigmoid(b)
            a, b = (conv2d(pad(x, (k, 0, 0, 0)), wh, bh) + conv2d(vertical, wl, bl)).chunk(2, 1)
            residual = conv2d(torch.tanh(a) * torch.sigmoid(b), wr, br)
            x = x + residual if i else residual
        return x

    run = gated if net.gated else plain
    return lambda x: conv2d(relu(conv2d(relu(run(x)), w1, b1)), w2, b2)


def _naive(name: str, batch: int, inputs: Inputs, mode: str) -> Built:
    key, parameters = _key(inputs), list(inputs.tensors.values())
    network = _network(NETWORKS[name], parameters)
    start = _ours(name, batch, inputs, mode).call()[0]
    samples = torch.arange(batch, device=start.device)
    pixels = torch.arange(SIDE * SIDE - DRAWN, SIDE * SIDE, device=start.device)
    word = reference.words(key, samples, pixels[:1] * 0, pixels)[0][:, 0]

    def call() -> Sequence[Tensor]:
        image = start.clone()
        image.view(batch, -1)[:, -DRAWN:] = 0
        for i in range(DRAWN):
            row, column = divmod(SIDE * SIDE - DRAWN + i, SIDE)
            logits = network(image.to(parameters[0].dtype))[:, 0, row, column]
            image[:, 0, row, column] = reference.bernoulli(logits, word[:, i], 1.0)
        return (image,)

    times = SIDE * SIDE / DRAWN
    variant = f"{DRAWN} of {SIDE * SIDE} pixels, time x {times:g}"
    return {variant: lambda: Program(call, results=functools.partial(_results, name, inputs), times=times)}


def _case(name: str, batch: int) -> Case:
    net = NETWORKS[name]
    form = f"C = {net.width}, {net.layers} layers" if net.gated else f"h = {net.width}, {net.layers} blocks"
    return Case(
        family="autoregressive",
        name=f"{name}-{SIDE}-b{batch}",
        shape=f"{batch} x 1 x {SIDE} x {SIDE}, {form}",
        inputs=functools.partial(_inputs, name),
        truth=lambda inputs, maths, mode: [torch.ones(1, dtype=torch.float64)],
        providers=[
            Provider("gmkernels", functools.partial(_ours, name, batch)),
            Provider("naive", functools.partial(_naive, name, batch)),
            Provider("cached", functools.partial(_cached, name, batch)),
        ],
        modes=("sample",),
        flops={"sample": 2 * _unmasked(net) * SIDE * SIDE * batch},
        accounting="every unmasked tap once",
    )


CASES = (*(_case(name, batch) for name in NETWORKS for batch in (1, 64)), *wavenet.CASES)
