"""Restricted Boltzmann machines: the laws of the samplers against exact enumeration, and the bits.

Every test of a law draws with a fixed key, so it always gives the same verdict; the bound on false alarms says how
likely that verdict was to be wrong before it was first given. All tests of this file together: 1e-6.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor

import gmkernels as gmk
from gmkernels.ops.gibbs import reference
from gmkernels.testing.evaluate import threads

from . import support
from .machines import BACKENDS, each_backend, index, key, machine, on, states

FALSE_ALARM = 1e-6 / 200  # more tests of laws than there are here
SPLITS = ((0, 1), (1, 2), (2, 7), (7, 21), (21, 40))

# Long chains are for kernels that run, not for Triton's interpreter, where one step from every state has been seen.
running = pytest.mark.parametrize(
    "backend", [b for b in BACKENDS if b.values[0] != "triton" or not support.INTERPRETER]
)
each_precision = pytest.mark.parametrize("precision", ["exact", "fixed"])


def trained(visible: int = 784, hidden: int = 500) -> tuple[Tensor, ...]:
    """A machine as active as one that has learned digits: 13 % of its visible units are on, 30 % of its hidden ones."""
    weight, _, _ = machine(visible, hidden, 3, 0.1)
    return weight, torch.full((visible,), -2.1), torch.full((hidden,), -1.0)


def rounded(parameters: tuple[Tensor, ...], precision: str) -> list[Tensor]:
    """The machine that is sampled, in float64."""
    if precision == "exact":
        return [p.double() for p in parameters]
    *integers, bits = reference.fixed_point(*parameters)
    return [torch.ldexp(p.double(), -bits) for p in integers]


def law(field: Tensor) -> Tensor:
    """Probabilities of all states (columns) of independent units with these fields (rows)."""
    every = states(field.shape[1])
    return torch.exp(every @ torch.nn.functional.logsigmoid(field).T
                     + (1 - every) @ torch.nn.functional.logsigmoid(-field).T).T  # fmt: skip


def assert_law(counts: Tensor, expected: Tensor) -> None:
    """Pearson's chi-square test; what is expected less than ten times is put together.

    With n draws and d degrees of freedom it sees, half of the time, a law whose chi-square distance from the right one
    is about 5.6 sqrt(2 d) / n: for 2^17 draws and d = 500 that is 0.0014, or every probability wrong by 3.7 %.
    """
    rare = expected < 10.0
    observed = torch.cat((counts[~rare].double(), counts[rare].double().sum()[None]))
    wanted = torch.cat((expected[~rare], expected[rare].sum()[None]))
    if wanted[-1] < 10.0:
        assert wanted[-1] > 0 or observed[-1] == 0, "what cannot be has happened"
        observed, wanted = observed[:-1], wanted[:-1]
    statistic = ((observed - wanted) ** 2 / wanted).sum().item()
    limit = stats.chi2.isf(FALSE_ALARM, len(wanted) - 1)
    assert statistic < limit, f"chi-square {statistic:.1f} of {len(wanted) - 1} degrees of freedom, limit {limit:.1f}"


def draws(backend: str) -> int:
    return 1 << 17 if backend != "triton" or not support.INTERPRETER else 1 << 10


# ---- laws ------------------------------------------------------------------------------------------------------------


@each_backend
@each_precision
@pytest.mark.parametrize("form", ["plain", "tempered", "clamped", "clamped by sample"])
def test_one_step_has_the_conditional_law_from_every_state(backend: str, precision: str, form: str) -> None:
    """(h, v') given v, for all v: the law of h, of v' given h, and that v' was drawn from this h."""
    parameters = machine(5, 4, 1)
    w, vb, hb = rounded(parameters, precision)
    start = states(5)
    each = draws(backend) // len(start)
    v = start.repeat_interleave(each, 0).float()
    options = {}
    beta = torch.ones(len(v))
    held = torch.zeros(len(start), 5, dtype=torch.bool)
    if form == "tempered":
        beta = torch.tensor([0.5, 1.75]).repeat(len(v) // 2)
        options["beta"] = beta
    elif form == "clamped":
        held[:, [0, 3]] = True
        options["clamp"] = held[0]
    elif form == "clamped by sample":
        held[:] = states(5).roll(3, 0).bool()
        options["clamp"] = held.repeat_interleave(each, 0)
    arguments = on(backend, v, *parameters, key())
    moved = {name: t.to(support.device(backend)) for name, t in options.items()}
    out, h = gmk.rbm_gibbs(*arguments[:4], key=arguments[4], steps=1, precision=precision, backend=backend, **moved)
    cell = (torch.arange(32).repeat_interleave(each) * 16 + index(h.cpu())) * 32 + index(out.cpu())
    expected = torch.zeros(32, 16, 32, dtype=torch.float64)
    for b in beta.unique():
        up, down = law(b.double() * (start @ w + hb)), law(b.double() * (states(4) @ w.T + vb))
        for s in range(32):
            # What is held has the probability of being as it was: 1.
            kept = (states(5)[:, held[s]] == start[s, held[s]]).all(1)
            free = states(5)[:, ~held[s]]
            if held[s].all():
                transition = kept.double().expand(16, 32)
            else:
                field = b.double() * (states(4) @ w.T + vb)[:, ~held[s]]
                transition = law(field)[:, index(free)] * kept
            expected[s] += up[s][:, None] * (transition if held[s].any() else down) * (beta == b).double().mean() * each
    assert_law(torch.bincount(cell, minlength=32 * 16 * 32), expected.flatten())


@running
@each_precision
@pytest.mark.parametrize("beta", [None, 0.6])
def test_many_steps_lead_to_the_stationary_law(backend: str, precision: str, beta: float | None) -> None:
    parameters = machine(6, 5, 2, 0.8)
    w, vb, hb = rounded(parameters, precision)
    chains = draws(backend) // 2
    b = 1.0 if beta is None else beta
    arguments = on(backend, torch.zeros(chains, 6), *parameters, key(3))
    tempered = None if beta is None else torch.full((chains,), beta, device=support.device(backend))
    v, h = gmk.rbm_gibbs(
        *arguments[:4], key=arguments[4], steps=60, precision=precision, beta=tempered, backend=backend
    )
    energy = -(states(6) @ vb)[:, None] - states(5) @ hb - states(6) @ w @ states(5).T
    joint = torch.softmax((-b * energy).flatten(), 0).reshape(64, 32)
    assert_law(torch.bincount(index(v.cpu()), minlength=64), joint.sum(1) * chains)
    assert_law(torch.bincount(index(h.cpu()), minlength=32), joint.sum(0) * chains)


@each_backend
def test_gaussian_units_have_the_conditional_law(backend: str) -> None:
    """Residuals are normal (Kolmogorov and Smirnov: sees a distance of 5.2 / sqrt(n)), with no memory of each other."""
    parameters = weight, vb, hb = machine(3, 4, 4)
    chains = draws(backend) // 4
    beta = torch.tensor([0.5, 2.0]).repeat(chains // 2)
    start = torch.tensor([0.3, -1.2, 0.7]).expand(chains, 3)
    arguments = on(backend, start, *parameters, key(5), beta)
    v, h = gmk.rbm_gibbs(
        *arguments[:4], key=arguments[4], beta=arguments[5], steps=1, visible="gaussian", backend=backend
    )
    v, h = v.cpu().double(), h.cpu()
    for b in (0.5, 2.0):
        chosen = beta == b
        up = law(b * (start[:1].double() @ weight.double() + hb))
        assert_law(torch.bincount(index(h[chosen]), minlength=16), up[0] * chosen.sum())
    residual = (v - vb - h.double() @ weight.double().T) * beta.double().sqrt()[:, None]
    for i in range(3):
        assert stats.kstest(residual[:, i].numpy(), "norm").pvalue > FALSE_ALARM
    limit = stats.norm.isf(FALSE_ALARM / 2) / math.sqrt(chains)
    assert (residual.T.cov(correction=0) - torch.eye(3)).abs().max() < 1.5 * limit


@running
def test_gaussian_chains_lead_to_the_stationary_law(backend: str) -> None:
    """Of h: p(h) is proportional to exp(hb . h + |vb + W h|^2 / 2 - |vb|^2 / 2)."""
    weight, vb, hb = machine(3, 4, 6, 0.6)
    chains = draws(backend) // 2
    arguments = on(backend, torch.zeros(chains, 3), weight, vb, hb, key(7))
    _, h = gmk.rbm_gibbs(*arguments[:4], key=arguments[4], steps=40, visible="gaussian", backend=backend)
    every = states(4)
    log_p = every @ hb.double() + 0.5 * (vb.double() + every @ weight.double().T).square().sum(1)
    assert_law(torch.bincount(index(h.cpu()), minlength=16), torch.softmax(log_p, 0) * chains)


@each_backend
@each_precision
def test_certain_units_never_fail_and_even_ones_are_even(backend: str, precision: str) -> None:
    chains = draws(backend)
    fields = torch.tensor([-1e4, -40.0, 0.0, 40.0, 1e4])
    arguments = on(backend, torch.zeros(chains, 5), torch.zeros(5, 5), torch.zeros(5), fields, key(9))
    _, h = gmk.rbm_gibbs(*arguments[:4], key=arguments[4], steps=0, precision=precision, backend=backend)
    assert h.sum(0).tolist()[:2] == [0, 0]
    assert h.sum(0).tolist()[3:] == [chains, chains]
    assert abs(h[:, 2].sum().item() - chains / 2) < stats.norm.isf(FALSE_ALARM) * math.sqrt(chains) / 2


@each_backend
def test_a_draw_compares_its_word_with_its_probability(backend: str) -> None:
    """Over all sizes of a field, in both precisions: ``word < floor(2^32 p)``, up to rounding of p."""
    fields = torch.linspace(-24.0, 24.0, 1 << 10)
    chains = 256 if backend != "triton" else 8
    word = reference.unit_words(key(), torch.arange(chains), torch.arange(1 << 10), 0).double()
    p = torch.sigmoid(fields.double()) * 2.0**32
    sure = (word + 1 - p).abs() > 1e-6 * p.minimum(2.0**32 - p) + 1
    given = on(backend, torch.zeros(chains, 1), torch.zeros(1, 1 << 10), torch.zeros(1), fields, key())
    for precision in ("exact", "fixed"):
        _, h = gmk.rbm_gibbs(*given[:4], key=given[4], steps=0, precision=precision, backend=backend)
        scale = 2.0**-20 if precision == "fixed" else 0.0  # rounding of the bias
        clear = sure & ((word + 1 - p).abs() > scale * p + 1)
        assert torch.equal(h.cpu().bool()[clear], (word + 1 <= p)[clear])
        assert clear.double().mean() > 0.999


# ---- bits ------------------------------------------------------------------------------------------------------------


@each_backend
def test_fixed_point_has_one_result_on_every_backend(backend: str) -> None:
    """The rounding, the scale, 16-bit and 32-bit sums, and every draw of a few steps."""
    for n, (visible, hidden, scale, sparse) in enumerate(
        [
            (784, 500, 0.1, 0.0),
            (70, 33, 3.0, 0.0),
            (130, 7, 1e-8, 0.0),
            (9, 65, 1e4, 0.9),
            (700, 3, 2.0, 0.0),
            (4, 4, 0.0, 0.0),
        ]
    ):
        if backend == "triton" and visible * hidden > 3000:
            continue
        weight, vb, hb = machine(visible, hidden, n, scale)
        weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(n)) < sparse] = 0.0
        vb, hb = vb.clamp(-3, 3), hb.clamp(-3, 3)
        v = (torch.rand(7, visible, generator=torch.Generator().manual_seed(n)) < 0.4).float()
        beta = torch.tensor([0.3, 1.0, 2.0, 0.0, 1.7, 0.9, 5.0])
        clamp = torch.rand(7, visible, generator=torch.Generator().manual_seed(5)) < 0.2
        steps = 6 if backend != "triton" else 2
        given = on(backend, v, weight, vb, hb, key(n), beta, clamp)
        found, expected = (
            gmk.rbm_gibbs(
                *arguments[:4], key=arguments[4], beta=arguments[5], clamp=arguments[6], steps=steps, first=2**32 - 7,
                precision="fixed", backend=b,
            )
            for b, arguments in ((backend, given), ("reference", [v, weight, vb, hb, key(n), beta, clamp]))
        )  # fmt: skip
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours.cpu(), theirs), (visible, hidden, scale)
        doubles = gmk.rbm_gibbs(
            v.double(), weight.double(), vb.double(), hb.double(), key=key(n), beta=beta.double(), clamp=clamp, steps=steps,
            first=2**32 - 7, precision="fixed",
        )  # fmt: skip
        assert torch.equal(doubles[0].float(), expected[0]), "a float64 machine of the same numbers is another machine"


