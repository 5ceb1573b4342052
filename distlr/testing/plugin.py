"""The pytest plugin of distlr: one fixture. pytest finds it by itself where distlr is installed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from distlr.communicators import run_ranks

__all__ = ["distlr_ranks"]

_GRACE = 1.0  # seconds that a rank gets to end after the test


@pytest.fixture
def distlr_ranks() -> Iterator[Callable[..., list[Any]]]:
    """`distlr.testing.run_ranks`; the test fails if it leaves a rank's thread running.

    def test_the_ranks_agree(distlr_ranks):
        assert distlr_ranks(lambda comm: comm.allreduce(comm.rank, tag="sum").item(), 3) == [3, 3, 3]
    """
    before = set(threading.enumerate())
    yield run_ranks
    ranks = [thread for thread in threading.enumerate() if thread.name.startswith("distlr-rank-")]
    left = [thread for thread in ranks if thread not in before]
    for thread in left:
        thread.join(_GRACE / len(left))
    running = sorted(thread.name for thread in left if thread.is_alive())
    if running:
        pytest.fail(f"The test left ranks running: {', '.join(running)}. Let every rank's function return.")
