"""Masked autoregressive flows: 5 layers of MADEs of two hidden layers, features backwards from one layer to the next.

* ``maf-DxL``, mode ``fwd+bwd``: x to z and the log-determinant, one evaluation of each network, and the gradients of x
  and of all parameters: a step of training a MAF by likelihood. Mode ``inverse``: z to x, which every other library
  does with D evaluations of each network.
* ``maf-DxL-through-inverse``, mode ``fwd+bwd``: the inverse and its gradients: a step of training a MAF by samples, or an
  IAF by likelihood.

Every provider has the same parameters with the same masks, and each is measured beside ours with its own scale map and
activation; a row's ``maths`` says which. Peers are entered at their transforms, layer by layer, in the direction that is
asked for, whatever the peer calls it. ``passes`` is the loop of D passes in eager PyTorch, its weights masked beforehand, and ``one pass compiled``
the same with its pass under ``torch.compile``. ``compile`` is a peer under ``torch.compile``. With many features, D
passes are timed as the last 16 of them, from the finished x, and the row says so.

Operations are those of the weights that masks leave, each once, forward, and twice that backward (thrice through
the inverse, whose gradient evaluates the network at the solution).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import gmkernels as gmk
from gmkernels.ops.autoregressive.made_network import Made

from .case import Built, Case, Inputs, Program, Provider, Setting, backend_of, differentiate, leaf
from .peers import made as peers
from .peers.made import LAYERS, MATHS, degrees

SHAPES = {"maf-63x5": (63, (512, 512)), "maf-784x5": (784, (1024, 1024))}
BATCH, TIMED = 100, 16
FEW = 64  # up to so many features, all passes are timed


def _inputs(features: int, hidden: tuple[int, ...], setting: Setting) -> Inputs:
    """Networks that keep their scales and shifts moderate. The data is x; an inverse begins with the z of it."""
    normal = setting.stream()
    tensors = {"x": normal(BATCH, features)}
    for layer in range(LAYERS):
        for i, (out, into) in enumerate(Made(features, hidden, False).shapes()):
            tensors[f"weight{layer}{i}"] = normal(out, into, scale=(0.3 if i == len(hidden) else 1.0) / into**0.5)
            tensors[f"bias{layer}{i}"] = normal(out, scale=0.1)
    return Inputs(tensors, (normal(BATCH, features), normal(BATCH, wide=True)))


def _parameters(inputs: Inputs) -> list[list[Tensor]]:
    """Weights and biases in turn, layer by layer."""
    found = [t for name, t in inputs.tensors.items() if name != "x"]
    each = len(found) // LAYERS
    return [found[i * each : (i + 1) * each] for i in range(LAYERS)]


def _masks(features: int, hidden: tuple[int, ...], device: torch.device) -> list[Tensor]:
    made = Made(features, hidden, False)
    seen = made.seen(torch.cat([degrees(features, width) for width in hidden]))
    return [
        (torch.arange(into) < limit[:, None]).to(device) for limit, (_, into) in zip(seen, made.shapes(), strict=True)
    ]


def _network(x: Tensor, parts: Sequence[Tensor], act: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """Log-scale and shift, from weights that are masked already."""
    for weight, bias in zip(parts[:-2:2], parts[1:-2:2], strict=True):
        x = act(linear(x, weight, bias))
    return linear(x, *parts[-2:]).chunk(2, 1)


def _definition(
    masks: Sequence[Tensor], maths: str, inverse: bool, x: Tensor, *parameters: Tensor
) -> tuple[Tensor, Tensor]:
    """The flow forwards, or backwards by the implicit function theorem's plain counterpart: the loop of passes."""
    scale_map, clamp, activation = MATHS[maths]
    act = torch.relu if activation == "relu" else torch.tanh
    each, total = len(parameters) // LAYERS, x.new_zeros(x.shape[0])
    layers = [list(parameters[i * each : (i + 1) * each]) for i in range(LAYERS)]
    for parts in reversed(layers) if inverse else layers:
        parts[::2] = [torch.where(mask, weight, 0.0) for mask, weight in zip(masks, parts[::2], strict=True)]
        if inverse:
            y = x.flip(1)
            x = torch.zeros_like(y)
            for _ in range(y.shape[1]):
                x, logdet = gmk.affine_coupling(
                    y, *_network(x, parts, act), scale_map=scale_map, clamp=clamp, inverse=True, backend="reference"
                )
        else:
            s, t = _network(x, parts, act)
            x, logdet = gmk.affine_coupling(x, s, t, scale_map=scale_map, clamp=clamp, backend="reference")
            x = x.flip(1)
        total = total + logdet
    return x, total


