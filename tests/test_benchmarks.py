"""The benchmark harness: it refuses what is wrong, and what it prints is what it measured."""

from __future__ import annotations

import dataclasses
import json
import math
import sys

import pytest
import torch

from benchmarks import check, clock, compare, harness, memory, report
from benchmarks.__main__ import main
from benchmarks.case import (
    Case,
    Inputs,
    Missing,
    Program,
    Provider,
    Refused,
    Setting,
    cases,
    differentiate,
    leaf,
    plain,
)


def _square(x):
    return (x * x, x.sum(dim=1))


def _inputs(setting):
    normal = setting.stream()
    return Inputs({"x": normal(5, 7)}, (normal(5, 7), normal(5)))


def _provider(name, function, **more):
    return Provider(name, lambda inputs, mode: plain(function, [leaf(inputs["x"])]), **more)


class _HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return ctx.saved_tensors[0] * grad


GOOD = _provider("gmkernels", _square)
CASE = Case(
    family="coupling",
    name="square",
    shape="5 x 7",
    inputs=_inputs,
    truth=lambda inputs, maths, mode: differentiate(_square, [inputs["x"]], inputs, mode),
    providers=[GOOD, _provider("eager", _square)],
    elements={"fwd": 70},
    flops={"fwd+bwd": 70},
)
QUICK = harness.Options(seconds=0.01, repeats=2, memory=False)


def _run(*providers, mode="fwd", options=QUICK):
    return harness.run(dataclasses.replace(CASE, providers=[GOOD, *providers]), mode, options)


WRONG = {
    "a wrong value": ("fwd", lambda x: (x * x * 1.0001, x.sum(dim=1)), "wrong: error"),
    "one wrong element": (
        "fwd",
        lambda x: ((x * x).index_fill(0, torch.tensor([3]), 0.0), x.sum(dim=1)),
        "wrong: error",
    ),
    "a NaN": ("fwd", lambda x: (x * x, x.sum(dim=1) * float("nan")), "wrong: error inf"),
    "a wrong shape": ("fwd", lambda x: (x * x, x.sum(dim=1, keepdim=True)), "has shape (5, 1), expected (5,)"),
    "a missing output": ("fwd", lambda x: (x * x,), "1 results, expected 2"),
    "a wrong gradient": ("fwd+bwd", lambda x: (_HalfGradient.apply(x), x.sum(dim=1)), "wrong: error"),
    "an exception": ("fwd", lambda x: x.no_such_method(), "failed: AttributeError"),
}


@pytest.mark.parametrize(("mode", "function", "reason"), WRONG.values(), ids=WRONG)
def test_a_wrong_provider_gets_a_reason_and_no_speed(mode, function, reason):
    right, wrong = _run(_provider("other", function), mode=mode)
    assert right["p50_ms"] > 0
    assert right["reason"] is None
    assert reason in wrong["reason"]
    assert wrong["p20_ms"] is wrong["p50_ms"] is wrong["p80_ms"] is None
    assert wrong["ratios"] == right["ratios"] == {}
    assert "ms" not in report._factor(wrong)
    json.dumps(wrong, allow_nan=False)


def test_of_several_variants_the_fastest_right_one_counts():
    def slow(x):
        for _ in range(300):
            x.exp()
        return _square(x)

    def build(inputs, mode):
        x = leaf(inputs["x"])
        functions = {"slow": slow, "wrong": lambda x: (x, x), "fast": _square}
        return {name: lambda f=function: plain(f, [x]) for name, function in functions.items()}

    _, row = _run(Provider("other", build))
    assert row["variant"] == "fast"
    assert row["reason"] is None
    assert row["error"] < 1e-6


def test_a_missing_package_is_no_row_unless_it_was_asked_for(capsys):
    def missing(inputs, mode):
        raise Missing("nowhere is not installed; pip install '.[peers]'")

    rows = _run(Provider("nowhere", missing))
    assert [row["provider"] for row in rows] == ["gmkernels"]
    assert "pip install '.[peers]'" in capsys.readouterr().err
    with pytest.raises(Missing, match="peers"):
        _run(Provider("nowhere", missing), options=dataclasses.replace(QUICK, providers=["nowhere"]))


