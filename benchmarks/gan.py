"""Whole training steps of adversarial models on 28x28 images: one update of the critic, one of the generator.

* ``gmkernels`` is the model of ``genmodels``, trained as :func:`genmodels.training.fit` does it;
* ``eager`` is the same step written by hand in stock PyTorch: ``channels_last``, fused Adam, no graph of the generator
  in the critic's update, no gradients of the critic's weights in the generator's, noise and images given;
* ``compile`` is that with both losses under ``torch.compile``, but for the gradient penalty, which is differentiated
  twice and which it refuses.

The first step, from the same weights with the same noise, is what is checked: both losses, and every gradient. Adam's
eps is large, so that the generator's gradients, which follow the critic's update, are a smooth function of the
critic's: with the usual one a rounding error decides the sign of an update where a gradient is zero.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gmkernels as gmk
from genmodels.data import Batch
from genmodels.gan import GAN, WGANGP, convolutional

from .case import Built, Case, Inputs, Program, Provider, Setting, backend_of

SHAPE, LATENTS, WIDTH, SEED, WEIGHT = (1, 28, 28), 64, 32, 5, 10.0
Loss = Callable[[], Tensor]


def _inputs(batch: int, wasserstein: bool, setting: Setting) -> Inputs:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        state = _model(wasserstein).state_dict()
        # What the model draws after manual_seed(SEED): latents, places on the way, latents.
        torch.manual_seed(SEED)
        keys = [gmk.random.key() for _ in range(3 if wasserstein else 2)]
    noise = [gmk.random.normal(key, (batch, LATENTS)) for key in (keys[0], keys[-1])]
    tensors = {name: value for name, value in state.items() if value.is_floating_point()}
    tensors |= {"z critic": noise[0], "z generator": noise[1]}
    if wasserstein:
        tensors["eps"] = gmk.random.uniform(keys[1], (batch, 1, 1, 1))
    tensors["x"] = (setting.stream()(batch, *SHAPE).float().cpu().sigmoid() * 255).round() / 127.5 - 1
    return Inputs({name: value.to(setting.device, setting.dtype) for name, value in tensors.items()}, ())


def _model(wasserstein: bool) -> GAN:
    networks = convolutional(SHAPE, latents=LATENTS, width=WIDTH, critic_norm="none" if wasserstein else "batch")
    return WGANGP(SHAPE, penalty_weight=WEIGHT, **networks) if wasserstein else GAN(SHAPE, **networks)


def _adam(network: nn.Module, wasserstein: bool) -> torch.optim.Adam:
    betas = (0.0, 0.9) if wasserstein else (0.5, 0.999)
    return torch.optim.Adam(network.parameters(), 2e-4, betas, eps=1e-2, fused=True)


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    network.requires_grad_(False)
    yield
    network.requires_grad_(True)


def _step(
    critic: nn.Module, generator: nn.Module, losses: tuple[Loss, Loss], wasserstein: bool
) -> Callable[[], list[Tensor]]:
    """Both updates; the results are both losses and all gradients."""
    optimizers = _adam(critic, wasserstein), _adam(generator, wasserstein)

    def call() -> list[Tensor]:
        found = []
        for other, optimizer, loss in zip((generator, critic), optimizers, losses, strict=True):
            with _frozen(other):
                optimizer.zero_grad()
                value = loss()
                value.backward()
                optimizer.step()
                found.append(value)
        gradients = [p.grad for network in (critic, generator) for p in network.parameters()]
        return [*found, *(g for g in gradients if g is not None)]

    return call


def _load(module: nn.Module, inputs: Inputs, prefix: str = "") -> None:
    state = {name: inputs[prefix + name] for name in module.state_dict() if prefix + name in inputs.tensors}
    module.load_state_dict(state, strict=False)


def _ours(wasserstein: bool, inputs: Inputs, mode: str) -> Program:
    x = inputs["x"]
    model = _model(wasserstein).to(x)
    _load(model, inputs)
    batch = Batch(((x + 1) / 2).clamp(0, 1))
    seeds = iter([SEED])

    def loss(part: str) -> Tensor:
        if part == "critic" and (seed := next(seeds, None)) is not None:
            torch.manual_seed(seed)
        return model.losses(batch, part)["loss"]

    losses = functools.partial(loss, "critic"), functools.partial(loss, "generator")
    step = _step(model.discriminator, model.generator, losses, wasserstein)
    return Program(step, backend=backend_of(gmk.random.normal, x) if wasserstein else None)


def _generator() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(LATENTS, 2 * WIDTH * 49, bias=False), nn.Unflatten(1, (2 * WIDTH, 7, 7)),
        nn.BatchNorm2d(2 * WIDTH), nn.ReLU(inplace=True),
        nn.ConvTranspose2d(2 * WIDTH, WIDTH, 4, 2, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU(inplace=True),
        nn.ConvTranspose2d(WIDTH, 1, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip


def _critic(normal: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = (1, WIDTH, 2 * WIDTH, 4 * WIDTH)
    for i in range(3):
        norm = normal and i > 0
        layers.append(nn.Conv2d(channels[i], channels[i + 1], 4, 2, 1, bias=not norm))
        layers += [*([nn.BatchNorm2d(channels[i + 1])] if norm else []), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * WIDTH * 9, 1))


def _stock(wasserstein: bool, inputs: Inputs, wrap: Callable[[Any], Any] = lambda f: f) -> Program:
    """The step by hand."""
    x, z, z_generator = inputs["x"], inputs["z critic"], inputs["z generator"]
    critic, generator = _critic(not wasserstein), _generator()
    for network, prefix in ((critic, "discriminator."), (generator, "generator.")):
        ours = [value for name, value in inputs.tensors.items() if name.startswith(prefix)]
        theirs = [value for value in network.state_dict().values() if value.is_floating_point()]
        for to, value in zip(theirs, ours, strict=True):
            to.copy_(value)
        network.to(x).to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)

    @wrap
    def scores(fake: Tensor) -> Tensor:
        real, false = critic(x), critic(fake)
        if wasserstein:
            return false.mean() - real.mean()
        return F.softplus(-real).mean() + F.softplus(false).mean()

    @wrap
    def fool() -> Tensor:
        found = critic(generator(z_generator))
        return -found.mean() if wasserstein else F.softplus(-found).mean()

    make = wrap(generator)

    def judge() -> Tensor:
        with torch.no_grad():
            fake = make(z)
        loss = scores(fake)
        if not wasserstein:
            return loss
        between = torch.lerp(fake, x, inputs["eps"]).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        return loss + WEIGHT * (gradient.flatten(1).norm(dim=1) - 1).square().mean()

    return Program(_step(critic, generator, (judge, fool), wasserstein))


def _compiled(wasserstein: bool, inputs: Inputs, mode: str) -> Built:
    def build(variant: str) -> Program:
        torch._dynamo.reset()
        return _stock(wasserstein, inputs, lambda f: torch.compile(f, dynamic=False, mode=variant))

    return {variant: functools.partial(build, variant) for variant in ("default", "max-autotune")}


def _truth(wasserstein: bool, inputs: Inputs, *_: str) -> Sequence[Tensor]:
    wide = Inputs({name: value.double() for name, value in inputs.tensors.items()}, ())
    return [result.detach().clone() for result in _stock(wasserstein, wide).call()]


def _flops(batch: int, wasserstein: bool) -> int:
    """Two operations a multiply-add of the products alone. A pass costs as much forward, by inputs and by weights; the
    first layer has no gradient by its input but where it is asked for, which is left out."""
    w = WIDTH
    generator = LATENTS * 2 * w * 49 + 2 * w * w * 16 * 49 + w * 16 * 196
    critic = w * 16 * 196 + 2 * w * w * 16 * 49 + 4 * w * 2 * w * 16 * 9 + 4 * w * 9
    # Critic: a fake batch; forward and backward of both. Generator: forward and backward, the critic's by inputs alone.
    passes = generator * (1 + 3) + critic * (6 + 2)
    # The penalty at its least: forward, by inputs, along a tangent, by weights.
    return 2 * batch * (passes + (4 * critic if wasserstein else 0))


def _case(name: str, batch: int, wasserstein: bool) -> Case:
    return Case(
        family="gan",
        name=f"{name}-b{batch}",
        shape=f"batch {batch}, 28x28, {WIDTH} channels",
        inputs=functools.partial(_inputs, batch, wasserstein),
        truth=functools.partial(_truth, wasserstein),
        providers=[
            Provider("gmkernels", functools.partial(_ours, wasserstein)),
            Provider("eager", lambda inputs, mode: _stock(wasserstein, inputs)),
            Provider("compile", functools.partial(_compiled, wasserstein)),
        ],
        modes=("step",),
        flops={"step": _flops(batch, wasserstein)},
        accounting="the products of convolutions and linear layers alone",
    )


CASES = (_case("dcgan28", 64, False), _case("wgan-gp28", 64, True))
