"""The moving averages of a model, scaled for the global batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras

import distlr._utils.keras_setup  # noqa: F401  (checks the installation first)
from distlr._utils.detached_copy import update_copy
from distlr.batch.global_batch import GlobalBatch
from distlr.errors import ConfigurationError, ConfigurationTypeError, received
from distlr.scaling import rules

__all__ = ["averaging_layers", "is_scaled", "scale_moving_averages"]

_BASE = "_distlr_base"  # on a layer: the momenta at the base batch


def scale_moving_averages(
    model: Any, batch: GlobalBatch, layers: Mapping[str, str] | None = None
) -> dict[str, tuple[float, float]]:
    """Brings batch normalization's momentum, and that of layers that are named, to `momentum^k`.

    k is the base steps that one step stands for: `global batch / base batch / accumulation`. A larger batch makes fewer
    steps, and a moving average that forgets by the step then lags behind the weights by k times as many
    samples; in large batches that costs more accuracy than anything else.

    A saved model holds the base momentum, and this function scales from it, however often it is called.

    Args:
        model: before it is trained.
        batch: the result of `job.batch`.
        layers: for layers of your own, the name of the momentum's attribute by the layer's name.

    Returns:
        (base, scaled) by "layer.attribute".

    Raises:
        ConfigurationError: a layer is not there, or its attribute is no momentum.

    Source: Busbridge et al. 2023, "How to Scale Your EMA", arXiv 2307.13813.
    """
    if not isinstance(model, keras.Model):
        raise ConfigurationTypeError(received("model", model, "a Keras model"))
    k = batch.ratio / batch.accumulation
    momenta: dict[str, tuple[float, float]] = {}
    for layer, attribute in [*averaging_layers(model), *_named_layers(model, layers or {})]:
        base = _base_momenta(layer).setdefault(attribute, float(getattr(layer, attribute)))
        setattr(layer, attribute, rules.moving_average(base, k))
        momenta[f"{layer.name}.{attribute}"] = (base, getattr(layer, attribute))
    for name in ("train_function", "test_function", "predict_function"):
        setattr(model, name, None)  # a function that was traced before holds the old momentum
    return momenta


def averaging_layers(model: Any) -> Iterator[tuple[Any, str]]:
    """The layers that keep a moving average, and the attribute that is its momentum."""
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.BatchNormalization):
            yield layer, "momentum"


def is_scaled(layer: Any) -> bool:
    """Whether `scale_moving_averages` has set this layer's momentum."""
    return _BASE in layer.__dict__


def _base_momenta(layer: Any) -> dict[str, float]:
    """The layer's momenta at the base batch; from then on its config, and so a saved model, holds these."""
    if _BASE not in layer.__dict__:
        bases: dict[str, float] = {}
        # Past Keras' own attribute tracking, which is closed on a layer that is built.
        layer.__dict__[_BASE] = bases
        layer.__dict__["get_config"] = lambda: _config_at_base(layer, bases)
    momenta: dict[str, float] = layer.__dict__[_BASE]
    return momenta


def _config_at_base(layer: Any, bases: Mapping[str, float]) -> dict[str, Any]:
    """The layer's own config with its momenta at the base batch, under the names that its `get_config` uses.

    It is the config of a copy, because the layer itself may be in use meanwhile.
    """
    plain: Any = object.__new__(type(layer))
    update_copy(plain, layer, "get_config", dict(bases))
    config: dict[str, Any] = plain.get_config()
    return config


def _named_layers(model: Any, layers: Mapping[str, str]) -> Iterator[tuple[Any, str]]:
    layers_by_name = {layer.name: layer for layer in model._flatten_layers(include_self=False)}
    for name, attribute in layers.items():
        if name not in layers_by_name:
            raise ConfigurationError(received("layers", name, f"named after layers: {', '.join(layers_by_name)}"))
        value = getattr(layers_by_name[name], attribute, None)
        if not isinstance(value, float) or not 0 <= value <= 1:
            expected = f"attributes that are a momentum in [0, 1]; {name}.{attribute} is {value!r}"
            raise ConfigurationError(received("layers", {name: attribute}, expected))
        yield layers_by_name[name], attribute
