"""What would stop a run at its end, or spoil another run, is refused at its beginning, in one line."""

from __future__ import annotations

import dataclasses
import gzip
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genmodels import cli, data, metrics, sampling
from genmodels.energy.hopfield import Hopfield, random_patterns
from genmodels.errors import CheckpointError, DataError, GenmodelsError
from genmodels.flows import RealNVP
from genmodels.registry import MODELS, recipe_of
from genmodels.training import Fit, fit, load_weights, write_down
from genmodels.training.checkpoint import contents, save_step
from genmodels.training.distributed import local_device


def _table(path: Path, x: np.ndarray) -> str:
    np.save(path, x.astype(np.float32))
    return str(path)


@pytest.fixture
def normal() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(200, 3))


# ---- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["max_seconds", "lr"])
def test_budgets_and_rates_are_positive_and_finite(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"Fit: {name} must be positive and finite, got"):
        Fit(**{"max_steps": 1, name: value})


@pytest.mark.parametrize(("name", "value"), [("max_steps", 0), ("accumulate", 0), ("log_every", -1)])
def test_counts_are_at_least_one(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"Fit: {name} must be at least 1, got {value}"):
        Fit(**{"max_steps": 1, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("clip", -1.0),
        ("warmup_steps", -1),
        ("checkpoint_seconds", math.nan),
        ("evaluations", -1),
        ("weight_decay", -0.1),
    ],
)
def test_other_numbers_of_a_fit_are_not_negative(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"Fit: {name} must be 0 or more and finite, got"):
        Fit(**{"max_steps": 1, name: value})


@pytest.mark.parametrize("model", MODELS)
def test_the_numbers_of_every_recipe_are_checked(model: str) -> None:
    usual = recipe_of(model)()
    usual.check()
    for option in dataclasses.fields(usual):
        whole, real = "int" in str(option.type), str(option.type).startswith("float")
        if not (whole or real):
            continue
        many = "tuple" in str(option.type)
        for value in (-1, math.nan) if real else (-1,):
            with pytest.raises(GenmodelsError, match=f"--{option.name.replace('_', '-')} must be"):
                dataclasses.replace(usual, **{option.name: (value, value) if many else value}).check()
        if option.default == 0 or option.name in usual.may_be_zero:
            dataclasses.replace(usual, **{option.name: 0}).check()


