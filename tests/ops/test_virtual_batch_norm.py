"""Virtual batch normalisation against the formulas of its paper, and what batch normalisation gets wrong."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn

import gmkernels as gmk
from gmkernels.core import backends
from gmkernels.nn import VirtualBatch, VirtualBatchNorm, virtual_batch

F64 = torch.float64
BACKENDS = [name for name in ("reference", "cpu", "triton") if backends.unavailable(name) is None]


def _paper(x: Tensor, reference: Tensor, layer: VirtualBatchNorm) -> Tensor:
    """Section 3.5 word by word: the means of x and x^2 over the reference, mixed with those of one example."""
    dims, n = (0, *range(2, x.dim())), len(reference)
    mean, square = reference.mean(dims), reference.square().mean(dims)
    rows = []
    for example in x:
        spatial = tuple(range(1, example.dim()))
        own, own_square = (example.mean(spatial), example.square().mean(spatial)) if spatial else (example, example**2)
        m, q = (n * mean + own) / (n + 1), (n * square + own_square) / (n + 1)
        shape = (-1, *[1] * len(spatial))
        scale = layer.weight / torch.sqrt(q - m * m + layer.eps)
        rows.append((example - m.view(shape)) * scale.view(shape) + layer.bias.view(shape))
    return torch.stack(rows)


def _layer(channels: int, **options) -> VirtualBatchNorm:
    layer = VirtualBatchNorm(channels, **options).double()
    with torch.no_grad():
        layer.weight += 0.3 * torch.randn(channels)
        layer.bias += 0.3 * torch.randn(channels)
    return layer


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 7), (6, 5, 4, 3)])
def test_it_is_the_papers(shape: tuple[int, ...]) -> None:
    x, reference = torch.randn(shape, dtype=F64) + 0.5, 2 * torch.randn(9, *shape[1:], dtype=F64)
    layer = _layer(shape[1])
    layer.set_reference(reference)
    torch.testing.assert_close(layer(x), _paper(x, reference, layer), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(9, 5), (9, 5, 4, 3)])
def test_the_reference_is_normalised_by_itself_alone(shape: tuple[int, ...]) -> None:
    reference, layer = torch.randn(shape, dtype=F64), _layer(5)
    expected = nn.functional.batch_norm(reference, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)
    torch.testing.assert_close(layer.set_reference(reference), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(8, 6), (8, 3, 5)])
def test_an_example_does_not_depend_on_the_others(backend: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    layer = VirtualBatchNorm(shape[1], backend=backend)
    layer.set_reference(torch.randn(4, *shape[1:]))
    whole = layer(x)
    others = torch.cat((x[:1], 100 * torch.randn(3, *shape[1:])))
    assert torch.equal(layer(others)[0], whole[0])
    found = torch.autograd.grad(whole[2].square().sum(), x)[0]
    assert found[2].abs().min() > 0
    assert not found[[0, 1, *range(3, 8)]].any()


def test_gradients_reach_what_made_the_reference() -> None:
    """Statistics are functions of the parameters before the layer: against finite differences, and twice."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), VirtualBatchNorm(4), nn.Tanh(), nn.Linear(4, 1)).double()
    x, reference = torch.randn(3, 3, dtype=F64), torch.randn(5, 3, dtype=F64)
    names = [name for name, _ in network.named_parameters()]
    values = tuple(p.detach().requires_grad_() for p in network.parameters())

    def loss(*values: Tensor) -> Tensor:
        parameters = dict(zip(names, values, strict=True))

        class Bound(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self, images: Tensor) -> Tensor:
                return torch.func.functional_call(self.network, parameters, (images,))

        bound = Bound()
        with virtual_batch(bound, reference):
            return bound(x).square().sum()

    assert torch.autograd.gradcheck(loss, values)
    assert torch.autograd.gradgradcheck(loss, values)


def test_the_whole_network_is_the_papers() -> None:
    """Two layers deep, the second sees what the first made of the reference by its own statistics."""
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3), VirtualBatchNorm(3), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(48, 5), VirtualBatchNorm(5)
    ).double()
    x, reference = torch.randn(4, 2, 6, 6, dtype=F64), torch.randn(7, 2, 6, 6, dtype=F64)
    conv, first, leaky, flatten, linear, second = network
    a = conv(reference)
    whole = nn.functional.batch_norm(a, None, None, first.weight, first.bias, training=True, eps=first.eps)
    b = linear(flatten(leaky(whole)))
    expected = _paper(linear(flatten(leaky(_paper(conv(x), a, first)))), b, second)
    with virtual_batch(network, reference):
        torch.testing.assert_close(network(x), expected)
    torch.testing.assert_close(VirtualBatch(network, reference)(x), expected)


def test_a_step_of_the_optimizer_changes_the_statistics() -> None:
    network = VirtualBatch(nn.Sequential(nn.Linear(3, 4), VirtualBatchNorm(4)), torch.randn(6, 3))
    x = torch.randn(2, 3)
    before = network(x).detach()
    with torch.no_grad():
        network.network[0].weight.add_(torch.randn(4, 3))
    mean, var, _ = _statistics(network)
    after = network(x)
    expected = gmk.virtual_batch_norm(
        network.network[0](x), mean, var, network.network[1].weight, network.network[1].bias, examples=6
    )
    torch.testing.assert_close(after, expected)
    assert not torch.allclose(before, after)


def _statistics(network: VirtualBatch) -> tuple[Tensor, Tensor, int]:
    values = network.network[0](network.reference)
    return values.mean(0), values.var(0, correction=0), len(values)


