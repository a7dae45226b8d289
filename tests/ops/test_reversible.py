"""A reversible chain gives the gradients of an ordinary one, in the memory of a single step."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gmkernels as gmk
from gmkernels.nn import AffineCoupling, Reversible

from .two_processes import assert_equal_in_two

D = 6


class Plain(nn.Module):
    """The same steps under ordinary autograd."""

    def __init__(self, steps: nn.ModuleList) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for step in self.steps:
            x, logdet = step(x) if context is None else step(x, context)
            total = total + logdet
        return x, total


class Turn(nn.Module):
    """A step that knows nothing of reversible chains: a rotation of the features by learned angles."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Parameter(0.5 * torch.randn(D, D))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x @ torch.matrix_exp(self.generator - self.generator.t()), x.new_zeros(len(x))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y @ torch.matrix_exp(self.generator.t() - self.generator), y.new_zeros(len(y))


class Net(nn.Module):
    def __init__(self, inputs: int, outputs: int, contexts: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(inputs + contexts, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, outputs)
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.net(x if context is None else torch.cat([x, context], 1))


def _vectors(n: int = 5, contexts: int = 0, dropout: float = 0.0, actnorm: int | None = None) -> list[nn.Module]:
    steps: list[nn.Module] = []
    for i in range(n):
        reads, split = ((2, 2), (4, -4))[i % 2]
        coupling = AffineCoupling(Net(reads, 2 * (D - reads), contexts, dropout), split=split, actnorm=actnorm)
        if actnorm:
            nn.init.normal_(coupling.log_scale, std=0.3)
            nn.init.normal_(coupling.shift)
        steps += [coupling, Turn()]
    return steps


def _images(n: int = 4) -> list[nn.Module]:
    board = (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 0
    nets = [nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 4, 3, padding=1)) for _ in range(n)]
    return [AffineCoupling(net, mask=(board if i % 2 else ~board)[None]) for i, net in enumerate(nets)]


CHAINS: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...], int]] = {
    "halves and turns": (_vectors, (7, D), 0),
    "context": (lambda: _vectors(contexts=3), (7, D), 3),
    "dropout": (lambda: _vectors(dropout=0.4), (7, D), 0),
    "checkerboard": (_images, (3, 2, 4, 4), 0),
    "actnorm": (lambda: _vectors(actnorm=D), (7, D), 0),
    "one sample": (_vectors, (1, D), 0),
    "no samples": (_vectors, (0, D), 0),
}


def _pair(name: str) -> tuple[Reversible, Plain, list[Tensor], tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    make, shape, contexts = CHAINS[name]
    chain = Reversible(make()).double()
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True)]
    if contexts:
        inputs.append(torch.randn(shape[0], contexts, dtype=torch.float64, requires_grad=True))
    return chain, Plain(chain.steps), inputs, (torch.randn(shape).double(), torch.randn(shape[0]).double())


def _gradients(chain: nn.Module, inputs: list[Tensor], grads: tuple[Tensor, Tensor]) -> list[Tensor]:
    torch.manual_seed(1)
    outputs = chain(*inputs)
    wanted = [t for t in inputs if t.requires_grad] + list(chain.parameters())
    return [*outputs, *torch.autograd.grad(outputs, wanted, grads)]


