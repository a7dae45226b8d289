"""Samplers of PixelCNN and Gated PixelCNN: their law, the definition pixel by pixel, what may depend on what."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

import gmkernels as gmk
from gmkernels.ops.autoregressive import cached, library, reference
from gmkernels.ops.autoregressive.network import HEADS, Network
from gmkernels.testing.evaluate import threads
from gmkernels.testing.families.autoregressive import network, parameters

from . import support

BACKENDS = support.available(next(row for row in support.ROWS if row.operator == "pixelcnn_sample"))

NETWORKS = {
    "plain": network(kernels=(7, 3, 5), width=20, hidden=33),
    "gated": network(gated=True, kernels=(5, 3, 3), width=20, hidden=33),
    "categorical": network(head="categorical", levels=21, width=16, kernels=(5, 3)),
    "colours": network(head="categorical", levels=7, channels=3, groups=3, width=24, hidden=48),
    "gated colours": network(True, "categorical", 3, 3, 7, width=24, hidden=48, kernels=(3, 5)),
    "mixture": network(head="mixture", levels=64, width=16, components=3),
    "mixture of colours": network(True, "mixture", 3, 1, 256, width=16, kernels=(5, 3)),
    "three mixtures": network(False, "mixture", 3, 3, 32, width=9, hidden=9, kernels=(3, 3)),
}


def _parameters(net: Network, dtype: torch.dtype = torch.float32, seed: int = 1, scale: float = 2.0) -> list[Tensor]:
    return parameters(net, dtype, torch.Generator().manual_seed(seed), scale)


def _sample(net: Network, given: list[Tensor], shape: tuple[int, ...], **options: object) -> Tensor:
    function = gmk.gated_pixelcnn_sample if net.gated else gmk.pixelcnn_sample
    kind = {"head": HEADS[net.head], "levels": net.levels, "channel_groups": net.groups}
    return function(given, shape, **kind, **options)


# ---- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kernels", [(3, 3), (5, 3, 5), (7, 3, 3, 3)])
@pytest.mark.parametrize("groups", [1, 3])
def test_an_output_depends_on_what_comes_before_it_and_on_nothing_else(
    gated: bool, kernels: tuple[int, ...], groups: int
) -> None:
    """By autograd, for every pair of positions. A gated network that reaches over the image sees all before it."""
    net = network(gated, channels=groups, groups=groups, width=2 * groups, hidden=2 * groups, kernels=kernels)
    weights = [0.1 * t.abs() + 0.01 for t in _parameters(net, torch.float64)]  # nothing closes, nothing cancels
    reach = sum(k // 2 for k in kernels)
    height, width = min(4, reach + 1), min(5, reach + 1)
    x = torch.rand(1, groups, height, width, dtype=torch.float64, requires_grad=True)
    found = reference.outputs(x, net, weights, None)
    order = torch.arange(height * width).view(height, width) * groups
    position = torch.stack([order + c for c in range(groups)])  # channel after channel inside a pixel
    for place in itertools.product(range(groups), range(height), range(width)):
        (grad,) = torch.autograd.grad(found[0][place], x, retain_graph=True)
        seen, before = grad[0] != 0, position < position[place]
        assert not (seen & ~before).any()
        assert not gated or torch.equal(seen, before)


def test_masked_taps_are_never_read() -> None:
    for name, net in NETWORKS.items():
        given = _parameters(net)
        spoiled = []
        for i, ((label, _), t) in enumerate(zip(net.parameters(), given, strict=True)):
            whole = t.dim() == 1 or net.gated and ("vertical" in label or "link" in label)
            kind = "A" if i == 0 or label == "layers[0].horizontal.weight" else "B"
            spoiled.append(t if whole else torch.where(reference.allowed(t, net.groups, kind) > 0, t, 1e3))
        key, shape = gmk.random.key(seed=3), (2, net.channels, 3, 4)
        for backend in BACKENDS:
            found = [_sample(net, ps, shape, key=key, backend=backend) for ps in (given, spoiled)]
            assert torch.equal(*found), name


# ---- the definition, pixel by pixel ----------------------------------------------------------------------------------


def _decisions(net: Network, given: list[Tensor], images: Tensor, key: Tensor, first: int, condition: Tensor | None,
               temperature: float) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What the network in float64 draws for each pixel of finished images, given the pixels before it; and how far a
    cumulative probability is from turning the decision."""
    batch, channels, height, width = images.shape
    values = torch.linspace(0.0, 1.0, net.levels, dtype=torch.float64)
    wide = None if condition is None else condition.double()
    found = reference.outputs(values[images], net, [t.double() for t in given], wide)
    places = torch.arange(height * width)
    word = reference.words(key, torch.arange(batch) + first, torch.arange(channels), places)
    drawn, margins = [], []
    for group, some in enumerate(torch.arange(channels).chunk(net.groups)):
        logits = found.chunk(net.groups, 1)[group].permute(0, 2, 3, 1).flatten(0, 2)
        words = tuple(w[:, some].transpose(1, 2).flatten(0, 1) for w in word)
        fresh = reference.draw(logits, net, words, temperature)
        drawn.append(fresh.view(batch, height, width, -1).permute(0, 3, 1, 2))
        u = reference.uniform(words[0][:, 0])
        if HEADS[net.head] == "bernoulli":
            margin = (u - torch.sigmoid(logits[:, 0] / temperature)).abs()
        else:
            sums = reference.cumulative(logits, temperature)
            margin = (u[:, None] - sums / sums[:, -1:]).abs().amin(1)
        margins.append(margin.view(batch, 1, height, width).expand(-1, len(some), -1, -1))
    return torch.cat(drawn, 1), torch.cat(margins, 1)


