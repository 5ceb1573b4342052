"""The plateau policy: (state, metric) -> (state, decision), pure, without TensorFlow.

Rank 0 runs the policy on the global metric, stores the new state in the optimizer and broadcasts the
decision; every rank, rank 0 too, applies what it received.
"""

from __future__ import annotations

import difflib
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, SupportsFloat, cast

from distlr._utils.checks import not_negative_real, positive_real, real
from distlr.errors import ConfigurationError, ConfigurationTypeError, NonFiniteMetricError, StateError, received
from distlr.plateau.metric_direction import infer_direction

__all__ = ["Decision", "PlateauPolicy", "PlateauState"]

_COUNT_LIMIT = 2**53  # the largest range of integers that a float64 state variable holds exactly
_FLOOR_SLACK = 2.0**-22  # 2 to 4 float32 ulps: a floor reached through a product of factors may be off by that


def _float32(value: float) -> float:
    """Rounds to float32, the precision in which Keras compares; too large becomes infinite."""
    try:
        return cast(float, struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def _check_count(argument: str, value: object) -> int:
    expected = "an integer of at least 0"
    number = real(argument, value, expected)
    if number.is_integer() and 0 <= number <= _COUNT_LIMIT:
        return int(number)
    raise ConfigurationError(received(argument, value, expected))


def _check_choice(argument: str, value: object, choices: tuple[str, ...]) -> None:
    expected = f"one of {', '.join(map(repr, choices))}"
    if not isinstance(value, str):
        raise ConfigurationTypeError(received(argument, value, expected))
    if value not in choices:
        close = difflib.get_close_matches(value.lower(), choices, n=1)
        hint = f"write {close[0]!r}" if close else ""
        raise ConfigurationError(received(argument, value, expected, hint))


def _check_flag(argument: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ConfigurationTypeError(received(argument, value, "True or False"))


@dataclass(frozen=True)
class PlateauState:
    """The memory of a plateau policy between epochs.

    Attributes:
        best: the best metric so far; at the start inf (mode "min") or -inf (mode "max"). Never NaN.
        wait: epochs without improvement, at most the policy's patience.
        cooldown: epochs of cooldown that are left.

    Raises:
        StateError: if `best` is NaN, or `wait` or `cooldown` is not an integer of at least 0.

    >>> state = PlateauState(best=0.25, wait=3, cooldown=0)
    >>> state.as_vector()
    (0.25, 3.0, 0.0)
    >>> PlateauState.from_vector([0.25, 3.0, 0.0]) == state
    True
    """

    best: float
    wait: int
    cooldown: int

    def __post_init__(self) -> None:
        """Checks the values, which may come from a checkpoint."""
        try:
            best, wait = real("best", self.best), _check_count("wait", self.wait)
            cooldown = _check_count("cooldown", self.cooldown)
        except (ConfigurationError, ConfigurationTypeError) as error:
            raise StateError(f"A plateau state cannot be right: {error}") from error
        if math.isnan(best):
            raise StateError(f"A plateau state cannot be right: {received('best', best, 'a number, not NaN')}")
        object.__setattr__(self, "best", best)
        object.__setattr__(self, "wait", wait)
        object.__setattr__(self, "cooldown", cooldown)

    def as_vector(self) -> tuple[float, float, float]:
        """The state as (best, wait, cooldown), exact in a float64 variable of shape (3,)."""
        return self.best, float(self.wait), float(self.cooldown)

    @classmethod
    def from_vector(cls, vector: Iterable[SupportsFloat]) -> PlateauState:
        """The inverse of `as_vector`, for any sequence of three numbers, a numpy array included.

        Raises:
            StateError: if there are not three numbers, or they are not a state.
        """
        try:
            values = list(vector)
        except TypeError as error:
            raise StateError(received("vector", vector, "three numbers: best, wait, cooldown")) from error
        if len(values) != 3:
            raise StateError(received("vector", values, "three numbers: best, wait, cooldown"))
        return cls(*cast("tuple[float, int, int]", tuple(values)))


@dataclass(frozen=True)
class Decision:
    """The policy's decision at an epoch's end, the same on every rank. It travels as JSON.

    Attributes:
        multiplier: the factor by which the rate's multiplier changes; 1.0 is no cut.
        reason: one line for people.
        improved: whether the metric improved on the best.

    Raises:
        ConfigurationError: if `multiplier` is not finite or not above 0.
        ConfigurationTypeError: if a value has the wrong type.

    >>> decision = Decision(0.1, "val_loss did not improve on 0.2 for 5 epochs", improved=False)
    >>> decision.cut, Decision.from_dict(decision.to_dict()) == decision
    (True, True)
    """

    multiplier: float
    reason: str
    improved: bool

    def __post_init__(self) -> None:
        """Checks the values, which may come from another rank."""
        multiplier = positive_real("multiplier", self.multiplier)
        if not isinstance(self.reason, str):
            raise ConfigurationTypeError(received("reason", self.reason, "a string"))
        _check_flag("improved", self.improved)
        object.__setattr__(self, "multiplier", multiplier)

    @property
    def cut(self) -> bool:
        """Whether the rate changes."""
        return self.multiplier != 1.0

    def to_dict(self) -> dict[str, float | str | bool]:
        """A dict of plain JSON values: `multiplier`, `reason`, `improved`."""
        return {"multiplier": self.multiplier, "reason": self.reason, "improved": self.improved}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Decision:
        """The inverse of `to_dict`; trusts nothing, since a decision arrives over the network.

        Raises:
            ConfigurationError: if keys are missing or unknown, or `multiplier` is not finite or not above 0.
            ConfigurationTypeError: if `data` is no mapping, or a value is not of its JSON type.
        """
        keys = ("improved", "multiplier", "reason")
        expected = f"a mapping with the keys {', '.join(map(repr, keys))}"
        if not isinstance(data, Mapping):
            raise ConfigurationTypeError(received("decision", data, expected))
        missing = [key for key in keys if key not in data]
        unknown = [key for key in data if key not in keys]
        if missing or unknown:
            problem = f"{expected} (missing: {missing}, unknown: {unknown})"
            raise ConfigurationError(
                received("decision", dict(data), problem, "run the same version of distlr on every rank")
            )
        multiplier, reason, improved = data["multiplier"], data["reason"], data["improved"]
        if type(multiplier) not in (int, float):  # stricter than the constructor: JSON has no other numbers
            raise ConfigurationTypeError(received("multiplier", multiplier, "a finite number above 0"))
        return cls(cast(float, multiplier), cast(str, reason), cast(bool, improved))


@dataclass(frozen=True)
class PlateauPolicy:
    """Cuts the rate when a metric has stopped improving, as `keras.callbacks.ReduceLROnPlateau` decides it.

    With the best metric `b`, the metric `m` and `d = min_delta`, a metric improves if

        mode "min":  m + d < b  (threshold_mode "abs"),  m < b - |b| * d  (threshold_mode "rel")
        mode "max":  m - d > b  (threshold_mode "abs"),  m > b + |b| * d  (threshold_mode "rel")

    compared in float32, as Keras does; the first metric always improves. After `patience` epochs without
    improvement `rate` becomes `max(rate * factor, min_lr)`, and the next `cooldown` epochs do not count.
    For `b > 0`, "rel" is PyTorch's `b * (1 - d)` and `b * (1 + d)`.

    It decides as Keras 3 does, except that
    - mode "auto" goes by the name alone: the last telling word of `monitor` decides ("max" for accuracies,
      auc, precision, recall, f1, iou, r2 and the like, "min" for losses and errors). Keras asks the compiled
      metric and raises where that cannot tell; here such a name is "min", and `mode_guessed` is True.
    - a NaN or an infinity of either sign does what `on_nan` says. In Keras a NaN does not improve, except as
      the first metric: there it becomes the best, and nothing ever improves on it.
    - patience does not run during warmup, unless `warmup_patience`.
    - a rate less than 2**-22 (relative: float32's rounding) above `min_lr` is at `min_lr`: nothing to cut.
    - a `factor` <= 0, an unknown `mode` and a negative `min_delta` are errors.

    Args:
        monitor: name of the metric in the epoch's logs.
        factor: what the rate is multiplied by at a cut, in (0, 1).
        patience: epochs without improvement after which the rate is cut, at least 0; 0 cuts as 1 does.
        mode: "min", "max", or "auto".
        min_delta: the least change that is an improvement, at least 0: in the metric's unit ("abs"), or as a
            share of the best ("rel").
        cooldown: epochs after a cut during which patience does not run, at least 0.
        min_lr: the least effective rate that a cut leads to, at least 0. A rate already below stays as it is.
        threshold_mode: "abs" or "rel".
        on_nan: "raise"; "worse": the epoch did not improve; "ignore": the epoch does not count at all.
        warmup_patience: whether patience runs during warmup. If not, the best is still followed.

    Raises:
        ConfigurationError: if a value is out of its range.
        ConfigurationTypeError: if a value has the wrong type.

    >>> policy = PlateauPolicy("val_loss", factor=0.5, patience=2)
    >>> state, rate = policy.initial_state(), 0.1
    >>> for val_loss in (1.0, 1.0, 1.0):
    ...     state, decision = policy.step(state, val_loss, rate=rate)
    ...     rate *= decision.multiplier
    >>> rate, decision.reason
    (0.05, 'val_loss did not improve on 1 for 2 epochs')
    """

    monitor: str = "val_loss"
    factor: float = 0.1
    patience: int = 10
    mode: str = "auto"
    min_delta: float = 1e-4
    cooldown: int = 0
    min_lr: float = 0.0
    threshold_mode: str = field(default="abs", kw_only=True)
    on_nan: str = field(default="raise", kw_only=True)
    warmup_patience: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        """Checks the values."""
        if not isinstance(self.monitor, str):
            raise ConfigurationTypeError(received("monitor", self.monitor, "the name of a metric"))
        if not self.monitor.strip():
            raise ConfigurationError(received("monitor", self.monitor, "the name of a metric"))
        _check_choice("mode", self.mode, ("auto", "min", "max"))
        _check_choice("threshold_mode", self.threshold_mode, ("abs", "rel"))
        _check_choice("on_nan", self.on_nan, ("raise", "worse", "ignore"))
        _check_flag("warmup_patience", self.warmup_patience)
        factor = real("factor", self.factor, "a number in (0, 1)")
        if not 0 < factor < 1:
            raise ConfigurationError(received("factor", self.factor, "a number in (0, 1)"))
        object.__setattr__(self, "factor", factor)
        for name in ("min_delta", "min_lr"):
            object.__setattr__(self, name, not_negative_real(name, getattr(self, name)))
        for name in ("patience", "cooldown"):
            object.__setattr__(self, name, _check_count(name, getattr(self, name)))
        if self.threshold_mode == "rel" and self.direction == "min" and self.min_delta >= 1:
            expected = "below 1 with threshold_mode='rel' and mode='min', where it is a share of the best"
            raise ConfigurationError(received("min_delta", self.min_delta, expected, "write 0.01 for 1%"))

    @property
    def direction(self) -> Literal["min", "max"]:
        """`mode`, with "auto" resolved by the name of the metric."""
        if self.mode == "auto":
            return infer_direction(self.monitor) or "min"
        return "max" if self.mode == "max" else "min"

    @property
    def mode_guessed(self) -> bool:
        """Whether `mode` is "auto" and the metric's name does not tell its direction ("min" is taken)."""
        return self.mode == "auto" and infer_direction(self.monitor) is None

    @property
    def key(self) -> str:
        """Names the stored state.

        >>> PlateauPolicy("val_accuracy").key
        'val_accuracy/max'
        """
        return f"{self.monitor}/{self.direction}"

    def initial_state(self) -> PlateauState:
        """The state before the first epoch."""
        return PlateauState(best=math.inf if self.direction == "min" else -math.inf, wait=0, cooldown=0)

    def step(
        self, state: PlateauState, metric: object, *, rate: object, in_warmup: bool = False
    ) -> tuple[PlateauState, Decision]:
        """Decides at the end of an epoch. Changes nothing: store the state and apply the decision.

        Args:
            state: the result of the last `step`, or of `initial_state`.
            metric: the global value of `monitor`: a real number, or anything with `__float__`.
            rate: the effective rate that is applied now, at least 0.
            in_warmup: whether the rate is still warming up.

        Returns:
            The new state, and the decision, whose multiplier is in (0, 1].

        Raises:
            NonFiniteMetricError: if the metric is NaN or infinite and `on_nan` is "raise".
            ConfigurationError: if `rate` is negative or not finite.
            ConfigurationTypeError: if the metric or the rate is not a real number.
            StateError: if the state's best is the infinity that the other mode starts from.
        """
        hint = "check that it is among the epoch's logs (compiled metrics, validation data)"
        value = real(self.monitor, metric, "a real number", hint)
        current_rate = not_negative_real("rate", rate)
        _check_flag("in_warmup", in_warmup)
        if math.isinf(state.best) and state.best != self.initial_state().best:
            raise StateError(f"A plateau state with best={state.best} does not fit {self.key!r}.")
        finite = math.isfinite(value)
        if not finite and self.on_nan == "raise":
            hint = "look for what diverged, or set on_nan='worse' or on_nan='ignore'"
            raise NonFiniteMetricError(received(self.monitor, value, "finite", hint))
        if not finite and self.on_nan == "ignore":
            return state, Decision(1.0, f"{self.monitor} is {value}: ignored", False)

        # The order from here on is Keras'.
        wait, cooldown = state.wait, state.cooldown
        if cooldown > 0:
            cooldown -= 1
            wait = 0
        if finite and self._improves(value, state.best):
            reason = f"{self.monitor} improved from {state.best:.6g} to {value:.6g}"
            if math.isinf(state.best):
                reason = f"{self.monitor} is {value:.6g}, the first value"
            return PlateauState(value, 0, cooldown), Decision(1.0, reason, True)
        name = self.monitor if finite else f"{self.monitor}={value}"
        stalled = f"{name} did not improve on {state.best:.6g}"
        if cooldown > 0:
            reason = f"{stalled}, in cooldown ({cooldown} left)"
            return PlateauState(state.best, wait, cooldown), Decision(1.0, reason, False)
        if in_warmup and not self.warmup_patience:
            return PlateauState(state.best, wait, cooldown), Decision(1.0, f"{stalled}, in warmup", False)
        # Keras lets `wait` grow past patience while the rate is at its floor, with no effect: capped here.
        wait = min(wait + 1, self.patience)
        epochs = max(wait, 1)
        stalled = f"{stalled} for {epochs} epoch{'' if epochs == 1 else 's'}"
        if wait < self.patience:
            return PlateauState(state.best, wait, cooldown), Decision(1.0, stalled, False)
        if not self._above_floor(current_rate):
            reason = f"{stalled}, but the rate {current_rate:.6g} is at or below min_lr={self.min_lr:.6g}"
            return PlateauState(state.best, wait, cooldown), Decision(1.0, reason, False)
        # max(rate * factor, min_lr) / rate, without the underflow of rate * factor.
        multiplier = max(self.factor, self.min_lr / current_rate)
        return PlateauState(state.best, 0, self.cooldown), Decision(multiplier, stalled, False)

    def _improves(self, value: float, best: float) -> bool:
        if math.isinf(best):
            return True
        if self.threshold_mode == "rel":
            margin = abs(best) * self.min_delta
            if self.direction == "min":
                return _float32(value) < _float32(best - margin)
            return _float32(value) > _float32(best + margin)
        if self.direction == "min":
            return _float32(value + self.min_delta) < _float32(best)
        return _float32(value - self.min_delta) > _float32(best)

    def _above_floor(self, rate: float) -> bool:
        return _float32(rate) > _float32(self.min_lr) * (1 + _FLOOR_SLACK)
