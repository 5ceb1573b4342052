"""Finds losses of a script's own `train_step` that replicas would add up wrongly."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from distlr.tools.doctor.reading import Remark, Script
from distlr.tools.doctor.two_replicas import HOW_TO_WRITE

__all__ = ["mean_losses"]

_MEANS = {"keras.backend.mean", "keras.ops.mean", "tensorflow.math.reduce_mean", "tensorflow.reduce_mean"}


def mean_losses(script: Script) -> Iterator[Remark]:
    """A `train_step` that differentiates a mean of its own, where a job may have replicas, and no loss for them."""
    if not any(script.calls_of("distlr.init")):
        return  # on ranks alone, such as those of the drop-in, the mean is right
    for cls in (node for node in script.nodes if isinstance(node, ast.ClassDef)):
        for step in (node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "train_step"):
            means = [call for call in _calls(*_tapes(script, step)) if script.names.of(call.func) in _MEANS]
            if means and not any(_scaled(script, call) for call in _calls(step)):
                text = (
                    f"train_step differentiates `{ast.unparse(means[0].func)}`: on n replicas of one strategy, whose "
                )
                text += "gradients are added up, the update is n times that of one device."
                yield Remark(means[0].lineno, "warning", text, HOW_TO_WRITE)


def _tapes(script: Script, step: ast.FunctionDef) -> Iterator[ast.With]:
    for node in ast.walk(step):
        if isinstance(node, ast.With) and any(
            script.names.of(item.context_expr) == "tensorflow.GradientTape()" for item in node.items
        ):
            yield node


def _calls(*parts: ast.AST) -> list[ast.Call]:
    return [node for part in parts for node in ast.walk(part) if isinstance(node, ast.Call)]


def _scaled(script: Script, call: ast.Call) -> bool:
    """Whether a call divides by all replicas, or may do so: Keras' losses, except its plain functions."""
    name = script.names.of(call.func) or ""
    if name.startswith("keras.losses."):
        return name.endswith("()")
    last = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return "loss" in last
