"""Masked convolution of square images, batch 16: mask and kernel size, channels (in and out), side of the image.

* ``textbook`` multiplies the weight by a mask and convolves with all taps;
* ``cropped`` is the strongest stock formulation: the same without the rows below, which leaves 6 of 9 and 28 of 49 taps
  where 5 and 25 (mask B) are needed;
* ``compile`` is the best of these under ``torch.compile``.

Each may store its images in either memory format, whichever is faster; ours gets them contiguous. ``gated`` is one
gated block (van den Oord et al., "Conditional image generation with PixelCNN decoders", 2016, equation 3): a masked 3x3
convolution to twice the channels, a condition per image added, and the gate; ``eager`` is its textbook form.

Operations: 2 for each pair of channels, unmasked tap and pixel, those at the border included; as many for the gradient
by the image and for that by the weight.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d

import gmkernels as gmk

from .case import Built, Case, Inputs, Program, Provider, Setting, backend_of, compiled, differentiate, leaf, plain

_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


def _mask(kernel: int, mask_type: str) -> Tensor:
    mask = torch.ones(kernel, kernel)
    mask[kernel // 2, kernel // 2 + (mask_type == "B") :] = 0.0
    mask[kernel // 2 + 1 :] = 0.0
    return mask


def _textbook(mask: Tensor) -> _Layer:
    return lambda x, weight, bias: conv2d(x, weight * mask, bias, padding=mask.shape[0] // 2)


def _cropped(mask: Tensor) -> _Layer:
    rows = mask.shape[0] // 2 + 1

    def layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return conv2d(x, weight[:, :, :rows] * mask[:rows], bias, padding=rows - 1)[:, :, : x.shape[2]]

    return layer


def _gate(layer: _Layer) -> Callable[..., Tensor]:
    def block(x: Tensor, weight: Tensor, bias: Tensor, cond: Tensor) -> Tensor:
        a, b = (layer(x, weight, bias) + cond[:, :, None, None]).chunk(2, 1)
        return torch.tanh(a) * torch.sigmoid(b)

    return block


def _leaves(inputs: Inputs, layout: torch.memory_format = torch.contiguous_format) -> list[Tensor]:
    stored = [t.contiguous(memory_format=layout) if t.dim() == 4 else t for t in inputs.tensors.values()]
    return [leaf(t) for t in stored]


def _one(function: Callable[..., Tensor]) -> Callable[..., Sequence[Tensor]]:
    return lambda *tensors: (function(*tensors),)


def _stock(function: Callable[[Tensor], Callable[..., Tensor]], mask: Tensor, inputs: Inputs, mode: str) -> Built:
    formula = _one(function(mask.to(inputs["x"])))
    return {
        name: functools.partial(lambda layout: plain(formula, _leaves(inputs, layout)), layout)
        for name, layout in _FORMATS.items()
    }


def _compile(
    functions: dict[str, Callable[[Tensor], Callable[..., Tensor]]], mask: Tensor, inputs: Inputs, mode: str
) -> Built:
    built: dict[str, Callable[[], Program]] = {}
    for name, layout in _FORMATS.items():
        formulas = {f"{kind}, {name}, ": _one(function(mask.to(inputs["x"]))) for kind, function in functions.items()}
        built |= compiled(formulas, _leaves(inputs, layout))
    return built


def _case(name: str, mask_type: str, kernel: int, channels: int, side: int, gated: bool = False) -> Case:
    batch, outputs, mask = 16, channels * (2 if gated else 1), _mask(kernel, mask_type)

    def inputs_of(setting: Setting) -> Inputs:
        normal = setting.stream()
        scale = (channels * mask.sum().item()) ** -0.5
        tensors = {
            "x": normal(batch, channels, side, side),
            "weight": normal(outputs, channels, kernel, kernel, scale=scale),
            "bias": normal(outputs),
        }
        if gated:
            tensors["cond"] = normal(batch, outputs)
        return Inputs(tensors, (normal(batch, channels, side, side),))

    ours = gmk.gated_masked_conv2d if gated else gmk.masked_conv2d

    def build(inputs: Inputs, mode: str) -> Program:
        leaves = _leaves(inputs)
        return Program(lambda: (ours(*leaves, mask_type=mask_type),), leaves, backend=backend_of(ours, leaves[0]))

    def truth(inputs: Inputs, maths: str, mode: str) -> list[Tensor]:
        definition = _textbook(mask.to(inputs["x"].device, torch.float64))
        function = _one(_gate(definition) if gated else definition)
        return differentiate(function, list(inputs.tensors.values()), inputs, mode)

    textbook = (lambda mask: _gate(_textbook(mask))) if gated else _textbook
    cropped = (lambda mask: _gate(_cropped(mask))) if gated else _cropped
    pairs = 2 * batch * side * side * channels * outputs * int(mask.sum().item())
    return Case(
        family="masked_conv",
        name=name,
        shape=f"{batch} x {channels} x {side} x {side}, {kernel}x{kernel} mask {mask_type}"
        + (", gated" if gated else ""),
        inputs=inputs_of,
        truth=truth,
        providers=[
            Provider("gmkernels", build),
            Provider("eager" if gated else "textbook", functools.partial(_stock, textbook, mask)),
            Provider("cropped", functools.partial(_stock, cropped, mask)),
            Provider("compile", functools.partial(_compile, {"textbook": textbook, "cropped": cropped}, mask)),
        ],
        flops={"fwd": pairs, "fwd+bwd": 3 * pairs},
        accounting="2 operations per pair of channels, unmasked tap and pixel, and twice that backward",
    )


CASES = (
    _case("b3-c64-28", "B", 3, 64, 28),
    _case("b7-c64-28", "B", 7, 64, 28),
    _case("a7-c64-28", "A", 7, 64, 28),
    _case("b3-c128-32", "B", 3, 128, 32),
    _case("gated-c64-28", "B", 3, 64, 28, gated=True),
)