# Errors of probabilities, from sums of a few hundred terms of size one through a few layers.
BAND = {torch.float32: 2e-5, torch.float64: 1e-13}


@pytest.mark.parametrize("dtype", BAND)
@pytest.mark.parametrize("name", [n for n in NETWORKS if "mixture" not in n])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_every_decision_follows_from_the_pixels_before_it(name: str, dtype: torch.dtype, temperature: float) -> None:
    """Outside the band of rounding, and the band holds next to nothing."""
    net = NETWORKS[name]
    given, key = _parameters(net, dtype, scale=1.0), gmk.random.key(seed=11)
    shape = (21, net.channels, 12, 11)
    generator = torch.Generator().manual_seed(5)
    condition = torch.randn(21, net.layers, net.condition_width, generator=generator).to(dtype) * 0.5
    images = _sample(net, given, shape, key=key, first=7, condition=condition, temperature=temperature)
    expected, margin = _decisions(net, given, images, key, 7, condition, temperature)
    inside = margin < BAND[dtype]
    assert torch.equal(images[~inside], expected[~inside])
    assert inside.double().mean() < 0.01
    assert 0.02 < (images != images.mode(0).values).double().mean()  # the images are no constants


@pytest.mark.parametrize("name", NETWORKS)
def test_images_are_those_of_the_loop_over_the_whole_network(name: str) -> None:
    net = NETWORKS[name]
    given, key, shape = _parameters(net, torch.float64), gmk.random.key(seed=2), (3, net.channels, 5, 6)
    expected = _sample(net, given, shape, key=key, backend="reference")
    for backend in BACKENDS:
        assert torch.equal(_sample(net, given, shape, key=key, backend=backend), expected)
    values = torch.linspace(0.0, 1.0, net.levels, dtype=torch.float64)
    flat = torch.cat([t.flatten() for t in given])
    found = cached.pixelcnn_sample(flat, values, key, None, None, None, shape, net.numbers, 1.0, 0)
    assert torch.equal(found, expected)
    assert len(expected.unique()) > net.levels // 8


def test_batch_threads_and_rows_change_no_bit() -> None:
    if "cpu" not in BACKENDS:
        return
    for name, net in NETWORKS.items():
        given, key, shape = _parameters(net), gmk.random.key(seed=4), (35, net.channels, 7, 9)
        whole = _sample(net, given, shape, key=key, backend="cpu")
        for cut in (1, 2, 16, 19):
            parts = [
                _sample(net, given, (size, *shape[1:]), key=key, first=start, backend="cpu")
                for start, size in ((0, cut), (cut, 35 - cut))
            ]
            assert torch.equal(torch.cat(parts), whole), (name, cut)
        for count in (1, 2, 3):
            with threads(count):
                assert torch.equal(_sample(net, given, shape, key=key, backend="cpu"), whole)
        seen: list[Tensor] = []
        by_row = _sample(
            net, given, shape, key=key, backend="cpu", on_row=lambda row, x, seen=seen: seen.insert(row, x)
        )
        assert torch.equal(by_row, whole) and len(seen) == 7
        for row, x in enumerate(seen):
            assert torch.equal(x[:, :, : row + 1], whole[:, :, : row + 1]) and not x[:, :, row + 1 :].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_callback_may_end_the_sampling(backend: str) -> None:
    net, rows = NETWORKS["plain"], []

    def stop(row: int, images: Tensor) -> None:
        rows.append(row)
        if row == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _sample(net, _parameters(net), (1, 1, 4, 3), key=gmk.random.key(seed=1), on_row=stop, backend=backend)
    assert rows == [0, 1]


