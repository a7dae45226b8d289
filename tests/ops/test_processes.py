"""Forked children, data loader workers and threads that call at the same time."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from gmkernels.core import native
from gmkernels.testing import evaluate, rows
from gmkernels.testing.evaluate import digest, threads

# One row of each family, large enough to be computed by several threads.
LARGE = {
    "affine_coupling[tanh]": (67, 1021),
    "planar_flow[mild]": (1031, 13, 5),
    "minibatch_discrimination[near]": (131, 17, 5),
    "random.normal": (257, 1021),
    "rbm_gibbs[exact]": (131, 521),
    "boltzmann_gibbs[spin]": (131, 521),
    "ais_log_z[forward]": (131, 521, 131),
}
pytestmark = pytest.mark.skipif(native.cpu_error() is not None, reason=str(native.cpu_error()))


def _digest(name: str, seed: int = 0) -> str:
    row = rows()[name]
    return digest(evaluate(row, row.case(LARGE[name], seed=seed), "cpu"))


def _all() -> list[str]:
    return [_digest(name) for name in LARGE]


def _child(connection, cases: dict, count: int) -> None:
    # Kernels and nothing else: torch's own parallel operations, and its autograd engine, hang in a forked child.
    if count:
        torch.set_num_threads(count)
    connection.send([digest(evaluate(rows()[name], case, "cpu", order=0)) for name, case in cases.items()])
    connection.close()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_forked_child_computes_after_the_parent_used_its_threads(count: int) -> None:
    """torch itself hangs here with more than one thread; the kernels may not."""
    with threads(2):
        _all()  # wakes the parent's thread pool
        cases = {name: rows()[name].case(sizes) for name, sizes in LARGE.items()}
        # The row makes its weights symmetric with an operation of torch's, which would hang in the child.
        sweeps = cases["boltzmann_gibbs[spin]"]
        sweeps.constants["weight"] = (low := sweeps.tensors["couplings"].tril(-1)) + low.mT
        expected = [digest(evaluate(rows()[name], case, "cpu", order=0)) for name, case in cases.items()]
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(theirs, cases, count))
        child.start()
        try:
            assert ours.poll(60), "the forked child hangs"
            assert ours.recv() == expected
            child.join(10)
            assert child.exitcode == 0
        finally:
            child.kill()


class _Samples(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        flow, noise = rows()["affine_coupling[tanh]"], rows()["random.normal"]
        y = flow.call(flow.case((67, 1021), seed=index), "cpu")[0]
        return torch.stack((y[-1, -9:], noise.call(noise.case((257, 1021), seed=index), "cpu")[0][-1, -9:]))


@pytest.mark.parametrize("workers", [2])
def test_data_loader_workers(workers: int) -> None:
    with threads(2):
        plain = torch.cat(list(DataLoader(_Samples(), batch_size=2)))
        loader = DataLoader(_Samples(), batch_size=2, num_workers=workers, multiprocessing_context="fork", timeout=60)
        assert torch.equal(torch.cat(list(loader)), plain)


@pytest.mark.parametrize("intra", [1, 2])
def test_concurrent_calls_give_the_same_bits(intra: int) -> None:
    """Four Python threads at once, each through forward, backward and double backward."""
    jobs = [(name, seed) for name in LARGE for seed in range(4)] * 2
    with threads(intra):
        expected = [_digest(*job) for job in jobs]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda job: _digest(*job), jobs, timeout=120)) == expected


def test_an_error_in_one_thread_is_not_another_threads() -> None:
    """Exceptions stay where they were raised, and calls go on working after one."""
    row = rows()["affine_coupling[tanh]"]

    def bad(i: int) -> str:
        case = row.case((3, 4), seed=i)
        case.constants["clamp"] = -1.0 - i
        with pytest.raises(ValueError) as caught:
            row.call(case, "cpu")
        return str(caught.value)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(bad, range(16)))
    assert all(f"got {-1.0 - i}" in text for i, text in enumerate(texts))
    assert os.getpid() and _all()
