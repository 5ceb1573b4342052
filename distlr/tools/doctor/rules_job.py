"""Finds wrong or needless uses of distlr's job."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from distlr.tools.doctor.reading import HOROVOD, MODELS, Remark, Script, argument

__all__ = ["callbacks", "savers", "scaled_twice", "scopes"]

_SIZES = {f"{module}.size()" for module in (HOROVOD, "horovod.tensorflow", "distlr.horovod")}
_SIZES |= {"distlr.init().size", "distlr.init().replicas"}
_RANKS = {name.replace("size", "rank") for name in _SIZES} | {"distlr.init().is_root"}
_SAVERS = {f"keras.callbacks.{kind}" for kind in ("BackupAndRestore", "CSVLogger", "ModelCheckpoint", "TensorBoard")}
_ARITHMETIC = ("float", "max", "min", "round")
_SCALING = ("linear", "sqrt")  # and the effect of a user's own rule is unknown


def scaled_twice(script: Script) -> Iterator[Remark]:
    """A rate that is multiplied by the number of replicas, and scaled by `job.optimizer(..., batch)` too."""
    if not script.imports("distlr") or not any(_scales(call) for _, call in script.methods("optimizer")):
        return
    places: dict[int, ast.AST] = {}
    for call in script.calls:
        name = script.names.of(call.func) or ""
        if call in list(script.optimizers()) or name.startswith("keras.optimizers.schedules."):
            rate = _rate(call)
            product = None if rate is None else _multiplied(script, rate)
            if product is not None:
                places[product.lineno] = product
    for line, node in sorted(places.items()):
        text = f"`{ast.unparse(node)}` is the rate of job.optimizer(..., batch), too, which scales it again."
        yield Remark(
            line, "error", text, "Write the rate of one device, and base_batch= for the batch it was tuned at."
        )


def callbacks(script: Script) -> Iterator[Remark]:
    """`fit` without `job.callbacks`."""
    if not any(script.calls_of("distlr.init")) or any(script.methods("callbacks")):
        return
    for model, call in script.methods("fit"):
        if script.is_model(model):
            text = (
                "fit without job.callbacks: no start from rank 0's state, no exact metrics, no check of steps or ranks."
            )
            yield Remark(call.lineno, "warning", text, "Write fit(..., callbacks=job.callbacks([...])).")


def savers(script: Script) -> Iterator[Remark]:
    """A saver that only rank 0 has, although `job.callbacks` does that itself."""
    if not any(script.methods("callbacks")):
        return
    for node in script.nodes:
        if not isinstance(node, ast.If) or not any(script.names.of(part) in _RANKS for part in ast.walk(node.test)):
            continue
        for call in (part for statement in node.body for part in ast.walk(statement) if isinstance(part, ast.Call)):
            if script.names.of(call.func) in _SAVERS:
                text = f"`{ast.unparse(call.func)}` on rank 0 alone: harmless, and job.callbacks does it by itself."
                yield Remark(call.lineno, "OK", text, "It can be in job.callbacks([...]) on every rank.")


def scopes(script: Script) -> Iterator[Remark]:
    """A model that is made beside `with job.scope():`, in the same block, and trained."""
    scoped = [item.context_expr for node in script.nodes if isinstance(node, ast.With) for item in node.items]
    if any(call not in scoped for _, call in script.methods("scope")):
        return  # such as stack.enter_context(job.scope()): where it ends is not known
    trained = {ast.unparse(model) for name in ("compile", "fit") for model, _ in script.methods(name)}
    for block in _blocks(script):
        if not any(isinstance(node, ast.With) and _enters_scope(script, node) for node in block):
            continue
        for node in block:
            if isinstance(node, ast.Assign) and script.names.of(node.value) in MODELS:
                name = ast.unparse(node.targets[0])
                if name in trained:
                    text = f"`{name}` is made outside of `with job.scope():`, which is refused on several devices."
                    yield Remark(node.lineno, "warning", text, "Make and compile it inside.")


def _rate(call: ast.Call) -> ast.expr | None:
    return argument(call, 0, "learning_rate", "initial_learning_rate", "lr")


def _scales(call: ast.Call) -> bool:
    rule = argument(call, None, "rule")
    by_rule = rule is None or (isinstance(rule, ast.Constant) and rule.value in _SCALING)
    return argument(call, 1, "batch") is not None and by_rule


def _multiplied(script: Script, node: ast.expr, depth: int = 20) -> ast.expr | ast.stmt | None:
    """Where an expression is multiplied by the number of replicas; names are followed to their assigned expressions."""
    if not depth:
        return None
    for change in script.growing:  # lr *= hvd.size()
        if _mentions_size(script, change.value) and ast.unparse(change.target) == ast.unparse(node):
            return change
    node = script.names.value(node)
    parts: list[ast.expr] = []
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Mult) and any(_mentions_size(script, side) for side in (node.left, node.right)):
            return node
        parts = [node.left] if isinstance(node.op, ast.Div | ast.FloorDiv) else [node.left, node.right]
    elif isinstance(node, ast.Call) and (name := script.names.of(node.func) or ast.unparse(node.func)):
        if name.startswith("keras.optimizers.schedules."):
            parts = [rate for rate in (_rate(node),) if rate is not None]
        elif name in _ARITHMETIC or name.startswith(("math.", "numpy.")):
            parts = node.args
    elif isinstance(node, ast.IfExp):
        parts = [node.body, node.orelse]
    return next((product for part in parts if (product := _multiplied(script, part, depth - 1)) is not None), None)


def _mentions_size(script: Script, node: ast.expr) -> bool:
    return any(
        script.names.of(part) in _SIZES or (isinstance(part, ast.Attribute) and part.attr == "num_replicas_in_sync")
        for start in (node, script.names.value(node))
        for part in ast.walk(start)
    )


def _enters_scope(script: Script, node: ast.With) -> bool:
    return any(script.names.of(item.context_expr) == "distlr.init().scope()" for item in node.items)


def _blocks(script: Script) -> Iterator[list[ast.stmt]]:
    """The module's statements and each function's, without those of the blocks inside."""
    yield script.tree.body
    yield from (node.body for node in script.nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
