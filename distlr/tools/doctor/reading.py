"""A user's training script, which is parsed and never imported or run."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator

from distlr.tools.doctor.finding import Status
from distlr.tools.doctor.names import Names

__all__ = ["HOROVOD", "MODELS", "Remark", "Script", "argument", "is_true"]

HOROVOD = "horovod.tensorflow.keras"
"""Horovod for Keras, as `Names.of` calls it."""

MODELS = frozenset(f"keras.{where}{kind}()" for where in ("", "models.") for kind in ("Model", "Sequential"))
"""What makes a Keras model."""

_SCHEDULES = ("keras.optimizers.schedules.", "distlr.schedules.")


@dataclasses.dataclass(frozen=True)
class Remark:
    """A finding on a line."""

    line: int
    status: Status
    found: str
    to_do: str = ""


class Script:
    """A parsed script, with the questions that the rules have.

    Attributes:
        tree: the module.
        names: the meaning of its names.
        nodes: every node.
        calls: every call, in the order of the lines.
        growing: every `x *= y`.
        imported: the full name of everything that is imported, and where.
    """

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.names = Names(tree)
        self.nodes = list(ast.walk(tree))
        self.calls = sorted((node for node in self.nodes if isinstance(node, ast.Call)), key=lambda call: call.lineno)
        self.growing = [n for n in self.nodes if isinstance(n, ast.AugAssign) and isinstance(n.op, ast.Mult)]
        self.imported: list[tuple[str, ast.Import | ast.ImportFrom]] = []
        for node in self.nodes:
            if isinstance(node, ast.Import):
                self.imported += [(alias.name, node) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                self.imported += [(f"{node.module}.{alias.name}", node) for alias in node.names]

    def imports(self, *packages: str) -> bool:
        """Whether it imports one of these, or something inside."""
        return any(f"{name}.".startswith(f"{package}.") for name, _ in self.imported for package in packages)

    def calls_of(self, *names: str) -> Iterator[ast.Call]:
        """The calls of functions and classes, by their resolved names."""
        return (call for call in self.calls if self.names.of(call.func) in names)

    def methods(self, name: str) -> Iterator[tuple[ast.expr, ast.Call]]:
        """The calls `object.name(...)`, each with its object."""
        return (
            (call.func.value, call)
            for call in self.calls
            if isinstance(call.func, ast.Attribute) and call.func.attr == name
        )

    def optimizers(self) -> Iterator[ast.Call]:
        """The calls that make an optimizer of Keras."""
        for call in self.calls:
            name = self.names.of(call.func) or ""
            if name.startswith("keras.optimizers.") and name.count(".") == 2 and name.rpartition(".")[2][0].isupper():
                yield call

    def is_schedule(self, node: ast.expr | None) -> bool:
        """Whether an expression surely is a schedule of Keras or of distlr."""
        name = None if node is None else self.names.of(node)
        return name is not None and name.endswith("()") and (name.startswith(_SCHEDULES) or name == "distlr.scale()")

    def is_model(self, node: ast.expr) -> bool:
        """Whether an expression is a Keras model: made by Keras, or called one."""
        last = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
        return self.names.of(node) in MODELS or last.lower().endswith("model")

    def adopts(self) -> bool:
        """Whether something may hand an optimizer to distlr: `job.optimizer(...)`, or the drop-in's."""
        drop_in = any(self.calls_of("distlr.horovod.DistributedOptimizer"))
        return drop_in or (self.imports("distlr") and any(self.methods("optimizer")))


def argument(call: ast.Call, place: int | None, *names: str) -> ast.expr | None:
    """A call's argument by its place or one of its names; None where it is not given."""
    for keyword in call.keywords:
        if keyword.arg in names:
            return keyword.value
    return call.args[place] if place is not None and len(call.args) > place else None


def is_true(node: ast.expr | None) -> bool:
    """Whether an expression is the word True."""
    return isinstance(node, ast.Constant) and node.value is True
