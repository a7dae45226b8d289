"""Whole training steps of variational autoencoders: loss, gradients, and Adam.

* ``gmkernels`` is the model of ``genmodels``, its noise drawn anew every step;
* ``reference`` is the same model on our plain-PyTorch definitions, ``compiled reference`` that under
  ``torch.compile``;
* ``eager`` is the same arithmetic in stock PyTorch, ``compile`` that under ``torch.compile``; like the peers (see
  ``peers/vae.py``) they are given their noise, which spares them the drawing.

All use PyTorch's fused Adam. The first step, from the same weights with the same noise, is what is checked: its loss
and its gradients. In the semi-supervised case the encoder's last layer starts at zero: there the divergence that Pyro
estimates at a draw is the one that the others have in closed form; the encoder's gradients differ and are not compared.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gmkernels as gmk
from genmodels.data import Batch
from genmodels.vae import VAE, SemiSupervisedVAE

from .case import Built, Case, Inputs, Program, Provider, Setting, backend_of
from .peers import vae as peers

PIXELS = 784
Loss = Callable[[], Tensor]
Made = tuple[nn.Module, Loss, Sequence[nn.Parameter]]


def _weights(setting: Setting, layers: Mapping[str, tuple[int, int]]) -> dict[str, Tensor]:
    normal = setting.stream()
    found = {}
    for name, (inputs, outputs) in layers.items():
        found[name + ".weight"] = normal(outputs, inputs, scale=1 / math.sqrt(inputs))
        found[name + ".bias"] = normal(outputs, scale=0.1)
    return found


def _noise(seed: int, shape: Sequence[int], like: Tensor) -> Tensor:
    dtype = torch.promote_types(like.dtype, torch.float32)
    return gmk.random.normal(gmk.random.key(seed=seed), shape, dtype=dtype).to(like)


def _linear(inputs: Inputs, name: str) -> nn.Linear:
    weight, bias = inputs[name + ".weight"], inputs[name + ".bias"]
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def _two_layers(inputs: Inputs, first: str, second: str) -> nn.Sequential:
    return nn.Sequential(_linear(inputs, first), nn.ReLU(), _linear(inputs, second))


def _steps(loss: Loss, module: nn.Module, shown: Sequence[nn.Parameter], backend: str | None = None) -> Program:
    """A training step; its results are the loss and the gradients of ``shown``."""
    optimizer = torch.optim.Adam(module.parameters(), 1e-3, fused=True)

    def call() -> Sequence[Tensor]:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return (value, *[p.grad for p in shown if p.grad is not None])

    return Program(call, backend=backend)


def _keys(device: torch.device) -> Callable[[], Tensor]:
    """The key of the first step, which is checked, then fresh ones."""
    endless = itertools.chain(
        [gmk.random.key(seed=0, device=device)], iter(lambda: gmk.random.key(device=device), None)
    )
    return lambda: next(endless)


def _on_reference(loss: Loss) -> Loss:
    def call() -> Tensor:
        with gmk.use_backend("reference"):
            return loss()

    return call


def _compiled(make: Callable[[], Made]) -> Built:
    def build(mode: str) -> Program:
        module, loss, shown = make()
        return _steps(torch.compile(loss, fullgraph=True, dynamic=False, mode=mode), module, shown)

    return {mode: functools.partial(build, mode) for mode in ("default", "max-autotune")}


# The multilayer perceptron: 784 - hidden - latents and back.

_PLAIN = ("encoder.first", "encoder.last", "decoder.first", "decoder.last")


def _plain_inputs(batch: int, hidden: int, latents: int, setting: Setting) -> Inputs:
    sizes = ((PIXELS, hidden), (hidden, 2 * latents), (latents, hidden), (hidden, PIXELS))
    tensors = _weights(setting, dict(zip(_PLAIN, sizes, strict=True)))
    x = setting.stream()(batch, PIXELS).sigmoid()
    return Inputs({**tensors, "x": x, "eps": _noise(0, (batch, latents), x)}, ())


def _plain_loss(encoder: nn.Module, decoder: nn.Module, x: Tensor, eps: Tensor) -> Tensor:
    mu, logvar = encoder(x).chunk(2, 1)
    z = mu + (0.5 * logvar).exp() * eps
    cross_entropy = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
    return (cross_entropy + 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum()) / len(x)


def _plain_module(inputs: Inputs) -> Made:
    encoder, decoder = _two_layers(inputs, *_PLAIN[:2]), _two_layers(inputs, *_PLAIN[2:])
    module = nn.ModuleList([encoder, decoder])
    x, eps = inputs["x"], inputs["eps"]
    return module, lambda: _plain_loss(encoder, decoder, x, eps), list(module.parameters())


def _double(inputs: Inputs) -> Inputs:
    return Inputs({name: value.double() for name, value in inputs.tensors.items()}, ())


def _first(
    make: Callable[[Inputs], tuple[nn.Module, Loss, Sequence[nn.Parameter]]], inputs: Inputs, *_: str
) -> list[Tensor]:
    """Loss and gradients of the first step in float64."""
    _, loss, shown = make(_double(inputs))
    value = loss()
    return [value.detach(), *torch.autograd.grad(value, list(shown))]


def _plain_model(inputs: Inputs) -> tuple[VAE, Batch, Callable[[], Tensor]]:
    x = inputs["x"]
    hidden, latents = inputs["decoder.first.weight"].shape
    model = VAE((1, 28, 28), latents=latents, hidden=hidden).to(x)
    layers = (model.encoder.first.linear, model.encoder.rest[-1], model.decoder.first.linear, model.decoder.rest[-1])
    _load(inputs, dict(zip(_PLAIN, layers, strict=True)))
    return model, Batch(x.view(-1, 1, 28, 28)), _keys(x.device)


def _plain_ours(backend: str, inputs: Inputs, mode: str) -> Program:
    model, batch, key = _plain_model(inputs)

    def loss() -> Tensor:
        return model.losses(batch, key())["loss"]

    if backend == "reference":
        return _steps(_on_reference(loss), model, list(model.parameters()), backend)
    return _steps(loss, model, list(model.parameters()), backend_of(gmk.reparameterize_kl, inputs["eps"]))


def _compiled_reference(inputs: Inputs, mode: str) -> Built:
    def build(variant: str) -> Program:
        model, batch, key = _plain_model(inputs)
        loss = torch.compile(lambda key: model.losses(batch, key)["loss"], dynamic=False, mode=variant)
        return _steps(_on_reference(lambda: loss(key())), model, list(model.parameters()))

    return {variant: functools.partial(build, variant) for variant in ("default", "max-autotune")}


def _load(inputs: Inputs, layers: Mapping[str, nn.Module]) -> None:
    for name, layer in layers.items():
        layer.load_state_dict({part: inputs[f"{name}.{part}"] for part in ("weight", "bias")})


def _pythae(inputs: Inputs, mode: str) -> Program:
    encoder, decoder = _two_layers(inputs, *_PLAIN[:2]), _two_layers(inputs, *_PLAIN[2:])
    shown = [*encoder.parameters(), *decoder.parameters()]
    halves = _Halves(encoder)
    model, loss = peers.pythae_vae(halves, decoder, inputs["x"], inputs["eps"])
    return _steps(loss, model, shown)


class _Halves(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, ...]:
        return self.net(_joined(x, y)).chunk(2, -1)


def _joined(x: Tensor, y: Tensor | None) -> Tensor:
    if y is None:
        return x
    lead = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
    return torch.cat([x.expand(*lead, -1), y.expand(*lead, -1)], -1)


def _flops(batch: int, sizes: Sequence[tuple[int, int]], constant: int) -> int:
    """Two operations a multiply-add; backward does twice as many, but for the first layer of a network on data."""
    each = [2 * batch * inputs * outputs for inputs, outputs in sizes]
    return 3 * sum(each) - sum(each[:constant])


def _plain_case(batch: int, hidden: int, latents: int) -> Case:
    sizes = ((PIXELS, hidden), (hidden, 2 * latents), (latents, hidden), (hidden, PIXELS))
    return Case(
        family="vae",
        name=f"mlp-{batch}x{PIXELS}-{hidden}-{latents}",
        shape=f"batch {batch}, {PIXELS}-{hidden}-{latents}",
        inputs=functools.partial(_plain_inputs, batch, hidden, latents),
        truth=functools.partial(_first, _plain_module),
        providers=[
            Provider("gmkernels", functools.partial(_plain_ours, "auto")),
            Provider("reference", functools.partial(_plain_ours, "reference"), library=True),
            Provider("compiled reference", _compiled_reference, library=True),
            Provider("eager", lambda inputs, mode: _stock(_plain_module(inputs))),
            Provider("compile", lambda inputs, mode: _compiled(lambda: _plain_module(inputs))),
            Provider("pythae", _pythae, package="pythae"),
        ],
        modes=("step",),
        flops={"step": _flops(batch, sizes, 1)},
        accounting="the matrix products alone",
    )


def _stock(made: Made) -> Program:
    module, loss, shown = made
    return _steps(loss, module, shown)


# Model M2, the unlabelled half: 784 - hidden - classes, 784 + classes - hidden - latents and back.

_M2 = ("classifier.first", "classifier.last", "encoder.first", "encoder.last", "decoder.first", "decoder.last")


def _m2_sizes(hidden: int, latents: int, classes: int) -> tuple[tuple[int, int], ...]:
    return (
        (PIXELS, hidden),
        (hidden, classes),
        (PIXELS + classes, hidden),
        (hidden, 2 * latents),
        (latents + classes, hidden),
        (hidden, PIXELS),
    )


def _m2_inputs(batch: int, hidden: int, latents: int, classes: int, setting: Setting) -> Inputs:
    tensors = _weights(setting, dict(zip(_M2, _m2_sizes(hidden, latents, classes), strict=True)))
    for part in ("weight", "bias"):
        tensors[f"encoder.last.{part}"].zero_()
    # As in a trained model, an image's likelihood depends on the class by far more than its rounding.
    tensors["decoder.first.weight"][:, latents:] *= 3
    x = setting.stream()(batch, PIXELS).sigmoid()
    eps = _noise(0, (batch * classes, latents), x).view(batch, classes, latents).transpose(0, 1).contiguous()
    return Inputs({**tensors, "x": x, "eps": eps}, ())


def _m2_nets(inputs: Inputs) -> list[nn.Sequential]:
    return [_two_layers(inputs, first, second) for first, second in zip(_M2[::2], _M2[1::2], strict=True)]


def _m2_module(inputs: Inputs) -> Made:
    """Stock PyTorch at its best: the classes as rows of one batch, as Pyro's parallel enumeration lays them out."""
    classifier, encoder, decoder = nets = _m2_nets(inputs)
    x, eps = inputs["x"], inputs["eps"]
    classes, batch, _ = eps.shape
    y = torch.eye(classes, dtype=x.dtype, device=x.device).unsqueeze(1)

    def loss() -> Tensor:
        log_q = classifier(x).log_softmax(1)
        mu, logvar = encoder(_joined(x, y)).chunk(2, -1)
        z = mu + (0.5 * logvar).exp() * eps
        logits = decoder(_joined(z, y))
        cross_entropy = F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(-1)
        terms = cross_entropy + kl + log_q.t() + math.log(classes)
        return (log_q.exp().t() * terms).sum() / batch

    return nn.ModuleList(nets), loss, _shown(classifier, decoder)


