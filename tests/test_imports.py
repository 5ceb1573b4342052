"""Who may import whom (ARCHITECTURE.md), read from the source: nothing is imported or run here.

"Reaches" means at import time: module-level imports, through other modules of the package and through
the packages that hold them. "Imports" means a module's own statements, in functions and under
`TYPE_CHECKING` too.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FRAMEWORKS = {"horovod", "keras", "tensorflow", "tf_keras"}
CONTROL = (
    "_utils.checks",
    "_utils.rank_names",
    "batch._checks",
    "batch.duration",
    "batch.global_batch",
    "errors",
    "plateau.metric_direction",
    "plateau.policy",
    "runlog.manual_changes",
    "scaling.rules",
    "startup.backend_selection",
    "startup.launcher",
    "startup.local_workers",
    "startup.rendezvous",
    "tools.lr_finder.curve",
    "communicators.bundles",
    "communicators.communicator",
    "communicators.engines",
    "communicators.frames",
    "communicators.log",
    "communicators.mpi",
    "communicators.rank_zero",
    "communicators.single",
    "communicators.threads",
    "communicators.topology",
)
"""Never import a framework, not even inside a function."""

WITHOUT_ANY = (
    "batch",
    "callbacks.stage",
    "communicators",
    "errors",
    "plateau.metric_direction",
    "plateau.policy",
    "runlog.journal",
    "scaling.rules",
    "startup",
)
"""Rooms and modules with a type for everything; but for `WITH_ANY` in them."""

WITH_ANY = ("communicators.horovod", "communicators.multi_worker")
"""Handle TensorFlow's tensors, which have no types."""

WITHOUT_FRAMEWORK = (
    "checkpoint.interval",
    "checkpoint.preemption",
    "checkpoint.store",
    "tools.doctor",
    "tools.report",
)
"""What is imported without a framework, of rooms that need one elsewhere."""

WITH_FRAMEWORK = {
    "distlr._utils.keras_setup",  # looks whether it is the right one
    "distlr.communicators.multi_worker.gradients",  # run in the graph
    "distlr.tools.doctor.averaging",  # run in processes of their own
    "distlr.tools.doctor.splitting",
}
"""What needs a framework, of rooms that do not elsewhere."""

HOROVOD = {
    "distlr.communicators.horovod.communicator",
    "distlr.communicators.horovod.elastic",
    "distlr.tools.doctor.averaging",  # shows what Horovod's own optimizer does
    "distlr.tools.doctor.probe",  # asks whether Horovod loads, in a process of its own
}
# The contract, and what is made of it.
NO_BACKENDS = {
    f"distlr.communicators.{name}"
    for name in ("bundles", "communicator", "frames", "gradient_reducer", "rank_zero", "step_signals", "topology")
}

FLOORS = (
    ("_version", "errors"),
    ("_utils",),
    ("batch",),
    ("runlog", "startup"),
    ("communicators", "scaling"),
    ("schedules", "strategies"),
    ("communicators.multi_worker", "optimizer"),
    ("data", "plateau", "sync", "testing"),
    ("checkpoint",),
    ("callbacks",),
    ("job",),
    ("start",),
    ("elastic", "horovod"),
    ("tools",),
    ("cli",),
    ("__main__",),
)
"""The rooms from the ground up: each imports rooms below it alone, wherever the import stands."""

# What Keras keeps private in its optimizers. `_backend_` and `_overwrite_` are prefixes.
OPTIMIZER_INTERNALS = {
    "_accumulated_gradients",
    "_apply_weight_decay",
    "_clip_gradients",
    "_distribution_strategy",
    "_get_current_learning_rate",
    "_iterations",
    "_learning_rate",
    "_trainable_variables",
    "_use_weight_decay",
}
OPTIMIZER_PREFIXES = ("_backend_", "_overwrite_")
CODE_FROM_DATA = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted((ROOT / "distlr").rglob("*.py"))}


@functools.cache
def _tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def _absolute(module: str, node: ast.ImportFrom) -> str:
    """The absolute name of what a `from ... import` names before `import`."""
    if not node.level:
        return node.module or ""
    package = module.split(".")
    drop = node.level - (MODULES[module].name == "__init__.py")
    base = package[: len(package) - drop]
    return ".".join([*base, node.module] if node.module else base)


