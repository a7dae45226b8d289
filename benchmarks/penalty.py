"""The gradient penalty of WGAN-GP: the penalty with its gradient by the critic's weights, and whole steps of a critic.

* ``gmkernels`` takes the first-order route;
* ``eager`` differentiates the backward pass (``create_graph=True``), on contiguous and on ``channels_last`` tensors, as
  every peer does;
* ``compile`` is what ``torch.compile`` accepts of it: for the penalty alone, gradients of gradients by ``torch.func``;
  for a step, the scores of real and fake samples, with the penalty outside;
* ``gmkernels compiled`` is a step with our penalty under ``torch.compile``, whole.

A step is the loss of a WGAN-GP critic on a batch of real and one of fake images, its gradients, and fused Adam. The
first step is what is checked: its loss and gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import gmkernels as gmk

from .case import Built, Case, Inputs, Program, Provider, Setting, backend_of
from .case import leaf as to_leaf

Penalty = Callable[[nn.Module, Inputs], Tensor]


class Geometry:
    """A critic of convolutions with LeakyReLU, and its images."""

    def __init__(self, channels: Sequence[int], kernel: int, padding: int, size: int) -> None:
        self.channels, self.kernel, self.padding, self.size = channels, kernel, padding, size
        self.last = size
        for _ in channels[1:]:
            self.last = (self.last + 2 * padding - kernel) // 2 + 1

    def build(self, inputs: Inputs) -> nn.Sequential:
        weights: Iterator[Tensor] = (inputs[f"weight{i}"] for i in range(len(self.channels)))
        layers: list[nn.Module] = []
        for a, b in zip(self.channels, self.channels[1:], strict=False):
            layers += [nn.Conv2d(a, b, self.kernel, 2, self.padding), nn.LeakyReLU(0.2)]
        critic = nn.Sequential(*layers, nn.Flatten(), nn.Linear(self.channels[-1] * self.last**2, 1)).to(inputs["real"])
        with torch.no_grad():
            for m in critic:
                if isinstance(m, (nn.Conv2d, nn.Linear)):
                    assert m.bias is not None
                    m.weight.copy_(next(weights).reshape(m.weight.shape))
                    m.bias.fill_(0.01)
        return critic

    def inputs(self, batch: int, setting: Setting) -> Inputs:
        normal = setting.stream()
        fans = [a * self.kernel**2 for a in self.channels[:-1]] + [self.channels[-1] * self.last**2]
        outs = [*self.channels[1:], 1]
        tensors = {
            f"weight{i}": normal(out, fan, scale=(2 / fan) ** 0.5)
            for i, (fan, out) in enumerate(zip(fans, outs, strict=True))
        }
        shape = (batch, self.channels[0], self.size, self.size)
        # Of different brightness, so that the gradients of biases do not cancel.
        tensors |= {"real": normal(*shape).tanh(), "fake": (0.5 * normal(*shape) + 0.4).tanh()}
        tensors["eps"] = torch.linspace(0.01, 0.99, batch).to(setting.device, setting.dtype)
        return Inputs(tensors, (torch.ones((), device=setting.device, dtype=setting.dtype),))

    def flops(self, batch: int) -> int:
        """Of the products of one pass."""
        side, total = self.size, 0
        for a, b in zip(self.channels, self.channels[1:], strict=False):
            side = (side + 2 * self.padding - self.kernel) // 2 + 1
            total += 2 * batch * side * side * a * b * self.kernel**2
        return total + 2 * batch * self.channels[-1] * self.last**2


def weights(critic: nn.Module) -> list[nn.Parameter]:
    """What a penalty of piecewise linear layers depends on: no bias moves it."""
    return [p for p in critic.parameters() if p.dim() > 1]


def ours(critic: nn.Module, inputs: Inputs) -> Tensor:
    return gmk.gradient_penalty(critic, inputs["real"], inputs["fake"], eps=inputs["eps"])


def stock(critic: nn.Module, inputs: Inputs) -> Tensor:
    eps = inputs["eps"].reshape(-1, 1, 1, 1)
    x = (eps * inputs["real"] + (1 - eps) * inputs["fake"]).requires_grad_()
    (g,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return 10.0 * (g.flatten(1).norm(2, 1) - 1).square().mean()


class _Known(torch.autograd.Function):
    """A value whose gradients have been computed with it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: Sequence[Tensor], *leaves: Tensor) -> Tensor:
        ctx.grads = grads
        return value.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, None, *[g * grad for g in ctx.grads]


def _functional(critic: nn.Sequential, inputs: Inputs, mode: str) -> Program:
    names = [name for name, p in critic.named_parameters() if p.dim() > 1]
    rest = {name: p.detach() for name, p in critic.named_parameters() if p.dim() <= 1}

    def penalty(values: list[Tensor], x: Tensor) -> Tensor:
        def score(at: Tensor) -> Tensor:
            given = dict(zip(names, values, strict=True)) | rest
            return torch.func.functional_call(critic, given, (at,)).sum()

        return 10.0 * (torch.func.grad(score)(x).flatten(1).norm(2, 1) - 1).square().mean()

    fast = torch.compile(torch.func.grad_and_value(penalty), fullgraph=True, dynamic=False, mode=mode)
    leaves = [to_leaf(p) for p in weights(critic)]

    def call() -> Sequence[Tensor]:
        x = torch.lerp(inputs["fake"], inputs["real"], inputs["eps"].reshape(-1, 1, 1, 1))
        grads, value = fast([t.detach() for t in leaves], x)
        return (_Known.apply(value, grads, *leaves),)

    return Program(call, leaves)


