"""Lets the tests beside it write `from identical_ranks import IdenticalRanks`.

pytest's import mode puts no folder of tests on `sys.path`, and its classes are needed outside of fixtures.
"""

from __future__ import annotations

import importlib.util
import pathlib
import sys

# Looked into for doctests it would be loaded a second time, under another name.
collect_ignore = ["identical_ranks.py"]

if "identical_ranks" not in sys.modules:
    _spec = importlib.util.spec_from_file_location(
        "identical_ranks", pathlib.Path(__file__).with_name("identical_ranks.py")
    )
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules["identical_ranks"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["identical_ranks"])