def _truth(
    features: int, hidden: tuple[int, ...], through: bool, inputs: Inputs, maths: str, mode: str
) -> list[Tensor]:
    tensors = list(inputs.tensors.values())
    masks = _masks(features, hidden, tensors[0].device)
    if mode == "inverse":
        # x is what the inverse must give back: no need for D passes.
        z, logdet = differentiate(functools.partial(_definition, masks, maths, False), tensors, inputs, mode)
        return [inputs["x"].double(), -logdet]
    return differentiate(functools.partial(_definition, masks, maths, through), tensors, inputs, mode)


def _start(features: int, hidden: tuple[int, ...], inputs: Inputs, maths: str) -> Tensor:
    """Where an inverse begins: the z of x, made in float64."""
    tensors = [t.detach().double() for t in inputs.tensors.values()]
    masks = _masks(features, hidden, tensors[0].device)
    with torch.no_grad():
        return _definition(masks, maths, False, *tensors)[0].to(inputs["x"])


Chain = Callable[[Tensor], tuple[Tensor, Tensor]]


def _chain(steps: Sequence[Chain], inverse: bool) -> Chain:
    def call(x: Tensor) -> tuple[Tensor, Tensor]:
        total: Tensor | float = 0.0
        for step in reversed(steps) if inverse else steps:
            x, logdet = step(x.flip(1)) if inverse else step(x)
            x = x if inverse else x.flip(1)
            total = total + logdet
        return x, total

    return call


def _program(call: Chain, x: Tensor, layers: Sequence[peers.Loaded], backend: str | None = None) -> Program:
    leaves = [leaf(x), *[p for layer in layers for p in layer.parameters]]

    def gradients(grads: Sequence[Tensor]) -> Sequence[Tensor]:
        found, at = [grads[0]], 1
        for layer in layers:
            found += layer.ours(grads[at : at + len(layer.parameters)])
            at += len(layer.parameters)
        return found

    return Program(lambda: call(leaves[0]), leaves, gradients, backend=backend)


def _layers(maths: str, shape: str, inputs: Inputs) -> list[gmk.nn.MaskedAffineAutoregressive]:
    features, hidden = SHAPES[shape]
    scale_map, clamp, activation = MATHS[maths]
    layers = []
    for parts in _parameters(inputs):
        every = [degrees(features, width) for width in hidden]
        made = gmk.nn.MADE(features, hidden, activation=activation, hidden_degrees=every).to(inputs["x"])
        with torch.no_grad():
            for p, value in zip(_own(made), parts, strict=True):
                p.copy_(value)
        layers.append(gmk.nn.MaskedAffineAutoregressive(made, scale_map, clamp))
    return layers


def _own(made: gmk.nn.MADE) -> list[nn.Parameter]:
    return [p for m in made.linears() for p in (m.weight, m.bias) if p is not None]


def _ours(maths: str, shape: str, through: bool, inputs: Inputs, mode: str) -> Program:
    layers, inverse = _layers(maths, shape, inputs), through or mode == "inverse"
    steps: list[Chain] = [layer.inverse if inverse else layer.forward for layer in layers]
    loaded = [
        peers.Loaded(_own(layer.made), list, step, step, _no_passes) for layer, step in zip(layers, steps, strict=True)
    ]
    start = _start(*SHAPES[shape], inputs, maths) if mode == "inverse" else inputs["x"]
    backend = backend_of(gmk.made_inverse if inverse else gmk.masked_linear, start)
    return _program(_chain(steps, inverse), start, loaded, backend)


def _no_passes(z: Tensor, x: Tensor, passes: int) -> tuple[Tensor, Tensor]:
    raise NotImplementedError("ours has no passes")


