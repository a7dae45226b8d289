"""Translation of images: the networks' shapes, the pool, the losses, learning, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import gmkernels as gmk
from genmodels.data import Batch, PairDataset, UnpairedDataset
from genmodels.gan import CycleGAN, ImagePool, PatchGAN, Pix2Pix, ResidualTranslator, Techniques, UNet
from genmodels.gan.translation_judge import EveryChannel, distance, judge
from genmodels.gan.translation_recipe import CycleGANRecipe, Pix2PixRecipe
from genmodels.metrics import fashion28
from genmodels.training import Fit, fit

# Networks.


@pytest.mark.parametrize(("size", "depth"), [((28, 28), 2), ((12, 20), 2), ((6, 10), 1), ((32, 32), 5)])
def test_every_skip_of_a_unet_meets_its_mirror(size: tuple[int, int], depth: int) -> None:
    net = UNet(2, 3, depth=depth, width=4, norm="instance")
    x = torch.randn(2, 2, *size, requires_grad=True)
    out = net(x)
    assert out.shape == (2, 3, *size)
    # Through the first skip alone a pixel reaches what lies beside it, whatever the bottleneck does.
    (grad,) = torch.autograd.grad(out[0, 0, 0, 0], x)
    assert float(grad[0, :, :3, :3].abs().min()) > 0
    assert float(grad[1].abs().max()) == 0


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_skip_carries_what_the_bottleneck_does_not(level: int) -> None:
    """With everything below a level cut off, what the level makes reaches the output all the same."""
    net = UNet(1, 1, depth=4, width=4, norm="instance").eval()
    x = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        for p in net.down[level + 1].parameters():
            p.zero_()
        before = net(x)
        net.down[level].register_forward_hook(lambda module, args, out: out + torch.randn_like(out))
        assert float((net(x) - before).abs().max()) > 1e-6


def test_a_unet_refuses_sizes_whose_skips_would_not_meet() -> None:
    net = UNet(1, 1, depth=3, width=4)
    with pytest.raises(ValueError, match=r"multiples of 2\*\*depth = 8.*got 28x28"):
        net(torch.zeros(1, 1, 28, 28))
    with pytest.raises(ValueError, match=r"depth must be at least 1, got 0"):
        UNet(1, 1, depth=0)
    with pytest.raises(ValueError, match=r"multiples of 2\*\*depth with a depth of at least 1, got 27x28 and depth 0"):
        Pix2Pix((1, 27, 28), (1, 27, 28), layers=1)


def test_dropout_is_noise_of_the_key_and_of_nothing_else() -> None:
    model = Pix2Pix((1, 16, 16), (3, 16, 16), width=4, layers=1).eval()
    x = torch.rand(6, 1, 16, 16)
    one, same, other = (model.translate(x, key) for key in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    torch.testing.assert_close(model.translate(x[4:], 1, first=4), one[4:], rtol=0, atol=1e-6)
    assert torch.equal(model.translate(x, 1, noise=False), model.translate(x, 2, noise=False))
    still = Pix2Pix((1, 16, 16), (3, 16, 16), width=4, layers=1, dropout=0.0).eval()
    assert torch.equal(still.translate(x, 1), still.translate(x, 2))


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_a_patch_is_as_large_as_stated(layers: int, patch: int) -> None:
    """The gradient of the middle output is nonzero in a square of that side, and nowhere else."""
    critic = PatchGAN(1, width=2, layers=layers, norm="none").double()
    assert critic.receptive_field == patch
    with torch.no_grad():
        for p in critic.parameters():
            p.fill_(0.1)
    x = torch.ones(1, 1, 2 * patch + 40, 2 * patch + 40, dtype=torch.float64, requires_grad=True)
    out = critic(x)
    (grad,) = torch.autograd.grad(out[0, 0, out.shape[2] // 2, out.shape[3] // 2], x)
    rows, columns = (grad[0, 0] != 0).nonzero(as_tuple=True)
    assert (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1) == (patch, patch)
    assert len(rows) == patch**2


def test_networks_say_what_sizes_they_take() -> None:
    with pytest.raises(ValueError, match=r"at least 12, got 8x30: fewer layers take smaller images"):
        PatchGAN(1, width=2, layers=2)(torch.zeros(1, 1, 8, 30))
    assert PatchGAN(1, width=2, layers=2)(torch.zeros(2, 1, 12, 12)).shape == (2, 1, 1, 1)
    with pytest.raises(ValueError, match=r"multiples of 4, at least 8; got 10x12"):
        ResidualTranslator(1, 1, width=2, blocks=1)(torch.zeros(1, 1, 10, 12))
    with pytest.raises(ValueError, match=r"norm must be instance, batch, virtual or none, got 'layer'"):
        PatchGAN(1, norm="layer")
    with pytest.raises(ValueError, match=r"height and width must be multiples of 4, got 30x30"):
        CycleGAN((1, 30, 30))


# The pool.


def test_a_pool_keeps_all_until_it_is_full_and_then_shows_an_old_image_every_other_time() -> None:
    size, n = 50, 20_000
    pool = ImagePool(size, (1,))
    images = torch.arange(n + size, dtype=torch.float32)[:, None]
    assert torch.equal(pool.exchange(images[:size], gmk.random.key(seed=1)), images[:size])
    assert torch.equal(pool.images, images[:size])
    out = pool.exchange(images[size:], gmk.random.key(seed=2))[:, 0]
    age = images[size:, 0] - out
    shown_old = float((age > 0).float().mean())
    # Five deviations of a fair coin.
    assert abs(shown_old - 0.5) < 5 * 0.5 / math.sqrt(n)
    # A kept image waits geometrically: each new image replaces it with probability 1/100, so 100 on average.
    ages = age[age > 0][1000:]
    assert abs(float(ages.mean()) - 2 * size) < 5 * 2 * size / math.sqrt(len(ages) / 2)
    # Nothing is lost or doubled: what went out and what is left is what came in, less what was passed on.
    seen = torch.cat([out, pool.images[:, 0]])
    assert torch.equal(seen.sort().values, torch.arange(n + size, dtype=torch.float32))


def test_a_pool_does_not_depend_on_how_images_come_in_but_on_its_state_alone() -> None:
    pool, again = ImagePool(4, (2,)), ImagePool(4, (2,))
    pool.exchange(torch.randn(7, 2), gmk.random.key(seed=1))
    again.load_state_dict(pool.state_dict())
    new, key = torch.randn(9, 2), gmk.random.key(seed=2)
    assert torch.equal(pool.exchange(new, key), again.exchange(new, key))
    assert torch.equal(pool.images, again.images)
    with pytest.raises(ValueError, match=r"expected images of shape \(2,\), got \(3,\)"):
        pool.exchange(torch.zeros(1, 3), key)
    with pytest.raises(ValueError, match=r"size must be at least 0"):
        ImagePool(-1, (2,))
    grown = torch.randn(3, 2, requires_grad=True)
    passed = ImagePool(0, (2,)).exchange(grown, key)
    assert torch.equal(passed, grown)
    assert not passed.requires_grad


# Losses.


def test_the_losses_of_pix2pix_are_those_of_the_paper() -> None:
    model = Pix2Pix((1, 8, 8), (3, 8, 8), width=4, layers=1, l1=7.0, adversarial=0.5).double()
    x, y = torch.rand(3, 1, 8, 8, dtype=torch.float64), torch.rand(3, 3, 8, 8, dtype=torch.float64)
    key = gmk.random.key(seed=3)
    made = model.generator(2 * x - 1, key)
    assert model.critic is not None
    real, fake = (model.critic(torch.cat([2 * x - 1, image], 1)).sigmoid() for image in (2 * y - 1, made))
    critic = model.losses(Batch(x, y), "critic", key)["loss"]
    torch.testing.assert_close(critic, -0.5 * (real.log().mean() + (1 - fake).log().mean()))
    found = model.losses(Batch(x, y), "generator", key)
    torch.testing.assert_close(found["loss"], -0.5 * fake.log().mean() + 7 * (made - 2 * y + 1).abs().mean())
    # The critic's loss moves the critic alone.
    assert all(p.grad is None for p in model.parameters())
    critic.backward()
    assert all(p.grad is None for p in model.generator.parameters())


def test_the_losses_of_a_cyclegan_are_those_of_the_paper() -> None:
    model = CycleGAN((1, 8, 8), width=2, blocks=1, layers=1, cycle=3.0, identity=0.5).double().eval()
    x, y = torch.rand(2, 1, 8, 8, dtype=torch.float64), torch.rand(3, 1, 8, 8, dtype=torch.float64)
    a, b = 2 * x - 1, 2 * y - 1
    to_y, to_x = model.to_y(a), model.to_x(b)
    critic = sum(
        0.5 * ((net(real) - 1) ** 2).mean() + 0.5 * (net(fake) ** 2).mean()
        for net, real, fake in ((model.critic_x, a, to_x), (model.critic_y, b, to_y))
    )
    torch.testing.assert_close(model.losses(Batch(x, y), "critic")["loss"], critic)
    fooled = ((model.critic_y(to_y) - 1) ** 2).mean() + ((model.critic_x(to_x) - 1) ** 2).mean()
    cycle = (model.to_x(to_y) - a).abs().mean() + (model.to_y(to_x) - b).abs().mean()
    same = (model.to_y(b) - b).abs().mean() + (model.to_x(a) - a).abs().mean()
    found = model.losses(Batch(x, y), "generator")
    torch.testing.assert_close(found["loss"], fooled + 3 * cycle + 1.5 * same)
    # Judging leaves the pool alone, training fills it.
    assert int(model.pool_x.held) == 0
    model.train().losses(Batch(x, y), "critic")
    assert (int(model.pool_x.held), int(model.pool_y.held)) == (3, 2)


def test_the_techniques_change_the_losses_as_they_say() -> None:
    x, y = torch.rand(3, 1, 8, 8, dtype=torch.float64), torch.rand(3, 1, 8, 8, dtype=torch.float64)
    a, b = 2 * x - 1, 2 * y - 1
    techniques = Techniques(feature_matching=True, label_smoothing=0.1, historical=2.0)

    def gap(one: Tensor, other: Tensor) -> Tensor:
        return (one.mean(0) - other.mean(0)).square().sum()

    pix = Pix2Pix((1, 8, 8), (1, 8, 8), width=4, layers=1, l1=3.0, dropout=0.0, techniques=techniques).double()
    assert pix.critic is not None
    made = pix.generator(a)
    pairs = [torch.cat([a, image], 1) for image in (b, made)]
    wanted = 3 * (made - b).abs().mean() + gap(*(pix.critic.features(pair) for pair in pairs))
    torch.testing.assert_close(pix.losses(Batch(x, y), "generator")["loss"], wanted)
    real, fake = (pix.critic(pair).sigmoid() for pair in pairs)
    smooth = -0.5 * (0.9 * real.log() + 0.1 * (1 - real).log()).mean() - 0.5 * (1 - fake).log().mean()
    torch.testing.assert_close(pix.losses(Batch(x, y), "critic")["loss"], smooth)

    cycle = CycleGAN((1, 8, 8), width=2, blocks=1, layers=1, cycle=0.0, techniques=techniques).double().eval()
    made_y, made_x = cycle.to_y(a), cycle.to_x(b)
    sides = ((cycle.critic_y, b, made_y), (cycle.critic_x, a, made_x))
    wanted = sum(gap(critic.features(real), critic.features(fake)) for critic, real, fake in sides)
    torch.testing.assert_close(cycle.losses(Batch(x, y), "generator")["loss"], wanted)
    wanted = sum(0.5 * ((net(real) - 0.9) ** 2).mean() + 0.5 * (net(fake) ** 2).mean() for net, real, fake in sides)
    torch.testing.assert_close(cycle.losses(Batch(x, y), "critic")["loss"], wanted)

    # The averages begin where the parameters do, and follow them.
    for model in (pix, cycle):
        for part in ("critic", "generator"):
            before = model.losses(Batch(x, y), part)
            assert float(before["historical"].detach()) < 1e-12
            model.updated(part)
        name = "generator.up.0.1.weight" if model is pix else "to_x.layers.1.weight"
        weight = model.get_parameter(name)
        with torch.no_grad():
            weight.add_(0.5)
        moved = model.losses(Batch(x, y), "generator")["historical"]
        torch.testing.assert_close(moved, torch.tensor(0.5 * weight.numel(), dtype=torch.float64))
        model.updated("generator")
        half = model.losses(Batch(x, y), "generator")["historical"]
        torch.testing.assert_close(half, moved / 4)


def test_bytes_and_fractions_are_the_same_images() -> None:
    model = CycleGAN((1, 8, 8), width=2, blocks=1, layers=1, levels=17).eval()
    x = torch.randint(0, 17, (2, 1, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(model.translate(x), model.translate(x / 16))
    trip = model.round_trip(x, x)
    torch.testing.assert_close(trip.x, x / 16)
    torch.testing.assert_close(trip.back_to_x, model.translate(trip.to_y, "x"))


def test_models_refuse_what_they_cannot_use() -> None:
    model = Pix2Pix((1, 8, 8), (3, 8, 8), width=4, layers=1, adversarial=0.0)
    x, y = torch.rand(2, 1, 8, 8), torch.rand(2, 3, 8, 8)
    assert model.critic is None
    assert set(model.losses(Batch(x, y))) == {"loss", "l1"}
    with pytest.raises(ValueError, match=r"part must be generator, got 'critic'"):
        model.losses(Batch(x, y), "critic")
    with pytest.raises(ValueError, match=r"no targets"):
        model.losses(Batch(x))
    with pytest.raises(ValueError, match=r"y: expected images of shape \('batch', 3, 8, 8\), got \(2, 1, 8, 8\)"):
        model.losses(Batch(x, x))
    with pytest.raises(TypeError, match=r"expected uint8 images or floating ones in \[0, 1\], got torch.int64"):
        model.translate(torch.zeros(1, 1, 8, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"floating images must lie in \[0, 1\], got values from -1 to 1"):
        model.translate(torch.linspace(-1, 1, 64).view(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"one height and width"):
        Pix2Pix((1, 8, 8), (3, 8, 16))
    with pytest.raises(ValueError, match=r"l1 and adversarial must be 0 or more, and not both 0"):
        Pix2Pix((1, 8, 8), (3, 8, 8), l1=0.0, adversarial=0.0)
    cycle = CycleGAN((1, 8, 8), width=2, blocks=1, layers=1)
    with pytest.raises(ValueError, match=r"no images y of the second domain"):
        cycle.losses(Batch(x), "critic")
    with pytest.raises(ValueError, match=r"part must be critic or generator, got 'both'"):
        cycle.losses(Batch(x, x), "both")
    for part in ("critic", "generator"):
        with pytest.raises(ValueError, match="CycleGAN: the batch is empty"):
            cycle.losses(Batch(x, x[:0]), part)
    with pytest.raises(ValueError, match="Pix2Pix: the batch is empty"):
        model.losses(Batch(x[:0], y[:0]))
    with pytest.raises(ValueError, match=r"to must be x or y, got 'z'"):
        cycle.translate(x, "z")
    with pytest.raises(ValueError, match=r"cycle and identity must be 0 or more"):
        CycleGAN((1, 8, 8), cycle=-1.0)


# Figures.


def test_features_of_every_channel_see_what_the_luminance_does_not() -> None:
    images = torch.rand(40, 3, 32, 32)
    found = EveryChannel(fashion28(), 3)(images)
    assert found.shape == (40, 384)
    red = EveryChannel(fashion28(), 3)(torch.stack([images[:, 0], *2 * [torch.zeros(40, 32, 32)]], 1))
    torch.testing.assert_close(red[:, :128], found[:, :128])
    assert not torch.allclose(red[:, 128:], found[:, 128:])
    assert judge(1).describe() == fashion28(resize=True).describe()
    assert "each of 3 channels (384 features)" in judge(3).describe()
    with pytest.raises(ValueError, match=r"expected images \(B, 3, H, W\), got \(40, 1, 32, 32\)"):
        EveryChannel(fashion28(), 3)(images[:, :1])


def test_the_distance_of_translations_is_that_of_their_features() -> None:
    x = torch.rand(300, 1, 28, 28)
    assert distance(judge(1), x, x.split(100)) < 1e-6
    assert distance(judge(1), x, (0.5 * x).split(100)) > 1


# Learning.


class _Stripes:
    """Vertical stripes become horizontal ones: Y is X turned, of random phase and width; nothing is paired."""

    @staticmethod
    def domains(n: int, seed: int) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(seed)
        phase, speed = (torch.rand(2, n, 1, 1, generator=g) for _ in range(2))
        at = torch.arange(12.0)
        x = torch.sin(2 * math.pi * (phase[0] + at * (0.15 + 0.1 * speed[0]))).expand(n, 12, 12)
        y = torch.sin(2 * math.pi * (phase[1] + at[:, None] * (0.15 + 0.1 * speed[1]))).expand(n, 12, 12)
        return tuple(((image + 1) * 127.5).round().to(torch.uint8)[:, None] for image in (x, y))


def _learn(
    model: torch.nn.Module, recipe: Pix2PixRecipe | CycleGANRecipe, stream: object, steps: int, out: Path
) -> None:
    config = Fit(max_steps=steps, lr=recipe.fit.lr, clip=0.0, warmup_steps=5)
    fit(model, stream, out, config, parts=recipe.parts(model))
    model.eval()


def test_a_cyclegan_turns_stripes_and_turns_them_back(tmp_path: Path) -> None:
    both = UnpairedDataset("stripes", ("x", "y"), {"train": _Stripes.domains(512, 0), "test": _Stripes.domains(64, 1)})
    recipe = CycleGANRecipe(fit=Fit(max_steps=1, lr=2e-3))
    model = CycleGAN(both.shape, width=8, blocks=1, layers=1)

    def upright(images: Tensor) -> float:
        """The share of change that is across: 1 of vertical stripes, 0 of horizontal ones."""
        across, down = images.diff(dim=3).abs().mean(), images.diff(dim=2).abs().mean()
        return float(across / (across + down))

    _learn(model, recipe, both.stream(16), 200, tmp_path)
    trip = model.round_trip(*both.splits["test"])
    assert upright(trip.x) > 0.99
    assert upright(trip.to_y) < 0.3
    assert upright(trip.to_x) > 0.7
    assert float((trip.back_to_x - trip.x).abs().mean()) < 0.1
    assert float((trip.back_to_y - trip.y).abs().mean()) < 0.1


def test_pix2pix_learns_its_targets_and_the_critic_gives_them_back_their_contrast(tmp_path: Path) -> None:
    """A coin that the input does not show makes a shape white, black or, more rarely, grey. The distance is least at
    grey, the middle of the three; the critic has seen that most shapes are not grey."""
    g = torch.Generator().manual_seed(0)
    shape = torch.randint(0, 2, (256, 1, 4, 4), generator=g).repeat_interleave(4, 2).repeat_interleave(4, 3)
    coin = torch.tensor([-127, -127, 0, 127, 127])[torch.randint(0, 5, (256, 1, 1, 1), generator=g)]
    inputs, targets = (255 * shape).to(torch.uint8), (128 + coin * shape).to(torch.uint8)
    pairs = PairDataset("coins", {"train": Batch(inputs, targets)})
    inside = shape[:64].bool()
    contrast = {}
    for adversarial in (0.0, 1.0):
        recipe = Pix2PixRecipe(fit=Fit(max_steps=1, lr=4e-3), l1=1.0, adversarial=adversarial)
        torch.manual_seed(0)
        model = Pix2Pix(pairs.input_shape, pairs.shape, width=8, depth=2, layers=1, l1=1.0, adversarial=adversarial)
        _learn(model, recipe, pairs.stream(16), 400, tmp_path / str(adversarial))
        off = (model.translate(inputs[:64], 1) - 128 / 255).abs()
        contrast[adversarial] = float(off[inside].mean())
        # Around the shapes everything is grey, and both have learnt it.
        assert float(off[~inside].mean()) < 0.1
    assert contrast[0.0] < 0.05
    assert contrast[1.0] > 0.35
