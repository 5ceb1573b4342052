"""Checks the installation for the modules that use Keras, when the first of them is imported."""

from __future__ import annotations

import importlib.util

from distlr.errors import ConfigurationError

__all__ = ["NEEDS_TENSORFLOW"]

NEEDS_TENSORFLOW = (
    'This part of distlr needs TensorFlow 2.16 or later, and none is installed. Fix: pip install "distlr[cpu]" (or '
    '"distlr[gpu]").'
)


def _check(version: str, backend: str) -> None:
    if int(version.split(".")[0]) < 3:
        raise ConfigurationError(
            f"distlr needs Keras 3. Received: keras {version} (legacy Keras). Fix: pip install 'keras>=3'."
        )
    if backend != "tensorflow":
        raise ConfigurationError(
            f"distlr needs Keras' TensorFlow backend. Found: keras.backend.backend()={backend!r}. Fix: set "
            "KERAS_BACKEND=tensorflow before Keras is imported."
        )


if importlib.util.find_spec("tensorflow") is None:
    raise ImportError(NEEDS_TENSORFLOW)

import keras  # noqa: E402  (Keras itself would ask for another backend)

_check(keras.__version__, keras.backend.backend())
