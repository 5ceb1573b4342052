"""Starts the workers of a multi-worker strategy on this machine, and ends all of them when one fails."""

from __future__ import annotations

import contextlib
import json
import queue
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from distlr._signal_names import signal_name
from distlr.communicators.signed_messages import SECRET

__all__ = ["GRACE", "free_addresses", "run_workers"]

GRACE = 30.0  # seconds in which the others may end by themselves, with an error of their own


def free_addresses(count: int) -> list[str]:
    """`count` addresses of this machine with ports that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [f"localhost:{each.getsockname()[1]}" for each in sockets]


def run_workers(count: int, words: Sequence[str], environ: Mapping[str, str], grace: float = GRACE) -> int:
    """Runs a command once a worker, with a TF_CONFIG of its own each, and returns the first exit status that is not 0.

    Args:
        count: number of workers.
        words: the command and its arguments.
        environ: the environment.
        grace: seconds that the others have, once one has failed, before they are killed.
    """
    addresses = free_addresses(count)
    shared = {SECRET: secrets.token_hex(16), **environ, "DISTLR_ENGINE": "multi-worker"}
    ended: queue.Queue[tuple[int, int]] = queue.Queue()
    processes: list[subprocess.Popen[Any]] = []
    before = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for rank in range(count):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
            variables = {**shared, "TF_CONFIG": json.dumps(config)}
            process = subprocess.Popen(words, env=variables)
            processes.append(process)
            threading.Thread(target=lambda p=process, r=rank: ended.put((r, p.wait())), daemon=True).start()
        return _wait(ended, count, grace)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def _wait(ended: queue.Queue[tuple[int, int]], count: int, grace: float) -> int:
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


def _leave(number: int, _: Any) -> NoReturn:
    sys.exit(128 + number)
