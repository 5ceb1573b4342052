"""Scaling rules: exact factors, names and refusals."""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distlr.errors import ConfigurationError, ConfigurationTypeError
from distlr.scaling import rules


def halfway(k: float) -> float:
    return 1 + (k - 1) / 2


class Damped:
    def __call__(self, k: float) -> float:
        return k * 0.5


@pytest.mark.parametrize(
    ("rule", "k", "expected"),
    [
        ("linear", 1, 1.0),
        ("linear", 8, 8.0),
        ("linear", 0.25, 0.25),
        ("linear", 7 / 3, 7 / 3),
        ("linear", 2**53, 2.0**53),
        ("linear", np.int64(8), 8.0),
        ("linear", np.float32(1.5), 1.5),
        ("linear", Fraction(3, 2), 1.5),
        ("sqrt", 1, 1.0),
        ("sqrt", 16, 4.0),
        ("sqrt", 2, math.sqrt(2)),
        ("sqrt", 0.25, 0.5),
        ("none", 1, 1.0),
        ("none", 64, 1.0),
        ("none", 0.5, 1.0),
        (halfway, 4, 2.5),
        (Damped(), 8, 4.0),
        (lambda k: 3, 8, 3.0),
        (lambda k: np.float32(0.5), 8, 0.5),
        (lambda k: np.array(2.0), 8, 2.0),
        (rules.sqrt, 64, 8.0),
    ],
)
def test_factor(rule: Any, k: Any, expected: float) -> None:
    result = rules.factor(rule, k)
    assert result == expected
    assert type(result) is float


@pytest.mark.parametrize(("k", "kind"), [(8, int), (np.int32(8), int), (8.0, float), (np.float64(8), float)])
def test_a_callable_is_given_a_python_number(k: Any, kind: type) -> None:
    ratios: list[Any] = []
    rules.factor(lambda value: ratios.append(value) or 1.0, k)
    assert ratios == [8]
    assert type(ratios[0]) is kind


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("linear", "linear"),
        ("sqrt", "sqrt"),
        ("none", "none"),
        (rules.linear, "linear"),
        (halfway, "halfway"),
        (Damped(), "Damped"),
        (functools.partial(halfway), "partial"),
        (lambda k: k, "<lambda>"),
    ],
)
def test_rule_name(rule: Any, expected: str) -> None:
    assert rules.rule_name(rule) == expected


def test_registry() -> None:
    assert list(rules.RULES) == ["linear", "sqrt", "none"]
    for name, rule in rules.RULES.items():
        assert rule.__name__ == name
        assert "factor =" in (rule.__doc__ or "")


def test_a_registered_rule_goes_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rules.RULES, "half", halfway)
    assert rules.factor("half", 3) == 2.0
    assert rules.rule_name(halfway) == "half"


BAD: list[tuple[Any, Any, type[Exception], list[str]]] = [
    (
        "lineer",
        8,
        ConfigurationError,
        ["`rule`", "'lineer'", "'linear', 'sqrt', 'none'", "did you mean 'linear'"],
    ),
    ("Linear", 8, ConfigurationError, ["`rule`", "'Linear'", "did you mean 'linear'"]),
    ("sqr", 8, ConfigurationError, ["`rule`", "'sqr'", "did you mean 'sqrt'"]),
    ("lars", 8, ConfigurationError, ["`rule`", "rule='lars'", "'linear', 'sqrt', 'none'"]),
    ("", 8, ConfigurationError, ["`rule`", "rule=''"]),
    (None, 8, ConfigurationTypeError, ["`rule`", "rule=None", "write 'none'"]),
    (2.0, 8, ConfigurationTypeError, ["`rule`", "rule=2.0"]),
    ("linear", 0, ConfigurationError, ["`k`", "k=0"]),
    ("linear", -2, ConfigurationError, ["`k`", "k=-2"]),
    ("linear", math.nan, ConfigurationError, ["`k`", "k=nan"]),
    ("none", math.inf, ConfigurationError, ["`k`", "k=inf"]),
    ("none", 10**400, ConfigurationError, ["`k`", "k=1000"]),
    ("linear", True, ConfigurationTypeError, ["`k`", "k=True"]),
    ("linear", "8", ConfigurationTypeError, ["`k`", "k='8'"]),
    ("linear", None, ConfigurationTypeError, ["`k`", "k=None"]),
    (lambda k: 0, 8, ConfigurationError, ["rule(8)=0", "'<lambda>'"]),
    (lambda k: -1.5, 8, ConfigurationError, ["rule(8)=-1.5"]),
    (lambda k: math.nan, 0.5, ConfigurationError, ["rule(0.5)=nan"]),
    (lambda k: math.inf, 8, ConfigurationError, ["rule(8)=inf"]),
    (lambda k: 10**400, 8, ConfigurationError, ["rule(8)=1000"]),
    (lambda k: None, 8, ConfigurationTypeError, ["rule(8)=None"]),
    (lambda k: "2", 8, ConfigurationTypeError, ["rule(8)='2'"]),
    (lambda k: True, 8, ConfigurationTypeError, ["rule(8)=True"]),
    (lambda k: 1j, 8, ConfigurationTypeError, ["rule(8)=1j"]),
]


@pytest.mark.parametrize(("rule", "k", "error", "words"), BAD)
def test_refusals(rule: Any, k: Any, error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        rules.factor(rule, k)
    assert [word for word in words if word not in str(caught.value)] == []


def test_no_suggestion_where_nothing_is_close() -> None:
    with pytest.raises(ConfigurationError) as caught:
        rules.rule_name("lars")
    assert "did you mean" not in str(caught.value)


def test_what_the_rule_raises_goes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        rules.factor(lambda k: 1 / 0, 8)


@given(st.integers(1, 2**53))
def test_linear_is_exact_and_sqrt_squares_back(k: int) -> None:
    assert rules.factor("linear", k) == k
    assert rules.factor("sqrt", k) ** 2 == pytest.approx(k, rel=1e-15)


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
@pytest.mark.parametrize("rule", list(rules.RULES))
def test_rules_are_multiplicative(rule: str, first: float, second: float) -> None:
    both = rules.factor(rule, first) * rules.factor(rule, second)
    assert rules.factor(rule, first * second) == pytest.approx(both, rel=1e-12)
