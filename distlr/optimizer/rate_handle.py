"""What a decider needs of an optimizer, distlr's or a plain one of Keras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import keras

from distlr.errors import ConfigurationError
from distlr.optimizer.access import is_adopted, rate_of, unwrap_loss_scale
from distlr.optimizer.adopted import AdoptedOptimizer
from distlr.optimizer.manual_control_state import read_manual_control

__all__ = ["RateHandle", "handle"]


class RateHandle(Protocol):
    """Reads and cuts the rate, and keeps a decider's state."""

    @property
    def rate(self) -> float:
        """The rate of the next update."""

    def now(self) -> tuple[float, bool]:
        """The rate, and whether it still climbs."""

    @property
    def paused(self) -> bool:
        """Whether plateaus are not to cut, by hand."""

    def multiply(self, factor: float) -> None:
        """Multiplies the rate from the next update on."""

    def read(self, name: str, initial: Sequence[float]) -> Sequence[float]:
        """The state called `name`; `initial` before it was written for the first time."""

    def write(self, name: str, values: Sequence[float]) -> None:
        """Replaces the state called `name`."""


class _Adopted:
    """State in the optimizer's variables: saved, restored and broadcast with it."""

    def __init__(self, optimizer: AdoptedOptimizer) -> None:
        self._optimizer = optimizer  # and not its extension: `strip` and another `job.optimizer` make a new one

    @property
    def rate(self) -> float:
        return self._optimizer.distlr.formula.reading().rate

    def now(self) -> tuple[float, bool]:
        reading = self._optimizer.distlr.formula.reading()
        return reading.rate, reading.in_warmup

    @property
    def paused(self) -> bool:
        return bool(read_manual_control(self._optimizer.distlr.variables).paused)

    def multiply(self, factor: float) -> None:
        self._optimizer.distlr.formula.multiply_rate(factor)

    def read(self, name: str, initial: Sequence[float]) -> Sequence[float]:
        values: Sequence[float] = self._optimizer.distlr.state(name, initial).numpy()
        return values

    def write(self, name: str, values: Sequence[float]) -> None:
        self._optimizer.distlr.state(name, values).assign(values)


class _Plain:
    """A float rate that Keras holds. The state lives with the handle and ends with the process."""

    paused = False

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._states: dict[str, Sequence[float]] = {}

    @property
    def rate(self) -> float:
        return rate_of(self._optimizer)

    def now(self) -> tuple[float, bool]:
        return self.rate, False

    def multiply(self, factor: float) -> None:
        self._optimizer.learning_rate = self.rate * factor

    def read(self, name: str, initial: Sequence[float]) -> Sequence[float]:
        return self._states.get(name, initial)

    def write(self, name: str, values: Sequence[float]) -> None:
        self._states[name] = values


def handle(optimizer: Any) -> RateHandle:
    """The handle of an optimizer.

    Raises:
        ConfigurationError: a plain Keras optimizer with a schedule, whose rate Keras cannot set.
    """
    if is_adopted(optimizer):
        return _Adopted(unwrap_loss_scale(optimizer))
    if isinstance(unwrap_loss_scale(optimizer)._learning_rate, keras.Variable):
        return _Plain(optimizer)
    raise ConfigurationError(
        f"The rate of the plain Keras optimizer '{optimizer.name}' is a schedule, "
        f"{type(unwrap_loss_scale(optimizer)._learning_rate).__name__}, and Keras cannot cut it. Fix: "
        "optimizer = job.optimizer(optimizer, batch), before compile."
    )
