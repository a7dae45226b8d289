"""Jensen-Shannon and Wasserstein distances against closed forms and SciPy; the standard network; the command."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor, nn

from benchmarks.peers import fid as peers
from genmodels import metrics
from genmodels.errors import CheckpointError, NonFiniteError
from genmodels.metrics import __main__ as command
from genmodels.metrics import example, jensen_shannon, wasserstein
from genmodels.metrics.inception import Inception, resize

F64 = torch.float64


# ---- Jensen-Shannon ----


def test_jensen_shannon_of_equal_disjoint_and_other_laws() -> None:
    p = torch.tensor([0.5, 0.5, 0.0, 0.0])
    assert jensen_shannon(p, p).item() == 0.0
    assert jensen_shannon(p, p.flip(0)).item() == pytest.approx(math.log(2), abs=1e-15)
    # By the entropies: H(m) - (H(p) + H(q)) / 2.
    p, q = torch.rand(2, 5, 7, dtype=F64).softmax(2).unbind()
    entropy = lambda law: -(law * law.log()).sum(1)  # noqa: E731
    expected = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    torch.testing.assert_close(jensen_shannon(p, q), expected, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(jensen_shannon(q, p), expected, rtol=1e-11, atol=1e-14)


def test_jensen_shannon_is_differentiable_where_laws_vanish() -> None:
    logits = torch.randn(4, dtype=F64, requires_grad=True)
    q = torch.tensor([0.0, 0.5, 0.5, 0.0], dtype=F64)
    assert torch.autograd.gradcheck(lambda t: jensen_shannon(t.softmax(0), q), logits)


@pytest.mark.parametrize("p", [[0.5, 0.6], [1.5, -0.5], [math.nan, 1.0], []])
def test_what_is_no_law_is_refused(p: list[float]) -> None:
    with pytest.raises(ValueError, match="jensen_shannon: p must"):
        jensen_shannon(torch.tensor(p), torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="one length, got 2 and 3"):
        jensen_shannon(torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5, 0.0]))


# ---- Wasserstein ----


@pytest.mark.parametrize("n,m,weighted", [(7, 7, False), (7, 5, False), (30, 41, True), (1, 6, True)])
def test_in_one_dimension_it_is_scipys(n: int, m: int, weighted: bool) -> None:
    x, y = torch.randn(n, dtype=F64), 2 * torch.randn(m, dtype=F64) + 1
    a, b = (torch.rand(n), torch.rand(m)) if weighted else (None, None)
    found = wasserstein(x, y, x_weights=a, y_weights=b)
    assert found.item() == pytest.approx(stats.wasserstein_distance(x, y, a, b), rel=1e-6)


def test_repeating_a_sample_is_giving_it_weight() -> None:
    x, y = torch.randn(4, dtype=F64), torch.randn(9, dtype=F64)
    counts = torch.tensor([1, 3, 0, 2])
    for p in (1.0, 2.0, 3.5):
        found = wasserstein(x, y, p=p, x_weights=counts)
        assert found.item() == pytest.approx(wasserstein(x.repeat_interleave(counts), y, p=p).item(), rel=1e-12)
        # Each sample k times is the same law; other sizes take the other branch.
        assert wasserstein(x.repeat(3), y, p=p).item() == pytest.approx(wasserstein(x, y, p=p).item(), rel=1e-12)


def test_order_two_of_normal_laws() -> None:
    """W2 of N(0, 1) and N(3, 2^2) is sqrt(3^2 + 1): here of their quantiles."""
    u = (torch.arange(20_000, dtype=F64) + 0.5) / 20_000
    x = torch.special.ndtri(u)
    assert wasserstein(x, (2 * x + 3)[::2], p=2).item() == pytest.approx(math.sqrt(10), rel=1e-3)


def test_sliced_it_is_the_mean_over_directions() -> None:
    """A shift by s in d dimensions has W2 = s / sqrt(d) over all directions; the seed decides which are taken."""
    x = torch.randn(200, 5, dtype=F64)
    y = x + torch.tensor([0.0, 3.0, 0.0, 4.0, 0.0])
    found = wasserstein(x, y[torch.randperm(200)], p=2, directions=4000, key=3)
    assert found.item() == pytest.approx(5 / math.sqrt(5), rel=0.03)
    assert wasserstein(x, y, p=2, directions=50, key=3) == wasserstein(x, y, p=2, directions=50, key=3)
    assert wasserstein(x, y, p=2, directions=50, key=3) != wasserstein(x, y, p=2, directions=50, key=4)
    assert wasserstein(x, x.flip(0)).item() < 1e-15
    assert wasserstein(x[:, :1], y[:70, :1]).item() == pytest.approx(wasserstein(x[:, 0], y[:70, 0]).item())


@pytest.mark.parametrize("shapes", [((6,), (6,)), ((6,), (4,)), ((5, 3), (5, 3)), ((5, 3), (4, 3))])
def test_it_is_differentiable_in_the_samples(shapes: tuple[tuple[int, ...], ...]) -> None:
    x, y = (torch.randn(shape, dtype=F64, requires_grad=True) for shape in shapes)
    assert torch.autograd.gradcheck(lambda a, b: wasserstein(a, b, p=2, directions=4), (x, y))


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("shape", [(6,), (5, 3)])
def test_where_it_is_zero_its_gradient_is_zero(shape: tuple[int, ...], p: float) -> None:
    x = torch.randn(shape, dtype=F64, requires_grad=True)
    found = wasserstein(x, x.detach(), p=p)
    found.backward()
    assert found.item() == 0.0
    assert not x.grad.any()


def test_samples_that_do_not_fit_are_refused() -> None:
    x = torch.randn(5, 2)
    with pytest.raises(ValueError, match="x has 2 dimensions and y 3"):
        wasserstein(x, torch.randn(5, 3))
    with pytest.raises(ValueError, match=r"y must have shape .* got \(0, 2\)"):
        wasserstein(x, x[:0])
    for p in (0.5, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"p must be 1 or more and finite, got {p}"):
            wasserstein(x, x, p=p)
    with pytest.raises(ValueError, match="directions must be at least 1"):
        wasserstein(x, x, directions=0)
    for weights in (torch.ones(4), -torch.ones(5), torch.zeros(5), torch.full((5,), math.nan)):
        with pytest.raises(ValueError, match="x_weights must be 5 numbers"):
            wasserstein(x, x, x_weights=weights)
    x[3, 0] = math.inf
    with pytest.raises(NonFiniteError, match="1 of 5 samples of y"):
        wasserstein(torch.randn(5, 2), x)


# ---- the argument for WGAN ----


def test_on_disjoint_supports_jensen_shannon_is_flat_and_wasserstein_is_not(tmp_path: Path) -> None:
    for shift in (-2.0, -0.3, 0.11, 0.5, 30.0):
        point = example.measure(shift)
        assert point.jensen_shannon == pytest.approx(math.log(2), abs=1e-12)
        assert point.jensen_shannon_slope == 0.0
        assert point.wasserstein == pytest.approx(abs(shift), rel=1e-12)
        assert point.wasserstein_slope == pytest.approx(math.copysign(1.0, shift))
    inside = example.measure(0.025)
    assert inside.jensen_shannon == pytest.approx(0.25 * math.log(2))
    assert inside.jensen_shannon_slope == pytest.approx(math.log(2) / example.WIDTH)
    example.main(["--out", str(tmp_path / "wgan.png")])
    assert (tmp_path / "wgan.png").stat().st_size > 5000


# ---- the standard network ----


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the layout of the standard file, scaled so that every layer has something to say."""
    torch.manual_seed(0)
    network = Inception()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.normal_(module.bias, 0, 0.1)
    path = tmp_path_factory.mktemp("inception") / "pt_inception-2015-12-05-random.pth"
    torch.save(network.state_dict(), path)
    return path


