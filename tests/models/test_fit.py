"""The training loop: a resumed run is the uninterrupted one, bit for bit, and nothing written is ever lost."""

from __future__ import annotations

import copy
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genmodels import data
from genmodels.data import DENSITIES, Batch
from genmodels.errors import CheckpointError, GenmodelsError
from genmodels.flows import RealNVP
from genmodels.training import Fit, Part, fit, load_weights, read_log
from genmodels.training import checkpoint as ckpt


def _flow() -> RealNVP:
    torch.manual_seed(0)
    return RealNVP((1, 8, 8), levels=17, hidden=32, couplings=3, flat=True, dropout=0.1)


def _stream() -> data.Shuffled:
    return data.digits().stream(32, seed=5, shift=1)


def _fit(out: Path, steps: int, **options: object) -> RealNVP:
    """Train to ``steps`` of a schedule that is 24 steps long."""
    flow = _flow()
    config = {"max_steps": 24, "lr": 3e-3, "warmup_steps": 4, "ema": 0.9, **options}
    halt = _StopAfter(_stream(), steps)
    fit(flow, halt, out, Fit(**config))
    return flow


class _StopAfter:
    """A stream that asks the process to stop when it gives its last batch, as a user or a scheduler would."""

    def __init__(self, stream: data.Shuffled, steps: int) -> None:
        self.stream, self.left = stream, steps
        self.state_dict, self.load_state_dict = stream.state_dict, stream.load_state_dict

    def __iter__(self) -> _StopAfter:
        return self

    def __next__(self) -> Batch:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return next(self.stream)


@pytest.mark.parametrize(
    "options", [{}, {"accumulate": 2, "precision": "bfloat16", "clip": 0.0}], ids=["plain", "all on"]
)
def test_a_resumed_run_equals_an_uninterrupted_one_bitwise(tmp_path: Path, options: dict[str, object]) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    _fit(whole, 10**9, **options)
    batches = 1 + int(options.get("accumulate", 1) != 1)
    for steps in (7, 9):
        _fit(cut, steps * batches, **options)
    assert ckpt.load_newest(cut)[1]["step"] == 16
    _fit(cut, 10**9, **options)
    (left, left_state, _), (right, right_state, _) = ckpt.load_newest(whole), ckpt.load_newest(cut)
    assert left.keys() == right.keys()
    assert {name.split(".")[0] for name in left} == {"model", "ema", "optimizer", "rng"}
    for name in left:
        assert torch.equal(left[name], right[name]), name
    assert left_state["stream"] == right_state["stream"]
    curves = [[x["loss"] for x in read_log(run / "log.jsonl") if x["event"] == "train"] for run in (whole, cut)]
    assert curves[0] == curves[1]


def test_a_finished_run_is_left_as_it_is_and_a_larger_budget_continues_it(tmp_path: Path) -> None:
    _fit(tmp_path, 10**9)
    before = {path.name: path.read_bytes() for path in ckpt.checkpoints(tmp_path)}
    flow = _fit(tmp_path, 10**9)
    assert {path.name: path.read_bytes() for path in ckpt.checkpoints(tmp_path)} == before
    assert torch.equal(flow.transform.steps[1].shift, ckpt.load_newest(tmp_path)[0]["model.transform.steps.1.shift"])
    result = fit(_flow(), _stream(), tmp_path, Fit(max_steps=30, lr=3e-3, warmup_steps=4, ema=0.9))
    assert (result.step, result.stopped) == (30, None)


