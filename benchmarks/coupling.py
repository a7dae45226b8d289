"""Affine coupling and planar flows.

What is timed is the coupling alone, parameters given: ``y`` and ``logdet`` from ``x``, ``s`` and ``t``, and in
``fwd+bwd`` the gradients of all three for fixed random cotangents.

* ``realnvp-BxD``: ``x``, ``s`` and ``t`` are halves of (B, D) tensors, as a channel split and a parameter network
  with 2 outputs per feature leave them; the halves themselves are the leaves of autograd.
* ``image-...``: a checkerboard coupling; ``s`` and ``t`` are the two channel halves of a (B, 2C, H, W) tensor.
* ``planar-kK-dD-B``: K planar flows on (B, D).

The scale is ``exp(2 tanh(s))`` and, beside it, plain ``exp(s)``; ``eager`` is what one writes for each, ``compile`` the
same under ``torch.compile``. The peers have scale maps and parameter layouts of their own; each is raced against our
operator with the same map on the same layout, and a row's ``maths`` says which. normflows and nflows take one parameter
tensor (interleaved, or halves), so there the tensor is the leaf and both sides pay for slicing it.

Bytes: the affine operator must read x, s, t and write y (4 tensors); backward reads dy, x, s and writes dx, ds (5
tensors), dt being dy; with a mask it writes dt too (6). Operations of a planar flow: 2D + 1 for w.z + b, 2D for the
update, 5 for the log-determinant, tanh and log counted as one each; the gradient is counted as twice that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

import gmkernels as gmk

from .case import Built, Case, Inputs, Program, Provider, Setting, backend_of, compiled, differentiate, leaf, plain
from .peers import flows

# maths -> scale map, clamp, layout of the parameters
TANH, MAPS = (
    "tanh, c=2",
    {
        "tanh, c=2": ("tanh", 2.0, "two"),
        "exp": ("exp", None, "two"),
        "exp, interleaved": ("exp", None, "interleaved"),
        "sigmoid, c=0.001": ("sigmoid", 1e-3, "halves"),
        "soft_clip": ("soft_clip", math.log(1e3), "two"),
    },
)


def _inputs(batch: int, sample: tuple[int, ...], masked: bool, setting: Setting) -> Inputs:
    normal, channels = setting.stream(), sample[0]
    s, t = normal(batch, 2 * channels, *sample[1:], scale=0.5).chunk(2, dim=1)
    x = normal(batch, *sample) if masked else normal(batch, 2 * channels)[:, channels:]
    return Inputs({"x": x, "s": s, "t": t}, (normal(batch, *sample), normal(batch, wide=True)))


def _mask(x: Tensor) -> Tensor:
    """A checkerboard over the pixels; True passes through."""
    height, width = (torch.arange(n, device=x.device) for n in x.shape[-2:])
    return ((height[:, None] + width) % 2 == 0).expand(x.shape[1:]).contiguous()


def _leaves(inputs: Inputs, layout: str) -> list[Tensor]:
    x, s, t = inputs["x"], inputs["s"], inputs["t"]
    if layout == "two":
        return [leaf(x), leaf(s), leaf(t)]
    packed = torch.stack([t, s], dim=2).flatten(1) if layout == "interleaved" else torch.cat([t, s], dim=1)
    return [leaf(x), leaf(packed)]


def _split(layout: str, *leaves: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if layout == "two":
        x, s, t = leaves
        return x, s, t
    x, packed = leaves
    if layout == "interleaved":
        return x, packed[:, 1::2], packed[:, 0::2]
    half = x.shape[1]
    return x, packed[:, half:], packed[:, :half]


def _program(call: Callable[[], Sequence[Tensor]], leaves: list[Tensor], layout: str, ours: bool = False) -> Program:
    backend = backend_of(gmk.affine_coupling, leaves[0]) if ours else None
    return Program(call, leaves, functools.partial(_unpacked, layout), backend=backend)


def _unpacked(layout: str, grads: Sequence[Tensor]) -> Sequence[Tensor]:
    return _split(layout, *grads)


def _truth(masked: bool, inputs: Inputs, maths: str, mode: str) -> list[Tensor]:
    scale_map, clamp, _ = MAPS[maths]
    mask = _mask(inputs["x"]) if masked else None

    def definition(x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return gmk.affine_coupling(
            x, s, t, scale_map=scale_map, clamp=clamp, inverse=mode == "inverse", mask=mask, backend="reference"
        )

    return differentiate(definition, [inputs["x"], inputs["s"], inputs["t"]], inputs, mode)


def _ours(maths: str, masked: bool) -> Callable[[Inputs, str], Built]:
    scale_map, clamp, layout = MAPS[maths]
    layout = "two" if masked else layout

    def build(inputs: Inputs, mode: str) -> Program:
        leaves, inverse = _leaves(inputs, layout), mode == "inverse"
        mask = _mask(inputs["x"]) if masked else None

        def call() -> Sequence[Tensor]:
            x, s, t = _split(layout, *leaves)
            return gmk.affine_coupling(x, s, t, scale_map=scale_map, clamp=clamp, inverse=inverse, mask=mask)

        return _program(call, leaves, layout, ours=True)

    return build


def _forward_exp(x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return x * torch.exp(s) + t, s.sum(dim=1)


def _inverse_exp(y: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return (y - t) * torch.exp(-s), -s.sum(dim=1)


def _forward(x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    a = 2.0 * torch.tanh(s)
    return x * torch.exp(a) + t, a.sum(dim=1)


def _inverse(y: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    a = 2.0 * torch.tanh(s)
    return (y - t) * torch.exp(-a), -a.sum(dim=1)


def _forward_masked(moved: Tensor, x: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    a = 2.0 * torch.tanh(s) * moved
    return x * torch.exp(a) + t * moved, a.sum(dim=(1, 2, 3))


def _inverse_masked(moved: Tensor, y: Tensor, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    a = 2.0 * torch.tanh(s) * moved
    return (y - t * moved) * torch.exp(-a), -a.sum(dim=(1, 2, 3))


_Function = Callable[..., Sequence[Tensor]]
_WITH_MASK: dict[_Function, _Function] = {_forward: _forward_masked, _inverse: _inverse_masked}


def _stock(masked: bool, compile: bool, maths: str = TANH) -> Callable[[Inputs, str], Built]:
    forward, inverse = (_forward, _inverse) if maths == TANH else (_forward_exp, _inverse_exp)

    def build(inputs: Inputs, mode: str) -> Built:
        function: _Function = inverse if mode == "inverse" else forward
        leaves = _leaves(inputs, "two")
        if masked:
            moved, whole = (~_mask(inputs["x"])).to(inputs["x"].dtype), _WITH_MASK[function]
            function = lambda x, s, t: whole(moved, x, s, t)  # noqa: E731
        return compiled({"": function}, leaves) if compile else plain(function, leaves)

    return build


def _peer(enter: Callable[..., Callable[[], Sequence[Tensor]]], maths: str) -> Callable[[Inputs, str], Built]:
    layout = MAPS[maths][2]

    def build(inputs: Inputs, mode: str) -> Program:
        leaves = _leaves(inputs, layout)
        return _program(enter(*leaves, inverse=mode == "inverse"), leaves, layout)

    return build


def _normflows_masked(inputs: Inputs, mode: str) -> Program:
    leaves = _leaves(inputs, "two")
    x, s, t = leaves
    call = flows.normflows_masked(x, s, t, _mask(x), mode == "inverse")
    return _program(call, leaves, "two")


def _affine_case(name: str, batch: int, sample: tuple[int, ...], masked: bool = False) -> Case:
    size = batch * math.prod(sample)
    providers = [
        Provider("gmkernels", _ours(TANH, masked), TANH),
        Provider("eager", _stock(masked, compile=False), TANH),
        Provider("compile", _stock(masked, compile=True), TANH),
        Provider("gmkernels", _ours("exp", masked), "exp"),
    ]
    if not masked:
        providers += [
            Provider("eager", _stock(masked, compile=False, maths="exp"), "exp"),
            Provider("compile", _stock(masked, compile=True, maths="exp"), "exp"),
        ]
    if masked:
        providers.append(Provider("normflows", _normflows_masked, "exp", "normflows"))
    else:
        providers += [
            Provider("FrEIA", _peer(flows.freia_tanh, TANH), TANH, "FrEIA"),
            Provider("gmkernels", _ours("exp, interleaved", masked), "exp, interleaved"),
            Provider("normflows", _peer(flows.normflows_exp, "exp, interleaved"), "exp, interleaved", "normflows"),
            Provider("gmkernels", _ours("sigmoid, c=0.001", masked), "sigmoid, c=0.001"),
            Provider("nflows", _peer(flows.nflows_sigmoid, "sigmoid, c=0.001"), "sigmoid, c=0.001", "nflows"),
            Provider("gmkernels", _ours("soft_clip", masked), "soft_clip"),
            Provider("zuko", _peer(flows.zuko_soft_clip, "soft_clip"), "soft_clip", "zuko"),
        ]
    backward = 6 if masked else 5
    return Case(
        family="coupling",
        name=name,
        shape=" x ".join(map(str, (batch, *sample))) + (", checkerboard" if masked else ", half of the features"),
        inputs=functools.partial(_inputs, batch, sample, masked),
        truth=functools.partial(_truth, masked),
        providers=providers,
        modes=("fwd", "fwd+bwd", "inverse"),
        elements={"fwd": 4 * size, "inverse": 4 * size, "fwd+bwd": (4 + backward) * size},
        accounting=f"4 tensors forward, {backward} backward",
    )


def _planar_inputs(k: int, d: int, batch: int, setting: Setting) -> Inputs:
    normal = setting.stream()
    u, w, b = normal(k, d, scale=0.5), normal(k, d, scale=0.5), normal(k, scale=0.5)
    tensors = {"z": normal(batch, d), "u": u, "w": w, "b": b}
    return Inputs(tensors, (normal(batch, d), normal(batch, wide=True)))


def _planar_truth(inputs: Inputs, maths: str, mode: str) -> list[Tensor]:
    return differentiate(
        functools.partial(gmk.planar_flow, backend="reference"), list(inputs.tensors.values()), inputs, mode
    )


def _planar(z: Tensor, u: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Everything that does not depend on z is done once for all flows."""
    wu = (w * u).sum(1)
    u_hat = u + ((softplus(wu) - 1.0 - wu) / (w * w).sum(1)).unsqueeze(1) * w
    gain = (w * u_hat).sum(1)
    logdet = torch.zeros_like(z[:, 0])
    for k in range(u.shape[0]):
        h = torch.tanh(z @ w[k] + b[k])
        z = z + h.unsqueeze(1) * u_hat[k]
        logdet = logdet + torch.log1p((1.0 - h * h) * gain[k])
    return z, logdet


