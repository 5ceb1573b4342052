"""Finds uses of Horovod that do not work on Keras 3."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from distlr.tools.doctor.reading import HOROVOD, Remark, Script

__all__ = ["callbacks", "imports", "optimizers"]

_INSTEAD = {
    "BroadcastGlobalVariablesCallback": "job.callbacks([...]), which adds it",
    "MetricAverageCallback": "job.callbacks([...]), which adds exact metrics",
    "LearningRateWarmupCallback": 'job.optimizer(optimizer, batch, warmup="5ep")',
    "LearningRateScheduleCallback": "a schedule as the optimizer's rate, such as distlr.schedules.PerEpoch",
}


def imports(script: Script) -> Iterator[Remark]:
    """`import horovod.tensorflow.keras as hvd`, in all its spellings."""
    lacking = sorted({name.split(".")[3].removesuffix("()") for name in _used(script)} - _drop_in())
    for node in dict.fromkeys(node for _, node in script.imported):
        inside = _is_of_horovod(node.module or "") if isinstance(node, ast.ImportFrom) else False
        if not inside and not any(map(_is_of_horovod, _names(node))):
            continue
        alias = next((each.asname for each in node.names if each.asname), "hvd")
        names = ""
        if inside and isinstance(node, ast.ImportFrom):
            where = "hvd.callbacks." if (node.module or "").endswith(".callbacks") else "hvd."
            alias, names = "hvd", " and " + ", ".join(f"{where}{each.name}" for each in node.names)
        to_do = f"Write `import distlr.horovod as {alias}`{names}, with the same meanings."
        if lacking:
            to_do += f" It does not have {', '.join(lacking)}."
        text = f"`{ast.unparse(node)}`: on Keras 3 Horovod's optimizer averages nothing, and its callbacks raise."
        yield Remark(node.lineno, "warning", text, to_do)


def optimizers(script: Script) -> Iterator[Remark]:
    """`hvd.DistributedOptimizer(...)` of Horovod itself."""
    optimizer_calls = [*script.optimizers()]
    calls = [*script.calls_of(f"{HOROVOD}.DistributedOptimizer")]
    for call in script.calls_of("horovod.tensorflow.DistributedOptimizer"):  # which also takes TensorFlow 1's
        if call.args and script.names.value(call.args[0]) in optimizer_calls:
            calls.append(call)
    for call in calls:
        text = (
            f"`{ast.unparse(call.func)}(...)` averages nothing on Keras 3, and says nothing: each rank trains a model "
            "of its own."
        )
        to_do = "Import distlr.horovod in place of Horovod's, or write job.optimizer(optimizer, batch)."
        yield Remark(call.lineno, "error", text, to_do)


def callbacks(script: Script) -> Iterator[Remark]:
    """Each use of a class of `hvd.callbacks`."""
    for node in script.nodes:
        if not isinstance(node, ast.Attribute | ast.Name):
            continue
        where, _, kind = (script.names.of(node) or "").rpartition(".")
        if where == f"{HOROVOD}.callbacks" and kind in _INSTEAD:
            text = f"`{ast.unparse(node)}` raises AttributeError on Keras 3."
            to_do = f"Import distlr.horovod in place of Horovod's, or write {_INSTEAD[kind]}."
            yield Remark(node.lineno, "error", text, to_do)


def _is_of_horovod(name: str) -> bool:
    return f"{name}.".startswith((f"{HOROVOD}.", "horovod.keras."))


def _names(node: ast.Import | ast.ImportFrom) -> list[str]:
    before = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
    return [f"{before}{alias.name}" for alias in node.names]


def _used(script: Script) -> Iterator[str]:
    names = (script.names.of(node) for node in script.nodes if isinstance(node, ast.Attribute | ast.Name))
    return (name for name in names if name is not None and name.startswith(f"{HOROVOD}."))


@functools.cache
def _drop_in() -> frozenset[str]:
    """The names that `distlr.horovod` has, from its source: importing it would start TensorFlow."""
    tree = ast.parse(Path(__file__).parents[2].joinpath("horovod", "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return frozenset(ast.literal_eval(node.value))
    raise AssertionError("distlr/horovod/__init__.py has no __all__")
