"""Fixtures inside the ranks."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def job():
    """The job of the launched ranks, as a script gets it."""
    import distlr

    return distlr.init(timeout=60)


@pytest.fixture(scope="session")
def spans(job) -> bool:
    """Whether one tf.distribute strategy spans the ranks."""
    return job.communicator.strategy_spans_ranks


@pytest.fixture(scope="session")
def local_data():
    """Makes a data set of this rank's own samples: `local_data(arrays, batch)`."""
    import tensorflow as tf

    from distlr.data.sharding import own_share

    def make(arrays, batch: int):
        return own_share(tf.data.Dataset.from_tensor_slices(arrays).batch(batch))

    return make


@pytest.fixture
def simple(job):
    """Makes a compiled model of one dense layer, from the same weights on each rank, at a rate that is not scaled."""
    import keras

    def make(rate: float = 0.01):
        keras.utils.set_random_seed(0)
        with job.scope():
            model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            model.compile(job.optimizer(keras.optimizers.SGD(rate)), "mse")
        return model

    return make


@pytest.fixture
def same_on_all(job):
    """Asserts that a JSON value is equal on every rank; collective."""

    def check(value, tag="test"):
        values = job.communicator.gather_json(value, tag=tag)
        assert all(other == values[0] for other in values), values
        return values[0]

    return check
