"""The public surface: each name has a docstring that tells its arguments, and an example that runs.

The examples are doctests: pytest collects them from `distlr/` beside the tests. Those of the drop-in for Horovod start
it, so they run under its launcher (`tests/distributed/test_in_ranks.py`).
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import pytest

import distlr
from distlr.communicators import Communicator

ROOT = Path(__file__).resolve().parents[1]

EXPORTED = [f"distlr.{name}" for name in distlr.__all__ if isinstance(getattr(distlr, name), types.ModuleType)]
MODULES = ["distlr", *EXPORTED, "distlr.horovod", "distlr.horovod.callbacks", "distlr.plateau", "distlr.scaling"]

# What a public function gives, or a message names, from modules that are inner ones otherwise.
IN_HAND = [
    "distlr.optimizer.AdoptedOptimizer",
    "distlr.optimizer.extension.OptimizerExtension",
    "distlr.optimizer.gradient_pipeline.GradientPipeline",
    "distlr.optimizer.learning_rate.LearningRate",
    "distlr.optimizer.rate_formula.RateFormula",
    "distlr.optimizer.state_variables.StateVariables",
    "distlr.tools.lr_finder.curve.RangeTest",
]

# Of these each method has an example of its own; of the others the class has it.
BY_HAND = (distlr.Job, distlr.GlobalBatch, distlr.Duration, distlr.Plateau, Communicator)

NO_DOCSTRING = {"distlr.__version__": "a text, and nothing to say of it beside its name"}

FORWARDED = {"logs"}  # Keras' word in each hook of a callback


def resolved(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def public() -> dict[str, Any]:
    """The public names and what they are."""
    found = {f"{module}.{name}": resolved(f"{module}.{name}") for module in MODULES for name in _all(module)}
    found |= {path: resolved(path) for path in IN_HAND}
    return {path: value for path, value in found.items() if not isinstance(value, types.ModuleType)}


def _all(module: str) -> list[str]:
    names: list[str] = importlib.import_module(module).__all__
    return names


def is_documented(value: Any) -> bool:
    return inspect.isclass(value) or inspect.isfunction(value)


def methods(kind: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that distlr writes, each where it is written: an override speaks for itself."""
    for cls in kind.__mro__:
        if cls.__module__.startswith("distlr"):
            for name, value in vars(cls).items():
                function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
                if not name.startswith("_") and (inspect.isfunction(function) or isinstance(function, property)):
                    yield f"{cls.__qualname__}.{name}", function


def untold(value: Any, text: str) -> list[str]:
    """The parameters that a docstring does not name."""
    parameters = inspect.signature(value.__init__ if inspect.isclass(value) else value).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return [name for name in named if name not in {"self", *FORWARDED} and not re.search(rf"\b{name}\b", text)]


PUBLIC = public()
METHODS = dict(pair for value in PUBLIC.values() if inspect.isclass(value) for pair in methods(value))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_is_for(module):
    assert (importlib.import_module(module).__doc__ or "").strip()


def test_each_name_has_a_docstring_and_an_example():
    names = {path: value.__doc__ or "" for path, value in PUBLIC.items() if is_documented(value)}
    assert len(names) > 90, "the surface is not found"
    assert [path for path, text in names.items() if not text.strip()] == []
    assert [path for path, text in names.items() if ">>> " not in text] == []


def test_each_method_but_a_hook_of_keras_has_a_docstring():
    assert len(METHODS) > 150, "the methods are not found"
    bare = [path for path, function in METHODS.items() if not (function.__doc__ or "").strip()]
    hooks = {name for name in dir(keras.callbacks.Callback) if name.startswith(("on_", "set_"))}
    assert [path for path in bare if path.rpartition(".")[2] not in hooks] == []


def test_each_method_that_is_called_by_hand_has_an_example():
    called = {path: function for kind in BY_HAND for path, function in methods(kind) if inspect.isfunction(function)}
    assert [path for path, function in called.items() if ">>> " not in function.__doc__] == []


def test_each_argument_of_a_name_is_told():
    told = {path: untold(value, value.__doc__) for path, value in PUBLIC.items() if is_documented(value)}
    assert {path: names for path, names in told.items() if names} == {}


def test_a_constant_is_told_where_it_is_made():
    constants = [path for path, value in PUBLIC.items() if not is_documented(value) and path not in NO_DOCSTRING]
    assert [path for path in constants if not _is_told(*path.rsplit(".", 1))] == []


def _is_told(module: str, name: str) -> bool:
    """Whether a text follows the assignment, or a `#:` stands before it."""
    text = inspect.getsource(importlib.import_module(module))
    body, lines = ast.parse(text).body, text.splitlines()
    for node, after in itertools.zip_longest(body, body[1:]):
        if isinstance(node, ast.ImportFrom) and node.module and name in {alias.name for alias in node.names}:
            return _is_told(node.module, name)
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if name in {leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}:
                return _is_text(after) or lines[node.lineno - 2].startswith("#: ")
    return False


def _is_text(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def test_no_example_is_skipped_and_all_are_collected():
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'testpaths = ["tests", "distlr"]' in settings
    assert "--doctest-modules" in settings
    assert [path for path in (ROOT / "distlr").rglob("*.py") if "doctest: +SKIP" in path.read_text("utf-8")] == []


def test_the_packages_help_is_one_screen_of_names():
    assert len(distlr.__all__) <= 20
    assert dir(distlr) == sorted(distlr.__all__)
    assert [name for name in distlr.__all__ if name not in distlr.__doc__ and name != "__version__"] == []
