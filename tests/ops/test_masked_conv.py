"""What the table cannot know of masked convolutions: who sees whom, textbook masks, memory formats, and the layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d, conv2d, pad

import gmkernels as gmk
from gmkernels.core import backends
from gmkernels.testing.table import draw

BACKENDS = [name for name in ("reference", "cpu") if backends.unavailable(name) is None]
pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def _values(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0) -> Tensor:
    return draw(shape, dtype, torch.Generator().manual_seed(seed), scale)


def _mask(weight: Tensor, mask_type: str, groups: int) -> Tensor:
    """The textbook's mask, from the order of pixels and, within a pixel, of channel groups."""
    outputs, inputs, height, width = weight.shape
    mask = torch.zeros_like(weight)
    for o in range(outputs):
        for i in range(inputs):
            for u in range(height):
                for v in range(width):
                    group_out, group_in = o * groups // outputs, i * groups // inputs
                    now, then = (height // 2, width // 2, group_out), (u, v, group_in)
                    mask[o, i, u, v] = then < now or (then == now and mask_type == "B")
    # Before in raster order, that is: a tap to the right of the centre in its own row is not.
    return mask


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5), (7, 7), (1, 5), (5, 3)])
@pytest.mark.parametrize("mask_type", ["A", "B"])
def test_it_is_the_textbooks_masked_convolution(backend, mask_type: str, kernel: tuple[int, int], groups: int) -> None:
    x, bias = _values(2, 6, 6, 5).requires_grad_(), _values(9, seed=2).requires_grad_()
    weight = _values(9, 6, *kernel, seed=1).requires_grad_()
    y = gmk.masked_conv2d(x, weight, bias, mask_type=mask_type, channel_groups=groups, backend=backend)
    mask = _mask(weight, mask_type, groups)
    expected = conv2d(x, weight * mask, bias, padding=(kernel[0] // 2, kernel[1] // 2))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    inputs, g = (x, weight, bias), _values(*y.shape, seed=3)
    ours, theirs = torch.autograd.grad(y, inputs, g, materialize_grads=True), torch.autograd.grad(expected, inputs, g)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert not (ours[1] * (1 - mask)).any(), "masked taps have no gradient"


@pytest.mark.parametrize("mask_type,groups", [("A", 1), ("B", 1), ("A", 3), ("B", 3)])
@pytest.mark.parametrize("kernel", [3, 7])
def test_outputs_depend_on_what_comes_before_and_on_nothing_else(backend, mask_type, groups, kernel: int) -> None:
    side, channels = 5, 3
    weight = _values(channels, channels, kernel, kernel).abs() + 0.1

    def layer(x: Tensor) -> Tensor:
        return gmk.masked_conv2d(x, weight, mask_type=mask_type, channel_groups=groups, backend=backend)

    x = _values(1, channels, side, side, seed=1).requires_grad_()
    seen = torch.zeros(channels, side, side, channels, side, side, dtype=torch.bool)
    y = layer(x)
    for o in range(channels):
        for i in range(side):
            for j in range(side):
                grad = torch.autograd.grad(y[0, o, i, j], x, retain_graph=True, materialize_grads=True)[0]
                seen[o, i, j] = grad[0] != 0
    reach = kernel // 2
    for o, i, j, c, u, v in torch.cartesian_prod(*[torch.arange(n) for n in seen.shape]).tolist():
        within = abs(u - i) <= reach and abs(v - j) <= reach
        same = (u, v) == (i, j) and (c * groups // channels < o * groups // channels + (mask_type == "B"))
        assert seen[o, i, j, c, u, v] == (within and ((u, v) < (i, j) or same)), (o, i, j, c, u, v)


def test_what_lies_under_the_mask_is_never_read(backend) -> None:
    x, weight = _values(2, 3, 5, 6, dtype=torch.float32), _values(6, 3, 3, 3, dtype=torch.float32)
    mask = _mask(weight, "A", 3).bool()
    results = []
    for poison in (0.0, float("nan")):
        w = torch.where(mask, weight, poison).requires_grad_()
        image = x.clone().requires_grad_()
        y = gmk.masked_conv2d(image, w, mask_type="A", channel_groups=3, backend=backend)
        results.append((y, *torch.autograd.grad(y.square().sum(), (image, w))))
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean, poisoned)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_channels_last_images_give_channels_last_images_of_the_same_bits(backend, dtype: torch.dtype) -> None:
    x, weight = _values(3, 10, 7, 9, dtype=dtype), _values(12, 10, 3, 3, dtype=dtype, seed=1)
    g, cond = _values(3, 6, 7, 9, dtype=dtype, seed=2), _values(3, 12, dtype=dtype, seed=3)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        image, w = x.contiguous(memory_format=layout).requires_grad_(), weight.clone().requires_grad_()
        pre = gmk.masked_conv2d(image, w, mask_type="B", backend=backend)
        y = gmk.gated_activation(pre, cond, backend=backend)
        grads = torch.autograd.grad(y, (image, w), g.contiguous(memory_format=layout))
        if backend != "reference":
            assert all(t.is_contiguous(memory_format=layout) for t in (pre, y, grads[0]))
        results.append((pre, y, *grads))
    for one, other in zip(*results, strict=True):
        if backend == "reference":
            torch.testing.assert_close(one, other)
        else:
            assert torch.equal(one, other)


@pytest.mark.parametrize("dilation", [1, 2, 5, 40])
def test_causal_convolution_is_a_convolution_of_what_came_before(backend, dilation: int) -> None:
    x, weight, bias = _values(2, 3, 33), _values(4, 3, 3, seed=1), _values(4, seed=2)
    y = gmk.causal_conv1d(x, weight, bias, dilation=dilation, backend=backend)
    expected = conv1d(pad(x, (2 * dilation, 0)), weight, bias, dilation=dilation)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    before = gmk.causal_conv1d(x[..., :20], weight, bias, dilation=dilation, backend=backend)
    torch.testing.assert_close(before, y[..., :20], rtol=1e-12, atol=1e-12)


def test_images_larger_than_what_a_task_takes(backend) -> None:
    x, weight = _values(3, 2, 61, 83, dtype=torch.float32), _values(70, 2, 3, 3, dtype=torch.float32, seed=1)
    whole = gmk.masked_conv2d(x, weight, mask_type="B", backend=backend)
    expected = conv2d(x.double(), weight.double() * _mask(weight, "B", 1), padding=1)
    torch.testing.assert_close(whole.double(), expected, rtol=1e-5, atol=1e-5)
    signal, taps = _values(1, 3, 5000, dtype=torch.float32), _values(5, 3, 2, dtype=torch.float32, seed=1)
    found = gmk.causal_conv1d(signal, taps, dilation=512, backend=backend)
    expected = conv1d(pad(signal.double(), (512, 0)), taps.double(), dilation=512)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_batches_larger_than_what_is_packed_at_a_time(backend) -> None:
    x = torch.randn(90, 64, 28, 28, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = _values(3, 64, 3, 3, dtype=torch.float32, scale=0.1).requires_grad_()
    y = gmk.masked_conv2d(x, weight, mask_type="B", backend=backend)
    parts = [gmk.masked_conv2d(part, weight, mask_type="B", backend=backend) for part in x.split(45)]
    torch.testing.assert_close(y, torch.cat(parts), rtol=1e-6, atol=1e-6)
    by_x, by_weight = torch.autograd.grad(y.square().sum(), (x, weight))
    halves = [torch.autograd.grad(part.square().sum(), (x, weight)) for part in parts]
    torch.testing.assert_close(by_x, halves[0][0] + halves[1][0], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(by_weight, halves[0][1] + halves[1][1], rtol=1e-4, atol=1e-2)


def test_layers_are_their_operators(backend) -> None:
    torch.manual_seed(0)
    x = _values(2, 6, 5, 4, dtype=torch.float32)
    layer = gmk.nn.MaskedConv2d(6, 9, 3, "A", 3, backend=backend)
    expected = gmk.masked_conv2d(x, layer.weight, layer.bias, mask_type="A", channel_groups=3, backend=backend)
    assert torch.equal(layer(x), expected)
    assert repr(layer) == "MaskedConv2d(6, 9, 3x3, mask A, channel_groups=3)"
    causal = gmk.nn.CausalConv1d(6, 4, 2, dilation=2, bias=False, backend=backend)
    signal = x.flatten(2)
    assert torch.equal(causal(signal), gmk.causal_conv1d(signal, causal.weight, dilation=2, backend=backend))
    cond = _values(2, 6, dtype=torch.float32, seed=1)
    gate = gmk.nn.GatedActivation(backend=backend)
    assert torch.equal(gate(x, cond), gmk.gated_activation(x, cond, backend=backend))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    for bad in (dict(kernel_size=2), dict(mask_type="C"), dict(channel_groups=2)):
        with pytest.raises(ValueError, match="MaskedConv2d: "):
            gmk.nn.MaskedConv2d(**{"in_channels": 6, "out_channels": 9, "kernel_size": 3, "mask_type": "A", **bad})


def test_initial_weights_are_scaled_by_the_taps_that_count(backend) -> None:
    """Of unit images, a layer's outputs then have one variance, whatever its mask hides."""
    torch.manual_seed(1)
    for kernel, mask_type, groups in ((3, "A", 1), (7, "B", 1), (5, "B", 3), (1, "B", 1)):
        layer = gmk.nn.MaskedConv2d(24, 384, kernel, mask_type, groups, bias=False, backend=backend)
        y = layer(torch.randn(4, 24, 15, 15))[:, :, 7, 7]
        assert abs(y.var().item() - 1 / 3) < 0.08, (kernel, mask_type, groups)
