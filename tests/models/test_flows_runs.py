"""Planar, MADE, MAF and IAF through the one door: train, resume, sample, evaluate; and that they learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from genmodels.cli import main
from genmodels.flows.recipe import IAFRecipe, MADERecipe, MAFRecipe, PlanarRecipe
from genmodels.recipe import Recipe, restore
from genmodels.training import Fit, fit
from genmodels.training.checkpoint import load_newest
from tests.streams import Stopping

PICTURES = ("samples", "interpolation", "loss")


def _train(model: str, out: Path, *options: str) -> dict[str, float]:
    command = ["train", model, *options, "--out", str(out), "--threads", "1", "--max-seconds", "None"]
    assert main(command) == 0
    return json.loads((out / "result.json").read_text())


def _png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 2000


@pytest.mark.parametrize(
    ("model", "options", "figure"),
    [
        ("planar", ["--data", "potential2", "--flows", "8"], "gap_nats"),
        ("made", ["--data", "banana", "--hidden", "16"], "gap_nats"),
        ("maf", ["--data", "moons", "--hidden", "16", "--layers", "3", "--batch-norm"], "gap_nats"),
        ("iaf", ["--data", "potential3", "--objective", "reverse-kl", "--hidden", "16", "--layers", "2"], "gap_nats"),
        ("iaf", ["--data", "moons", "--hidden", "16", "--layers", "2"], "gap_nats"),
        ("maf", ["--data", "digits", "--hidden", "32", "--layers", "2", "--batch-size", "16"], "test_bits_per_dim"),
    ],
)
def test_train_sample_evaluate(
    model: str, options: list[str], figure: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    report = _train(model, run, *options, "--max-steps", "40")
    assert report["step"] == 40
    assert all(_png(run / f"{name}.png") for name in PICTURES)
    capsys.readouterr()
    assert main(["evaluate", str(run)]) == 0
    assert json.loads(capsys.readouterr().out)[figure] == report[figure]
    assert main(["sample", str(run), "--seed", "3", "--n", "64"]) == 0
    assert _png(run / "samples-3.png")


def test_a_density_that_is_one_layer_of_a_made_is_learnt_by_it(tmp_path: Path) -> None:
    """The banana's x1 is Gaussian given x2, whose order a MADE turned round has; with the features in the wrong order, as
    here, it is not, and a single layer must stay 0.2 nats away from what two reach."""
    steps = ["--data", "banana", "--lr", "5e-3", "--ema", "0.99", "--batch-size", "256", "--max-steps", "500"]
    one = _train("made", tmp_path / "one", *steps)["gap_nats"]
    two = _train("maf", tmp_path / "two", *steps, "--layers", "2", "--permutation", "reverse")["gap_nats"]
    assert -0.05 < two < 0.1
    assert one > 0.2


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("planar", ["--data", "potential2", "--flows", "16", "--anneal", "1000", "--max-steps", "2500"]),
        ("planar", ["--data", "potential1", "--flows", "16", "--anneal", "500", "--max-steps", "1200"]),
        ("maf", ["--data", "moons", "--layers", "6", "--batch-size", "256", "--max-steps", "500", "--ema", "0.99"]),
    ],
)
def test_a_density_is_learnt_to_a_tenth_of_a_nat(model: str, options: list[str], tmp_path: Path) -> None:
    """The gap is the divergence from the density to the flow, to within the noise of 20,000 test points (0.02)."""
    assert -0.05 < _train(model, tmp_path / "run", *options)["gap_nats"] < 0.1


def test_maf_beats_realnvp_beats_a_gaussian_on_real_digits(tmp_path: Path) -> None:
    """As in table 2 of the MAF paper: as many layers, hidden units and steps, and the same first step of all three."""
    steps = ["--max-steps", "300", "--lr", "3e-3", "--ema", "0.98", "--batch-size", "64", "--evaluations", "1"]
    options = {
        "maf": ["--layers", "4", "--hidden", "128", "128", *steps],
        "realnvp": ["--equalise", "--flat", "--couplings", "4", "--hidden", "128", *steps],
        "gaussian": ["--equalise", "--max-steps", "1"],
    }
    bits = {
        model: _train(model, tmp_path / model, "--data", "digits", *given)["test_bits_per_dim"]
        for model, given in options.items()
    }
    assert bits["maf"] < bits["realnvp"] - 0.02
    assert bits["realnvp"] < bits["gaussian"] - 0.03


def test_an_iaf_learns_by_likelihood_through_its_sequential_direction(tmp_path: Path) -> None:
    options = ["--data", "moons", "--layers", "6", "--batch-size", "256", "--max-steps", "400", "--ema", "0.98"]
    assert -0.05 < _train("iaf", tmp_path / "run", *options)["gap_nats"] < 0.1


@pytest.mark.parametrize(
    "recipe",
    [
        PlanarRecipe(data="potential1", flows=4, batch_size=16, anneal=30),
        MADERecipe(data="banana", hidden=(8,), batch_size=16),
        MAFRecipe(data="digits", hidden=(16,), layers=2, batch_size=16, batch_norm=True),
        IAFRecipe(data="moons", hidden=(8,), layers=2, batch_size=16),
    ],
    ids=["planar", "made", "maf", "iaf"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(recipe: Recipe, tmp_path: Path) -> None:
    assert restore(type(recipe), json.loads(json.dumps(recipe, default=lambda r: r.__dict__))) == recipe
    data, config, weights = recipe.dataset(), Fit(max_steps=24, warmup_steps=3, ema=0.9), []
    for stops in ([], [9]):
        out = tmp_path / str(len(stops))
        for at in [*stops, 0]:
            torch.manual_seed(0)
            result = fit(recipe.build(data), Stopping(recipe.stream(data), at), out, config)
            assert (result.stopped, result.step) == (("SIGINT", 9) if at else (None, 24))
        found = load_newest(out)
        assert found is not None
        weights.append({name: value for name, value in found[0].items() if name.startswith(("model.", "ema."))})
    whole, resumed = weights
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["planar", "--data", "checkerboard"],
            "reverse KL needs a density with a gradient, and 'checkerboard' has none",
        ),
        (["planar", "--data", "digits"], "a planar flow is of vectors, and 'digits' has samples of shape (1, 8, 8)"),
        (["iaf", "--data", "digits", "--objective", "reverse-kl"], "'digits' has none: use --objective likelihood"),
        (["maf", "--data", "moons", "--scale-map", "cosh", "--max-steps", "1"], "scale_map must be one of"),
        (["maf", "--data", "moons", "--hidden", "0"], "--hidden must be 1 or more, got 0"),
    ],
)
def test_bad_commands_are_one_clear_line(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *args, "--out", str(tmp_path / "run")]) == 1
    captured = capsys.readouterr().err
    assert message in captured
    assert captured.startswith("genmodels: ")
    assert captured.count("\n") == 1


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Rows of four dependent features on very different scales."""
    x = np.random.default_rng(0).standard_normal((3000, 4))
    x[:, 1] = x[:, 0] ** 2 + 0.1 * x[:, 1]
    np.save(tmp_path / "table.npy", x * [1, 10, 0.01, 1000] + [0, 5, 0, -100])
    return tmp_path / "table.npy"


def test_a_table_of_one_s_own_is_learnt(table: Path, tmp_path: Path) -> None:
    """Its entropy is that of a Gaussian with one deviation a tenth: ln(10 * 0.01 * 1000 * 0.1) + 2 ln(2 pi e)."""
    options = ["--data", str(table), "--max-steps", "500", "--batch-size", "128", "--ema", "0.98", "--layers", "3"]
    report = _train("maf", tmp_path / "run", *options)
    entropy = float(np.log(10.0) + 2 * np.log(2 * np.pi * np.e))
    assert -0.15 < report["test_nats"] - entropy < 0.25
    assert report["test_nats"] < report["gaussian_nats"] - 1
    assert all(_png(tmp_path / "run" / f"{name}.png") for name in PICTURES)
