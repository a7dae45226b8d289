"""Reading critics for the first-order route: what is followed, what is refused and why, and what is left as it was."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import types
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import gmkernels as gmk

from .critics import both, critic_of_images, gradients, pair

ROUTES = pytest.mark.parametrize("route", ["first-order", "double-backward"])


def test_changes_of_a_critic_are_noticed() -> None:
    critic = nn.Sequential(nn.Linear(4, 3), nn.LeakyReLU(0.2), nn.Dropout(0.9), nn.Linear(3, 1)).double().eval()
    real, fake = pair((5, 4))
    both(critic, real, fake)
    critic[1].negative_slope = 0.7
    both(critic, real, fake)
    critic[1] = nn.Tanh()
    both(critic, real, fake)
    critic[0] = nn.Linear(4, 3, bias=False).double()
    both(critic, real, fake)
    parametrizations.spectral_norm(critic[0])
    critic.eval()
    both(critic, real, fake)
    critic[3].register_forward_hook(lambda m, args, out: out * 2)
    assert "layer '3' (Linear) has hooks, or another forward" in (gmk.penalty_route(critic).why_not or "")


def test_a_critic_stays_what_it_was() -> None:
    critic = critic_of_images()
    before = set(critic.__dict__)
    gmk.gradient_penalty(critic, *pair((2, 1, 8, 8), torch.float32)).backward()
    assert set(critic.__dict__) == before and set(dict(critic.named_parameters())) == set(critic.state_dict())
    pickle.loads(pickle.dumps(critic))
    gone = weakref.ref(critic)
    del critic
    gc.collect()
    assert gone() is None


class Optional(nn.Module):
    """Arguments that a penalty does not give."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.embed = nn.Linear(4, 1), nn.Embedding(3, 4)

    def forward(self, x: Tensor, label: Tensor | None = None, *, scale: float = 3.0, **rest: Tensor) -> Tensor:
        x = x if label is None else x + self.embed(label)
        return self.last(torch.tanh(scale * x))


def test_optional_arguments_have_their_defaults() -> None:
    critic = Optional().double()
    assert gmk.penalty_route(critic).name == "first-order"
    both(critic, *pair((5, 4)))


class Twice(nn.Module):
    """One layer in two places, and a parameter that is also another's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.other.weight = self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.other(F.silu(self.layer(torch.tanh(self.layer(x)))))))


def test_shared_layers_and_weights() -> None:
    both(Twice().double(), *pair((5, 4)))


class Alias(nn.Module):
    """A layer that does nothing is another name of what another layer reads."""

    def __init__(self, idle: nn.Module, inplace: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.idle, self.inplace = idle, inplace

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        a = torch.tanh(self.second(h))
        return self.last(a * F.leaky_relu(self.idle(h), 0.2, self.inplace) + h)


@pytest.mark.parametrize("idle", [nn.Identity(), nn.Dropout(0.0), nn.Flatten(), nn.Unflatten(1, (4,))])
def test_what_has_two_names_is_not_overwritten(idle: nn.Module) -> None:
    critic = Alias(idle).double()
    assert gmk.penalty_route(critic).name == "first-order"
    both(critic, *pair((5, 4)))
    assert "overwrites what something else reads" in str(gmk.penalty_route(Alias(idle, inplace=True)).why_not)


class Half(nn.Module):
    """Scores of one part of a sample, with a factor that is a buffer."""

    factor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(2, 1)
        self.register_buffer("factor", torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(x[:, 1:3]) * (1 - self.factor))


def test_slices_and_buffers() -> None:
    critic = Half().double()
    assert gmk.penalty_route(critic).name == "first-order"
    both(critic, *pair((5, 4)))
    critic.factor.fill_(0.7)
    both(critic, *pair((5, 4)))


class Secretive(nn.Module):
    """Does what its layers do not show, and notes what it has seen."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.layer, self.last = how, gmk.nn.MLP(4, (6,), 4), nn.Linear(4, 1)
        self.table, self.seen = {"gain": 2.0}, [0]

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "takes notes":
            self.seen.append(1)
            self.latest = x
        if self.how == "switches gradients off":
            with torch.no_grad():
                still = self.layer(x)
            x = x + still
        h = torch.tanh(self.layer(x)) * self.table["gain"]
        if self.how == "makes a tensor":
            h = torch.tensor(2.0) * h
        return self.last(h)


def equal_to_double_backward(critic: nn.Module) -> bool:
    """What ``auto`` gives; whether it took the first-order route."""
    real, fake = pair((5, 4))
    eps = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    found = [gmk.gradient_penalty(critic, real, fake, eps=eps, route=route) for route in ("auto", "double-backward")]
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=0.0)
    torch.testing.assert_close(gradients(critic, found[0]), gradients(critic, found[1]), rtol=1e-9, atol=1e-12)
    return gmk.penalty_route(critic).name == "first-order"


