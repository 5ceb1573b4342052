"""Lets the tests beside it write `from identical_ranks import job_on` and `from restarts import Killed`.

pytest's import mode puts no folder of tests on `sys.path`, and their classes are needed outside of fixtures.
"""

from __future__ import annotations

import importlib.util
import pathlib
import sys

_HELPERS = ("identical_ranks", "restarts")

# pytest looks for doctests in all other files, and would load these a second time, under another name.
collect_ignore = [f"{name}.py" for name in _HELPERS]

for _name in _HELPERS:
    if _name not in sys.modules:
        _spec = importlib.util.spec_from_file_location(_name, pathlib.Path(__file__).with_name(f"{_name}.py"))
        assert _spec is not None
        assert _spec.loader is not None
        sys.modules[_name] = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules[_name])