def test_the_average_is_what_gets_evaluated_and_loaded(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        assert not model.training
        torch.rand(3)
        seen.append(model.transform.steps[1].shift.clone())
        return {"figure": 1.0}

    flow = _flow()
    result = fit(flow, _stream(), tmp_path, Fit(max_steps=20, lr=1e-2, ema=0.9, evaluations=4), evaluate=evaluate)
    assert [line["step"] for line in result.history] == [5, 10, 15, 20]
    stored, _, _ = ckpt.load_newest(tmp_path)
    average, last = stored["ema.transform.steps.1.shift"], stored["model.transform.steps.1.shift"]
    assert not torch.equal(average, last)
    assert torch.equal(seen[-1], average)
    assert torch.equal(flow.transform.steps[1].shift, last)
    assert load_weights(flow, tmp_path) == 20
    assert torch.equal(flow.transform.steps[1].shift, average)
    # Evaluating draws random numbers of its own: the training must not notice.
    other = tmp_path / "unwatched"
    fit(_flow(), _stream(), other, Fit(max_steps=20, lr=1e-2, ema=0.9))
    assert torch.equal(ckpt.load_newest(other)[0]["model.transform.steps.1.shift"], last)


def test_the_learning_rate_warms_up_and_falls_to_zero(tmp_path: Path) -> None:
    _fit(tmp_path, 10**9, log_every=1)
    rates = [line["lr"] for line in read_log(tmp_path / "log.jsonl") if line["event"] == "train"]
    assert len(rates) == 24
    assert rates[0] == pytest.approx(3e-3 / 4, rel=1e-3)
    assert max(rates) == pytest.approx(3e-3 * 0.5 * (1 + 0.9239), rel=0.02)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] < 2e-5


def test_a_time_budget_ends_the_run(tmp_path: Path) -> None:
    began = time.monotonic()
    result = fit(_flow(), _stream(), tmp_path, Fit(max_seconds=1.0))
    assert result.stopped is None
    assert 1.0 <= result.seconds < 1.0 + (time.monotonic() - began)
    again = fit(_flow(), _stream(), tmp_path, Fit(max_seconds=1.0))
    assert again.step == result.step, "time used before counts"


