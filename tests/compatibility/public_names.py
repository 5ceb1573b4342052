"""Lists the public names of the package, one dotted path a line: what `__all__`, README.md and docs/ show.

    python tests/compatibility/public_names.py      # adds the new ones to public_names.txt

A name that was public once stays in the file, and `test_public_names.py` holds that each can still be reached.
"""

from __future__ import annotations

import ast
import importlib
import re
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distlr
from distlr.communicators import Communicator

ROOT = Path(__file__).resolve().parents[2]

NAMESPACES = (
    "distlr",
    *(f"distlr.{name}" for name in distlr.__all__ if isinstance(getattr(distlr, name), types.ModuleType)),
    "distlr.horovod",
    "distlr.horovod.callbacks",
    "distlr.plateau",
    "distlr.scaling",
)

CALLED_BY_HAND = (distlr.Job, distlr.GlobalBatch, distlr.Duration, distlr.Plateau, Communicator)


def reached(path: str) -> Any:
    """The object at a dotted path: modules are imported, the rest are attributes."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError as error:
            if error.name is None or not path.startswith(error.name):
                raise
            continue
        for name in parts[length:]:
            value = getattr(value, name)
        return value
    raise ModuleNotFoundError(path)


def exported() -> Iterator[str]:
    """The names of every `__all__`, and the members of those classes that are called by hand."""
    for namespace in NAMESPACES:
        yield namespace
        for name in importlib.import_module(namespace).__all__:
            path = f"{namespace}.{name}"
            yield path
            value = reached(path)
            if value in CALLED_BY_HAND:
                yield from (f"{path}.{member}" for member in members(value))


def members(kind: type) -> Iterator[str]:
    """The public methods and properties of a class that distlr writes."""
    for owner in kind.__mro__:
        if owner.__module__.startswith("distlr"):
            for name, value in vars(owner).items():
                if not name.startswith("_") and isinstance(
                    value, (types.FunctionType, property, classmethod, staticmethod)
                ):
                    yield name


def shown() -> Iterator[str]:
    """What README.md and docs/ import or name."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    blocks = [
        block for page in pages for block in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    ]
    for block in blocks:
        try:
            tree = ast.parse(textwrap.dedent(block))
        except SyntaxError:
            continue  # an excerpt with "..." of its own; its names are in the text
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "distlr":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "distlr")
    for page in pages:
        yield from re.findall(r"\bdistlr(?:\.[A-Za-z_]\w*)+", page.read_text("utf-8"))


def can_be_reached(path: str) -> bool:
    """Whether there is such a name: text has file names such as `distlr.conf`, too."""
    try:
        reached(path)
    except (AttributeError, ImportError):
        return False
    return True


if __name__ == "__main__":
    listed = Path(__file__).with_suffix(".txt")
    names = {path for path in [*exported(), *shown()] if can_be_reached(path)}
    listed.write_text("\n".join(sorted(names | set(listed.read_text("utf-8").split()))) + "\n", encoding="utf-8")
