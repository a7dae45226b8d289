"""The VAE says log p(x) in nats: its bounds against closed forms, its gradients against the definition, its errors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gmkernels as gmk
from genmodels.data import Batch, ImageDataset, load
from genmodels.errors import GenmodelsError
from genmodels.vae import REGIONS, VAE, Beta, ConditionalVAE, NonFiniteLoss, hide, random_masks
from genmodels.vae.recipe import PosteriorCollapse, filling_error, warn_if_collapsed
from gmkernels.core import backends

SHAPE = (1, 8, 8)
BACKENDS = [name for name in ("cpu", "triton") if backends.unavailable(name) is None]


def _images(n: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, *shape).to(dtype)


def _linear(noise: float = 0.3) -> tuple[VAE, Callable[[Tensor], Tensor]]:
    """A linear-Gaussian VAE in float64 with its exact posterior, and its exact log p(x).

    x = W z + b + noise: log p(x) = log N(x; b, W W^T + noise^2 I). The columns of W are orthogonal, so that the
    posterior is diagonal and the model can hold it.
    """
    model = VAE((1, 1, 4), latents=2, depth=0, likelihood="gaussian").double()
    w = torch.tensor([[1.0, 1.0, 0.5, 0.0], [0.5, -0.5, 0.0, 1.5]], dtype=torch.float64).t()
    b = torch.tensor([0.1, -0.2, 0.3, 0.0], dtype=torch.float64)
    precision = 1 + w.square().sum(0) / noise**2
    gain = w.t() / (noise**2 * precision[:, None])
    with torch.no_grad():
        model.decoder.first.linear.weight.copy_(w)
        model.decoder.first.linear.bias.copy_(b)
        model.encoder.first.linear.weight.copy_(torch.cat([gain, torch.zeros(2, 4)]))
        model.encoder.first.linear.bias.copy_(torch.cat([-gain @ b, -precision.log()]))
        model.pixel_logvar.fill_(2 * math.log(noise))
    exact = torch.distributions.MultivariateNormal(b, w @ w.t() + noise**2 * torch.eye(4, dtype=torch.float64))
    return model, lambda x: exact.log_prob(x.flatten(1))


def _worsen(model: VAE) -> None:
    """A posterior that is wrong in mean and width."""
    with torch.no_grad():
        model.encoder.first.linear.bias += torch.tensor([0.15, -0.1, 0.5, -0.4], dtype=torch.float64)


def test_with_the_exact_posterior_one_importance_sample_is_log_p() -> None:
    model, log_p = _linear()
    x = _images(64, (1, 1, 4), torch.float64)
    torch.testing.assert_close(model.iwae(x, samples=1, key=3), log_p(x), rtol=0, atol=1e-10)


def test_the_elbo_is_log_p_less_the_divergence_of_the_posterior() -> None:
    """For any posterior ELBO = log p(x) - KL(q || p(z|x)), here in closed form; the mean of 40,000 draws finds it."""
    model, log_p = _linear()
    truth = model.posterior(x := _images(1, (1, 1, 4), torch.float64).expand(40_000, 1, 1, 4))
    p = torch.distributions.Normal(truth[0][0], (0.5 * truth[1][0]).exp())
    _worsen(model)
    mu, logvar = model.posterior(x[:1])
    q = torch.distributions.Normal(mu[0], (0.5 * logvar[0]).exp())
    expected = log_p(x[:1]) - torch.distributions.kl_divergence(q, p).sum()
    terms = model.elbo(x, key=1)
    elbo = -(terms.reconstruction + terms.kl)
    elbo = elbo.detach()
    error = float(elbo.std()) / math.sqrt(len(elbo))
    assert error < 0.02
    assert abs(float(elbo.mean() - expected.detach())) < 5 * error


def test_importance_weighting_closes_the_gap_to_log_p() -> None:
    model, log_p = _linear()
    _worsen(model)
    x = _images(200, (1, 1, 4), torch.float64)
    terms = model.elbo(x, key=1)
    bounds = [float(-(terms.reconstruction + terms.kl).mean())]
    bounds += [float(model.iwae(x, samples=k, key=1).mean()) for k in (5, 50, 2000)]
    truth = float(log_p(x).mean())
    assert bounds == sorted(bounds)
    assert bounds[0] < truth - 0.3
    assert truth - 0.01 < bounds[-1] < truth + 0.01


def test_importance_samples_do_not_depend_on_the_chunks() -> None:
    model = VAE(SHAPE, latents=3, hidden=16).double()
    x = _images(7, dtype=torch.float64)
    whole = model.iwae(x, samples=6, rows=1000, key=1)
    torch.testing.assert_close(model.iwae(x, samples=6, rows=13, key=1), whole, rtol=1e-12, atol=0)


def test_the_loss_is_the_sum_over_pixels_and_latents_averaged_over_images() -> None:
    """Written out with the noise of the key: no rescaling, no sign turned."""
    model = VAE(SHAPE, latents=3, hidden=16, beta=2.5).double()
    x, key = _images(5, dtype=torch.float64), gmk.random.key(seed=7)
    found = model.losses(Batch(x), key)
    mu, logvar = model.encoder(x).chunk(2, 1)
    z = mu + (0.5 * logvar).exp() * gmk.random.normal(key, mu.shape, dtype=torch.float64)
    reconstruction = F.binary_cross_entropy(model.decoder(z).sigmoid(), x, reduction="sum") / 5
    kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum() / 5
    torch.testing.assert_close(found["reconstruction"], reconstruction)
    torch.testing.assert_close(found["kl"], kl)
    torch.testing.assert_close(found["loss"], reconstruction + 2.5 * kl)


def test_integer_images_are_their_levels() -> None:
    model = VAE(SHAPE, latents=3, hidden=16, levels=17)
    x = torch.randint(0, 17, (4, *SHAPE), dtype=torch.uint8)
    whole, real = model.losses(Batch(x), 1), model.losses(Batch(x / 16), 1)
    assert torch.equal(whole["loss"], real["loss"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{}, {"likelihood": "gaussian"}, {"mask_rate": 0.9}, {"free_bits": 0.1}], ids=str)
def test_the_fused_gradient_is_that_of_the_definition_with_the_same_key(backend: str, options: dict) -> None:
    x, found = _images(6), {}
    model = VAE(SHAPE, latents=4, hidden=16, **options)
    for name in (backend, "reference"):
        model.zero_grad()
        with gmk.use_backend(name):
            loss = model.losses(Batch(x), 11)["loss"]
            loss.backward()
        found[name] = [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    assert len(found[backend]) == 1 + len(list(model.parameters()))
    for ours, theirs in zip(found[backend], found["reference"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6 * float(theirs.abs().max()))


def test_binarised_pixels_are_draws_that_depend_on_the_key_alone() -> None:
    model = VAE(SHAPE, latents=2, hidden=8, binarise=True)
    grey = torch.full((2000, *SHAPE), 0.25)
    drawn = model.targets(grey, model.key(5))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert abs(float(drawn.mean()) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / drawn.numel())
    assert torch.equal(drawn, model.targets(grey, model.key(5)))
    assert torch.equal(model.still(grey), torch.zeros_like(grey))


def test_free_bits_hold_the_loss_up_and_leave_the_report_alone() -> None:
    model = VAE(SHAPE, latents=4, hidden=16, free_bits=0.5)
    with torch.no_grad():
        model.encoder.rest[-1].weight.mul_(1e-3)
        model.encoder.rest[-1].bias.zero_()
    found = model.losses(Batch(_images(4)), 1)
    assert float(found["kl"]) < 1e-4
    torch.testing.assert_close(found["loss"] - found["reconstruction"], torch.tensor(2.0))
    found["loss"].backward()
    assert model.decoder.first.linear.weight.grad.abs().max() > 0


def test_beta_rises_holds_and_starts_again() -> None:
    beta = Beta(value=4.0, start=1.0, warmup=10, period=20)
    assert [float(beta.at(torch.tensor(i))) for i in (0, 5, 10, 19, 20, 25)] == [1.0, 2.5, 4.0, 4.0, 1.0, 2.5]
    assert Beta(value=3.0).at(torch.tensor(5)) == 3.0


def test_a_scheduled_beta_counts_training_updates_and_is_saved_with_the_weights() -> None:
    model = VAE(SHAPE, latents=3, hidden=8, beta=Beta(value=1.0, warmup=4))
    found = [model.losses(Batch(_images(4)), 1) for _ in range(3)]
    assert [float(f["beta"]) for f in found] == [0.0, 0.25, 0.5]
    torch.testing.assert_close(found[1]["loss"], found[1]["reconstruction"] + 0.25 * found[1]["kl"])
    model.eval()
    model.losses(Batch(_images(4)), 1)
    other = VAE(SHAPE, latents=3, hidden=8, beta=Beta(value=1.0, warmup=4))
    other.load_state_dict(model.state_dict())
    assert float(other.losses(Batch(_images(4)), 1)["beta"]) == 0.75


def _train(model: VAE, data: ImageDataset, steps: int, batch: int = 64, lr: float = 2e-3) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr)
    stream = data.stream(batch, seed=1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        model.losses(next(stream))["loss"].backward()
        optimizer.step()
    model.eval()


def test_beta_trades_reconstruction_against_divergence() -> None:
    data = load("digits")
    found = []
    for beta in (0.1, 1.0, 8.0):
        torch.manual_seed(0)
        model = VAE(data.shape, latents=8, hidden=64, levels=17, beta=beta)
        _train(model, data, 400)
        found.append([float(t.mean()) for t in model.elbo(data.splits["test"].x, key=1)[:2]])
    (r1, k1), (r2, k2), (r3, k3) = found
    assert r1 + 1 < r2 < r3 - 1
    assert k1 - 3 > k2 > k3 + 1


def test_filling_in_beats_the_mean_image_on_real_digits() -> None:
    """Half a minute of training leaves the Brier score of a hidden half at 80 % of the mean image's or less."""
    data = load("mnist5k")
    torch.manual_seed(0)
    model = VAE(data.shape, hidden=200, mask_rate=0.8)
    _train(model, data, 500)
    found = filling_error(model, data)
    assert found["test_brier_filled"] < 0.80 * found["test_brier_mean_image"]
    # With nothing to see, an average filling is no better than the mean image: the score knows about hidden pixels.
    x = data.splits["test"].x[:200]
    blind = model.inpaint(x, torch.zeros(1, 28, 28, dtype=torch.bool), draws=16, key=1)
    hidden = ~hide("right", data.shape).expand(data.shape)
    assert (blind - model.pixels(x))[:, hidden].square().mean() > 0.95 * found["test_brier_mean_image"]