def test_features_and_probabilities_are_torch_fidelitys(weights: Path) -> None:
    ours, theirs = metrics.inception(weights), peers.torch_fidelity_inception(str(weights))
    assert isinstance(ours, metrics.Extractor)
    x = torch.randint(0, 256, (2, 3, 37, 45)).to(torch.uint8)
    features, logits = theirs(x)
    assert features.std() > 0.1
    torch.testing.assert_close(ours(x), features, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.probabilities(x), logits.softmax(1), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(ours(x[:1] / 255), features[:1], rtol=1e-6, atol=1e-6)
    for word in ("Inception 2015", weights.name, "SHA-256", "TensorFlow 1 bilinear to 299"):
        assert word in ours.describe()


def test_grey_images_are_repeated_and_others_refused() -> None:
    network = Inception()
    grey = torch.rand(2, 1, 8, 8)
    assert torch.equal(network.prepare(grey), network.prepare(grey.expand(2, 3, 8, 8)))
    with pytest.raises(ValueError, match=r"\(B, 1 or 3, H, W\), got \(2, 4, 8, 8\)"):
        network.prepare(torch.rand(2, 4, 8, 8))


def test_the_resizer_ignores_pixel_centres_as_tensorflow_1_did() -> None:
    ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    assert resize(ramp, 8)[0, 0, 0].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.0]
    assert resize(ramp, 2)[0, 0, 0].tolist() == [0.0, 2.0]