def test_forward_passes_with_secrets() -> None:
    assert not equal_to_double_backward(Secretive("switches gradients off").double())
    assert not equal_to_double_backward(Secretive("makes a tensor").double())
    hooked = Secretive("nothing").double()
    assert equal_to_double_backward(hooked)
    hooked.layer.register_forward_hook(lambda m, args, out: 3 * out)
    assert not equal_to_double_backward(hooked)
    patched = Secretive("nothing").double()
    patched.last.forward = lambda x: 2 * F.linear(x, patched.last.weight)
    assert not equal_to_double_backward(patched)
    changed = Secretive("nothing").double()
    for gain in (2.0, -0.5):
        changed.table["gain"] = gain
        assert equal_to_double_backward(changed)


def test_reading_leaves_no_trace() -> None:
    critic = Secretive("takes notes").double()
    gmk.penalty_route(critic)
    assert critic.seen == [0] and not hasattr(critic, "latest")


def test_buffers_and_random_numbers_are_left_alone_by_the_comparison() -> None:
    critic = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Dropout(0.5), nn.Linear(4, 1)).train()
    twin = copy.deepcopy(critic)
    x, y = pair((6, 4), torch.float32)
    found = []
    for module, route in ((critic, "first-order"), (twin, "double-backward")):
        torch.manual_seed(3)
        found.append(gmk.gradient_penalty(module, x, y, eps=torch.full((6,), 0.5), route=route).detach())
        found.append(torch.rand(()))
    torch.testing.assert_close(found[0], found[2])
    assert torch.equal(found[1], found[3])
    torch.testing.assert_close(dict(critic.named_buffers()), dict(twin.named_buffers()))


class Blurred(nn.Module):
    """Reads a buffer that graphs keep."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("blur", torch.ones(1, 1, 3, 3) / 9)
        self.conv, self.last = nn.Conv2d(1, 1, 3), nn.Linear(36, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.conv2d(self.conv(x), self.blur, padding=1).flatten(1)).squeeze(1)


def test_graphs_of_earlier_calls_outlive_the_comparison() -> None:
    critic, (real, fake) = Blurred(), pair((4, 1, 8, 8), torch.float32)
    (critic(fake).mean() - critic(real).mean() + gmk.gradient_penalty(critic, real, fake)).backward()
    assert gmk.penalty_route(critic).name == "first-order"


class Configured(nn.Module):
    """Keeps its settings in an object of another class."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.settings = nn.Linear(4, 1), types.SimpleNamespace(inner=types.SimpleNamespace(scale=1.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layers(x) * self.settings.inner.scale)


def test_changes_within_an_object_are_noticed() -> None:
    critic, (real, fake) = Configured().double(), pair((5, 4))
    both(critic, real, fake)
    critic.settings.inner.scale = 3.0
    both(critic, real, fake)


def test_other_threads_keep_their_modules_while_one_is_read() -> None:
    failures: list[Exception] = []
    done = threading.Event()

    def use() -> None:
        layer, x = nn.Linear(4, 8), torch.randn(2, 4)
        while not done.is_set():
            work(lambda: layer(x))

    def read() -> None:
        real, fake = pair((3, 4), torch.float32)
        for _ in range(20):
            critic = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
            work(lambda critic=critic: gmk.gradient_penalty(critic, real, fake))

    def work(call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:
            failures.append(error)

    users, readers = [threading.Thread(target=use)], [threading.Thread(target=read) for _ in range(2)]
    for thread in users + readers:
        thread.start()
    for thread in readers:
        thread.join()
    done.set()
    users[0].join()
    assert not failures


def test_pooling_of_samples_without_channels() -> None:
    layers = nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1)
    both(nn.Sequential(*layers).double(), *pair((5, 8, 8)))


def test_a_first_batch_of_nan_decides_nothing() -> None:
    critic = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x, y = pair((3, 4))
    assert gmk.gradient_penalty(critic, x * torch.nan, y).isnan()
    assert equal_to_double_backward(critic)


def test_a_compiled_penalty_follows_changed_attributes() -> None:
    critic = nn.Sequential(nn.Linear(4, 6), nn.ELU(0.5), nn.LayerNorm(6), nn.Linear(6, 1))
    x, y = pair((5, 4), torch.float32)
    eps = torch.linspace(0.1, 0.9, 5)
    fast = torch.compile(lambda c: gmk.gradient_penalty(c, x, y, eps=eps), backend="aot_eager", fullgraph=True)
    for alpha in (0.5, 3.0):
        critic[1].alpha = alpha
        torch.testing.assert_close(fast(critic), gmk.gradient_penalty(critic, x, y, eps=eps))


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2)])
def test_pooling_under_autocast(pool: nn.Module) -> None:
    critic = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), pool, nn.GroupNorm(2, 4), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 1)
    ) if not isinstance(pool, nn.AdaptiveAvgPool2d) else nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), pool, nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 1)
    )  # fmt: skip
    x, y = pair((3, 1, 8, 8), torch.float32)
    eps = torch.linspace(0.1, 0.9, 3)
    exact = gmk.gradient_penalty(critic, x, y, eps=eps, route="first-order")
    with torch.autocast("cpu", torch.bfloat16):
        found = gmk.gradient_penalty(critic, x, y, eps=eps, route="first-order")
    torch.testing.assert_close(found, exact, rtol=0.1, atol=0.0)
    found.backward()


