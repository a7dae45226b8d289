"""Energy-based models through the one door and through scikit-learn: train, stop and resume, share, sample, evaluate."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from genmodels.cli import main
from genmodels.energy import RBM
from genmodels.energy.recipe import BoltzmannRecipe, RBMRecipe
from genmodels.recipe import Recipe
from genmodels.training import Fit, read_log
from genmodels.training.checkpoint import load_newest
from tests.streams import Stopping

SMALL = ["--data", "digits", "--batch-size", "32", "--threads", "1"]


def _png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 2000


def _gif(path: Path) -> bool:
    return path.read_bytes()[:6] == b"GIF89a" and path.stat().st_size > 2000


@pytest.mark.parametrize(
    ("model", "options", "pictures", "figures"),
    [
        (
            "rbm",
            ["--hidden", "10", "--chains", "16", "--max-steps", "300"],
            ("samples", "filters", "chains", "inpainting", "denoising", "likelihood"),
            {
                "test_pseudo_likelihood",
                "test_log_likelihood",
                "test_brier_filled",
                "test_wrong_denoised",
                "dead",
                "ais_minus_exact",
            },
        ),
        (
            "rbm",
            ["--hidden", "20", "--visible", "gaussian", "--method", "cd", "--ais-betas", "60", "--max-steps", "60"],
            ("samples", "filters", "chains", "inpainting", "denoising", "likelihood"),
            {"test_log_likelihood", "test_log_likelihood_reverse", "ais_ess", "saturated"},
        ),
        (
            "rbm",
            ["--hidden", "6", "--visible", "softmax", "--categories", "4", "--method", "pt", "--chains", "4"]
            + ["--replicas", "3", "--max-steps", "40"],
            ("samples", "filters", "chains", "inpainting", "denoising", "likelihood"),
            {"test_pseudo_likelihood", "test_log_likelihood", "swap_rate_min"},
        ),
        (
            "boltzmann",
            ["--hidden", "4", "--chains", "16", "--max-steps", "150"],
            ("samples", "inpainting", "denoising", "likelihood"),
            {"test_pseudo_likelihood", "test_brier_filled", "test_brier_mean_image", "test_wrong_denoised"},
        ),
        (
            "hopfield",
            ["--patterns", "5", "--units", "200", "--recalls", "10"],
            ("recalls", "capacity"),
            {"stable", "overlap", "overlap_at_0.10", "overlap_at_0.16"},
        ),
    ],
    ids=["binary", "gaussian", "softmax", "boltzmann", "hopfield"],
)
def test_train_sample_evaluate_record(
    model: str,
    options: list[str],
    pictures: tuple[str, ...],
    figures: set[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, record = tmp_path / "run", tmp_path / "models.jsonl"
    assert main(["train", model, *SMALL, *options, "--out", str(run)]) == 0
    assert all(_png(run / f"{name}.png") for name in pictures)
    assert "chains" not in pictures or _gif(run / "chains.gif")
    report = json.loads((run / "result.json").read_text())
    assert figures < set(report)
    judged = [line for line in read_log(run / "log.jsonl") if line["event"] == "evaluate"]
    assert judged
    capsys.readouterr()
    assert main(["evaluate", str(run), "--record", str(record)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {name: pytest.approx(report[name]) for name in found}
    assert json.loads(record.read_text())["model"] == model
    assert main(["sample", str(run), "--seed", "3", "--n", "6"]) == 0
    assert _png(run / "samples-3.png")


def test_a_short_run_already_learns(tmp_path: Path) -> None:
    """600 updates of a machine small enough for its likelihood to be exact; independent pixels reach -27.2 nats."""
    options = ["--hidden", "14", "--max-steps", "600", "--max-seconds", "None", "--lr", "0.3"]
    assert main(["train", "rbm", *SMALL, *options, "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "result.json").read_text())
    judged = [line for line in read_log(tmp_path / "log.jsonl") if line["event"] == "evaluate"]
    assert len(judged) == 5
    assert judged[-1]["valid_pseudo_likelihood"] > judged[0]["valid_pseudo_likelihood"]
    assert report["test_log_likelihood"] > -25.0
    assert report["test_brier_filled"] < report["test_brier_mean_image"]
    assert abs(report["ais_minus_exact"]) < 0.5
    assert report["test_wrong_denoised"] < 0.7 * report["test_wrong_median"]


_QUIET = Fit(max_steps=20, lr=0.1, clip=0.0, ema=0.9, evaluations=1)


@pytest.mark.parametrize(
    "recipe",
    [
        RBMRecipe(data="digits", hidden=6, batch_size=16, chains=8, fit=_QUIET, momentum=0.5),
        RBMRecipe(data="digits", hidden=6, batch_size=16, chains=4, replicas=3, method="pt", fit=_QUIET),
        RBMRecipe(data="digits", hidden=6, batch_size=16, chains=4, visible="gaussian", fit=_QUIET),
        BoltzmannRecipe(data="digits", hidden=3, batch_size=16, chains=4, fit=_QUIET),
    ],
    ids=["pcd", "pt", "gaussian", "boltzmann"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, weights = recipe.dataset(), []
    for stops in ([], [9]):
        out = tmp_path / str(len(stops))
        for at in [*stops, 0]:
            torch.manual_seed(0)
            stream = Stopping(recipe.stream(data), at)
            monkeypatch.setattr(type(recipe), "stream", lambda *_, s=stream, **__: s)
            monkeypatch.setattr(type(recipe), "evaluate", lambda *_: {})
            result = recipe.train(recipe.build(data), data, out, rank=0, world=1, fingerprint={})
            assert (result.stopped, result.step) == (("SIGINT", 9) if at else (None, 20))
            monkeypatch.undo()
        found = load_newest(out)
        assert found is not None
        weights.append({name: value for name, value in found[0].items() if not name.startswith("rng")})
    whole, resumed = weights
    assert int(whole["model.updates"]) == 20
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


_WORKER = """
import sys, torch
from pathlib import Path
from genmodels.data import digits
from genmodels.energy.recipe import BoltzmannRecipe, RBMRecipe
from genmodels.training import Fit
import os
torch.set_num_threads(1)
rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
fit = Fit(max_steps=6, lr=0.1, clip=0.0, evaluations=1, device="cpu")
common = dict(data="digits", batch_size=32 // world, chains=8, fit=fit)
recipes = {
    "pcd": RBMRecipe(hidden=12, **common),
    "cd": RBMRecipe(hidden=12, method="cd", steps=2, **common),
    "pt": RBMRecipe(hidden=12, method="pt", replicas=3, **common),
    "gaussian": RBMRecipe(hidden=12, visible="gaussian", **common),
    "softmax": RBMRecipe(hidden=6, visible="softmax", categories=3, **common),
    "boltzmann": BoltzmannRecipe(hidden=3, **common),
}
RBMRecipe.evaluate = BoltzmannRecipe.evaluate = lambda *_: {}
for name, recipe in recipes.items():
    data = recipe.dataset()
    torch.manual_seed(0)
    model = recipe.build(data)
    out = Path(sys.argv[1]) / name
    recipe.train(model, data, out, rank=rank, world=world, fingerprint={})
    torch.save(model.state_dict(), out / f"state-{rank}.pt")
"""


def test_two_processes_that_share_the_chains_do_what_one_does(tmp_path: Path) -> None:
    """The same chains, the same data, statistics summed: weights agree but for the order of sums, chains to the bit."""
    script = tmp_path / "worker.py"
    script.write_text(_WORKER)
    alone = [sys.executable, str(script), str(tmp_path / "one")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for command in (alone, [*torchrun, str(script), str(tmp_path / "two")]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    for name in ("pcd", "cd", "pt", "gaussian", "softmax", "boltzmann"):
        one = torch.load(tmp_path / "one" / name / "state-0.pt")
        two, other = (torch.load(tmp_path / "two" / name / f"state-{rank}.pt") for rank in range(2))
        for key, value in one.items():
            assert torch.equal(two[key], other[key]) or key == "swap_rates", (name, key)
            if value.is_floating_point():
                assert torch.allclose(two[key], value, atol=2e-5), (name, key)
            elif name == "gaussian" and key == "chains":
                assert torch.allclose(two[key].view(torch.float32), value.view(torch.float32), atol=1e-3)
            else:
                assert torch.equal(two[key], value), (name, key)
        assert name == "cd" or one["chains"].flatten(1).unique(dim=0).shape[0] == 8, "every chain its own"


def test_chains_that_cannot_be_shared_out_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from genmodels.energy import learning

    monkeypatch.setattr(learning, "process", lambda: (0, 3))
    with pytest.raises(ValueError, match="100 chains cannot be shared out to 3 processes"):
        learning.mine(100)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["rbm", "--data", "moons"], "an energy-based model is of images, and 'moons' is none of them"),
        (["rbm", "--data", "digits", "--chains", "0"], "--chains must be 1 or more, got 0"),
        (
            ["rbm", "--data", "digits", "--visible", "softmax", "--categories", "18"],
            "cannot be told apart among the 17",
        ),
        (["hopfield", "--data", "digits", "--patterns", "9999"], "patterns must be between 1 and the"),
        (["hopfield", "--data", "ring"], "a Hopfield network stores images, and 'ring' is none of them"),
    ],
)
def test_bad_commands_are_one_clear_line(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *args, "--out", str(tmp_path / "run")]) == 1
    captured = capsys.readouterr().err
    assert message in captured
    assert captured.count("\n") == 1


# ---- scikit-learn ----------------------------------------------------------------------------------------------------


def test_the_estimator_passes_scikit_learn_s_own_checks() -> None:
    from sklearn.exceptions import SkipTestWarning
    from sklearn.utils.estimator_checks import check_estimator

    from genmodels.energy import RBMTransformer

    with warnings.catch_warnings():
        # One check is of an array API that has to be switched on before SciPy is imported.
        warnings.simplefilter("ignore", SkipTestWarning)
        checks = check_estimator(RBMTransformer(n_components=8, n_iter=2), on_fail="raise")
    assert sum(check["status"] == "passed" for check in checks) > 40


def test_the_estimator_learns_digits_and_helps_a_classifier() -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from genmodels.data import digits
    from genmodels.energy import RBMTransformer

    data = digits().splits
    x, test = (data[part].x.flatten(1).numpy() / 16 for part in ("train", "test"))
    estimator = RBMTransformer(14, n_iter=15, learning_rate=0.5, random_state=0).fit(x)
    assert estimator.model_.visible == "binary"
    assert estimator.components_.shape == (14, 64)
    before = RBMTransformer(14, n_iter=1, learning_rate=1e-9, random_state=0).fit(x)
    assert estimator.score(test) > before.score(test) + 1.5
    again = RBMTransformer(14, n_iter=15, learning_rate=0.5, random_state=0).fit(x)
    assert np.array_equal(again.components_, estimator.components_)
    restored = pickle.loads(pickle.dumps(estimator))
    assert np.array_equal(restored.transform(test), estimator.transform(test))
    assert np.array_equal(restored.partial_fit(x[:50]).components_, again.partial_fit(x[:50]).components_)
    pipeline = make_pipeline(
        RBMTransformer(100, n_iter=20, learning_rate=0.5, random_state=0), LogisticRegression(max_iter=2000)
    )
    labels = data["train"].y, data["test"].y
    assert labels[0] is not None
    assert labels[1] is not None
    assert pipeline.fit(x, labels[0].numpy()).score(test, labels[1].numpy()) > 0.9


def test_the_estimator_takes_real_numbers_with_gaussian_units() -> None:
    from genmodels.energy import RBMTransformer

    x = np.random.default_rng(0).normal(size=(300, 2)) @ np.array([[3.0, 0.0], [2.9, 0.5]]) + 7
    estimator = RBMTransformer(5, n_iter=100, learning_rate=1.0, random_state=1).fit(x)
    assert estimator.model_.visible == "gaussian"
    assert isinstance(estimator.model_, RBM)
    start = RBMTransformer(5, n_iter=1, learning_rate=1e-9, random_state=1).fit(x)
    assert estimator.score(x) > start.score(x) + 0.2
    with pytest.raises(ValueError, match="visible must be 'auto', 'binary' or 'gaussian'"):
        RBMTransformer(visible="poisson").fit(x)
    with pytest.raises(ValueError, match="batch_size and n_iter must be at least 1"):
        RBMTransformer(n_iter=0).fit(x)
