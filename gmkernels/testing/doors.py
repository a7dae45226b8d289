"""The dispatcher door by force, and a record of the operators that ran."""

from __future__ import annotations

from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class dispatcher_door(TorchDispatchMode):
    """Inside, every operator goes through ``torch.ops.gmkernels``; ``calls`` lists them with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "gmkernels":
            self.calls.append((func._schema.name.split("::")[1], func, args))
        return func(*args, **(kwargs or {}))
