"""Masked linear layers: who sees whom, what is never read, and what a layer keeps to itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gmkernels as gmk
from gmkernels.core import backends

BACKENDS = [name for name in ("reference", "cpu") if backends.unavailable(name) is None]
KERNELS = [name for name in BACKENDS if name != "reference"]


def _layer(batch: int, inputs: int, outputs: int, seed: int, dtype: torch.dtype = torch.float64, degrees: int = 7):
    g = torch.Generator().manual_seed(seed)
    x, weight, bias = (
        torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)
        for shape in ((batch, inputs), (outputs, inputs), (outputs,))
    )
    return x, weight, bias, *(torch.randint(0, degrees, (n,), generator=g) for n in (inputs, outputs))


def test_a_layer_of_three_written_out() -> None:
    """Equations 8 to 13 of Germain et al. by hand: degrees 1, 2, 2 in, and 1, 2 out."""
    x = torch.tensor([[1.0, 10.0, 100.0]])
    weight = torch.tensor([[2.0, 3.0, 5.0], [7.0, 11.0, 13.0]])
    before, after = torch.tensor([1, 2, 2]), torch.tensor([1, 2])
    for backend in BACKENDS:
        call = dict(in_degree=before, out_degree=after, backend=backend)
        assert gmk.masked_linear(x, weight, **call).tolist() == [[2.0, 7.0 + 110.0 + 1300.0]]
        assert gmk.masked_linear(x, weight, strict=True, **call).tolist() == [[0.0, 7.0]]


@given(
    st.integers(0, 40), st.integers(0, 70), st.integers(0, 70), st.integers(0, 99), st.booleans(), st.booleans(),
    st.sampled_from((1, 3, 30)),
)  # fmt: skip
def test_a_mask_is_a_product_with_zero(batch, inputs, outputs, seed, strict, relu, degrees) -> None:
    x, weight, bias, before, after = _layer(batch, inputs, outputs, seed, degrees=degrees)
    seen = before < after[:, None] if strict else before <= after[:, None]
    expected = torch.nn.functional.linear(x.relu() if relu else x, weight * seen, bias)
    for backend in BACKENDS:
        y = gmk.masked_linear(
            x, weight, bias, in_degree=before, out_degree=after, strict=strict, relu=relu, backend=backend
        )
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ascending", [True, False])
def test_masked_weights_are_never_read_and_have_no_gradient(backend: str, ascending: bool) -> None:
    x, weight, bias, before, after = _layer(19, 31, 45, 0)
    if ascending:
        before = before.sort().values
    hidden = before > after[:, None]
    assert hidden.any() and not hidden.all()
    weight = weight.masked_fill(hidden, float("nan")).requires_grad_()
    y = gmk.masked_linear(x, weight, bias, in_degree=before, out_degree=after, backend=backend)
    assert y.isfinite().all()
    (grad,) = torch.autograd.grad(y.square().sum(), weight)
    assert (grad[hidden] == 0).all() and not torch.signbit(grad[hidden]).any()
    assert (grad[~hidden] != 0).all()


@pytest.mark.parametrize("backend", KERNELS)
def test_a_nan_reaches_those_that_see_it(backend: str) -> None:
    x, weight, bias, before, after = _layer(3, 20, 33, 1)
    x[1, 7] = float("nan")
    y = gmk.masked_linear(x, weight, bias, in_degree=before, out_degree=after, backend=backend)
    expected = torch.zeros_like(y, dtype=torch.bool)
    expected[1] = before[7] <= after
    assert torch.equal(y.isnan(), expected)


@pytest.mark.parametrize("backend", KERNELS)
def test_strides_are_read_as_they_are(backend: str) -> None:
    x, weight, bias, before, after = _layer(9, 21, 34, 2, torch.float32)
    call = dict(in_degree=before.sort().values, out_degree=after, relu=True, backend=backend)
    plain = gmk.masked_linear(x, weight, bias, **call)
    wide = torch.zeros(9, 42)
    wide[:, ::2] = x
    for other in (wide[:, ::2], x.T.contiguous().T, x.repeat(2, 1)[9:]):
        assert torch.equal(gmk.masked_linear(other, weight.T.contiguous().T, bias, **call), plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_layer_is_the_function(backend: str) -> None:
    before, after = [3, 1, 2, 2], [2, 0, 3, 1, 9]
    layer = gmk.nn.MaskedLinear(before, after, strict=True, relu=True, backend=backend, dtype=torch.float64)
    x = torch.randn(6, 4, dtype=torch.float64)
    expected = gmk.masked_linear(
        x, layer.weight, layer.bias, in_degree=torch.tensor(before), out_degree=torch.tensor(after), strict=True,
        relu=True, backend="reference",
    )  # fmt: skip
    torch.testing.assert_close(layer(x), expected)
    assert "8 of 20 weights" in repr(layer)
    assert set(layer.state_dict()) == {"weight", "bias"}
    with pytest.raises(ValueError, match=r"MaskedLinear: x must have shape \(batch, 4\), got \(6, 3\)"):
        layer(x[:, :3])


def test_a_row_starts_within_the_root_of_what_it_sees() -> None:
    layer = gmk.nn.MaskedLinear([1] * 4 + [2] * 96, [1] * 500 + [2] * 500, dtype=torch.float64)
    few, many = layer.weight[:500], layer.weight[500:]
    assert 0.49 < few.abs().max() <= 0.5 and 0.099 < many.abs().max() <= 0.1
    assert layer.bias[:500].abs().max() > 0.4 and layer.bias[500:].abs().max() <= 0.1


def test_autocast_lowers_the_layer_like_any_linear() -> None:
    layer = gmk.nn.MaskedLinear(range(8), range(8))
    x = torch.randn(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), layer(x), rtol=0.03, atol=0.03)


@pytest.mark.parametrize("degrees", [[1, 2, 3, 4, 5], [3, 1, 5, 2, 4]])
def test_a_layer_made_without_memory_knows_its_mask_when_it_has_some(degrees: list[int]) -> None:
    made, x = gmk.nn.MaskedLinear(degrees, degrees), torch.randn(3, 5)
    late = torch.nn.utils.skip_init(gmk.nn.MaskedLinear, degrees, degrees)
    with torch.device("meta"):
        later = gmk.nn.MaskedLinear(degrees, degrees)
        assert later(torch.randn(3, 5)).shape == (3, 5)
    for layer in (late, later.to_empty(device="cpu")):
        layer.load_state_dict(made.state_dict())
        assert torch.equal(layer(x), made(x))


def test_a_network_made_without_memory_knows_its_order_when_it_has_some() -> None:
    made, x = gmk.nn.MADE(5, [7, 7], order="random"), torch.randn(3, 5)
    with torch.device("meta"):
        later = gmk.nn.MADE(5, [7, 7], order="random")
        assert later(torch.randn(3, 5)).shape == made(x).shape
    later.to_empty(device="cpu").load_state_dict(made.state_dict())
    assert torch.equal(later(x), made(x))
