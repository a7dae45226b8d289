"""Metrics against torch-fidelity, torchmetrics and closed forms; what they must notice; what they must refuse."""

from __future__ import annotations

import math
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from benchmarks.peers import fid as peers
from genmodels import metrics
from genmodels.data import Batch, ImageDataset, mnist5k
from genmodels.errors import CheckpointError, NonFiniteError
from genmodels.metrics import FrechetDistance, frechet_distance, inception_score
from genmodels.metrics.extractor import CHECKSUMS, WEIGHTS, read_weights
from genmodels.metrics.train_extractor import Recipe, accuracy, train

F64 = torch.float64


def _features(n: int, d: int, shift: float = 0.0, seed: int = 0) -> Tensor:
    """Correlated, rectified, of unequal scale, as those of networks are."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=F64) / math.sqrt(d)
    scale = torch.logspace(0, -3, d, dtype=F64)
    return (torch.randn(n, d, generator=generator, dtype=F64) @ mix + shift).relu() * scale


def _images(n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, 1, 28, 28), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


# ---- the Fréchet distance ----


@pytest.mark.parametrize("n,m,d", [(400, 300, 24), (200, 900, 64), (2500, 2500, 300)])
def test_the_distance_is_torch_fidelitys(n: int, m: int, d: int) -> None:
    a, b = _features(n, d), _features(m, d, shift=0.3, seed=1)
    assert frechet_distance(a, b) == pytest.approx(peers.torch_fidelity(a, b), rel=1e-9)


def test_streamed_batches_of_images_give_torchmetrics_distance() -> None:
    extractor = metrics.mnist28()
    real = mnist5k().splits["train"].x[:400]
    fake = (real[100:] // 2 + 40).flip(3)
    ours = FrechetDistance(extractor, split="mnist5k train")
    theirs = peers.torchmetrics(extractor, 128, (1, 28, 28))
    for side, images in ((True, real), (False, fake)):
        for batch in images.split(170):
            ours.update(batch, real=side)
            theirs.update(batch, real=side)
    assert float(ours.compute()) == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_of_gaussians_with_known_moments() -> None:
    """Samples with exactly the moments asked for: d^2 = |m|^2 + sum (s - 1)^2 for diagonal covariances s^2 and 1."""
    n, d = 60, 5
    white = torch.randn(n, d, dtype=F64)
    white -= white.mean(0)
    white = torch.linalg.qr(white)[0] * math.sqrt(n - 1)
    scale, shift = torch.tensor([0.5, 1.0, 2.0, 3.0, 0.0], dtype=F64), torch.arange(5, dtype=F64)
    expected = float(shift.square().sum() + (scale - 1).square().sum())
    assert frechet_distance(white, white * scale + shift) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n,m", [(20, 15), (20, 200), (200, 20), (33, 33)])
def test_few_samples_give_what_the_full_matrices_give(n: int, m: int) -> None:
    a, b = _features(n, 32), _features(m, 32, shift=0.2, seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = frechet_distance(a, b)
    s1, s2 = a.T.cov(), b.T.cov()
    # By singular values of the symmetric roots: no square root of a rounding error is taken.
    values, vectors = torch.linalg.eigh(torch.stack((s1, s2)))
    roots = vectors * values.clamp(min=0).sqrt()[:, None]
    cross = torch.linalg.svdvals(roots[0].T @ roots[1]).sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + s1.trace() + s2.trace() - 2 * cross
    assert found == pytest.approx(float(expected), rel=1e-7)


def test_dead_and_repeated_features_do_no_harm() -> None:
    a, b = _features(300, 12), _features(300, 12, shift=0.3, seed=1)
    expected = frechet_distance(a, b)
    dead = torch.zeros(300, 3, dtype=F64)
    assert frechet_distance(torch.cat((dead, a), 1), torch.cat((dead, b), 1)) == pytest.approx(expected, rel=1e-10)
    # One feature twice: both covariances are singular and no Cholesky factor exists; the pair counts as one of sqrt 2.
    pair = [torch.cat((x[:, :1], x), 1) for x in (a, b)]
    wide = [torch.cat((x[:, :1] * math.sqrt(2), x[:, 1:]), 1) for x in (a, b)]
    assert frechet_distance(*pair) == pytest.approx(frechet_distance(*wide), rel=1e-6)


def test_sums_do_not_depend_on_batches_and_zero_is_zero() -> None:
    a, b = _features(500, 16), _features(450, 16, shift=0.1, seed=1)
    metric = FrechetDistance()
    for size in (1, 7, 100, 392):
        start = metric.state["real"].n
        metric.update_features(a[start : start + size], real=True)
    metric.update_features(b, real=False)
    assert float(metric.compute()) == pytest.approx(frechet_distance(a, b), rel=1e-11)
    assert frechet_distance(a, a.flip(0)) < 1e-9
    metric.reset("fake")
    metric.update_features(a, real=False)
    assert float(metric.compute()) < 1e-9


@pytest.mark.filterwarnings("ignore:.*too few")
def test_images_features_and_inference_mode_may_come_in_any_order() -> None:
    network = metrics.fashion28()
    batches = [_images(200, seed) for seed in range(5)]
    mixed, plain = FrechetDistance(network), FrechetDistance(network)
    for i, images in enumerate(batches):
        with torch.inference_mode(i % 3 == 0):
            if i % 2:
                mixed.update_features(network(images), real=True)
            else:
                mixed.update(images, real=True)
        plain.update(images, real=True)
    for metric in (mixed, plain):
        metric.update(_images(200, seed=9), real=False)
    assert float(mixed.compute()) == float(plain.compute())


def test_what_becomes_of_a_tensor_afterwards_changes_no_figure() -> None:
    kept, other = _features(20, 16), _features(400, 16, seed=1)
    expected, metric = frechet_distance(kept[:10], other), FrechetDistance()
    metric.update_features(rows := kept[:10].clone(), real=True)
    rows.fill_(7.0)
    metric.update_features(other, real=False)
    assert float(metric.compute()) == expected


def test_what_it_must_notice_on_digits() -> None:
    """A missing class, blur and noise are each far above the distance of two honest halves of one data set."""
    data = mnist5k().splits["train"]
    order = torch.randperm(len(data.x), generator=torch.Generator().manual_seed(0))
    order = order[:2400]
    real, fake, labels = data.x[order[:1200]], data.x[order[1200:]], data.y[order[1200:]]

    def distance(images: Tensor) -> float:
        metric = FrechetDistance(metrics.mnist28())
        for side, all_images in ((True, real), (False, images)):
            for batch in all_images.split(500):
                metric.update(batch, real=side)
        return float(metric.compute())

    floor = distance(fake)
    blurred = torch.nn.functional.avg_pool2d(fake.float() / 255, 3, stride=1, padding=1)
    assert distance(fake[labels != 3]) > 4 * floor
    assert distance(blurred) > 10 * floor
    assert distance(_images(500)) > 50 * floor


def _process(rank: int, file: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    for n, cut in ((90, 12), (20, 5), (12, 5)):
        _share(rank, n, cut)
    dist.destroy_process_group()


def _share(rank: int, n: int, cut: int) -> None:
    """Shares of different sizes; alone and together above the number of features, or below."""
    a, b = _features(n, 16), _features(n, 16, shift=0.3, seed=1)
    metric = FrechetDistance()
    warnings.simplefilter("ignore")
    part = slice(0, cut) if rank == 0 else slice(cut, n)
    metric.update_features(a[part], real=True)
    metric.update_features(b[part], real=False)
    result = metric.compute()
    assert (result.real, result.fake) == (n, n)
    assert abs(result.value - frechet_distance(a, b)) <= 1e-11 * result.value
    assert metric.state["real"].n < n


def test_two_processes_add_their_sums(tmp_path: Path) -> None:
    mp.spawn(_process, (str(tmp_path / "store"),), nprocs=2)


def test_a_figure_names_what_it_was_taken_with() -> None:
    metric = FrechetDistance(metrics.fashion28(), split="fashion-mnist test")
    metric.update(_images(20), real=True)
    metric.update(_images(200, seed=1), real=False)
    with pytest.warns(UserWarning, match="20 real samples are too few for 128 features"):
        text = str(metric.compute())
    for word in ("fashion28", "resizer none", "20 real and 200 fake", "split fashion-mnist test"):
        assert word in text


@pytest.mark.filterwarnings("error")
def test_bad_features_are_refused() -> None:
    class Broken:
        def __call__(self, images: Tensor) -> Tensor:
            features = torch.ones(len(images), 4)
            features[:3] = math.nan
            features[3] = math.inf
            return features

        def probabilities(self, images: Tensor) -> Tensor:
            raise NotImplementedError

        def describe(self) -> str:
            return "broken"

    metric = FrechetDistance(Broken())
    with pytest.raises(NonFiniteError, match="4 of 20 real images have features that are NaN or infinite"):
        metric.update(_images(20), real=True)
    metric.update_features(torch.randn(9, 4), real=True)
    with pytest.raises(ValueError, match="fake features are 5 wide, the real ones before them 4"):
        metric.update_features(torch.randn(9, 5), real=False)
    with pytest.raises(ValueError, match="at least, got 0 fake"):
        metric.compute()
    metric.update_features(torch.randn(1, 4), real=False)
    with pytest.raises(ValueError, match="at least, got 1 fake"):
        metric.compute()
    with pytest.raises(ValueError, match=r"shape \(B, d\), got \(4,\)"):
        metric.update_features(torch.randn(4), real=True)
    with pytest.raises(ValueError, match="has no extractor"):
        FrechetDistance().update(_images(2), real=True)
    with pytest.raises(ValueError, match="'real' and 'fake', got 'both'"):
        metric.reset("both")


# ---- the inception score ----


@pytest.mark.parametrize("n,splits", [(200, 10), (103, 7), (50, 1)])
def test_the_inception_score_is_torch_fidelitys(n: int, splits: int) -> None:
    p = (2 * torch.randn(n, 10, dtype=F64)).softmax(1)
    mean, std = inception_score(p, splits)
    # It cuts at rounded-down multiples of n / splits, and so the parts are the same only where n divides.
    if n % splits == 0:
        assert (mean, std) == pytest.approx(peers.torch_fidelity_score(p, splits), rel=1e-10, abs=1e-12)
    parts = [math.exp(float((q * (q / q.mean(0)).log()).sum(1).mean())) for q in p.tensor_split(splits)]
    assert mean == pytest.approx(sum(parts) / splits, rel=1e-10)


def test_the_inception_score_of_sure_and_unsure_classifiers() -> None:
    sure = torch.eye(10).repeat(10, 1)
    assert tuple(inception_score(sure, 10)) == pytest.approx((10.0, 0.0), abs=1e-12)
    assert inception_score(torch.full((40, 10), 0.1), 4).mean == pytest.approx(1.0)
    score = inception_score(sure, 5, extractor=metrics.mnist28())
    for word in ("mnist28", "N 100", "splits 5", "10 ± 0"):
        assert word in str(score)


@pytest.mark.filterwarnings("error")
def test_parts_of_fewer_images_than_classes_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="1 of 10 classes, and no score of theirs can be above 1; use fewer splits"):
        assert tuple(inception_score(torch.eye(10), 10)) == (1.0, 0.0)
    assert inception_score(torch.eye(10), 1).mean == pytest.approx(10.0)


def test_what_is_no_probability_is_refused() -> None:
    p = torch.full((20, 10), 0.1)
    with pytest.raises(ValueError, match="are these logits"):
        inception_score(torch.randn(20, 10))
    with pytest.raises(ValueError, match="between 1 and the number of images, 20, got 21"):
        inception_score(p, 21)
    with pytest.raises(ValueError, match=r"shape \(N, K\), got \(10,\)"):
        inception_score(p[0])
    p[3, 4] = math.nan
    with pytest.raises(NonFiniteError, match="1 of 20 images"):
        inception_score(p)


# ---- extractors ----


@pytest.mark.parametrize("make", [metrics.fashion28, metrics.mnist28])
def test_a_shipped_extractor_takes_bytes_and_fractions_alike(make) -> None:
    extractor = make()
    assert isinstance(extractor, metrics.Extractor)
    x = _images(5)
    torch.testing.assert_close(extractor(x), extractor(x.double() / 255), rtol=1e-5, atol=1e-5)
    assert extractor(x).shape == (5, 128)
    torch.testing.assert_close(extractor.probabilities(x).sum(1), torch.ones(5))
    assert not any(p.requires_grad for p in extractor.parameters())
    assert (WEIGHTS / f"{extractor.name}.safetensors").stat().st_size < 1_000_000


def test_the_shipped_digits_extractor_reads_digits() -> None:
    assert accuracy(metrics.mnist28(), mnist5k().splits["test"]) > 0.97


def test_other_images_are_refused_or_resized() -> None:
    extractor = metrics.fashion28()
    with pytest.raises(ValueError, match=r"got \(2, 3, 32, 32\); fashion28\(resize=True\)"):
        extractor(torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got values from -1 to 1"):
        extractor(torch.linspace(-1, 1, 784).view(1, 1, 28, 28))
    with pytest.raises(TypeError, match=r"got torch.int64"):
        extractor(torch.zeros(2, 1, 28, 28, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(B, C, H, W\), got \(28, 28\)"):
        extractor(torch.zeros(28, 28))
    resizing = metrics.fashion28(resize=True)
    grey = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(resizing(grey.expand(2, 3, 28, 28)), extractor(grey), rtol=1e-4, atol=1e-4)
    big = grey.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(resizing.prepare(big).mean(), grey.mean(), rtol=1e-3, atol=0)
    assert "28x28" in resizing.describe()
    assert resizing.describe() != extractor.describe()


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    name = "fashion28.safetensors"
    raw = bytearray((WEIGHTS / name).read_bytes())
    raw[-7] ^= 1
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(CheckpointError, match="cannot read its weights"):
        read_weights("fashion28", tmp_path)
    shutil.copy(CHECKSUMS, tmp_path)
    with pytest.raises(CheckpointError, match=r"is damaged: its SHA-256 is .*, SHA256SUMS says .*; reinstall"):
        read_weights("fashion28", tmp_path)
    (tmp_path / name).write_bytes(raw[:1000])
    with pytest.raises(CheckpointError, match="is damaged"):
        read_weights("fashion28", tmp_path)


def test_the_shipped_script_trains_an_extractor_that_repeats_itself() -> None:
    data = mnist5k()
    x, y = data.splits["train"]
    part = Batch(x[::4], y[::4])
    data = ImageDataset("part", {"train": part, "valid": Batch(x[1:99:4], y[1:99:4]), "test": data.splits["test"]})
    recipe = Recipe(epochs=2, batch=50, lr=3e-3)
    first, second = (train("mnist28", data, recipe, quiet=True) for _ in range(2))
    assert accuracy(first, data.splits["test"]) > 0.8
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
