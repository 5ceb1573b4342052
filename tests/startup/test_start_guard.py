"""A worker that ends while TensorFlow starts: the others end as well, though they hear no signal and run no thread."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from distlr.startup.local_workers import find_free_addresses

pytestmark = pytest.mark.processes

# Stands for TensorFlow: a call that does not return, deaf to SIGTERM.
WORKER = """
import json, os, signal, sys, time
from distlr.startup.rendezvous import connected_workers
workers, rank, what = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with connected_workers(workers, rank, float(sys.argv[4]), "secret"):
    if what == "wait":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("met", flush=True)
    if what == "end":
        os._exit(7)
    if what == "raise":
        raise SystemExit(8)
    if what == "wait":
        time.sleep(60)
print("started", flush=True)
"""


def start(*whats: str, timeout: float = 20) -> list[subprocess.Popen[str]]:
    workers = json.dumps(find_free_addresses(len(whats)))
    return [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, workers, str(rank), what, str(timeout)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank, what in enumerate(whats)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    try:
        outputs = [process.communicate(timeout=40) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


@pytest.mark.parametrize("how", ["end", "raise"])
@pytest.mark.parametrize("who", [0, 2])
def test_the_others_end_and_name_it(who, how) -> None:
    begun = time.monotonic()
    whats = ["wait", "wait", "wait"]
    whats[who] = how
    for rank, (status, _, errors) in enumerate(ended(start(*whats))):
        if rank != who:
            assert status == -signal.SIGKILL
            assert f"[rank {rank}] Rank {who} ended before TensorFlow had connected all workers" in errors
    assert time.monotonic() - begun < 30


def test_workers_that_have_started_go_on_at_their_own_pace() -> None:
    for status, output, errors in ended(start("start", "start", "start")):
        assert (status, output, errors) == (0, "met\nstarted\n", "")


def test_a_signal_to_the_group_ends_a_worker_that_waits() -> None:
    """As a launcher sends it; the one to the worker alone it would hear when TensorFlow had started."""
    import os

    processes = start("wait", "wait")
    assert processes[1].stdout is not None
    assert processes[1].stdout.readline() == "met\n"
    time.sleep(0.5)  # its guard is a process that has just been started
    os.killpg(processes[1].pid, signal.SIGTERM)
    for rank, (status, _, errors) in enumerate(ended(processes)):
        assert status == -signal.SIGKILL
        assert "SIGTERM came" in errors if rank == 1 else "Rank 1 ended" in errors


def test_the_start_is_bounded() -> None:
    for rank, (status, _, errors) in enumerate(ended(start("wait", "wait", timeout=2))):
        assert status == -signal.SIGKILL
        assert f"[rank {rank}] 2 s passed before" in errors or "ended before" in errors
