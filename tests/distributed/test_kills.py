"""A rank is killed at each place where it can hurt: the job ends and names it, and goes on from the newest checkpoint.

All are suspended: the job goes on. DISTLR_KILLS=every for all engines, places and kinds of waits, and the other rank.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

EPOCHS = 3  # 123 updates, with a checkpoint every 10
# One after the other in one run, each at a later update than the one before. Rank 0 writes the checkpoints.
PLACES = [
    ("before the first step", 1),
    ("in a validation", 0),
    ("in the guard", 1),
    ("in a checkpoint's file", 0),
    ("before a checkpoint's rename", 0),
    ("after a checkpoint's rename", 0),
]
IS_EVERY = os.environ.get("DISTLR_KILLS") == "every"
# Engine, and whether the other rank is killed where either can be.
EVERY = [(launcher, other) for launcher in ("gloo", "mpirun", "multi-worker") for other in (False, True)]


def _steps(directory, attempt: str, rank: int) -> list[str]:
    """Samples and rate after each step; of the last line, which may be half, nothing."""
    path = directory / f"{attempt}-{rank}.txt"
    return path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []


def _newest(directory) -> int:
    """Updates of the newest checkpoint."""
    return max((int(path.name[5:17]) for path in directory.glob("checkpoints/step-*.safetensors")), default=0)


@pytest.mark.parametrize(("launcher", "other"), EVERY if IS_EVERY else EVERY[:1], ids=str)
def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(launching, tmp_path, launcher, other) -> None:
    def attempt(directory, name: str, place: str = "nowhere", rank: int = 0):
        words = ["tests/distributed/scripts/killed.py", str(directory), name, str(EPOCHS), place, str(rank)]
        return launching.launch(launcher, 2, words, limit=100)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    attempt(whole, "whole").check()
    expected = [_steps(whole, "whole", rank) for rank in (0, 1)]
    assert len(expected[0]) == 123

    def check_steps(name: str, resumed_at: int) -> None:
        for rank in (0, 1):
            steps = _steps(killed, name, rank)
            assert steps == expected[rank][resumed_at : resumed_at + len(steps)], (name, rank)

    for place, rank in PLACES if IS_EVERY else PLACES[:4]:
        rank = 1 - rank if other and "checkpoint" not in place else rank
        resumed_at = _newest(killed)
        finished = attempt(killed, place, place, rank)
        at = (killed / f"{place}.killed").stat().st_mtime
        assert finished.code not in (0, None), (place, finished.output[-4000:])
        assert time.time() - at < 60, place
        assert launching.names_rank(finished.output, rank), (place, finished.output[-4000:])
        if launcher == "multi-worker":  # the other launchers do not wait for what the other rank says
            survivor = rf"\[rank {1 - rank}\] .* ended because rank {rank} of 2 ended"
            assert re.search(survivor, finished.output), (place, finished.output[-4000:])
        check_steps(place, resumed_at)
    resumed_at = _newest(killed)
    assert resumed_at == (110 if IS_EVERY else 100)
    attempt(killed, "last").check()
    check_steps("last", resumed_at)
    assert len(_steps(killed, "last", 0)) == 123 - resumed_at
    resumed, result = (json.loads((path).read_text()) for path in (killed / "last.json", whole / "whole.json"))
    assert (resumed["weights"], resumed["multiplier"]) == (result["weights"], result["multiplier"])
    assert [path.name for path in killed.glob("checkpoints/.step-*")] == []  # what half-written ones left


@pytest.mark.parametrize("waits", ["updates", "collectives"] if IS_EVERY else ["updates"])
@pytest.mark.parametrize("launcher", ["multi-worker", "gloo", "mpirun"] if IS_EVERY else ["multi-worker"])
def test_ranks_that_are_suspended_go_on(launching, tmp_path, launcher, waits) -> None:
    """For twice as long as they may wait (SIGSTOP, as a scheduler does it): time that nobody ran does not count."""

    def suspend(ranks):
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("updates-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        pids = ranks().values()
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in pids:
                os.kill(pid, number)
            time.sleep(12 if number == signal.SIGSTOP else 0)

    script = ["tests/distributed/scripts/suspended.py", str(tmp_path), waits]
    finished = launching.launch(launcher, 2, script, limit=100, watch=suspend).check()
    for rank in (0, 1):
        assert f"[rank {rank}] all updates, at 0.4000" in finished.output, finished.output[-4000:]
