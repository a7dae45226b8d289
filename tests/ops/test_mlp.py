"""Perceptrons as layers: the numbers of torch.nn, whoever calls them, and the coupling that has one inside."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.prune import l1_unstructured

import gmkernels as gmk
from gmkernels.nn import MLP, AffineCoupling

TORCH = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


def _sequential(net: MLP) -> nn.Sequential:
    """The same layers in torch.nn, sharing their parameters."""
    steps: list[nn.Module] = []
    for layer in net.layers:
        steps += [TORCH[net.activation](), layer] if steps else [layer]
    return nn.Sequential(*steps)


@hypothesis.given(
    widths=st.lists(st.integers(1, 40), min_size=2, max_size=8),
    batch=st.integers(0, 20),
    activation=st.sampled_from(list(TORCH)),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_number_of_layers_gives_what_torch_gives(
    widths: list[int], batch: int, activation: str, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    net = MLP(widths[0], widths[1:-1], widths[-1], activation=activation, bias=bias).double()
    x = torch.randn(batch, widths[0], dtype=torch.float64, requires_grad=True)
    g = torch.randn(batch, widths[-1], dtype=torch.float64)
    found = []
    for module in (net, _sequential(net)):
        y = module(x)
        found.append([y, *torch.autograd.grad(y, [x, *net.parameters()], g)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("batch", [1, 5, 130, 300])
@pytest.mark.parametrize("widths", [(300, 270, 140), (140, 300, 270), (20, 260, 260, 7), (260, 260)])
def test_wide_layers_which_are_computed_in_blocks_give_what_torch_gives(batch: int, widths: tuple[int, ...]) -> None:
    """In single precision, of which a layer of 65,536 weights is a wide one, against torch in double precision; and
    samples among others, of which blocks are made, give the bits that they give alone."""
    torch.manual_seed(0)
    net = MLP(widths[0], widths[1:-1], widths[-1], activation="tanh")
    x, g = torch.randn(batch, widths[0], requires_grad=True), torch.randn(batch, widths[-1])
    y = net(x)
    found = [y, *torch.autograd.grad(y, [x, *net.parameters()], g)]
    wide, exact = net.double(), x.detach().double().requires_grad_()
    y = _sequential(wide)(exact)
    for got, expected in zip(found, [y, *torch.autograd.grad(y, [exact, *wide.parameters()], g.double())], strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=2e-6 * float(expected.detach().abs().max()))
    net.float()
    assert torch.equal(net(x[-1:]), found[0][-1:])


@pytest.mark.parametrize("activation", list(TORCH))
@pytest.mark.parametrize("widths", [(9, 5), (300, 270, 140), (523, 270)])
def test_every_pair_is_what_the_sum_of_both_gives(activation: str, widths: tuple[int, ...]) -> None:
    """An image's share of a layer and a class's, added and passed on: as if each pair had been a sample of its own."""
    torch.manual_seed(0)
    net = MLP(widths[0], widths[1:-1], widths[-1], activation=activation)
    x, rows = torch.randn(37, widths[0], requires_grad=True), torch.randn(7, widths[0], requires_grad=True)
    g = torch.randn(37, 7, widths[-1])
    weights, biases = [layer.weight for layer in net.layers], [layer.bias for layer in net.layers]
    y = gmk.mlp(x, weights, biases, activation=activation, each=rows)
    found = [y, *torch.autograd.grad(y, [x, rows, *weights, *biases], g)]
    exact = [t.detach().double().requires_grad_() for t in (x, rows)]
    wide = net.double()
    y = _sequential(wide)(TORCH[activation]()(exact[0].unsqueeze(1) + exact[1]))
    leaves = [*exact, *(layer.weight for layer in wide.layers), *(layer.bias for layer in wide.layers)]
    for got, expected in zip(found, [y, *torch.autograd.grad(y, leaves, g.double())], strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=2e-6 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("widths", [(5, 7), (20, 270, 300)])
def test_a_decoder_with_its_likelihood_gives_the_bits_of_both_and_exact_gradients(
    samples: int, widths: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    net = MLP(widths[0], widths[1:-1], widths[-1])
    x, z = torch.rand(50, widths[-1]), torch.randn(50 * samples, widths[0], requires_grad=True)
    weights, biases = [layer.weight for layer in net.layers], [layer.bias for layer in net.layers]
    logits = gmk.mlp(z, weights, biases).view(50, samples, -1)
    apart = gmk.bernoulli_log_likelihood(logits, x.unsqueeze(1), batch_dims=2).flatten()
    together = gmk.bernoulli_log_likelihood_mlp(z, weights, biases, x=x)
    assert torch.equal(together, apart)
    g = torch.randn(len(z))
    last = [weights[-1], biases[-1]]
    for got, expected in zip(
        *(torch.autograd.grad(t, last, g, retain_graph=True) for t in (together, apart)), strict=True
    ):
        assert torch.equal(got, expected)
    # Below, the cotangent multiplies a finished sum and not each of its terms.
    leaves = [z, *weights, *biases]
    found = torch.autograd.grad(together, leaves, g)
    wide, exact = net.double(), z.detach().double().requires_grad_()
    logits = _sequential(wide)(exact).view(50, samples, -1)
    target = x.double().unsqueeze(1).expand_as(logits)
    likelihood = -F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(2).flatten()
    leaves = [exact, *(layer.weight for layer in wide.layers), *(layer.bias for layer in wide.layers)]
    for got, expected in zip(found, torch.autograd.grad(likelihood, leaves, g.double()), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=2e-6 * float(expected.abs().max()))


def test_a_gradient_penalty_goes_through() -> None:
    """The norm of the input's gradient, differentiated by the parameters (Gulrajani et al. 2017)."""
    torch.manual_seed(0)
    net = MLP(5, [33, 20], 1, activation="silu").double()
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    found = []
    for module in (net, _sequential(net)):
        (slope,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
        penalty = (slope.norm(dim=1) - 1).square().mean()
        found.append(torch.autograd.grad(penalty, list(net.parameters()), allow_unused=True))
    for got, expected in zip(*found, strict=True):
        if expected is None:  # of the last bias, on which no slope depends
            assert got is None or not got.any()
        else:
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_dropout_is_that_of_torch_and_only_in_training() -> None:
    net = MLP(200, [300], 100, dropout=0.5)
    x = torch.ones(1, 200)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    torch.testing.assert_close(net(x), _sequential(net)(x))


def test_autocast_rounds_products_as_it_does_for_linear_layers() -> None:
    net = MLP(8, [16], 4)
    x = torch.randn(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
        assert torch.equal(y, _sequential(net)(x))
    assert y.dtype == torch.bfloat16


def test_a_parametrised_layer_is_asked_for_its_weight() -> None:
    net = MLP(6, [7], 3)
    nn.utils.parametrizations.weight_norm(net.layers[0])
    x = torch.randn(4, 6)
    torch.testing.assert_close(net(x), _sequential(net)(x))
    net(x).sum().backward()
    assert net.layers[0].parametrizations.weight.original0.grad is not None


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="activation must be one of relu, silu, tanh, got 'gelu'"):
        MLP(2, [3], 1, activation="gelu")
    with pytest.raises(ValueError, match="dropout must be 0 or more and less than 1, got 1"):
        MLP(2, [3], 1, dropout=1.0)
    with pytest.raises(ValueError, match="expected 1 to 4 weights and as many biases, got 5 and 5"):
        gmk.mlp(torch.ones(1, 1), [torch.ones(1, 1)] * 5)
    with pytest.raises(ValueError, match="expected 1 to 4 weights and as many biases, got 2 and 1"):
        gmk.mlp(torch.ones(1, 1), [torch.ones(1, 1)] * 2, [None])


# ---- in a coupling ---------------------------------------------------------------------------------------------------


class Apart(nn.Module):
    """A conditioner of which nobody can see that it is a perceptron."""

    def __init__(self, net: MLP) -> None:
        super().__init__()
        self.net = net

    def forward(self, *given: Tensor) -> Tensor:
        return self.net(*given)


@pytest.mark.parametrize(
    ("split", "scale_map", "inverse", "actnorm"),
    list(itertools.product([2, -3], ["exp", "sigmoid", "soft_clip"], [False, True], [None, 7])),
)
def test_a_fused_coupling_is_the_coupling_of_its_conditioner(
    split: int, scale_map: str, inverse: bool, actnorm: int | None
) -> None:
    torch.manual_seed(0)
    net = MLP(abs(split), [20, 20], 2 * (7 - abs(split)), activation="silu").double()
    x = torch.randn(9, 7, dtype=torch.float64, requires_grad=True)
    grads = torch.randn(9, 7, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    norm = [torch.randn(7, dtype=torch.float64) for _ in range(2 if actnorm else 0)]
    found = []
    for conditioner in (net, Apart(net)):
        layer = AffineCoupling(conditioner, split=split, scale_map=scale_map, actnorm=actnorm).double()
        for p, value in zip((layer.log_scale, layer.shift), norm, strict=False):
            assert p is not None
            p.data.copy_(value)
        outputs = layer.inverse(x) if inverse else layer(x)
        if not (inverse and actnorm):
            assert ("affine_coupling_mlp" in _node(outputs[1])) == (conditioner is net)
        found.append([*outputs, *torch.autograd.grad(outputs, [x, *layer.parameters()], grads)])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("fused", [True, False])
def test_an_actnorm_follows_the_coupling_and_is_undone_before_it(fused: bool) -> None:
    torch.manual_seed(0)
    net = MLP(3, [16], 8)
    layer = AffineCoupling(net if fused else Apart(net), split=3, actnorm=7)
    plain = AffineCoupling(net, split=3)
    assert layer.log_scale is not None
    assert layer.shift is not None
    x = torch.randn(9, 7)
    for got, same in zip(layer(x), plain(x), strict=True):
        torch.testing.assert_close(got, same)  # it begins as the identity
    layer.log_scale.data.normal_()
    layer.shift.data.normal_()
    y, logdet = layer(x)
    between, inner = plain(x)
    torch.testing.assert_close(y, between * layer.log_scale.exp() + layer.shift)
    torch.testing.assert_close(logdet, inner + layer.log_scale.sum())
    back, other = layer.inverse(y)
    torch.testing.assert_close(back, x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other, -logdet)
    jacobian = torch.autograd.functional.jacobian(lambda one: layer(one[None])[0][0], x[0])
    torch.testing.assert_close(jacobian.slogdet()[1], logdet[0])
    for wrong, mask in ((3, None), (7, torch.ones(7, dtype=torch.bool))):
        with pytest.raises(ValueError, match=r"actnorm must be the number of features, .* takes no mask, got"):
            AffineCoupling(net, split=3 if mask is None else None, mask=mask, actnorm=wrong)


def _node(t: Tensor) -> str:
    call = getattr(t.grad_fn, "call", None)
    return "" if call is None else call[0].name


def test_a_gradient_of_the_logdet_alone() -> None:
    """Nothing depends on y: its gradient is zero without being there."""
    layer = AffineCoupling(MLP(2, [8], 4), split=2)
    x = torch.randn(5, 4, requires_grad=True)
    layer(x)[1].sum().backward()
    assert x.grad is not None
    assert x.grad[:, :2].abs().max() > 0
    assert not x.grad[:, 2:].any()


def test_a_context_and_a_mask_take_the_long_way() -> None:
    x = torch.randn(5, 4)
    context = torch.randn(5, 3)
    net = MLP(2 + 3, [8], 4)
    y, logdet = AffineCoupling(net, split=2)(x, context)
    back, other = AffineCoupling(net, split=2).inverse(y, context)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(other, -logdet)
    mask = torch.tensor([True, False, True, False])
    y, _ = AffineCoupling(MLP(4, [8], 8), mask=mask)(x)
    assert torch.equal(y[:, mask], x[:, mask])


def test_layers_that_are_not_plain_run_as_what_they_are() -> None:
    class Louder(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 100

    x = torch.randn(4, 3)
    pruned, normed, wrapped, watched = (MLP(3, [8], 6) for _ in range(4))
    l1_unstructured(pruned.layers[0], "weight", 0.5)
    nn.utils.weight_norm(normed.layers[0])
    before = normed(x)
    normed.layers[0].weight_g.data.mul_(5)
    wrapped.layers[0] = Louder(3, 8)
    seen: list[Any] = []
    watched.layers[1].register_forward_hook(lambda *_: seen.append(1))
    for net in (pruned, normed, wrapped, watched):
        for _ in range(2):
            net(x).sum().backward()
        torch.testing.assert_close(net(x), _sequential(net)(x))
    assert not torch.allclose(normed(x), before)
    assert seen
    x = torch.randn(3, 4, requires_grad=True)
    for watch in ("register_forward_hook", "register_full_backward_hook", "register_full_backward_pre_hook"):
        for of in (lambda net: net, lambda net: net.layers[0]):
            calls: list[int] = []
            net = MLP(2, [8], 4)
            getattr(of(net), watch)(lambda *_, calls=calls: calls.append(1))
            AffineCoupling(net, split=2)(x)[0].sum().backward()
            assert calls == [1]
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    net(torch.randn(3, 2))
    handle.remove()
    assert seen[-3:] == [nn.Linear, nn.Linear, MLP]
    net.layers[0].forward = lambda x: x.repeat(1, 4)
    torch.testing.assert_close(net(x[:, :2]), net.layers[1](torch.relu(x[:, :2].repeat(1, 4))))
    net.forward = lambda x: torch.zeros(3, 4)
    assert torch.equal(AffineCoupling(net, split=2)(x)[0], x)


def test_leading_dimensions_are_kept() -> None:
    net, x = MLP(4, [8], 2).double(), torch.randn(2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(net(x), net(x.flatten(0, 1)).unflatten(0, (2, 3)))
