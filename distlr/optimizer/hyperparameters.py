"""What of an optimizer is scaled for the global batch beside its rate, where the user asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from distlr import scaling
from distlr.batch import GlobalBatch
from distlr.errors import ConfigurationError, ConfigurationTypeError, received

__all__ = ["SCALES", "check_momentum_correction", "scaled_values"]

SCALES = ("betas", "weight_decay", "ema")
"""What `scale=` may name."""


def scaled_values(
    optimizer: Any, scale: Sequence[str], batch: GlobalBatch, rule: Any, factor: float
) -> dict[str, float]:
    """The scaled value of each attribute of a plain optimizer.

    - betas: `beta_1`, `beta_2` and `epsilon` of the Adam family, under the sqrt rule (`scaling.adam_beta`).
    - weight_decay: `scaling.weight_decay`, which keeps the decay by the epoch constant.
    - ema: `ema_momentum`, `scaling.moving_average`.

    Raises:
        ConfigurationError: the optimizer has no such thing, or it cannot be scaled that far.
        ConfigurationTypeError: `scale` is no list of names.
    """
    if isinstance(scale, str) or not isinstance(scale, Sequence):
        raise ConfigurationTypeError(received("scale", scale, "a list of names", 'write scale=["weight_decay"]'))
    for name in scale:
        if name not in SCALES:
            raise ConfigurationError(received("scale", name, f"made of {', '.join(map(repr, SCALES))}"))
    k = batch.ratio
    values: dict[str, float] = {}
    if "betas" in scale:
        if not all(isinstance(getattr(optimizer, name, None), float) for name in ("beta_1", "beta_2", "epsilon")):
            raise ConfigurationError(_lacks(optimizer, "betas", "has no beta_1, beta_2 and epsilon"))
        if scaling.rule_name(rule) != "sqrt":
            hint = 'write rule="sqrt": the betas are scaled together with that rule'
            raise ConfigurationError(received("rule", scaling.rule_name(rule), "'sqrt' with scale=['betas']", hint))
        for name in ("beta_1", "beta_2"):
            values[name] = scaling.adam_beta(getattr(optimizer, name), k, name)
        values["epsilon"] = scaling.adam_epsilon(optimizer.epsilon, k)
    if "weight_decay" in scale:
        if not optimizer.weight_decay:
            raise ConfigurationError(_lacks(optimizer, "weight_decay", "has no weight decay"))
        values["weight_decay"] = scaling.weight_decay(optimizer.weight_decay, k, factor)
    if "ema" in scale:
        if not optimizer.use_ema:
            raise ConfigurationError(_lacks(optimizer, "ema", "has no moving average (use_ema=False)"))
        # Keras moves it at every step, of which an update takes `accumulation`.
        values["ema_momentum"] = scaling.moving_average(optimizer.ema_momentum, k / batch.accumulation)
    return values


def check_momentum_correction(optimizer: Any, warmup: Any) -> None:
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


def _lacks(optimizer: Any, name: str, why: str) -> str:
    return received("scale", name, f"left out for {type(optimizer).__name__}, which {why}")