def _shown(classifier: nn.Module, decoder: nn.Module) -> list[nn.Parameter]:
    """Compared gradients, but for those of the joint layers, which each keeps in its own form."""
    first, *rest = decoder.parameters()
    return [*classifier.parameters(), *rest]


def _m2_ours(backend: str, inputs: Inputs, mode: str) -> Program:
    x, (classes, _, latents) = inputs["x"], inputs["eps"].shape
    hidden = inputs["decoder.first.weight"].shape[0]
    model = SemiSupervisedVAE((1, 28, 28), classes, latents=latents, hidden=hidden).to(x)
    plain = {
        "classifier.first": model.classifier.first.linear,
        "classifier.last": model.classifier.rest[-1],
        "encoder.last": model.encoder.rest[-1],
        "decoder.last": model.decoder.rest[-1],
    }
    _load(inputs, plain)
    with torch.no_grad():
        for name, joint in (("encoder.first", model.encoder.first), ("decoder.first", model.decoder.first)):
            of_x, of_y = inputs[name + ".weight"].split([joint.linear.in_features, classes], 1)
            joint.linear.weight.copy_(of_x)
            joint.linear.bias.copy_(inputs[name + ".bias"])
            assert joint.classes is not None
            joint.classes.copy_(of_y.t())
    images, key = x.view(-1, 1, 28, 28), _keys(x.device)

    def loss() -> Tensor:
        return model.unlabelled(model.pixels(images), key())["loss"].mean()

    classifier, rest = model.classifier.parameters(), model.decoder.rest.parameters()
    shown = [*classifier, model.decoder.first.linear.bias, *rest]
    if backend == "reference":
        return _steps(_on_reference(loss), model, shown, backend)
    return _steps(loss, model, shown, backend_of(gmk.reparameterize_kl, x))


