"""A check in two processes that talk through gloo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_BEGIN = """
import gc, sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
"""
_END = """
check(rank)
# The wrapped module holds the group, in cycles. A group that lives until the interpreter ends aborts the process when
# one of gloo's threads still has a tensor to release then.
gc.collect()
dist.barrier()  # nobody leaves while the other still talks to it
dist.destroy_process_group()
print("equal", flush=True)
"""


def assert_equal_in_two(check: str, folder: Path) -> None:
    """Run source code that defines ``check(rank)``, which raises if something is not equal, in two processes at once."""
    script = folder / "two.py"
    script.write_text(_BEGIN + check + _END)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = [subprocess.Popen([sys.executable, script, str(rank), folder / "meet"], **pipes) for rank in range(2)]
    try:
        for run in runs:
            out, error = run.communicate(timeout=300)
            assert run.returncode == 0, error
            assert out.strip() == "equal", error
    finally:
        for run in runs:
            run.kill()