def _with_masks(maths: str, shape: str, compile: bool, parts: Sequence[Tensor]) -> peers.Loaded:
    """The loop of passes in eager PyTorch: weights are masked once, and a pass is a function of z and x."""
    scale_map, clamp, activation = MATHS[maths]
    act = torch.relu if activation == "relu" else torch.tanh
    masks = _masks(*SHAPES[shape], parts[0].device)
    own = [nn.Parameter(t.clone()) for t in parts]
    given: list[Tensor] = list(own)

    def one(z: Tensor, x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        s, t = _network(x, weights, act)
        return gmk.affine_coupling(z, s, t, scale_map=scale_map, clamp=clamp, inverse=True, backend="reference")

    step = torch.compile(one, dynamic=False) if compile else one

    def last(z: Tensor, x: Tensor, passes: int) -> tuple[Tensor, Tensor]:
        weights = list(given)
        weights[::2] = [torch.where(mask, weight, 0.0) for mask, weight in zip(masks, given[::2], strict=True)]
        logdet = x
        for _ in range(passes):
            x, logdet = step(z, x, *weights)
        return x, logdet

    def slow(z: Tensor) -> tuple[Tensor, Tensor]:
        return last(z, torch.zeros_like(z), z.shape[1])

    def fast(x: Tensor) -> tuple[Tensor, Tensor]:
        weights = list(given)
        weights[::2] = [torch.where(mask, weight, 0.0) for mask, weight in zip(masks, given[::2], strict=True)]
        s, t = _network(x, weights, act)
        return gmk.affine_coupling(x, s, t, scale_map=scale_map, clamp=clamp, backend="reference")

    return peers.Loaded(own, list, fast, slow, last)


def _other(
    load: Callable[[Sequence[Tensor]], peers.Loaded], maths: str, shape: str, through: bool, compile: bool,
    inputs: Inputs, mode: str,
) -> Built:  # fmt: skip
    """A peer, or the eager loop, in the direction of the mode."""
    features, hidden = SHAPES[shape]
    layers, x = [load(parts) for parts in _parameters(inputs)], inputs["x"]
    inverse = through or mode == "inverse"
    if not inverse:
        call = _chain([layer.fast for layer in layers], False)
        if not compile:
            return _program(call, x, layers)
        return {
            variant: functools.partial(_compiled, variant, call, x, layers) for variant in ("default", "max-autotune")
        }
    start = _start(features, hidden, inputs, maths) if mode == "inverse" else x
    if features <= FEW:
        return _program(_chain([layer.slow for layer in layers], True), start, layers)
    finished = _solutions(_layers(maths, shape, inputs), start)
    steps = [functools.partial(_last, layer.last, x) for layer, x in zip(layers, finished, strict=True)]
    times = features / TIMED
    program = Program(lambda: _chain(steps, True)(start), times=times)
    return {f"{TIMED} of {features} passes, time x {times:g}": lambda: program}


def _compiled(variant: str, call: Chain, x: Tensor, layers: Sequence[peers.Loaded]) -> Program:
    return _program(torch.compile(call, dynamic=False, mode=variant), x, layers)


def _solutions(layers: Sequence[gmk.nn.MaskedAffineAutoregressive], z: Tensor) -> list[Tensor]:
    """What each layer's inverse gives, in the order of the layers."""
    found = []
    with torch.no_grad():
        for layer in reversed(layers):
            z = layer.inverse(z.flip(1))[0]
            found.append(z)
    return found[::-1]


def _last(last: Callable[..., tuple[Tensor, Tensor]], x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    return last(z, x, TIMED)


def _case(shape: str, through: bool) -> Case:
    features, hidden = SHAPES[shape]
    providers = []
    for maths in MATHS:
        providers.append(Provider("gmkernels", functools.partial(_ours, maths, shape, through), maths))
        loops = {"passes": False, "one pass compiled": True}
        for name, compile in loops.items():
            build = functools.partial(_other, functools.partial(_with_masks, maths, shape, compile))
            modes = ("inverse",) if not through else ()
            providers.append(Provider(name, functools.partial(build, maths, shape, through, False), maths, modes=modes))
    for name, (load, maths) in peers.PEERS.items():
        build = functools.partial(_other, load, maths, shape, through)
        providers.append(Provider(name, functools.partial(build, False), maths, name))
        if not through:
            compiled = functools.partial(build, True)
            providers.append(Provider(f"compile {name}", compiled, maths, name, modes=("fwd+bwd",)))
    unmasked = sum(int(mask.sum()) for mask in _masks(features, hidden, torch.device("cpu")))
    once = 2 * unmasked * BATCH * LAYERS
    return Case(
        family="autoregressive",
        name=f"{shape}-through-inverse" if through else shape,
        shape=f"{BATCH} x {features}, {LAYERS} layers of {' x '.join(map(str, hidden))} hidden units",
        inputs=functools.partial(_inputs, features, hidden),
        truth=functools.partial(_truth, features, hidden, through),
        providers=providers,
        modes=("fwd+bwd",) if through else ("inverse", "fwd+bwd"),
        flops={"inverse": once, "fwd+bwd": (4 if through else 3) * once},
        accounting="every unmasked weight once, and twice for gradients"
        + (", thrice through the inverse" if through else ""),
    )


CASES = (_case("maf-63x5", False), _case("maf-784x5", False), _case("maf-63x5", True))
