"""Fixtures inside the ranks."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def job():
    """The job of the launched ranks, as a script gets it."""
    import distlr

    return distlr.init(timeout=60)


@pytest.fixture
def same_on_all(job):
    """Asserts that a JSON value is equal on every rank; collective."""

    def check(value, tag="test"):
        said = job.communicator.gather_json(value, tag=tag)
        assert all(other == said[0] for other in said), said
        return said[0]

    return check
