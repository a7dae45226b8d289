"""MADE and the inverse of its affine layer: the loop of D passes, round trips, Jacobians, gradients and reproducibility."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import gmkernels as gmk
from gmkernels.core import backends
from gmkernels.ops.autoregressive import made_eager, made_reference
from gmkernels.testing.evaluate import threads

BACKENDS = [name for name in ("reference", "cpu") if backends.unavailable(name) is None]
KERNELS = [name for name in BACKENDS if name != "reference"]
Layer = gmk.nn.MaskedAffineAutoregressive


def _layer(features: int, hidden: tuple[int, ...], *, seed: int = 0, **options) -> Layer:
    torch.manual_seed(seed)
    maps = {name: options.pop(name) for name in ("scale_map", "clamp") if name in options}
    return Layer(gmk.nn.MADE(features, hidden, seed=seed, **options), **maps)


def _passes(layer: Layer, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What every library does: D evaluations of the whole network, each of which makes one more feature right."""
    x = torch.zeros_like(z)
    for _ in range(z.shape[1]):
        s, t = layer.made(x, context).unbind(1)
        x, logdet = gmk.affine_coupling(x=z, log_scale=s, shift=t, scale_map=layer.scale_map, clamp=layer.clamp,
                                        inverse=True, backend="reference")  # fmt: skip
    return x, logdet


LAYERS = st.fixed_dictionaries(
    {
        "hidden": st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple),
        "residual": st.booleans(),
        "contexts": st.sampled_from((0, 3)),
        "activation": st.sampled_from(("relu", "tanh")),
        "order": st.sampled_from((None, "reversed", "random")),
        "hidden_degrees": st.sampled_from((None, "random")),
        "scale_map": st.sampled_from(("tanh", "atan", "sigmoid", "reciprocal_sigmoid", "softplus", "soft_clip")),
        "seed": st.integers(0, 99),
    }
)


@given(LAYERS, st.integers(1, 24), st.integers(0, 70))
def test_the_inverse_is_the_loop_of_passes(options: dict, features: int, batch: int) -> None:
    layer = _layer(features, dtype=torch.float64, **options)
    z = torch.randn(batch, features, dtype=torch.float64)
    context = torch.randn(batch, 3, dtype=torch.float64) if options["contexts"] else None
    with torch.no_grad():
        expected = _passes(layer, z, context)
        for layer.backend in BACKENDS:
            for got, want in zip(layer.inverse(z, context), expected, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype,width", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("residual", [False, True])
def test_a_layer_of_real_size_is_the_loop_of_passes(backend: str, dtype, width: float, residual: bool) -> None:
    layer = _layer(63, (512, 512), dtype=dtype, residual=residual)
    layer.backend, z = backend, torch.randn(100, 63, dtype=dtype)
    with torch.no_grad():
        x, logdet = layer.inverse(z)
        expected_x, expected_logdet = _passes(layer, z)
        torch.testing.assert_close(x, expected_x, rtol=width, atol=width)
        torch.testing.assert_close(logdet, expected_logdet, rtol=width, atol=63 * width)
        torch.testing.assert_close(layer(x)[0], z, rtol=width, atol=width)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", [None, "random"])
def test_the_log_determinant_is_that_of_the_jacobian(backend: str, order) -> None:
    layer = _layer(9, (30, 20), order=order, scale_map="tanh", dtype=torch.float64)
    layer.backend, x = backend, torch.randn(5, 9, dtype=torch.float64)
    z, logdet = layer(x)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x)[0].sum(0), x).permute(1, 0, 2)
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], logdet)
    back = torch.autograd.functional.jacobian(lambda z: layer.inverse(z)[0].sum(0), z).permute(1, 0, 2)
    torch.testing.assert_close(torch.linalg.slogdet(back)[1], layer.inverse(z)[1])
    torch.testing.assert_close(back @ jacobian, torch.eye(9, dtype=torch.float64).expand(5, 9, 9))


