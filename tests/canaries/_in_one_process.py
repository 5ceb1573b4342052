"""Runs scripts one after another in this process, which imports TensorFlow once.

`python _in_one_process.py OUT SCRIPT ...` writes `OUT/<script>-<process number>.json` for each: the error, the
warnings, and a digest of the weights of `model`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import runpy
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

_OF_PACKAGES = (DeprecationWarning, FutureWarning, PendingDeprecationWarning)
_LOGGERS = ("absl", "distlr", "tensorflow")


class _Lines(logging.Handler):
    """Keeps what is logged at WARNING or above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.name}: {record.getMessage()}")


def run(script: Path) -> dict[str, Any]:
    start, logged, namespace, error = time.monotonic(), _Lines(), {}, None
    for name in _LOGGERS:
        logging.getLogger(name).addHandler(logged)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            namespace = runpy.run_path(str(script), run_name="__main__")
        except Exception:
            error = traceback.format_exc()
        # What packages say about their own code is not for the script's author.
        warned = [each for each in caught if not (issubclass(each.category, _OF_PACKAGES) and _of_package(each))]
    for name in _LOGGERS:
        logging.getLogger(name).removeHandler(logged)
    return {
        "error": error,
        "warnings": [f"{each.category.__name__}: {each.message}" for each in warned] + logged.lines,
        "weights": None if error else _digest(namespace["model"]),
        "seconds": round(time.monotonic() - start, 1),
    }


def _of_package(warning: warnings.WarningMessage) -> bool:
    return "site-packages" in warning.filename


def _digest(model: Any) -> str:
    """Of the weights' bytes; "not finite" where any is no finite number."""
    weights = [np.asarray(weight) for weight in model.get_weights()]
    if not all(np.isfinite(weight).all() for weight in weights):
        return "not finite"
    return hashlib.sha256(b"".join(weight.tobytes() for weight in weights)).hexdigest()


def main(out: str, *scripts: str) -> None:
    failed = False
    for script in map(Path, scripts):
        folder = Path(out, script.stem)
        folder.mkdir(exist_ok=True)
        os.chdir(folder)
        result = run(script)
        Path(out, f"{script.stem}-{os.getpid()}.json").write_text(json.dumps(result))
        print(f"canary {script.stem}: {'failed' if result['error'] else 'done'} in {result['seconds']} s", flush=True)
        if result["error"]:
            print(result["error"], flush=True)
            failed = True
            if int(os.environ.get("HOROVOD_SIZE", "1")) > 1 or "TF_CONFIG" in os.environ:
                os._exit(1)  # not over the engine's shutdown: the other ranks wait for this one
        keras.mixed_precision.set_global_policy("float32")
        keras.backend.clear_session()
    sys.exit(failed)


if __name__ == "__main__":
    main(*sys.argv[1:])
