"""RealNVP is a density: invertible, its log-determinant exact, its mass one, and the same on every backend."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import gmkernels as gmk
from genmodels.data import DENSITIES, Batch
from genmodels.flows import Flow, RealNVP, checkerboard, four_corners
from genmodels.flows.transforms import Chain, Flatten, Logit, Transform, no_change

FLOWS = {
    "plane": lambda: RealNVP(2, couplings=4, hidden=16),
    "vector, odd, permuted": lambda: RealNVP(7, couplings=5, hidden=16),
    "plane, linear": lambda: RealNVP(2, couplings=5, hidden=16, linear=True),
    "vector, odd, linear": lambda: RealNVP(5, couplings=4, hidden=16, linear=True),
    "vector with context": lambda: RealNVP(4, couplings=3, hidden=16, contexts=3),
    "soft clip": lambda: RealNVP(5, couplings=3, hidden=16, scale_map="soft_clip", clamp=1.0),
    "image, two scales": lambda: RealNVP((1, 4, 4), levels=256, couplings=3, widths=(6, 8)),
    "colour image, three scales": lambda: RealNVP((3, 8, 8), levels=256, couplings=2, widths=(6, 6, 6)),
    "image with context": lambda: RealNVP((2, 2, 2), levels=4, couplings=2, widths=(6,), contexts=3),
    "flat image": lambda: RealNVP((1, 3, 3), levels=16, couplings=4, hidden=16, flat=True),
}


def _disturbed(flow: RealNVP, seed: int = 0) -> RealNVP:
    """A flow starts as the identity; tests want one that does something."""
    torch.manual_seed(seed)
    for parameter in flow.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return flow.double()


def _inputs(flow: Flow, name: str, n: int = 3) -> tuple[Tensor, Tensor | None]:
    x = torch.rand(n, *flow.shape, dtype=torch.float64) * 0.96 + 0.02
    return x, torch.randn(n, 3, dtype=torch.float64) if "context" in name else None


@pytest.mark.parametrize("name", FLOWS)
def test_inverse_undoes_forward_and_logdets_cancel(name: str) -> None:
    flow = _disturbed(FLOWS[name]())
    x, context = _inputs(flow, name)
    z, logdet = flow(x, context)
    back, back_logdet = flow.inverse(z, context)
    assert z.shape == (3, flow.features)
    assert logdet.shape == (3,)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-10)
    torch.testing.assert_close(back_logdet, -logdet, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", FLOWS)
def test_logdet_is_that_of_the_jacobian(name: str) -> None:
    flow = _disturbed(FLOWS[name]())
    x, context = _inputs(flow, name, 2)
    _, logdet = flow(x, context)
    for i in range(2):
        row = None if context is None else context[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(lambda one, row=row: flow(one[None], row)[0][0], x[i])
        exact = jacobian.reshape(flow.features, flow.features).slogdet().logabsdet
        torch.testing.assert_close(logdet[i], exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FLOWS)
def test_every_element_is_transformed_and_every_parameter_matters(name: str) -> None:
    flow = _disturbed(FLOWS[name]())
    x, context = _inputs(flow, name)
    z, _ = flow(x, context)
    plain, _ = FLOWS[name]().double()(x, context)
    assert (z != plain).all()
    flow.log_prob(x, context).sum().backward()
    for key, parameter in flow.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


def test_a_context_changes_the_density() -> None:
    flow = _disturbed(FLOWS["vector with context"]())
    x = torch.randn(2, 4, dtype=torch.float64)
    a, b = (flow.log_prob(x, torch.full((2, 3), c, dtype=torch.float64)) for c in (0.0, 1.0))
    assert (a - b).abs().min() > 1e-3


def test_the_density_of_the_plane_integrates_to_one() -> None:
    flow = _disturbed(RealNVP(2, couplings=4, hidden=16), seed=3)
    axis = torch.linspace(-24, 24, 1400, dtype=torch.float64)
    with torch.no_grad():
        mass = flow.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(float(mass) - 1) < 1e-4


def test_the_probabilities_of_all_small_images_add_up_to_the_mass_of_the_unit_cube() -> None:
    """P(image) is the integral of the density over the image's bin; the mean of the logarithm over the noise is less."""
    flow = _disturbed(RealNVP((1, 1, 2), levels=3, couplings=3, widths=(6,)), seed=1)
    middle = (torch.arange(300, dtype=torch.float64) + 0.5) / 300
    images = torch.cartesian_prod(torch.arange(3), torch.arange(3)).view(9, 1, 1, 2)
    with torch.no_grad():
        inside = flow.log_prob(torch.cartesian_prod(middle, middle).view(-1, 1, 1, 2)).exp().mean()
        draws = flow.log_prob(images.repeat(4000, 1, 1, 1), key=0).view(4000, 9)
    assert 0.5 < float(inside) < 1
    assert abs(float(draws.exp().mean(0).sum() - inside)) < 0.01
    assert float(draws.mean(0).exp().sum()) < float(inside) - 0.01