class _Game(nn.Module):
    """Two parts pulling on each other: ``a`` towards ``b``, ``b`` towards 3."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.calls: list[str] = []

    def losses(self, batch: Batch, part: str) -> dict[str, Tensor]:
        self.calls.append(part)
        assert self.a.requires_grad == (part == "follower")
        assert self.b.requires_grad == (part == "leader")
        loss = (self.a - self.b).square() if part == "follower" else (self.b - 3).square() + 0 * self.a
        return {"loss": loss, "distance": (self.a - self.b).detach().abs()}


def test_several_optimizers_take_turns_each_on_its_own_parameters(tmp_path: Path) -> None:
    game = _Game()
    parts = {
        "leader": Part(torch.optim.SGD([game.b], 0.2)),
        "follower": Part(torch.optim.Adam([game.a], 0.3), updates=2),
    }
    fit(game, DENSITIES["ring"]().stream(4), tmp_path, Fit(max_steps=60, warmup_steps=0, clip=0.0), parts=parts)
    assert game.calls[:6] == ["leader", "follower", "follower"] * 2
    assert abs(game.b.item() - 3) < 0.05
    assert abs(game.a.item() - game.b.item()) < 0.1
    assert game.a.requires_grad
    line = read_log(tmp_path / "log.jsonl")[-1]
    assert {"leader.loss", "follower.loss", "follower.distance"} <= line.keys()
    again = _Game()
    fit(
        again,
        DENSITIES["ring"]().stream(4),
        tmp_path,
        Fit(max_steps=60, warmup_steps=0, clip=0.0),
        parts={"leader": Part(torch.optim.SGD([again.b], 0.2)), "follower": Part(torch.optim.Adam([again.a], 0.3))},
    )
    assert (again.a.item(), again.b.item()) == (game.a.item(), game.b.item())


class _Broken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.count = nn.Parameter(torch.ones(())), 0

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        self.count += 1
        return {"loss": self.weight * (torch.nan if self.count > 5 else 1.0)}


def test_a_loss_that_stays_nan_stops_the_run_and_spares_the_weights(tmp_path: Path) -> None:
    model = _Broken()
    with pytest.raises(GenmodelsError, match="has not been finite for 20 updates"):
        fit(model, DENSITIES["ring"]().stream(4), tmp_path, Fit(max_steps=100))
    assert model.count == 25
    assert bool(model.weight.isfinite())


def test_damaged_checkpoints_are_noticed_and_the_one_before_is_used(tmp_path: Path) -> None:
    tensors = {"model.x": torch.arange(1000.0)}
    first = ckpt.save_step(tmp_path, 1, tensors, {"step": 1})
    second = ckpt.save_step(tmp_path, 2, tensors, {"step": 2})
    good = second.read_bytes()
    flipped = bytearray(good)
    flipped[-2000] ^= 1
    for damage in (bytes(flipped), good[: len(good) // 2], b"", b"nonsense" * 9, good.replace(b'"step', b'"stop', 1)):
        second.write_bytes(damage)
        with pytest.raises(CheckpointError, match=r"checkpoint .*00000002\.safetensors is damaged"):
            ckpt.load(second)
        with pytest.warns(UserWarning, match=r"00000002\.safetensors is damaged.*going back to checkpoint-00000001"):
            _, state, path = ckpt.load_newest(tmp_path)
        assert (state["step"], path) == (1, first)
    first.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"00000002.*damaged.*00000001.*damaged"):
        ckpt.load_newest(tmp_path)
    assert ckpt.load_newest(tmp_path / "empty") is None


def test_a_new_checkpoint_never_drops_itself_or_the_one_before(tmp_path: Path) -> None:
    for step in (1, 2, 9):
        ckpt.save_step(tmp_path, step, {"x": torch.zeros(1)}, {"step": step})
    assert [path.name[-6 - 7 : -12] for path in ckpt.checkpoints(tmp_path)] == ["9", "2"]
    # 9 turned out damaged and the run went back to 2.
    ckpt.save_step(tmp_path, 3, {"x": torch.zeros(1)}, {"step": 3})
    assert [path.name[-6 - 7 : -12] for path in ckpt.checkpoints(tmp_path)] == ["9", "3", "2"]


def test_optimizer_state_survives_the_trip() -> None:
    weight = nn.Parameter(torch.randn(3))
    for make in (lambda: torch.optim.AdamW([weight], 0.1, amsgrad=True), lambda: torch.optim.SGD([weight], 0.1, 0.9)):
        optimizer = make()
        weight.grad = torch.randn(3)
        optimizer.step()
        tensors, rest = ckpt.pack_optimizer("o", copy.deepcopy(optimizer.state_dict()))
        restored = make()
        restored.load_state_dict(ckpt.unpack_optimizer("o", tensors, json.loads(json.dumps(rest))))
        before = weight.detach().clone()
        optimizer.step()
        expected = weight.detach().clone()
        weight.data.copy_(before)
        restored.step()
        assert torch.equal(weight.detach(), expected)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    options = {"max_steps": 2}
    fit(_flow(), _stream(), tmp_path, Fit(**options), fingerprint={"model": "a", "widths": (1, 2)})
    fit(_flow(), _stream(), tmp_path, Fit(**options), fingerprint={"model": "a", "widths": (1, 2)})
    with pytest.raises(CheckpointError, match=r"with model='a' where model='b' was asked for: choose another folder"):
        fit(_flow(), _stream(), tmp_path, Fit(**options), fingerprint={"model": "b", "widths": (1, 2)})
    with pytest.raises(CheckpointError, match="does not fit this model"):
        fit(RealNVP((1, 8, 8), levels=17, hidden=16, flat=True), _stream(), tmp_path, Fit(**options),
            fingerprint={"model": "a", "widths": (1, 2)})  # fmt: skip


def test_read_log_is_the_history_without_the_detours(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [("start", 0), ("train", 1), ("train", 2), ("train", 3), ("resume", 1), ("train", 2)]
    text = "".join(json.dumps({"event": event, "step": step, "n": i}) + "\n" for i, (event, step) in enumerate(lines))
    path.write_text(text + '{"event": "tra')
    assert [(line["event"], line["n"]) for line in read_log(path)] == [
        ("start", 0),
        ("train", 1),
        ("resume", 4),
        ("train", 5),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give max_seconds or max_steps"),
        ({"max_steps": 1, "ema": 1.0}, r"ema must be in \[0, 1\), got 1.0"),
        ({"max_steps": 1, "accumulate": 0}, "accumulate must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_explained(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fit(**options)


_WORKER = """
import sys, torch
from pathlib import Path
from genmodels.data import DENSITIES
from genmodels.flows import RealNVP
from genmodels.training import Fit, fit
torch.set_num_threads(1)
flow = RealNVP(2, hidden=256, couplings=6)
fit(flow, DENSITIES["ring"]().stream(16), Path(sys.argv[1]), Fit(max_steps=10**6, checkpoint_seconds=0.0))
"""


def test_kill_9_at_any_moment_leaves_an_intact_checkpoint(tmp_path: Path) -> None:
    """A process that does little but write checkpoints is killed again and again; every time the newest is whole."""
    step = 0
    for attempt in range(3):
        worker = subprocess.Popen([sys.executable, "-c", _WORKER, str(tmp_path)])
        deadline = time.monotonic() + 120
        try:
            while not (found := ckpt.checkpoints(tmp_path)) or int(found[0].name[11:19]) < step + 4:
                assert worker.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(0.003 * attempt)
        finally:  # or it would go on for a million steps beside the other tests
            worker.kill()
            worker.wait()
        _, state, path = ckpt.load_newest(tmp_path)
        assert path == ckpt.checkpoints(tmp_path)[0], "none is damaged"
        assert state["step"] >= step + 4, "the next process went on from the last"
        step = state["step"]


def test_torchrun_processes_stay_equal_and_share_the_data(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        """
import os, sys, torch
from pathlib import Path
from genmodels import data
from genmodels.flows import RealNVP
from genmodels.training import Fit, fit
torch.set_num_threads(1)
torch.manual_seed(0)
flow = RealNVP((1, 8, 8), levels=17, hidden=32, couplings=3, flat=True)
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
out = Path(sys.argv[1])
for steps in (4, 8):
    stream = data.digits().stream(16, seed=5, rank=rank, world=world)
    result = fit(flow, stream, out, Fit(max_steps=steps, accumulate=2, device="cpu"))
