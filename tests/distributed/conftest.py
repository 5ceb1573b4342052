"""The launched lane: `ranks/` runs inside the ranks, started by `test_in_ranks.py`; `scripts/` is what they run."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import sys
from types import ModuleType

import pytest

collect_ignore = ["scripts"] if "DISTLR_TEST_IN_RANKS" in os.environ else ["ranks", "scripts"]


@pytest.fixture(scope="session")
def launching() -> ModuleType:
    """The module `_launching.py` beside this file."""
    path = pathlib.Path(__file__).with_name("_launching.py")
    spec = importlib.util.spec_from_file_location("_launching", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
