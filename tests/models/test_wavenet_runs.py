"""WaveNets and students learn, measured against laws that are known, and through the one door."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from genmodels import data
from genmodels.cli import main
from genmodels.data import AutoregressiveNoise, Batch, MarkovLevels, Process
from genmodels.flows import ParallelWaveNet, WaveNet
from genmodels.flows.wavenet.recipe import ParallelWaveNetRecipe, WaveNetRecipe
from genmodels.recipe import restore
from genmodels.registry import recipe_of
from genmodels.training import Fit, fit
from genmodels.training.checkpoint import load_newest
from tests.streams import Stopping


def _learn(model: WaveNet | ParallelWaveNet, process: Process, steps: int, lr: float = 1e-2) -> None:
    stream = process.stream(8, seed=1)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        model.losses(next(stream))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def _gap(model: WaveNet, process: Process) -> tuple[float, float]:
    """Nats per sample above the entropy rate, on samples that were not trained on, and its standard error."""
    x = process.sample(60, 400, torch.tensor([5, 5]))
    with torch.no_grad():
        each = (process.log_prob(x) - model.log_prob(x)) / x.shape[1]
    return float(each.mean()), float(each.std()) / math.sqrt(len(x))


@pytest.fixture(scope="module")
def teacher() -> WaveNet:
    """A WaveNet that has learnt the two resonances."""
    torch.manual_seed(0)
    model = WaveNet((1, 2, 4, 8), head="gaussian", residual=16, skip=16)
    _learn(model, AutoregressiveNoise(400), 250)
    return model


def test_a_gaussian_wavenet_comes_close_to_the_entropy_rate(teacher: WaveNet) -> None:
    """Without a memory it would stay 1.3 nats above, which is what learning takes away."""
    process = AutoregressiveNoise(400)
    gap, error = _gap(teacher, process)
    memoryless = 0.5 * math.log(2 * math.pi * math.e * float(process.covariance[0, 0])) - process.entropy
    assert memoryless > 1.2
    assert error < 0.01
    assert -5 * error < gap < 0.1


def test_a_categorical_wavenet_comes_close_to_the_entropy_rate() -> None:
    """Knowing the stationary law alone would leave 0.6 nats."""
    process = MarkovLevels(400)
    torch.manual_seed(0)
    model = WaveNet((1, 2, 4), head="categorical", levels=16, one_hot=True, residual=16, skip=16)
    _learn(model, process, 200)
    p = process.stationary.sum(0)
    assert float(-(p * p.log()).sum()) > process.entropy + 0.5
    gap, error = _gap(model, process)
    assert -5 * error < gap < 0.1
    # What it draws is as likely under the process as the process's own samples.
    drawn = -process.log_prob(model.sample(60, 400, key=3)) / 400
    assert float(drawn.mean()) == pytest.approx(process.entropy, abs=0.06)


def test_a_student_learns_what_its_teacher_knows(teacher: WaveNet) -> None:
    process = AutoregressiveNoise(400)
    torch.manual_seed(1)
    student = ParallelWaveNet(((1, 2, 4, 8), (1, 2, 4, 8)), residual=16, skip=16, power=1.0)
    student.learn_from(teacher)
    z = student.draw_noise((40, 400), 9)
    with torch.no_grad():
        before = float(student.divergence(z)[0].mean())
    _learn(student, process, 200)
    with torch.no_grad():
        kl, _, x = student.divergence(z)
        own = -float(teacher.log_prob(teacher.sample(40, 400, key=2)).mean()) / 400
        student_nats = -float(teacher.log_prob(x).mean()) / 400
    assert before > 1
    assert 0 < float(kl.mean()) < 0.12
    assert student_nats == pytest.approx(own, rel=0.1)
    # And under the law that the teacher learnt from.
    assert -float(process.log_prob(x).mean()) / 400 == pytest.approx(process.entropy, abs=0.3)


def test_a_resumed_run_equals_an_uninterrupted_one(teacher: WaveNet, tmp_path: Path) -> None:
    process, config, weights = AutoregressiveNoise(300), Fit(max_steps=8, warmup_steps=3, ema=0.9), []
    for stops in ([], [4]):
        out = tmp_path / str(len(stops))
        for at in [*stops, 0]:
            torch.manual_seed(0)
            student = ParallelWaveNet(((1, 2),), residual=4, skip=4)
            student.learn_from(teacher)
            result = fit(student, Stopping(process.stream(2), at), out, config)
            assert (result.stopped, result.step) == (("SIGINT", 4) if at else (None, 8))
        found = load_newest(out)
        assert found is not None
        weights.append({name: value for name, value in found[0].items() if name.startswith(("model.", "ema."))})
    whole, resumed = weights
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


# ---- the one door ----------------------------------------------------------------------------------------------------

SMALL = ["--layers", "4", "--residual", "8", "--skip", "8", "--length", "300", "--batch-size", "4", "--threads", "1"]


def _png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 2000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "teacher"
    args = ["--data", "resonances", *SMALL, "--cycles", "1", "--max-steps", "120", "--lr", "1e-2", "--ema", "0.9"]
    assert main(["train", "wavenet", *args, "--out", str(out)]) == 0
    return out


def test_train_sample_evaluate_a_teacher(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _png(run / "samples.png")
    assert _png(run / "loss.png")
    x, rate = data.read_wav(run / "samples.wav")
    assert (len(x), rate) == (4 * 12_000, 8000)
    report = json.loads((run / "result.json").read_text())
    assert report["entropy_nats"] == pytest.approx(AutoregressiveNoise().entropy)
    assert 0 < report["gap_nats"] < 0.7
    assert report["test_nats"] == pytest.approx(report["entropy_nats"] + report["gap_nats"], abs=0.02)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--record", str(tmp_path / "models.jsonl")]) == 0
    assert json.loads(capsys.readouterr().out) == {k: pytest.approx(report[k]) for k in report if "nats" in k}
    assert json.loads((tmp_path / "models.jsonl").read_text())["model"] == "wavenet"
    out = tmp_path / "a.png"
    assert main(["sample", str(run), "--n", "2", "--seed", "3", "--temperature", "0.5", "--out", str(out)]) == 0
    assert _png(out)
    quiet = data.read_wav(tmp_path / "a.wav")[0]
    assert len(quiet) == 2 * 12_000
    assert 0 < float(quiet.std()) < 0.8 * float(x.std())
    # Neither picture nor sound is written over.
    for name, other in (("a.png", "a.wav"), ("a.wav", "a.png")):
        (tmp_path / other).unlink(missing_ok=True)
        before = (tmp_path / name).read_bytes()
        assert main(["sample", str(run), "--n", "1", "--out", str(out)]) == 1
        assert f"{tmp_path / name} exists; give another --out" in capsys.readouterr().err
        assert (tmp_path / name).read_bytes() == before
        assert main(["sample", str(run), "--n", "1", "--out", str(tmp_path / "b.png")]) == 0
        (tmp_path / "b.png").rename(tmp_path / "a.png")
        (tmp_path / "b.wav").rename(tmp_path / "a.wav")


def test_train_a_student(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "student"
    args = ["--data", "resonances", *SMALL, "--teacher", str(run), "--max-steps", "60", "--lr", "1e-2"]
    assert main(["train", "parallel-wavenet", *args, "--out", str(out)]) == 0
    report = json.loads((out / "result.json").read_text())
    assert {"test_kl_nats", "student_nats", "teacher_nats", "relative_difference"} <= set(report)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    first = next(line["kl"] for line in log if line["event"] == "train")
    assert report["test_kl_nats"] < 0.5 * first
    assert _png(out / "samples.png")
    assert len(data.read_wav(out / "samples.wav")[0]) == 4 * 12_000
    capsys.readouterr()
    assert main(["evaluate", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["test_kl_nats"] == pytest.approx(report["test_kl_nats"], rel=1e-4)


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Two speakers of three recordings."""
    folder = tmp_path / "sounds"
    for i, name in enumerate(("deep", "high")):
        (folder / name).mkdir(parents=True)
        for j in range(3):
            time = torch.arange(1600) / 8000
            tone = 0.5 * torch.sin(2 * math.pi * (150 + 600 * i + 20 * j) * time)
            data.write_wav(folder / name / f"{j}.wav", tone, 8000)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        ["--head", "categorical", "--one-hot"],
        ["--head", "mixture", "--components", "2", "--conditional"],
        ["--head", "gaussian", "--bands", "6", "--conditional"],
    ],
)
def test_recordings_from_a_folder(options: list[str], recordings: Path, tmp_path: Path) -> None:
    run, given = tmp_path / "run", ["--data", str(recordings), *SMALL]
    assert main(["train", "wavenet", *given, *options, "--cycles", "1", "--max-steps", "4", "--out", str(run)]) == 0
    assert _png(run / "samples.png")
    report = json.loads((run / "result.json").read_text())
    assert ("test_bits" in report) == ("gaussian" not in options)
    if "categorical" in options:
        return
    conditions = [o for o in options if o in ("--conditional", "--bands", "6")]
    student = [
        "train",
        "parallel-wavenet",
        *given,
        *conditions,
        "--teacher",
        str(run),
        "--max-steps",
        "2",
        "--vary",
        "0.2",
    ]
    assert main([*student, "--out", str(tmp_path / "student")]) == 0
    assert _png(tmp_path / "student" / "samples.png")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["wavenet", "--data", "banana"], "unknown sound 'banana'"),
        (["wavenet", "--data", "markov", "--head", "gaussian"], "markov has 16 levels, which a Gaussian has no"),
        (["wavenet", "--data", "markov", "--conditional"], "markov has no sub-folders to tell apart"),
        (["wavenet", "--data", "resonances", "--residual", "0"], "--residual must be 1 or more, got 0"),
        (["parallel-wavenet", "--data", "resonances"], "a student needs a teacher: give the folder of a WaveNet's run"),
        (
            ["parallel-wavenet", "--data", "resonances", "--teacher", "nowhere"],
            "nowhere is not a run: it has no config",
        ),
        (["parallel-wavenet", "--data", "markov", "--teacher", "RUN"], "must share their data and conditions, got"),
        (
            ["parallel-wavenet", "--data", "resonances", "--teacher", "RUN", "--vary", "0.1"],
            "--vary is of recordings, and resonances is a process",
        ),
    ],
)
def test_bad_options_are_one_clear_line(
    args: list[str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    args = [str(run) if a == "RUN" else a for a in args]
    assert main(["train", *args, "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("genmodels: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_recipes_survive_json() -> None:
    for name, recipe in {
        "wavenet": WaveNetRecipe(data="markov", layers=3, head="mixture", bands=4),
        "parallel-wavenet": ParallelWaveNetRecipe(data="resonances", teacher="runs/a", flows=3),
    }.items():
        assert recipe_of(name) is type(recipe)
        assert restore(type(recipe), json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe


def test_a_vocoder_follows_the_band_energies_it_is_told() -> None:
    """Tones come and go; samples told where are louder there, whatever their noise."""
    from genmodels.flows.wavenet.bands import BandEnergies

    torch.manual_seed(0)
    bands = BandEnergies(8000, 8)
    model = WaveNet((1, 2, 4), head="gaussian", residual=12, skip=12, bands=bands)
    generator = torch.Generator().manual_seed(1)
    loud = (torch.rand(120, 8, generator=generator) < 0.5).float().repeat_interleave(100, 1)
    x = loud * 0.3 * torch.randn(120, 800, generator=generator) + 0.005 * torch.randn(120, 800, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(80):
        optimizer.zero_grad()
        model.losses(Batch(x[(8 * step) % 112 :][:8]))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        drawn: Any = model.sample(8, 800, local=bands(x[112:]), key=1)
    inside = loud[112:] * (torch.nn.functional.avg_pool1d(loud[112:, None], 81, 1, 40)[:, 0] > 0.99)
    silent = torch.nn.functional.max_pool1d(loud[112:, None], 481, 1, 240)[:, 0] == 0
    assert int(inside.sum()) > 300
    assert int(silent.sum()) > 50
    assert float(drawn[inside.bool()].std()) > 5 * float(drawn[silent].std())
