"""Checkpoints that survive: one file, written whole or not at all, and checked when read.

A checkpoint is a safetensors file. Its tensors are the weights (``model.*``), their moving average (``ema.*``), the
optimizers' state (``optimizer.*``) and the generators' state (``rng.*``); its metadata holds the rest as JSON, and a
SHA-256 of everything. Nothing in it is executable.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, need


def _digest(tensors: Mapping[str, Tensor], state: str) -> str:
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def contents(dataset: object) -> str:
    """A digest of the training and validation data: two data sets of one name are two. Empty if they are drawn afresh."""
    splits = getattr(dataset, "splits", {})
    parts = {f"{name}.{i}": part for name in ("train", "valid") for i, part in enumerate(splits.get(name, ()))}
    return _digest({name: part for name, part in parts.items() if part is not None}, "")[:16] if splits else ""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, finds the old content or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able ``state`` atomically, with their checksum."""
    safetensors = need("safetensors.torch", "saving a checkpoint")
    text = json.dumps(state)
    # Tensors that share memory would be refused; a checkpoint wants their values.
    flat = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    write_atomically(path, safetensors.save(flat, {"state": text, "sha256": _digest(flat, text)}))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read and verify what :func:`save` wrote.

    Raises:
        CheckpointError: the file is missing, truncated, altered, or no checkpoint.
    """
    safetensors = need("safetensors", "reading a checkpoint")
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {error}") from None
    if "sha256" not in metadata or metadata["sha256"] != _digest(tensors, metadata.get("state", "")):
        raise CheckpointError(f"checkpoint {path} is damaged: its content does not match its checksum")
    return tensors, json.loads(metadata["state"])


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    return sorted(folder.glob("checkpoint-*.safetensors"), reverse=True)


def save_step(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write ``checkpoint-STEP.safetensors``; then, the new one being safe, keep one older and drop the others."""
    path = folder / f"checkpoint-{step:08d}.safetensors"
    save(path, tensors, state)
    for torn in folder.glob(".*.tmp"):  # of a process that was killed while it wrote
        torn.unlink(missing_ok=True)
    for old in [other for other in checkpoints(folder) if other.name < path.name][1:]:
        old.unlink(missing_ok=True)
    return path


def load_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], Path] | None:
    """The newest intact checkpoint of a run, or None if it has none yet.

    A damaged one is passed over with a warning in favour of the one before it.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    reasons = []
    for path in checkpoints(folder):
        try:
            tensors, state = load(path)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        if reasons:
            warnings.warn(f"{'; '.join(reasons)}; going back to {path.name}", stacklevel=2)
        return tensors, state, path
    if reasons:
        raise CheckpointError("; ".join(reasons))
    return None


def refuse_another_run(path: Path, state: Mapping[str, Any], fingerprint: Mapping[str, Any], processes: int) -> None:
    """Raise a CheckpointError, with what differs, if a checkpoint was not written by the run that goes on now."""
    theirs = state["fingerprint"] | {"processes": state["world"]}
    # As it comes back from JSON: tuples as lists.
    ours = json.loads(json.dumps(dict(fingerprint))) | {"processes": processes}
    differ = [k for k in theirs | ours if theirs.get(k) != ours.get(k)]
    if differ:
        differ = ["model"] if "model" in differ else differ  # the options of two models say nothing more
        found, wanted = (", ".join(f"{k}={run.get(k)!r}" for k in differ) for run in (theirs, ours))
        raise CheckpointError(
            f"{path} belongs to another run, with {found} where {wanted} was asked for: choose another folder"
        )


def misfit(path: Path, error: Exception) -> CheckpointError:
    """Why the content of a checkpoint cannot be loaded: of PyTorch's list of reasons, the first few."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reasons = lines[1:4] if len(lines) > 1 else lines
    more = f", and {len(lines) - 4} more" if len(lines) > 4 else ""
    return CheckpointError(f"{path} does not fit this model: {' '.join(reasons)}{more}")


def pack_optimizer(prefix: str, state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's ``state_dict()`` as named tensors, and the rest as JSON."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}.{index}.{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    return tensors, {"plain": plain, "groups": state["param_groups"]}


def unpack_optimizer(prefix: str, tensors: Mapping[str, Tensor], rest: Mapping[str, Any]) -> dict[str, Any]:
    """The ``state_dict()`` that :func:`pack_optimizer` took apart."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith(prefix + "."):
            index, entry = name[len(prefix) + 1 :].split(".", 1)
            state.setdefault(int(index), {})[entry] = value
    for index, entries in rest["plain"].items():
        state.setdefault(int(index), {}).update(entries)
    return {"state": state, "param_groups": rest["groups"]}


def lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give what an optimizer has loaded of a parameter's shape the parameter's order of memory.

    A file keeps no strides, and fused updates on a CPU pair a channels-last weight with its moments by position in memory.
    """
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                entries[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
