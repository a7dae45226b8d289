"""Gradient penalties: both routes give the same penalty and the same gradients of every parameter, for whatever a critic
may be made of; and the formulas of the papers, one number at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import gmkernels as gmk

from .critics import both, fill, gradients, pair

ROUTES = pytest.mark.parametrize("route", ["first-order", "double-backward"])
ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU,
    lambda: nn.LeakyReLU(0.2),
    lambda: nn.LeakyReLU(-0.3),
    nn.Tanh,
    nn.Sigmoid,
    lambda: nn.ELU(1.5),
    nn.SiLU,
    nn.GELU,
    lambda: nn.Softplus(2.0, 1.0),
    nn.Identity,
]


# ---- random architectures --------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """``x + f(x)``, of the same shape, in one of the ways to write it."""

    def __init__(self, inner: nn.Module, how: int) -> None:
        super().__init__()
        self.inner, self.how = inner, how
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        if self.how == 0:
            return x + y
        if self.how == 1:
            return torch.add(0.5 * x, y * self.gain)
        if self.how == 2:
            return (x - y) / 2.0 + 1.0
        return x * torch.sigmoid(y)


@st.composite
def image_critics(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    channels, size = draw(st.integers(1, 3)), draw(st.sampled_from([5, 6, 8]))
    shape = (channels, size, size)
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(0, 3))):
        out = draw(st.sampled_from([2, 4]))
        kernel = draw(st.sampled_from([1, 3, 4]))
        stride = draw(st.integers(1, 2))
        conv = nn.Conv2d(
            channels, out, kernel, stride, kernel // 2, groups=2 if channels % 2 == 0 and draw(st.booleans()) else 1,
            bias=draw(st.booleans()),
        )  # fmt: skip
        layers.append(parametrizations.weight_norm(conv) if draw(st.integers(0, 5)) == 0 else conv)
        size, channels = (size + 2 * (kernel // 2) - kernel) // stride + 1, out
        norm = draw(st.integers(0, 4))
        if size > 1 and norm == 1:
            layers.append(nn.InstanceNorm2d(channels, affine=draw(st.booleans())))
        elif size > 1 and norm == 2:
            layers.append(nn.GroupNorm(2, channels))
        elif size > 1 and norm == 3:
            layers.append(nn.LayerNorm([channels, size, size], elementwise_affine=draw(st.booleans())))
        layers.append(draw(st.sampled_from(ACTIVATIONS))())
        if draw(st.booleans()):
            inner = nn.Sequential(
                nn.Conv2d(channels, channels, 3, 1, 1), draw(st.sampled_from(ACTIVATIONS))(),
                nn.Conv2d(channels, channels, 3, padding="same"),
            )  # fmt: skip
            layers.append(Residual(inner, draw(st.integers(0, 3))))
        if size >= 4 and draw(st.booleans()):
            layers.append(draw(st.sampled_from([nn.AvgPool2d(2), nn.MaxPool2d(2), nn.AvgPool2d(3, 1, 1)])))
            size = size if isinstance(layers[-1], nn.AvgPool2d) and layers[-1].kernel_size == 3 else size // 2
    if draw(st.booleans()):
        layers.append(nn.AdaptiveAvgPool2d(1))
        size = 1
    layers += [nn.Flatten(), nn.Linear(channels * size * size, 1)]
    return nn.Sequential(*layers), shape


@st.composite
def vector_critics(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    width = features = draw(st.integers(1, 7))
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(0, 3))):
        out = draw(st.integers(2, 9))
        if draw(st.integers(0, 3)) == 0:
            layers.append(gmk.nn.MLP(width, (5, 6), out, activation=draw(st.sampled_from(["relu", "silu", "tanh"]))))
        else:
            layers.append(nn.Linear(width, out, bias=draw(st.booleans())))
        layers += [nn.LayerNorm(out)] if draw(st.booleans()) else []
        layers.append(draw(st.sampled_from(ACTIVATIONS))())
        width = out
    return nn.Sequential(*layers, nn.Linear(width, 1)), (features,)


@settings(deadline=None, max_examples=60)
@given(st.one_of(image_critics(), vector_critics()), st.integers(1, 4), st.integers(0, 10**6), st.booleans())
def test_random_architectures(made: tuple[nn.Module, tuple[int, ...]], batch: int, seed: int, one_sided: bool) -> None:
    critic, shape = made
    fill(critic, seed)
    both(copy.deepcopy(critic).double(), *pair((batch, *shape), seed=seed), one_sided=one_sided)
    # In single precision a gradient next to a kink, or a norm next to 0, may be far from its neighbour: of the size of
    # float32's rounding, and no more, on all others.
    both(critic, *pair((batch, *shape), torch.float32, seed), tolerance=1e-5, one_sided=one_sided)


# ---- layers and ways to write them -----------------------------------------------------------------------------------


class Written(nn.Module):
    """Functions, methods, parameters made of others, two branches, sizes: what forward passes are written with."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.gain, self.kernel = nn.Parameter(torch.ones(4, 1, 1)), nn.Parameter(torch.ones(3, 4, 3, 3))
        self.weight = nn.Parameter(torch.ones(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = h + self.second(F.leaky_relu(h, 0.2)) * self.gain
        h = h * torch.sigmoid(h) - 0.5 * h
        h = torch.cat([h, F.conv2d(h, self.kernel * 0.3, padding=1)], 1)
        h = F.avg_pool2d(F.dropout(F.elu(h), 0.5, self.training), 2)
        h = h.mean((2, 3)).view(x.size(0), -1)
        return F.linear(h, torch.cat([self.weight * 2, self.weight[:, :3]], 1)).squeeze(1)


def one_layer(layer: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, 1, 1), nn.Tanh(), layer, nn.SiLU(), nn.Flatten(), nn.Linear(width, 1))


@pytest.mark.parametrize(
    ("critic", "shape"),
    [
        pytest.param(Written().eval(), (3, 2, 6, 6), id="written"),
        pytest.param(nn.Linear(5, 1), (4, 5), id="one layer"),
        pytest.param(gmk.nn.MLP(5, (7, 6, 5, 4, 3), 1, activation="tanh"), (4, 5), id="one MLP"),
        pytest.param(one_layer(nn.BatchNorm2d(4), 144).eval(), (3, 2, 6, 6), id="batch norm in evaluation"),
        pytest.param(one_layer(nn.ConvTranspose2d(4, 3, 4, 2, 1), 432), (3, 2, 6, 6), id="transposed"),
        pytest.param(one_layer(nn.Conv2d(4, 3, 3, dilation=2, padding=2), 108), (3, 2, 6, 6), id="dilated"),
        pytest.param(one_layer(nn.Unflatten(1, (2, 2)), 144), (3, 2, 6, 6), id="unflatten"),
        pytest.param(one_layer(nn.Dropout2d(0.0), 144), (3, 2, 6, 6), id="no dropout"),
        pytest.param(nn.Sequential(nn.Conv1d(2, 3, 3), nn.ELU(), nn.Flatten(), nn.Linear(12, 1)), (3, 2, 6), id="1-D"),
        pytest.param(
            nn.Sequential(nn.Conv3d(1, 2, 3), nn.SiLU(), nn.Flatten(), nn.Linear(16, 1)), (3, 1, 4, 4, 4), id="3-D"
        ),
        pytest.param(nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 1)), (3, 5), id="in place"),
        pytest.param(one_layer(gmk.nn.MaskedConv2d(4, 6, 5, "A", 2), 216), (3, 2, 6, 6), id="masked"),
        pytest.param(one_layer(gmk.nn.MaskedConv2d(4, 3, (3, 1), "B"), 108), (3, 2, 6, 6), id="masked B"),
        pytest.param(
            nn.Sequential(gmk.nn.CausalConv1d(2, 3, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(18, 1)),
            (3, 2, 6),
            id="causal",
        ),
        pytest.param(
            nn.Sequential(gmk.nn.MaskedLinear([3, 1, 2], [2, 1, 4, 3], relu=True), nn.Linear(4, 1)),
            (3, 3),
            id="masked linear",
        ),
    ],
)
def test_layers(critic: nn.Module, shape: tuple[int, ...]) -> None:
    critic = fill(copy.deepcopy(critic), 2).double()
    assert gmk.penalty_route(critic) == ("first-order", None)
    both(critic, *pair(shape))
    both(critic.float(), *pair(shape, torch.float32), tolerance=1e-5)