@pytest.mark.parametrize("name", ["cuda:99", "nowhere", "meta"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(GenmodelsError, match=f"device '{name}' cannot be used here"):
        local_device(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train realnvp --data moons --threads 0", "--threads must be 1 or more, got 0"),
        ("train vae --data digits --samples 0", "--samples must be 1 or more, got 0"),
        ("train rbm --data digits --ais-betas-test 0", "--ais-betas-test must be 1 or more, got 0"),
        ("train gan --data moons --judged 0", "--judged must be 1 or more, got 0"),
        ("train realnvp --data moons --hidden 0", "--hidden must be 1 or more, got 0"),
        ("train realnvp --data moons --device nowhere", "device 'nowhere' cannot be used here"),
        ("sample run --n 0", "--n must be 1 or more, got 0"),
        ("sample run --temperature nan", "--temperature must be 0 or more, got nan"),
    ],
)
def test_commands(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments.split()) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ---- folders of other runs, and data that changed -----------------------------------------------------------------------


@pytest.mark.parametrize("other", ["gaussian --data {table}", "hopfield --data digits"])
def test_a_model_that_needs_no_training_spares_the_run_of_another(
    other: str, normal: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, run = _table(tmp_path / "table.npy", normal), tmp_path / "run"
    trained = f"train realnvp --data {table} --max-steps 2 --batch-size 20 --out {run}"
    assert cli.main(trained.split()) == 0
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert cli.main(f"train {other.format(table=table)} --out {run}".split()) == 1
    assert "belongs to another run, with model='realnvp' where model=" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}


def test_a_fitted_model_is_written_down_again_by_the_same_run_only(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    for _ in range(2):
        assert write_down(model, tmp_path, {"nats": 1.0}, fingerprint={"model": "a", "widths": (1, 2)}).step == 1
    with pytest.raises(CheckpointError, match="belongs to another run, with model='a' where model='b'"):
        write_down(model, tmp_path, {}, fingerprint={"model": "b"})


def test_a_run_does_not_go_on_with_other_data(
    normal: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = _table(tmp_path / "table.npy", normal)
    command = f"train realnvp --data {table} --batch-size 20 --out {tmp_path / 'run'} --max-steps"
    assert cli.main([*command.split(), "2"]) == 0
    _table(tmp_path / "table.npy", normal[:150])
    assert cli.main([*command.split(), "4"]) == 1
    assert "belongs to another run, with data_contents=" in capsys.readouterr().err
    _table(tmp_path / "table.npy", normal)
    assert cli.main([*command.split(), "4"]) == 0


def test_contents_tell_data_sets_apart() -> None:
    digits = data.digits()
    x, y = digits.splits["train"]
    spoilt = x.clone()
    spoilt[-1, 0, 0, 0] += 1
    others = [spoilt, x.flip(0), x[:-1], x.view(len(x), 1, 4, 16)]
    found = {contents(digits)}
    for other in others:
        part = data.Batch(other, None if y is None else y[: len(other)])
        found.add(contents(data.ImageDataset("digits", {**digits.splits, "train": part}, 18)))
    assert len(found) == len(others) + 1
    assert contents(digits) == contents(data.digits())
    assert contents(data.DENSITIES["moons"]()) == ""


def test_a_position_that_an_epoch_does_not_have_is_refused() -> None:
    stream = data.Shuffled(data.Batch(torch.zeros(20, 2)), 4)
    with pytest.raises(ValueError, match="batch 5 of an epoch of 5 batches"):
        stream.load_state_dict({"epoch": 0, "position": 5, "seed": 0})


def test_what_a_killed_write_left_is_cleared_away(tmp_path: Path) -> None:
    torn = tmp_path / ".checkpoint-00000001.safetensors.123.tmp"
    torn.write_bytes(b"half")
    save_step(tmp_path, 2, {"model.x": torch.ones(1)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000002.safetensors"]


class _Constant(nn.Module):
    """A loss whose gradient is finite whatever it is itself."""

    def __init__(self, loss: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.value = loss

    def losses(self, batch: data.Batch) -> dict[str, Tensor]:
        return {"loss": self.weight.sum() + self.value}


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_run_though_its_gradient_is_one(loss: float, tmp_path: Path) -> None:
    model = _Constant(loss)
    stream = data.Shuffled(data.Batch(torch.zeros(8, 1)), 4)
    with pytest.raises(GenmodelsError, match=r"has not been finite for 20 updates.*: try a smaller lr$"):
        fit(model, stream, tmp_path, Fit(max_steps=100))
    assert model.weight.item() == 1.0


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    write_down(nn.Linear(2, 2), tmp_path, {}, fingerprint={})
    with pytest.raises(
        CheckpointError, match=r"does not fit this model: size mismatch for weight: .*\[2, 2\].*\[3, 2\]"
    ):
        load_weights(nn.Linear(2, 3), tmp_path)


# ---- tables -------------------------------------------------------------------------------------------------------------


def test_a_constant_column_is_named_to_a_density_but_not_to_a_network_of_samples(
    normal: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    normal[:, 1] = 2.0
    table = _table(tmp_path / "table.npy", normal)
    assert cli.main(["train", "maf", "--data", table, "--out", str(tmp_path / "run")]) == 1
    assert "all training rows have one value in column 1 (counted from 0)" in capsys.readouterr().err
    gan = f"train gan --data {table} --max-steps 2 --batch-size 20 --hidden 8 --judged 50 --out {tmp_path / 'run'}"
    assert cli.main(gan.split()) == 0


def test_there_is_no_gaussian_of_dependent_columns_or_of_too_few_rows(normal: np.ndarray, tmp_path: Path) -> None:
    wide = np.random.default_rng(1).normal(size=(30, 40))
    spoilt = [np.c_[normal, normal[:, 0]], np.c_[normal, normal.sum(1)], wide]
    for i, x in enumerate(spoilt):
        assert data.table(_table(tmp_path / f"{i}.npy", x)).gaussian_nats("test") is None
    # Units and close correlation are no reason.
    close = np.c_[normal[:, 0], normal[:, 0] + 1e-3 * normal[:, 1]] * [1e-6, 1e6]
    assert data.table(_table(tmp_path / "close.npy", close)).gaussian_nats("test") is not None


def test_the_gaussian_of_a_table_is_the_normal_distribution(normal: np.ndarray, tmp_path: Path) -> None:
    table = data.table(_table(tmp_path / "table.npy", normal @ np.array([[3.0, 1, 0], [0, 2, 0], [0, 1, 0.1]]) + 5))
    train, test = (table.splits[name].x.double() for name in ("train", "test"))
    law = torch.distributions.MultivariateNormal(train.mean(0), torch.cov(train.t()))
    assert table.gaussian_nats("test") == pytest.approx(-float(law.log_prob(test).mean()), abs=1e-10)


@pytest.mark.parametrize(
    "model", ["gaussian", "maf --max-steps 2 --hidden 8", "gan --max-steps 2 --hidden 8 --judged 50"]
)
def test_tables_of_one_column(model: str, normal: np.ndarray, tmp_path: Path) -> None:
    table, run = _table(tmp_path / "table.npy", normal[:, :1]), tmp_path / "run"
    assert cli.main(f"train {model} --data {table} --batch-size 20 --out {run}".split()) == 0
    assert (run / "samples.png").stat().st_size > 1000 and (run / "result.json").exists()


def test_damaged_tables_are_one_clear_line(normal: np.ndarray, tmp_path: Path) -> None:
    whole = Path(_table(tmp_path / "whole.npy", normal)).read_bytes()
    several = tmp_path / "several.npz"
    np.savez(several, a=normal, b=normal)
    for name, content in (
        ("empty", b""),
        ("foreign", b"x"),
        ("short", whole[:300]),
        ("header", whole[:20]),
        ("several", several.read_bytes()),
        ("torn", several.read_bytes()[:200]),
    ):
        path = tmp_path / f"{name}.npy"
        path.write_bytes(content)
        with pytest.raises(DataError, match=name):
            data.table(path)


# ---- images -------------------------------------------------------------------------------------------------------------


def _pictures(folder: Path, n: int, classes: int) -> str:
    image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(2)
    for i in range(n):
        place = folder / f"class{i % classes}" if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        image.fromarray(random.integers(0, 255, (12, 12, 3)).astype(np.uint8)).save(place / f"{i:03d}.png")
    return str(folder)


@pytest.mark.parametrize(("n", "classes"), [(10, 0), (12, 4), (40, 2)])
def test_every_split_of_a_small_folder_has_images(n: int, classes: int, tmp_path: Path) -> None:
    found = data.image_folder(_pictures(tmp_path, n, classes), 12)
    assert sum(len(part.x) for part in found.splits.values()) == n
    assert all(len(part.x) for part in found.splits.values())


@pytest.mark.parametrize(
    "model",
    [
        "realnvp --widths 4 4",
        "gaussian",
        "vae --hidden 8 --latents 3",
        "vae --hidden 8 --latents 1",
        "conditional-vae --hidden 8",
        "pixelcnn --width 4 --hidden 4 --blocks 0",
        "rbm --hidden 8 --ais-betas 5 --ais-betas-test 5",
        "hopfield --patterns 5 --units 30 --recalls 2",
    ],
)
def test_a_few_images_are_trained_on_and_reported(model: str, tmp_path: Path) -> None:
    folder, run = _pictures(tmp_path / "pictures", 12, 4), tmp_path / "run"
    steps = [] if model.startswith(("gaussian", "hopfield")) else ["--max-steps", "2", "--batch-size", "4"]
    about = ["--data", folder, "--image-size", "12", "--image-channels", "1", "--out", str(run)]
    assert cli.main(["train", *model.split(), *steps, *about]) == 0
    assert (run / "result.json").exists()


def test_two_images_of_each_split_are_needed_to_judge_an_adversary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _pictures(tmp_path / "pictures", 12, 4)
    assert cli.main(["train", "dcgan", "--data", folder, "--out", str(tmp_path / "run")]) == 1
    assert "is judged on two images or more of each split" in capsys.readouterr().err


def test_damaged_pictures_and_idx_files_are_one_clear_line(tmp_path: Path) -> None:
    folder = Path(_pictures(tmp_path / "pictures", 12, 0))
    whole = (folder / "000.png").read_bytes()
    for content in (whole[:60], whole[:20], b"", whole[:60] + bytes(40) + whole[100:]):
        (folder / "000.png").write_bytes(content)
        with pytest.raises(DataError, match=r"cannot read .*000\.png"):
            data.image_folder(folder)

    name = "train-images-idx3-ubyte"
    images = struct.pack(">4B3I", 0, 0, 8, 3, 2, 2, 2) + bytes(8)
    zipped = gzip.compress(images)
    for content, ending in (
        (images[:10], ""),
        (images[:-1], ""),
        (struct.pack(">4B2I", 0, 0, 8, 2, 4, 2) + bytes(8), ""),
        (zipped[:-9], ".gz"),
        (zipped[:12] + b"\xff\xff" + zipped[14:], ".gz"),
    ):
        for old in tmp_path.glob(f"{name}*"):
            old.unlink()
        (tmp_path / f"{name}{ending}").write_bytes(content)
        with pytest.raises(DataError, match=name):
            data.fashion_mnist(tmp_path)


def test_labels_beyond_the_classes_are_refused() -> None:
    x = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(ValueError, match="labels from 0 to 2 of 2 classes"):
        data.ImageDataset("x", {"train": data.Batch(x, torch.arange(3))}, classes=("a", "b"))


def test_a_row_of_progress_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    from genmodels.gan import pictures

    model = recipe_of("dcgan")(data="digits", width=4).build(data.digits())
    pictures.note_progress(tmp_path, model)
    (tmp_path / "progress" / "00000007.npy").write_bytes(b"half")
    with pytest.warns(UserWarning, match=r"a row of progress\.png is left out: cannot read .*00000007\.npy"):
        assert pictures.progress(tmp_path / "progress.png", tmp_path)
    (tmp_path / "progress" / "00000000.npy").unlink()
    with pytest.warns(UserWarning, match="left out"):
        assert not pictures.progress(tmp_path / "other.png", tmp_path)


def test_a_flow_refuses_integers_that_are_no_levels() -> None:
    flow = recipe_of("realnvp")(data="digits", flat=True).build(data.digits())
    for x in (torch.full((2, 1, 8, 8), 17, dtype=torch.uint8), torch.full((2, 1, 8, 8), -1)):
        with pytest.raises(ValueError, match=r"samples must be levels 0\.\.16, got values from"):
            flow.log_prob(x)


def test_an_empty_batch_of_images_goes_through_every_scale() -> None:
    flow = RealNVP((1, 28, 28), levels=256, couplings=1, widths=(4, 4, 4), tail=1, hidden=8)
    x = torch.zeros(0, 1, 28, 28, dtype=torch.uint8)
    assert flow.log_prob(x).shape == (0,) and flow.sample(0, key=1).shape == x.shape
    flow.log_prob(x).sum().backward()


# ---- samplers, distances, memories ---------------------------------------------------------------------------------------


def test_gibbs_refuses_values_that_its_states_cannot_hold() -> None:
    energy = lambda x: x.double().sum(1)  # noqa: E731
    with pytest.raises(ValueError, match=r"initial is torch.int64, which cannot hold the values \[0.0, 0.5\]"):
        sampling.gibbs(torch.zeros(2, 3, dtype=torch.int64), energy=energy, values=(0.0, 0.5), draws=2, key=1)
    found = sampling.gibbs(torch.zeros(2, 3), energy=energy, values=(0.0, 0.5), draws=50, key=1)
    assert sorted(found.samples.unique().tolist()) == [0.0, 0.5]


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_wasserstein_distances_grow_with_the_unit(p: float, weighted: bool, scale: float) -> None:
    x, y = torch.randn(2, 40, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    weights = torch.arange(1.0, 41.0) if weighted else None
    expected = metrics.wasserstein(x, y, x_weights=weights, p=p)
    x = (scale * x).requires_grad_()
    found = metrics.wasserstein(x, scale * y, x_weights=weights, p=p)
    assert found.item() == pytest.approx(scale * expected.item(), rel=1e-12)
    (slope,) = torch.autograd.grad(found, x)
    assert slope.isfinite().all() and slope.abs().max() > 0


def test_a_projection_onto_everything_has_no_weights() -> None:
    """As many independent patterns as units: the projection is the identity, whose rounding must not turn units over."""
    patterns = random_patterns(40, 40, sampling.Noise(5))
    assert torch.linalg.matrix_rank(patterns) == 40
    network = Hopfield(40)
    network.store(patterns, "pseudo-inverse")
    assert not network.weight.any()
    states = random_patterns(30, 40, sampling.Noise(6))
    assert torch.equal(network.recall(states).states, states)


def test_resampling_takes_a_number_of_samples() -> None:
    law = lambda x: -x[:, 0].square()  # noqa: E731
    weighted = sampling.importance_sampling(law, lambda n, noise: noise.normal((n, 1)), law, draws=10, key=1)
    assert weighted.resample(0, key=1).shape == (0, 1)
    for n in (-1, 1.5, True):
        with pytest.raises(ValueError, match="n must be an int of at least 0"):
            weighted.resample(n, key=1)
