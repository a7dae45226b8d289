"""Densities of couplings with their conditioners: all of a small RealNVP, and the memory of a deep one on images.

``realnvp-64-8``: ``log_prob`` of 100 samples of 64 features through 8 couplings, each with a perceptron of 2 x 128 hidden
units (ReLU), and in ``fwd+bwd`` its gradient by all parameters.

* ``gmkernels`` are ``nn.AffineCoupling`` layers with an ``nn.MLP``;
* ``eager`` is the same in stock PyTorch, ``compile`` that under ``torch.compile``;
* the peers are RealNVPs of the same size built as their documentation has it, eager and compiled, the faster of which
  counts. Each has a scale map of its own (and FrEIA a global scale and a permutation after every coupling); ours, from the
  same weights, is raced against each with its function.

``realnvp-image-N``: N checkerboard couplings on 16 colour images of 32 x 32, two residual blocks of 32 channels each, with
``reversible`` execution (``gmkernels``) and without (``kept``): its memory is to be the same for any N.

Operations are those of the products: 2 for each weight and sample forward, twice that backward.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

import gmkernels as gmk
from genmodels.flows import checkerboard
from genmodels.flows.conditioners import ResNet
from genmodels.flows.transforms import Chain

from .case import Built, Case, Inputs, Program, Provider, Setting, backend_of, differentiate, leaf
from .peers import realnvp as peers

BATCH, FEATURES, HIDDEN, COUPLINGS = 100, 64, 128, 8
HALF = FEATURES // 2
WIDTHS = (HALF, HIDDEN, HIDDEN, FEATURES)
# maths -> scale map, clamp, whether log_prob runs the couplings backwards, whether FrEIA's global step follows each
MAPS: dict[str, tuple[str, float | None, bool, bool]] = {
    "exp": ("exp", None, False, False),
    "exp, inverse": ("exp", None, True, False),
    "sigmoid, c=0.001": ("sigmoid", 1e-3, False, False),
    "tanh, global scale": ("tanh", 2.0, False, True),
}


def _inputs(setting: Setting) -> Inputs:
    normal = setting.stream()
    tensors = {"x": normal(BATCH, FEATURES)}
    for i in range(COUPLINGS):
        for j, (inputs, outputs) in enumerate(itertools.pairwise(WIDTHS)):
            tensors[f"{i}.weight{j}"] = normal(outputs, inputs, scale=(0.5 if j == 2 else 1.0) * inputs**-0.5)
            tensors[f"{i}.bias{j}"] = normal(outputs, scale=0.1)
    return Inputs(tensors, (torch.full((BATCH,), -1 / BATCH, dtype=tensors["x"].dtype, device=tensors["x"].device),))


def _weights(inputs: Inputs) -> list[Tensor]:
    return [t for name, t in inputs.tensors.items() if name != "x"]


def _split(i: int) -> int:
    """Halves take turns; the first coupling keeps the first half."""
    return HALF if i % 2 == 0 else -HALF


def _log_prob(z: Tensor, logdet: Tensor) -> Tensor:
    return logdet - 0.5 * z.square().sum(1) - 0.5 * FEATURES * math.log(2 * math.pi)


def _density(
    couple: Callable[[Tensor, int, Sequence[Tensor]], tuple[Tensor, Tensor]],
    after: Callable[[Tensor], tuple[Tensor, Tensor | float]] | None,
    x: Tensor,
    weights: Sequence[Tensor],
) -> Tensor:
    total: Tensor | float = 0.0
    for i in range(COUPLINGS):
        # FrEIA's block always keeps the first half and mixes afterwards.
        x, logdet = couple(x, HALF if after else _split(i), weights[6 * i : 6 * i + 6])
        total = total + logdet
        if after:
            x, logdet = after(x)
            total = total + logdet
    assert isinstance(total, Tensor)
    return _log_prob(x, total)


def _truth(inputs: Inputs, maths: str, mode: str) -> list[Tensor]:
    scale_map, clamp, inverse, mixed = MAPS[maths]

    def couple(x: Tensor, split: int, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        tenth = 0.1 if mixed else 1.0  # FrEIA's factor of what its networks give
        return gmk.affine_coupling_mlp(
            x, [*weights[:4:2], tenth * weights[4]], [*weights[1:4:2], tenth * weights[5]],
            split=split, scale_map=scale_map, clamp=clamp, inverse=inverse, backend="reference",
        )  # fmt: skip

    def definition(*weights: Tensor) -> list[Tensor]:
        after = peers.mixing(torch.float64) if mixed else None
        return [_density(couple, after, inputs["x"].double(), weights)]

    return differentiate(definition, _weights(inputs), inputs, mode)


class _Ours(nn.Module):
    """FrEIA's reversal of the features after every coupling is part of the weights here: every second coupling keeps the
    last half, and its network has inputs and outputs the other way round."""

    def __init__(self, inputs: Inputs, maths: str) -> None:
        super().__init__()
        scale_map, clamp, self.inverse, self.mixed = MAPS[maths]
        self.steps = nn.ModuleList()
        for i in range(COUPLINGS):
            net = gmk.nn.MLP(HALF, [HIDDEN, HIDDEN], FEATURES)
            for j, layer in enumerate(net.layers):
                found = self._turned([inputs[f"{i}.weight{j}"], inputs[f"{i}.bias{j}"]], i, j)
                layer.weight, layer.bias = map(nn.Parameter, found)
            actnorm = FEATURES if self.mixed else None
            self.steps.append(
                gmk.nn.AffineCoupling(net, split=_split(i), scale_map=scale_map, clamp=clamp, actnorm=actnorm)
            )

    def _turned(self, layer: Sequence[Tensor], i: int, j: int) -> list[Tensor]:
        """A layer of the case as ours, and a gradient of ours as the case's."""
        weight, bias = (0.1 * t if self.mixed and j == 2 else t for t in layer)
        if self.mixed and i % 2 and j == 0:
            weight = weight.flip(1)
        if self.mixed and i % 2 and j == 2:
            weight, bias = (t.unflatten(0, (2, HALF)).flip(1).flatten(0, 1) for t in (weight, bias))
        return [weight, bias]

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor | float = 0.0
        for step in self.steps:
            x, logdet = step.inverse(x) if self.inverse else step(x)
            total = total + logdet
        return _log_prob(x, total)

    def gradients(self, grads: Sequence[Tensor]) -> list[Tensor]:
        found = zip(self.named_parameters(), grads, strict=True)
        grads = [grad for (name, _), grad in found if "conditioner" in name]
        layers = [(i, j) for i in range(COUPLINGS) for j in range(3)]
        return [t for n, (i, j) in enumerate(layers) for t in self._turned(grads[2 * n : 2 * n + 2], i, j)]


