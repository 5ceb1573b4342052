"""Reads a user's training script, and reports code that does not work with Keras 3, Horovod or distlr."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path

from distlr.errors import ConfigurationError, received
from distlr.tools.doctor import rules_horovod, rules_job, rules_keras, rules_losses
from distlr.tools.doctor.finding import Finding
from distlr.tools.doctor.reading import Script

__all__ = ["read"]

_RULES = (
    rules_horovod.imports,
    rules_horovod.optimizers,
    rules_horovod.callbacks,
    rules_keras.plateaus,
    rules_keras.compile_arguments,
    rules_keras.lr_attributes,
    rules_keras.backend_functions,
    rules_job.scaled_twice,
    rules_job.callbacks,
    rules_job.savers,
    rules_job.scopes,
    rules_losses.mean_losses,
)
_LEGACY = "TF_USE_LEGACY_KERAS"


def read(path: Path, *, measured: bool = False) -> list[Finding]:
    """The findings in the order of lines, one a line; a single one if there is nothing to report.

    Names are resolved by the script's imports. A value from elsewhere, such as a function's argument, is unknown and
    not judged. Nothing is imported or run.

    Args:
        path: the script.
        measured: whether its losses need not be judged, since an update was measured (`two_replicas.py`).

    Raises:
        ConfigurationError: there is no such file, or it is a notebook.
    """
    if not path.is_file() or path.suffix == ".ipynb":
        hint = "a notebook becomes one by `jupyter nbconvert --to script`"
        raise ConfigurationError(received("--script", str(path), "a Python file", hint))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's own about the script, such as of "\\d"
            script = Script(ast.parse(path.read_bytes(), filename=str(path)))
        rules = [rule for rule in _RULES if not (measured and rule is rules_losses.mean_losses)]
        remarks = {remark for rule in rules for remark in rule(script)}
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        return [Finding(f"{path}{line}", "error", f"It is no Python that this Python can read: {error}.")]
    except (RecursionError, MemoryError):
        return [Finding(str(path), "warning", "An expression in it is nested too deeply to be read.")]
    if script.imports("tf_keras") or any(isinstance(n, ast.Constant) and n.value == _LEGACY for n in script.nodes):
        text = "It uses legacy Keras (tf_keras), of which distlr adopts no optimizer; the rest was not looked at."
        return [Finding(str(path), "warning", text, "Write `import keras`, which is Keras 3, to use distlr.")]
    if not remarks:
        return [Finding(str(path), "OK", "Read: nothing in it that is known not to work.")]
    by_line = sorted(remarks, key=lambda remark: (remark.line, remark.found))
    return [Finding(f"{path}:{each.line}", each.status, each.found, each.to_do) for each in by_line]
