"""What the formulas say, checked without them: Jacobians, inverses, loops over pairs, and peers' conventions."""

from __future__ import annotations

import math

import pytest
import torch

import gmkernels
from gmkernels.core import backends
from gmkernels.ops.coupling import SCALE_MAPS
from gmkernels.ops.coupling.reference import SCALE_MAPS as DEFAULTS
from gmkernels.testing import evaluate, rows
from gmkernels.testing.table import draw

from . import support
from .support import ROWS

BACKENDS = [
    pytest.param(name, marks=[pytest.mark.triton] if name == "triton" else [])
    for name in ("reference", "cpu", "triton")
    if backends.unavailable(name) is None
]
pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def _dtype(backend: str) -> torch.dtype:
    return torch.float32 if backend == "triton" else torch.float64


def _draw(seed: int, *shape: int, backend: str, scale: float = 1.0) -> torch.Tensor:
    t = draw(shape, _dtype(backend), torch.Generator().manual_seed(seed), scale)
    return t.to(support.device(backend))


def _near(backend: str) -> dict[str, float]:
    return dict(rtol=1e-4, atol=1e-5) if backend == "triton" else dict(rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "name", [r.name for r in ROWS if r.name.startswith(("affine", "planar")) and "mixed" not in r.name]
)
def test_logdet_is_the_log_of_the_jacobian_determinant(backend: str, name: str) -> None:
    row = rows()[name]
    if backend not in row.backends:
        return  # it has no such kernel
    first = row.differentiable[0]
    case = row.case(row.sizes[0], _dtype(backend), 5).to(support.device(backend))
    x = case.tensors[first].clone().requires_grad_()
    case.tensors[first] = x
    y, logdet = row.call(case, backend)
    flat = y.reshape(len(y), -1)
    for i in range(len(y)):
        jacobian = torch.stack([torch.autograd.grad(v, x, retain_graph=True)[0][i].reshape(-1) for v in flat[i]])
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, logdet[i].detach(), **_near(backend))


@pytest.mark.parametrize("scale_map", SCALE_MAPS)
@pytest.mark.parametrize("masked", [False, True])
def test_inverse_undoes_forward_and_negates_logdet(backend: str, scale_map: str, masked: bool) -> None:
    x, s, t = (_draw(i, 5, 3, 6, backend=backend) for i in range(3))
    mask = (torch.arange(18).reshape(3, 6) % 3 == 0).to(x.device) if masked else None
    options = dict(scale_map=scale_map, mask=mask, backend=backend)
    y, logdet = gmkernels.affine_coupling(x, s, t, **options)
    back, negative = gmkernels.affine_coupling(y, s, t, inverse=True, **options)
    torch.testing.assert_close(back, x, **_near(backend))
    assert torch.equal(negative, -logdet)
    if mask is not None:
        assert torch.equal(y[:, mask], x[:, mask])
        assert not torch.equal(y[:, ~mask], x[:, ~mask])


# ln of the scale at s = 0.7, from the formulas in the docstring, worked out with plain arithmetic.
_S = 0.7
_SIGMOID = 1 / (1 + math.exp(-(_S + 2)))
_SOFTPLUS = math.log1p(math.exp(_S))
_BY_HAND = {
    ("exp", None): _S,
    ("exp", 0.5): 0.5,
    ("tanh", None): 2 * math.tanh(_S),
    ("tanh", 3.0): 3 * math.tanh(_S),
    ("atan", None): 0.636 * 2 * math.atan(_S),
    ("atan", 1.5): 0.636 * 1.5 * math.atan(_S),
    ("sigmoid", None): math.log(_SIGMOID),
    ("sigmoid", 1e-3): math.log(_SIGMOID + 1e-3),
    ("reciprocal_sigmoid", None): -math.log(_SIGMOID),
    ("reciprocal_sigmoid", 1e-3): -math.log(_SIGMOID + 1e-3),
    ("softplus", None): math.log(_SOFTPLUS + 1e-3),
    ("softplus", 1.05): math.log(1.05),
    ("soft_clip", None): _S / (1 + _S / math.log(1000)),
    ("soft_clip", 2.0): _S / (1 + _S / 2),
}


@pytest.mark.parametrize(("scale_map", "clamp"), _BY_HAND)
def test_scale_maps_by_hand(backend: str, scale_map: str, clamp: float | None) -> None:
    assert set(SCALE_MAPS) == {name for name, _ in _BY_HAND} == set(DEFAULTS)
    x = torch.full((1, 3), 2.0, dtype=_dtype(backend), device=support.device(backend))
    s, t = torch.full_like(x, _S), torch.full_like(x, 0.25)
    y, logdet = gmkernels.affine_coupling(x, s, t, scale_map=scale_map, clamp=clamp, backend=backend)
    a = _BY_HAND[scale_map, clamp]
    torch.testing.assert_close(y, torch.full_like(y, 2 * math.exp(a) + 0.25), **_near(backend))
    torch.testing.assert_close(logdet, torch.full_like(logdet, 3 * a), **_near(backend))


@pytest.mark.parametrize(("bounded", "inside", "outside"), [("exp", 0.4, 1.6), ("softplus", -1.0, 2.9)])
def test_no_gradient_beyond_a_clamp(backend: str, bounded: str, inside: float, outside: float) -> None:
    s = torch.tensor([[inside, outside]], dtype=_dtype(backend), device=support.device(backend), requires_grad=True)
    x = torch.ones_like(s)
    for chosen in (0, 1):
        outputs = gmkernels.affine_coupling(x, s, x, scale_map=bounded, clamp=1.5, backend=backend)
        grad = torch.autograd.grad(outputs[chosen].sum(), s)[0]
        assert grad[0, 0] != 0 and grad[0, 1] == 0