# ---- held pixels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_completion_keeps_what_is_held_and_goes_on_from_it(name: str) -> None:
    net = NETWORKS[name]
    given, key, shape = _parameters(net), gmk.random.key(seed=6), (3, net.channels, 4, 5)
    whole = _sample(net, given, shape, key=key)
    other = _sample(net, given, shape, key=gmk.random.key(seed=7))
    for count in (0, 7, 12, 20):
        mask = (torch.arange(20) < count).view(4, 5)
        # Holding what would have been drawn changes nothing; holding something else changes what comes after.
        assert torch.equal(_sample(net, given, shape, key=key, x_init=whole, mask=mask), whole)
        found = _sample(net, given, shape, key=key, x_init=other, mask=mask)
        assert torch.equal(found[:, :, mask], other[:, :, mask])
        assert torch.equal(found, _sample(net, given, shape, key=key, x_init=other, mask=mask.expand(3, 4, 5)))
        assert torch.equal(found, _sample(net, given, shape, key=key, x_init=other, mask=mask, backend="reference"))
        if 0 < count < 20:
            assert not torch.equal(found[:, :, ~mask], whole[:, :, ~mask])


def test_levels_beyond_the_mask_are_not_read() -> None:
    net = NETWORKS["plain"]
    given, key, mask = _parameters(net), gmk.random.key(seed=6), (torch.arange(20) < 9).view(4, 5)
    start = torch.randint(2, (2, 1, 4, 5), generator=torch.Generator().manual_seed(1))
    spoiled = torch.where(mask, start, 1 - start)
    found = [_sample(net, given, (2, 1, 4, 5), key=key, x_init=x, mask=mask) for x in (start, spoiled)]
    assert torch.equal(*found)


# ---- laws ------------------------------------------------------------------------------------------------------------

LOOKS = 20  # comparisons with a law in this file, for a family-wise false alarm of 1e-6


def _chance(counts: Tensor, law: Tensor) -> float:
    """The p-value of the G statistic; cells of less than 5 expected counts go together."""
    expected = law * counts.sum()
    order = expected.argsort()
    cells = torch.cumsum((expected[order] >= 5).long(), 0)
    seen = torch.zeros(int(cells.max()) + 1, dtype=torch.float64).index_add_(0, cells, counts[order])
    wanted = torch.zeros_like(seen).index_add_(0, cells, expected[order])
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    statistic = 2.0 * torch.xlogy(seen, seen / wanted).sum()
    return float(chi2.sf(float(statistic), len(seen) - 1))