def _named(module: str, node: ast.AST) -> Iterator[str]:
    """The modules that one node imports, by absolute names; `from a import b` is `a.b` if that is one."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        source = _absolute(module, node)
        for alias in node.names:
            inner = f"{source}.{alias.name}"
            yield inner if inner in MODULES or source == "distlr" else source
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if function in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            yield node.args[0].value


def _at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run while the module is imported: no function bodies, nothing under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from _at_import_time(other)
            continue
        yield child
        yield from _at_import_time(child)


@functools.cache
def _imports(module: str) -> frozenset[str]:
    """All that a module's own statements import, wherever they stand."""
    return frozenset(name for node in ast.walk(_tree(module)) for name in _named(module, node))


@functools.cache
def _runs(module: str) -> frozenset[str]:
    """What a module imports while it is imported itself, with the packages that hold each."""
    names = {name for node in _at_import_time(_tree(module)) for name in _named(module, node)} | {module}
    return frozenset(name.rsplit(".", up)[0] if up else name for name in names for up in range(name.count(".") + 1))


def _reaches(module: str) -> dict[str, tuple[str, ...]]:
    """Every module that importing `module` imports, with the chain that leads to it."""
    chains: dict[str, tuple[str, ...]] = {module: (module,)}
    todo = [module]
    while todo:
        current = todo.pop()
        for name in sorted(_runs(current)):
            if name not in chains:
                chains[name] = (*chains[current], name)
                if name in MODULES:
                    todo.append(name)
    return chains


