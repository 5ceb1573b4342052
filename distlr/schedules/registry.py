"""Schedules by name, from and to plain dicts: for the command line, for JSON and TOML, and for tests."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import keras

from distlr.batch.global_batch import GlobalBatch
from distlr.errors import ConfigurationError, ConfigurationTypeError, DistlrError
from distlr.schedules.schedule import Schedule

__all__ = ["NAMES", "fill_names", "get", "time_arguments", "to_dict"]

_KERAS = keras.optimizers.schedules

_KERAS_NAMES = {
    "exponential": _KERAS.ExponentialDecay,
    "inverse-time": _KERAS.InverseTimeDecay,
    "polynomial": _KERAS.PolynomialDecay,
}
_KERAS_TIME_ARGUMENTS = ("decay_steps",)

NAMES: dict[str, Any] = {}
"""The class by each name, in the order of the names: distlr's own by their `name`, and Keras' own classes."""

_SHORT = {
    "initial": ("initial_learning_rate", "learning_rate", "base_learning_rate"),
    "peak": ("peak_learning_rate",),
    "steps": ("decay_steps", "steps"),
    "rate": ("decay_rate",),
    "end": ("end_learning_rate",),
}
"""Shorter words for arguments; the first that the class has is meant."""


def fill_names(exports: Iterable[Any]) -> None:
    """Registers the package's exports, called by its `__init__`; so this module neither imports nor lists shapes."""
    classes = [export for export in exports if isinstance(export, type) and issubclass(export, Schedule)]
    shapes = {cls.name: cls for cls in classes if cls.name is not None}
    NAMES.update(sorted({**_KERAS_NAMES, **shapes}.items()))


def time_arguments(name: str) -> tuple[str, ...]:
    """Which arguments of the class of this name are lengths or times."""
    cls = NAMES[name]
    return cls.time_arguments if issubclass(cls, Schedule) else _KERAS_TIME_ARGUMENTS


def get(spec: Any, batch: GlobalBatch | None = None, *, path: str = "schedule") -> Any:
    """The schedule that a plain dict describes: its name, and the arguments of its class.

    Args:
        spec: `{"name": "cosine", "initial": 0.1, "steps": 1000}`, with schedules inside as dicts again; a number is
            a constant rate, and a schedule is itself.
        batch: turns durations into base steps: `"steps": "90ep"`.
        path: its name in messages.

    Raises:
        ConfigurationError, ConfigurationTypeError: a part is wrong; the message has the path to it.

    >>> schedule = get({"name": "floor", "floor": 0.01, "schedule": {"name": "cosine", "initial": 0.1, "steps": 10}})
    >>> [round(float(schedule(t)), 4) for t in (0, 5, 10)]
    [0.1, 0.05, 0.01]
    """
    if isinstance(spec, _KERAS.LearningRateSchedule):
        return spec
    if isinstance(spec, (int, float)) and not isinstance(spec, bool):
        spec = {"name": "constant", "learning_rate": spec}
    if not isinstance(spec, Mapping):
        raise ConfigurationTypeError(
            f'{path} must be a dict with a "name". Received: {path}={spec!r}. Fix: write '
            '{"name": "cosine", "initial": 0.1, "steps": 1000}, for example.'
        )
    name = spec.get("name")
    if name not in NAMES:
        close = difflib.get_close_matches(str(name), NAMES, n=1)
        hint = f"did you mean {close[0]!r}" if close else "write one of these"
        raise ConfigurationError(
            f"{path}.name must be one of {', '.join(NAMES)}. Received: {path}.name={name!r}. Fix: {hint}."
        )
    arguments = {
        argument: _value(name, argument, value, batch, f"{path}.{key}")
        for key, value in spec.items()
        if key != "name"
        for argument in [_argument(name, key, path)]
    }
    try:
        return NAMES[name](**arguments)
    except DistlrError as error:
        raise type(error)(f"{path} ({name}): {error}") from error
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{path} ({name}) cannot be made: {error}") from error


def to_dict(schedule: Any) -> dict[str, Any]:
    """The plain dict that `get` makes this schedule from.

    Raises:
        ConfigurationTypeError: its class has no name here.

    >>> from distlr.schedules import MultiStep
    >>> to_dict(MultiStep(0.1, [30, 60]))
    {'name': 'multi-step', 'initial_learning_rate': 0.1, 'boundaries': [30.0, 60.0], 'gamma': 0.1}
    """
    for name, known in NAMES.items():
        if type(schedule) is known:
            config = schedule.get_config()
            arguments = {argument: _plain(getattr(schedule, argument, value)) for argument, value in config.items()}
            drop = {argument for argument, value in arguments.items() if value is None or argument == "name"}
            return {"name": name, **{key: value for key, value in arguments.items() if key not in drop}}
    raise ConfigurationTypeError(
        f"{type(schedule).__name__} has no name among {', '.join(NAMES)}. Fix: save it with keras.saving."
    )


def _plain(value: Any) -> Any:
    if isinstance(value, _KERAS.LearningRateSchedule):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _argument(name: str, key: str, path: str) -> str:
    """The argument of the class that a word means."""
    known = [
        argument for argument in inspect.signature(NAMES[name].__init__).parameters if argument not in ("self", "name")
    ]
    if key in known:
        return key
    meant = [argument for argument in _SHORT.get(key, ()) if argument in known]
    if meant:
        return meant[0]
    close = difflib.get_close_matches(key, [*known, *_SHORT], n=1)
    hint = f"did you mean {close[0]!r}" if close else f"it takes {', '.join(known)}"
    raise ConfigurationError(f"{path}.{key} is no argument of '{name}'. Fix: {hint}.")


def _value(name: str, argument: str, value: Any, batch: GlobalBatch | None, path: str) -> Any:
    if argument == "schedule":
        return get(value, batch, path=path)
    if argument == "schedules" and isinstance(value, (list, tuple)):
        return [get(item, batch, path=f"{path}[{i}]") for i, item in enumerate(value)]
    if argument in time_arguments(name):
        if isinstance(value, (list, tuple)):
            return [_time(item, batch, f"{path}[{i}]") for i, item in enumerate(value)]
        return _time(value, batch, path)
    return value


def _time(value: Any, batch: GlobalBatch | None, path: str) -> Any:
    if not isinstance(value, str):
        return value
    if batch is None:
        raise ConfigurationError(
            f"{path} is a duration, and only a batch says how many base steps that is. Received: {path}={value!r}. "
            "Fix: pass the batch, get(spec, batch), or write a number of base steps."
        )
    return batch.to_base_steps(value, argument=path)