def _ours(maths: str) -> Callable[[Inputs, str], Built]:
    def build(inputs: Inputs, mode: str) -> Program:
        model, x = _Ours(inputs, maths).to(inputs["x"]), inputs["x"]
        backend = backend_of(gmk.affine_coupling_mlp, x)
        return Program(lambda: [model(x)], list(model.parameters()), model.gradients, backend=backend)

    return build


def _stock(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    def couple(x: Tensor, split: int, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        left, right = x.tensor_split((split,), 1)
        kept, changed = (left, right) if split > 0 else (right, left)
        h = kept
        for j in range(3):
            h = torch.nn.functional.linear(h.relu() if j else h, weights[2 * j], weights[2 * j + 1])
        s, t = h.chunk(2, 1)
        y = changed * s.exp() + t
        return torch.cat((kept, y) if split > 0 else (y, kept), 1), s.sum(1)

    return _density(couple, None, x, weights)


def _eager(inputs: Inputs, mode: str) -> Program:
    leaves = [leaf(t) for t in _weights(inputs)]
    return Program(lambda: [_stock(inputs["x"], leaves)], leaves)


def _compiled(inputs: Inputs, mode: str) -> Built:
    def build(variant: str) -> Program:
        leaves, fast = [leaf(t) for t in _weights(inputs)], torch.compile(_stock, dynamic=False, mode=variant)
        return Program(lambda: [fast(inputs["x"], leaves)], leaves)

    return {variant: functools.partial(build, variant) for variant in ("default", "max-autotune")}


def _peer(make: Callable[[Inputs], Any], compiled: bool) -> Callable[[Inputs, str], Built]:
    def build(inputs: Inputs, mode: str) -> Program:
        model, log_prob, gradients = make(inputs)
        fast = torch.compile(log_prob, dynamic=False) if compiled else log_prob
        leaves = [p for p in model.parameters() if p.requires_grad]
        return Program(lambda: [fast(inputs["x"])], leaves, gradients)

    return build


def _vectors() -> Case:
    flops = 2 * BATCH * COUPLINGS * sum(a * b for a, b in itertools.pairwise(WIDTHS))
    providers = [
        Provider("gmkernels", _ours("exp"), "exp"),
        Provider("eager", _eager, "exp"),
        Provider("compile", _compiled, "exp"),
    ]
    for package, maths, make in (
        ("normflows", "exp, inverse", peers.normflows),
        ("nflows", "sigmoid, c=0.001", peers.nflows),
        ("FrEIA", "tanh, global scale", peers.freia),
    ):
        providers.append(Provider("gmkernels", _ours(maths), maths))
        for name, compiled in ((package, False), (f"{package}, compiled", True)):
            providers.append(Provider(name, _peer(make, compiled), maths, package))
    return Case(
        family="coupling",
        name="realnvp-64-8",
        shape=f"batch {BATCH}, {FEATURES} features, {COUPLINGS} couplings, 2 x {HIDDEN} hidden",
        inputs=_inputs,
        truth=_truth,
        providers=providers,
        flops={"fwd": flops, "fwd+bwd": 3 * flops},
        accounting="2 operations a weight and sample forward, twice that backward",
    )


# ---- images ----------------------------------------------------------------------------------------------------------

IMAGE, IMAGES, WIDTH, BLOCKS = (3, 32, 32), 16, 32, 2


def _image_inputs(setting: Setting) -> Inputs:
    x = setting.stream()(IMAGES, *IMAGE)
    return Inputs({"x": x}, (setting.stream()(IMAGES, *IMAGE), torch.ones(IMAGES, dtype=x.dtype, device=x.device)))


def _deep(count: int, reversible: bool, x: Tensor) -> Chain:
    torch.manual_seed(0)
    couplings = []
    for i in range(count):
        net = ResNet(IMAGE[0], 2 * IMAGE[0], WIDTH, BLOCKS)
        nn.init.normal_(cast(nn.Conv2d, net.last).weight, std=0.01)
        couplings.append(gmk.nn.AffineCoupling(net, mask=checkerboard(*IMAGE[1:], i % 2 == 0)))
    return Chain(couplings, reversible=reversible).to(x)


def _image_program(count: int, reversible: bool, inputs: Inputs, mode: str) -> Program:
    chain, x = _deep(count, reversible, inputs["x"]), leaf(inputs["x"])
    parameters = list(chain.parameters())
    return Program(
        lambda: chain(x), [x, *parameters], lambda grads: grads[:5], backend=backend_of(gmk.affine_coupling, x)
    )


def _image_truth(count: int, inputs: Inputs, maths: str, mode: str) -> list[Tensor]:
    chain, x = _deep(count, False, inputs["x"].double()), leaf(inputs["x"].double())
    with gmk.use_backend("reference"):
        outputs = chain(x)
        cotangents = [c.double() for c in inputs.cotangents]
        grads = torch.autograd.grad(outputs, [x, *list(chain.parameters())[:4]], cotangents)
    return [t.detach() for t in (*outputs, *grads)]


def _images(count: int) -> Case:
    return Case(
        family="coupling",
        name=f"realnvp-image-{count}",
        shape=f"batch {IMAGES}, {' x '.join(map(str, IMAGE))}, {count} couplings, {BLOCKS} residual blocks of {WIDTH}",
        inputs=_image_inputs,
        truth=functools.partial(_image_truth, count),
        providers=[
            Provider("gmkernels", functools.partial(_image_program, count, True)),
            Provider("kept", functools.partial(_image_program, count, False), library=True),
        ],
        modes=("fwd+bwd",),
    )


CASES = (_vectors(), _images(4), _images(16))
