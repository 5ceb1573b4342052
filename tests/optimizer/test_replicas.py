"""Replicas of a tf.distribute strategy against one device with the whole batch: clipped, accumulated, sparse."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr.strategies.mirrored import mirrored

pytestmark = pytest.mark.replicas

REPLICAS, SHARE, UPDATES, FEATURES = 4, 3, 20, 5


def _model(inputs: str) -> keras.Model:
    keras.utils.set_random_seed(3)
    first = [keras.layers.Embedding(7, 3), keras.layers.Flatten()] if inputs == "sparse" else []
    dtype = "int32" if inputs == "sparse" else "float32"
    layers = [*first, keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((FEATURES,), dtype=dtype), *layers])


def _data(inputs: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    shape = (count, FEATURES)
    x = (
        generator.normal(size=shape).astype("float32")
        if inputs == "dense"
        else generator.integers(0, 7, shape, "int32")
    )
    return x, generator.normal(size=(count, 1)).astype("float32")


@pytest.mark.filterwarnings("ignore:Converting sparse IndexedSlices")
@pytest.mark.parametrize(
    ("inputs", "accumulation", "options"),
    [
        ("dense", 1, {"global_clipnorm": 0.05}),
        ("dense", 2, {"global_clipnorm": 0.05}),
        ("dense", 1, {"clipnorm": 0.03}),
        ("dense", 2, {"kind": keras.optimizers.Adam, "weight_decay": 0.1}),  # which counts updates for itself
        ("sparse", 1, {}),
        ("sparse", 2, {"clipnorm": 0.03}),
        ("dense", 1, {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3}),
        ("dense", 2, {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3}),
    ],
)
def test_replicas_train_as_one_device_with_the_whole_batch(inputs, accumulation, options) -> None:
    strategy = mirrored([f"CPU:{index}" for index in range(REPLICAS)])
    job = distlr.init(strategy=strategy, environ={})
    steps = None if accumulation == 1 else accumulation
    x, y = _data(inputs, REPLICAS * SHARE * UPDATES * accumulation)

    def optimizer():
        arguments = {"momentum": 0.9, **options} if "kind" not in options else dict(options)
        kind = arguments.pop("kind", keras.optimizers.SGD)
        return kind(0.05, gradient_accumulation_steps=steps, **arguments)

    with job.scope():
        shared = _model(inputs)
        shared.compile(job.optimizer(optimizer()), "mse")
    whole = _model(inputs)
    whole.compile(optimizer(), "mse")
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(REPLICAS * SHARE, drop_remainder=True)
    whole.fit(data, verbose=0, shuffle=False)
    shared.fit(data, verbose=0, shuffle=False, callbacks=job.callbacks())
    assert int(shared.optimizer.iterations.numpy()) == UPDATES
    assert len(set(job.weights_digests(shared))) == 1
    for expected, found in zip(whole.weights, shared.weights, strict=True):
        error = np.linalg.norm(expected.numpy() - found.numpy()) / np.linalg.norm(expected.numpy())
        assert error < 1e-5


def test_an_overflow_while_replicas_accumulate_skips_the_step_on_all(rate_bench) -> None:
    bench = rate_bench.Bench(REPLICAS, gradient_accumulation_steps=2)
    with bench.job.scope():
        optimizer = bench.job.optimizer(keras.optimizers.LossScaleOptimizer(bench.optimizer, initial_scale=4.0))
        variable = keras.Variable([1.0])
        optimizer.build([variable])

    @tf.function
    def step(bad):
        def replica():
            replica_id = tf.distribute.get_replica_context().replica_id_in_sync_group
            gradient = tf.where(bad & tf.equal(replica_id, 1), np.inf, 1.0)
            optimizer.apply([tf.reshape(gradient, [1])], [variable])

        bench.job.run(replica)

    for bad in (False, True, False):
        step(tf.constant(bad))
    # Two finite steps, the second at half the loss scale: the mean of 1 / 4 and 1 / 2 on each of four replicas.
    np.testing.assert_allclose(variable.numpy(), [1.0 - 0.1 * REPLICAS * 0.375], rtol=1e-6)
    assert int(bench.optimizer.iterations.numpy()) == 1
