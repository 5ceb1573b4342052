"""Every shape of the catalogue by its entry in `shapes.py`: exact values, and what is refused. None is forgotten."""

from __future__ import annotations

import importlib
import inspect
import pathlib
import pkgutil
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from shapes import SHAPES, K, falling

from distlr import schedules
from distlr.errors import ConfigurationError, ConfigurationTypeError, DistlrError
from distlr.schedules import CosineRestarts, MultiStep, OfProgress, Schedule
from distlr.schedules.registry import NAMES
from distlr.schedules.schedule import as_float64

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXPORTED = {name: getattr(schedules, name) for name in schedules.__all__}
OWN = {cls for cls in EXPORTED.values() if isinstance(cls, type) and issubclass(cls, Schedule)} - {Schedule}


def test_every_shape_has_its_entry() -> None:
    """The missing entries, for each class that was forgotten somewhere."""
    entries = {shape.cls: shape for shape in SHAPES}
    assert len(entries) == len(SHAPES), "tests/schedules/shapes.py: a class has two entries in SHAPES; join them."
    cases = [name for shape in SHAPES for name in shape.cases]
    assert len({*cases}) == len(cases), "tests/schedules/shapes.py: two entries have a case of one name; rename one."
    missing = []
    for cls in sorted({*OWN, *NAMES.values()} - entries.keys(), key=lambda cls: cls.__name__):
        missing.append(
            f"tests/schedules/shapes.py: SHAPES has no entry for {cls.__name__}. Add "
            f"Shape(cls={cls.__name__}, cases=..., values=..., refused=..., arguments=...)."
        )
    for cls, shape in entries.items():
        here = f"tests/schedules/shapes.py: the entry of {cls.__name__}"
        if {type(schedule) for schedule, _ in shape.values} != {cls}:
            missing.append(f"{here} needs `values`: ({cls.__name__}(...), [(t, rate), ...]), worked out by hand.")
        if cls in OWN and {type(case) for case in shape.cases.values()} != {cls}:
            missing.append(f"{here} needs `cases`: one {cls.__name__} by a name for the report, or several.")
        if cls in OWN and not shape.refused:
            missing.append(
                f"{here} needs `refused`: (lambda: {cls.__name__}(...), the argument that the message names)."
            )
        if cls in NAMES.values() and shape.arguments is None:
            missing.append(f"{here} needs `arguments`: drawn(...) of what distlr.schedules.get takes.")
        if cls not in NAMES.values() and shape.arguments is not None:
            file = pathlib.Path(inspect.getfile(cls)).relative_to(ROOT)
            missing.append(
                f"{file}: {cls.__name__} has no `name` for distlr.schedules.get, and its entry has `arguments`."
            )
    assert not missing, "\n".join(missing)


def test_every_shape_is_exported() -> None:
    modules = [
        importlib.import_module(f"distlr.schedules.{info.name}") for info in pkgutil.iter_modules(schedules.__path__)
    ]
    public = [getattr(module, name) for module in modules for name in module.__all__]
    shapes = {cls for cls in public if isinstance(cls, type) and issubclass(cls, Schedule)}
    missing = [
        f"distlr/schedules/__init__.py: does not export {cls.__name__} of {cls.__module__}. Add it to `__all__`."
        for cls in shapes - OWN - {Schedule}
    ]
    assert not missing, "\n".join(missing)


def test_names_and_times_are_right() -> None:
    named = [cls for cls in OWN if cls.name is not None]
    assert all(NAMES[cls.name] is cls for cls in named), "two shapes have one `name`"
    for cls in named:
        unknown = set(cls.time_arguments) - set(inspect.signature(cls.__init__).parameters)
        assert not unknown, f"{cls.__name__}.time_arguments: its constructor takes no {unknown}"


def test_every_name_is_in_the_documents() -> None:
    rows = re.findall(
        r"^\| (`[^|]*`) \|(.*)", (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    documented = {name for names, _ in rows for name in re.findall(r"`([^`]+)`", names)}
    missing = [
        f"docs/schedules.md: its table has no row for {name!r}. Add | `{name}` | `{cls.__name__}` | what it does |."
        for name, cls in NAMES.items()
        if name not in documented
    ]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [pytest.param(*pair, id=f"{shape.cls.__name__}-{i}") for shape in SHAPES for i, pair in enumerate(shape.values)],
)
def test_exact_values(schedule, values) -> None:
    times = [float(t) for t, _ in values]
    rates = as_float64(schedule)(tf.constant(times, tf.float64)).numpy()
    np.testing.assert_allclose(rates, [rate for _, rate in values], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t_mul", [1.1, 1.5, 2.0, 3.0, 10.0])
def test_every_cycle_begins_at_its_own_step(t_mul) -> None:
    """This holds even if the logarithm that finds the cycle is rounded."""
    schedule = CosineRestarts(1.0, first_steps=7, t_mul=t_mul)
    begin, length = 0.0, 7.0
    for _ in range(60):
        if begin > 2**50:
            break
        # A sum of powers is rounded where t_mul is no whole number.
        after, before = (
            (begin, np.nextafter(begin, 0)) if t_mul % 1 == 0 else (begin * (1 + 1e-12), begin * (1 - 1e-12))
        )
        assert float(schedule.at(tf.constant(after, tf.float64))) == pytest.approx(1.0, abs=1e-9)
        if begin:
            assert float(schedule.at(tf.constant(before, tf.float64))) == pytest.approx(0.0, abs=1e-9)
        begin, length = begin + length, length * t_mul


def test_kerass_piecewise_constant_changes_one_step_later() -> None:
    """Keras holds a value up to and with its boundary; here it changes at the boundary."""
    keras_own = K.PiecewiseConstantDecay([10], [1.0, 0.1])
    assert [float(keras_own(t)) for t in (9, 10, 11)] == [1.0, 1.0, pytest.approx(0.1)]
    ours = MultiStep(1.0, [10])
    assert [float(ours(t)) for t in (9, 10, 11)] == [1.0, pytest.approx(0.1), pytest.approx(0.1)]


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        pytest.param(*pair, id=f"{shape.cls.__name__}-{pair[1]}-{i}")
        for shape in SHAPES
        for i, pair in enumerate(shape.refused)
    ],
)
def test_bad_arguments_are_named(make, argument) -> None:
    with pytest.raises(DistlrError) as info:
        make()
    assert f"`{argument}`" in str(info.value)
    assert isinstance(info.value, (ConfigurationError, ConfigurationTypeError))


def test_a_function_of_progress_is_saved_by_its_registered_name() -> None:
    schedule = OfProgress(falling, steps=10, learning_rate=0.4)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert float(again(5)) == pytest.approx(0.3)
