"""Sampling of WaveNets: the definition sample by sample, its law, what may depend on what."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, kstest
from torch import Tensor

import gmkernels as gmk
from gmkernels.ops.autoregressive import reference as draws
from gmkernels.ops.autoregressive import wavenet_cached as cached
from gmkernels.ops.autoregressive import wavenet_reference as reference
from gmkernels.ops.autoregressive.wavenet_network import HEADS, Stack
from gmkernels.testing.evaluate import threads
from gmkernels.testing.families.wavenet import parameters, stack

from . import support

BACKENDS = support.available(next(row for row in support.ROWS if row.operator == "wavenet_sample"))

NETWORKS = {
    "categorical": stack(levels=21, residual=20, gate=18, skip=33, hidden=40, dilations=(1, 2, 4, 1, 2, 4)),
    "one-hot": stack(levels=7, inputs=7, residual=33, kernel=3, first=1, dilations=(1, 3)),
    "mixture": stack("mixture", levels=256, components=3, gate=17, dilations=(1, 2, 4, 8)),
    "gaussian": stack("gaussian", residual=16, first=3, dilations=(2, 1)),
    "local": stack(levels=9, local=3, residual=17, dilations=(2, 2, 1)),
    "one layer": stack(levels=4, residual=1, gate=1, skip=1, hidden=1, kernel=1, first=1, dilations=(1,)),
}


def _call(net: Stack, given: list[Tensor], shape: tuple[int, int], **options: object) -> Tensor:
    kind = {"head": HEADS[net.head], "levels": net.levels or 256}
    return gmk.wavenet_sample(given, shape, net.dilations, **kind, **options)


def _given(net: Stack, batch: int, time: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> dict[str, object]:
    """Parameters and conditions."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: (torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.5).to(dtype)  # noqa: E731
    found: dict[str, object] = {"given": parameters(net, dtype, generator)}
    found["condition"] = normal(batch, net.layers, 2 * net.gate)
    if net.local:
        found |= {"local": normal(batch, net.local, time), "local_weight": normal(net.layers, 2 * net.gate, net.local)}
    return found


# ---- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_an_output_depends_on_all_samples_that_it_reaches_and_on_no_later_one(name: str) -> None:
    net = NETWORKS[name]
    reach = net.first + (net.kernel - 1) * sum(net.dilations)
    time = reach + 4
    weights = [0.1 * t.abs() + 0.01 for t in parameters(net, torch.float64, torch.Generator().manual_seed(1))]
    x = torch.rand(1, net.inputs, time, dtype=torch.float64, requires_grad=True)
    found = reference.outputs(x, net, weights)
    for t in range(time):
        (grad,) = torch.autograd.grad(found[0, :, t].sum(), x, retain_graph=True)
        seen = (grad[0] != 0).any(0).nonzero()[:, 0]
        assert int(seen[-1]) == t  # which is the sample before, as the network is shown them a step late
        assert int(seen[0]) == max(0, t - reach + 1)


def test_what_is_seen_of_a_sample_comes_a_step_late() -> None:
    net = NETWORKS["one-hot"]
    x = torch.tensor([[3, 0, 6]])
    shown = reference.seen(x, net, torch.linspace(-1, 1, 7).double())
    assert shown.shape == (1, 7, 4)
    assert not shown[:, :, 0].any()
    assert torch.equal(shown[:, :, 1:].argmax(1), x)


# ---- the definition, sample by sample --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_are_those_of_the_loop_over_the_whole_network(name: str) -> None:
    net, batch, time = NETWORKS[name], 3, 60
    options = _given(net, batch, time) | {"key": gmk.random.key(seed=2), "shape": (batch, time)}
    expected = _call(net, **options, backend="reference")
    given = options["given"]
    flat = torch.cat([t.flatten() for t in given])
    values = torch.linspace(-1, 1, net.levels, dtype=torch.float64)
    conditions = [options.get(part) for part in ("condition", "local", "local_weight")]
    found = [_call(net, **options, backend=backend) for backend in BACKENDS]
    found.append(
        cached.wavenet_sample(flat, values, options["key"], None, *conditions, [batch, time], net.numbers, chunk=7)
    )
    for x in found:
        if net.real:
            torch.testing.assert_close(x, expected, rtol=1e-8, atol=1e-8)
        else:
            assert torch.equal(x, expected)
    assert len(expected.unique()) > min(net.levels, 40) // 4


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_network_is_sampled_as_it_is_defined(data: st.DataObject) -> None:
    integer = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    head, levels = data.draw(st.sampled_from(HEADS)), integer(2, 12)
    net = stack(
        head, levels, inputs=levels if head != "gaussian" and data.draw(st.booleans()) else 1,
        residual=integer(1, 20), gate=integer(1, 20), skip=integer(1, 20), hidden=integer(1, 20),
        components=integer(1, 3), first=integer(1, 4), kernel=integer(1, 3), local=integer(0, 2),
        dilations=tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))),
    )  # fmt: skip
    batch, time = integer(1, 5), integer(1, 20)
    options = _given(net, batch, time, seed=integer(0, 99)) | {
        "key": torch.tensor([integer(-(2**63), 2**63 - 1), integer(-(2**63), 2**63 - 1)]), "shape": (batch, time),
        "first": integer(0, 2**31), "temperature": data.draw(st.sampled_from((0.5, 1.0, 1.3))),
    }  # fmt: skip
    expected = _call(net, **options, backend="reference")
    for backend in BACKENDS:
        found = _call(net, **options, backend=backend)
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


