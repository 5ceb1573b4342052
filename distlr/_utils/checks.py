"""Checks of arguments, one for each kind, so that the same mistake reads the same everywhere; and numbers in words.

This module imports neither TensorFlow, Keras nor numpy; their scalars are numbers all the same.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Collection
from typing import SupportsFloat, SupportsIndex, cast

from distlr.errors import ConfigurationError, ConfigurationTypeError, received

__all__ = [
    "INT64_END",
    "counted",
    "digits",
    "finite_real",
    "integer",
    "not_negative_real",
    "one_of",
    "positive_integer",
    "positive_real",
    "real",
    "whole_number",
]

# The clock lives in an int64 variable of the optimizer.
INT64_END = 2**63


def integer(value: object) -> int | None:
    """Returns `value` as an int; None where it is no integer. A truth value is none."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def digits(text: str) -> int | None:
    """The number that a text from outside has in one to nine ASCII digits; None for any other text.

    Python's own `int` also takes signs, underscores and the digits of other scripts, and raises at thousands of digits.

    >>> digits("4"), digits("1_0"), digits("9" * 5000)
    (4, None, None)
    """
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else None


def whole_number(argument: str, value: object) -> int:
    """An integer that an int64 holds, of whatever integer type; a float is none."""
    number = integer(value)
    if number is None:
        whole = isinstance(value, float) and value.is_integer()
        hint = f"write {int(value)}" if whole and isinstance(value, float) else "write a whole number such as 64"
        raise ConfigurationTypeError(received(argument, value, "an integer", hint))
    if not -INT64_END <= number < INT64_END:
        raise ConfigurationError(received(argument, value, "an integer of 64 bits"))
    return number


def positive_integer(argument: str, value: object) -> int:
    """An integer of at least 1, of whatever integer type; a float is none."""
    number = whole_number(argument, value)
    if number < 1:
        raise ConfigurationError(received(argument, value, "at least 1"))
    return number


def real(argument: str, value: object, expected: str = "a real number", hint: str = "") -> float:
    """A real number as a float, NaN and infinity included: anything with `__float__` but truth values."""
    dtype = str(getattr(value, "dtype", ""))
    refused = isinstance(value, (bool, str)) or "bool" in dtype or "complex" in dtype
    if not refused and hasattr(value, "__float__"):
        try:
            return float(cast(SupportsFloat, value))
        except OverflowError as error:
            raise ConfigurationError(received(argument, value, expected, hint)) from error
        except (TypeError, ValueError) as error:  # an array of several values, a symbolic tensor
            raise ConfigurationTypeError(received(argument, value, expected, hint)) from error
    raise ConfigurationTypeError(received(argument, value, expected, hint))


def finite_real(argument: str, value: object, expected: str = "a finite number", hint: str = "") -> float:
    """A number that is neither NaN nor infinite."""
    number = real(argument, value, expected, hint)
    if not math.isfinite(number):
        raise ConfigurationError(received(argument, value, expected, hint))
    return number


def positive_real(argument: str, value: object, hint: str = "") -> float:
    """A finite number above 0."""
    number = finite_real(argument, value, "a finite number above 0", hint)
    if number <= 0:
        raise ConfigurationError(received(argument, value, "a finite number above 0", hint))
    return number


def not_negative_real(
    argument: str, value: object, expected: str = "a finite number of at least 0", hint: str = ""
) -> float:
    """A finite number of at least 0."""
    number = finite_real(argument, value, expected, hint)
    if number < 0:
        raise ConfigurationError(received(argument, value, expected, hint))
    return number


def one_of(argument: str, value: object, choices: Collection[str]) -> str:
    """The choice that `value` is equal to, as a plain string also where it is a member of an enumeration.

    >>> import enum
    >>> one_of("shape", enum.Enum("Shape", {"COSINE": "cosine"}, type=str).COSINE, ("linear", "cosine"))
    'cosine'
    """
    for choice in choices:
        if choice == value:
            return choice
    raise ConfigurationError(received(argument, value, f"one of {', '.join(map(repr, choices))}"))


def counted(count: int, one: str, many: str | None = None) -> str:
    """A number with its noun: `many` is `one` with an s where it is not given.

    >>> counted(1, "replica"), counted(4, "replica"), counted(2, "save by hand", "saves by hand")
    ('1 replica', '4 replicas', '2 saves by hand')
    """
    return f"{count} {one if count == 1 else many or one + 's'}"
