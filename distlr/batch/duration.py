"""Lengths of training with their units, such as "5ep": exact, and read in this one place.

This module imports neither TensorFlow, Keras nor numpy.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from distlr._utils.checks import INT64_END, integer
from distlr.errors import ConfigurationError, ConfigurationTypeError, received

__all__ = ["Duration"]

_UNITS = {"ep": "epochs", "ba": "updates", "sp": "samples", "dur": "runs"}

# Two digits of exponent: "1e999999999sp" must be an error, not an integer of a gigabyte.
_TEXT = re.compile(
    r"\s*(?P<sign>[+-]?)"
    r"(?P<number>[0-9][0-9_]*/[0-9][0-9_]*|(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:e[+-]?[0-9]{1,2})?)"
    r"\s*(?P<unit>[a-z]*)\s*",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True, init=False, repr=False)
class Duration:
    """A length of training with its unit: "5ep", "100ba", "60000sp" or "0.05dur".

    Units (composer's): `ep` epochs; `ba` optimizer updates at the global batch ("batches"); `sp` samples;
    `dur` a fraction of the whole run, at most 1.

    Attributes:
        value: The number as an exact fraction, 0 or more. A float is read as the decimal that it prints.
        unit: "ep", "ba", "sp" or "dur".

    Raises:
        ConfigurationError: The value is negative, not finite, 2**63 or more, or above 1 with `dur`; or the
            unit is unknown.
        ConfigurationTypeError: The value is not a number, or the unit is not text.

    Example:
        >>> Duration.parse("2.5ep")
        Duration.parse('2.5ep')
        >>> Duration(0.05, "dur").value
        Fraction(1, 20)
        >>> Duration(5, "ep") == Duration.parse("5ep")
        True
    """

    value: Fraction
    unit: str

    def __init__(self, value: int | float | Fraction, unit: str) -> None:
        object.__setattr__(self, "value", _check_value(_fraction(value), unit, "value", value))
        object.__setattr__(self, "unit", unit)

    @classmethod
    def parse(cls, value: str | Duration, argument: str = "duration") -> Duration:
        """Reads a duration; a `Duration` is returned as it is.

        Args:
            value: A number and a unit, such as "5ep", "0.5ep", "1e4sp", "60_000sp" or "1/3dur".
            argument: The name of the argument, for messages.

        Returns:
            The duration.

        Raises:
            ConfigurationError: The text is empty, no duration, without a unit or with an unknown one; or the
                value is out of range.
            ConfigurationTypeError: `value` is not text.

        Example:
            >>> Duration.parse("60_000sp").value
            Fraction(60000, 1)
            >>> Duration.parse("5", argument="warmup")
            Traceback (most recent call last):
                ...
            distlr.errors.ConfigurationError: `warmup` must be a duration with a unit. Received: warmup='5'. \
Fix: write '5ep' for 5 epochs, '5ba' for 5 updates or '5sp' for 5 samples.
        """
        if isinstance(value, Duration):
            return value
        if not isinstance(value, str):
            raise ConfigurationTypeError(
                received(argument, value, "a duration with a unit, as text", _example_hint(_example_number(value)))
            )
        match = _TEXT.fullmatch(value)
        if match is None:
            raise ConfigurationError(received(argument, value, "a duration: a number and a unit", _example_hint("5")))
        number, unit = match["number"].replace("_", ""), match["unit"].lower()
        if not unit:
            raise ConfigurationError(received(argument, value, "a duration with a unit", _example_hint(number)))
        if unit not in _UNITS:
            units = ", ".join(_UNITS)
            raise ConfigurationError(
                received(argument, value, f"a duration with one of the units {units}", _example_hint(number))
            )
        try:
            exact = Fraction(match["sign"] + number)
        except (ValueError, ZeroDivisionError):
            raise ConfigurationError(
                received(argument, value, "a duration: a number and a unit", _example_hint("5"))
            ) from None
        return cls(_check_value(exact, unit, argument, value), unit)

    def __str__(self) -> str:
        """The text that `parse` reads back to an equal duration.

        >>> str(Duration.parse("1e4sp")), str(Duration(2.50, "ep")), str(Duration(Fraction(1, 3), "dur"))
        ('10000sp', '2.5ep', '1/3dur')
        """
        return f"{_decimal(self.value)}{self.unit}"

    def __repr__(self) -> str:
        """A call that returns an equal duration."""
        return f"Duration.parse({str(self)!r})"


def _fraction(value: object) -> Fraction:
    """A duration's value as an exact fraction."""
    if isinstance(value, Fraction):
        return value
    number = integer(value)
    if number is not None:
        return Fraction(number)
    if not isinstance(value, float):
        raise ConfigurationTypeError(received("value", value, "a number", "write 5, 0.5 or Fraction(1, 3)"))
    if not math.isfinite(value):
        raise ConfigurationError(received("value", value, "finite"))
    # The decimal that was written, not the binary number next to it: 0.05 is 1/20.
    return Fraction(repr(float(value)))


def _check_value(value: Fraction, unit: object, argument: str, original: object) -> Fraction:
    """Refuses an unknown unit, and a value outside what its unit can hold."""
    if not isinstance(unit, str):
        raise ConfigurationTypeError(received("unit", unit, f"one of {', '.join(_UNITS)}"))
    if unit not in _UNITS:
        raise ConfigurationError(received("unit", unit, f"one of {', '.join(_UNITS)}"))
    if value < 0:
        raise ConfigurationError(received(argument, original, "0 or more"))
    if value >= INT64_END:
        raise ConfigurationError(received(argument, original, "below 2**63"))
    if unit == "dur" and value > 1:
        raise ConfigurationError(
            received(argument, original, "a fraction of the run, at most 1dur", "write 'ep' for epochs")
        )
    return value


def _example_number(value: object) -> str:
    """A number for a hint: `value` without its sign, where it is a number."""
    number = integer(value)
    if number is None and isinstance(value, float) and math.isfinite(value):
        return f"{abs(value):g}"
    return "5" if number is None else str(abs(number))


def _example_hint(number: str) -> str:
    """The hint that shows a number in each unit."""
    epochs, updates, samples = (f"'{number}{unit}' for {number} {_UNITS[unit]}" for unit in ("ep", "ba", "sp"))
    return f"write {epochs}, {updates} or {samples}"


def _decimal(value: Fraction) -> str:
    """A fraction as a plain decimal where it has one, otherwise as "n/d"."""
    twos, fives, rest = 0, 0, value.denominator
    while rest % 2 == 0:
        twos, rest = twos + 1, rest // 2
    while rest % 5 == 0:
        fives, rest = fives + 1, rest // 5
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    places = max(twos, fives)
    digits = str(value.numerator * 10**places // value.denominator).zfill(places + 1)
    return f"{digits[:-places]}.{digits[-places:]}" if places else digits