def test_planar_flow_by_hand(backend: str) -> None:
    """One flow in two dimensions, with the paper's u-hat, and a zero w, which is a plain shift."""
    z, u, w, b = ([0.3, -0.2], [0.5, 1.5], [1.0, -2.0], 0.4)
    wu = w[0] * u[0] + w[1] * u[1]
    m = math.log1p(math.exp(wu)) - 1
    hat = [u[i] + (m - wu) * w[i] / (w[0] ** 2 + w[1] ** 2) for i in range(2)]
    h = math.tanh(w[0] * z[0] + w[1] * z[1] + b)
    logdet = math.log(abs(1 + (1 - h * h) * (w[0] * hat[0] + w[1] * hat[1])))

    def tensors(*values):
        return [torch.tensor(v, dtype=_dtype(backend), device=support.device(backend)) for v in values]

    out, found = gmkernels.planar_flow(*tensors([z], [u], [w], [b]), backend=backend)
    torch.testing.assert_close(out, tensors([[z[i] + hat[i] * h for i in range(2)]])[0], **_near(backend))
    torch.testing.assert_close(found, tensors([logdet])[0], **_near(backend))

    out, found = gmkernels.planar_flow(*tensors([z], [u], [[0.0, 0.0]], [b]), backend=backend)
    torch.testing.assert_close(out, tensors([[z[i] + u[i] * math.tanh(b) for i in range(2)]])[0], **_near(backend))
    assert found.abs().max() < 1e-7


def test_planar_flows_are_applied_in_order(backend: str) -> None:
    z, u, w, b = (_draw(i, *s, backend=backend) for i, s in enumerate([(5, 3), (4, 3), (4, 3), (4,)]))
    whole, logdet = gmkernels.planar_flow(z, u, w, b, backend=backend)
    total = torch.zeros_like(logdet)
    for k in range(4):
        z, step = gmkernels.planar_flow(z, u[k : k + 1], w[k : k + 1], b[k : k + 1], backend=backend)
        total += step
    torch.testing.assert_close(z, whole, **_near(backend))
    torch.testing.assert_close(total, logdet, **_near(backend))


def test_planar_flow_stays_invertible_for_a_large_w_u(backend: str) -> None:
    """In one dimension: z_K grows with z and the log-determinant is finite, whatever w.u is."""
    z = torch.linspace(-3, 3, 201, dtype=_dtype(backend), device=support.device(backend))[:, None]
    for wu in (-1e4, -50.0, -1.0, 0.0, 1.0, 50.0):
        u, w = torch.full_like(z[:1], wu), torch.full_like(z[:1], 1.0)
        out, logdet = gmkernels.planar_flow(z, u, w, torch.zeros_like(z[0]), backend=backend)
        assert (out[1:] >= out[:-1]).all() and logdet.isfinite().all(), wu


def test_minibatch_discrimination_is_a_loop_over_pairs(backend: str) -> None:
    m = _draw(1, 6, 3, 4, backend=backend, scale=0.5)
    out = gmkernels.minibatch_discrimination(m, backend=backend).cpu().tolist()
    values = m.cpu().tolist()
    for i in range(6):
        for b in range(3):
            expected = sum(
                math.exp(-sum(abs(values[i][b][c] - values[j][b][c]) for c in range(4))) for j in range(6) if j != i
            )
            assert math.isclose(out[i][b], expected, rel_tol=1e-5 if backend == "triton" else 1e-12)


def test_minibatch_discrimination_of_one_or_equal_samples(backend: str) -> None:
    m = _draw(2, 1, 3, 4, backend=backend)
    assert (gmkernels.minibatch_discrimination(m, backend=backend) == 0).all()
    assert (gmkernels.minibatch_discrimination(m.expand(9, 3, 4), backend=backend) == 8).all()


def test_minibatch_discrimination_where_coordinates_tie(backend: str) -> None:
    """sign(0) = 0: small integers, most of which tie, through all derivatives."""
    row = rows()["minibatch_discrimination[near]"]
    case = row.case((33, 3, 4), _dtype(backend))
    case.tensors["m"] = (
        torch.randint(-1, 2, (33, 3, 4), generator=torch.Generator().manual_seed(2)).to(_dtype(backend)) / 2
    )
    found = evaluate(row, case.to(support.device(backend)), backend)
    for name, expected in evaluate(row, case.to(torch.float64), "reference").items():
        torch.testing.assert_close(found[name].cpu().double(), expected, **_near(backend))


def test_random_words_are_philox_with_the_element_as_its_counter(backend: str) -> None:
    """The published vector of Philox4x32-10 for counter 0 and key 0, and that both halves of the key matter."""
    zero = torch.zeros(2, dtype=torch.int64, device=support.device(backend))
    words = gmkernels.random.bits(zero, (4,), backend=backend).tolist()
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    seen = {tuple(words)}
    for seed, offset in [(1, 0), (0, 1), (1 << 32, 0), (0, 1 << 32), (-1, 0), (0, -1)]:
        key = torch.tensor([seed, offset], device=zero.device)
        seen.add(tuple(gmkernels.random.bits(key, (4,), backend=backend).tolist()))
    assert len(seen) == 7