def test_a_peer_that_cannot_be_imported_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "zuko.transforms", None)
    arguments = ["run", "coupling:realnvp-512x784", "--providers", "zuko", "--mode", "fwd", "--seconds", "0"]
    assert main(arguments) == 2
    assert "pip install '.[peers]'" in capsys.readouterr().err


def test_what_does_not_fit_is_not_started():
    def never(inputs, mode):
        raise AssertionError("was built")

    def refuse(inputs, mode):
        raise Refused("no kernel")

    _, large, refused = _run(Provider("large", never, needs=lambda mode: 1 << 60), Provider("refused", refuse))
    assert large["reason"].startswith("not run: needs about")
    assert refused["reason"] == "not run: no kernel"


def test_a_row_has_its_fields_and_they_fit_each_other():
    first, second = _run(_provider("eager", _square), _provider("peer", _square, maths="exp"))[:2]
    assert first["run"] == second["run"]
    assert first["p20_ms"] <= first["p50_ms"] <= first["p80_ms"]
    assert first["repeats"] >= 2
    assert first["ratios"] == {"eager": second["p50_ms"] / first["p50_ms"]}
    assert first["input_bytes"] == 5 * 7 * 4
    assert first["counted_bytes"] == 70 * 4
    seconds = first["p50_ms"] / 1e3
    assert first["copy_share"] == pytest.approx(280 / seconds / (first["copy_gbps"] * 1e9))
    assert {"cpu", "isa", "gpu", "threads", "torch", "triton", "cuda", "gmkernels", "sha", "dirty", "time"} <= set(
        first["environment"]
    )
    (gradient,) = _run(mode="fwd+bwd")
    assert gradient["gemm_share"] == pytest.approx(70 / (gradient["p50_ms"] / 1e3) / (gradient["gemm_gflops"] * 1e9))


def test_contestants_share_the_time_and_all_get_their_samples(monkeypatch):
    """On a clock of its own, which only the calls advance."""
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])

    def contestant(milliseconds):
        return clock.Contestant(lambda: now.__setitem__(0, now[0] + milliseconds / 1e3))

    fast, slow = contestant(2.1), contestant(40)
    clock.race(clock.Clock("cpu"), [fast, slow], seconds=0.3, repeats=3)
    assert len(slow.seconds) >= 3
    assert len(fast.seconds) > 2 * len(slow.seconds)
    assert fast.quantile(0.5) == pytest.approx(2.1e-3) and slow.quantile(0.0) == pytest.approx(40e-3)


def test_short_calls_are_repeated_until_a_sample_is_long_enough():
    class Steady(clock.Clock):
        """A machine on which every call takes 2^-20 seconds."""

        def sample(self, contestant: clock.Contestant) -> float:
            super().sample(contestant)
            return 2.0**-20

    counted: list[None] = []
    contestant = clock.Contestant(lambda: counted.append(None))
    clock.race(Steady("cpu"), [contestant], seconds=0.01, repeats=2)
    assert contestant.calls == math.ceil(clock.SAMPLE_SECONDS * 2**20) == 2098
    assert contestant.quantile(0.5) == 2.0**-20
    assert len(counted) >= contestant.calls * len(contestant.seconds)


def test_cold_cache_needs_a_gpu():
    with pytest.raises(ValueError, match="--device cuda"):
        clock.Clock("cpu", cold=True)


def test_the_quantiles_interpolate():
    contestant = clock.Contestant(lambda: None, seconds=[4.0, 1.0, 3.0, 2.0])
    assert [contestant.quantile(q) for q in (0.0, 0.5, 0.8, 1.0)] == pytest.approx([1.0, 2.5, 3.4, 4.0])


def test_peak_memory_sees_what_a_call_allocates():
    (case,) = cases(["minibatch:64x50x5"])
    peaks = memory.cpu(case, "fwd+bwd", Setting(), [("eager", None), ("cdist", None)])
    pairs = 64 * 64 * 50 * 4
    assert 10 * pairs < peaks["eager"] < 25 * pairs  # the difference and its absolute value, 5 numbers a pair each
    assert 2 * pairs < peaks["cdist"] < 6 * pairs