def test_an_output_depends_on_features_of_lower_degree_and_no_others() -> None:
    for options in ({}, {"residual": True}, {"hidden_degrees": "random", "activation": "tanh"}):
        made = _layer(8, (64, 64), order="random", dtype=torch.float64, **options).made
        x = torch.randn(1, 8, dtype=torch.float64)
        slope = torch.autograd.functional.jacobian(lambda x, made=made: made(x)[0].sum(0), x)[:, 0].abs()
        order = torch.tensor(made.order)
        lower = order[None] < order[:, None]
        assert (slope[~lower] == 0).all()
        if not options:
            assert (slope[lower] > 0).all()


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("residual", [False, True])
def test_first_and_second_derivatives_by_everything(backend: str, residual: bool) -> None:
    layer = _layer(4, (5, 6), residual=residual, contexts=2, activation="tanh", order="random", dtype=torch.float64)
    layer.backend = backend
    names, values = zip(*layer.named_parameters(), strict=True)
    z, context = (torch.randn(3, n, dtype=torch.float64, requires_grad=True) for n in (4, 2))

    def inverse(z: Tensor, context: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        given = {f"layer.{name}": p for name, p in zip(names, parameters, strict=True)}
        return torch.func.functional_call(_Inverse(layer), given, (z, context))

    inputs = (z, context, *[p.detach().requires_grad_() for p in values])
    assert gradcheck(inverse, inputs, atol=1e-7)
    assert gradgradcheck(inverse, inputs, atol=1e-6)


class _Inverse(torch.nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.layer.inverse(z, context)


@pytest.mark.parametrize(
    "residual,activation,condition", [(False, "relu", False), (True, "tanh", True), (True, "relu", True)]
)
def test_what_a_gpu_runs_without_a_kernel_is_the_definition(residual: bool, activation: str, condition: bool) -> None:
    made = _layer(6, (9, 11, 5), residual=residual, hidden_degrees="random", dtype=torch.float64).made
    flat = torch.cat([p.detach().flatten() for m in made.linears() for p in (m.weight, m.bias)])
    given = [
        torch.randn(4, 6, dtype=torch.float64),
        flat,
        torch.randn(4, 9, dtype=torch.float64) if condition else None,
    ]
    inputs = [None if t is None else t.requires_grad_() for t in given]
    wanted = [t for t in inputs if t is not None]
    constants = (made.hidden_degrees, list(made.network.widths), residual, activation, "soft_clip", 6.9)
    weights = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    results = []
    for module in (made_reference, made_eager):
        outputs = module.made_inverse(*inputs, *constants)
        first = torch.autograd.grad(outputs, wanted, weights, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
        results.append((*outputs, *first, *second))
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", KERNELS)
def test_the_gradient_is_that_of_the_loop_of_passes(backend: str) -> None:
    layer = _layer(21, (60, 40), order="reversed", dtype=torch.float64)
    layer.backend, z = backend, torch.randn(33, 21, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(33, 21, dtype=torch.float64), torch.randn(33, dtype=torch.float64)
    wanted = [z, *layer.parameters()]
    expected = torch.autograd.grad(_passes(layer, z), wanted, weights)
    for got, want in zip(torch.autograd.grad(layer.inverse(z), wanted, weights), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("residual", [False, True])
def test_bits_do_not_depend_on_threads_or_on_the_batch(backend: str, dtype, residual: bool) -> None:
    layer = _layer(19, (130, 67), residual=residual, contexts=2, dtype=dtype)
    layer.backend, z, context = backend, torch.randn(150, 19, dtype=dtype), torch.randn(150, 2, dtype=dtype)
    weights = torch.randn(150, 19, dtype=dtype), torch.randn(150, dtype=dtype)

    def run(rows: slice) -> list[Tensor]:
        part = z[rows].clone().requires_grad_()
        # The condition is a product of the library, which may depend on the batch.
        condition = layer.made.condition(150, context)[rows]
        x, logdet = gmk.made_inverse(
            part, [p for m in layer.made.linears() for p in (m.weight, m.bias)],
            [torch.tensor(d) for d in layer.made.degrees], condition=condition, residual=residual, backend=backend,
        )  # fmt: skip
        return [x, logdet, torch.autograd.grad((x, logdet), part, [w[rows] for w in weights])[0]]

    found = []
    for count in (1, 2, 3, 4):
        with threads(count):
            found.append(run(slice(None)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    for cuts in ((0, 1, 150), (0, 47, 50, 150)):
        pieces = [run(slice(a, b)) for a, b in itertools.pairwise(cuts)]
        assert all(torch.equal(torch.cat(p), w) for p, w in zip(zip(*pieces, strict=True), found[0], strict=True))


@pytest.mark.parametrize("backend", KERNELS)
def test_degrees_and_orders_of_any_kind_are_those_of_a_sorted_network(backend: str) -> None:
    """Shuffled units compute what units in ascending order do."""
    layer = _layer(7, (20, 30), hidden_degrees="random", dtype=torch.float64)
    made, z = layer.made, torch.randn(11, 7, dtype=torch.float64)
    expected = layer.inverse(z)
    (w0, b0), (w1, b1), (w2, b2) = [(m.weight, m.bias) for m in made.linears()]
    first, second, features = (torch.randperm(n) for n in (20, 30, 7))
    rows = torch.cat((features, features + 7))
    parameters = [w0[first][:, features], b0[first], w1[second][:, first], b1[second], w2[rows][:, second], b2[rows]]
    degrees = [torch.tensor(d)[p] for d, p in zip(made.degrees, (first, second), strict=True)]
    x, logdet = gmk.made_inverse(z[:, features], parameters, degrees, order=features + 1, backend=backend)
    torch.testing.assert_close(x, expected[0][:, features], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logdet, expected[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", KERNELS)
def test_masked_weights_are_never_read_and_have_no_gradient(backend: str) -> None:
    layer = _layer(6, (12, 15), scale_map="tanh", dtype=torch.float64)
    layer.backend = backend
    linears = layer.made.linears()
    hidden = [torch.arange(m.weight.shape[1]) >= m.seen[:, None] for m in linears]
    with torch.no_grad():
        for m, over in zip(linears, hidden, strict=True):
            m.weight.masked_fill_(over, float("nan"))
    x, logdet = layer.inverse(torch.randn(20, 6, dtype=torch.float64))
    assert x.isfinite().all() and logdet.isfinite().all()
    (x.square().sum() + logdet.sum()).backward()
    for m, over in zip(linears, hidden, strict=True):
        assert (m.weight.grad[over] == 0).all() and m.weight.grad[~over].isfinite().all()
        assert (m.weight.grad[~over] != 0).any()


@pytest.mark.parametrize("backend", KERNELS)
def test_memory_of_the_gradient_does_not_grow_with_the_passes(backend: str) -> None:
    """What stays alive between forward and backward is x and logdet, whatever D is."""
    for features in (4, 64):
        layer = _layer(features, (64, 64))
        layer.backend, z = backend, torch.randn(32, features, requires_grad=True)
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            layer.inverse(z)
        parameters = sum(p.numel() for p in layer.parameters())
        assert sum(kept) <= parameters + 32 * (3 * features + 1) + 128 + 2 * features


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_overflow_names_its_feature(backend: str) -> None:
    layer = _layer(5, (8,), order="reversed", scale_map="exp")
    layer.backend = backend
    with torch.no_grad():
        layer.made.linears()[-1].bias[1] = -200.0  # the log-scale of the second in order: feature 3
    with pytest.raises(ValueError, match="made_inverse: x must be finite, got feature 3 that is not"):
        layer.inverse(torch.randn(4, 5))


@pytest.mark.parametrize("backend", KERNELS)
def test_an_empty_batch(backend: str) -> None:
    layer = _layer(5, (8,))
    layer.backend, z = backend, torch.zeros(0, 5, requires_grad=True)
    x, logdet = layer.inverse(z)
    assert x.shape == (0, 5) and logdet.shape == (0,)
    (x.sum() + logdet.sum()).backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in layer.parameters())


@pytest.mark.parametrize(
    "options,match",
    [
        ({"order": [1, 2, 2]}, r"MADE: order must be a permutation of 1 to 3, got \[1, 2, 2\]"),
        ({"order": [1, 2]}, r"MADE: order must have 3 degrees, got shape \(2,\)"),
        ({"order": "backwards"}, "MADE: order must be degrees, 'reversed' or 'random', got 'backwards'"),
        ({"hidden_degrees": [[0, 1, 2, 3]]}, r"MADE: hidden_degrees\[0\] must be 0 to 2 for 3 features, got 3"),
        ({"hidden_degrees": [[0, 1]]}, r"MADE: hidden_degrees\[0\] must be 4 degrees, got shape \(2,\)"),
        ({"hidden_degrees": [[0] * 4, [0] * 4]}, "MADE: hidden_degrees must be given for 1 layers, got 2"),
        ({"hidden_degrees": "even"}, "MADE: hidden_degrees must be degrees for each layer or 'random', got 'even'"),
        ({"activation": "elu"}, "MADE: activation must be one of 'relu', 'tanh', got 'elu'"),
        ({"outputs": 0}, "MADE: features, outputs and one or more hidden widths must be positive"),
    ],
)
def test_what_breaks_autoregression_is_refused_when_it_is_made(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        gmk.nn.MADE(3, (4,), **options)


def test_contexts_and_shapes_are_checked() -> None:
    made = gmk.nn.MADE(3, (4,), contexts=2)
    with pytest.raises(ValueError, match=r"MADE: context must have shape \(batch, contexts\) = \(5, 2\), got \(5, 3\)"):
        made(torch.zeros(5, 3), torch.zeros(5, 3))
    with pytest.raises(ValueError, match="MADE: contexts=2, got no context"):
        made(torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"MADE: x must have shape \(batch, 3\), got \(5, 4\)"):
        made(torch.zeros(5, 4), torch.zeros(5, 2))
    with pytest.raises(ValueError, match="MaskedAffineAutoregressive: made must have outputs=2, got 3"):
        Layer(gmk.nn.MADE(3, (4,), outputs=3))


def test_one_feature_and_more_outputs() -> None:
    layer = _layer(1, (4,), dtype=torch.float64)
    z = torch.randn(6, 1, dtype=torch.float64)
    torch.testing.assert_close(layer(layer.inverse(z)[0])[0], z)
    assert gmk.nn.MADE(5, (8, 8), outputs=7)(torch.randn(2, 5)).shape == (2, 7, 5)
