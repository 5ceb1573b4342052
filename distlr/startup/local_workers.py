"""Starts the workers of a multi-worker strategy on this machine, and ends all of them when one fails."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from distlr._utils.signal_names import signal_name
from distlr.errors import ConfigurationError, DistributionError, received
from distlr.startup.signed_messages import SECRET

__all__ = ["BACKENDS", "GRACE", "build_command", "find_free_addresses", "run_workers"]

BACKENDS = ("tf", "horovod", "multi-worker")
"""The backends of `distlr run`."""

GRACE = 30.0  # seconds in which the others may end by themselves, with an error of their own


def find_free_addresses(count: int) -> list[str]:
    """Finds `count` addresses of this machine whose ports are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [f"localhost:{each.getsockname()[1]}" for each in sockets]


def build_command(n: int, backend: str, script: str, arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Builds the words of the command, and the environment variables to set for it.

    Raises:
        ConfigurationError: `n` is below 1, or there is no such script.
        DistributionError: horovodrun is not installed.
    """
    if n < 1:
        raise ConfigurationError(received("-n", n, "at least 1"))
    if not Path(script).is_file():
        raise ConfigurationError(received("script", script, "a file"))
    words = [sys.executable, script, *arguments]
    if backend == "tf":
        return words, {"DISTLR_SIMULATE": str(n)}
    threads = str(max(1, (os.cpu_count() or 1) // n))
    variables = {"TF_NUM_INTRAOP_THREADS": threads, "OMP_NUM_THREADS": threads}
    variables = {name: value for name, value in variables.items() if name not in os.environ}
    if backend == "multi-worker":
        return words, variables
    # Prefer the one beside this interpreter: it belongs to the Horovod that the script imports.
    sibling = Path(sys.executable).with_name("horovodrun")
    horovodrun = str(sibling) if sibling.is_file() else shutil.which("horovodrun")
    if horovodrun is None:
        raise DistributionError(
            "horovodrun is not installed. Fix: build Horovod with docker/build-horovod.sh (`make horovod` in a "
            "clone of distlr), or use --backend tf."
        )
    launcher = [horovodrun, "--gloo", "-np", str(n), "-H", f"localhost:{n}", "--network-interface", "lo"]
    return [*launcher, *words], variables


def run_workers(count: int, words: Sequence[str], environ: Mapping[str, str], grace: float = GRACE) -> int:
    """Runs a command once a worker, with a TF_CONFIG of its own each, and returns the first exit status that is not 0.

    Args:
        count: number of workers.
        words: the command and its arguments.
        environ: the environment.
        grace: seconds that the others have, once one has failed, before they are killed.
    """
    addresses = find_free_addresses(count)
    shared = {SECRET: secrets.token_hex(16), **environ, "DISTLR_ENGINE": "multi-worker"}
    ended: queue.Queue[tuple[int, int]] = queue.Queue()
    processes: list[subprocess.Popen[bytes]] = []
    before = {number: signal.signal(number, _exit_on_signal) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for rank in range(count):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
            variables = {**shared, "TF_CONFIG": json.dumps(config)}
            process = subprocess.Popen(words, env=variables)
            processes.append(process)
            threading.Thread(target=lambda p=process, r=rank: ended.put((r, p.wait())), daemon=True).start()
        return _wait_for_all(ended, count, grace)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def _wait_for_all(ended: queue.Queue[tuple[int, int]], count: int, grace: float) -> int:
    status, deadline = 0, None
    for _ in range(count):
        try:
            rank, code = ended.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            print("distlr run: the others did not end and are killed", file=sys.stderr)
            break
        if code and deadline is None:
            status, deadline = (code if code > 0 else 128 - code), time.monotonic() + grace
            how = f"status {code}" if code > 0 else f"signal {signal_name(-code)}"
            print(f"distlr run: process rank {rank} ended with {how}; the others have {grace:g} s", file=sys.stderr)
    return status


def _exit_on_signal(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)
