"""WaveNet and its student: exact laws, causality, and a divergence that is one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

import gmkernels as gmk
from genmodels.data import Batch
from genmodels.errors import GenmodelsError
from genmodels.flows import ParallelWaveNet, WaveNet
from genmodels.flows.wavenet import power_loss
from genmodels.flows.wavenet.heads import Head

HEADS = ("categorical", "mixture", "gaussian")


def _open(model: nn.Module, seed: int = 0, scale: float = 0.6) -> nn.Module:
    """Weights that leave no input without influence, in float64."""
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        fan = p[0].numel() if p.dim() > 1 else 4
        p.data = torch.randn(p.shape, generator=generator) * scale / math.sqrt(fan) * 2
    return model.double()


def _teacher(head: str, levels: int = 9, **options: object) -> WaveNet:
    known: dict[str, object] = {"residual": 8, "skip": 8, "components": 2, "dilations": (1, 2, 1)} | options
    return _open(WaveNet(head=head, levels=levels, mu_law=False, **known))


def _student(noise: str = "gaussian", **options: object) -> ParallelWaveNet:
    return _open(ParallelWaveNet(((1, 2), (1, 2, 4)), noise=noise, residual=6, skip=5, **options), 1, 0.4)


def _some(model: WaveNet, n: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if model.head.real:
        return torch.randn(n, length, generator=generator, dtype=torch.float64)
    return torch.randint(model.head.levels, (n, length), generator=generator)


# ---- levels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mu_law", [False, True])
@pytest.mark.parametrize("levels", [2, 16, 256, 65536])
def test_levels_survive_the_way_to_sound_and_back(levels: int, mu_law: bool) -> None:
    head, x = Head("categorical", levels, 1, mu_law), torch.arange(levels)
    sound = head.dequantise(x)
    assert torch.equal(head.quantise(sound.double()), x)
    assert (float(sound[0]), float(sound[-1])) == pytest.approx((-1.0, 1.0))
    assert bool((sound[1:] > sound[:-1]).all())


def test_the_mu_law_is_finer_where_sound_is_quiet() -> None:
    """ITU-T G.711: 256 levels, steps of about 1 / 5800 at zero and of 1 / 45 at the ends."""
    sound = Head("categorical", 256, 1, True).dequantise(torch.arange(256))
    steps = sound.diff()
    assert float(steps[127]) == pytest.approx(2 * (math.exp(math.log(256) / 255) - 1) / 255, rel=1e-3)
    assert float(steps[-1] / steps[127]) > 100


# ---- the law ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["categorical", "mixture"])
@pytest.mark.parametrize("one_hot", [False, True])
def test_probabilities_of_all_sequences_add_up_to_one(head: str, one_hot: bool) -> None:
    model = _teacher(head, 3, one_hot=one_hot)
    sequences = torch.tensor(list(itertools.product(range(3), repeat=6)))
    p = model.log_prob(sequences).exp().detach()
    assert float(p.sum()) == pytest.approx(1, abs=1e-10)
    assert float(p.max() / p.min()) > 10, "a law that is no constant"


def test_a_gaussian_density_integrates_to_one() -> None:
    """Three samples, on a grid that holds all of them but 1e-9."""
    model = _teacher("gaussian")
    nn.init.constant_(model.network.output.weight, 0.05)
    nn.init.zeros_(model.network.output.bias)
    axis = torch.linspace(-9, 9, 61, dtype=torch.float64)
    p = model.log_prob(torch.cartesian_prod(axis, axis, axis)).exp().detach()
    assert float(p.sum()) * float(axis[1] - axis[0]) ** 3 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_an_output_depends_on_the_samples_before_it_and_on_no_other(head: str) -> None:
    model = _teacher(head)
    reach, time = model.network.receptive_field, 14
    assert reach < time
    x = _some(model, 1, time)
    base = model(x)
    for t in range(time):
        other = x.clone()
        other[0, t] = -other[0, t] if model.head.real else (other[0, t] + 1) % 9
        changed = ((model(other) - base).abs() > 1e-12)[0].any(0)
        assert changed.nonzero()[:, 0].tolist() == list(range(t + 1, min(t + reach, time - 1) + 1))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("conditions", [False, True])
def test_cached_samples_are_those_of_the_naive_loop(head: str, conditions: bool) -> None:
    model = _teacher(head, **({"classes": 3, "local": 2} if conditions else {}))
    generator = torch.Generator().manual_seed(2)
    y = torch.tensor([2, 0, 1]) if conditions else None
    local = torch.randn(3, 2, 40, generator=generator, dtype=torch.float64) if conditions else None
    found, naive = (model.sample(3, 40, y, local, key=5, method=method) for method in ("cached", "naive"))
    torch.testing.assert_close(found, naive, rtol=1e-8, atol=1e-8)
    assert torch.equal(model.sample(3, 40, y, local, key=5, x_init=found[:, :20]), found)
    if y is not None and local is not None:
        assert not torch.equal(model.sample(3, 40, (y + 1) % 3, local, key=5), found)
        assert not torch.equal(model.sample(3, 40, y, -local, key=5), found)
        torch.testing.assert_close(model.sample(1, 40, y[1:2], local[1:2], key=5, first=1), found[1:2])


@pytest.mark.parametrize("head", HEADS)
def test_samples_cost_what_their_law_says(head: str) -> None:
    """-log p of samples against the entropies of the laws they were drawn from: one drawn from another law, or scored with
    a law one step off, would not do."""
    model = _teacher(head)
    x = model.sample(4000, 12, key=1)
    found = model(x)
    if head == "gaussian":
        entropy = model.head.gaussian(found)[1] + 0.5 * math.log(2 * math.pi * math.e)
    else:
        every = torch.arange(9).view(9, 1, 1).expand(-1, *x.shape)
        law = torch.stack([model.head.log_prob(found, level) for level in every])
        entropy = -(law.exp() * law).sum(0)
    difference = -model.log_prob(x) - entropy.sum(1)
    assert abs(float(difference.mean())) < 5 * float(difference.std()) / math.sqrt(len(x))
    assert float(difference.std()) > 0.1


def test_gradients_reach_all_parameters() -> None:
    for head in HEADS:
        model = _teacher(head, classes=2)
        model.losses(Batch(_some(model, 4, 20), torch.tensor([0, 1, 1, 0])))["loss"].backward()
        assert all(p.grad is not None and bool((p.grad != 0).any()) for p in model.parameters()), head


def test_fused_and_reference_backends_agree() -> None:
    model, x = _teacher("mixture").float(), torch.randint(9, (3, 50))
    with gmk.use_backend("reference"):
        expected = model.log_prob(x)
    torch.testing.assert_close(model.log_prob(x), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_autocast_changes_little(head: str) -> None:
    model = _teacher(head, classes=2, local=2).float()
    x, y = _some(model, 2, 60), torch.tensor([1, 0])
    local = torch.randn(2, 2, 60, generator=torch.Generator().manual_seed(1))
    plain = model.log_prob(x, y, local)
    with torch.autocast("cpu", torch.bfloat16):
        low = model.log_prob(x, y, local)
    assert low.dtype == torch.float32
    assert 0 < float((low - plain).abs().max()) < 0.05 * float(plain.abs().max())


@pytest.mark.slow
def test_the_model_compiles_in_one_piece() -> None:
    model, x = _teacher("mixture").float(), torch.randint(9, (2, 40))
    compiled = torch.compile(model.log_prob, fullgraph=True)
    expected, found = model.log_prob(x), compiled(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    (wanted,) = torch.autograd.grad(expected.sum(), model.network.first.weight)
    (got,) = torch.autograd.grad(found.sum(), model.network.first.weight)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)


# ---- the student -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["gaussian", "logistic"])
def test_the_density_that_comes_with_samples_is_that_of_the_change_of_variables(noise: str) -> None:
    student = _student(noise)
    x, log_prob = student.rsample_and_log_prob(2, 7, key=3)
    z = student.draw_noise((2, 7), 3)
    base = (
        torch.distributions.Normal(0.0, 1.0).log_prob(z)
        if noise == "gaussian"
        else -z - 2 * torch.nn.functional.softplus(-z)
    )
    for row in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda v: student(v[None])[0][0], z[row])
        assert float(jacobian.triu(1).abs().max()) == 0, "no sample sees later noise"
        expected = base[row].sum() - torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(log_prob[row], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(x, student(z)[0])


def test_mean_and_scale_are_those_given_the_noise_before() -> None:
    student, z = _student(), torch.randn(1, 9, dtype=torch.float64)
    x, mean, log_scale = student(z)
    torch.testing.assert_close(x, mean + log_scale.exp() * z)
    other = z.clone()
    other[0, 5] += 1
    _, mean_after, scale_after = student(other)
    assert torch.equal(mean_after[:, :6], mean[:, :6])
    assert torch.equal(scale_after[:, :6], log_scale[:, :6])
    assert not torch.equal(mean_after[:, 6:], mean[:, 6:])


def test_a_part_of_a_draw_is_the_draw_of_a_part() -> None:
    student = _student()
    whole = student.sample(5, 12, key=1, temperature=0.7)
    torch.testing.assert_close(student.sample(2, 12, key=1, first=2, temperature=0.7), whole[2:4])
    assert not torch.equal(student.sample(5, 12, key=1), whole)


def test_the_gaussian_divergence_is_that_of_whole_sounds() -> None:
    """Summed over times it is E[log q(x) - log p(x)], which samples estimate without the closed form."""
    student, teacher = _student(), _teacher("gaussian")
    teacher.network.output.weight.data *= 0.2  # scales near one, so that few samples tell
    nn.init.zeros_(teacher.network.output.bias)
    student.learn_from(teacher)
    n, length = 20_000, 6
    with torch.no_grad():
        x, log_q = student.rsample_and_log_prob(n, length, key=7)
        plain = log_q - teacher.log_prob(x)
        closed = student.divergence(student.draw_noise((n, length), 7))[0].sum(1)
    difference = plain - closed
    assert float(closed.mean()) > 1
    assert abs(float(difference.mean())) < 5 * float(difference.std()) / math.sqrt(n)
    assert 5 * float(difference.std()) / math.sqrt(n) < 0.05 * float(closed.mean())


def test_the_estimated_divergence_from_a_mixture_is_that_of_whole_sounds() -> None:
    student, teacher = _student("logistic", draws=3), _teacher("mixture", 65536)
    nn.init.constant_(teacher.network.output.bias, -1.0)
    student.learn_from(teacher)
    n, length, width = 4000, 5, math.log(2 / 65535)
    with torch.no_grad():
        z = student.draw_noise((n, length), 7)
        x, log_q = student.rsample_and_log_prob(n, length, key=7)
        shown = torch.nn.functional.pad(x[:, :-1], (1, 0))[:, None]
        plain = log_q - (teacher.head.log_prob(teacher.network(shown), x) - width).sum(1)
        estimated = student.divergence(z, key=8)[0].sum(1)
    difference = plain - estimated
    assert abs(float(difference.mean())) < 5 * float(difference.std()) / math.sqrt(n)
    assert float(estimated.mean()) > 5 * float(difference.std()) / math.sqrt(n)


def test_the_gradient_of_the_divergence_is_a_numeric_one() -> None:
    """By finite differences in single weights of every flow; the teacher's own weights have none."""
    student, teacher = _student(), _teacher("gaussian")
    student.learn_from(teacher)
    z = student.draw_noise((3, 10), 1)

    def value() -> Tensor:
        kl, distance, _ = student.divergence(z)
        return kl.mean() + student.spread * distance.mean()

    value().backward()
    assert all(p.grad is None for p in teacher.parameters())
    for flow in student.flows:
        for p in (flow.first.weight, flow.dilated[0].weight, flow.mix[0].weight, flow.output.weight, flow.output.bias):
            place = int(p.grad.abs().argmax())
            flat, step, found = p.data.view(-1), 1e-6, []
            for side in (step, -2 * step):
                flat[place] += side
                with torch.no_grad():
                    found.append(float(value()))
            flat[place] += step
            numeric = (found[0] - found[1]) / (2 * step)
            assert numeric == pytest.approx(float(p.grad.view(-1)[place]), rel=1e-4)


