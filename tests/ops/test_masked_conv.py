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
    endless = gmk.causal_conv1d(x, weight, bias, dilation=2**63 + dilation, backend=backend)
    torch.testing.assert_close(endless, gmk.causal_conv1d(x, weight[:, :, 2:], bias, backend=backend))
    torch.testing.assert_close(before, y[..., :20], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel,groups", [(3, 1), (7, 2)])
def test_images_and_signals_of_several_strips(backend, kernel: int, groups: int) -> None:
    x = _values(3, 2, 61, 83, dtype=torch.float32).requires_grad_()
    weight = _values(70, 2, kernel, kernel, dtype=torch.float32, seed=1, scale=0.3).requires_grad_()
    y = gmk.masked_conv2d(x, weight, mask_type="B", channel_groups=groups, backend=backend)
    definition = conv2d(x.double(), weight.double() * _mask(weight, "B", groups), padding=kernel // 2)
    _same_to_rounding(y, definition, (x, weight))
    signal = _values(2, 3, 5000, dtype=torch.float32).requires_grad_()
    taps = _values(5, 3, 2, dtype=torch.float32, seed=1).requires_grad_()
    found = gmk.causal_conv1d(signal, taps, dilation=512, backend=backend)
    definition = conv1d(pad(signal.double(), (512, 0)), taps.double(), dilation=512)
    _same_to_rounding(found, definition, (signal, taps))


def _same_to_rounding(y: Tensor, definition: Tensor, inputs: tuple[Tensor, ...]) -> None:
    """Values and gradients in float32, of a definition in float64."""
    torch.testing.assert_close(y.double(), definition, rtol=1e-5, atol=1e-5)
    g = _values(*y.shape, dtype=torch.float32, seed=9)
    expected = torch.autograd.grad(definition, inputs, g.double())
    for one, other in zip(torch.autograd.grad(y, inputs, g), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


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


@pytest.mark.parametrize("mask_type,kernel,groups", [("B", (3, 3), 1), ("A", (5, 5), 3), ("B", (1, 3), 1)])
@pytest.mark.parametrize("cond", [None, "label", "map", "one map", "wide label"])
def test_a_gated_convolution_is_a_convolution_and_its_gate(backend, mask_type, kernel, groups: int, cond) -> None:
    """In values, derivatives, and second derivatives; with several groups, the gate takes the halves of each."""
    c = 2 * groups
    shapes = {"label": (9, 2 * c), "map": (9, 2 * c, 5, 6), "one map": (1, 1, 5, 6), "wide label": (9, 2 * c, 1, 1)}
    inputs = [_values(9, c, 5, 6), _values(2 * c, c, *kernel, seed=1, scale=0.4), _values(2 * c, seed=2)]
    inputs += [_values(*shapes[cond], seed=3)] if cond else []
    rule = {"mask_type": mask_type, "channel_groups": groups, "backend": backend}

    def both(x: Tensor, weight: Tensor, bias: Tensor, cond: Tensor | None = None) -> Tensor:
        return gmk.gated_masked_conv2d(x, weight, bias, cond, **rule)

    def steps(x: Tensor, weight: Tensor, bias: Tensor, cond: Tensor | None = None) -> Tensor:
        pre = gmk.masked_conv2d(x, weight, bias, **rule)
        if cond is not None:
            pre = pre + (cond if cond.dim() == 4 else cond[:, :, None, None])
        groups_of_halves = pre.unflatten(1, (groups, -1)).flatten(0, 1)
        return gmk.gated_activation(groups_of_halves, backend=backend).unflatten(0, (-1, groups)).flatten(1, 2)

    found = []
    for layer in (both, steps):
        leaves = [t.clone().requires_grad_() for t in inputs]
        y = layer(*leaves)
        g = _values(*y.shape, seed=4).requires_grad_()
        first = torch.autograd.grad(y, leaves, g, create_graph=True)
        tops = [_values(*t.shape, seed=5 + i) for i, t in enumerate(first)]
        found.append([y, *first, *torch.autograd.grad(first, [g, *leaves], tops)])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        assert torch.equal(both(*inputs), found[0][0]), "nothing but what is kept depends on what is differentiated"


def test_a_gated_convolution_has_the_bits_of_its_steps(backend) -> None:
    x, weight, bias, cond = (_values(*s, dtype=torch.float32) for s in ((5, 7, 9, 6), (20, 7, 3, 3), (20,), (5, 20)))
    x.requires_grad_()
    pre = gmk.masked_conv2d(x, weight, bias, mask_type="B", backend=backend)
    steps = gmk.gated_activation(pre, cond, backend=backend)
    found = gmk.gated_masked_conv2d(x, weight, bias, cond, mask_type="B", backend=backend)
    if backend == "cpu":
        assert torch.equal(found, steps)
    torch.testing.assert_close(found, steps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gated_convolution_keeps_the_memory_format(backend, dtype: torch.dtype) -> None:
    x, weight, cond = (_values(*s, dtype=dtype) for s in ((3, 6, 7, 9), (12, 6, 3, 3), (3, 12, 7, 9)))
    g, results = _values(3, 6, 7, 9, dtype=dtype, seed=2), []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaves = [t.contiguous(memory_format=layout).requires_grad_() for t in (x, cond)]
        y = gmk.gated_masked_conv2d(leaves[0], weight, None, leaves[1], mask_type="B", backend=backend)
        grads = torch.autograd.grad(y, leaves, g.contiguous(memory_format=layout))
        if backend != "reference":
            assert all(t.is_contiguous(memory_format=layout) for t in (y, *grads))
        results.append((y, *grads))
    torch.testing.assert_close(*results, **({} if backend == "reference" else {"rtol": 0, "atol": 0}))


def test_gated_convolutions_of_several_strips(backend) -> None:
    x = _values(2, 3, 61, 83, dtype=torch.float32).requires_grad_()
    weight = _values(70, 3, 3, 3, dtype=torch.float32, seed=1, scale=0.3).requires_grad_()
    cond = _values(2, 70, 61, 83, dtype=torch.float32, seed=2).requires_grad_()
    label = _values(2, 70, dtype=torch.float32, seed=3).requires_grad_()
    for more in (cond, label):
        y = gmk.gated_masked_conv2d(x, weight, None, more, mask_type="B", backend=backend)
        pre = conv2d(x.double(), weight.double() * _mask(weight, "B", 1), padding=1)
        a, b = (pre + (more if more.dim() == 4 else more[:, :, None, None]).double()).chunk(2, 1)
        _same_to_rounding(y, torch.tanh(a) * torch.sigmoid(b), (x, weight, more))


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
    both = gmk.nn.GatedMaskedConv2d(6, 9, 3, "A", 3, backend=backend)
    wide = _values(2, 18, dtype=torch.float32, seed=2)
    expected = gmk.gated_masked_conv2d(
        x, both.weight, both.bias, wide, mask_type="A", channel_groups=3, backend=backend
    )
    assert torch.equal(both(x, wide), expected)
    torch.testing.assert_close(both.plain_forward(x, wide), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == both(x, wide).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="GatedMaskedConv2d: out_channels"):
        gmk.nn.GatedMaskedConv2d(6, 8, 3, "A", 3)
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
