"""Reads the rates that Keras applied, and makes the small jobs that the tests of the rate train.

An optimizer here writes down what its `update_step` receives, on each replica; nothing asks distlr for it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr.strategies.mirrored import mirrored

STEPS = 128  # the longest run, in Keras' steps


class RateLog:
    """The rate of each step on each of four devices; NaN where there was no update, inf where there were two rates."""

    def __init__(self) -> None:
        self.traces = 0
        self._logs = []
        for index in range(4):
            with tf.device(f"CPU:{index}"):
                self._logs.append(tf.Variable(tf.fill([STEPS], tf.constant(np.nan, tf.float64)), trainable=False))

    def write(self, device: str, step: Any, rate: Any) -> None:
        """In graph or eagerly: called once for each variable that is updated."""
        log = self._logs[tf.DeviceSpec.from_string(device).device_index]
        rate = tf.cast(rate, tf.float64)
        before = tf.gather(log, step)
        value = tf.where(tf.math.is_nan(before) | (before == rate), rate, np.inf)
        log.assign(tf.where(tf.range(STEPS, dtype=tf.int64) == step, value, log))

    def all(self) -> np.ndarray:
        """Of shape (4, STEPS)."""
        return np.stack([log.numpy() for log in self._logs])

    def of(self, replicas: int) -> np.ndarray:
        """The rates of the updates, in order; asserts that the replicas had the same and no other device had any."""
        rates = self.all()
        assert np.isnan(rates[replicas:]).all()
        for other in rates[1:replicas]:
            np.testing.assert_array_equal(other, rates[0], err_msg="a replica applied another rate")
        return rates[0][~np.isnan(rates[0])]


@keras.saving.register_keras_serializable("tests")
class RecordingSGD(keras.optimizers.SGD):
    """SGD that writes each rate it is given into a `RateLog`."""

    def __init__(self, learning_rate: Any, log: RateLog, **options: Any) -> None:
        super().__init__(learning_rate, **options)
        self._rate_log = log

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        self._rate_log.traces += 1  # Python runs once a trace and replica
        super().apply(grads, trainable_variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        self._rate_log.write(variable.device, tf.cast(self._iterations, tf.int64), learning_rate)
        super().update_step(gradient, variable, learning_rate)


class Overwrite(keras.callbacks.Callback):
    """Puts a value of the test's own into the logs of each epoch; give it before the callback that reads it."""

    def __init__(self, values: Sequence[float | None], name: str = "val_loss") -> None:
        super().__init__()
        self.values, self.name = values, name

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        assert logs is not None
        if self.values[epoch] is not None:
            logs[self.name] = self.values[epoch]


@functools.cache
def _strategy(replicas: int) -> tf.distribute.Strategy:
    return mirrored([f"CPU:{index}" for index in range(replicas)])


class Bench:
    """One job with one recording optimizer: made, stepped without `fit`, or fitted."""

    def __init__(self, replicas: int, rate: Any = 0.1, **options: Any) -> None:
        self.replicas = replicas
        strategy = _strategy(replicas) if replicas > 1 else None
        self.job = distlr.init(strategy=strategy, environ={})
        self.log = RateLog()
        with self.job.scope():
            self.optimizer = RecordingSGD(rate, self.log, **options)
        self.model: Any = None
        self._variable: Any = None

    def batch(self, per_replica: int, base_batch: int, **options: Any) -> distlr.GlobalBatch:
        return self.job.batch(per_replica=per_replica, base_batch=base_batch, **options)

    def adopt(self, batch: Any = None, **scaling: Any) -> Any:
        with self.job.scope():
            return self.job.optimizer(self.optimizer, batch, **scaling)

    def compile(self, normalized: bool = False, **options: Any) -> Any:
        layers = [keras.layers.BatchNormalization(center=False, scale=False)] if normalized else []
        with self.job.scope():
            self.model = keras.Sequential([keras.Input((2,)), *layers, keras.layers.Dense(1, use_bias=False)])
            self.model.compile(self.optimizer, "mse", **options)
        return self.model

    def fit(self, data: Any, epochs: int = 1, callbacks: Any = (), **options: Any) -> Any:
        return self.model.fit(data, epochs=epochs, callbacks=list(callbacks), verbose=0, shuffle=False, **options)

    def train(self, batch: Any, epochs: int = 1, callbacks: Any = ()) -> None:
        """A fit of whole epochs; on one iterator, since each new one costs half a second on four replicas."""
        data = self.job.shard(samples(batch.samples_per_epoch), batch, remainder="carry")
        self.fit(data, epochs, callbacks, steps_per_epoch=batch.steps_per_epoch)

    def step(self, count: int = 1) -> list[float]:
        """Applies updates eagerly on all replicas, and returns the rates applied so far."""
        if self._variable is None:
            with self.job.scope():
                self._variable = keras.Variable([1.0, -1.0])
                self.optimizer.build([self._variable])
        for _ in range(count):
            self.step_unchecked()
        return self.rates()

    def step_unchecked(self) -> None:
        """One more update; the replicas' rates are not compared."""
        self.job.strategy.run(self._apply)

    def _apply(self) -> None:
        self.optimizer.apply([tf.constant([0.1, 0.2])], [self._variable])

    def rates(self) -> list[float]:
        return [float(rate) for rate in self.log.of(self.replicas)]


def samples(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Training data that any model here can take."""
    x = np.random.default_rng(0).normal(size=(count, 2)).astype("float32")
    return x, x.sum(axis=1, keepdims=True)


@contextlib.contextmanager
def refused(kind: type[Exception], text: str) -> Iterator[None]:
    """As `pytest.raises`, for a `fit`: the traceback is dropped, and with it Keras' threads for callbacks."""
    message = None
    try:
        yield
    except kind as error:
        message = str(error)
    gc.collect()
    if message is None:
        pytest.fail(f"did not raise {kind.__name__}")
    assert re.search(text, message), message


def by_hand(
    rate_at: Callable[[float], float],
    *,
    updates: int,
    batch: int,
    base: int,
    epoch: int | None = None,
    warmup: float = 0.0,
) -> list[float]:
    """The rates of a linearly scaled run in float64: `rate_at(t)`, t in base steps, with a linear warmup of samples.

    The clock: after n updates of U an epoch of S samples, floor(n * S / U) samples have been seen.
    """
    k = batch / base
    rates = []
    for n in range(updates):
        seen = n * batch if epoch is None else n * epoch // (epoch // batch)
        climb = 1.0
        if warmup and k > 1:
            progress = min(1.0, seen / warmup)
            climb = 1 / k + (1 - 1 / k) * progress
        rates.append(rate_at(seen / base) * k * climb)
    return rates
