"""The one door: ``genmodels list | train MODEL | sample RUN | evaluate RUN``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch

import gmkernels as gmk

from .errors import CheckpointError, GenmodelsError, at_least, need
from .recipe import Recipe, restore
from .record import append
from .registry import MODELS, recipe_of

USAGE = """\
genmodels list                        what models and data there are
genmodels train MODEL [options]       train, or continue the run in --out; then report on the test data
genmodels sample RUN [options]        draw samples of a trained model
genmodels evaluate RUN [options]      its figures on the test data
genmodels COMMAND --help              all options (of train: genmodels train MODEL --help)"""

R = TypeVar("R", bound=Recipe)


@dataclass(frozen=True, kw_only=True)
class Train(Generic[R]):
    """Train a model and report on the test data. The same command again continues a stopped run."""

    recipe: R
    out: Path | None = None
    """Folder of the run; runs/MODEL-DATA if not given."""
    resume: bool = True
    """Continue the run in --out if there is one. With --no-resume a new run gets a new folder beside it."""
    backend: str = "auto"
    """gmkernels backend: auto, reference, cpu, triton or cuda."""
    threads: int | None = None
    """CPU threads; torch's default if not given."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Draw samples of a trained model."""

    run: Path
    """Folder of the run; may be given first, without --run."""
    out: Path | None = None
    """The picture; RUN/samples-SEED.png if not given. An existing file is not overwritten."""
    n: int = 96
    """Samples; of a model that is told classes, about so many, a column for each class."""
    seed: int = 0
    temperature: float = 1.0
    """Scale of the latent noise: below 1, likelier and less varied samples."""
    weights: Literal["best", "last"] = "best"
    """Of a run that kept its best weights, these or its last."""
    backend: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Print a trained model's figures as one line of JSON."""

    run: Path
    """Folder of the run; may be given first, without --run."""
    split: str = "test"
    """test or valid."""
    record: Path | None = None
    """Append the figures, with the run's options and the versions they were made with, to this JSON-lines file."""
    weights: Literal["best", "last"] = "best"
    """Of a run that kept its best weights, these or its last."""
    backend: str = "auto"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code. What a user can act on is one line on stderr and code 1."""
    args = list(sys.argv[1:] if argv is None else argv)
    command, rest = (args[0], args[1:]) if args else ("--help", [])
    try:
        with _plain_warnings():
            if command in ("--help", "-h"):
                print(USAGE)
                return 0
            if command == "list":
                return _list()
            if command == "train":
                return _train(rest)
            if command == "sample":
                return _sample(_parse(Sample, _named(rest), "genmodels sample"))
            if command == "evaluate":
                return _evaluate(_parse(Evaluate, _named(rest), "genmodels evaluate"))
        raise GenmodelsError(f"unknown command {command!r}; expected list, train, sample or evaluate")
    except (GenmodelsError, gmk.BackendError, ValueError, OSError) as error:
        print(f"genmodels: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    before = warnings.showwarning
    warnings.showwarning = lambda message, *_, **__: print(f"genmodels: warning: {message}", file=sys.stderr)
    try:
        yield
    finally:
        warnings.showwarning = before


def _parse(kind: Any, args: list[str], prog: str) -> Any:
    tyro = need("tyro", "the command line")
    return tyro.cli(kind, args=args, prog=prog, config=(tyro.conf.OmitArgPrefixes,))


def _named(args: list[str]) -> list[str]:
    """A leading RUN written as ``--run RUN``."""
    return ["--run", *args] if args and not args[0].startswith("-") else args


def _list() -> int:
    from .data import DENSITIES, IMAGES, SOUNDS

    rows = [(f"  {name}", recipe_of(name).summary) for name in MODELS]
    print("models")
    _table(rows)
    print("data: images")
    _table([*((f"  {name}", _first_line(load)) for name, load in IMAGES.items()), ("  FOLDER", "pictures in a folder")])
    print("data: densities of the plane, and tables for flows")
    _table([*((f"  {name}", _first_line(density)) for name, density in DENSITIES.items()), ("  TABLE.npy", _TABLE)])
    print("data: sound")
    _table(
        [*((f"  {name}", _first_line(load)) for name, load in SOUNDS.items()), ("  FOLDER", "WAV files in a folder")]
    )
    return 0


_TABLE = "rows of numbers; or a folder with train.npy, valid.npy and test.npy; or a file of POWER, GAS, HEPMASS, ..."


def _first_line(documented: Any) -> str:
    return " ".join((documented.__doc__ or "").split("\n\n")[0].split())


def _table(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows) + 2
    for name, text in rows:
        print(f"{name:<{width}}{text}")


def _train(args: list[str]) -> int:
    from .training import load_weights, read_log
    from .training.checkpoint import checkpoints, contents, write_atomically
    from .training.distributed import local_device

    if not args or args[0].startswith("-"):
        print(f"genmodels train MODEL [options]\nmodels: {', '.join(MODELS)}")
        return 0 if args else 1
    model_name = args[0]
    options: Train[Recipe] = _parse(Train[recipe_of(model_name)], args[1:], f"genmodels train {model_name}")  # type: ignore[misc]
    recipe = options.recipe
    recipe.check()
    at_least("threads", options.threads, 1)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    out = options.out or Path("runs") / f"{model_name}-{Path(recipe.data).name}"
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not options.resume:
        out = _unused(out)
    say = print if rank == 0 else (lambda *_: None)
    with gmk.use_backend(options.backend):
        local_device(recipe.fit.device)
        dataset = recipe.dataset()
        torch.manual_seed(recipe.fit.seed)
        model = recipe.build(dataset)
        continuing = bool(checkpoints(out)) if out.is_dir() else False
        say(f"{'continuing' if continuing else 'training'} {model_name} on {recipe.data} in {out}")
        say(f"{sum(p.numel() for p in model.parameters()):,} parameters; kernels: {_backends()}")
        config = {"model": model_name, "recipe": dataclasses.asdict(recipe), "version": gmk.__version__}

        def record() -> None:
            write_atomically(out / "config.json", (json.dumps(config, indent=1) + "\n").encode())

        if rank == 0 and not continuing:
            out.mkdir(parents=True, exist_ok=True)
            record()
        fingerprint = {"model": model_name, "data_contents": contents(dataset)} | recipe.fingerprint()
        result = recipe.train(model, dataset, out, rank=rank, world=world, fingerprint=fingerprint)
        if rank:
            return 0
        # Only now: a refused checkpoint must leave the description of its run alone.
        record()
        if result.stopped:
            print(f"stopped by {result.stopped} at step {result.step}; the same command continues from there")
            return 128 + getattr(signal, result.stopped, signal.SIGTERM)
        _say_weights(out, load_weights(model, out))
        figures, files = recipe.report(model, dataset, out, read_log(out / "log.jsonl"))
    summary = {"step": result.step, "seconds": round(result.seconds, 1), **figures}
    write_atomically(out / "result.json", (json.dumps(summary, indent=1) + "\n").encode())
    print(f"budget used: {result.step} steps in {result.seconds:.0f} s (a larger one continues this run)")
    for name, value in figures.items():
        print(f"{name.replace('_', ' ').replace('bits per dim', 'bits/dim'):<27} {value:.4f}")
    if judge := recipe.judged_by(model, dataset, "test"):
        print(f"judged by {judge}")
    print("wrote " + ", ".join(str(path) for path in files))
    return 0


def _say_weights(run: Path, step: int) -> None:
    """Which weights are used, where a run kept better ones than its last."""
    from .training import best_weights

    if (found := best_weights(run)) and found[1]["step"] == step:
        state = found[1]
        print(f"weights of step {step}, the best by {state['metric']} ({state['value']:.4f})", file=sys.stderr)


def _backends() -> str:
    return gmk.backend_for("affine_coupling", torch.empty(1, 2))


def _unused(out: Path) -> Path:
    """``out`` if nothing is there, else the first free ``out-2``, ``out-3``, ..."""
    found, i = out, 1
    while found.exists():
        i += 1
        found = out.with_name(f"{out.name}-{i}")
    return found


def _open(run: Path, weights: Literal["best", "last"]) -> tuple[Recipe, Any, Any, int]:
    from .training import load_weights

    path = run / "config.json"
    try:
        config = json.loads(path.read_text())
        recipe = restore(recipe_of(config["model"]), config["recipe"])
    except FileNotFoundError:
        raise CheckpointError(f"{run} is not a run: it has no config.json") from None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    dataset = recipe.dataset()
    model = recipe.build(dataset)
    step = load_weights(model, run, weights)
    _say_weights(run, step)
    return recipe, dataset, model, step


def _sample(options: Sample) -> int:
    at_least("n", options.n, 1)
    at_least("temperature", options.temperature, 0)
    with gmk.use_backend(options.backend):
        recipe, dataset, model, _ = _open(options.run, options.weights)
        path = options.out or options.run / f"samples-{options.seed}.png"
        if path.exists():
            raise GenmodelsError(f"{path} exists; give another --out")
        path.parent.mkdir(parents=True, exist_ok=True)
        recipe.draw_samples(model, dataset, path, n=options.n, seed=options.seed, temperature=options.temperature)
    print(f"wrote {path}")
    return 0


def _evaluate(options: Evaluate) -> int:
    if options.split not in ("valid", "test"):
        raise GenmodelsError(f"--split must be test or valid, got {options.split!r}")
    with gmk.use_backend(options.backend):
        recipe, dataset, model, step = _open(options.run, options.weights)
        figures = recipe.evaluate(model, dataset, options.split)
        judge = recipe.judged_by(model, dataset, options.split)
    if judge:
        print(f"judged by {judge}", file=sys.stderr)
    print(json.dumps(figures))
    if options.record:
        append(options.record, options.run, figures, step, judge)
    return 0
