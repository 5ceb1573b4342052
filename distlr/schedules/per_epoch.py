"""A rate given epoch by epoch, by a Python function or a list."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from distlr._utils.checks import not_negative_real, positive_integer, positive_real
from distlr.errors import ConfigurationError, ConfigurationTypeError, received
from distlr.schedules.schedule import Schedule

__all__ = ["SMALLEST_USEFUL_RATE", "PerEpoch"]

SMALLEST_USEFUL_RATE = 1e-12
"""Below this a rate changes no float32 weight of ordinary size; it is nearly always a mistake."""

# Time is samples / base_batch and an epoch samples_per_epoch / base_batch, both rounded to float64; the
# slack is far below one sample of any data set and far above the rounding.
_SLACK = 2.0**-32


@keras.saving.register_keras_serializable("distlr")
class PerEpoch(Schedule):
    """`lr(t) = rates[min(floor(t / steps_per_epoch), len(rates) - 1)]`.

    The function is called once for each epoch, here, and never again: in the graph the rate is a look-up.

    Args:
        function: `f(epoch) -> rate` or `f(epoch, lr) -> rate` with epochs from 0, as for Keras'
            `LearningRateScheduler`; or the rates themselves, one an epoch.
        initial_learning_rate: the value of `lr` that `f` receives in epoch 0. Needed when `f` takes `lr`.
        epochs: for how many epochs `f` is called; the last rate stays. Not given with a list.
        lr: "current" passes `f` the rate of the epoch before (as Keras does), "base" always passes
            `initial_learning_rate`.
        steps_per_epoch: the length of an epoch in steps (base steps on the samples clock; may be a
            fraction). `distlr.scale` and `job.optimizer` fill it in from the batch.

    Warns:
        UserWarning: a rate falls below 1e-12, with the first epoch where it does.

    >>> steps = PerEpoch(lambda epoch, lr: lr * 0.5, 0.8, epochs=3, steps_per_epoch=10)
    >>> [round(float(steps(t)), 6) for t in (0, 9, 10, 20, 99)]
    [0.4, 0.4, 0.2, 0.1, 0.1]
    """

    name = "per-epoch"
    time_arguments = ("steps_per_epoch",)

    def __init__(
        self,
        function: Callable[..., float] | Sequence[float],
        initial_learning_rate: float | None = None,
        epochs: int | None = None,
        lr: str = "current",
        steps_per_epoch: float | None = None,
    ) -> None:
        if lr not in ("current", "base"):
            raise ConfigurationError(received("lr", lr, "'current' or 'base'"))
        if callable(function):
            rates = _evaluate(function, initial_learning_rate, epochs, lr)
        elif isinstance(function, Sequence) and not isinstance(function, str):
            if epochs is not None:
                raise ConfigurationError(received("epochs", epochs, "left out with a list: it has one rate an epoch"))
            rates = [_checked(rate, f"function[{epoch}]") for epoch, rate in enumerate(function)]
        else:
            raise ConfigurationTypeError(received("function", function, "a function of the epoch, or a list of rates"))
        if not rates:
            raise ConfigurationError(received("function", function, "a list of at least one rate"))
        self.rates = rates
        self.steps_per_epoch = None if steps_per_epoch is None else positive_real("steps_per_epoch", steps_per_epoch)

    def with_steps_per_epoch(self, steps_per_epoch: float) -> PerEpoch:
        """The same rates for epochs of another length.

        >>> float(PerEpoch([0.1, 0.01]).with_steps_per_epoch(234.375)(235))
        0.01
        """
        return PerEpoch(self.rates, steps_per_epoch=steps_per_epoch)

    def at(self, t: tf.Tensor) -> tf.Tensor:
        """The rate at step `t`. Less than 2^-32 of an epoch before a boundary counts as at it, as float64 rounds times.

        Raises:
            ConfigurationError: `steps_per_epoch` is not known.
        """
        if self.steps_per_epoch is None:
            raise ConfigurationError(
                "PerEpoch does not know how long an epoch is. Fix: pass `steps_per_epoch=`, or hand it to "
                "distlr.scale or job.optimizer with a batch that has `samples_per_epoch`."
            )
        epoch = tf.cast(tf.floor(tf.cast(t, tf.float64) / self.steps_per_epoch + _SLACK), tf.int64)
        return tf.gather(tf.constant(self.rates, tf.float64), tf.clip_by_value(epoch, 0, len(self.rates) - 1))

    def get_config(self) -> dict[str, Any]:
        """The rates that the function returned, in its place, and the length of an epoch."""
        return {"function": list(self.rates), "steps_per_epoch": self.steps_per_epoch}


def _evaluate(function: Callable[..., float], initial: float | None, epochs: int | None, lr: str) -> list[float]:
    if epochs is None:
        hint = "say for how many epochs the run goes, such as epochs=90"
        raise ConfigurationError(received("epochs", None, "given with a function", hint))
    count = positive_integer("epochs", epochs)
    takes_rate = _takes_rate(function)
    if initial is not None:
        initial = _checked(initial, "initial_learning_rate")
    elif takes_rate:
        raise ConfigurationError(
            received(
                "initial_learning_rate",
                initial,
                "given with a function f(epoch, lr)",
                "pass the rate that the run starts from, such as initial_learning_rate=0.1",
            )
        )
    rates: list[float] = []
    for epoch in range(count):
        current = rates[-1] if rates and lr == "current" else initial
        rate = function(epoch, current) if takes_rate else function(epoch)
        rates.append(_checked(rate, f"function({epoch})"))
    for epoch, rate in enumerate(rates):
        if 0 < rate < SMALLEST_USEFUL_RATE:
            warnings.warn(
                f"The per-epoch function reaches a rate of {rate:.3g} in epoch {epoch} (counted from 0) and "
                f"{min(rates):.3g} at its lowest. A function that multiplies the current rate compounds every epoch; "
                'pass lr="base" if it was meant to scale the initial rate.',
                stacklevel=3,
            )
            break
    return rates


def _takes_rate(function: Callable[..., float]) -> bool:
    try:
        inspect.signature(function).bind(0, 0.1)
    except (TypeError, ValueError):  # no second argument; or a builtin without a signature
        return False
    return True


def _checked(rate: Any, argument: str) -> float:
    hint = "return the rate itself, such as 0.1, for every epoch"
    return not_negative_real(argument, rate, "a finite rate of at least 0", hint)
