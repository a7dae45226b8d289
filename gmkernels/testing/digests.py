"""``python -m gmkernels.testing.digests``: a hash of everything each row of the table computes, as JSON.

Run under different ``GMKERNELS_ISA``, machines or versions, it shows which results changed a bit.
"""

from __future__ import annotations

import argparse
import json

import torch

from gmkernels.core import native

from .evaluate import digest, evaluate
from .table import rows


def digests(backend: str, dtypes: tuple[torch.dtype, ...] | None = None) -> dict[str, str]:
    """Row, dtype and sizes to a hash of outputs, gradients and second derivatives."""
    return {
        f"{row.name} {str(dtype).removeprefix('torch.')} {sizes}": digest(
            evaluate(row, row.case(sizes, dtype), backend)
        )
        for row in rows().values()
        if backend in row.backends
        for dtype in row.dtypes
        if dtypes is None or dtype in dtypes
        for sizes in row.sizes
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    isa = native.cpu().isa() if native.cpu_error() is None else None
    print(json.dumps({"isa": isa, "digests": digests(options.backend)}, indent=0))