def _pyro(inputs: Inputs, mode: str) -> Built:
    def build(variant: str) -> Program:
        classifier, encoder, decoder = nets = _m2_nets(inputs)
        generator = lambda z, y: decoder(_joined(z, y))  # noqa: E731
        losses = peers.pyro_m2(classifier, _Halves(encoder), generator, inputs["x"], inputs["eps"])
        return _steps(losses[variant], nn.ModuleList(nets), _shown(classifier, decoder))

    return {variant: functools.partial(build, variant) for variant in ("expand", "no expand")}


def _m2_case(batch: int, hidden: int, latents: int, classes: int) -> Case:
    sizes = _m2_sizes(hidden, latents, classes)
    once = [(inputs, outputs) for inputs, outputs in (sizes[0], (PIXELS, hidden), sizes[1])]
    each = [sizes[3], (latents, hidden), sizes[5]]
    return Case(
        family="vae",
        name=f"m2-{batch}x{classes}",
        shape=f"batch {batch}, {classes} classes, {PIXELS}-{hidden}-{latents}",
        inputs=functools.partial(_m2_inputs, batch, hidden, latents, classes),
        truth=functools.partial(_first, _m2_module),
        providers=[
            Provider("gmkernels", functools.partial(_m2_ours, "auto")),
            Provider("reference", functools.partial(_m2_ours, "reference"), library=True),
            Provider("eager", lambda inputs, mode: _stock(_m2_module(inputs))),
            Provider("compile", lambda inputs, mode: _compiled(lambda: _m2_module(inputs))),
            Provider("pyro", _pyro, package="pyro-ppl"),
        ],
        modes=("step",),
        flops={"step": _flops(batch, once, 2) + _flops(batch * classes, each, 0)},
        accounting="the matrix products alone, those with an image once and not once for each class",
    )


CASES = (_plain_case(128, 400, 20), _m2_case(128, 500, 50, 10))
