"""The input of replicas on logical CPUs: the shares of TensorFlow, from one ordinary iterator."""

from __future__ import annotations

from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr.errors import DistributionError
from distlr.strategies import simulated
from distlr.strategies.mirrored import CpuMirroredStrategy

REPLICAS = 3


class Pair(NamedTuple):
    x: tf.Tensor
    y: tf.Tensor


@pytest.fixture(scope="module")
def strategy(four_cpus) -> tf.distribute.Strategy:
    return simulated(REPLICAS)


def shares(strategy, distributed) -> list:
    """By batch: the structure, with a list over the replicas in each place."""
    return [
        tf.nest.map_structure(
            lambda part: [v.numpy().tolist() for v in strategy.experimental_local_results(part)], batch
        )
        for batch in distributed
    ]


def batches(*sizes: int, kind=lambda x, y: (x, y)) -> tf.data.Dataset:
    def generate():
        for size in sizes:
            yield kind(np.arange(size, dtype="i4"), np.ones((size, 2), "f4"))

    signature = kind(tf.TensorSpec((None,), tf.int32), tf.TensorSpec((None, 2)))
    return tf.data.Dataset.from_generator(generate, output_signature=signature)


@pytest.mark.parametrize(
    "kind",
    [
        lambda x, y: (x, y),
        lambda x, y: x,
        lambda x, y: (x,),
        lambda x, y: {"x": x, "y": {"z": y}},
        lambda x, y: ((x, y), {"y": y}),
        Pair,
    ],
    ids=["tuple", "tensor", "one", "dict", "nested", "named"],
)
def test_the_structure_is_tensorflows(strategy, kind) -> None:
    data = batches(6, 5, 1, kind=kind)
    distributed = strategy.experimental_distribute_dataset(data)
    theirs = tf.distribute.MirroredStrategy.experimental_distribute_dataset(strategy, data)
    assert isinstance(distributed, tf.data.Dataset)
    assert not isinstance(theirs, tf.data.Dataset)
    actual, expected = shares(strategy, distributed), shares(strategy, theirs)
    assert actual == expected
    tf.nest.assert_same_structure(next(iter(distributed)), next(iter(theirs)))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("drop_remainder", [True, False])
def test_the_shares_are_tensorflows(strategy, size, drop_remainder) -> None:
    data = tf.data.Dataset.range(17).batch(size, drop_remainder=drop_remainder)
    actual = shares(strategy, strategy.experimental_distribute_dataset(data))
    theirs = tf.distribute.MirroredStrategy.experimental_distribute_dataset(strategy, data)
    assert actual == shares(strategy, theirs)
    assert [i for batch in actual for share in batch for i in share] == list(
        range(17 // size * size if drop_remainder else 17)
    )


def test_a_static_batch_stays_static(strategy) -> None:
    data = tf.data.Dataset.from_tensor_slices(tf.zeros((8, 3))).batch(4, drop_remainder=True)
    (batch,) = list(strategy.experimental_distribute_dataset(data.take(1)))
    assert [value.shape.as_list() for value in batch.values] == [[2, 3], [2, 3], [0, 3]]
    spec = strategy.experimental_distribute_dataset(data).element_spec
    assert [part.shape.as_list() for part in spec._component_specs] == [[2, 3], [2, 3], [0, 3]]


def test_what_is_not_dense_goes_tensorflows_way(strategy) -> None:
    ragged = tf.data.Dataset.from_tensor_slices(tf.ragged.constant([[1], [2, 3], [4], [5], [6], [7]])).batch(6)
    distributed = strategy.experimental_distribute_dataset(ragged)
    assert isinstance(distributed, tf.distribute.DistributedDataset)
    (batch,) = list(distributed)
    assert [value.to_list() for value in batch.values] == [[[1], [2, 3]], [[4], [5]], [[6], [7]]]


def test_a_divided_data_set_is_used_as_it_is(strategy) -> None:
    job = distlr.init(strategy=strategy)
    divided = strategy.experimental_distribute_dataset(batches(6))
    assert strategy.experimental_distribute_dataset(divided) is divided
    with pytest.raises(DistributionError, match=r"is distributed by tf\.distribute already"):
        job.shard(divided, job.batch(per_replica=2, base_batch=2))


@pytest.mark.replicas
def test_a_fit_is_bit_for_bit_that_of_tensorflows_iterator(strategy, monkeypatch) -> None:
    assert isinstance(strategy, CpuMirroredStrategy)
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("f4")
    y = x.sum(axis=1, keepdims=True)

    def run() -> list:
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(1)])
            model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", metrics=["mae"])
        history = model.fit(x, y, batch_size=9, epochs=2, validation_data=(x[:11], y[:11]), verbose=0)
        return [
            history.history,
            model.evaluate(x[:12], y[:12], verbose=0),
            model.predict(x[:13], batch_size=12, verbose=0).tolist(),
        ]

    first = run()
    monkeypatch.delattr(CpuMirroredStrategy, "experimental_distribute_dataset")
    assert first == run()


def test_epochs_are_not_traced_anew(strategy) -> None:
    traces = []

    @tf.function
    def step(iterator):
        traces.append(1)
        return strategy.run(lambda x: tf.reduce_sum(x), args=(next(iterator),))

    data = strategy.experimental_distribute_dataset(tf.data.Dataset.range(6).batch(3))
    for _ in range(3):
        iterator = iter(data)
        assert [strategy.reduce("SUM", step(iterator), axis=None).numpy() for _ in range(2)] == [3, 12]
        with pytest.raises(tf.errors.OutOfRangeError):
            step(iterator)
    assert len(traces) == 1