def test_hidden_pixels_are_not_read_and_visible_ones_stay() -> None:
    model = VAE((3, 8, 8), latents=4, hidden=16, mask_rate=0.5)
    x, mask = _images(5, (3, 8, 8)), hide("left", (3, 8, 8))
    lost = torch.where(mask, x, math.nan)
    for steps in (1, 3):
        filled = model.inpaint(x, mask, steps, key=1)
        assert torch.equal(filled, model.inpaint(lost, mask, steps, key=1))
        assert torch.equal(torch.where(mask, filled, 0), torch.where(mask, x, 0))
        assert not torch.equal(filled, model.inpaint(x, mask, steps, key=2))
    assert torch.equal(model.encode(lost.nan_to_num(0.3), mask=mask), model.encode(x, mask=mask))
    everything = torch.ones(1, 8, 8, dtype=torch.bool)
    assert torch.equal(model.encode(x, mask=everything), model.encode(x))
    assert torch.equal(model.inpaint(x, everything, key=1), x)


def test_random_masks_hide_a_share_of_images_in_every_way() -> None:
    masks = random_masks(4000, (3, 28, 20), gmk.random.key(seed=3), rate=0.5)
    assert masks.shape == (4000, 1, 28, 20)
    hidden = (~masks).float().mean((1, 2, 3))
    assert abs(float((hidden > 0).float().mean()) - 0.5) < 0.05
    # A region has one edge inside the image (a half-plane), up to four (a rectangle), or is speckled.
    some = masks[hidden > 0][:, 0]
    flips = (some[:, 1:] != some[:, :-1]).any(2).sum(1) + (some[:, :, 1:] != some[:, :, :-1]).any(1).sum(1)
    for kind in (flips == 1, (flips > 1) & (flips <= 4), flips > 4):
        assert float(kind.float().mean()) > 0.15
    # Every pixel is hidden sometimes, and visible sometimes.
    each = (~masks).float().mean((0, 1))
    assert 0.05 < float(each.min()) < float(each.max()) < 0.45