@pytest.mark.parametrize("name", CHAINS)
def test_outputs_and_gradients_are_those_of_ordinary_autograd(name: str) -> None:
    chain, plain, inputs, grads = _pair(name)
    for got, expected in zip(_gradients(chain, inputs, grads), _gradients(plain, inputs, grads), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    if len(inputs[0]):
        assert chain.drift is not None
        assert 0 < chain.drift < 1e-10


def test_an_input_without_gradient_leaves_the_parameters_theirs() -> None:
    chain, plain, inputs, grads = _pair("context")
    inputs = [t.detach() for t in inputs]
    for got, expected in zip(_gradients(chain, inputs, grads), _gradients(plain, inputs, grads), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_frozen_and_shared_steps() -> None:
    chain, plain, inputs, grads = _pair("halves and turns")
    chain.steps.append(chain.steps[0])
    chain.steps[2].requires_grad_(False)
    outputs = []
    for module in (chain, plain):
        module.zero_grad()
        torch.autograd.backward(module(*inputs), grads)
        outputs.append([None if p.grad is None else p.grad.clone() for p in plain.parameters()])
    assert any(g is None for g in outputs[1])
    for got, expected in zip(*outputs, strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_inverse_undoes_forward() -> None:
    chain, _, inputs, _ = _pair("context")
    y, logdet = chain(*inputs)
    back, other = chain.inverse(y, inputs[1])
    torch.testing.assert_close(back, inputs[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(other, -logdet, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["context", "checkerboard"])
def test_second_derivatives(name: str) -> None:
    chain, plain, inputs, _ = _pair(name)
    x = inputs[0][:2].detach().requires_grad_()
    context = [t[:2].detach() for t in inputs[1:]]
    theta = next(chain.parameters())
    seconds = []
    for module in (chain, plain):
        y, logdet = module(x, *context)
        grads = torch.autograd.grad(y.square().sum() + logdet.sum(), [x, theta], create_graph=True)
        seconds.append(torch.autograd.grad(torch.cat([g.flatten() for g in grads]).square().sum(), [x, theta]))
    for got, expected in zip(*seconds, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def _alive(chain: nn.Module, x: Tensor) -> int:
    """Bytes at the worst moment of a forward and backward, from PyTorch's own account of its allocations."""
    from torch.profiler import ProfilerActivity, profile

    chain(x)[0].sum().backward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        chain(x)[0].sum().backward()
    alive = worst = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            worst = max(worst, alive)
    return worst


def test_memory_is_flat_in_depth() -> None:
    def wide(n: int) -> list[nn.Module]:
        nets = [nn.Sequential(nn.Linear(4, 256), nn.Tanh(), nn.Linear(256, 8)) for _ in range(n)]
        return [AffineCoupling(net, split=(-1) ** i * 4, clamp=0.2) for i, net in enumerate(nets)]

    x = torch.randn(2000, 8)
    few, many = (_alive(Reversible(wide(n)), x) for n in (4, 24))
    ordinary = _alive(Plain(nn.ModuleList(wide(24))), x)
    assert many < 1.1 * few
    assert ordinary > 4 * many


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
def test_drift_of_a_hundred_couplings_stays_within_its_bound(dtype: torch.dtype, bound: float) -> None:
    """Scales between e^-0.5 and e^0.5 each, whose product spreads over many orders from sample to sample."""
    torch.manual_seed(0)
    steps = [AffineCoupling(Net(3, 6), split=(-1) ** i * 3, clamp=0.5) for i in range(100)]
    chain = Reversible(steps).to(dtype)
    x = torch.randn(200, D, dtype=dtype, requires_grad=True)
    y, logdet = chain(x)
    (logdet.sum() - y.square().sum()).backward()
    assert logdet.std() > 1
    assert chain.drift is not None
    assert 0 < chain.drift / (1 + x.abs().max()) < bound


def test_beyond_the_tolerance_the_gradient_is_exact_all_the_same() -> None:
    torch.manual_seed(0)
    nets = [Net(2, 8) for _ in range(3)]
    with torch.no_grad():  # A scale of e^-60 together: nothing of the transformed features is left in the output.
        for net in nets:
            next(reversed(list(net.parameters())))[:4] = -20.0
    chain = Reversible(AffineCoupling(net, split=2, scale_map="exp") for net in nets)
    x = torch.randn(5, D, requires_grad=True)
    grads = (torch.randn(5, D), torch.randn(5))
    with pytest.warns(RuntimeWarning, match="inverting 3 steps gave an input off by"):
        got = _gradients(chain, [x], grads)
    for one, other in zip(got, _gradients(Plain(chain.steps), [x], grads), strict=True):
        assert torch.equal(one, other)


def test_nan_in_nan_out() -> None:
    chain, plain, inputs, grads = _pair("halves and turns")
    x = inputs[0].detach().clone()
    x[2, 3] = float("nan")
    x.requires_grad_()
    with pytest.warns(RuntimeWarning, match="off by nan"):
        got = _gradients(chain, [x], grads)
    for one, other in zip(got, _gradients(plain, [x], grads), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, equal_nan=True)


def test_few_steps_and_evaluation_go_the_ordinary_way() -> None:
    x = torch.randn(3, D, requires_grad=True)
    assert "Chain" not in type(Reversible(_vectors(1))(x)[0].grad_fn).__name__
    assert "Chain" in type(Reversible(_vectors(2))(x)[0].grad_fn).__name__
    assert "Chain" not in type(Reversible(_vectors(4), fewest=100)(x)[0].grad_fn).__name__
    with torch.no_grad():
        assert Reversible(_vectors(4))(x)[0].grad_fn is None
    with pytest.raises(ValueError, match="tolerance must be positive, got 0"):
        Reversible([], tolerance=0)
    empty = Reversible([])
    assert torch.equal(empty(x)[0], x)


def test_autocast_is_entered_again_in_backward() -> None:
    """The products of backward round to bfloat16 as those of forward do; without autocast they would not."""
    torch.manual_seed(0)
    chain = Reversible(step for step in _vectors(4) if isinstance(step, AffineCoupling))
    x, grads = torch.randn(64, D, requires_grad=True), (torch.randn(64, D), torch.randn(64))
    found = []
    for module in (chain, Plain(chain.steps)):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = module(x)
        found.append(torch.autograd.grad(outputs, [x, *chain.parameters()], grads))
    exact = _gradients(Plain(chain.steps), [x], grads)[2:]
    for got, expected, wide in zip(*found, exact, strict=True):
        scale = 1 + wide.abs().max()
        assert (got - expected).abs().max() / scale < 0.02
        assert (got - wide).abs().max() / scale < 0.1
    assert any(not torch.equal(g, w) for g, w in zip(found[0], exact, strict=True))
    assert chain.drift is not None
    assert chain.drift < 1e-5


def test_under_compile_it_is_a_graph_break_with_the_same_gradients() -> None:
    chain, plain, inputs, grads = _pair("halves and turns")
    fast = torch.compile(lambda x: chain(2 * x), backend="aot_eager")
    outputs = fast(inputs[0])
    got = torch.autograd.grad(outputs, [inputs[0]], grads)
    expected = torch.autograd.grad(plain(2 * inputs[0]), [inputs[0]], grads)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


TWO_PROCESSES = """
from gmkernels.nn import AffineCoupling, Reversible
def check(rank):
    torch.manual_seed(0)
    net = lambda: torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    chain = Reversible([AffineCoupling(net(), split=(-1) ** i * 2) for i in range(4)]).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    both = DistributedDataParallel(chain)
    y, logdet = both(x[rank::2])
    (y.square().sum() - logdet.sum()).backward()
    got = [p.grad.clone() for p in chain.parameters()]
    chain.zero_grad()
    y, logdet = chain(x)
    (0.5 * (y.square().sum() - logdet.sum())).backward()
    for g, p in zip(got, chain.parameters()):
        torch.testing.assert_close(g, p.grad, rtol=1e-12, atol=1e-12)
"""


def test_two_processes_get_the_gradient_of_one(tmp_path: Path) -> None:
    assert_equal_in_two(TWO_PROCESSES, tmp_path)


def test_warnings_are_those_of_drift_only() -> None:
    chain, _, inputs, grads = _pair("context")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _gradients(chain, inputs, grads)
    assert gmk.nn.Reversible is Reversible


def test_dropout_is_replayed_after_a_change_of_mode() -> None:
    chain, plain, inputs, grads = _pair("dropout")
    found = []
    for module in (chain, plain):
        module.train()
        torch.manual_seed(1)
        outputs = module(*inputs)
        module.eval()
        found.append(torch.autograd.grad(outputs, [*inputs, *module.parameters()], grads))
        assert not any(m.training for m in module.modules())
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("hooks", ["checkpoint", "save_on_cpu"])
def test_hooks_that_hand_back_other_tensors_leave_the_gradients(hooks: str) -> None:
    chain, plain, inputs, grads = _pair("context")
    wanted, run = [*inputs, *chain.parameters()], functools.partial(checkpoint, chain, use_reentrant=False)
    if hooks == "checkpoint":
        outputs = run(*inputs)
    else:
        with torch.autograd.graph.save_on_cpu():
            outputs = chain(*inputs)
    found = [*outputs, *torch.autograd.grad(outputs, wanted, grads)]
    torch.testing.assert_close(found, _gradients(plain, inputs, grads))


def test_a_functional_call_is_differentiated_by_what_it_was_called_with() -> None:
    torch.manual_seed(0)
    chain, x = Reversible(_vectors(5)).double(), torch.randn(4, D, dtype=torch.float64)
    other = {k: (1.5 * v.detach()).requires_grad_() for k, v in chain.named_parameters()}

    def loss(run, parameters) -> Tensor:
        y, logdet = torch.func.functional_call(run, parameters, (x,))
        return y.square().sum() - logdet.sum()

    before = [p.detach().clone() for p in chain.parameters()]
    found = torch.autograd.grad(loss(chain, other), list(other.values()))
    assert chain.drift is not None and chain.drift < 1e-10  # it went back by the weights it came by
    twin = copy.deepcopy(chain)
    twin.load_state_dict(other)
    y, logdet = twin._run(x, None)
    expected = torch.autograd.grad(y.square().sum() - logdet.sum(), list(twin.parameters()))
    torch.testing.assert_close(found, expected)
    transformed = torch.func.grad(lambda p: loss(chain, p))({k: v.detach() for k, v in other.items()})
    torch.testing.assert_close(tuple(transformed.values()), expected)
    assert all(torch.equal(p, b) for p, b in zip(chain.parameters(), before, strict=True))


class _Functional(nn.Module):
    """Draws without a layer that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.nn.functional.dropout(self.first(x).tanh(), 0.5))


def test_numbers_drawn_by_functions_are_replayed() -> None:
    torch.manual_seed(0)
    chain = Reversible([AffineCoupling(_Functional(), split=2 * (-1) ** i) for i in range(4)]).double()
    x, found = torch.randn(5, 4, dtype=torch.float64), []
    for run in (chain, lambda x: chain._run(x, None)):
        torch.manual_seed(1)
        y, logdet = run(x)
        found.append(torch.autograd.grad(y.square().sum() - logdet.sum(), list(chain.parameters())))
    torch.testing.assert_close(*found)