def test_the_teacher_is_no_part_of_the_student() -> None:
    student, teacher = _student(), _teacher("gaussian")
    before = set(student.state_dict())
    student.learn_from(teacher)
    assert set(student.state_dict()) == before
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in student.parameters()}


def test_what_helps_at_first_fades_to_a_tenth() -> None:
    """Penalty and power loss, in updates only: not where a loss is merely looked at."""
    torch.manual_seed(0)
    student, teacher = _student(power=2.0, spread=3.0, fade=4), _teacher("gaussian")
    student.learn_from(teacher)
    nn.init.constant_(teacher.network.output.bias, 1.0)
    batch = Batch(torch.randn(4, 200, generator=torch.Generator().manual_seed(1)))

    def weight() -> float:
        torch.manual_seed(5)
        found = student.losses(batch)
        torch.manual_seed(5)
        distance = student.divergence(student.draw_noise((4, 200)))[1].mean()
        return float(((found["loss"] - found["kl"]) / (3 * distance + 2 * found["power"])).detach())

    student.eval()
    assert [weight() for _ in range(2)] == pytest.approx([1, 1], rel=1e-4)
    student.train()
    assert [weight() for _ in range(6)] == pytest.approx([1, 0.775, 0.55, 0.325, 0.1, 0.1], rel=1e-4)
    assert "updates" not in _student().state_dict()