def test_files_that_hold_no_such_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot read Inception weights .*nothing"):
        metrics.inception(tmp_path / "nothing.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=r"cannot read Inception weights .*text"):
        metrics.inception(tmp_path / "text.pth")
    for state in ({"fc.weight": torch.zeros(2)}, [1, 2]):
        torch.save(state, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match="does not hold the weights of the Inception network"):
            metrics.inception(tmp_path / "other.pth")


# ---- the command ----


def test_the_command_prints_both_figures_with_what_they_mean(
    weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command.main(["mnist5k:test", "mnist5k:valid", "--extractor", "mnist28"]) == 0
    distance, score = capsys.readouterr().out.splitlines()
    for word in ("Fréchet distance", "mnist28", "resizer none", "500 real and 500 fake", "split mnist5k:test"):
        assert word in distance
    for word in ("Inception score", "N 500", "splits 10"):
        assert word in score
    # Eight pixels are too few for it.
    assert command.main(["mnist5k:test", "digits:test", "--most", "150"]) == 0
    assert "resizer antialiased bilinear to 28x28" in capsys.readouterr().out
    used: list[Tensor] = []
    prepare = Inception.prepare
    monkeypatch.setattr(Inception, "prepare", lambda self, x: used.append(x) or prepare(self, x)[:, :, :80, :80])
    options = ["--inception-weights", str(weights), "--most", "4", "--splits", "2"]
    with pytest.warns(UserWarning, match="4 real samples are too few for 2048 features"):
        status = command.main(["mnist5k:test", "mnist5k:valid", *options])
    assert status == 0
    assert weights.name in capsys.readouterr().out
    assert len(used) == 3


def test_the_command_says_how_pictures_of_a_folder_were_resized(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(20):
        Image.effect_noise((40, 30), 50).save(tmp_path / f"{i}.png")
    with pytest.warns(UserWarning, match="too few"):
        assert command.main([str(tmp_path), "mnist5k:test", "--most", "20", "--splits", "1"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "resizer none" in said[0]
    assert said[2] == "pictures of folders: their central square, bicubic, antialiased, to 28x28"


def test_the_command_says_what_is_wrong_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["nowhere/", "mnist5k"], "nowhere is not a folder"),
        (["mnist5k:best", "mnist5k"], "no split 'best'; it has train, valid, test"),
        (["moons", "mnist5k"], "'moons' has no images"),
        (["mnist5k", "mnist5k", "--inception-weights", "/no/such/file"], "cannot read Inception weights"),
        (["mnist5k", "mnist5k", "--most", "1"], "--most must be 2 or more, got 1"),
        (["mnist5k", "mnist5k", "--splits", "0"], "--splits must be 1 or more, got 0"),
        (["mnist5k", "mnist5k", "--size", "0"], "--size must be 1 or more, got 0"),
    ):
        assert command.main(arguments) == 1
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
