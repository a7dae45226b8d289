"""Samples of PixelCNNs are what their uniforms choose, follow the probabilities, and keep what an image shows."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

import gmkernels as gmk
from genmodels.autoregressive import PixelModel
from tests.pixels import HEADS, every_image, small

FALSE_ALARM = 1e-7


def _uniform(seed: int, shape: tuple[int, ...]) -> Tensor:
    """The uniforms of images (N, C, H, W) as the samplers document them, from the public stream: word 0 of Philox's
    counter (pixel, channel, sample, 0) under the seed; ``bits`` has its offset in the counter's upper half."""
    n, channels, height, width = shape
    words = [
        gmk.random.bits(torch.tensor([seed, sample]), 4 * height * width, first=4 * (channel << 32))[::4]
        for sample, channel in itertools.product(range(n), range(channels))
    ]
    return ((torch.stack(words).double() + 0.5) * 2.0**-32).view(shape)


def _conditionals(model: PixelModel, x: Tensor, temperature: float, y: Tensor | None = None) -> Tensor:
    """Probabilities (N, C, L, H, W) of each level given what comes before, for heads that are not mixtures."""
    with torch.no_grad():
        found = model(x, y).double() / temperature
    if model.head.kind == "bernoulli":
        return torch.stack([torch.sigmoid(-found), torch.sigmoid(found)], 2)
    return found.unflatten(1, (model.shape[0], model.levels)).softmax(2)


def _mismatch(model: PixelModel, images: Tensor, seed: int, temperature: float, y: Tensor | None = None) -> float:
    """How far, at worst, a level is from the one that its uniform chooses given the pixels before, as the model has them.

    All pixels at once: what comes before a pixel is in the images. 0 if every level is right.
    """
    p = _conditionals(model, images, temperature, y)
    place = images[:, :, None]
    if model.head.kind == "bernoulli":
        # 1 where u < p(1): the levels in the other order.
        p, place = p.flip(2), 1 - place
    above, chosen = p.cumsum(2).gather(2, place)[:, :, 0], p.gather(2, place)[:, :, 0]
    u = _uniform(seed, tuple(images.shape))
    return float(torch.maximum(u - above, (above - chosen) - u).max())


BAND = 1e-5
"""Largest rounding error of a cumulative probability in float32, for these small networks, with room."""


@pytest.mark.parametrize("kind", ["plain", "gated"])
@pytest.mark.parametrize("head", ["bernoulli", "categorical"])
@pytest.mark.parametrize(("channels", "temperature"), [(1, 1.0), (3, 0.7)])
@pytest.mark.parametrize("method", ["cached", "naive"])
def test_every_pixel_is_the_one_its_uniform_chooses(
    kind: str, head: str, channels: int, temperature: float, method: Any
) -> None:
    model = small(kind, (channels, 6, 5), classes=2, **HEADS[head])
    y = torch.arange(16) % 2
    images = model.sample(16, y, key=7, temperature=temperature, method=method)
    assert images.dtype == torch.int64
    assert len(images.unique()) == model.levels
    assert _mismatch(model, images, 7, temperature, y) < BAND
    # And the test would notice other weights, labels, or random numbers.
    assert _mismatch(model, images, 8, temperature, y) > 100 * BAND
    assert _mismatch(model, images, 7, temperature, 1 - y) > 100 * BAND
    assert _mismatch(model, images, 7, 1.3 * temperature, y) > 100 * BAND


@pytest.mark.parametrize("kind", ["plain", "gated"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("channels", [1, 3])
def test_cached_and_naive_samples_are_the_same(kind: str, head: str, channels: int) -> None:
    """Levels are equal but where a uniform is within rounding of a probability, about once in 10^5 pixels."""
    model = small(kind, (channels, 7, 6), stir=0.2, **HEADS[head])
    cached, naive = (model.sample(24, key=3, method=method) for method in ("cached", "naive"))
    other = [i for i in range(24) if not torch.equal(cached[i], naive[i])]
    for i in other:
        # Up to the first pixel that differs both have the same past.
        at = int((cached[i] != naive[i]).any(0).flatten().nonzero()[0])
        assert model.head.kind != "mixture", "its draws have no band to look up here: take another key"
        p = _conditionals(model, torch.stack([cached[i], naive[i]]), 1.0).flatten(3)[..., at].cumsum(2)
        u = _uniform(3, (i + 1, *model.shape))[i].flatten(1)[:, at]
        assert float((p - u[None, :, None]).abs().min()) < BAND
    assert len(other) <= 1
    part = torch.cat([model.sample(10, key=3), model.sample(14, key=3, first=10)])
    assert torch.equal(part, cached)
    assert not torch.equal(cached, model.sample(24, key=4))


def _agree(images: Tensor, every: Tensor, p: Tensor, levels: int) -> None:
    """That images are drawn from probabilities ``p`` of ``every`` image: Pearson's test, cells of few draws joined."""
    weights = levels ** torch.arange(every[0].numel() - 1, -1, -1)
    place = {int(i): n for n, i in enumerate((every.flatten(1) * weights).sum(1))}
    counts = torch.zeros(len(every))
    for code in (images.flatten(1) * weights).sum(1).tolist():
        counts[place[code]] += 1
    expected = len(images) * p
    rare = expected < 8
    seen = torch.cat([counts[~rare], counts[rare].sum()[None]]).double()
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]]).double()
    assert len(wanted) > 3
    keep = wanted > 0
    assert counts.double()[p == 0].sum() == 0
    statistic = float(((seen - wanted).square() / wanted)[keep].sum())
    assert stats.chi2.sf(statistic, int(keep.sum()) - 1) > FALSE_ALARM