def test_named_regions_hide_what_they_say() -> None:
    hidden = {name: ~hide(name, (1, 8, 8))[0] for name in REGIONS}
    assert {name: int(mask.sum()) for name, mask in hidden.items()} == dict.fromkeys(REGIONS, 32) | {"centre": 16}
    assert hidden["right"][:, 4:].all()
    assert hidden["bottom"][4:].all()
    assert (hidden["left"] ^ hidden["right"]).all()
    assert (hidden["top"] ^ hidden["bottom"]).all()
    assert hidden["centre"][2:6, 2:6].all()


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize("classes", [0, 3])
def test_every_picture_has_the_right_shape(network: str, classes: int) -> None:
    shape = (2, 8, 12)
    model = VAE(shape, latents=5, hidden=16, network=network, mask_rate=0.5, classes=classes)
    x = _images(6, shape)
    y = torch.arange(6) % 3 if classes else None
    one = torch.tensor(2) if classes else None
    assert model.encode(x, y).shape == (6, 5)
    assert model.reconstruct(x, y).shape == x.shape
    assert model.sample(6, y, key=1).shape == x.shape
    assert torch.equal(model.sample(6, y, key=1), model.sample(6, y, key=1))
    centre = model.decode(torch.zeros(1, 5), None if y is None else y[:1])
    torch.testing.assert_close(model.sample(6, y, key=1, temperature=0.0)[:1], centre)
    assert model.inpaint(x, hide("top", shape), y=y, draws=2, key=1).shape == x.shape
    assert model.manifold(4, x=x, y=y, label=2 if classes else None).shape == (4, 4, *shape)
    grid = model.interpolate(x[:4], 5, one)
    assert grid.shape == (5, 5, *shape)
    same = None if one is None else one.expand(4)
    corners = torch.stack([grid[0, 0], grid[0, -1], grid[-1, 0], grid[-1, -1]])
    torch.testing.assert_close(corners, model.reconstruct(x[:4], same))
    model.losses(Batch(x, y), 1)["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_two_latents_are_their_own_manifold() -> None:
    model = VAE(SHAPE, latents=2, hidden=8)
    grid = model.manifold(3)
    edge = float(torch.special.ndtri(torch.tensor(0.98)))
    torch.testing.assert_close(grid[0, 0], model.decode(torch.tensor([[-edge, edge]]))[0])
    torch.testing.assert_close(grid[1, 1], model.decode(torch.zeros(1, 2))[0], atol=1e-5, rtol=1e-5)


def test_the_class_changes_what_is_made() -> None:
    model = ConditionalVAE(SHAPE, 3, latents=4, hidden=16)
    x = _images(1).expand(3, *SHAPE)
    for made in (model.encode(x, torch.arange(3)), model.sample(1, torch.tensor([0]), key=1)):
        assert made.isfinite().all()
    codes = model.encode(x, torch.arange(3))
    assert not torch.allclose(codes[0], codes[1])
    first, second = (model.sample(1, torch.tensor([label]), key=1) for label in (0, 1))
    assert not torch.allclose(first, second)


def test_a_collapsed_posterior_is_reported() -> None:
    with pytest.warns(PosteriorCollapse, match="3 of 4 latents carry less than 0.01 nats"):
        assert warn_if_collapsed(torch.tensor([0.001, 2.0, 0.0, 0.009])) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_if_collapsed(torch.tensor([0.001, 2.0, 0.0, 0.02])) == 2


def test_a_strong_beta_collapses_a_model_and_a_weak_one_does_not() -> None:
    data = load("digits")
    used = {}
    for beta in (0.5, 50.0):
        torch.manual_seed(0)
        model = VAE(data.shape, latents=6, hidden=32, levels=17, beta=beta)
        _train(model, data, 150)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            used[beta] = warn_if_collapsed(model.kl_per_latent(data.splits["test"].x)), len(caught)
    assert used == {0.5: (6, 0), 50.0: (0, 1)}


def test_an_overflowing_log_variance_is_named_before_anything_changes() -> None:
    model = VAE(SHAPE, latents=3, hidden=8)
    with torch.no_grad():
        model.encoder.rest[-1].bias[3:] = 95.0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NonFiniteLoss, match=r"log-variance reached 9\d\.\d and exp overflows float32 above 88\.7"):
        model.losses(Batch(_images(4)), 1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert issubclass(NonFiniteLoss, GenmodelsError)


def test_damaged_parameters_are_named() -> None:
    model = VAE(SHAPE, latents=3, hidden=8)
    with torch.no_grad():
        model.decoder.first.linear.weight[0, 0] = math.nan
    with pytest.raises(NonFiniteLoss, match=r"decoder\.first\.linear\.weight holds NaN"):
        model.losses(Batch(_images(4)), 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, c: m.losses(Batch(2 * _images(4))), r"pixels in \[0, 1\], got values from 0\.\d+ to [12]\.\d+"),
        (lambda m, c: m.losses(Batch(_images(4) - 0.5)), r"pixels in \[0, 1\], got values from -0\.\d+"),
        (lambda m, c: m.losses(Batch(torch.full((2, *SHAPE), math.nan))), "got values from nan to nan"),
        (lambda m, c: m.losses(Batch(torch.full((2, *SHAPE), 200, dtype=torch.uint8))), "levels - 1 = 16"),
        (lambda m, c: m.losses(Batch(torch.rand(4, 64))), r"expected images \(batch, 1, 8, 8\), got \(4, 64\)"),
        (lambda m, c: c.losses(Batch(_images(2), torch.tensor([0, 3]))), r"labels must lie in 0\.\.2, got .* 0 to 3"),
        (lambda m, c: c.losses(Batch(_images(2), torch.tensor([-1, 2]))), r"0\.\.2, got values from -1 to 2"),
        (lambda m, c: c.losses(Batch(_images(2))), r"needs labels y \(batch,\) in 0\.\.2, got None"),
        (lambda m, c: c.losses(Batch(_images(2), torch.tensor([1]))), r"2 integers of shape \(2,\), got torch.int64"),
        (lambda m, c: m.inpaint(_images(2), hide("left", SHAPE)), "mask_rate above 0"),
        (lambda m, c: m.decode(torch.zeros(2, 5)), r"latents of shape \(batch, 3\), got \(2, 5\)"),
        (lambda m, c: m.iwae(_images(2), samples=0), "samples must be at least 1, got 0"),
        (lambda m, c: m.interpolate(_images(3)), r"corners must have shape \(4, 1, 8, 8\), got \(3, 1, 8, 8\)"),
        (lambda m, c: m.manifold(3), "manifold needs images x for a model with 3 latents"),
        (lambda m, c: hide("middle", SHAPE), "region must be one of left, right, top, bottom, centre, got 'middle'"),
        (lambda m, c: VAE((8, 8)), r"shape must be \(C, H, W\), got \(8, 8\)"),
        (lambda m, c: VAE((1, 6, 8), network="conv"), "divisible by 4, got 6x8"),
        (lambda m, c: VAE(SHAPE, likelihood="poisson"), "likelihood must be 'bernoulli' or 'gaussian', got 'poisson'"),
        (lambda m, c: VAE(SHAPE, mask_rate=1.5), r"mask_rate must be in \[0, 1\], got 1\.5"),
        (lambda m, c: VAE(SHAPE, beta=-1.0), "value and start must be 0 or more, got -1.0"),
        (lambda m, c: VAE(SHAPE, likelihood="gaussian", binarise=True), "binarise needs the Bernoulli likelihood"),
        (lambda m, c: Beta(warmup=10, period=5), "warmup must fit into the period of 5 updates, got 10"),
        (lambda m, c: ConditionalVAE(SHAPE, 1), "classes must be at least 2, got 1"),
    ],
)
def test_bad_arguments_are_explained(call: Callable[[VAE, VAE], object], message: str) -> None:
    plain = VAE(SHAPE, latents=3, hidden=8, levels=17)
    with pytest.raises(ValueError, match=message):
        call(plain, ConditionalVAE(SHAPE, 3, latents=3, hidden=8))


def test_a_mask_must_be_bool() -> None:
    with pytest.raises(TypeError, match="a mask must be bool, True where pixels are visible, got torch"):
        VAE(SHAPE, hidden=8, mask_rate=0.5).inpaint(_images(2), torch.ones(1, 8, 8))