def _loss(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    n = len(real)
    scores = critic(torch.cat([fake, real]))
    return scores[:n].mean() - scores[n:].mean()


def _program(critic: nn.Module, inputs: Inputs, mode: str, penalty: Penalty, loss: Any = _loss,
             backend: str | None = None) -> Program:  # fmt: skip
    if mode == "fwd+bwd":
        return Program(lambda: (penalty(critic, inputs),), weights(critic), backend=backend)
    # The penalty first: what it needs meanwhile is not there any more when the scores' graph is.
    return _step(critic, lambda: penalty(critic, inputs) + loss(critic, inputs["real"], inputs["fake"]), backend)


def _step(critic: nn.Module, loss: Callable[[], Tensor], backend: str | None = None) -> Program:
    shown, optimizer = list(critic.parameters()), torch.optim.Adam(critic.parameters(), 1e-4, (0.0, 0.9), fused=True)

    def call() -> Sequence[Tensor]:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return (value.detach(), *[p.grad for p in shown if p.grad is not None])

    return Program(call, backend=backend)


def _last(inputs: Inputs) -> Inputs:
    """Images in channels_last, as a data loader would hand them over."""
    images = {k: t.contiguous(memory_format=torch.channels_last) for k, t in inputs.tensors.items() if t.dim() == 4}
    return Inputs({**inputs.tensors, **images}, inputs.cotangents)


def _layouts(geometry: Geometry, penalty: Penalty, inputs: Inputs, mode: str, compile_loss: bool = False) -> Built:
    backend = backend_of(gmk.norm_penalty, inputs["real"]) if penalty is ours else None

    def build(last: bool) -> Program:
        critic = geometry.build(inputs)
        loss: Any = torch.compile(_loss, fullgraph=True, dynamic=False) if compile_loss else _loss
        if not last:
            return _program(critic, inputs, mode, penalty, loss, backend)
        critic = critic.to(memory_format=torch.channels_last)
        return _program(critic, _last(inputs), mode, penalty, loss, backend)

    return {"contiguous": lambda: build(False), "channels_last": lambda: build(True)}


def _compiled(geometry: Geometry, inputs: Inputs, mode: str) -> Built:
    if mode == "step":
        return _layouts(geometry, stock, inputs, mode, compile_loss=True)
    return {
        mode: lambda mode=mode: _functional(geometry.build(inputs), inputs, mode)
        for mode in ("default", "max-autotune-no-cudagraphs")
    }


def _compiled_ours(geometry: Geometry, inputs: Inputs, mode: str) -> Program:
    def whole(critic: nn.Module, inputs: Inputs) -> Tensor:
        return ours(critic, inputs) + _loss(critic, inputs["real"], inputs["fake"])

    fast: Any = torch.compile(whole, fullgraph=True, dynamic=False)
    critic = geometry.build(inputs)
    return _step(critic, lambda: fast(critic, inputs))


def _truth(geometry: Geometry, inputs: Inputs, maths: str, mode: str) -> list[Tensor]:
    wide = Inputs({name: t.double() for name, t in inputs.tensors.items()}, inputs.cotangents)
    critic = geometry.build(wide)
    value, by = stock(critic, wide), weights(critic)
    if mode == "step":
        value, by = value + _loss(critic, wide["real"], wide["fake"]), list(critic.parameters())
    found = torch.autograd.grad(value, by, allow_unused=mode == "step")
    return [value.detach(), *[g for g in found if g is not None]]


def _case(name: str, batch: int, geometry: Geometry) -> Case:
    one = geometry.flops(batch)
    return Case(
        family="penalty",
        name=f"{name}-b{batch}",
        shape=f"batch {batch}, {geometry.channels[0]}x{geometry.size}x{geometry.size}, "
        + "-".join(map(str, geometry.channels[1:])),
        inputs=functools.partial(geometry.inputs, batch),
        truth=functools.partial(_truth, geometry),
        providers=[
            Provider("gmkernels", functools.partial(_layouts, geometry, ours)),
            Provider("gmkernels compiled", functools.partial(_compiled_ours, geometry), library=True, modes=("step",)),
            Provider("eager", functools.partial(_layouts, geometry, stock)),
            Provider("compile", functools.partial(_compiled, geometry)),
        ],
        modes=("fwd+bwd", "step"),
        flops={"fwd+bwd": 4 * one, "step": 10 * one},
        accounting="four products a layer for the penalty, three for each batch's scores; the first layer's count as any's",
    )


CASES = (
    _case("mnist28", 64, Geometry((1, 64, 128), 5, 2, 28)),
    _case("dcgan32", 64, Geometry((3, 64, 128, 256), 4, 1, 32)),
    _case("dcgan64", 32, Geometry((3, 64, 128, 256, 512), 4, 1, 64)),
)
