"""Adversarial models do what their papers write: losses, clipping, turns, techniques; and bad input is explained."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gmkernels as gmk
from genmodels import gan
from genmodels.data import DENSITIES, Batch
from genmodels.errors import DataError
from genmodels.gan import DCGAN, GAN, WGAN, WGANGP, SemiSupervisedGAN, Techniques, slerp
from genmodels.gan.judge import modes
from genmodels.gan.optimum import approach
from genmodels.training import Fit, fit
from genmodels.vae import SemiBatch

SCORES = torch.randn(2, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _small(kind: type[GAN] = GAN, **options: object) -> GAN:
    torch.manual_seed(0)
    return kind(2, latents=3, hidden=(16, 16), **options)


def test_the_critic_s_loss_is_the_cross_entropy_of_real_and_fake() -> None:
    real, fake = SCORES
    found = _small().judge(real, fake)["loss"]
    written = -(real.sigmoid().log().mean() + (1 - fake.sigmoid()).log().mean())
    torch.testing.assert_close(found, written)


def test_smoothing_takes_from_the_target_of_real_samples_alone() -> None:
    real, fake = SCORES
    found = _small(techniques=Techniques(label_smoothing=0.1)).judge(real, fake)["loss"]
    targets = torch.full_like(real, 0.9), torch.zeros_like(fake)
    terms = [F.binary_cross_entropy_with_logits(*pair) for pair in zip((real, fake), targets, strict=True)]
    torch.testing.assert_close(found, terms[0] + terms[1])


@pytest.mark.parametrize(("saturating", "written"), [
    (False, lambda p: -p.log().mean()),
    (True, lambda p: (1 - p).log().mean()),
])  # fmt: skip
def test_the_generator_s_loss_in_both_forms(saturating: bool, written: object) -> None:
    found = _small(saturating=saturating).fool(SCORES[0])
    torch.testing.assert_close(found, written(SCORES[0].sigmoid()))


def test_the_wasserstein_losses_are_differences_of_means() -> None:
    real, fake = SCORES
    model = _small(WGANGP)
    torch.testing.assert_close(model.judge(real, fake)["loss"], fake.mean() - real.mean())
    torch.testing.assert_close(model.fool(fake), -fake.mean())


def test_the_semi_supervised_loss_is_that_of_k_plus_one_classes() -> None:
    torch.manual_seed(0)
    model = SemiSupervisedGAN(2, 3, hidden=(16, 16)).double()
    x, u, y = torch.randn(6, 2).double(), torch.randn(8, 2).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    key = torch.get_rng_state()
    found = model.losses(SemiBatch(x, y, u), "critic")["loss"]
    torch.set_rng_state(key)
    fake = model.generator(model.noise(8))

    def p(samples: Tensor) -> Tensor:
        logits = model.discriminator(samples)
        return torch.cat([logits, torch.zeros_like(logits[:, :1])], 1).softmax(1)

    among_real = p(x)[:, :3] / p(x)[:, :3].sum(1, keepdim=True)
    labelled = -among_real[range(6), y].log().mean()
    written = labelled - (1 - p(u)[:, 3]).log().mean() - p(fake)[:, 3].log().mean()
    torch.testing.assert_close(found, written)
    torch.testing.assert_close(model.classify(x), among_real)


@pytest.mark.parametrize("kind", [GAN, WGAN, WGANGP, SemiSupervisedGAN])
def test_matching_features_is_the_distance_of_their_means_and_moves_the_generator(kind: type[GAN]) -> None:
    torch.manual_seed(0)
    more = {"classes": 3} if kind is SemiSupervisedGAN else {}
    model = kind(2, latents=3, hidden=(16,), techniques=Techniques(feature_matching=True), **more)
    x = torch.randn(32, 2)
    state = torch.get_rng_state()
    loss = model.losses(SemiBatch(x, x[:, 0].long(), x) if more else Batch(x), "generator")["loss"]
    torch.set_rng_state(state)
    fake = model.generator(model.noise(32))
    gap = model.discriminator.features(x).mean(0) - model.discriminator.features(fake).mean(0)
    torch.testing.assert_close(loss, gap.square().sum())
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.generator.parameters())


def test_historical_averaging_pulls_to_the_average_and_keeps_it(tmp_path: Path) -> None:
    model = _small(techniques=Techniques(historical=2.0))
    plain = _small()
    stream = DENSITIES["ring"]().stream(16)
    config = Fit(max_steps=5, warmup_steps=0, clip=0.0)
    fit(model, stream, tmp_path, config, parts=model.parts())
    averages = model.history["critic"].averages()
    gap = sum(
        float((p.detach() - a).square().sum()) for p, a in zip(model.discriminator.parameters(), averages, strict=True)
    )
    assert gap > 0
    found = model.losses(next(stream), "critic")
    assert float(found["historical"].detach()) == pytest.approx(2.0 * gap, rel=1e-5)
    assert int(model.history["generator"].steps) == 5
    again = _small(techniques=Techniques(historical=2.0))
    again.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.history["critic"].averages(), averages, strict=True))
    assert not [name for name in plain.state_dict() if name.startswith("history")]


class _Watched(WGAN):
    """Notes the largest weight of the critic after each update, and whose turn it was."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.turns: list[str] = []
        self.largest: list[float] = []

    def losses(self, batch: object, part: str) -> dict[str, Tensor]:
        self.largest.append(max(float(p.detach().abs().max()) for p in self.discriminator.parameters()))
        self.turns.append(part)
        return super().losses(batch, part)