def test_the_scale_of_fixed_point_keeps_its_promises() -> None:
    for scale, visible, hidden in itertools.product((1e-9, 1e-3, 0.1, 1.0, 7.0, 1e3, 1e8), (1, 30, 784), (1, 500)):
        parameters = weight, vb, _ = machine(visible, hidden, 2, scale)
        w, b, _, bits = reference.fixed_point(*parameters)
        assert w.abs().max() <= 32767
        assert bits <= reference.MOST_BITS
        assert (torch.ldexp(w.double(), -bits) - weight.double()).abs().max() <= 2.0 ** -(int(bits) + 1)
        if b.abs().max() < 2**30:
            assert (torch.ldexp(b.double(), -bits) - vb.double()).abs().max() <= 2.0 ** -(int(bits) + 1)
        reach = max(w.abs().sum(0).max(), w.abs().sum(1).max())
        assert reach <= 2**30
        narrow = reach <= 65535 and bits >= reference.LEAST_NARROW_BITS
        # No digit is given away: one more would break a promise (its rounding may cost one unit in a hundred).
        assert narrow or 2 * w.abs().max() * max(visible, hidden) > 0.9 * 2**30 or 2 * w.abs().max() > 0.9 * 32767
        if narrow and bits < reference.MOST_BITS:
            assert 2.02 * reach + max(visible, hidden) > 65535 or 2 * w.abs().max() > 0.99 * 32767


