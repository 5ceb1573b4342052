"""Arguments of the form `package.module:name`."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from distlr.errors import ConfigurationError, received

__all__ = ["check_name", "import_object", "importable_working_directory"]


@contextlib.contextmanager
def importable_working_directory() -> Iterator[None]:
    """Lets modules of the working directory be imported inside, as `python -m` does."""
    directory = os.getcwd()
    sys.path.insert(0, directory)
    try:
        yield
    finally:
        if directory in sys.path:
            sys.path.remove(directory)


def check_name(argument: str, text: str) -> tuple[str, str]:
    """Splits the argument into the module and the name in it; imports nothing.

    Raises:
        ConfigurationError: it is not of this form.
    """
    module, _, name = text.partition(":")
    if not module or not name:
        raise ConfigurationError(received(argument, text, "of the form package.module:name"))
    return module, name


def import_object(argument: str, text: str) -> Any:
    """Imports the object that `package.module:name` names; a dot in the name reaches into an object.

    Raises:
        ConfigurationError: there is no such module, or nothing of that name in it.
    """
    module, name = check_name(argument, text)
    try:
        value: Any = importlib.import_module(module)
        for part in name.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"`{argument}` cannot be imported: {error}. Received: {argument}={text!r}.") from error
    return value