@pytest.mark.parametrize("kind", ["plain", "gated"])
@pytest.mark.parametrize(
    ("head", "shape", "more"),
    [
        ("bernoulli", (1, 3, 3), {}),
        ("bernoulli", (3, 1, 2), {"classes": 2}),
        ("categorical", (1, 2, 2), {}),
        ("mixture", (1, 2, 2), {}),
        ("mixture", (3, 1, 1), {}),
        ("mixture", (3, 1, 1), {"groups": 3}),
        ("mixture", (3, 1, 2), {"levels": 2}),
    ],
)
def test_samples_follow_the_probabilities(
    kind: str, head: str, shape: tuple[int, int, int], more: dict[str, Any]
) -> None:
    """Of all images of a size that can be enumerated. 20,000 draws show a law that is a total variation of 0.03 off."""
    model = small(kind, shape, **(HEADS[head] | more))
    every, n = every_image(model.levels, shape), 20_000
    y = torch.ones(n, dtype=torch.int64) if model.classes else None
    with torch.no_grad():
        p = model.double().log_prob(every, None if y is None else y[: len(every)]).exp()
    _agree(model.float().sample(n, y, key=5), every, p, model.levels)


def test_scales_of_logistics_have_the_sampler_s_floor() -> None:
    """A network may ask for scales near 0: log-probabilities and samples both take exp(-7) then."""
    model = small("plain", (1, 1, 1), head="mixture", levels=4, components=1)
    with torch.no_grad():
        model.network.output.weight.zero_()
        # A scale right of the edge between levels 1 and 2: with exp(-30) every draw would be level 2.
        model.network.output.bias.copy_(torch.tensor([0.0, math.exp(-7.0), -30.0]))
        p = model.log_prob(every_image(4, (1, 1, 1))).exp()
    inside = float(torch.sigmoid(torch.tensor(1.0)))
    torch.testing.assert_close(p, torch.tensor([0.0, 1 - inside, inside, 0.0]), rtol=1e-3, atol=1e-12)
    drawn = model.sample(20_000, key=1).flatten().bincount(minlength=4) / 20_000
    torch.testing.assert_close(drawn, p, rtol=0, atol=0.02)


@pytest.mark.parametrize("name", ["pixelcnn_sample", "gated_pixelcnn_sample"])
def test_naive_is_the_definition_whatever_backend_is_in_use(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, sampler = [], getattr(gmk, name)

    def spy(*args: Any, backend: str, **options: Any) -> Tensor:
        asked.append(backend)
        return sampler(*args, backend=backend, **options)

    monkeypatch.setattr(gmk, name, spy)
    model = small("gated" if "gated" in name else "plain", (1, 3, 3))
    for method in ("cached", "naive"):
        model.sample(2, key=1, method=method)
    assert asked == ["auto", "reference"]


@pytest.mark.parametrize("kind", ["plain", "gated"])
def test_inpainting_is_exact_conditional_sampling(kind: str) -> None:
    """Hidden pixels follow p(hidden | visible), computed from the probabilities of all completions."""
    model = small(kind, (1, 3, 3))
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    x = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 0, 0]]).expand(20_000, 1, 3, 3)
    filled = model.inpaint(x, mask, key=2)
    assert torch.equal(filled[:, :, mask], x[:, :, mask])
    every = every_image(2, (1, 3, 3))
    every = every[(every[:, 0][:, mask] == x[0, 0][mask]).all(1)]
    with torch.no_grad():
        p = model.double().log_prob(every).exp()
    assert len(every) == 32
    _agree(filled, every, p / p.sum(), 2)


def test_hidden_pixels_are_not_read_and_masks_may_differ() -> None:
    model = small("gated", (1, 4, 4))
    x = torch.randint(0, 2, (6, 1, 4, 4))
    mask = (torch.arange(16).view(1, 1, 4, 4) < torch.arange(6).view(6, 1, 1, 1) * 3).expand(6, 1, 4, 4)
    filled = model.inpaint(x, mask, key=1)
    assert torch.equal(filled[mask], x[mask])
    nonsense = torch.where(mask, x, 77)
    assert torch.equal(model.inpaint(nonsense, mask, key=1), filled)
    # Nothing visible is a sample; everything visible is the image.
    assert torch.equal(filled[0], model.sample(6, key=1)[0])
    assert torch.equal(model.inpaint(x, torch.ones(1, dtype=torch.bool), key=1), x)


def test_rows_are_shown_as_they_are_finished() -> None:
    model = small("gated", (1, 5, 4))
    seen: list[tuple[int, Tensor]] = []
    images = model.sample(3, key=1, on_row=lambda row, x: seen.append((row, x.clone())))
    assert [row for row, _ in seen] == [0, 1, 2, 3, 4]
    for row, x in seen:
        assert torch.equal(x[:, :, : row + 1], images[:, :, : row + 1])
        assert not x[:, :, row + 1 :].any()
    assert torch.equal(images, model.sample(3, key=1))


def test_a_low_temperature_draws_the_likeliest_levels() -> None:
    model = small("plain", (1, 4, 4), stir=0.2)
    images = model.sample(3, key=0, temperature=1e-4)
    logits = model(images).detach()
    assert float(logits.abs().min()) > 1e-2, "or a draw could go either way"
    assert torch.equal(images, (logits > 0).long())


def test_a_key_is_drawn_from_torch_s_generator() -> None:
    model = small("gated", (1, 4, 4))
    torch.manual_seed(5)
    a, b = model.sample(8), model.sample(8)
    torch.manual_seed(5)
    assert torch.equal(a, model.sample(8))
    assert not torch.equal(a, b)
    assert torch.equal(model.sample(8, key=9), model.sample(8, key=torch.tensor([9, 0])))
