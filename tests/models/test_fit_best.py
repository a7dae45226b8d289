"""The best weights of a run: kept by a figure, preferred afterwards, and the same after a resumption."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genmodels.data import DENSITIES, Batch
from genmodels.errors import CheckpointError, GenmodelsError
from genmodels.training import Best, Fit, Part, best_weights, fit, load_weights, read_log
from tests.streams import Stopping

BEST = Best("valid_gap", "min")


class _Passing(nn.Module):
    """A number that gradient descent carries past 0.5, where it is best, on to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(()))

    def losses(self, batch: Batch, *_: str) -> dict[str, Tensor]:
        return {"loss": (self.x - 1).square()}


def _gap(model: nn.Module) -> dict[str, float]:
    return {"valid_gap": abs(float(model.x.detach()) - 0.5), "valid_size": float(model.x.detach())}


def _fit(out: Path, best: Best | None = BEST, stop: int = 0, **options: object) -> _Passing:
    model = _Passing()
    config = {"max_steps": 40, "warmup_steps": 0, "clip": 0.0, "evaluations": 20, "schedule": "constant", **options}
    stream = Stopping(DENSITIES["ring"]().stream(4), stop)
    parts = {"all": Part(torch.optim.SGD(model.parameters(), 0.03))}
    fit(model, stream, out, Fit(**config), parts=parts, evaluate=_gap, best=best)
    return model


def test_the_best_weights_are_kept_and_preferred(tmp_path: Path) -> None:
    model = _fit(tmp_path)
    judged = [line for line in read_log(tmp_path / "log.jsonl") if line["event"] == "evaluate"]
    best = min(judged, key=lambda line: line["valid_gap"])
    assert 0 < judged.index(best) < len(judged) - 1, "neither the first nor the last"
    last = float(model.x.detach())
    assert load_weights(model, tmp_path) == best["step"]
    assert float(model.x.detach()) == pytest.approx(best["valid_size"], abs=1e-5)
    assert load_weights(model, tmp_path, "last") == 40
    assert float(model.x.detach()) == last
    found = best_weights(tmp_path)
    assert found is not None
    assert (found[1]["metric"], found[1]["step"]) == ("valid_gap", best["step"])
    assert found[1]["value"] == pytest.approx(best["valid_gap"], abs=1e-6)


def test_the_largest_may_be_the_best(tmp_path: Path) -> None:
    model = _fit(tmp_path, Best("valid_size", "max"))
    assert load_weights(model, tmp_path) == 40


def test_the_average_is_kept_where_it_is_judged(tmp_path: Path) -> None:
    model = _fit(tmp_path, ema=0.8)
    load_weights(model, tmp_path)
    judged = [line for line in read_log(tmp_path / "log.jsonl") if line["event"] == "evaluate"]
    best = min(judged, key=lambda line: line["valid_gap"])
    assert float(model.x.detach()) == pytest.approx(best["valid_size"], abs=1e-5)


@pytest.mark.parametrize("stop", [9, 25])
def test_a_resumed_run_keeps_what_an_uninterrupted_one_keeps(tmp_path: Path, stop: int) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    _fit(whole)
    _fit(cut, stop=stop)
    _fit(cut)
    left, right = best_weights(whole), best_weights(cut)
    assert left is not None
    assert right is not None
    assert all(torch.equal(left[0][name], right[0][name]) for name in left[0])
    assert (left[1]["step"], left[1]["value"]) == (right[1]["step"], right[1]["value"])


def test_a_new_run_forgets_the_best_of_an_old_one(tmp_path: Path) -> None:
    _fit(tmp_path)
    for path in tmp_path.glob("checkpoint-*"):
        path.unlink()
    _fit(tmp_path, None)
    assert best_weights(tmp_path) is None


def test_damaged_best_weights_are_noticed_and_the_last_are_used(tmp_path: Path) -> None:
    model = _fit(tmp_path)
    path = tmp_path / "best.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.warns(UserWarning, match=r"best\.safetensors is damaged.*the best weights of this run are lost"):
        assert load_weights(model, tmp_path) == 40
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        load_weights(model, tmp_path / "elsewhere")


def test_a_figure_that_is_not_a_number_beats_nothing() -> None:
    assert BEST.better(3.0, math.nan)
    assert not BEST.better(math.nan, math.nan)
    assert not BEST.better(math.nan, 3.0)
    assert BEST.better(2.0, 3.0)
    assert not BEST.better(3.0, 3.0)
    assert Best("x", "max").better(3.0, 2.0)


def test_a_figure_that_is_not_evaluated_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GenmodelsError, match="those of 'valid_beauty', evaluated were valid_gap, valid_size"):
        _fit(tmp_path, Best("valid_beauty"))


def test_a_constant_schedule_stays_after_its_warm_up_and_parts_are_told_of_updates(tmp_path: Path) -> None:
    model, calls = _Passing(), []
    optimizer = torch.optim.SGD(model.parameters(), 0.03)
    parts = {"all": Part(optimizer, 2, lambda: calls.append(float(model.x.detach())))}
    config = Fit(max_steps=10, warmup_steps=4, schedule="constant", lr=0.03, log_every=1)
    fit(model, DENSITIES["ring"]().stream(4), tmp_path, config, parts=parts)
    rates = [line["lr"] for line in read_log(tmp_path / "log.jsonl") if line["event"] == "train"]
    assert rates == pytest.approx([0.0075, 0.015, 0.0225] + [0.03] * 7)
    assert len(calls) == 20
    assert calls == sorted(set(calls)), "each after an update of its own"
    assert calls[-1] == float(model.x.detach())
