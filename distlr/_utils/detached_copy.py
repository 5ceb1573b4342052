"""Copies of objects, with some other values: a config is made of the copy, and the object itself stays as it is."""

from __future__ import annotations

from typing import Any

__all__ = ["update_copy"]


def update_copy(copy: Any, original: Any, leave_out: str, values: dict[str, Any]) -> None:
    """Copies all attributes of `original` to `copy` except one, and then sets some of them to other values.

    Args:
        copy: made by `object.__new__` of the class that it is to be of.
        original: stays as it is.
        leave_out: an attribute that the copy is not to have.
        values: set as a program sets them, so that a property or a `__setattr__` of a user's class stores them.
    """
    vars(copy).clear()
    vars(copy).update(vars(original))
    vars(copy).pop(leave_out, None)
    for kind in type(copy).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(original, name):
                object.__setattr__(copy, name, getattr(original, name))
    for name, value in values.items():
        setattr(copy, name, value)
