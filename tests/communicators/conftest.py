"""Fixtures of the tests of communicators."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _no_garbage_of_others() -> Iterator[None]:
    """Collects what other tests left: the graphs of their models can stop a process for seconds, in any thread.

    A rank that stands still for that long is, to a test with a deadline of 0.2 s, a rank that stays away.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