@each_precision
@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.values[0] != "reference"])
def test_cuts_of_the_batch_and_threads_change_no_bit(backend: str, precision: str) -> None:
    """Chains alone, in groups and together take sums by rows and by dense products; here from both extremes."""
    small = backend == "triton"
    weight, vb, hb = machine(40, 21) if small else trained()
    visible = len(vb)
    v = (torch.rand(40, visible, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    v[3], v[5] = 0.0, 1.0
    v[21:] = 1.0  # a group of chains with every unit on
    given = on(backend, v, weight, vb, hb, key())

    def run(start: int = 0, stop: int = 40) -> tuple[Tensor, ...]:
        return gmk.rbm_gibbs(
            given[0][start:stop], *given[1:4], key=given[4], first=start, steps=1 if small else 5, precision=precision,
            backend=backend,
        )  # fmt: skip

    whole = run()
    parts = [run(*span) for span in SPLITS]
    for n in range(2):
        assert torch.equal(torch.cat([p[n] for p in parts]), whole[n])
    for count in (1, 2, 3, 4):
        with threads(count):
            assert all(torch.equal(a, b) for a, b in zip(run(), whole, strict=True))


@each_backend
def test_half_steps_are_those_of_a_step(backend: str) -> None:
    weight, vb, hb = machine(40, 21) if backend == "triton" else trained()
    v = (torch.rand(9, len(vb), generator=torch.Generator().manual_seed(1)) < 0.3).float()
    beta = torch.linspace(0.5, 1.5, 9)
    v, weight, vb, hb, k, beta = on(backend, v, weight, vb, hb, key(), beta)
    options = dict(key=k, first=11, beta=beta, backend=backend)
    for visible in ("binary", "gaussian"):
        after, h = gmk.rbm_gibbs(v, weight, vb, hb, steps=1, visible=visible, **options)
        drawn, p = gmk.rbm_sample_hidden(v, weight, hb, **options)
        seen, mean = gmk.rbm_sample_visible(drawn, weight, vb, visible=visible, **options)
        assert torch.equal(drawn, h)
        assert torch.equal(seen, after)
        field = vb + drawn @ weight.T
        torch.testing.assert_close(mean, field if visible == "gaussian" else torch.sigmoid(beta[:, None] * field))
        torch.testing.assert_close(p, torch.sigmoid(beta[:, None] * (hb + v @ weight)))


@each_backend
def test_no_step_leaves_v_and_draws_h(backend: str) -> None:
    given = on(backend, states(5).float(), *machine(5, 4), key())
    v, h = gmk.rbm_gibbs(*given[:4], key=given[4], steps=0, backend=backend)
    _, first = gmk.rbm_gibbs(*given[:4], key=given[4], steps=1, backend=backend)
    assert torch.equal(v, given[0])
    assert torch.equal(h, first)


@each_backend
@pytest.mark.parametrize("visible", ["binary", "gaussian"])
def test_a_clamped_unit_never_moves(backend: str, visible: str) -> None:
    v = states(5).float() if visible == "binary" else torch.randn(32, 5, generator=torch.Generator().manual_seed(0))
    for clamp in (torch.tensor([True, False, False, True, True]), states(5).bool(), torch.ones(5, dtype=torch.bool)):
        given = on(backend, v, *machine(5, 4), key(), clamp)
        out, _ = gmk.rbm_gibbs(
            *given[:4], key=given[4], clamp=given[5], steps=4, visible=visible, backend=backend
        )  # fmt: skip
        held = given[5].expand(32, 5)
        assert torch.equal(out[held], given[0][held])
        assert clamp.all() or not torch.equal(out[~held], given[0][~held])


def test_keys_chains_and_steps_have_streams_of_their_own() -> None:
    even = (torch.zeros(64, 200), torch.zeros(200, 100), torch.zeros(200), torch.zeros(100))
    drawn = {}
    for name, words, first, steps in (
        ("plain", (1, 2), 0, 1), ("seed", (2, 2), 0, 1), ("high seed", (1 + 2**40, 2), 0, 1), ("offset", (1, 3), 0, 1),
        ("high offset", (1, 2 + 2**41), 0, 1), ("chains", (1, 2), 64, 1), ("steps", (1, 2), 0, 2),
    ):  # fmt: skip
        drawn[name] = gmk.rbm_gibbs(*even, key=torch.tensor(words), first=first, steps=steps)
    for (a, x), (b, y) in itertools.combinations(drawn.items(), 2):
        same = (x[0] == y[0]).double().mean().item()
        assert abs(same - 0.5) < stats.norm.isf(FALSE_ALARM) / 2 / math.sqrt(12800), (a, b)