def test_every_provider_of_the_real_cases_is_right_where_it_runs():
    small = ("coupling:realnvp-512x784", "coupling:planar-k32-d2-4096", "minibatch:64x50x5", "overhead:call-8")
    seen = set()
    for case in cases(small):
        for mode in case.modes:
            inputs = case.inputs(Setting())
            for provider in case.providers:
                if provider.name.startswith("compile") or mode not in provider.modes:
                    continue
                try:
                    program = provider.build(inputs, mode)
                except (Missing, Refused):
                    continue
                assert isinstance(program, Program)
                call, records = check.runner(program, inputs, mode)
                with torch.set_grad_enabled(records):
                    results = check.canonical(program, call(), mode)
                error = check.error(results, case.truth(inputs, provider.maths, mode))
                assert check.reason_if_wrong(error, torch.float32) is None, f"{case.id} {mode} {provider.key}: {error}"
                seen.add(provider.name)
    assert {"gmkernels", "eager", "cdist"} <= seen


def test_list_names_all_cases(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for case in cases():
        assert case.id in out
    assert len({case.id for case in cases()}) == len(cases())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "coupling:nothing"], "unknown case 'coupling:nothing'"),
        (["run", "minibatch", "--providers", "nobody"], "unknown provider 'nobody'"),
        (["run", "minibatch", "--mode", "inverse"], "no selected case has the mode inverse"),
        (["run", "minibatch:64x50x5", "--providers", "eager+graph"], "--device cuda"),
        (["report", "no/such/file.jsonl"], "does not exist"),
        (["compare", "no-such-revision", "minibatch"], "git rev-parse"),
    ],
)
def test_a_wrong_command_gets_one_clear_sentence(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_rows_become_the_readme_and_a_second_time_changes_nothing(tmp_path, capsys):
    file, readme, plot = tmp_path / "rows.jsonl", tmp_path / "README.md", tmp_path / "docs" / "speed.png"
    run = ["run", "minibatch:64x50x5", "--providers", "gmkernels,eager,cdist", "--mode", "fwd", "--no-memory"]
    for _ in range(2):
        assert main([*run, "--seconds", "0.02", "--repeats", "2", "--json", str(file)]) == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 6  # appended, not replaced

    readme.write_text(f"# Title\n\nbefore\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n")
    arguments = ["report", str(file), "--readme", str(readme), "--plot", str(plot)]
    assert main(arguments) == 0
    first = readme.read_text()
    assert main(arguments) == 0
    assert readme.read_text() == first
    assert first.startswith("# Title\n\nbefore\n")
    assert first.endswith("\n\nafter\n")
    assert "old" not in first
    assert "(docs/speed.png)" in first
    assert plot.read_bytes().startswith(b"\x89PNG")
    ours, eager = rows[3], rows[4]  # the later run
    assert f"{ours['p50_ms']:.3g} ms" in first
    assert f"{eager['p50_ms'] / ours['p50_ms']:.1f}x" in first

    apart = tmp_path / "apart" / "README.md"
    apart.parent.mkdir()
    apart.write_text(first)
    assert main(["report", str(file), "--readme", str(apart), "--plot", str(plot)]) == 2
    assert "can only show a picture below" in capsys.readouterr().err
    assert apart.read_text() == first

    readme.write_text("no markers")
    assert main(arguments) == 2
    assert "expected the lines" in capsys.readouterr().err
    assert readme.read_text() == "no markers"
    file.write_text(file.read_text() + "{}\n")
    assert main(["report", str(file)]) == 2
    assert "rows.jsonl:7 is not a row" in capsys.readouterr().err


def test_compare_takes_the_median_of_the_rounds():
    def row(milliseconds, **more):
        names = {"family": "f", "case": "c", "mode": "fwd", "provider": "gmkernels", "maths": "", **more}
        return {**names, "p50_ms": milliseconds}

    table = compare.table([row(1.0), row(2.0), row(3.0)], [row(8.0), row(None)], "0123456789abcdef")
    assert "| f:c | fwd | gmkernels | 8 | 2 | 4 |" in table
    assert "0123456789, ms" in table
