"""What the modules that use Keras need of the installation; checked when the first of them is imported."""

from __future__ import annotations

import logging
import sys

import keras

from distlr.errors import ConfigurationError

__all__: list[str] = []


def _check(version: str, backend: str) -> None:
    if int(version.split(".")[0]) < 3:
        raise ConfigurationError(
            f"distlr needs Keras 3. Received: keras {version} (legacy Keras). To mend it: pip install 'keras>=3'."
        )
    if backend != "tensorflow":
        raise ConfigurationError(
            f"distlr needs Keras' TensorFlow backend. Found: keras.backend.backend()={backend!r}. To mend it: set "
            "KERAS_BACKEND=tensorflow before Keras is imported."
        )


class _WithoutSetup(logging.Handler):
    """Writes distlr's lines to stderr as long as the program has set up no logging of its own."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            print(f"[distlr] {self.format(record)}", file=sys.stderr, flush=True)


def _speak() -> None:
    logger = logging.getLogger("distlr")
    if not logger.handlers:
        logger.addHandler(_WithoutSetup())
        logger.setLevel(logging.INFO)


_check(keras.__version__, keras.backend.backend())
_speak()
