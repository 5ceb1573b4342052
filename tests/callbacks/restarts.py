"""Helpers of the tests in which a run ends and another one continues it, or must not."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Killed(Exception):
    """Stands for the end of the process."""


def logs_by_epoch(history: Any) -> dict[int, dict[str, Any]]:
    """The logs of each epoch of a `fit`."""
    return {epoch: {n: v[i] for n, v in history.history.items()} for i, epoch in enumerate(history.epoch)}


@contextlib.contextmanager
def locked_by_another_job(directory: Path, name: str) -> Iterator[str]:
    """Holds the lock file `name` of a directory as another job would, and gives the error's text for this one."""
    with open(directory / name, "w") as file:
        file.write('{"host": "node7", "pid": 4242, "since": "2026-01-31T12:00:00+00:00"}')
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        yield f"{directory} is in use by another job: process 4242 on host node7, since 2026-01-31T12:00:00+00:00"