def _planar_case(k: int, d: int, batch: int) -> Case:
    def leaves(inputs: Inputs) -> list[Tensor]:
        return [leaf(t) for t in inputs.tensors.values()]

    def ours(inputs: Inputs, mode: str) -> Program:
        tensors = leaves(inputs)
        return Program(lambda: gmk.planar_flow(*tensors), tensors, backend=backend_of(gmk.planar_flow, *tensors))

    flops = k * batch * (4 * d + 6)
    return Case(
        family="coupling",
        name=f"planar-k{k}-d{d}-{batch}",
        shape=f"{k} flows on {batch} x {d}",
        inputs=functools.partial(_planar_inputs, k, d, batch),
        truth=_planar_truth,
        providers=[
            Provider("gmkernels", ours),
            Provider("eager", lambda inputs, mode: plain(_planar, leaves(inputs))),
            Provider("compile", lambda inputs, mode: compiled({"": _planar}, leaves(inputs))),
            Provider("normflows", lambda inputs, mode: flows.normflows_planar(*leaves(inputs)), package="normflows"),
        ],
        flops={"fwd": flops, "fwd+bwd": 3 * flops},
        accounting="4D + 6 operations per flow and sample forward, twice that backward",
    )


CASES = (
    _affine_case("realnvp-512x784", 512, (392,)),
    _affine_case("realnvp-4096x784", 4096, (392,)),
    _affine_case("image-256x3x32x32", 256, (3, 32, 32), masked=True),
    _planar_case(32, 2, 4096),
)