# Errors of probabilities in float32, from sums of a few dozen terms of size one through a few layers.
BAND = 2e-5


@pytest.mark.parametrize("name", ["categorical", "one-hot", "local"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_every_decision_follows_from_the_samples_before_it(name: str, temperature: float) -> None:
    """In float32, against the network in float64: outside the band of rounding, which holds next to nothing."""
    net, batch, time = NETWORKS[name], 21, 150
    options, key = _given(net, batch, time, torch.float32), gmk.random.key(seed=11)
    x = _call(net, shape=(batch, time), key=key, first=7, temperature=temperature, **options)
    wide = {k: [t.double() for t in v] if k == "given" else v.double() for k, v in options.items()}
    shown = reference.seen(x[:, :-1], net, torch.linspace(-1, 1, net.levels, dtype=torch.float64))
    logits = reference.outputs(shown, net, *(wide.get(k) for k in ("given", "condition", "local", "local_weight"))).mT
    word = reference.words(key, batch, 7, 0, time)[0]
    sums = draws.cumulative(logits, temperature)
    margin = (draws.uniform(word)[..., None] - sums / sums[..., -1:]).abs().amin(-1)
    sure = margin > BAND
    assert torch.equal(x[sure], draws.categorical(logits, word, temperature)[sure])
    assert (~sure).double().mean() < 0.01


# ---- what may depend on what -----------------------------------------------------------------------------------------


def test_batch_threads_and_chunks_change_no_bit() -> None:
    if "cpu" not in BACKENDS:
        return
    for name, net in NETWORKS.items():
        batch, time = 35, 40
        options, key = _given(net, batch, time, torch.float32), gmk.random.key(seed=4)
        rows = {k: options[k] for k in ("condition", "local") if k in options}
        rest = {k: v for k, v in options.items() if k not in rows}
        whole = _call(net, shape=(batch, time), key=key, backend="cpu", **options)
        for cut in (1, 2, 16, 19):
            parts = [
                _call(
                    net, shape=(end - begin, time), key=key, first=begin, backend="cpu", **rest,
                    **{k: v[begin:end] for k, v in rows.items()},
                ) for begin, end in ((0, cut), (cut, batch))
            ]  # fmt: skip
            assert torch.equal(torch.cat(parts), whole), (name, cut)
        for count in (1, 2, 3):
            with threads(count):
                assert torch.equal(_call(net, shape=(batch, time), key=key, backend="cpu", **options), whole)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_chunks_come_in_order_and_are_the_whole(name: str, backend: str) -> None:
    net = NETWORKS[name]
    options = _given(net, 2, 23) | {"shape": (2, 23), "key": gmk.random.key(seed=4), "backend": backend}
    whole, seen = _call(net, **options), []
    found = _call(net, **options, on_chunk=lambda t, x: seen.append((t, x)), chunk=5)
    assert torch.equal(found, whole)
    assert [t for t, _ in seen] == [0, 5, 10, 15, 20]
    assert torch.equal(torch.cat([x for _, x in seen], 1), whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_callback_may_end_the_sampling(backend: str) -> None:
    net, times = NETWORKS["categorical"], []

    def stop(time: int, samples: Tensor) -> None:
        times.append(time)
        if time == 3:
            raise KeyboardInterrupt

    options = _given(net, 1, 12)
    with pytest.raises(KeyboardInterrupt):
        _call(net, shape=(1, 12), key=gmk.random.key(seed=1), on_chunk=stop, chunk=3, backend=backend, **options)
    assert times == [0, 3]


@pytest.mark.parametrize("name", NETWORKS)
def test_what_follows_a_given_beginning_goes_on_from_it(name: str) -> None:
    net, batch, time = NETWORKS[name], 3, 30
    options = _given(net, batch, time) | {"shape": (batch, time)}
    key, another = gmk.random.key(seed=6), gmk.random.key(seed=7)
    whole, other = (_call(net, key=k, **options) for k in (key, another))
    for count in (0, 1, 17, 30):
        # Giving what would have been drawn changes nothing; giving something else changes what comes after.
        assert torch.equal(_call(net, key=key, x_init=whole[:, :count], **options), whole)
        found = _call(net, key=key, x_init=other[:, :count], **options)
        assert torch.equal(found[:, :count], other[:, :count])
        naive = _call(net, key=key, x_init=other[:, :count], backend="reference", **options)
        torch.testing.assert_close(found, naive, rtol=1e-8, atol=1e-8)
        if count == 17 and name != "one layer":
            assert not torch.equal(found[:, 17:], whole[:, 17:])


# ---- laws ------------------------------------------------------------------------------------------------------------

LOOKS = 10  # comparisons with a law in this file, for a family-wise false alarm of 1e-6


def _chance(counts: Tensor, law: Tensor) -> float:
    """The p-value of the chi-squared statistic; cells of less than 5 expected counts go together."""
    expected = law * counts.sum()
    rare = expected < 5
    seen = torch.cat((counts[~rare], counts[rare].sum()[None]))
    wanted = torch.cat((expected[~rare], expected[rare].sum()[None]))
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    return float(chi2.sf(float(((seen - wanted).square() / wanted).sum()), len(seen) - 1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("inputs", [1, 3])
def test_samples_follow_the_law_of_the_network(backend: str, inputs: int) -> None:
    """All sequences are listed; 10 % of temperature would be seen, with the loop's fewer samples 25 %."""
    net, time, temperature = stack(levels=3, inputs=inputs, dilations=(1, 2)), 6, 0.9
    given = parameters(net, torch.float64, torch.Generator().manual_seed(1), 2.0)
    sequences = torch.tensor(list(itertools.product(range(3), repeat=time)))
    shown = reference.seen(sequences[:, :-1], net, torch.linspace(-1, 1, 3, dtype=torch.float64))
    logits = reference.outputs(shown, net, given).mT

    def law(temperature: float) -> Tensor:
        return (logits / temperature).log_softmax(2).gather(2, sequences[..., None]).sum((1, 2)).exp()

    assert abs(float(law(1.0).sum()) - 1) < 1e-9
    count = 20_000 if backend == "reference" else 200_000
    x = _call(net, given, (count, time), key=gmk.random.key(seed=21), temperature=temperature, backend=backend)
    counts = torch.bincount((x * 3 ** torch.arange(time - 1, -1, -1)).sum(1), minlength=3**time).double()
    assert _chance(counts, law(temperature)) > 1e-6 / LOOKS
    off = (1.25 if backend == "reference" else 1.1) * temperature
    assert _chance(counts, law(off)) < 1e-6 / LOOKS


@pytest.mark.parametrize("backend", BACKENDS)
def test_gaussian_samples_are_gaussian(backend: str) -> None:
    """Standardised by the network's own means and scales they are standard normal, to less than 10 %, and independent of their past."""
    net, temperature = NETWORKS["gaussian"], 0.8
    options = _given(net, 400, 50)
    x = _call(net, shape=(400, 50), key=gmk.random.key(seed=3), temperature=temperature, backend=backend, **options)
    shown = reference.seen(x[:, :-1], net, x.new_empty(0))
    mean, log_scale = reference.outputs(shown, net, options["given"], options["condition"]).unbind(1)
    z = (x - mean) / (temperature * log_scale.clamp(min=-7).exp())
    assert kstest(z.flatten().numpy(), "norm").pvalue > 1e-6 / LOOKS
    assert kstest(1.1 * z.flatten().numpy(), "norm").pvalue < 1e-6 / LOOKS
    lagged = (z[:, 1:] * z[:, :-1]).mean() * math.sqrt(z[:, 1:].numel())
    assert abs(float(lagged)) < 6


@pytest.mark.parametrize("backend", BACKENDS)
def test_scales_have_a_floor(backend: str) -> None:
    """Of exp(-7), which a network that is sure of itself cannot go below."""
    net = stack("gaussian")
    given = parameters(net, torch.float64, torch.Generator().manual_seed(1))
    given[-2], given[-1] = given[-2] * 0, torch.tensor([0.25, -30.0], dtype=torch.float64)
    x = _call(net, given, (4000, 1), key=gmk.random.key(seed=5), backend=backend)[:, 0]
    assert kstest(((x - 0.25) * math.exp(7)).numpy(), "norm").pvalue > 1e-6 / LOOKS


def test_a_mixture_follows_its_discretised_law() -> None:
    """The first sample of a network whose last weights are zero: its law is that of the output's bias."""
    levels, components = 16, 2
    net = stack("mixture", levels, components=components)
    given = parameters(net, torch.float32, torch.Generator().manual_seed(1))
    given[-2] = given[-2] * 0
    x = _call(net, given, (200_000, 1), key=gmk.random.key(seed=5))[:, 0]
    weights, mean, log_scale = given[-1].double().view(3, components)
    edges = (torch.arange(levels - 1, dtype=torch.float64) + 0.5) * (2 / (levels - 1)) - 1
    below = torch.sigmoid((edges[:, None] - mean) / log_scale.exp()) @ weights.softmax(0)
    law = torch.diff(torch.cat((below.new_zeros(1), below, below.new_ones(1))))
    counts = torch.bincount(x, minlength=levels).double()
    assert _chance(counts, law) > 1e-6 / LOOKS
    assert _chance(counts, law.flip(0)) < 1e-6 / LOOKS


def test_parameters_that_require_gradients_are_taken() -> None:
    net = NETWORKS["gaussian"]
    given = [torch.nn.Parameter(t) for t in parameters(net, torch.float32, torch.Generator().manual_seed(1))]
    assert not _call(net, given, (1, 3), key=gmk.random.key(seed=1)).requires_grad
