"""The hyperparameters of an optimizer that a user wants scaled, or to follow a schedule, beside the rate."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from distlr._utils.checks import not_negative_real
from distlr.errors import ConfigurationError, ConfigurationTypeError, received
from distlr.scaling import rules
from distlr.schedules import GlobalBatchSchedule
from distlr.schedules.schedule import check_is_schedule

__all__ = ["SCALES", "HyperparameterOptions", "Multipliers"]

SCALES = ("betas", "weight_decay", "ema")
"""What `scale=` may name."""


@dataclasses.dataclass(frozen=True)
class HyperparameterOptions:
    """What an optimizer is asked for beside its rate.

    Attributes:
        scale: what else is scaled for the batch, of `SCALES`.
        momentum_correction: multiply SGD's velocity by the ratio of the new rate to the old one while the warmup climbs
            (Goyal et al. 2017, arXiv 1706.02677, section 3).
        weight_decay_schedule: a schedule in place of the optimizer's weight decay.
        momentum_schedule: likewise of SGD's momentum.
        multipliers: see `Multipliers`.
    """

    scale: Sequence[str] = ()
    momentum_correction: bool = False
    weight_decay_schedule: Any = None
    momentum_schedule: Any = None
    multipliers: Mapping[str, float] | None = None

    def scaling(self) -> dict[str, Any]:
        """Those that were asked for and make no sense without a batch."""
        asked = {"scale": self.scale, "momentum_correction": self.momentum_correction}
        return {name: value for name, value in asked.items() if value}

    def follows(self) -> dict[str, Any]:
        """The schedules, by the attribute that follows them."""
        schedules = {"weight_decay": self.weight_decay_schedule, "momentum": self.momentum_schedule}
        return {name: schedule for name, schedule in schedules.items() if schedule is not None}

    def checked(self, optimizer: Any, batch_schedule: GlobalBatchSchedule | None) -> dict[str, float]:
        """The scaled value of each attribute of a plain optimizer, once nothing that is asked for is impossible.

        Raises:
            ConfigurationError, ConfigurationTypeError: the optimizer has no such thing, or it cannot be changed so.
        """
        values: dict[str, float] = {}
        if batch_schedule is not None:
            values = _scaled_values(optimizer, self.scale, batch_schedule)
            if self.momentum_correction:
                _check_momentum_correction(optimizer, batch_schedule.warmup)
        _check_follows(optimizer, self.weight_decay_schedule, self.momentum_schedule)
        return values


def _scaled_values(optimizer: Any, scale: Sequence[str], batch_schedule: GlobalBatchSchedule) -> dict[str, float]:
    """The scaled value of each attribute of a plain optimizer.

    - betas: `beta_1`, `beta_2` and `epsilon` of the Adam family, under the sqrt rule (`rules.adam_beta`).
    - weight_decay: `rules.weight_decay`, which keeps the decay by the epoch constant.
    - ema: `ema_momentum`, `rules.moving_average`.

    Raises:
        ConfigurationError: the optimizer has no such thing, or it cannot be scaled that far.
        ConfigurationTypeError: `scale` is no list of names.
    """
    if isinstance(scale, str) or not isinstance(scale, Sequence):
        raise ConfigurationTypeError(received("scale", scale, "a list of names", 'write scale=["weight_decay"]'))
    for name in scale:
        if name not in SCALES:
            raise ConfigurationError(received("scale", name, f"made of {', '.join(map(repr, SCALES))}"))
    rule, batch = batch_schedule.rule, batch_schedule.batch
    k = batch.ratio
    values: dict[str, float] = {}
    if "betas" in scale:
        if not all(isinstance(getattr(optimizer, name, None), float) for name in ("beta_1", "beta_2", "epsilon")):
            raise ConfigurationError(_lacks(optimizer, "betas", "has no beta_1, beta_2 and epsilon"))
        if rules.rule_name(rule) != "sqrt":
            hint = 'write rule="sqrt": the betas are scaled together with that rule'
            raise ConfigurationError(received("rule", rules.rule_name(rule), "'sqrt' with scale=['betas']", hint))
        for name in ("beta_1", "beta_2"):
            values[name] = rules.adam_beta(getattr(optimizer, name), k, name)
        values["epsilon"] = rules.adam_epsilon(optimizer.epsilon, k)
    if "weight_decay" in scale:
        if not optimizer.weight_decay:
            raise ConfigurationError(_lacks(optimizer, "weight_decay", "has no weight decay"))
        values["weight_decay"] = rules.weight_decay(optimizer.weight_decay, k, batch_schedule.factor)
    if "ema" in scale:
        if not optimizer.use_ema:
            raise ConfigurationError(_lacks(optimizer, "ema", "has no moving average (use_ema=False)"))
        # Keras moves it at every step, of which an update takes `accumulation`.
        values["ema_momentum"] = rules.moving_average(optimizer.ema_momentum, k / batch.accumulation)
    return values


def _check_momentum_correction(optimizer: Any, warmup: Any) -> None:
    """Refuses `momentum_correction=True` where the momentum does not hold the rate, or the rate does not climb."""
    if not isinstance(optimizer, keras.optimizers.SGD) or not optimizer.momentum:
        raise ConfigurationError(
            received(
                "momentum_correction",
                True,
                f"left out for {type(optimizer).__name__} with momentum {getattr(optimizer, 'momentum', None)!r}",
                "it is for keras.optimizers.SGD(momentum=...), whose velocity holds the rates of earlier steps; Adam's "
                "moments hold gradients alone",
            )
        )
    if warmup is None:
        hint = "add `warmup=`: the correction is made while the rate climbs"
        raise ConfigurationError(received("momentum_correction", True, "left out where there is no warmup", hint))


def _check_follows(optimizer: Any, weight_decay: Any, momentum: Any) -> None:
    """Refuses a schedule on what the optimizer does not have, or cannot change while it trains."""
    if weight_decay is not None:
        check_is_schedule(weight_decay, "weight_decay_schedule")
        if not optimizer.weight_decay:
            hint = "make the optimizer with a weight decay: the schedule takes its place"
            name = type(optimizer).__name__
            raise ConfigurationError(
                received("weight_decay_schedule", weight_decay, f"left out for {name}, which has no weight decay", hint)
            )
    if momentum is not None:
        check_is_schedule(momentum, "momentum_schedule")
        if not isinstance(optimizer, keras.optimizers.SGD) or not optimizer.momentum or optimizer.nesterov:
            hint = "use keras.optimizers.SGD(momentum=0.9), whose momentum the schedule takes the place of"
            raise ConfigurationError(
                received("momentum_schedule", momentum, "given with SGD with momentum and without nesterov", hint)
            )


class Multipliers:
    """A factor on the rate of each variable, by patterns on its path; 1 where none matches.

    Args:
        patterns: regular expressions, searched for in `variable.path`, and their factors; the first match counts.
    """

    def __init__(self, patterns: Mapping[str, float]) -> None:
        if not isinstance(patterns, Mapping):
            hint = 'write {"encoder/": 0.1}'
            raise ConfigurationTypeError(received("multipliers", patterns, "a dict of patterns and factors", hint))
        self.patterns: dict[str, float] = {}
        for pattern, factor in patterns.items():
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise ConfigurationError(
                    received("multipliers", pattern, f"made of regular expressions ({error})")
                ) from error
            self.patterns[pattern] = not_negative_real(f"multipliers[{pattern!r}]", factor)

    def of(self, path: str) -> float:
        """The factor of the variable with this path."""
        return next((factor for pattern, factor in self.patterns.items() if re.search(pattern, path)), 1.0)

    def check(self, paths: Sequence[str]) -> None:
        """Refuses a pattern that matches none of the variables: a mistake that nothing else would show."""
        for pattern in self.patterns:
            if not any(re.search(pattern, path) for path in paths):
                raise ConfigurationError(
                    received("multipliers", pattern, f"made of patterns that match a variable: {', '.join(paths)}")
                )


def _lacks(optimizer: Any, name: str, why: str) -> str:
    return received("scale", name, f"left out for {type(optimizer).__name__}, which {why}")