def test_instance_norm_of_vectors_is_torch_s() -> None:
    """Which takes (batch, channels) for one sample's channels."""
    critic = nn.Sequential(nn.Linear(4, 6), nn.InstanceNorm1d(6), nn.Tanh(), nn.Linear(6, 1)).double()
    equal_to_double_backward(critic)


@ROUTES
def test_inference_mode(route: str) -> None:
    critic = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    x, y = pair((3, 4), torch.float32)
    eps = torch.rand(3)
    expected = gmk.gradient_penalty(critic, x, y, eps=eps).detach()
    with torch.inference_mode():
        torch.testing.assert_close(gmk.gradient_penalty(critic, x * 1, y * 1, eps=eps, route=route), expected)
        inside = x * 1
    torch.testing.assert_close(gmk.gradient_penalty(critic, inside, y, eps=eps, route=route).detach(), expected)


class Aliasing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(self.act(h) + h)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x if x.sum() > 0 else 2 * x)


class OverTheBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x - x.mean(0))


@pytest.mark.parametrize(
    ("critic", "why"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.PReLU(), nn.Linear(3, 1)), r"layer '1' \(PReLU\) has no rule"),
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)), r"layer '1' \(BatchNorm1d\) couples"),
        (nn.Sequential(gmk.nn.MinibatchDiscrimination(4, 2, 3), nn.Linear(6, 1)), r"\(MinibatchDiscr.*couples"),
        (Aliasing(), r"layer 'act' \(ReLU\) overwrites what something else reads"),
        (Branching(), "torch.fx cannot follow its forward pass"),
        (OverTheBatch(), r"mean\(\) takes the mean over the batch"),
        (lambda x: x.sum(1), "is a function, not a module"),
    ],
    ids=["no rule", "batch norm", "minibatch", "aliased", "branching", "over the batch", "function"],
)
def test_where_there_is_no_first_order_route(critic: Callable[[Tensor], Tensor], why: str) -> None:
    x, y = pair((3, 4), torch.float32)
    with pytest.raises(ValueError, match="gradient_penalty: this critic has no first-order route: .*" + why):
        gmk.gradient_penalty(critic, x, y, route="first-order")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gmk.BatchCoupledWarning)
        assert gmk.gradient_penalty(critic, x, y).isfinite()


def test_layers_that_couple_samples_are_warned_of_once() -> None:
    critic = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    x, y = pair((3, 4), torch.float32)
    with pytest.warns(gmk.BatchCoupledWarning, match=r"layer '1' \(BatchNorm1d\) lets the samples") as seen:
        gmk.gradient_penalty(critic, x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gmk.gradient_penalty(critic, x, y)
    assert len(seen) == 1 and seen[0].filename == __file__
    for penalty in (gmk.r1_penalty, gmk.r2_penalty, gmk.dragan_penalty):
        with pytest.warns(gmk.BatchCoupledWarning) as seen:
            penalty(copy.deepcopy(critic).forward, x)
        assert seen[0].filename == __file__


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (dict(real=[1.0]), TypeError, "real must be a torch.Tensor, got list"),
        (dict(fake=torch.ones(3, 5)), ValueError, r"fake must have shape \(3, 4\), got \(3, 5\)"),
        (dict(fake=torch.ones(3, 4).double()), TypeError, "share one dtype"),
        (dict(real=torch.ones(4)), ValueError, r"real must have shape \(batch, \.\.\.\)"),
        (dict(critic=nn.Linear(4, 2)), ValueError, r"one number for each of 3 samples, .* got shape \(3, 2\)"),
        (dict(critic=lambda x: x.sum()), ValueError, r"one number for each of 3 samples, .* got shape \(\)"),
        (dict(critic=nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))), ValueError, None),
        (dict(critic=lambda x: x.sum(1).tolist()), TypeError, "critic must return a tensor, got list"),
        (dict(critic=lambda x: x.detach().sum(1)), ValueError, "does not depend on its input"),
        (dict(eps=torch.ones(2)), ValueError, r"eps must have one number for each of 3 samples, got \(2,\)"),
        (dict(lambda_=-1), ValueError, "lambda_ must be 0 or more and finite, got -1"),
        (dict(target=float("nan")), ValueError, "target must be 0 or more and finite, got nan"),
        (dict(every=0), ValueError, "every must be a positive int, got 0"),
        (dict(route="fast"), ValueError, "route must be one of 'auto', 'first-order', 'double-backward', got 'fast'"),
    ],
)
def test_errors(change: dict[str, object], error: type[Exception], match: str | None) -> None:
    arguments: dict[str, object] = dict(critic=nn.Linear(4, 1), real=torch.ones(3, 4), fake=torch.ones(3, 4)) | change
    if match is None:  # one number for each sample in one dimension is as good as in two
        gmk.gradient_penalty(**arguments)
        return
    with pytest.raises(error, match=match):
        gmk.gradient_penalty(**arguments)
