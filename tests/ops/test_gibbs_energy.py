"""Restricted Boltzmann machines: free energies, the statistics of contrastive divergence, and the layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import gmkernels as gmk

from .machines import each_backend, index, key, machine, on, states

# ---- energies and statistics -----------------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("visible", ["binary", "gaussian"])
def test_free_energy_is_the_sum_over_hidden_states(backend: str, visible: str) -> None:
    weight, vb, hb = (t.double() for t in machine(5, 4))
    v = states(5) if visible == "binary" else states(5) * 2.3 - 0.7
    h = states(4)
    own = -(v @ vb) if visible == "binary" else 0.5 * (v - vb).square().sum(1)
    expected = -torch.logsumexp(-(own[:, None] - h @ hb - v @ weight @ h.T), 1)
    dtype = torch.float32 if backend == "triton" else torch.float64
    given = [t.to(dtype) for t in on(backend, v, weight, vb, hb)]
    found = gmk.rbm_free_energy(*given, visible=visible, backend=backend).cpu().double()
    near = dict(rtol=1e-5, atol=1e-5) if backend == "triton" else dict(rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, expected, **near)


@pytest.mark.parametrize("visible", ["binary", "gaussian"])
def test_free_energy_has_two_derivatives(visible: str) -> None:
    parameters = machine(5, 4, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (torch.rand(3, 5, dtype=torch.float64), *parameters)]

    def energy(*tensors: Tensor) -> Tensor:
        return gmk.rbm_free_energy(*tensors, visible=visible)

    assert torch.autograd.gradcheck(energy, inputs)
    assert torch.autograd.gradgradcheck(energy, inputs)
    compiled = torch.compile(energy, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), energy(*inputs))


def test_the_gradient_of_the_free_energy_is_contrastive_divergence() -> None:
    parameters = [t.requires_grad_() for t in machine(9, 6, dtype=torch.float64)]
    weight, vb, hb = parameters
    data, samples = ((torch.rand(n, 9, dtype=torch.float64) < 0.4).double() for n in (7, 11))
    loss = gmk.rbm_free_energy(data, weight, vb, hb).mean() - gmk.rbm_free_energy(samples, weight, vb, hb).mean()
    by = torch.autograd.grad(loss, parameters)
    p_data, p_samples = (torch.sigmoid(hb + x @ weight).detach() for x in (data, samples))
    for gradient, direction in zip(by, gmk.cd_statistics(data, p_data, samples, p_samples), strict=True):
        torch.testing.assert_close(-gradient, direction)


def test_statistics_by_hand() -> None:
    v_pos, h_pos = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0], [0.5]])
    v_neg, h_neg = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.25]])
    by_weight, by_visible, by_hidden = gmk.cd_statistics(v_pos, h_pos, v_neg, h_neg)
    assert by_weight.tolist() == [[0.75], [0.0]]
    assert by_visible.tolist() == [1.0, -0.5]
    assert by_hidden.tolist() == [0.5]


def test_errors_of_statistics_and_free_energy() -> None:
    v, h = torch.ones(3, 5), torch.ones(3, 4)
    with pytest.raises(ValueError, match=r"cd_statistics: h_neg must have shape \(3, 4\), got \(3, 5\)"):
        gmk.cd_statistics(v, h, v, v)
    with pytest.raises(ValueError, match="v_neg must have one sample or more, got shape"):
        gmk.cd_statistics(v, h, v[:0], h[:0])
    with pytest.raises(TypeError, match=r"h_pos must be float32.*int64"):
        gmk.cd_statistics(v, h.long(), v, h)
    weight, vb, hb = machine(5, 4)
    with pytest.raises(ValueError, match=r"rbm_free_energy: v must have shape \(batch, 5\).*got \(3, 4\)"):
        gmk.rbm_free_energy(h, weight, vb, hb)
    with pytest.raises(TypeError, match=r"share one dtype.*float64"):
        gmk.rbm_free_energy(v.double(), weight, vb, hb)
    with pytest.raises(ValueError, match="visible must be one of 'binary', 'gaussian'"):
        gmk.rbm_free_energy(v, weight, vb, hb, visible="softmax")


# ---- the layer -------------------------------------------------------------------------------------------------------


def test_the_layer_learns_a_small_distribution() -> None:
    """Contrastive divergence through the layer's own gradient, to two patterns that it then produces."""
    torch.manual_seed(0)
    rbm = gmk.nn.RBM(6, 8, init_std=0.1)
    patterns = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]])
    chains = patterns.repeat(50, 1)
    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.1)
    for step in range(300):
        chains, _ = rbm.gibbs(chains, 20, torch.tensor([3, step]))
        optimizer.zero_grad()
        (rbm(patterns).mean() - rbm(chains).mean()).backward()
        optimizer.step()
    p = torch.softmax(-rbm.free_energy(states(6).float()), 0)
    assert p[index(patterns)].min() > 0.25


def test_the_layer_hands_everything_on() -> None:
    rbm = gmk.nn.RBM(6, 4, units="gaussian", dtype=torch.float64)
    v, k = torch.randn(3, 6, dtype=torch.float64), key()
    parameters = rbm.weight, rbm.visible_bias, rbm.hidden_bias
    beta, clamp = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64), torch.tensor([True, False] * 3)
    out = rbm.gibbs(v, 2, k, first=4, beta=beta, clamp=clamp)
    expected = gmk.rbm_gibbs(v, *parameters, steps=2, key=k, first=4, beta=beta, clamp=clamp, visible="gaussian")
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
    h, p = rbm.sample_hidden(v, k, first=2, beta=beta)
    assert torch.equal(p, gmk.rbm_sample_hidden(v, rbm.weight, rbm.hidden_bias, key=k, first=2, beta=beta)[1])
    seen = gmk.rbm_sample_visible(h, rbm.weight, rbm.visible_bias, key=k, beta=beta, visible="gaussian")
    assert torch.equal(rbm.sample_visible(h, k, beta=beta)[0], seen[0])
    assert not out[0].requires_grad
    assert rbm(v).requires_grad
    with pytest.raises(ValueError, match="RBM: visible and hidden must be positive, got 0 and 3"):
        gmk.nn.RBM(0, 3)
    with pytest.raises(ValueError, match="RBM: precision 'fixed' needs binary"):
        gmk.nn.RBM(2, 3, units="gaussian", precision="fixed")
