"""Runs the tests that every rank takes part in, under the real launchers."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(2500)]

IS_EVERY = os.environ.get("DISTLR_RANKS") == "every"  # all files on every engine, by night
RANKS = Path(__file__).with_name("ranks")
CONFORMANCE = "tests/communicators/test_conformance.py"


def passed(finished, size: int) -> list[int]:
    """How many tests each rank passed; all ranks have run the same ones."""
    counts = [int(count) for count in re.findall(r"(\d+) passed", finished.output)]
    assert len(counts) == size, finished.output[-8000:]
    return counts


@pytest.mark.parametrize(
    ("launcher", "size"),
    [("gloo", 1), ("gloo", 2), ("gloo", 3), ("horovod-mpi", 2), ("mpirun", 2), ("mpirun", 3), ("multi-worker", 3)],
)
def test_conformance(launching, launcher, size) -> None:
    backend = {"mpirun": "mpi", "multi-worker": "multi-worker"}.get(launcher, "horovod")
    finished = launching.launch(
        launcher,
        size,
        ["tests/distributed/scripts/in_ranks.py", CONFORMANCE],
        environ={"DISTLR_TEST_COMMUNICATOR": backend},
    )
    counts = passed(finished.check(), size)
    assert len(set(counts)) == 1
    assert counts[0] >= 60


# Once an engine: `horovodrun --mpi` starts the ranks that `mpirun` does.
@pytest.mark.parametrize(("launcher", "size"), [("gloo", 2), ("mpirun", 3), ("multi-worker", 2)])
def test_each_rank(launching, launcher, size) -> None:
    left_out = {"test_exchange", "test_drop_in"} if launcher == "multi-worker" else {"test_strategy"}
    if launcher != "gloo" and not IS_EVERY:
        # Minutes each, and of what they test the engine's part is in the others, too.
        left_out |= {"test_cut_validation", "test_range_test", "test_manual_control"}
        if launcher == "mpirun":
            left_out.add("test_metrics")
    files = [path for path in sorted(RANKS.glob("test_*.py")) if path.stem not in left_out]
    script = ["tests/distributed/scripts/in_ranks.py", *map(str, files)]
    limit = 2400 if IS_EVERY else 840
    counts = passed(launching.launch(launcher, size, script, limit=limit).check(), size)
    assert len(set(counts)) == 1
    assert counts[0] >= 40


def test_the_examples_of_the_drop_in(launching) -> None:
    """Which start Horovod, so that no other lane collects them."""
    script = ["tests/distributed/scripts/in_ranks.py", "--doctest-modules", "distlr/horovod"]
    assert passed(launching.launch("gloo", 1, script).check(), 1)[0] >= 17


@pytest.mark.parametrize("launcher", ["gloo", "multi-worker"])
def test_the_range_test_of_the_reference_script(launching, launcher) -> None:
    """`distlr lr-find` on two ranks: one answer, by rank 0."""
    words = ["distlr/cli/main.py", "lr-find", "train:setup", "--steps", "20"]
    environ = {"PYTHONPATH": f"{launching.ROOT}:{launching.ROOT}/launch"}
    finished = launching.launch(launcher, 2, words, environ=environ).check()
    assert finished.output.count(" rates; the test ended because ") == 1
    assert finished.output.count("job.optimizer multiplies it by 2 for the global batch.") == 1
