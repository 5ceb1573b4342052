"""The launched lane: `ranks/` runs inside the ranks, started by `test_in_ranks.py`; `scripts/` is what they run."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from types import ModuleType

import pytest

collect_ignore = ["scripts"] if "DISTLR_TEST_IN_RANKS" in os.environ else ["ranks", "scripts"]


@pytest.fixture(scope="session")
def launching(load_helper: Callable[[pathlib.Path], ModuleType]) -> ModuleType:
    """The module `_launching.py` beside this file."""
    return load_helper(pathlib.Path(__file__).with_name("_launching.py"))
