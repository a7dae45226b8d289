"""Draws from Gaussian posteriors and the likelihoods of decoders: noise, known densities, free bits, masks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

import gmkernels as gmk
from gmkernels.core import backends
from gmkernels.testing.table import draw

from . import support

HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALVES)
KEY = (1234567890123, 42)


def on(*dtypes: torch.dtype):
    """Parametrise over the backends that run here, and the dtypes that each of them takes."""
    found = []
    for name in ("reference", "cpu", "triton"):
        if backends.unavailable(name) is None:
            marks = [pytest.mark.triton] if name == "triton" else []
            kept = [dtype for dtype in dtypes or (torch.float32,) if support.runs(name, dtype)]
            found += [pytest.param(name, dtype, marks=marks) for dtype in kept]
    return pytest.mark.parametrize("backend,dtype", found)


def key(backend: str = "cpu") -> Tensor:
    return torch.tensor(KEY, device=support.device(backend))


def numbers(*shape: int, seed: int, dtype: torch.dtype, backend: str = "cpu", scale: float = 1.0) -> Tensor:
    return draw(shape, dtype, torch.Generator().manual_seed(seed), scale).to(support.device(backend))


# ---- draws -----------------------------------------------------------------------------------------------------------


@on(*DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (7, 20), (3, 129), (2, 3, 5, 7), (40, 2)])
@pytest.mark.parametrize("first", [0, 1, 2**33 + 3])
def test_the_noise_is_the_normal_stream_bit_for_bit(
    backend: str, dtype: torch.dtype, shape: tuple[int, ...], first: int
) -> None:
    zero = torch.zeros(shape, dtype=dtype, device=support.device(backend))
    z, kl = gmk.reparameterize_kl(zero, zero, key(backend), first=first, backend=backend)
    noise = gmk.random.normal(key(backend), shape, first=first, dtype=dtype, backend=backend)
    assert torch.equal(z, noise)
    assert not kl.any()


@on(*DTYPES)
def test_backward_draws_the_same_noise_again(backend: str, dtype: torch.dtype) -> None:
    """With logvar = 0 and a gradient of 2 by z alone, that by logvar is the noise itself."""
    zero = torch.zeros(7, 33, dtype=dtype, device=support.device(backend), requires_grad=True)
    mu = zero.detach()
    z, _ = gmk.reparameterize_kl(mu, zero, key(backend), first=9, backend=backend)
    (noise,) = torch.autograd.grad(z, zero, torch.full_like(z, 2.0))
    assert torch.equal(noise, z.detach())


@on(*HALVES)
def test_half_precision_rounds_the_result_and_not_the_noise(backend: str, dtype: torch.dtype) -> None:
    mu, logvar = (numbers(11, 37, seed=s, dtype=dtype, backend=backend) for s in (1, 2))
    z, kl = gmk.reparameterize_kl(mu, logvar, key(backend), backend=backend)
    z32, kl32 = gmk.reparameterize_kl(mu.float(), logvar.float(), key(backend), backend=backend)
    assert torch.equal(z, z32.to(dtype))
    assert kl.dtype == torch.float32 and torch.equal(kl, kl32)


@on(torch.float64)
def test_the_gradient_of_a_sampled_loss_is_that_of_the_written_out_chain(backend: str, dtype: torch.dtype) -> None:
    """The same draws through plain PyTorch, with a loss that bends z: a pathwise Monte-Carlo gradient."""
    mu, logvar = (numbers(17, 5, seed=s, dtype=dtype).requires_grad_() for s in (3, 4))
    noise = gmk.random.normal(key(), mu.shape, dtype=dtype, backend=backend)

    def loss(z: Tensor, kl: Tensor) -> Tensor:
        return (z.sin() * z).sum() + (kl * torch.arange(17)).sum()

    ours = torch.autograd.grad(loss(*gmk.reparameterize_kl(mu, logvar, key(), beta=3.0, backend=backend)), (mu, logvar))
    kl = kl_divergence(Normal(mu, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(1)
    plain = torch.autograd.grad(loss(mu + (0.5 * logvar).exp() * noise, 3.0 * kl), (mu, logvar))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@on(torch.float32)
def test_kl_is_the_mean_of_the_log_density_ratio(backend: str, dtype: torch.dtype) -> None:
    """E_q[ln q(z) - ln p(z)] over 20,000 draws is KL(q || p): within six standard errors, about 0.1 of 3.3 nats."""
    n = 2000 if support.INTERPRETER and backend == "triton" else 20000
    mu = torch.tensor([1.5, -0.3, 0.0], device=support.device(backend)).expand(n, 3)
    logvar = torch.tensor([0.4, -3.0, 1.0], device=support.device(backend)).expand(n, 3)
    z, kl = gmk.reparameterize_kl(mu, logvar, key(backend), backend=backend)
    ratio = gmk.gaussian_log_prob(z, mu, logvar, backend=backend) - gmk.gaussian_log_prob(z, backend=backend)
    assert torch.equal(kl, kl[:1].expand(n))
    assert abs(ratio.mean() - kl[0]) < 6.0 * ratio.std() / n**0.5
    assert 6.0 * ratio.std() / n**0.5 < 0.15 * kl[0] * (20000 / n) ** 0.5


@on(*DTYPES)
def test_free_bits_hold_each_dimension_of_each_sample(backend: str, dtype: torch.dtype) -> None:
    mu, logvar = (numbers(19, 23, seed=s, dtype=dtype, backend=backend).requires_grad_() for s in (5, 6))
    _, kl = gmk.reparameterize_kl(mu, logvar, key(backend), beta=2.0, free_bits=0.5, backend=backend)
    m, v = mu.detach().double(), logvar.detach().double()
    each = 0.5 * (m * m + v.exp() - 1.0 - v)
    held = each < 0.5
    assert 0.2 < held.double().mean() < 0.8
    torch.testing.assert_close(kl.double(), 2.0 * each.clamp(min=0.5).sum(1), rtol=1e-5, atol=1e-5)
    for grad in torch.autograd.grad(kl.sum(), (mu, logvar)):
        assert not grad[held].any() and grad[~held].all()


@on(torch.float32)
def test_an_overflow_is_infinite_and_stays_with_its_sample(backend: str, dtype: torch.dtype) -> None:
    mu = torch.zeros(4, 6, device=support.device(backend))
    logvar = mu.clone()
    logvar[1, 2], logvar[2, 3] = 100.0, 500.0
    z, kl = gmk.reparameterize_kl(mu, logvar, key(backend), backend=backend)
    assert kl.tolist() == [0.0, math.inf, math.inf, 0.0]
    assert z[1].isfinite().all() and z[2, 3].isinf() and z[[0, 3]].isfinite().all()


@on(torch.float32)
def test_only_inputs_are_kept_for_backward(backend: str, dtype: torch.dtype) -> None:
    if backend == "reference":
        return
    mu, logvar = (numbers(4, 6, seed=s, dtype=dtype, backend=backend).requires_grad_() for s in (1, 2))
    k = key(backend)
    z, _ = gmk.reparameterize_kl(mu, logvar, k, backend=backend)
    assert {t.data_ptr() for t in z.grad_fn.saved_tensors} == {t.data_ptr() for t in (mu, logvar, k)}


def test_the_layer_draws_a_key_of_its_own() -> None:
    mu, logvar = (numbers(4, 6, seed=s, dtype=torch.float32) for s in (1, 2))
    layer = gmk.nn.Reparameterize(beta=0.5, free_bits=0.1)
    torch.manual_seed(3)
    z, kl = layer(mu, logvar)
    other, _ = layer(mu, logvar)
    assert not torch.equal(z, other)
    torch.manual_seed(3)
    for a, b in zip((z, kl), gmk.reparameterize_kl(mu, logvar, gmk.random.key(), beta=0.5, free_bits=0.1), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(layer(mu, logvar, key())[0], gmk.reparameterize_kl(mu, logvar, key())[0])


# ---- likelihoods -----------------------------------------------------------------------------------------------------


@on(torch.float32, torch.float64)
def test_likelihoods_are_those_of_torch_distributions(backend: str, dtype: torch.dtype) -> None:
    a, b, c = (numbers(13, 2, 51, seed=s, dtype=dtype, backend=backend) for s in (1, 2, 3))
    x = (c > 0).to(dtype)
    bernoulli = gmk.bernoulli_log_likelihood(a, x, backend=backend)
    torch.testing.assert_close(bernoulli, Bernoulli(logits=a).log_prob(x).sum((1, 2)))
    expected = Normal(a, (0.5 * b).exp()).log_prob(c).sum((1, 2))
    torch.testing.assert_close(gmk.gaussian_log_likelihood(a, b, c, backend=backend), expected)
    torch.testing.assert_close(gmk.gaussian_log_prob(c, a, b, backend=backend), expected)
    for arguments, law in (
        ((c,), Normal(0.0, 1.0)),
        ((c, a), Normal(a, 1.0)),
        ((c, None, b), Normal(torch.zeros_like(b), (0.5 * b).exp())),
    ):
        torch.testing.assert_close(gmk.gaussian_log_prob(*arguments, backend=backend), law.log_prob(c).sum((1, 2)))


@on(torch.float32, torch.float64)
def test_a_certain_pixel_costs_what_its_logit_says(backend: str, dtype: torch.dtype) -> None:
    """ln P = -log1p(exp(-30)), which x l - softplus(l) in the same precision loses altogether; and no overflow."""
    logits = torch.tensor([[30.0], [-30.0], [1e4], [-1e4], [1e4]], dtype=dtype, device=support.device(backend))
    x = torch.tensor([[1.0], [0.0], [1.0], [0.0], [0.0]], dtype=dtype, device=support.device(backend))
    found = gmk.bernoulli_log_likelihood(logits, x, backend=backend).tolist()
    assert found[:2] == pytest.approx([-math.log1p(math.exp(-30.0))] * 2, rel=1e-6)
    assert found[2:] == [0.0, 0.0, -1e4]


@on(*DTYPES)
def test_masked_pixels_count_for_nothing(backend: str, dtype: torch.dtype) -> None:
    logits, logvar = (numbers(5, 3, 8, 8, seed=s, dtype=dtype, backend=backend).requires_grad_() for s in (1, 2))
    x = torch.randint(2, logits.shape, generator=torch.Generator().manual_seed(7)).to(logits)
    known = (torch.arange(64, device=x.device) % 3 > 0).reshape(8, 8)
    for mask in (known, known.expand(3, 8, 8), known.to(dtype), known.expand(5, 1, 8, 8)):
        for value, inputs, whole in (
            (gmk.bernoulli_log_likelihood(logits, x, mask, backend=backend), (logits,), (logits, x)),
            (
                gmk.gaussian_log_likelihood(logits, logvar, x, mask, backend=backend),
                (logits, logvar),
                (logits, logvar, x),
            ),
        ):
            part = [t[:, :, known] for t in whole]
            function = gmk.bernoulli_log_likelihood if len(whole) == 2 else gmk.gaussian_log_likelihood
            torch.testing.assert_close(value, function(*part, backend=backend), rtol=1e-5, atol=1e-4)
            for grad in torch.autograd.grad(value.sum(), inputs):
                assert not grad[:, :, ~known].any()
                assert (grad[:, :, known] != 0).double().mean() > 0.99


def test_a_weight_is_a_constant() -> None:
    logits = numbers(3, 4, seed=1, dtype=torch.float32).requires_grad_()
    weight = torch.ones(4, requires_grad=True)
    for value in (
        gmk.bernoulli_log_likelihood(logits, logits.detach(), weight),
        gmk.gaussian_log_likelihood(logits, logits, torch.zeros(3, 4), weight),
    ):
        grads = torch.autograd.grad(value.sum(), (logits, weight), allow_unused=True)
        assert grads[0] is not None and grads[1] is None
    assert not gmk.bernoulli_log_likelihood(logits.detach(), logits.detach(), weight).requires_grad


@on(*DTYPES)
def test_one_learned_variance_gets_the_gradient_of_all_pixels(backend: str, dtype: torch.dtype) -> None:
    mean, x = (numbers(6, 50, seed=s, dtype=dtype, backend=backend) for s in (1, 2))
    logvar = torch.tensor(0.25, dtype=dtype, device=x.device, requires_grad=True)
    value = gmk.gaussian_log_likelihood(mean, logvar, x, backend=backend)
    (grad,) = torch.autograd.grad(value.sum(), logvar)
    r = x.double() - mean.double()
    expected = (0.5 * (r * r * math.exp(-0.25) - 1.0)).sum()
    assert grad.dtype == dtype and grad.shape == ()
    # Rounded once, at the end: in 16 bits no sum of 300 rounded terms would be.
    torch.testing.assert_close(grad.double(), expected, rtol=torch.finfo(dtype).eps * 8, atol=0.0)


@on(*HALVES)
def test_mixed_precision_keeps_the_gradient_of_each_dtype(backend: str, dtype: torch.dtype) -> None:
    mean = numbers(4, 30, seed=1, dtype=dtype, backend=backend).requires_grad_()
    x = numbers(4, 30, seed=2, dtype=torch.float32, backend=backend).requires_grad_()
    logvar = numbers(4, 30, seed=3, dtype=dtype, backend=backend)
    by_mean, by_x = torch.autograd.grad(gmk.gaussian_log_likelihood(mean, logvar, x, backend=backend).sum(), (mean, x))
    exact = (x.detach().double() - mean.detach().double()) * torch.exp(-logvar.double())
    assert torch.equal(by_mean, -by_x.to(dtype))
    torch.testing.assert_close(by_x.double(), -exact, rtol=1e-6, atol=1e-6)


def test_the_names_of_the_family_are_known() -> None:
    x = torch.zeros(2, 3)
    for function in (
        gmk.reparameterize_kl,
        gmk.bernoulli_log_likelihood,
        gmk.gaussian_log_likelihood,
        gmk.gaussian_log_prob,
    ):
        assert gmk.backend_for(function, x) == ("cpu" if backends.unavailable("cpu") is None else "reference")
