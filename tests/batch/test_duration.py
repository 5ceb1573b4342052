"""Durations: parsing, printing and refusals."""

from __future__ import annotations

import dataclasses
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distlr.batch.duration import Duration
from distlr.errors import ConfigurationError, ConfigurationTypeError, shown


@pytest.mark.parametrize(
    ("text", "value", "unit", "printed"),
    [
        ("5ep", Fraction(5), "ep", "5ep"),
        ("0ep", Fraction(0), "ep", "0ep"),
        ("0.5ep", Fraction(1, 2), "ep", "0.5ep"),
        ("2.5ep", Fraction(5, 2), "ep", "2.5ep"),
        ("2.50ep", Fraction(5, 2), "ep", "2.5ep"),
        (".5ep", Fraction(1, 2), "ep", "0.5ep"),
        ("5.ep", Fraction(5), "ep", "5ep"),
        ("+5ep", Fraction(5), "ep", "5ep"),
        ("100ba", Fraction(100), "ba", "100ba"),
        ("60000sp", Fraction(60000), "sp", "60000sp"),
        ("60_000sp", Fraction(60000), "sp", "60000sp"),
        ("1e4sp", Fraction(10000), "sp", "10000sp"),
        ("1.5E-2dur", Fraction(3, 200), "dur", "0.015dur"),
        ("0.05dur", Fraction(1, 20), "dur", "0.05dur"),
        ("0.1dur", Fraction(1, 10), "dur", "0.1dur"),
        ("1dur", Fraction(1), "dur", "1dur"),
        ("1/3dur", Fraction(1, 3), "dur", "1/3dur"),
        (" 5 EP ", Fraction(5), "ep", "5ep"),
    ],
)
def test_parse(text: str, value: Fraction, unit: str, printed: str) -> None:
    duration = Duration.parse(text)
    assert (duration.value, duration.unit) == (value, unit)
    assert type(duration.value) is Fraction
    assert str(duration) == printed
    assert repr(duration) == f"Duration.parse({printed!r})"


@pytest.mark.parametrize("value", [5, 5.0, Fraction(5), np.int64(5), np.float64(5)])
def test_a_duration_by_its_parts(value: Any) -> None:
    assert Duration(value, "ep") == Duration.parse("5ep")
    assert hash(Duration(value, "ep")) == hash(Duration.parse("5ep"))


def test_a_float_is_the_decimal_that_it_prints() -> None:
    assert Duration(0.1, "dur").value == Fraction(1, 10)


def test_a_duration_passes_through_and_is_immutable() -> None:
    duration = Duration.parse("5ep")
    assert Duration.parse(duration) is duration
    assert pickle.loads(pickle.dumps(duration)) == duration
    assert dataclasses.replace(duration, unit="ba") == Duration.parse("5ba")
    with pytest.raises(AttributeError):
        duration.unit = "ba"  # type: ignore[misc]


@given(st.fractions(0, 1, max_denominator=10**9), st.sampled_from(["ep", "ba", "sp", "dur"]))
def test_the_text_of_a_duration_round_trips(value: Fraction, unit: str) -> None:
    duration = Duration(value, unit)
    assert Duration.parse(str(duration)) == duration


# (what came, the class of the error, what the message must say besides the argument and the value)
BAD_DURATIONS: list[tuple[Any, type[Exception], str]] = [
    ("", ConfigurationError, "write '5ep'"),
    (" ", ConfigurationError, "write '5ep'"),
    ("ep", ConfigurationError, "a number and a unit"),
    ("5", ConfigurationError, "write '5ep' for 5 epochs, '5ba' for 5 updates or '5sp' for 5 samples"),
    ("0.05", ConfigurationError, "write '0.05ep'"),
    ("5e3", ConfigurationError, "with a unit"),
    ("5epochs", ConfigurationError, "one of the units ep, ba, sp, dur"),
    ("5s", ConfigurationError, "write '5ep'"),
    ("-1ep", ConfigurationError, "0 or more"),
    ("nanep", ConfigurationError, "a number and a unit"),
    ("nan", ConfigurationError, "a number and a unit"),
    ("infep", ConfigurationError, "a number and a unit"),
    ("1e400ep", ConfigurationError, "a number and a unit"),
    ("1e99ep", ConfigurationError, "below 2**63"),
    ("9223372036854775808sp", ConfigurationError, "below 2**63"),
    ("1/0ep", ConfigurationError, "a number and a unit"),
    ("1.5/2ep", ConfigurationError, "a number and a unit"),
    ("5ep 3ba", ConfigurationError, "a number and a unit"),
    ("1,5ep", ConfigurationError, "a number and a unit"),
    ("\u0665ep", ConfigurationError, "a number and a unit"),
    ("5\u00a0ep", ConfigurationError, "a number and a unit"),
    ("1.01dur", ConfigurationError, "at most 1dur"),
    ("9" * 5000 + "ep", ConfigurationError, ""),
    (5, ConfigurationTypeError, "write '5ep' for 5 epochs"),
    (0.5, ConfigurationTypeError, "write '0.5ep'"),
    (float("nan"), ConfigurationTypeError, "write '5ep'"),
    (float("inf"), ConfigurationTypeError, "write '5ep'"),
    (True, ConfigurationTypeError, "as text"),
    (None, ConfigurationTypeError, "as text"),
    (b"5ep", ConfigurationTypeError, "as text"),
    ((5, "ep"), ConfigurationTypeError, "as text"),
]


@pytest.mark.parametrize(("value", "error", "words"), BAD_DURATIONS, ids=lambda value: repr(value)[:20])
def test_bad_durations(value: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        Duration.parse(value, argument="warmup")
    message = str(caught.value)
    assert message.startswith("`warmup` must be ")
    assert f"warmup={shown(value)}." in message
    assert words in message


@pytest.mark.parametrize(
    ("value", "unit", "error", "words"),
    [
        (-1, "ep", ConfigurationError, "value=-1"),
        (float("nan"), "ep", ConfigurationError, "value=nan"),
        (float("inf"), "ep", ConfigurationError, "value=inf"),
        (2**63, "sp", ConfigurationError, f"value={2**63}"),
        (1.5, "dur", ConfigurationError, "value=1.5"),
        (True, "ep", ConfigurationTypeError, "value=True"),
        ("5", "ep", ConfigurationTypeError, "value='5'"),
        (None, "ep", ConfigurationTypeError, "value=None"),
        (5, "epochs", ConfigurationError, "unit='epochs'"),
        (5, "", ConfigurationError, "unit=''"),
        (5, None, ConfigurationTypeError, "unit=None"),
    ],
)
def test_bad_parts_of_a_duration(value: Any, unit: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        Duration(value, unit)
    assert words in str(caught.value)