def test_samples_follow_their_log_density() -> None:
    """E_p[q / p] = 1 for any density q; here q is a wide normal, p the flow, sampled and weighed in one pass."""
    flow = _disturbed(RealNVP(2, couplings=4, hidden=16), seed=3)
    with torch.no_grad():
        x, log_p = flow.rsample_and_log_prob(40_000, key=0)
    torch.testing.assert_close(log_p, flow.log_prob(x), rtol=1e-8, atol=1e-8)
    centre, spread = x.mean(0), x.std(0)
    log_q = (-0.5 * ((x - centre) / (0.5 * spread)).square() - (0.5 * spread).log() - 0.5 * math.log(2 * math.pi)).sum(
        1
    )
    weights = (log_q - log_p).exp()
    assert abs(float(weights.mean()) - 1) < 5 * float(weights.std()) / 200 < 0.05


def test_rsample_is_differentiable_and_shaped_like_zuko() -> None:
    flow = RealNVP(3, couplings=3, hidden=8)
    x, log_p = flow.rsample_and_log_prob((2, 5), key=1)
    assert (x.shape, log_p.shape) == ((2, 5, 3), (2, 5))
    (x.square().sum() + log_p.sum()).backward()
    assert all(p.grad is not None for p in flow.parameters())
    assert flow.sample((2, 5), key=1).shape == (2, 5, 3)
    assert flow.sample(key=1).shape == (3,)
    assert RealNVP((1, 4, 4), levels=256, widths=(4,)).sample(6).dtype == torch.uint8


class _Identity(Transform):
    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x, no_change(x)

    inverse = forward


def test_bits_per_dim_of_a_known_distribution() -> None:
    """Under the logit of a logistic-like flow the bits of an image are known in closed form.

    With z = logit(alpha + (1 - 2 alpha) v) standard normal, P(k) is a difference of two normal integrals for each pixel;
    many draws of the noise must approach it from above, one draw must lie above on average.
    """
    alpha, levels = 0.05, 8
    flow = Flow(Chain([Logit(alpha), Flatten((1, 1, 1))]), (1, 1, 1), levels)
    flow.register_parameter("unused", torch.nn.Parameter(torch.zeros(())))
    flow.double()
    edges = alpha + (1 - 2 * alpha) * torch.arange(levels + 1, dtype=torch.float64) / levels
    cdf = torch.special.ndtr(edges.logit())
    exact = -(cdf[1:] - cdf[:-1]).log2()
    images = torch.arange(levels).view(levels, 1, 1, 1)
    many = flow.bits_per_dim(images, key=0, draws=2000)
    torch.testing.assert_close(many, exact, rtol=0, atol=0.03)
    single = flow.bits_per_dim(images.repeat(4000, 1, 1, 1), key=1).view(4000, levels).mean(0)
    assert (single > exact - 2e-3).all()
    assert float((single - exact).max()) > 0.01


def test_bits_per_dim_counts_levels_and_dimensions() -> None:
    """A uniform density on (0, 1)^D gives log2(levels) bits for every integer."""

    class Uniform(Flow):
        def _prior(self, z: Tensor) -> Tensor:
            return z.new_zeros(len(z))

    flow = Uniform(Chain([Flatten((3, 2, 2))]), (3, 2, 2), 256)
    flow.register_parameter("unused", torch.nn.Parameter(torch.zeros(())))
    x = torch.randint(0, 256, (5, 3, 2, 2), dtype=torch.uint8)
    torch.testing.assert_close(flow.bits_per_dim(x), torch.full((5,), 8.0))
    torch.testing.assert_close(flow.log_prob(x), torch.full((5,), -12 * math.log(256.0)))
    torch.testing.assert_close(flow.losses(Batch(x))["loss"], torch.tensor(8.0))


def test_images_survive_encoding_and_decoding() -> None:
    flow = _disturbed(FLOWS["image, two scales"]())
    x = torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8)
    assert torch.equal(flow.decode(flow.encode(x, key=3)), x)


def test_dequantised_images_stay_in_their_bins_and_depend_on_the_key_alone() -> None:
    flow = RealNVP((1, 4, 4), levels=256, widths=(4,))
    x = torch.randint(0, 256, (50, 1, 4, 4), dtype=torch.uint8)
    v = flow.dequantise(x, 7)
    assert torch.equal((v * 256).floor().to(torch.uint8), x)
    assert torch.equal(v, flow.dequantise(x, gmk.random.key(seed=7)))
    assert not torch.equal(v, flow.dequantise(x, 8))


def test_four_corners_is_the_papers_formula() -> None:
    z = torch.randn(4, 6, dtype=torch.float64)
    grid = four_corners(z, 5)
    for i in range(5):
        for j in range(5):
            a, b = i * math.pi / 8, j * math.pi / 8
            by_hand = math.cos(a) * (math.cos(b) * z[0] + math.sin(b) * z[1])
            by_hand = by_hand + math.sin(a) * (math.cos(b) * z[2] + math.sin(b) * z[3])
            torch.testing.assert_close(grid[i, j], by_hand, rtol=1e-12, atol=1e-12)
    corners = torch.stack([grid[0, 0], grid[0, -1], grid[-1, 0], grid[-1, -1]])
    torch.testing.assert_close(corners, z, rtol=0, atol=1e-12)


