"""BiGAN: its losses are the paper's, its encoder inverts its generator, and its runs resume and report."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import gmkernels as gmk
from genmodels import data
from genmodels.cli import main
from genmodels.data import Batch, ImageDataset
from genmodels.gan import BiGAN, Techniques
from genmodels.gan.bigan_recipe import BiGANRecipe, nearest
from genmodels.training import Fit, fit, load_weights
from genmodels.training.checkpoint import load_newest
from tests.streams import Stopping

SMALL = {"latents": 3, "width": 4, "hidden": 8}


def _images(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8)


def test_the_losses_are_those_of_the_paper_with_flipped_labels() -> None:
    model = BiGAN((1, 8, 8), **SMALL).double().eval()
    x = model.inside(_images(5))
    z = model.noise(5, 4)
    model.noise = lambda n: z
    real = model.discriminator(x, model.encoder(x)).sigmoid()
    fake = model.discriminator(model.generator(z), z).sigmoid()
    critic, generator = (model.losses(Batch(model.outside(x)), part)["loss"] for part in ("critic", "generator"))
    torch.testing.assert_close(critic, -(real.log().mean() + (1 - fake).log().mean()))
    torch.testing.assert_close(generator, -((1 - real).log().mean() + fake.log().mean()))
    model.saturating = True
    minimax = model.losses(Batch(model.outside(x)), "generator")["loss"]
    torch.testing.assert_close(minimax, -critic)


def test_critic_and_generator_own_their_networks_and_nothing_else() -> None:
    model = BiGAN((1, 8, 8), **SMALL)
    parts = model.parts()
    owned = {name: {id(p) for p in part.parameters()} for name, part in parts.items()}
    assert owned["critic"] == {id(p) for p in model.discriminator.parameters()}
    assert owned["generator"] == {id(p) for net in (model.generator, model.encoder) for p in net.parameters()}
    model.losses(Batch(_images(4)), "critic")["loss"].backward()
    assert all(p.grad is None for net in (model.generator, model.encoder) for p in net.parameters())
    model.losses(Batch(_images(4)), "generator")["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_techniques_reach_the_generator_and_the_encoder() -> None:
    model = BiGAN((1, 8, 8), **SMALL, techniques=Techniques(feature_matching=True, historical=2.0)).double().eval()
    x = model.inside(_images(5))
    z = model.noise(5, 4)
    model.noise = lambda n: z
    gap = model.discriminator.features(x, model.encoder(x)).mean(0) - model.discriminator.features(
        model.generator(z), z
    ).mean(0)
    with torch.no_grad():
        next(model.encoder.parameters()).add_(0.5)
        count = next(model.encoder.parameters()).numel()
    moved = model.losses(Batch(model.outside(x)), "generator")
    torch.testing.assert_close(moved["historical"], torch.tensor(2.0 * 0.25 * count, dtype=torch.float64))
    with torch.no_grad():
        next(model.encoder.parameters()).sub_(0.5)
    found = model.losses(Batch(model.outside(x)), "generator")
    torch.testing.assert_close(found["loss"] - found["historical"], gap.square().sum())
    found["loss"].backward()
    assert all(p.grad is not None for net in (model.generator, model.encoder) for p in net.parameters())


def test_the_critic_sees_both_halves_of_a_pair() -> None:
    model = BiGAN((1, 8, 8), **SMALL).eval()
    x, z = torch.randn(6, 1, 8, 8, requires_grad=True), torch.randn(6, 3, requires_grad=True)
    score = model.discriminator(x, z)
    assert score.shape == (6,)
    gx, gz = torch.autograd.grad(score.sum(), (x, z))
    assert float(gx.abs().amax((1, 2, 3)).min()) > 0
    assert float(gz.abs().amax(1).min()) > 0


def test_codes_do_not_depend_on_the_batch_and_go_back_to_images() -> None:
    model = BiGAN((1, 8, 8), **SMALL).eval()
    x = _images(7)
    z = model.encode(x)
    assert z.shape == (7, 3)
    torch.testing.assert_close(model.encode(x[3:4]), z[3:4])
    back = model.reconstruct(x)
    assert back.shape == (7, 1, 8, 8)
    assert 0 <= float(back.min()) <= float(back.max()) <= 1
    torch.testing.assert_close(model.decode(z), back)
    with pytest.raises(ValueError, match=r"got \(2, 1, 4, 4\)"):
        model.encode(torch.zeros(2, 1, 4, 4))


def _losses_at(model: BiGAN, x: torch.Tensor, z: torch.Tensor) -> dict[str, torch.Tensor]:
    model.noise = lambda n: z
    return model.losses(Batch(model.outside(x)), "critic")


@pytest.mark.parametrize("penalty", ["r1", "r2"])
def test_a_penalty_is_by_both_halves_of_the_right_pairs(penalty: str) -> None:
    model = BiGAN((1, 8, 8), **SMALL, norm="none", penalty=penalty, penalty_weight=3.0).double()
    with torch.no_grad():
        # Gradients of new networks are too small to compare.
        for p in model.parameters():
            p.normal_(0, 0.5)
    x, z = model.inside(_images(5)), model.noise(5, 4)
    pair = (x, model.encoder(x)) if penalty == "r1" else (model.generator(z), z)
    halves = [half.detach().requires_grad_() for half in pair]
    grads = torch.autograd.grad(model.discriminator(*halves).sum(), halves, create_graph=True)
    by_x, by_z = (grad.flatten(1).square().sum(1).mean() for grad in grads)
    assert min(float(by_x.detach()), float(by_z.detach())) > 1e-3
    found = _losses_at(model, x, z)
    torch.testing.assert_close(found["penalty"], 1.5 * (by_x + by_z))
    parameters = list(model.discriminator.trunk.parameters())
    wanted = torch.autograd.grad(1.5 * (by_x + by_z), parameters, allow_unused=True, materialize_grads=True)
    got = torch.autograd.grad(found["penalty"], parameters, allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(got, wanted)
    model.penalty = "none"
    torch.testing.assert_close(found["loss"] - found["penalty"], _losses_at(model, x, z)["loss"])


def test_the_gradient_penalty_is_zero_of_a_critic_of_slope_one_on_pairs() -> None:
    model = BiGAN((1, 8, 8), **SMALL, norm="none", penalty="gradient").double()
    slope = torch.randn(64 + 3, dtype=torch.float64)
    slope /= slope.norm()

    class Plane(torch.nn.Module):
        def forward(self, x: torch.Tensor, z: torch.Tensor | None = None) -> torch.Tensor:
            return (x if z is None else torch.cat([x.flatten(1), z], 1)) @ slope

    model.discriminator = Plane()
    x, z = model.inside(_images(5)), model.noise(5, 4)
    assert float(_losses_at(model, x, z)["penalty"]) < 1e-20
    model.penalty = "dragan"
    assert float(_losses_at(model, x, z)["penalty"]) < 1e-20
    slope.mul_(3)
    torch.testing.assert_close(_losses_at(model, x, z)["penalty"], torch.tensor(40.0, dtype=torch.float64))


def test_minibatch_discrimination_lets_a_score_see_the_other_pairs() -> None:
    plain, model = BiGAN((1, 8, 8), **SMALL).double(), BiGAN((1, 8, 8), **SMALL, minibatch=4).double()
    x, z = torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    z.requires_grad_()
    for of, sees in ((plain, False), (model, True)):
        (grad,) = torch.autograd.grad(of.discriminator(x, z)[0], z)
        assert float(grad[0].abs().max()) > 0
        assert (float(grad[1:].abs().amax(1).min()) > 0) == sees
    # What is compared are features of pairs, not of images: with all images alike the codes still tell.
    (grad,) = torch.autograd.grad(model.discriminator(x[:1].expand(6, -1, -1, -1), z)[0], z)
    assert float(grad[1:].abs().amax(1).min()) > 0
    # Real pairs and made ones are batches of their own.
    assert model.least == 2
    with pytest.raises(ValueError, match=r"a batch of 1 is too small"):
        model.losses(Batch(_images(1)), "critic")
    with pytest.warns(gmk.BatchCoupledWarning, match="MinibatchDiscrimination"):
        BiGAN((1, 8, 8), **SMALL, minibatch=4, penalty="r1")


def test_virtual_batch_norm_lets_no_pair_see_another_but_all_see_the_reference() -> None:
    reference = 2 * torch.rand(7, 1, 8, 8) - 1
    options = {**SMALL, "norm": "virtual", "critic_norm": "virtual", "penalty": "gradient"}
    model = BiGAN((1, 16, 16), **options, reference=2 * torch.rand(7, 1, 16, 16) - 1)
    x, z = torch.rand(6, 1, 16, 16), torch.randn(6, 3)
    for network, args in ((model.generator, (z,)), (model.encoder, (x,)), (model.discriminator, (x, z))):
        whole = network(*args)
        # In training, where batch norm would mix the examples.
        torch.testing.assert_close(network(*(a[2:4] for a in args)), whole[2:4], rtol=1e-4, atol=1e-5)
        references = [buffer for name, buffer in network.named_buffers() if name.endswith("reference")]
        assert len(references) == 1
        references[0].mul_(0.3).add_(0.4)
        assert float((network(*args) - whole).detach().abs().max()) > 1e-5
    assert {"generator.reference", "encoder.reference", "discriminator.trunk.reference"} < set(model.state_dict())
    for part in ("critic", "generator"):
        model.losses(Batch(torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8)), part)["loss"].backward()
    assert all(p.grad is not None for p in model.parameters())
    # Images of 8x8 have one convolution, and that is never normalised.
    small = BiGAN((1, 8, 8), **SMALL, norm="virtual", critic_norm="virtual", reference=reference)
    assert small.encode(x[:, :, :8, :8]).shape == (6, 3)
    assert small.losses(Batch(x[:, :, :8, :8]), "critic")["loss"].isfinite()
    with pytest.raises(ValueError, match=r"needs a reference batch of samples, got None"):
        BiGAN((1, 8, 8), **SMALL, norm="virtual")


def test_the_recipe_passes_the_techniques_on_and_refuses_other_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = BiGANRecipe(
        data="digits", width=4, latents=3, hidden=(8,), minibatch=5, norm="virtual", penalty="r1", penalty_weight=2.0
    )
    dataset = recipe.dataset()
    with pytest.warns(gmk.BatchCoupledWarning):
        model = recipe.build(dataset)
    assert isinstance(model, BiGAN)
    assert (model.penalty, model.penalty_weight) == ("r1", 2.0)
    assert model.discriminator.head[0].layer.num_kernels == 5
    reference = recipe.options(dataset)["reference"]
    assert reference.shape == (64, 1, 8, 8)
    assert (float(reference.amin()), float(reference.amax())) == (-1.0, 1.0)
    assert main(["train", "bigan", "--data", "digits", "--network", "mlp", "--out", str(tmp_path / "a")]) == 1
    assert "does not offer --network mlp" in capsys.readouterr().err
    assert main(["train", "bigan", "--data", "moons", "--out", str(tmp_path / "b")]) == 1
    assert "a BiGAN is of images, and 'moons' is none of them" in capsys.readouterr().err


def test_neighbours_are_counted_in_the_space_of_the_encoder() -> None:
    train = Batch(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]))
    train.x[:, 0, 0, 0] = torch.tensor([0, 10, 100, 110])
    train.x[:, 0, 1, 0] = torch.tensor([0, 200, 0, 200])
    test = Batch(train.x[[1, 2]].clone(), torch.tensor([0, 1]))
    test.x[:, 0, 1, 0] = 100
    test.x[0, 0, 0, 0] = 60
    toy = ImageDataset("toy", {"train": train, "valid": test, "test": test})
    assert nearest(lambda x: x[:, 0, 0, :1].float(), toy) == 0.5
    assert nearest(lambda x: torch.where(x[:, 0, 0, :1] > 90, 1.0, 0.0), toy) == 1.0


def _halves(n: int, seed: int) -> torch.Tensor:
    """Two numbers make an image: the brightness of its left half and of its right one."""
    g = torch.Generator().manual_seed(seed)
    shades = (255 * torch.rand(n, 1, 1, 2, generator=g)).round().to(torch.uint8)
    return shades.repeat_interleave(4, 3).expand(n, 1, 8, 8).clone()


def test_an_encoder_inverts_the_generator_it_learnt_with(tmp_path: Path) -> None:
    """E has never been told z: that E(G(z)) follows z it has from the game alone."""
    model = _trained_on_halves(tmp_path, 600)
    assert _latent_correlation(model) > 0.5
    x, seen = _halves(200, 1), _halves(2000, 0)
    mean = seen.float().mean(0) / 255
    error = (model.reconstruct(x) - x / 255).abs().mean()
    assert float(error) < 0.9 * float((mean - x / 255).abs().mean())


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    recipe = BiGANRecipe(
        data="digits", width=4, latents=3, hidden=(8,), batch_size=8, norm="virtual", penalty="gradient"
    )
    dataset, config, weights = recipe.dataset(), Fit(max_steps=10, ema=0.9), []
    for stops in ([], [9]):
        out = tmp_path / str(len(stops))
        for at in [*stops, 0]:
            torch.manual_seed(0)
            model = recipe.build(dataset)
            fit(model, Stopping(recipe.stream(dataset), at), out, config, parts=recipe.parts(model))
        found = load_newest(out)
        assert found is not None
        weights.append(found[0])
    whole, resumed = weights
    assert int(whole["model.updates"]) == 10
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def _trained_on_halves(out: Path, steps: int, **options: float) -> BiGAN:
    toy = ImageDataset("halves", {"train": Batch(_halves(2000, 0))})
    torch.manual_seed(2)
    model = BiGAN((1, 8, 8), latents=2, width=16, norm="none", hidden=64, **options)
    config = Fit(max_steps=steps, lr=6e-3, clip=0.0, warmup_steps=0, ema=0.98)
    fit(model, toy.stream(32), out, config, parts=model.parts(lr=6e-3))
    load_weights(model, out)
    return model.eval()


def _latent_correlation(model: BiGAN) -> float:
    z = model.noise(500, 1)
    return float(torch.corrcoef(torch.stack([z.flatten(), model.encode(model.decode(z)).flatten()]))[0, 1])


def test_cycles_are_added_to_the_loss_and_teach_whom_they_should() -> None:
    weights = {"latent_weight": 2.0, "pixel_weight": 3.0}
    model = BiGAN((1, 8, 8), **SMALL, **weights).double().eval()
    x = model.inside(_images(5))
    z = model.noise(5, 4)
    model.noise = lambda n: z
    found = model.losses(Batch(model.outside(x)), "generator")
    torch.testing.assert_close(found["latent"], 2 * (model.encoder(model.generator(z)) - z).square().mean())
    torch.testing.assert_close(found["pixel"], 3 * (model.generator(model.encoder(x)) - x).abs().mean())
    networks = {"generator": model.generator, "encoder": model.encoder, "critic": model.discriminator}
    for cycle, learners in (("latent", {"encoder"}), ("pixel", {"generator", "encoder"})):
        for name, network in networks.items():
            wanted = list(network.parameters())
            grads = torch.autograd.grad(found[cycle], wanted, retain_graph=True, allow_unused=True)
            assert any(grad is not None and grad.abs().max() > 0 for grad in grads) == (name in learners), (cycle, name)
    for share in (0.25, 1.0):
        model.latent_share = share
        shared = model.losses(Batch(model.outside(x)), "generator")["latent"]
        torch.testing.assert_close(shared, found["latent"])
        weights_of = [list(network.parameters()) for network in (model.encoder, model.generator)]
        cycle = 2 * (model.encoder(model.generator(z)) - z).square().mean()
        for parameters, part in zip(weights_of, (1.0, share), strict=True):
            got, whole = (torch.autograd.grad(loss, parameters, retain_graph=True) for loss in (shared, cycle))
            torch.testing.assert_close(got, tuple(part * grad for grad in whole))
    assert not {"latent", "pixel"} & set(model.losses(Batch(model.outside(x)), "critic"))
    model.latent_weight = model.pixel_weight = 0.0
    plain = model.losses(Batch(model.outside(x)), "generator")
    assert set(plain) == {"loss"}
    torch.testing.assert_close(found["loss"], plain["loss"] + found["latent"] + found["pixel"])
    with pytest.raises(ValueError, match=r"latent_weight and pixel_weight must be 0 or more, got -1 and 0"):
        BiGAN((1, 8, 8), **SMALL, latent_weight=-1)
    with pytest.raises(ValueError, match=r"latent_share must be in \[0, 1\], got 2"):
        BiGAN((1, 8, 8), **SMALL, latent_share=2)
    recipe = BiGANRecipe(data="digits", width=4, latents=3, hidden=(8,), latent_share=0.5, **weights)
    built = recipe.build(recipe.dataset())
    assert isinstance(built, BiGAN)
    assert (built.latent_weight, built.latent_share, built.pixel_weight) == (2.0, 0.5, 3.0)


def test_a_latent_that_has_to_come_back_does(tmp_path: Path) -> None:
    """In steps too few for the game to teach it."""
    alone, told = (
        _latent_correlation(_trained_on_halves(tmp_path / str(weight), 200, latent_weight=weight))
        for weight in (0.0, 3.0)
    )
    assert alone < 0.6
    assert told > 0.8


def _png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 2000


def test_train_sample_evaluate_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, record = tmp_path / "run", tmp_path / "models.jsonl"
    small = ["--data", "digits", "--width", "4", "--latents", "3", "--hidden", "8", "--batch-size", "16"]
    budget = ["--max-steps", "6", "--evaluations", "2", "--judged", "300", "--threads", "1", "--minibatch", "2"]
    assert main(["train", "bigan", *small, *budget, "--out", str(run)]) == 0
    for name in ("samples", "reconstructions", "inversions", "interpolation", "arithmetic", "losses"):
        assert _png(run / f"{name}.png"), name
    capsys.readouterr()
    assert main(["evaluate", str(run), "--record", str(record)]) == 0
    found = json.loads(capsys.readouterr().out)
    dataset = data.load("digits")
    assert isinstance(dataset, ImageDataset)
    # Pixels know digits; what else the figures are worth needs a longer run.
    assert found["test_neighbour_pixels"] > 0.95
    latents = ("test_latent_correlation", "test_latent_r2", "test_latent_found")
    for name in ("test_frechet", *latents, "test_reconstruction_l1", "test_neighbour_encoder"):
        assert math.isfinite(found[name])
    assert found["test_neighbour_random"] > 0.2
    row = json.loads(record.read_text())
    assert row["model"] == "bigan"
    assert "300 samples" in row["judged_by"]
    assert main(["sample", str(run), "--n", "6", "--seed", "3"]) == 0
    assert _png(run / "samples-3.png")
