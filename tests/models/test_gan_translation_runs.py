"""Translations through the one door: stop and resume, train, sample, evaluate, record, pictures, errors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from genmodels.cli import main
from genmodels.gan.translation_recipe import CycleGANRecipe, Pix2PixRecipe
from genmodels.training import Fit, best_weights, fit
from genmodels.training.checkpoint import load_newest
from tests.streams import Stopping


@pytest.mark.parametrize(
    "recipe",
    [
        Pix2PixRecipe(data="photos", image_size=8, task="grey", width=4, batch_size=4),
        CycleGANRecipe(
            data="photos",
            image_size=12,
            domains=("china", "flower"),
            width=2,
            blocks=1,
            layers=1,
            pool=6,
            historical=0.1,
            norm="virtual",
            minibatch=2,
        ),
    ],
    ids=["pix2pix", "cyclegan"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(recipe: Pix2PixRecipe | CycleGANRecipe, tmp_path: Path) -> None:
    dataset, config, weights = recipe.dataset(), Fit(max_steps=10, warmup_steps=3), []
    for stops in ([], [9]):
        out = tmp_path / str(len(stops))
        for at in [*stops, 0]:
            torch.manual_seed(0)
            model = recipe.build(dataset)
            stream = Stopping(recipe.stream(dataset), at)
            result = fit(model, stream, out, config, parts=recipe.parts(model))
            assert result.step == (5 if at else 10)
        found = load_newest(out)
        assert found is not None
        weights.append({name: value for name, value in found[0].items() if name.startswith("model.")})
    whole, resumed = weights
    assert whole.keys() == resumed.keys()
    if isinstance(recipe, CycleGANRecipe):
        assert int(whole["model.pool_x.held"]) == 6
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def _png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 2000


@pytest.mark.parametrize(
    ("model", "options", "drawn", "figures"),
    [
        (
            "pix2pix",
            ["--width", "4", "--norm", "virtual"],
            ("translations", "noise", "loss"),
            {"test_l1", "test_l1_mean_image", "test_frechet"},
        ),
        (
            "cyclegan",
            ["--domains", "3", "8", "--width", "2", "--blocks", "1", "--layers", "1", "--minibatch", "2"],
            ("cycles", "loss"),
            {
                "test_cycle_l1_x",
                "test_cycle_l1_y",
                "test_frechet_domains",
                "test_frechet_to_x",
                "test_frechet_to_y",
                "test_frechet",
            },
        ),
    ],
)
def test_train_sample_evaluate_record(
    model: str,
    options: list[str],
    drawn: tuple[str, ...],
    figures: set[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, record = tmp_path / "run", tmp_path / "models.jsonl"
    small = ["--data", "digits", "--batch-size", "4", "--max-steps", "4", "--evaluations", "2"]
    assert main(["train", model, *small, *options, "--threads", "1", "--out", str(run)]) == 0
    assert "judged by extractor fashion28 (128 features)" in capsys.readouterr().out
    assert all(_png(run / f"{name}.png") for name in drawn)
    assert main(["evaluate", str(run), "--record", str(record)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == figures
    assert all(math.isfinite(value) for value in found.values())
    best = best_weights(run)
    assert best is not None
    assert best[1]["metric"] == {"pix2pix": "valid_l1", "cyclegan": "valid_frechet"}[model]
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    judged = {line["step"]: line[best[1]["metric"]] for line in lines if line["event"] == "evaluate"}
    assert judged[best[1]["step"]] == min(judged.values()) == pytest.approx(best[1]["value"], rel=1e-6)
    assert json.loads(record.read_text())["weights"] == best[1]["step"]
    report = json.loads((run / "result.json").read_text())
    assert found == {name: pytest.approx(report[name]) for name in found}
    assert "N " in json.loads(record.read_text())["judged_by"]
    assert main(["sample", str(run), "--n", "6", "--seed", "3"]) == 0
    assert _png(run / "samples-3.png")


def test_the_command_line_says_what_data_will_not_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "cyclegan", "--data", "moons", "--out", str(tmp_path / "a")]) == 1
    assert "CycleGAN is of images, and 'moons' is none of them" in capsys.readouterr().err
    assert main(["train", "cyclegan", "--data", "digits", "--domains", "3", "x", "--out", str(tmp_path / "b")]) == 1
    assert "digits has no class 'x'" in capsys.readouterr().err
    assert main(["train", "pix2pix", "--data", "digits", "--task", "grey", "--out", str(tmp_path / "c")]) == 1
    assert "task 'grey' needs colour images" in capsys.readouterr().err