def test_clipping_holds_after_every_update_and_the_critic_takes_five_turns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = _Watched(2, hidden=(32, 32), clip=0.02)
    parts = model.parts(lr=1e-2)
    assert isinstance(parts["critic"].optimizer, torch.optim.RMSprop)
    fit(model, DENSITIES["ring"]().stream(32), tmp_path, Fit(max_steps=6, warmup_steps=0, clip=0.0), parts=parts)
    assert model.turns == (["critic"] * 5 + ["generator"]) * 6
    assert model.largest[0] > 0.02
    assert max(model.largest[1:]) <= 0.02
    assert max(model.largest[1:]) == pytest.approx(0.02), "updates of 0.01 do reach the bound"
    assert max(float(p.detach().abs().max()) for p in model.generator.parameters()) > 0.02
    assert int(model.updates) == 6


def test_optimizers_are_those_of_the_papers() -> None:
    shape = (1, 28, 28)
    adam = DCGAN(shape, width=4).parts()
    assert [part.updates for part in adam.values()] == [1, 1]
    for part in adam.values():
        assert part.optimizer.param_groups[0]["lr"] == 2e-4
        assert part.optimizer.param_groups[0]["betas"] == (0.5, 0.999)
    penalised = WGANGP(shape).parts()
    assert [part.updates for part in penalised.values()] == [5, 1]
    assert penalised["critic"].optimizer.param_groups[0]["betas"] == (0.0, 0.9)
    clipped = WGAN(shape).parts()
    assert clipped["critic"].optimizer.param_groups[0]["lr"] == 5e-5


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (2, 64, 64), (1, 8, 16)])
def test_dcgan_follows_its_guidelines(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    model = DCGAN(shape, width=8, latents=10)
    assert model.sample(3, key=0).shape == (3, *shape)
    layers = [*model.generator.modules(), *model.discriminator.modules()]
    assert not [m for m in layers if isinstance(m, (nn.MaxPool2d, nn.AvgPool2d))]
    convolutions = [m for m in layers if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert all(m.stride == (2, 2) for m in convolutions)
    assert all(0.015 < float(m.weight.std()) < 0.025 for m in convolutions)
    up = len([m for m in convolutions if isinstance(m, nn.ConvTranspose2d)])
    assert len([m for m in model.generator if isinstance(m, nn.BatchNorm2d)]) == up
    trunk = list(model.discriminator.trunk)
    assert isinstance(trunk[1], nn.LeakyReLU), "no normalisation at the input"
    assert trunk[1].negative_slope == 0.2
    assert len([m for m in trunk if isinstance(m, nn.BatchNorm2d)]) == len(convolutions) - up - 1
    assert isinstance(model.generator[-1], nn.Tanh)
    loss = model.losses(Batch((torch.rand(4, *shape) * 255).byte()), "critic")["loss"]
    assert bool(loss.isfinite())


@pytest.mark.parametrize("penalty", ["gradient", "r1", "r2", "dragan"])
@pytest.mark.parametrize("kind", [GAN, SemiSupervisedGAN])
def test_penalties_are_added_to_the_critic_s_loss(penalty: str, kind: type[GAN]) -> None:
    torch.manual_seed(0)
    more = {"classes": 3} if kind is SemiSupervisedGAN else {}
    model = kind(2, hidden=(16, 16), penalty=penalty, penalty_weight=3.0, **more)
    plain = kind(2, hidden=(16, 16), **more)
    plain.load_state_dict(model.state_dict())
    x = torch.randn(16, 2)
    batch = SemiBatch(x, x[:, 0].abs().long().clamp(max=2), x) if more else Batch(x)
    losses = []
    for one in (model, plain):
        torch.manual_seed(1)
        losses.append(one.losses(batch, "critic"))
    assert float(losses[0]["penalty"].detach()) > 0
    torch.testing.assert_close(losses[0]["loss"].detach(), (losses[1]["loss"] + losses[0]["penalty"]).detach())


def test_a_penalty_on_batch_coupled_layers_is_warned_of() -> None:
    with pytest.warns(gmk.BatchCoupledWarning, match=r"ill-defined .* trunk\.3 \(BatchNorm2d\)"):
        WGANGP((1, 28, 28), **gan.convolutional((1, 28, 28), width=4))
    with pytest.warns(gmk.BatchCoupledWarning, match=r"head\.0\.layer \(MinibatchDiscrimination\)"):
        GAN(2, **gan.perceptrons((2,), minibatch=3), penalty="r1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WGANGP((1, 28, 28), **gan.convolutional((1, 28, 28), width=4, critic_norm="layer"))


def test_minibatch_discrimination_lets_the_head_see_the_batch() -> None:
    torch.manual_seed(0)
    model = GAN(2, **gan.perceptrons((2,), hidden=(8, 8), minibatch=4))
    x = torch.randn(6, 2)
    apart = torch.cat([model.discriminator(part) for part in x.split(3)])
    assert not torch.allclose(model.discriminator(x), apart)
    alone = GAN(2, hidden=(8, 8))
    torch.testing.assert_close(alone.discriminator(x), torch.cat([alone.discriminator(p) for p in x.split(3)]))


def test_walks_keep_their_ends_and_on_the_sphere_their_length() -> None:
    model = _small()
    a, b = torch.randn(2, 4, 3)
    for spherical in (True, False):
        walk = model.interpolate(a, b, 5, spherical=spherical)
        assert walk.shape == (4, 5, 2)
        torch.testing.assert_close(walk[:, 0], model.decode(a))
        torch.testing.assert_close(walk[:, -1], model.decode(b))
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    middle = slerp(a, b, 0.5)
    torch.testing.assert_close(middle.norm(dim=1), torch.ones(4))
    torch.testing.assert_close((middle * a).sum(1), (middle * b).sum(1))
    torch.testing.assert_close(slerp(a, a, 0.3), a)
    # Zero has no direction.
    torch.testing.assert_close(slerp(0 * a, b, 0.25), 0.25 * b)
    torch.testing.assert_close(slerp(a, 0 * b, 0.25), 0.75 * a)
    assert not slerp(0 * a, 0 * b, 0.5).any()


def test_latent_arithmetic() -> None:
    model = _small()
    z = torch.randn(3, 5, 3)
    torch.testing.assert_close(model.arithmetic(*z, rescale=False), model.decode(z[0] - z[1] + z[2]))
    total = z[0] - z[1] + z[2]
    scaled = total * (math.sqrt(3) / total.norm(dim=1, keepdim=True))
    torch.testing.assert_close(model.arithmetic(*z), model.decode(scaled))


def test_what_goes_in_comes_out() -> None:
    images = DCGAN((1, 28, 28), width=4, levels=17)
    x = torch.randint(0, 17, (3, 1, 28, 28), dtype=torch.uint8)
    assert images.inside(x).aminmax() == (-1, 1)
    torch.testing.assert_close(images.outside(images.inside(x)) * 16, x.float())
    torch.testing.assert_close(images.inside(x.float() / 16), images.inside(x))
    vectors = GAN(2, location=torch.tensor([1.0, 2.0]), scale=torch.tensor([3.0, 0.5]))
    y = torch.randn(4, 2)
    torch.testing.assert_close(vectors.outside(vectors.inside(y)), y)
    assert vectors.sample(0).shape == (0, 2)
    torch.testing.assert_close(vectors.sample(7, key=3)[2:5], vectors.decode(vectors.noise(3, 3, first=2)))


def test_modes_are_counted_by_the_samples_near_them() -> None:
    density = DENSITIES["grid25"]()
    x = density.held_out(20_000)
    kept, share, overlap = modes(x, density.centres(), density.std)
    assert kept == 25
    assert share == pytest.approx(1 - math.exp(-4.5), abs=0.003)
    assert 0.95 < overlap < share
    left = x[x[:, 0] < 3]
    twice = torch.cat([left, torch.full((len(left), 2), 1.0)])
    kept, share, overlap = modes(twice, density.centres(), density.std)
    assert kept == 20
    assert share == pytest.approx(0.5 * (1 - math.exp(-4.5)), abs=0.003)
    assert overlap == pytest.approx(share, abs=1e-6), "half the samples on 20 modes leave none too full"


def test_the_trained_discriminator_is_the_optimal_one() -> None:
    """``p_data / (p_data + p_G)``, and the loss its entropy bound: half of what a tenth of the updates leave."""
    found = approach(DENSITIES["ring"](), steps=(20, 1000), batch=256, hidden=(64, 64, 64), lr=4e-3)
    assert found.errors[20] > 0.15
    assert found.errors[1000] < 0.035
    assert found.losses[1000] == pytest.approx(found.bound, abs=0.04)
    assert found.losses[1000] > found.bound - 0.01
    assert float((found.fields[1000] - found.optimum).abs().mean()) < 0.05


def test_bad_input_is_explained() -> None:
    images = DCGAN((1, 28, 28), width=4)
    with pytest.raises(ValueError, match=r"a batch of 1 is too small: batch norm and minibatch"):
        images.losses(Batch(torch.rand(1, 1, 28, 28)), "critic")
    assert "loss" in _small().losses(Batch(torch.randn(1, 2)), "critic"), "perceptrons take single samples"
    with pytest.raises(ValueError, match=r"expected samples \(batch, 1, 28, 28\), got \(4, 3, 28, 28\)"):
        images.losses(Batch(torch.rand(4, 3, 28, 28)), "generator")
    with pytest.raises(TypeError, match=r"must be uint8 images or floating-point, got torch.int64"):
        images.losses(Batch(torch.ones(4, 1, 28, 28, dtype=torch.int64)), "critic")
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got values from -2 to -1"):
        images.losses(Batch(torch.rand(4, 1, 28, 28) - 2), "critic")
    with pytest.raises(ValueError, match="part must be 'critic' or 'generator', got 'discriminator'"):
        images.losses(Batch(torch.rand(4, 1, 28, 28)), "discriminator")
    with pytest.raises(ValueError, match=r"sides halve evenly to fewer than 8 pixels, .* got \(1, 25, 28\)"):
        DCGAN((1, 25, 28))
    with pytest.raises(ValueError, match="norm must be 'batch'"):
        DCGAN((1, 28, 28), norm="group")
    with pytest.raises(ValueError, match="penalty must be 'none'"):
        GAN(2, penalty="r3")
    with pytest.raises(ValueError, match="WGANGP has no labels to smooth"):
        WGANGP(2, techniques=Techniques(label_smoothing=0.1))
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 0.5\), got 0.6"):
        Techniques(label_smoothing=0.6)
    with pytest.raises(ValueError, match=r"latents must have shape \(batch, 3\), got \(2, 4\)"):
        _small().decode(torch.zeros(2, 4))
    with pytest.raises(DataError, match="labelled x, y and unlabelled u"):
        SemiSupervisedGAN(2, 3).losses(Batch(torch.randn(4, 2)), "critic")


def test_virtual_batch_norm_lets_no_sample_see_another() -> None:
    torch.manual_seed(0)
    shape = (1, 28, 28)
    reference = torch.rand(16, *shape) * 2 - 1
    model = GAN(shape, **gan.convolutional(shape, latents=8, width=4, norm="virtual", reference=reference))
    x, z = torch.rand(6, *shape) * 2 - 1, model.noise(6)
    torch.testing.assert_close(model.discriminator(x)[2:4], model.discriminator(x[2:4]))
    torch.testing.assert_close(model.generator(z)[2:4], model.generator(z[2:4]))
    batch = Batch((x + 1) / 2)
    for part, parts in model.parts().items():
        loss = model.losses(batch, part)["loss"]
        loss.backward()
        parts.optimizer.step()
    assert torch.equal(model.state_dict()["discriminator.trunk.reference"], reference)
    with pytest.raises(ValueError, match="needs a reference batch of samples, got None"):
        gan.convolutional(shape, critic_norm="virtual")
    # Images of 8x8 have one convolution in the discriminator, and that is never normalised.
    small = GAN((1, 8, 8), **gan.convolutional((1, 8, 8), width=4, norm="virtual", reference=reference[:, :, :8, :8]))
    assert small.losses(Batch(torch.rand(4, 1, 8, 8)), "critic")["loss"].isfinite()
