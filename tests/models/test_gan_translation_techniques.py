"""Minibatch discrimination and virtual batch norm in the models that translate images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import gmkernels as gmk
from genmodels.data import Batch, PairDataset
from genmodels.gan import CycleGAN, PatchGAN, Pix2Pix
from genmodels.gan.translation_recipe import CycleGANRecipe, Pix2PixRecipe
from genmodels.training import Fit, fit

REFERENCE = (torch.rand(7, 1, 16, 16), torch.rand(7, 1, 16, 16))


def _pix2pix(**options: object) -> Pix2Pix:
    return Pix2Pix((1, 16, 16), (1, 16, 16), width=4, layers=1, **options)


def _cyclegan(**options: object) -> CycleGAN:
    return CycleGAN((1, 16, 16), width=2, blocks=1, layers=1, **options)


# Minibatch discrimination.


@pytest.mark.parametrize("minibatch", [0, 6])
def test_closeness_lets_every_patch_see_the_other_images(minibatch: int) -> None:
    critic = PatchGAN(1, width=4, layers=1, norm="instance", minibatch=minibatch).double()
    x = torch.randn(5, 1, 16, 16, dtype=torch.float64, requires_grad=True)
    out = critic(x)
    assert out.shape == (5, 1, 6, 6)
    for row, column in ((0, 0), (5, 5)):
        (grad,) = torch.autograd.grad(out[2, 0, row, column], x, retain_graph=True)
        others = grad.abs().amax((1, 2, 3))[[0, 1, 3, 4]]
        assert float(others.min()) > 0 if minibatch else float(others.max()) == 0


def test_closeness_is_that_of_the_features_averaged_over_cells() -> None:
    critic = PatchGAN(1, width=4, layers=1, norm="instance", minibatch=3).double()
    x = torch.randn(5, 1, 17, 17, dtype=torch.float64)[:, :, :16, :16]
    features = critic.features(x)
    # 7 pixels a side in 4 cells, which overlap: 0-1, 1-3, 3-5, 5-6.
    spans = [slice(0, 2), slice(1, 4), slice(3, 6), slice(5, 7)]
    assert features.shape[2:] == (7, 7)
    cells = torch.stack([features[:, :, i, j].mean((2, 3)) for i in spans for j in spans], 2).flatten(1)
    assert critic.closeness is not None
    made = (cells @ critic.closeness.layer.weight).unflatten(1, (3, 5))
    near = (-(made[:, None] - made[None]).abs().sum(3)).exp().sum(1) - 1
    layer = critic.layers[-1]
    assert isinstance(layer, torch.nn.Conv2d)
    planes = (near / 4)[:, :, None, None].expand(-1, -1, 7, 7)
    torch.testing.assert_close(critic(x), layer(torch.cat([features, planes], 1)))


def test_a_critic_that_knows_nothing_else_tells_a_collapsed_batch_from_a_varied_one() -> None:
    """Each image of the one kind is as likely as each of the other: only beside others does it give itself away."""
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    right = {}
    for minibatch in (0, 8):
        critic = PatchGAN(1, width=4, layers=1, norm="instance", minibatch=minibatch)
        optimizer = torch.optim.Adam(critic.parameters(), 5e-3)

        def batches() -> tuple[Tensor, Tensor]:
            return torch.randn(8, 1, 12, 12, generator=g), torch.randn(1, 1, 12, 12, generator=g).repeat(8, 1, 1, 1)

        for _ in range(60):
            varied, same = batches()
            loss = torch.nn.functional.softplus(torch.cat([-critic(varied), critic(same)])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            scores = [[float(critic(x).mean()) for x in batches()] for _ in range(50)]
        right[minibatch] = sum((varied > 0) + (same < 0) for varied, same in scores) / 100
    assert right[8] > 0.95
    assert right[0] < 0.8


def test_an_image_alone_is_compared_with_nothing() -> None:
    with pytest.raises(ValueError, match=r"minibatch discrimination compares the images of a batch, got 1"):
        PatchGAN(1, width=2, layers=1, minibatch=2)(torch.zeros(1, 1, 16, 16))


def test_both_models_give_it_to_their_critics_and_train_it() -> None:
    pix, cycle = _pix2pix(minibatch=3), _cyclegan(minibatch=3)
    for model, critics in ((pix, [pix.critic]), (cycle, [cycle.critic_x, cycle.critic_y])):
        model.losses(Batch(torch.rand(4, 1, 16, 16), torch.rand(4, 1, 16, 16)), "critic")["loss"].backward()
        for critic in critics:
            assert critic is not None and critic.closeness is not None
            grad = critic.closeness.layer.weight.grad
            assert grad is not None and float(grad.abs().max()) > 0


# Virtual batch norm.


def test_a_translation_depends_on_the_reference_and_on_no_other_image_of_the_batch() -> None:
    x = torch.rand(6, 1, 16, 16)
    pix, cycle = _pix2pix(norm="virtual", reference=REFERENCE), _cyclegan(norm="virtual", reference=REFERENCE)
    # In training, where batch norm would mix the images.
    assert pix.training
    whole = pix.translate(x, 1)
    torch.testing.assert_close(pix.translate(x[2:4], 1, first=2), whole[2:4], rtol=1e-4, atol=1e-5)
    for to, own in (("y", "reference_x"), ("x", "reference_y")):
        there = cycle.translate(x, to)
        torch.testing.assert_close(cycle.translate(x[2:4], to), there[2:4], rtol=1e-4, atol=1e-5)
        getattr(cycle, own).mul_(0.2)
        assert float((cycle.translate(x, to) - there).abs().max()) > 1e-5
    trip = cycle.round_trip(x, x)
    torch.testing.assert_close(trip.back_to_x, cycle.translate(trip.to_y, "x"), rtol=1e-4, atol=1e-5)
    assert pix.reference_y is not None and pix.reference_x is not None
    pix.reference_y.mul_(0.2)
    assert torch.equal(pix.translate(x, 1), whole)
    pix.reference_x.mul_(0.2)
    assert float((pix.translate(x, 1) - whole).abs().max()) > 1e-5


def test_losses_are_those_of_networks_with_the_statistics_of_what_they_are_shown() -> None:
    x, y = torch.rand(3, 1, 16, 16, dtype=torch.float64), torch.rand(3, 1, 16, 16, dtype=torch.float64)
    a, b = 2 * x - 1, 2 * y - 1
    # The models keep them in the precision they are made in, float32.
    ra, rb = (2 * images.double() - 1 for images in REFERENCE)
    pix = _pix2pix(norm="virtual", reference=REFERENCE, dropout=0.0, l1=3.0).double()
    assert pix.critic is not None
    with gmk.nn.virtual_batch(pix.generator, ra), gmk.nn.virtual_batch(pix.critic, torch.cat([ra, rb], 1)):
        made = pix.generator(a)
        real, fake = (pix.critic(torch.cat([a, image], 1)).sigmoid() for image in (b, made))
    critic = pix.losses(Batch(x, y), "critic")["loss"]
    torch.testing.assert_close(critic, -0.5 * (real.log().mean() + (1 - fake).log().mean()), rtol=1e-6, atol=1e-6)
    generator = pix.losses(Batch(x, y), "generator")["loss"]
    wanted = 3 * (made - b).abs().mean() - fake.log().mean()
    torch.testing.assert_close(generator, wanted, rtol=1e-6, atol=1e-6)
    # The statistics are in the graph: the gradient is that of the whole, with the way through the reference.
    weight = pix.generator.down[0][0].weight
    (got,), (want,) = (torch.autograd.grad(of, weight) for of in (generator, wanted))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)

    cycle = _cyclegan(norm="virtual", reference=REFERENCE, cycle=0.0).double().eval()
    with gmk.nn.virtual_batch(cycle.to_y, ra), gmk.nn.virtual_batch(cycle.to_x, rb):
        to_y, to_x = cycle.to_y(a), cycle.to_x(b)
    with gmk.nn.virtual_batch(cycle.critic_x, ra), gmk.nn.virtual_batch(cycle.critic_y, rb):
        sides = [(cycle.critic_x(a), cycle.critic_x(to_x)), (cycle.critic_y(b), cycle.critic_y(to_y))]
    wanted = sum((fake - 1).square().mean() for _, fake in sides)
    torch.testing.assert_close(cycle.losses(Batch(x, y), "generator")["loss"], wanted, rtol=1e-6, atol=1e-6)
    wanted = sum(0.5 * ((real - 1).square().mean() + fake.square().mean()) for real, fake in sides)
    torch.testing.assert_close(cycle.losses(Batch(x, y), "critic")["loss"], wanted, rtol=1e-6, atol=1e-6)


def test_the_reference_belongs_to_the_state_and_is_asked_for() -> None:
    model = _pix2pix(norm="virtual", reference=REFERENCE)
    again = _pix2pix(norm="virtual", reference=(torch.zeros(7, 1, 16, 16), torch.zeros(7, 1, 16, 16)))
    again.load_state_dict(model.state_dict())
    x = torch.rand(2, 1, 16, 16)
    assert torch.equal(model.translate(x, 1), again.translate(x, 1))
    assert not any("reference" in name for name in _pix2pix().state_dict())
    for make in (_pix2pix, _cyclegan):
        with pytest.raises(ValueError, match=r"virtual batch norm needs reference images x and y, got None"):
            make(norm="virtual")
        with pytest.raises(ValueError, match=r"reference y: expected images of shape"):
            make(norm="virtual", reference=(REFERENCE[0], torch.rand(7, 1, 8, 8)))
    # A U-Net of one halving has nothing to normalise.
    assert _pix2pix(norm="virtual", reference=REFERENCE, depth=1).translate(x).shape == x.shape


def test_pix2pix_learns_with_both(tmp_path: Path) -> None:
    """A negative: white becomes black where it stands."""
    g = torch.Generator().manual_seed(0)
    x = (255 * torch.randint(0, 2, (128, 1, 4, 4), generator=g)).to(torch.uint8)
    x = x.repeat_interleave(4, 2).repeat_interleave(4, 3)
    pairs = PairDataset("negatives", {"train": Batch(x, 255 - x)})
    recipe = Pix2PixRecipe(fit=Fit(max_steps=1, lr=4e-3), norm="virtual")
    torch.manual_seed(0)
    options = {"norm": "virtual", "minibatch": 4, "reference": recipe.reference(*pairs.splits["train"])}
    model = Pix2Pix(pairs.input_shape, pairs.shape, width=8, depth=2, layers=1, **options)
    config = Fit(max_steps=60, lr=4e-3, clip=0.0, warmup_steps=5)
    fit(model, pairs.stream(16), tmp_path, config, parts=recipe.parts(model))
    model.eval()
    off = (model.translate(x[:64], 1) - (255 - x[:64]) / 255).abs().mean()
    assert float(off) < 0.15


def test_recipes_take_references_from_all_over_the_training_data() -> None:
    cycle = CycleGANRecipe(data="digits", domains=("3", "8"), width=2, blocks=1, layers=1, norm="virtual", minibatch=3)
    both = cycle.dataset()
    model = cycle.build(both)
    for reference, images in zip((model.reference_x, model.reference_y), both.splits["train"], strict=True):
        assert reference is not None and len(reference) == 16
        for row, image in ((0, images[:1]), (-1, images[-1:])):
            torch.testing.assert_close(reference[row], model.inside(image, model.shape, "image")[0])
    assert model.critic_x.closeness is not None and model.critic_x.closeness.layer.num_kernels == 3
    assert CycleGANRecipe(data="digits", domains=("3", "8")).build(both).reference_x is None
    pix = Pix2PixRecipe(data="digits", width=2, norm="virtual", minibatch=3)
    pairs = pix.dataset()
    made = pix.build(pairs)
    assert made.critic is not None and made.critic.closeness is not None
    assert made.critic.closeness.layer.num_kernels == 3
    assert made.reference_y is not None
    targets = pairs.splits["train"].y
    torch.testing.assert_close(made.reference_y[-1], made.inside(targets[-1:], made.shape, "y")[0])