def test_the_corners_of_an_interpolation_are_the_given_images() -> None:
    flow = _disturbed(FLOWS["image, two scales"]())
    x = torch.randint(0, 256, (4, 1, 4, 4), dtype=torch.uint8)
    grid = flow.interpolate(x, 6, key=0)
    assert grid.shape == (6, 6, 1, 4, 4)
    assert torch.equal(torch.stack([grid[0, 0], grid[0, -1], grid[-1, 0], grid[-1, -1]]), x)
    with pytest.raises(ValueError, match=r"corners must have shape \(4, 1, 4, 4\)"):
        flow.interpolate(x[:3])


def test_temperature_zero_is_the_centre_of_the_latents() -> None:
    flow = _disturbed(FLOWS["plane"]())
    centre = flow.decode(torch.zeros(1, 2, dtype=torch.float64))
    torch.testing.assert_close(flow.sample(3, key=0, temperature=0.0), centre.expand(3, 2), rtol=0, atol=1e-12)


def test_initialise_standardises_the_data() -> None:
    flow = RealNVP(3, couplings=2)
    x = torch.randn(500, 3) * torch.tensor([0.01, 1.0, 50.0]) + torch.tensor([5.0, 0.0, -100.0])
    flow.initialise(x)
    z, logdet = flow(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(z.std(0), torch.ones(3), rtol=1e-3, atol=0)
    torch.testing.assert_close(logdet, -x.std(0).log().sum().expand(500), rtol=1e-4, atol=0)


def test_a_checkerboard_alternates() -> None:
    assert checkerboard(2, 3, True)[0].int().tolist() == [[1, 0, 1], [0, 1, 0]]
    assert torch.equal(checkerboard(4, 5, True), ~checkerboard(4, 5, False))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RealNVP((1, 2)), r"shape must be \(D,\) or \(C, H, W\), got \(1, 2\)"),
        (lambda: RealNVP(1), "a vector needs at least 2 features, got 1"),
        (lambda: RealNVP((1, 6, 6), widths=(4, 4, 4)), "need an even size, got 3x3"),
        (lambda: RealNVP((1, 4, 4), levels=256, alpha=0.5), "alpha must be between 0 and 0.5, got 0.5"),
        (lambda: RealNVP(3)(torch.zeros(2, 4)), r"expected samples of shape \(batch, 3\), got \(2, 4\)"),
        (lambda: RealNVP(3).inverse(torch.zeros(2, 4)), r"expected latents of shape \(batch, 3\), got \(2, 4\)"),
    ],
)
def test_bad_arguments_are_explained(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_integers_need_levels() -> None:
    with pytest.raises(TypeError, match=r"takes real-valued samples, got torch.uint8; give it levels="):
        RealNVP(3).log_prob(torch.zeros(2, 3, dtype=torch.uint8))


def _curve(backend: str, make: object, batches: list[Batch], steps: int) -> list[float]:
    with gmk.use_backend(backend):
        torch.manual_seed(0)
        flow = make()
        optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
        losses = []
        for i in range(steps):
            loss = flow.losses(batches[i % len(batches)])["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses


def _digits(n: int) -> list[Batch]:
    from genmodels import data

    stream = data.digits().stream(32, seed=1)
    return [next(stream) for _ in range(n)]


@pytest.mark.parametrize("kind", ["image", "flat", "plane"])
def test_the_fused_model_follows_the_reference_loss_curve(kind: str) -> None:
    """Same seeds, same noise: 40 steps of Adam on the fused kernels and on plain PyTorch give the same losses.

    Rounding differs by a few units in the last place and grows slowly with the steps; 2e-4 of the loss is far below what
    any wrong gradient would do (a missing log-determinant term changes the first loss by more than 1).
    """
    if kind == "plane":
        make = lambda: RealNVP(2, couplings=6, hidden=32)  # noqa: E731
        stream = DENSITIES["moons"]().stream(128, seed=0)
        batches = [next(stream) for _ in range(10)]
    else:
        make = lambda: RealNVP(  # noqa: E731
            (1, 8, 8), levels=17, couplings=3, widths=(8, 16), hidden=64, flat=kind == "flat"
        )
        batches = _digits(10)
    fused, reference = (_curve(backend, make, batches, 40) for backend in ("auto", "reference"))
    assert reference[-1] < reference[0] - 0.05, "it must learn something, else agreeing is cheap"
    torch.testing.assert_close(torch.tensor(fused), torch.tensor(reference), rtol=2e-4, atol=2e-4)


def test_auto_is_the_fused_core_where_it_is_built() -> None:
    from gmkernels.core import backends

    expected = "reference" if backends.unavailable("cpu") else "cpu"
    assert gmk.backend_for("affine_coupling", torch.empty(2, 2)) == expected
