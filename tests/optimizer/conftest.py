"""Every optimizer that the installed Keras exports, and a tiny model to build it on."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distlr.batch.global_batch import GlobalBatch
from distlr.optimizer import adopt, unwrap_loss_scale

GRADIENTS = ([[0.3, -0.1], [0.2, 0.4], [-0.5, 0.1]], [0.1, -0.2])
STATE = "plateau/val:loss/min"


def _kinds() -> dict[str, Any]:
    kinds = {
        name: kind
        for name, kind in vars(keras.optimizers).items()
        if isinstance(kind, type)
        and issubclass(kind, keras.optimizers.Optimizer)
        and kind not in (keras.optimizers.Optimizer, keras.optimizers.LossScaleOptimizer)
        and not hasattr(kind, "optimizers")  # a container of several; refused
    }
    if tuple(map(int, keras.__version__.split(".")[:2])) < (3, 13):
        # It cannot train in plain Keras either: "'ResourceVariable' object has no attribute 'path'" (Keras 3.12.4).
        kinds.pop("Muon", None)
    kinds["SGD-momentum"] = functools.partial(keras.optimizers.SGD, momentum=0.9)
    kinds["LossScaleOptimizer"] = _scaled_adam
    return kinds


def _scaled_adam(rate: Any, **options: Any) -> Any:
    return keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(rate, **options), initial_scale=8.0, dynamic_growth_steps=2
    )


KINDS = _kinds()


RATES = ("float", "schedule")
FULLY = ("SGD-momentum", "Adafactor", "LossScaleOptimizer")
"""Tried with each rate; the others, which differ in the number and shape of their slots alone, with one of them."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wanted = {"kind", "rate"}.intersection(metafunc.fixturenames)
    if wanted == {"kind", "rate"}:
        metafunc.parametrize(("kind", "rate"), Lab.pairs)
    elif wanted == {"kind"}:
        metafunc.parametrize("kind", sorted(KINDS))
    elif wanted == {"rate"}:
        metafunc.parametrize("rate", RATES)


def rates_of(kind: str, index: int) -> tuple[str, ...]:
    return RATES if kind in FULLY else (RATES[index % 2],)


class Lab:
    """Makes models and optimizers of a kind, trains them without `fit`, and reads all their variables."""

    fully = FULLY
    state_name = STATE
    pairs = tuple((kind, rate) for i, kind in enumerate(sorted(KINDS)) for rate in rates_of(kind, i))

    def batch(self, accumulation: int = 1, replicas: int = 1) -> GlobalBatch:
        """Twice the base batch; an epoch of 5 updates whose last samples are dropped."""
        return GlobalBatch(
            8 // replicas, replicas=replicas, base_batch=4 * accumulation, accumulation=accumulation,
            samples_per_epoch=41 * accumulation, local_replicas=replicas,
        )  # fmt: skip

    def model(self, units: int = 2) -> Any:
        """A new one; `compiled` takes one that is there, which is quicker."""
        return keras.Sequential([keras.Input((3,)), keras.layers.Dense(units)])

    def plain(self, kind: str = "SGD-momentum", rate: str = "float", **options: Any) -> Any:
        value = 0.1 if rate == "float" else keras.optimizers.schedules.CosineDecay(0.1, 50)
        return KINDS[kind](value, **options)

    def adopted(self, kind: str = "SGD-momentum", rate: str = "float", **options: Any) -> Any:
        batch = self.batch(options.get("gradient_accumulation_steps", 1))
        return adopt(self.plain(kind, rate, **options), batch, scaling={"warmup": "2ep"})

    def compiled(self, optimizer: Any, units: int = 2, built: bool = False, model: Any = None) -> Any:
        model = self.model(units) if model is None else model
        model.compile(optimizer, "mse")
        if built:
            optimizer.build(model.trainable_variables)
        return model

    def train(self, model: Any, steps: int = 1, optimizer: Any = None) -> None:
        optimizer = model.optimizer if optimizer is None else optimizer
        scale = float(optimizer.scale_loss(1.0))
        for _ in range(steps):
            optimizer.apply([tf.constant(g) * scale for g in GRADIENTS], model.trainable_variables)

    def trained(self, kind: str, rate: str, **options: Any) -> Any:
        """A model after two updates and one cut, with a state of a decider and a base rate that was changed."""
        model = self.compiled(self.adopted(kind, rate, **options))
        self.train(model, 2 * options.get("gradient_accumulation_steps", 1))
        optimizer = unwrap_loss_scale(model.optimizer)
        optimizer.distlr.state(STATE, [np.inf, 0.0, 0.0]).assign([0.25, 3.0, 1.0])
        optimizer.multiply_rate(0.5)
        if rate == "float":
            optimizer._learning_rate.assign(0.07)
        return model

    def values(self, optimizer: Any) -> list[np.ndarray]:
        unwrap_loss_scale(optimizer).distlr.state(STATE, [np.inf, 0.0, 0.0])  # a decider asks for it
        return [np.asarray(variable.numpy()) for variable in optimizer.variables]

    def slots(self, optimizer: Any) -> list[np.ndarray]:
        """Keras' own variables but the iteration and the rate."""
        core = unwrap_loss_scale(optimizer)
        skipped = (id(core._iterations), id(core._learning_rate))
        return [np.asarray(v.numpy()) for v in core._variables if id(v) not in skipped]

    def assert_equal(self, found: Any, expected: Any) -> None:
        """All variables of two models' optimizers, now and (with the weights) after one more update."""
        for when in ("loaded", "after one more update"):
            for value, other in zip(self.values(found.optimizer), self.values(expected.optimizer), strict=True):
                assert value.dtype == other.dtype
                np.testing.assert_array_equal(value, other, err_msg=when)
            np.testing.assert_array_equal(found.get_weights()[0], expected.get_weights()[0], err_msg=when)
            assert float(found.optimizer.learning_rate) == float(expected.optimizer.learning_rate)
            if when == "loaded":
                self.train(found)
                self.train(expected)


@pytest.fixture(scope="session")
def lab() -> Lab:
    """Helpers; stateless."""
    return Lab()


@pytest.fixture
def mixed_float16() -> Iterator[None]:
    """The global dtype policy of mixed precision, for one test."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(before)