def _top(names: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def _under(package: str) -> list[str]:
    return [module for module in MODULES if module == package or module.startswith(f"{package}.")]


def _is_or_under(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _cases() -> list[str]:
    return [f"distlr.{name}" for name in CONTROL]


@pytest.mark.parametrize("module", _cases())
def test_the_control_plane_never_imports_a_framework(module):
    assert module in MODULES, f"{module} is gone: this rule would hold nothing"
    assert not _top(_imports(module)) & FRAMEWORKS
    chains = _reaches(module)
    reached = {name: " -> ".join(chain) for name, chain in chains.items() if _top([name]) & FRAMEWORKS}
    assert not reached


def _typed() -> list[str]:
    rooms, exceptions = ([f"distlr.{name}" for name in names] for names in (WITHOUT_ANY, WITH_ANY))
    assert {*rooms, *exceptions} <= MODULES.keys(), "a room is gone: this rule would hold nothing for it"
    return [module for module in MODULES if _is_or_under(module, rooms) and not _is_or_under(module, exceptions)]


@pytest.mark.parametrize("module", _typed())
def test_contracts_and_rooms_without_tensorflow_have_a_type_for_everything(module):
    assert _lines_with_any(_tree(module)) == []


def _lines_with_any(tree: ast.Module) -> list[int]:
    """Where a module imports or names `typing.Any`."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute | ast.alias)]
    return [node.lineno for node in nodes if "Any" in {getattr(node, key, "") for key in ("id", "attr", "name")}]


def _rooms() -> dict[str, str]:
    """ARCHITECTURE.md's table of the rooms: file or folder, and whether it imports TensorFlow."""
    table = re.findall(r"^\| (`.+?) \| .+ \| (yes|no) \|$", (ROOT / "ARCHITECTURE.md").read_text("utf-8"), re.MULTILINE)
    rooms = {}
    for cell, answer in table:
        for name in re.findall(r"`([\w/.]+)`", cell):
            module = f"distlr.{name.rstrip('/').removesuffix('.py')}".removesuffix(".__init__")
            assert module in MODULES, f"ARCHITECTURE.md has a row for {name}, which is not in distlr/"
            rooms[module] = answer
    return rooms


ROOMS = _rooms()


def _room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_each_module_has_a_row_in_the_table_of_the_rooms():
    missing = {_room(module) for module in MODULES} - ROOMS.keys()
    assert not missing, f"add to the table in ARCHITECTURE.md: {sorted(missing)}"


def test_no_module_is_named_as_what_its_package_exports():
    """`import distlr.optimizer.adopt as m` would give the function, and pytest the module in its place."""
    packages = [module for module, path in MODULES.items() if path.name == "__init__.py"]
    for package in packages:
        inside = {module.rpartition(".")[2] for module in MODULES if module.rpartition(".")[0] == package}
        tree = _tree(package).body
        from_inside = [node for node in tree if isinstance(node, ast.ImportFrom) and (node.module or "") != package]
        assert not inside & {alias.asname or alias.name for node in from_inside for alias in node.names}, package


def test_what_the_table_says_to_import_tensorflow_does():
    for room in {room for room, answer in ROOMS.items() if answer == "yes"}:
        assert any(_top(_reaches(module)) & FRAMEWORKS for module in _under(room)), room


def _without_framework() -> list[str]:
    rooms = [room for room, answer in ROOMS.items() if answer == "no" and room != "distlr"]
    rooms += [f"distlr.{name}" for name in (*CONTROL, *WITHOUT_FRAMEWORK)]
    modules = ["distlr", *(module for module in MODULES if _is_or_under(module, rooms))]
    return [module for module in modules if module not in WITH_FRAMEWORK]


@pytest.mark.parametrize("module", _without_framework())
def test_all_but_what_trains_is_imported_without_a_framework(module):
    chains = _reaches(module)
    reached = {name: " -> ".join(chain) for name, chain in chains.items() if _top([name]) & FRAMEWORKS}
    assert not reached


@pytest.mark.parametrize("module", sorted(WITH_FRAMEWORK))
def test_an_exception_of_these_is_needed(module):
    assert _top(_imports(module)) & FRAMEWORKS


def test_the_entries_at_the_top_are_those_of_the_table():
    entries = (ROOT / "distlr").iterdir()  # a folder that moved away may have left its __pycache__
    top = {path.name for path in entries if path.is_file() or any(path.glob("*.py"))}
    assert {name.removesuffix(".py") for name in top} == {_room(module).removeprefix("distlr.") for module in ROOMS} - {
        "distlr"
    } | {"__init__", "py.typed"}


def _floor(module: str) -> int | None:
    """The number of the floor that a module is on, from the ground; None for the package itself."""
    floors = {f"distlr.{room}": number for number, rooms in enumerate(FLOORS) for room in rooms}
    parents = [module.rsplit(".", up)[0] if up else module for up in range(module.count("."))]
    return next((floors[parent] for parent in parents if parent in floors), None)


def test_each_room_has_a_floor():
    assert [module for module in MODULES if module != "distlr" and _floor(module) is None] == []


def test_no_import_climbs():
    climbs = {}
    for module in MODULES:
        floor = _floor(module)
        for name in _imports(module):
            other = _floor(name) if name in MODULES else None
            if floor is not None and other is not None and other > floor:
                climbs[f"{module} (floor {floor})"] = f"{name} (floor {other})"
    assert climbs == {}


def test_there_is_no_circle_of_imports():
    """Wherever the imports stand, in functions and under TYPE_CHECKING too; a package's face is no room of its own."""
    edges = {
        module: {name for name in _imports(module) if name in MODULES and MODULES[name].name != "__init__.py"}
        for module in MODULES
        if MODULES[module].name != "__init__.py"
    }
    circles = [module for module in edges if module in _all_from(module, edges)]
    assert circles == []


def _all_from(start: str, edges: dict[str, set[str]]) -> set[str]:
    """What is imported from `start`, directly or through others; `start` itself only where a circle leads back."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        for name in edges[todo.pop()] - seen:
            seen.add(name)
            todo.append(name)
    return seen


SHARED_NAMES = {
    "__init__": "each package's face",
    "__main__": "the command",
    "horovod": "the drop-in, and the backend that it is for",
    "elastic": "training on ranks that come and go, and Horovod's part of it",
    "callbacks": "the room, and the module that Horovod's scripts import",
    "communicator": "implementations of one contract",
    "gradients": "implementations of one contract",
}
"""Names that several files may have, and why."""


def test_a_name_is_that_of_one_file():
    """But for the callback and the command of a room, which are named after it."""
    names: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        stem = path.parent.name if path.name == "__init__.py" else path.stem
        if module.count(".") > 0 and not re.match(r"distlr\.(callbacks|cli)\.", module):
            names.setdefault(stem, []).append(module)
    assert {name: modules for name, modules in names.items() if len(modules) > 1 and name not in SHARED_NAMES} == {}


def test_schedules_know_no_rank_and_no_optimizer():
    modules = _under("distlr.schedules")
    assert modules
    barred = (
        "distlr.callbacks",
        "distlr.communicators",
        "distlr.job",
        "distlr.optimizer",
        "distlr.strategies",
    )
    for module in modules:
        offenders = {name for name in _imports(module) | _reaches(module).keys() if _is_or_under(name, barred)}
        assert not offenders, module


def test_callbacks_know_no_backend():
    modules = _under("distlr.callbacks")
    assert modules
    for module in modules:
        offenders = {
            name for name in _imports(module) if name.startswith("distlr.communicators.") and name not in NO_BACKENDS
        }
        assert not offenders, module
        assert not _top(_imports(module)) & {"horovod", "mpi4py"}, module


def test_only_the_optimizer_touches_what_keras_keeps_private_in_its_optimizers():
    outside = [module for module in MODULES if not _is_or_under(module, ["distlr.optimizer"])]
    offenders = {
        f"{MODULES[module].relative_to(ROOT)}:{line}": name
        for module in outside
        for line, name in _attributes(_tree(module))
        if name in OPTIMIZER_INTERNALS or name.startswith(OPTIMIZER_PREFIXES)
    }
    assert not offenders


def _attributes(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Names of attributes that are read, written, defined as methods, or named to getattr and setattr."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.FunctionDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            for argument in node.args[1:2]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value


def test_horovod_is_imported_by_its_backend_and_its_drop_in_alone():
    assert {module for module in MODULES if "horovod" in _top(_imports(module))} <= HOROVOD


def test_nothing_turns_data_into_code():
    offenders = []
    for module in MODULES:
        offenders += [f"{module} imports {name}" for name in sorted(_top(_imports(module)) & CODE_FROM_DATA)]
        for node in ast.walk(_tree(module)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("compile", "eval", "exec")
            ):
                offenders.append(f"{module}:{node.lineno} calls {node.func.id}")
    assert not offenders


def test_the_reader_of_imports_reads_them(tmp_path, monkeypatch):
    """The rules above hold only if what they read is right."""
    files = {
        "distlr.a": "import os\nfrom .c import x\ndef f():\n    import keras\n",
        "distlr.b": "if typing.TYPE_CHECKING:\n    import tensorflow\nfrom distlr import a\n",
        "distlr.c": "try:\n    import horovod.tensorflow as hvd\nexcept ImportError:\n    hvd = None\n",
        "distlr.d": "import importlib\nclass K:\n    m = importlib.import_module('tensorflow.keras')\n",
    }
    paths = {}
    for name, text in files.items():
        paths[name] = tmp_path / f"{name}.py"
        paths[name].write_text(text, encoding="utf-8")
    for function in (_tree, _imports, _runs):
        function.cache_clear()
    monkeypatch.setitem(globals(), "MODULES", paths)
    try:
        assert _top(_imports("distlr.a")) == {"os", "distlr", "keras"}
        assert "keras" not in _reaches("distlr.a")
        assert _reaches("distlr.b")["horovod"] == ("distlr.b", "distlr.a", "distlr.c", "horovod")
        assert "tensorflow" in _imports("distlr.b")
        assert "tensorflow" not in _reaches("distlr.b")
        assert "tensorflow" in _reaches("distlr.d")
    finally:
        for function in (_tree, _imports, _runs):
            function.cache_clear()


def _imports_of_scripts() -> list[tuple[str, str, str]]:
    """What the benchmarks and the launch scripts import of distlr: file, module and name. No other check reads them."""
    imports = []
    for path in sorted([*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "launch").glob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "distlr":
                imports += [(path.name, str(node.module), alias.name) for alias in node.names]
    return imports


def test_benchmarks_and_launch_scripts_import_names_that_exist():
    imports = _imports_of_scripts()
    assert len(imports) > 15, "the imports are not found"
    missing = [each for each in imports if not hasattr(importlib.import_module(each[1]), each[2])]
    assert missing == []
