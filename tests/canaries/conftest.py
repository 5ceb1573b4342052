"""The canaries: `scripts/` as people rightly write them, which `test_canaries.py` runs on each engine."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from types import ModuleType

import pytest

collect_ignore = ["scripts", "_in_one_process.py"]


@pytest.fixture(scope="session")
def launching(load_helper: Callable[[pathlib.Path], ModuleType]) -> ModuleType:
    """The module `_launching.py` of the launched tests."""
    return load_helper(pathlib.Path(__file__).parents[1] / "distributed" / "_launching.py")