def _law(net: Network, given: list[Tensor], height: int, width: int, temperature: float) -> tuple[Tensor, Tensor]:
    """All images with their probabilities, for Bernoulli and categorical heads."""
    numbers = net.channels * height * width
    images = torch.tensor(list(itertools.product(range(net.levels), repeat=numbers)))
    images = images.view(-1, net.channels, height, width)
    values = torch.linspace(0.0, 1.0, net.levels, dtype=torch.float64)
    logits = reference.outputs(values[images], net, [t.double() for t in given], None) / temperature
    if HEADS[net.head] == "bernoulli":
        signs = 2.0 * images - 1.0
        log = torch.nn.functional.logsigmoid(signs * logits)
    else:
        every = logits.unflatten(1, (net.channels, net.levels)).log_softmax(2)
        log = every.gather(2, images[:, :, None]).squeeze(2)
    law = log.flatten(1).sum(1).exp()
    assert abs(law.sum().item() - 1.0) < 1e-9
    return images, law


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("net", "height", "width"),
    [
        (network(kernels=(3, 3), width=8), 3, 3),
        (network(gated=True, kernels=(3, 3), width=8), 3, 3),
        (network(head="categorical", levels=4, kernels=(3, 3), width=8), 2, 2),
        (network(False, "categorical", 3, 3, 3, width=9, kernels=(3, 3)), 1, 2),
        (network(True, "categorical", 3, 3, 3, width=9, kernels=(3, 3)), 2, 1),
    ],
    ids=lambda v: "-".join(map(str, v[:5])) if isinstance(v, tuple) else str(v),
)
def test_images_follow_the_law_of_the_network(backend: str, net: Network, height: int, width: int) -> None:
    """All images are listed; 10 % of temperature would be seen, with the loop's fewer images 25 %."""
    given, temperature = _parameters(net, scale=3.0 if net.gated else 1.5), 0.9
    count = 40_000 if backend == "reference" else 200_000
    images, law = _law(net, given, height, width, temperature)
    found = _sample(net, given, (count, net.channels, height, width), key=gmk.random.key(seed=21),
                    temperature=temperature, backend=backend)  # fmt: skip
    places = net.levels ** torch.arange(images[0].numel() - 1, -1, -1)
    counts = torch.bincount((found.flatten(1) * places).sum(1), minlength=len(law)).double()
    assert _chance(counts, law) > 1e-6 / LOOKS
    off = (1.25 if backend == "reference" else 1.1) * temperature
    assert _chance(counts, _law(net, given, height, width, off)[1]) < 1e-6 / LOOKS


@pytest.mark.parametrize("channels", [1, 3])
def test_a_mixture_follows_its_discretised_law(channels: int) -> None:
    """One pixel of an image without inputs: its law is that of the output's bias."""
    levels, components = 8, 2
    net = network(head="mixture", channels=channels, levels=levels, components=components, width=4, kernels=(3, 3))
    given = _parameters(net)
    given[-2] = given[-2] * 0
    found = given[-1].double()
    x = _sample(net, given, (200_000, channels, 1, 1), key=gmk.random.key(seed=5)).flatten(1)

    weights, rest = torch.softmax(found[:components], 0), found[components:].view(channels, -1, components)
    centres = torch.linspace(-1.0, 1.0, levels, dtype=torch.float64)
    edges = torch.cat((torch.tensor([-math.inf]), (centres[1:] + centres[:-1]) / 2, torch.tensor([math.inf])))
    images = torch.tensor(list(itertools.product(range(levels), repeat=channels)))
    law = torch.zeros(len(images), dtype=torch.float64)
    for k in range(components):
        p = weights[k].expand(len(images))
        for c in range(channels):
            mean = rest[c, 0, k].expand(len(images))
            for before in range(c):
                mean = mean + torch.tanh(rest[c * (c - 1) // 2 + before, 2, k]) * centres[images[:, before]]
            up, down = ((edges[images[:, c] + side] - mean) / rest[c, 1, k].exp() for side in (1, 0))
            p = p * (torch.sigmoid(up) - torch.sigmoid(down))
        law += p
    places = levels ** torch.arange(channels - 1, -1, -1)
    counts = torch.bincount((x * places).sum(1), minlength=len(law)).double()
    assert _chance(counts, law) > 1e-6 / LOOKS
    turned = law.view([levels] * channels).flip(0).flatten()
    assert _chance(counts, turned) < 1e-6 / LOOKS


# ---- the rest --------------------------------------------------------------------------------------------------------


def test_both_functions_are_one_operator() -> None:
    x = torch.zeros(1)
    assert gmk.backend_for(gmk.gated_pixelcnn_sample, x) == gmk.backend_for(gmk.pixelcnn_sample, x)
    assert library.pixelcnn_sample.backends == ("cpu",)


def test_gated_parameters_are_counted() -> None:
    net = NETWORKS["gated"]
    with pytest.raises(ValueError, match=r"parameters must be 4 and 8 for each layer, .*, got 4"):
        gmk.gated_pixelcnn_sample(_parameters(net)[-4:], (1, 1, 2, 2), key=gmk.random.key(seed=1))


def test_parameters_that_require_gradients_are_taken() -> None:
    net = NETWORKS["plain"]
    given = [torch.nn.Parameter(t) for t in _parameters(net)]
    assert not _sample(net, given, (1, 1, 3, 3), key=gmk.random.key(seed=1)).requires_grad
