"""Whole training steps of RealNVP: loss, gradients, and Adam.

``gmkernels`` is the model of ``genmodels`` as its recipe makes it, ``reference`` the same model on our plain-PyTorch
definitions, and ``compiled reference`` that under ``torch.compile``. All dequantise with the same noise. The first
step, from the same weights, is what is checked: its loss and the gradients of its first layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import gmkernels as gmk
from genmodels.flows import RealNVP

from .case import Built, Case, Inputs, Program, Provider, Setting, backend_of

Made = tuple[RealNVP, Callable[[], Tensor]]
Make = Callable[[Tensor], Made]


def _image_inputs(batch: int, setting: Setting) -> Inputs:
    """Mostly black pixels with some grey, as digits have them."""
    ink = setting.stream()(batch, 1, 28, 28)
    return Inputs({"x": ((ink.clamp(1, 3) - 1) / 2)}, ())


def _images(x: Tensor) -> Made:
    pixels = (x.float() * 255).to(torch.uint8)
    key = gmk.random.key(seed=0, device=x.device)
    torch.manual_seed(0)
    model = RealNVP(
        (1, 28, 28), levels=256, alpha=0.025 / 256, widths=(16, 32, 48), tail=6, hidden=256,
        scale_map="soft_clip", clamp=5.0,
    )  # fmt: skip
    model.initialise(pixels.cpu())
    _unsettle(model.to(x))
    return model, lambda: -model.log_prob(pixels, key=key).mean() / model.features


def _plane_inputs(batch: int, setting: Setting) -> Inputs:
    return Inputs({"x": setting.stream()(batch, 2)}, ())


def _plane(x: Tensor) -> Made:
    torch.manual_seed(0)
    model = RealNVP(2, couplings=8, hidden=64, scale_map="soft_clip", clamp=5.0)
    model.initialise(x.float().cpu())
    _unsettle(model.to(x))
    return model, lambda: -model.log_prob(x).mean()


def _unsettle(model: RealNVP) -> None:
    """Away from the start, where the conditioners' last layers are zero and all gradients before them vanish."""
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_((0.02 * torch.randn(p.shape, generator=noise)).to(p))


def _shown(model: RealNVP) -> list[torch.nn.Parameter]:
    return list(model.parameters())[:4]


def _steps(made: Made, backend: str) -> Program:
    model, loss = made
    optimizer = torch.optim.Adam(model.parameters(), 1e-5, fused=True)

    def call() -> Sequence[Tensor]:
        optimizer.zero_grad()
        with gmk.use_backend(backend):
            value = loss()
        value.backward()
        optimizer.step()
        return [value, *[p.grad for p in _shown(model) if p.grad is not None]]

    return Program(call, backend=backend)


def _ours(make: Make, inputs: Inputs, mode: str) -> Program:
    return _steps(make(inputs["x"]), backend_of(gmk.affine_coupling, inputs["x"]))


def _reference(make: Make, inputs: Inputs, mode: str) -> Program:
    return _steps(make(inputs["x"]), "reference")


def _compiled(make: Make, inputs: Inputs, mode: str) -> Built:
    def build(variant: str) -> Program:
        model, loss = make(inputs["x"])
        return _steps((model, torch.compile(loss, dynamic=False, mode=variant)), "reference")

    return {variant: functools.partial(build, variant) for variant in ("default", "max-autotune")}


def _truth(make: Make, inputs: Inputs, *_: str) -> list[Tensor]:
    model, loss = make(inputs["x"].double())
    with gmk.use_backend("reference"):
        value = loss()
        return [value.detach(), *torch.autograd.grad(value, _shown(model))]


def _case(name: str, shape: str, inputs: Callable[[Setting], Inputs], make: Make) -> Case:
    return Case(
        family="flows",
        name=name,
        shape=shape,
        inputs=inputs,
        truth=functools.partial(_truth, make),
        providers=[
            Provider("gmkernels", functools.partial(_ours, make)),
            Provider("reference", functools.partial(_reference, make), library=True),
            Provider("compiled reference", functools.partial(_compiled, make), library=True),
        ],
        modes=("step",),
    )


CASES = (
    _case("realnvp-mnist-32", "32 images of 28 x 28, the demo's model", functools.partial(_image_inputs, 32), _images),
    _case("realnvp-plane-512", "512 points of the plane, 8 couplings", functools.partial(_plane_inputs, 512), _plane),
)
