"""PixelCNNs see the pixels before and no others, and their probabilities add up to one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gmkernels as gmk
from genmodels.autoregressive import GatedPixelCNN, PixelCNN, PixelModel, discretised_logistic
from genmodels.data import Batch
from tests.pixels import HEADS, every_image, small

# ---- what sees what --------------------------------------------------------------------------------------------------


def _seen(model: PixelModel, images: int = 8) -> Tensor:
    """Whether an output depends on an input, (outputs' group, H, W, inputs' channel, H, W), by autograd in float64."""
    channels, height, width = model.shape
    x = torch.randn(images, *model.shape, dtype=torch.float64, requires_grad=True)
    out = model.network(x)
    # A mixture of the outputs of a group with weights of their own, so that none cancels another.
    out = (out * torch.randn(out.shape[1], 1, 1, dtype=torch.float64)).unflatten(1, (model.groups, -1)).sum(2)
    seen = torch.zeros(model.groups, height, width, channels, height, width, dtype=torch.bool)
    for place in itertools.product(range(model.groups), range(height), range(width)):
        (grad,) = torch.autograd.grad(out[(slice(None), *place)].sum(), x, retain_graph=True)
        seen[place] = (grad != 0).any(0)
    return seen


def _expected(
    pixels: Callable[[int, int], set[tuple[int, int]]], channels: int, groups: int, height: int, width: int
) -> Tensor:
    """The same of a model that sees these earlier pixels whole, and of the pixel itself the channels before."""
    seen = torch.zeros(groups, height, width, channels, height, width, dtype=torch.bool)
    for row, column in itertools.product(range(height), range(width)):
        for there in pixels(row, column):
            seen[:, row, column, :, there[0], there[1]] = True
        for group in range(groups):
            seen[group, row, column, : group if groups > 1 else 0, row, column] = True
    return seen


def _raster(row: int, column: int, width: int) -> set[tuple[int, int]]:
    return {divmod(i, width) for i in range(row * width + column)}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("kernel", "layers"), [(3, 4), (3, 6), (5, 2), (5, 3), (7, 2)])
def test_a_deep_enough_gated_pixelcnn_sees_exactly_the_raster_order(kernel: int, layers: int, channels: int) -> None:
    """Every pixel before, none after: no blind spot."""
    height, width = 4, 5
    model = small(
        "gated", (channels, height, width), width=60, layers=layers, kernel=kernel, first_kernel=kernel
    ).double()
    expected = _expected(lambda r, c: _raster(r, c, width), channels, model.groups, height, width)
    assert torch.equal(_seen(model), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("first", "kernel", "layers"), [(3, 3, 1), (3, 3, 2), (5, 3, 2), (5, 5, 1), (3, 7, 2), (7, 3, 1)]
)
def test_a_shallow_gated_pixelcnn_sees_a_whole_cone(first: int, kernel: int, layers: int, channels: int) -> None:
    """As far as its kernels reach, up and to both sides above, and to the left in its own row."""
    height, width = 5, 9
    model = small(
        "gated", (channels, height, width), width=60, layers=layers, kernel=kernel, first_kernel=first
    ).double()
    reach = first // 2 + (layers - 1) * (kernel // 2)

    def cone(row: int, column: int) -> set[tuple[int, int]]:
        return {
            (r, c) for r, c in _raster(row, column, width) if row - r - (r < row) <= reach and abs(column - c) <= reach
        }

    seen = _seen(model)
    assert torch.equal(seen, _expected(cone, channels, model.groups, height, width))
    assert not torch.equal(seen, _expected(lambda r, c: _raster(r, c, width), channels, model.groups, height, width))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("first", "kernel", "blocks"), [(3, 3, 0), (3, 3, 2), (7, 3, 3), (5, 5, 2), (3, 7, 1)])
def test_a_pixelcnn_is_causal_and_sees_what_its_masks_reach(
    first: int, kernel: int, blocks: int, channels: int
) -> None:
    """The taps of its masks applied one after another; what they cannot reach, right above, is its blind spot."""
    height, width = 5, 7
    model = small(
        "plain", (channels, height, width), width=60, blocks=blocks, kernel=kernel, first_kernel=first
    ).double()

    def taps(size: int) -> set[tuple[int, int]]:
        m = size // 2
        return {(a, b) for a in range(-m, 1) for b in range(-m, m + 1) if (a, b) < (0, 0)}

    inside = lambda r, c: 0 <= r < height and 0 <= c < width  # noqa: E731
    expected = torch.zeros(model.groups, height, width, channels, height, width, dtype=torch.bool)
    for row, column in itertools.product(range(height), range(width)):
        places = {(row, column)}
        for _ in range(blocks):
            places |= {(r + a, c + b) for r, c in places for a, b in taps(kernel) if inside(r + a, c + b)}
        for r, c in places:
            # Of a pixel that a path ends at, the first convolution sees the channels before the path's.
            for group in range(model.groups):
                expected[group, row, column, : group if (r, c) == (row, column) else channels - 1, r, c] = True
            for there in ((r + a, c + b) for a, b in taps(first)):
                if inside(*there):
                    expected[:, row, column, :, there[0], there[1]] = True
    seen = _seen(model)
    assert torch.equal(seen, expected)
    strictly = seen.permute(1, 2, 0, 4, 5, 3).reshape(height * width * model.groups, -1)
    assert not strictly.triu().any()
    blind = _expected(lambda r, c: _raster(r, c, width), channels, model.groups, height, width) & ~seen
    assert blind.any(), "or the Gated PixelCNN would not be needed"


def test_the_mixture_links_colours_in_order() -> None:
    """With one group the network sees no channel of its own pixel; green is told red, and blue both, by the head."""
    model = small("gated", (3, 2, 2), head="mixture", levels=8, components=3).double()
    x = torch.randint(0, 8, (1, 3, 2, 2))
    assert model.groups == 1
    assert not _seen(model)[0, 1, 1, :, 1, 1].any()
    found = model(x).detach()[:, :, 1, 1][0]
    logits, rest = found[:3].softmax(0), found[3:].view(3, 3, 3)

    def law(of: int, values: list[float]) -> Tensor:
        mean = rest[of, 0].clone()
        for slope, value in zip({1: rest[:1, 2], 2: rest[1:, 2]}.get(of, rest[:0, 2]), values, strict=True):
            mean += slope.tanh() * value
        return discretised_logistic(torch.arange(8)[:, None], mean, rest[of, 1].clamp(min=-7), 8).exp()

    red, green, blue = (int(v) for v in x[0, :, 1, 1])
    r, g = (2 * v / 7 - 1 for v in (red, green))
    joint = (logits * law(0, [])[red] * law(1, [r])[green] * law(2, [r, g])[blue]).sum()
    without = x.clone()
    total = torch.zeros((), dtype=torch.float64)
    for colour in itertools.product(range(8), repeat=3):
        without[0, :, 1, 1] = torch.tensor(colour)
        total += model.log_prob(without).exp().sum().detach()
    torch.testing.assert_close((model.log_prob(x).exp() / total)[0].detach(), joint)


# ---- probabilities ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "gated"])
@pytest.mark.parametrize(
    ("head", "shape", "more"),
    [
        ("bernoulli", (1, 3, 3), {}),
        ("bernoulli", (1, 2, 2), {"classes": 2}),
        ("bernoulli", (3, 2, 2), {}),
        ("categorical", (1, 2, 3), {}),
        ("categorical", (3, 1, 2), {}),
        ("mixture", (1, 2, 2), {}),
        ("mixture", (3, 1, 2), {}),
        ("mixture", (3, 1, 2), {"groups": 3}),
    ],
)
def test_the_probabilities_of_all_images_add_up_to_one(
    kind: str, head: str, shape: tuple[int, int, int], more: dict[str, Any]
) -> None:
    model = small(kind, shape, **HEADS[head], **more).double()
    images = every_image(model.levels, shape)
    for label in range(model.classes) if model.classes else [None]:
        y = None if label is None else torch.full((len(images),), label)
        with torch.no_grad():
            p = model.log_prob(images, y).exp()
        torch.testing.assert_close(p.sum(), torch.ones((), dtype=torch.float64), rtol=0, atol=1e-10)
        assert p.max() > 4 * p.min(), "the uniform law would add up too"


@pytest.mark.parametrize("levels", [2, 3, 256])
def test_a_discretised_logistic_is_the_difference_of_two_sigmoids(levels: int) -> None:
    level = torch.arange(levels)[:, None]
    mean, log_scale = torch.linspace(-1.4, 1.4, 29, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)
    ends = (torch.arange(levels + 1, dtype=torch.float64)[:, None] - 0.5) * 2 / (levels - 1) - 1
    ends[0], ends[-1] = -math.inf, math.inf
    cumulative = torch.sigmoid((ends - mean) / log_scale.exp())
    found = discretised_logistic(level, mean, log_scale, levels)
    torch.testing.assert_close(found.exp(), cumulative[1:] - cumulative[:-1], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("log_scale", [-7.0, -3.0, 0.0, 12.0])
def test_a_discretised_logistic_keeps_its_digits_and_its_gradient_in_the_tails(log_scale: float) -> None:
    """In float32, where a difference of sigmoids is 0 or has lost everything."""
    mean = torch.linspace(-3, 3, 61).repeat(256, 1)
    level, scale = torch.arange(256)[:, None], torch.full_like(mean, log_scale)
    narrow = [t.clone().requires_grad_() for t in (mean, scale)]
    wide = [t.double().requires_grad_() for t in (mean, scale)]
    found, exact = (discretised_logistic(level, *pair, 256) for pair in (narrow, wide))
    # A rounding error of a place, in units of the scale.
    torch.testing.assert_close(found, exact.float(), rtol=2e-5, atol=2e-5 + 2**-22 * math.exp(-log_scale))
    # That it is a law, to the last digit, where the levels are told apart at all.
    torch.testing.assert_close(exact.logsumexp(0), torch.zeros(61, dtype=torch.float64), rtol=0, atol=1e-9)
    for ours, theirs in zip(
        torch.autograd.grad(found.sum(), narrow), torch.autograd.grad(exact.sum(), wide), strict=True
    ):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


def test_bits_per_dim_is_log_prob_in_another_unit() -> None:
    model = small("gated", (3, 2, 2), **HEADS["categorical"])
    x = torch.randint(0, 3, (5, 3, 2, 2))
    torch.testing.assert_close(model.bits_per_dim(x), -model.log_prob(x).detach() / (12 * math.log(2)))
    losses = model.losses(Batch(x, None))
    torch.testing.assert_close(losses["loss"].detach(), model.bits_per_dim(x).mean())
    torch.testing.assert_close(losses["nats"], -model.log_prob(x).mean().detach())


def test_the_outputs_are_read_as_each_head_says() -> None:
    """Log-probabilities against the definitions written out, from the same outputs of the network."""
    x = torch.randint(0, 2, (4, 3, 3, 2))
    model = small("plain", (3, 3, 2))
    expected = -F.binary_cross_entropy_with_logits(model(x), x.float(), reduction="none").sum((1, 2, 3))
    torch.testing.assert_close(model.log_prob(x), expected)
    model = small("plain", (3, 3, 2), head="categorical", levels=5)
    logits = model(x).view(4, 3, 5, 3, 2).log_softmax(2)
    torch.testing.assert_close(model.log_prob(x), logits.gather(2, x[:, :, None]).sum((1, 2, 3, 4)))


@pytest.mark.parametrize("kind", ["plain", "gated"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_class_changes_the_law_and_every_parameter_matters(kind: str, channels: int) -> None:
    model = small(kind, (channels, 5, 5), classes=3)
    x, y = torch.randint(0, 2, (6, channels, 5, 5)), torch.tensor([0, 1, 2, 0, 1, 2])
    found = model.log_prob(x, y)
    assert ((found - model.log_prob(x, (y + 1) % 3)).abs() > 1e-3).all()
    alone = torch.cat([model.log_prob(x[i : i + 1], y[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(alone, found, rtol=1e-5, atol=1e-5)
    found.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PixelCNN((1, 4, 4), kernel=4), r"kernel_size must be odd, got 4"),
        (lambda: PixelCNN((1, 4, 4), first_kernel=2), r"kernel_size must be odd, got 2"),
        (lambda: GatedPixelCNN((1, 4, 4), kernel=4), r"GatedPixelCNN: kernel sizes must be odd, got 4"),
        (lambda: GatedPixelCNN((1, 4, 4), first_kernel=6), r"GatedPixelCNN: kernel sizes must be odd, got 6"),
        (lambda: GatedPixelCNN((1, 4, 4), layers=0), r"layers must be at least 1, got 0"),
        (lambda: gmk.nn.MaskedConv2d(1, 1, 3, "C"), r"mask_type must be 'A' or 'B', got 'C'"),
        (lambda: PixelCNN((3, 4, 4), width=8), r"multiples of the 3 channel groups, got 8 and 8"),
        (lambda: PixelCNN((3, 4, 4), width=6, hidden=8), r"multiples of the 3 channel groups, got 6 and 8"),
        (lambda: PixelCNN((3, 4, 4), groups=1), r"groups must be the number of channels, 3, or 1 for a mixture"),
        (lambda: PixelCNN((2, 4, 4), groups=1, head="mixture"), r"groups must be the number of channels, 2, or 1"),
        (lambda: PixelCNN((4, 4)), r"shape must be \(C, H, W\), got \(4, 4\)"),
        (lambda: PixelCNN((1, 4, 4), head="normal"), r"head must be one of bernoulli, categorical, mixture, got"),
        (lambda: PixelCNN((1, 4, 4), levels=4), r"levels must be 2 for a Bernoulli head and at least 2 for others"),
        (lambda: PixelCNN((1, 4, 4), head="categorical", levels=1), r"levels must be 2 for .* got 1"),
        (lambda: PixelCNN((1, 4, 4), dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_models_that_cannot_be_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.log_prob(torch.full((2, 1, 4, 4), 3), _two), r"levels 0\.\.2, got values from 3 to 3"),
        (lambda m: m.log_prob(torch.full((2, 1, 4, 4), -1), _two), r"levels 0\.\.2, got values from -1 to -1"),
        (lambda m: m.log_prob(torch.zeros(2, 1, 4, 5).long(), _two), r"expected images \(batch, 1, 4, 4\), got"),
        (lambda m: m.log_prob(_images), r"needs a condition: labels \(batch,\) in 0\.\.1, got None"),
        (lambda m: m.log_prob(_images, torch.tensor([0, 2])), r"labels must lie in 0\.\.1, got values from 0 to 2"),
        (
            lambda m: m.log_prob(_images, torch.tensor([0])),
            r"must be 2 integer labels of shape \(2,\), got torch.int64",
        ),
        (lambda m: m.log_prob(_images, torch.zeros(2)), r"must be 2 integer labels of shape \(2,\), got torch.float32"),
        (lambda m: m.sample(2, _two, temperature=0.0), r"temperature must be more than 0 and finite, got 0.0"),
        (lambda m: m.sample(2, _two, method="fast"), r"method must be 'cached' or 'naive', got 'fast'"),
        (lambda m: m.inpaint(_images, _left, _two), r"needs a causal mask"),
        (lambda m: m.inpaint(_images, _left.flip(-2, -1), _two), r"needs a causal mask"),
        (lambda m: m.inpaint(_images + 3, _top, _two), r"levels 0\.\.2, got values from 0 to 3"),
    ],
)
def test_bad_arguments_are_explained(call: Callable[[PixelModel], object], message: str) -> None:
    model = small("gated", (1, 4, 4), head="categorical", levels=3, classes=2)
    with pytest.raises(ValueError, match=message):
        call(model)


_images, _two = torch.zeros(2, 1, 4, 4, dtype=torch.int64), torch.tensor([0, 1])
_left = (torch.arange(4) < 2).expand(4, 4)
_top = (torch.arange(4) < 2)[:, None].expand(4, 4)


def test_types_that_cannot_be_pixels_or_masks_are_refused() -> None:
    model = small("plain", (1, 4, 4))
    with pytest.raises(TypeError, match=r"pixels must be integers 0\.\.1, got torch.float32"):
        model.log_prob(torch.zeros(2, 1, 4, 4))
    with pytest.raises(TypeError, match=r"a mask must be bool, True where pixels are visible, got torch.int64"):
        model.inpaint(_images, _top.long())
    with pytest.raises(ValueError, match=r"PixelCNN without classes takes no condition"):
        model.log_prob(_images, _two)