def test_dropout_is_one_mask_in_all_passes() -> None:
    """With weights of one neuron, the penalty tells which of its inputs were dropped; the gradient must agree."""
    critic = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, 1, bias=False)).double().train()
    real, fake = pair((1, 64))
    torch.manual_seed(5)
    penalty = gmk.gradient_penalty(critic, real, fake, route="first-order")
    (grad,) = gradients(critic, penalty)
    weight = critic[1].weight
    kept = grad[0] != 0
    assert 10 < int(kept.sum()) < 54
    norm = (2 * weight[0, kept]).norm()
    torch.testing.assert_close(penalty, 10 * (norm - 1) ** 2, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(grad[0, kept], 20 * (1 - 1 / norm) * 4 * weight[0, kept], rtol=1e-10, atol=0.0)


# ---- formulas --------------------------------------------------------------------------------------------------------


@ROUTES
def test_linear_critic(route: str) -> None:
    """Its gradient is its weight, for every sample: Gulrajani et al. 2017, equation 3."""
    critic = nn.Linear(3, 1).double()
    real, fake = pair((4, 3))
    norm = critic.weight.norm()
    penalty = gmk.gradient_penalty(critic, real, fake, lambda_=7.0, target=0.4, route=route)
    torch.testing.assert_close(penalty, 7 * (norm - 0.4) ** 2, rtol=1e-12, atol=0.0)
    weight, bias = gradients(critic, penalty)
    torch.testing.assert_close(weight, 14 * (norm - 0.4) / norm * critic.weight, rtol=1e-12, atol=0.0)
    assert not bias.any()


class Square(nn.Module):
    """``sum of x^2 / 2``, whose gradient is the point itself."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x * x).flatten(1).sum(1)


@ROUTES
def test_points_and_formulas(route: str) -> None:
    """With a critic whose gradient is its input, a penalty shows at which points it was taken."""
    critic = Square()
    real, fake = pair((5, 2, 3))
    eps = torch.linspace(0, 1, 5, dtype=torch.float64)
    norm = torch.stack([(e * r + (1 - e) * f).norm() for e, r, f in zip(eps, real, fake, strict=True)])
    how = dict(route=route, target=2.0)
    close = dict(rtol=1e-12, atol=0.0)
    found = gmk.gradient_penalty(critic, real, fake, eps=eps, **how)
    torch.testing.assert_close(found, 10 * (norm - 2).square().mean(), **close)
    found = gmk.gradient_penalty(critic, real, fake, eps=eps, one_sided=True, every=4, **how)
    torch.testing.assert_close(found, 40 * (norm - 2).clamp(min=0).square().mean(), **close)
    key = gmk.random.key(seed=9)
    x = gmk.random_interpolate(real, fake, key, first=3)
    found = gmk.gradient_penalty(critic, real, fake, key=key, first=3, **how)
    torch.testing.assert_close(found, 10 * (x.flatten(1).norm(dim=1) - 2).square().mean(), **close)
    squares = [t.flatten(1).square().sum(1).mean() for t in (real, fake)]
    torch.testing.assert_close(gmk.r1_penalty(critic, real, 3.0, route=route), 1.5 * squares[0], rtol=1e-12, atol=0.0)
    torch.testing.assert_close(
        gmk.r2_penalty(critic, fake, 3.0, every=16, route=route), 24 * squares[1], rtol=1e-12, atol=0.0
    )
    noisy = real + 0.3 * real.std(correction=0) * gmk.random.normal(key, real.shape, dtype=torch.float64)
    found = gmk.dragan_penalty(critic, real, scale=0.3, key=key, **how)
    torch.testing.assert_close(found, 10 * (noisy.flatten(1).norm(dim=1) - 2).square().mean(), **close)


def test_interpolation_is_one_uniform_for_each_sample() -> None:
    real, fake = torch.ones(9, 2, 3), torch.zeros(9, 2, 3)
    key = gmk.random.key(seed=4)
    x = gmk.random_interpolate(real, fake, key, first=2)
    eps = gmk.random.uniform(key, (9,), first=2)
    assert torch.equal(x, eps.reshape(9, 1, 1).expand(9, 2, 3))


@ROUTES
def test_cut_batches_add_up(route: str) -> None:
    critic = fill(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1)), 3).double()
    real, fake = pair((8, 6))
    key = gmk.random.key(seed=1)
    whole = gmk.gradient_penalty(critic, real, fake, key=key, route=route)
    parts = [
        gmk.gradient_penalty(critic, real[cut], fake[cut], key=key, first=cut.start, route=route)
        for cut in (slice(0, 4), slice(4, 8))
    ]
    torch.testing.assert_close(sum(parts) / 2, whole, rtol=1e-12, atol=0.0)


@ROUTES
@pytest.mark.parametrize("penalty", ["wgan-gp", "r1"])
def test_no_nan_where_the_gradient_vanishes(route: str, penalty: str) -> None:
    critic = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
    nn.init.zeros_(critic[2].weight)
    x, y = pair((5, 4), torch.float32)
    found = gmk.gradient_penalty(critic, x, y, route=route) if penalty == "wgan-gp" else gmk.r1_penalty(critic, x)
    assert float(found.detach()) == (10.0 if penalty == "wgan-gp" else 0.0)
    assert not any(g.any() for g in gradients(critic, found))


@ROUTES
def test_empty_batch(route: str) -> None:
    critic = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1))
    found = gmk.gradient_penalty(critic, torch.zeros(0, 4), torch.zeros(0, 4), route=route)
    assert float(found.detach()) == 0.0 and not any(g.any() for g in gradients(critic, found))
