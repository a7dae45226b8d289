"""Run every row of the operator table once per GPU backend, on small sizes: what compute-sanitizer watches.

    compute-sanitizer --tool memcheck python tools/small_cases.py [--only WORD]

Outputs, gradients and second derivatives are computed and synchronised, not compared; tests/ops does that. Allocations
bypass PyTorch's cache, so that the sanitizer sees where each tensor ends.
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"

import torch

from gmkernels.core import backends
from gmkernels.testing import evaluate, rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("small_cases: no CUDA device is available", file=sys.stderr)
        return 2
    count = 0
    for row in rows().values():
        if arguments.only not in row.name:
            continue
        for backend in set(row.backends) & {"triton", "cuda"}:
            if (reason := backends.unavailable(backend)) is not None:
                print(f"small_cases: backend {backend!r} cannot run: {reason}", file=sys.stderr)
                return 2
            for dtype in row.dtypes:
                if backend == "triton" and dtype == torch.float64:
                    continue
                for sizes in row.sizes[:2]:
                    evaluate(row, row.case(sizes, dtype).to("cuda"), backend)
                    count += 1
    torch.cuda.synchronize()
    print(f"{count} cases ran")
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
