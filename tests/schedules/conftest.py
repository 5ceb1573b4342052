"""Lets the tests beside it write `from shapes import SHAPES`.

pytest's import mode puts no folder of tests on `sys.path`, and what parametrizes tests is needed before any fixture.
"""

from __future__ import annotations

import importlib.util
import pathlib
import sys

# Looked into for doctests it would be loaded a second time, under another name.
collect_ignore = ["shapes.py"]

if "shapes" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("shapes", pathlib.Path(__file__).with_name("shapes.py"))
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules["shapes"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["shapes"])
