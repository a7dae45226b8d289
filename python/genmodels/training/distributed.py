"""The few things a loop needs to run under ``torchrun``, each a no-op in a single process."""

from __future__ import annotations

import atexit
import gc
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import GenmodelsError


class Group:
    """This process among those of ``torchrun`` (its environment variables), or alone.

    Joins the process group if the environment asks for it and nobody has. It is left at the end of the process only:
    joining a second time under ``torchrun`` hangs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            atexit.register(_leave)

    def agree(self, *values: float) -> list[float]:
        """The largest of each value over all processes, so that all stop at the same step."""
        if self.world == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return shared.tolist()

    def gather(self, value: Any) -> list[Any]:
        """What every process holds, in order of rank."""
        if self.world == 1:
            return [value]
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, value)
        return everyone

    def wrap(self, model: nn.Module, several_parts: bool) -> nn.Module:
        """A module whose call is ``model.losses``, with gradients averaged over the processes."""
        losses = _Losses(model)
        if self.world == 1:
            return losses
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(losses, device_ids=ids, find_unused_parameters=several_parts)


def _leave() -> None:
    # A wrapped model holds the group, in cycles. A group that lives until the interpreter ends aborts the process when
    # one of gloo's threads still has a tensor to release then.
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()


class _Losses(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any) -> dict[str, Tensor]:
        return self.model.losses(*args)  # type: ignore[operator]


def local_device(name: str = "auto") -> torch.device:
    """``auto``: this process's GPU if there is one, else the CPU.

    Raises:
        GenmodelsError: there is no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        torch.empty(1, device=device).item()  # the meta device, too, has nothing to train on
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise GenmodelsError(f"device {name!r} cannot be used here ({reason}); try auto or cpu") from None
    return device