def test_power_loss_is_zero_for_the_same_spectrum_and_sees_another() -> None:
    noise = torch.randn(8, 4000, generator=torch.Generator().manual_seed(1))
    low = torch.nn.functional.avg_pool1d(noise[:, None], 4, 1)[:, 0]
    assert float(power_loss(low, low)) == 0
    assert float(power_loss(low, low.flip(0, 1))) < 0.05  # other sounds of the same kind
    assert float(power_loss(low, noise)) > 0.3
    assert float(power_loss(2 * low, low)) == pytest.approx(9, rel=1e-4)
    with pytest.raises(ValueError, match="sounds must have 64 samples, got 50 and 4000"):
        power_loss(noise[:, :50], noise)


# ---- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: WaveNet(head="bernoulli"), "head must be one of categorical, mixture, gaussian, got 'bernoulli'"),
        (lambda: WaveNet(levels=1), "levels must be from 2 to 65536, got 1"),
        (lambda: WaveNet(()), "channels, kernels and dilations must be positive"),
        (lambda: WaveNet((1, 0)), "channels, kernels and dilations must be positive"),
        (lambda: WaveNet(head="gaussian", one_hot=True), "a gaussian head takes no 10 components with one_hot=True"),
        (lambda: _teacher("categorical").log_prob(torch.full((1, 4), 9)), r"levels 0\.\.8, got 9 to 9"),
        (lambda: _teacher("categorical").log_prob(torch.zeros(4)), r"shape \(batch, time\), got \(4,\)"),
        (lambda: _teacher("gaussian", classes=2).sample(1, 4), r"takes labels \(batch,\) in 0\.\.1, got None"),
        (lambda: _teacher("gaussian").sample(1, 4, torch.zeros(1).long()), r"takes no labels, got \(1,\)"),
        (lambda: _teacher("gaussian", classes=2).sample(1, 4, torch.tensor([2])), r"lie in 0\.\.1, got 2 to 2"),
        (lambda: _teacher("gaussian", classes=2).sample(2, 4, torch.tensor([1])), "labels must be 2 integers, got"),
        (lambda: _teacher("gaussian", local=2).sample(1, 4), "takes a local condition of 2 channels, got None"),
        (
            lambda: _teacher("gaussian", local=2).sample(1, 4, local=torch.zeros(1, 3, 4)),
            r"must have shape \(1, 2, 4\), got \(1, 3, 4\)",
        ),
        (lambda: _teacher("gaussian").sample(1, 4, method="quick"), "must be 'cached' or 'naive', got 'quick'"),
        (lambda: ParallelWaveNet(()), "there must be a flow"),
        (lambda: ParallelWaveNet(noise="uniform"), "noise must be 'gaussian' or 'logistic', got 'uniform'"),
    ],
)
def test_bad_arguments_are_one_clear_error(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_teachers_that_cannot_teach_are_refused() -> None:
    with pytest.raises(
        GenmodelsError, match="needs a teacher with a gaussian head that sees values, got a categorical"
    ):
        _student().learn_from(_teacher("categorical"))
    with pytest.raises(GenmodelsError, match="mixture head that sees one-hot vectors"):
        _student("logistic").learn_from(_teacher("mixture", one_hot=True))
    with pytest.raises(GenmodelsError, match="this student has no teacher"):
        _student().losses(Batch(torch.zeros(1, 100)))


def test_a_number_that_is_not_finite_is_reported() -> None:
    model = _teacher("gaussian").float()
    nn.init.constant_(model.network.output.bias, 200.0)  # a scale of exp(200)
    with pytest.raises(GenmodelsError, match=r"has drawn (-?inf|nan) at time 0 of row 0"):
        model.sample(1, 4, key=1)
