"""The command line, end to end on real 8x8 digits, and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from genmodels import cli
from genmodels.flows.recipe import RealNVPRecipe
from genmodels.recipe import restore
from genmodels.training import read_log

QUICK = ["--data", "digits", "--couplings", "2", "--widths", "8", "--tail", "2", "--hidden", "16", "--threads", "1"]


def _png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 150 steps."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert cli.main(["train", "realnvp", *QUICK, "--max-steps", "150", "--out", str(out)]) == 0
    return out


def test_a_run_learns_and_leaves_everything_behind(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    log = read_log(run / "log.jsonl")
    # 17 levels are 4.09 bits; independent Gaussian pixels, where the flow starts, about 3.
    start = next(line["loss"] for line in log if line["event"] == "train")
    assert result["test_bits_per_dim"] < 2.35
    assert result["test_bits_per_dim"] < start - 0.3
    assert result["step"] == 150
    assert sum(line["event"] == "evaluate" for line in log) == 10
    for name in ("samples.png", "interpolation.png", "loss.png"):
        width, height = _png_size(run / name)
        assert width > 300
        assert height > 300
    assert (run / "config.json").exists()
    assert list(run.glob("checkpoint-*.safetensors"))
    assert not list(run.glob("*.tmp"))


def test_evaluate_repeats_the_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(run)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["test_bits_per_dim"] == json.loads((run / "result.json").read_text())["test_bits_per_dim"]
    assert cli.main(["evaluate", str(run), "--split", "valid", "--backend", "reference"]) == 0
    on_reference = json.loads(capsys.readouterr().out)["valid_bits_per_dim"]
    last = [line for line in read_log(run / "log.jsonl") if line["event"] == "evaluate"][-1]
    assert on_reference == pytest.approx(last["valid_bits_per_dim"], abs=1e-4)


def test_sample_draws_and_does_not_overwrite(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "a.png"
    command = ["sample", str(run), "--n", "6", "--seed", "3", "--temperature", "0.7", "--out", str(out)]
    assert cli.main(command) == 0
    before = out.read_bytes()
    assert cli.main(command) == 1
    assert "exists; give another --out" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_the_same_command_again_says_the_budget_is_used_and_a_larger_one_continues(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "realnvp", *QUICK, "--out", str(run)]
    assert cli.main([*command, "--max-steps", "150"]) == 0
    said = capsys.readouterr().out
    assert "continuing realnvp on digits" in said
    assert "150 steps" in said
    assert "a larger one continues this run" in said
    log = (run / "log.jsonl").read_text()
    assert cli.main([*command, "--max-steps", "155"]) == 0
    assert json.loads((run / "result.json").read_text())["step"] == 155
    assert (run / "log.jsonl").read_text().startswith(log)


def test_other_options_in_the_same_folder_are_refused_and_change_nothing(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert cli.main(["train", "realnvp", *QUICK, "--lr", "0.5", "--max-steps", "200", "--out", str(run)]) == 1
    assert "with lr=0.01 where lr=0.5 was asked for: choose another folder" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_no_resume_takes_a_new_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "log.jsonl").read_bytes()
    assert cli.main(["train", "realnvp", *QUICK, "--max-steps", "2", "--out", str(run), "--no-resume"]) == 0
    assert f"training realnvp on digits in {run}-2" in capsys.readouterr().out
    assert (run / "log.jsonl").read_bytes() == before


def test_damaged_runs_are_explained(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", str(tmp_path)]) == 1
    assert f"{tmp_path} is not a run: it has no config.json" in capsys.readouterr().err
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    assert cli.main(["evaluate", str(tmp_path)]) == 1
    assert f"there is no checkpoint in {tmp_path}" in capsys.readouterr().err
    newest = max(run.glob("checkpoint-*.safetensors"))
    (tmp_path / newest.name).write_bytes(newest.read_bytes()[:-100])
    assert cli.main(["evaluate", str(tmp_path)]) == 1
    captured = capsys.readouterr().err
    assert captured.count("\n") == 1
    assert "is damaged" in captured
    (tmp_path / "config.json").write_text("{")
    assert cli.main(["sample", str(tmp_path)]) == 1
    assert "config.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["paint"], "unknown command 'paint'; expected list, train, sample or evaluate"),
        (["train", "gpt"], "unknown model 'gpt'; expected one of realnvp"),
        (["train", "realnvp", "--data", "mnist"], "unknown data set 'mnist'; expected one of mnist5k, digits"),
        (["train", "realnvp", "--data", "digits", "--backend", "tpu"], "unknown backend 'tpu'"),
        (
            ["train", "realnvp", "--data", "digits", "--scale-map", "cosh", "--max-steps", "1"],
            "scale_map must be one of",
        ),
        (["train", "realnvp", "--data", "digits", "--batch-size", "5000"], "batch_size must be between 1 and 1438"),
        (["evaluate", "nowhere", "--split", "train"], "--split must be test or valid, got 'train'"),
    ],
)
def test_bad_commands_are_one_clear_line(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(args) == 1
    captured = capsys.readouterr().err
    assert message in captured
    assert captured.startswith("genmodels: ")
    assert captured.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [(["--max-seconds", "None"], "give max_seconds or max_steps"), (["--colour", "red"], "--colour")],
)
def test_options_that_make_no_sense_are_usage_errors(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        cli.main(["train", "realnvp", *args])
    assert leaving.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_package_of_the_command_line_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert cli.main(["train", "realnvp"]) == 1
    assert capsys.readouterr().err == "genmodels: the command line needs tyro: pip install '.[models]'\n"


def test_list_names_models_and_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    said = capsys.readouterr().out
    for word in ("realnvp", "mnist5k", "digits", "fashion-mnist", "banana", "FOLDER"):
        assert word in said


def test_recipes_survive_json() -> None:
    recipe = RealNVPRecipe(data="moons", widths=(3, 4), alpha=0.01)
    import dataclasses

    assert restore(RealNVPRecipe, json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe


@pytest.mark.parametrize(("name", "options"), [("banana", ["--couplings", "6", "--hidden", "32"]), ("moons", [])])
def test_a_density_of_the_plane_is_learnt_to_a_tenth_of_a_nat(name: str, options: list[str], tmp_path: Path) -> None:
    """The gap is the divergence from the density to the flow, to within the noise of 20,000 test points (0.02)."""
    steps = "400" if name == "banana" else "900"
    command = ["train", "realnvp", "--data", name, *options, "--batch-size", "256", "--max-steps", steps]
    command += ["--max-seconds", "None", "--lr", "5e-3", "--ema", "0.99", "--out", str(tmp_path), "--threads", "1"]
    assert cli.main(command) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert -0.05 < result["gap_nats"] < 0.1
    _png_size(tmp_path / "samples.png")


def test_an_interrupted_command_saves_leaves_and_continues(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "genmodels",
        "train",
        "realnvp",
        *QUICK,
        "--max-steps",
        "100000",
        "--out",
        str(out),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    steps = []
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        deadline = time.monotonic() + 120
        log = out / "log.jsonl"
        before = log.read_text().count('"train"') if log.exists() else 0
        try:
            while not log.exists() or log.read_text().count('"train"') < before + 2:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            said, complained = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 128 + signal.SIGINT, complained
        assert "stopped by SIGINT at step" in said
        assert "Traceback" not in complained
        steps.append(read_log(log)[-1]["step"])
        assert read_log(log)[-1]["event"] == "stop"
    assert steps[1] > steps[0] > 0


def test_threads_are_the_users(run: Path) -> None:
    before = torch.get_num_threads()
    assert cli.main(["evaluate", str(run)]) == 0
    assert torch.get_num_threads() == before
