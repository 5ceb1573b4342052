"""Finds code that Keras 3 refuses, ignores or no longer has."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from distlr.tools.doctor.reading import Remark, Script, argument, is_true

__all__ = ["backend_functions", "compile_arguments", "lr_attributes", "plateaus"]

_SET_RATE = "optimizer.learning_rate = x"


def plateaus(script: Script) -> Iterator[Remark]:
    """Keras' `ReduceLROnPlateau` beside a schedule that nothing makes adjustable."""
    if script.adopts() or not any(
        script.is_schedule(argument(call, 0, "learning_rate")) for call in script.optimizers()
    ):
        return
    for call in script.calls_of("keras.callbacks.ReduceLROnPlateau"):
        text = f"`{ast.unparse(call.func)}` beside a schedule as the rate: TypeError at the first cut."
        to_do = "Write job.optimizer(optimizer, batch) and job.callbacks([distlr.callbacks.ReduceLROnPlateau(...)])."
        yield Remark(call.lineno, "error", text, to_do)


def compile_arguments(script: Script) -> Iterator[Remark]:
    """Arguments of `compile` that Keras 3, or several devices, refuse."""
    for _, call in script.methods("compile"):
        if argument(call, None, "experimental_run_tf_function") is not None:
            text = "compile(experimental_run_tf_function=...): TypeError on Keras 3."
            yield Remark(call.lineno, "error", text, "Leave it out: Horovod needed it on TensorFlow 2.0 to 2.3.")
        if is_true(argument(call, None, "jit_compile")) and script.imports("distlr", "horovod"):
            text = "compile(jit_compile=True): distlr refuses it on several devices or ranks; on one it is right."
            yield Remark(call.lineno, "warning", text, "Leave it out: Keras switches it on where it can.")


def lr_attributes(script: Script) -> Iterator[Remark]:
    """`optimizer.lr`, and `SGD(lr=...)`."""
    for node in script.nodes:
        if isinstance(node, ast.Attribute) and node.attr == "lr" and _is_optimizer(script, node.value):
            what = "is set and nothing reads it: the rate stays" if isinstance(node.ctx, ast.Store) else "is gone"
            text = f"`{ast.unparse(node)}` {what} on Keras 3."
            yield Remark(node.lineno, "error", text, f"Write optimizer.learning_rate; to set it, {_SET_RATE}.")
    for call in script.optimizers():
        if argument(call, None, "lr") is not None:
            text = f"`{ast.unparse(call.func)}(lr=...)`: ValueError on Keras 3."
            yield Remark(call.lineno, "error", text, "Write learning_rate=...")


def backend_functions(script: Script) -> Iterator[Remark]:
    """`K.get_value` and `K.set_value` of Keras' own backend; `tf.keras` still has them."""
    for call in script.calls:
        name = script.names.spelled(call.func)
        if name not in ("keras.backend.get_value", "keras.backend.set_value"):
            continue
        if any(isinstance(node, ast.Attribute) and node.attr == "lr" for node in ast.walk(call)):
            continue  # reported with the attribute
        text = f"`{ast.unparse(call.func)}` is gone on Keras 3."
        to_do = f"Write variable.assign(x), variable.numpy(); for the rate {_SET_RATE}, float(optimizer.learning_rate)."
        yield Remark(call.lineno, "error", text, to_do)


def _is_optimizer(script: Script, node: ast.expr) -> bool:
    """Whether it surely is an optimizer: made as one, or the `optimizer` of a model."""
    if isinstance(node, ast.Attribute) and node.attr == "optimizer":
        return script.is_model(node.value)
    value = script.names.value(node)
    name = script.names.of(value) or ""
    return value in list(script.optimizers()) or name.endswith((".DistributedOptimizer()", "distlr.init().optimizer()"))