def test_a_penalty_on_each_examples_gradient_is_well_defined() -> None:
    """The penalty of a batch is the mean of the penalties of its examples alone; with batch norm it is not."""

    def penalties(critic: nn.Module) -> tuple[Tensor, Tensor]:
        x = torch.randn(5, 4, dtype=F64)
        slopes = [
            torch.autograd.grad(critic(part).sum(), part)[0].norm(dim=1)
            for part in (x.clone().requires_grad_(), *(row[None].clone().requires_grad_() for row in x))
        ]
        return slopes[0], torch.cat(slopes[1:])

    layers = nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)
    virtual = VirtualBatch(nn.Sequential(layers[0], VirtualBatchNorm(8), *layers[1:]), torch.randn(6, 4)).double()
    together, alone = penalties(virtual)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)


def test_the_gradient_penalty_takes_it_without_a_warning() -> None:
    layers = nn.Linear(4, 8), VirtualBatchNorm(8), nn.Tanh(), nn.Linear(8, 1)
    critic = VirtualBatch(nn.Sequential(*layers), torch.randn(6, 4)).double()
    real, fake, key = torch.randn(5, 4, dtype=F64), torch.randn(5, 4, dtype=F64), gmk.random.key(seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", gmk.BatchCoupledWarning)
        found = gmk.gradient_penalty(critic, real, fake, key=key)
    x = gmk.random_interpolate(real, fake, key).detach().requires_grad_()
    slope = torch.autograd.grad(critic(x).sum(), x, create_graph=True)[0].norm(dim=1)
    expected = 10.0 * (slope - 1.0).square().mean()
    torch.testing.assert_close(found, expected)
    pairs = (torch.autograd.grad(value, critic.parameters(), allow_unused=True) for value in (found, expected))
    for (name, _), a, b in zip(critic.named_parameters(), *pairs, strict=True):
        if "3.bias" not in name:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [2, 64])
def test_a_larger_reference_weighs_more(n: int) -> None:
    layer = VirtualBatchNorm(1).double()
    layer.set_reference(torch.tensor([[-1.0], [1.0]], dtype=F64).repeat(n // 2, 1))
    x = torch.tensor([[3.0]], dtype=F64)
    m, q = 3.0 / (n + 1), (n + 9.0) / (n + 1)
    assert layer(x).item() == pytest.approx((3.0 - m) / math.sqrt(q - m * m + 1e-5), rel=1e-12)


def test_a_large_mean_costs_no_digits() -> None:
    """By the difference of squares, values near 1e4 would leave nothing of a variance of 1 in float32."""
    x, reference = torch.randn(4, 3, 50, dtype=F64), torch.randn(8, 3, 50, dtype=F64)
    layer = VirtualBatchNorm(3).double()
    layer.set_reference(reference)
    expected = layer(x)
    layer.float().set_reference((reference + 1e4).float())
    torch.testing.assert_close(layer((x + 1e4).float()).double(), expected, rtol=0, atol=3e-3)


def test_statistics_do_not_outlive_their_block() -> None:
    network, reference = nn.Sequential(nn.Linear(3, 4), VirtualBatchNorm(4)), torch.randn(5, 3)
    with virtual_batch(network, reference):
        network(torch.randn(2, 3))
    with pytest.raises(RuntimeError, match="VirtualBatchNorm has no reference batch: call the network inside"):
        network(torch.randn(2, 3))
    # An error inside leaves the network as it was.
    with pytest.raises(RuntimeError, match="mat1 and mat2"), virtual_batch(network, torch.randn(5, 2)):
        pass
    with virtual_batch(network, reference), pytest.raises(RuntimeError, match="has a reference batch already"):
        VirtualBatch(network, reference)(torch.randn(2, 3))
    assert network[1].reference is None


def test_networks_and_references_that_do_not_fit_are_refused() -> None:
    reference = torch.randn(5, 3)
    with pytest.raises(ValueError, match="has no VirtualBatchNorm layer"):
        VirtualBatch(nn.Linear(3, 4), reference)(reference)

    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = VirtualBatchNorm(3), VirtualBatchNorm(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    with pytest.raises(ValueError, match="did not reach 1 of 2 layers"), virtual_batch(Skips(), reference):
        pass
    with pytest.raises(ValueError, match=r"shape \(n, 3, ...\) and not be empty, got \(5, 4\)"):
        VirtualBatchNorm(3).set_reference(torch.randn(5, 4))
    with pytest.raises(ValueError, match=r"not be empty, got \(0, 3\)"):
        VirtualBatchNorm(3).set_reference(torch.randn(0, 3))


def test_the_reference_batch_belongs_to_the_checkpoint() -> None:
    def make() -> VirtualBatch:
        return VirtualBatch(nn.Sequential(nn.Linear(3, 4), VirtualBatchNorm(4)), torch.randn(6, 3))

    first, second, x = make(), make(), torch.randn(2, 3)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))


def test_a_compiled_layer_agrees() -> None:
    layer = VirtualBatchNorm(3)
    mean, var = torch.randn(3), torch.rand(3) + 0.5

    def run(x: Tensor) -> Tensor:
        return gmk.virtual_batch_norm(x, mean, var, layer.weight, layer.bias, examples=8).square().sum()

    x = torch.randn(4, 3, 5, requires_grad=True)
    expected = torch.autograd.grad(run(x), (x, *layer.parameters()))
    found = torch.autograd.grad(torch.compile(run, fullgraph=True)(x), (x, *layer.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