torch.save([p.detach() for p in flow.parameters()], out / f"weights-{rank}.pt")
"""
    )
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = (torch.load(out / f"weights-{rank}.pt") for rank in range(2))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    tensors, state, _ = ckpt.load_newest(out)
    assert (state["step"], state["world"]) == (8, 2)
    assert not torch.equal(tensors["rng.0.cpu"], tensors["rng.1.cpu"]), "each process has noise of its own"
    assert any(not torch.equal(a, b.detach()) for a, b in zip(ours, _flow().parameters(), strict=True))


FREED = """
import resource, sys, torch
from pathlib import Path
from genmodels.data import DENSITIES
from genmodels.flows import RealNVP
from genmodels.training import Fit, fit
if sys.argv[1] == "after a fit":
    fit(RealNVP(2, hidden=8, couplings=2), DENSITIES["ring"]().stream(16), Path(sys.argv[2]), Fit(max_steps=1))
def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        held = [torch.zeros(1 << 20) for _ in range(6)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(3)
print(faults(10))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone it is known")
def test_a_run_keeps_the_memory_that_a_step_frees(tmp_path: Path) -> None:
    """24 MiB are 6,144 pages, which most processes without a run take from the system again and again."""
    faults = {}
    for when in ("alone", "after a fit"):
        command = [sys.executable, "-c", FREED, when, str(tmp_path / "run")]
        faults[when] = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert faults["after a fit"] < 100
    if faults["alone"] < 1000:
        pytest.skip("here a process keeps its memory without being asked to")
