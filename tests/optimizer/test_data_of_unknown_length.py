"""Where Keras does not know the number of steps it runs one more, which fails at the data's end and is not counted."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr

# Keras warns that the data ended.
pytestmark = pytest.mark.filterwarnings("ignore:Your input ran out of data")


@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.replicas)])
def test_the_step_that_fails_is_not_counted(accumulation) -> None:
    """Four steps an epoch; a fifth that counted would let the next epoch's updates come a step early."""
    x = np.ones((16, 3), "float32")
    job = distlr.init(environ={})
    batch = job.batch(per_replica=4, base_batch=4, accumulation=accumulation, samples_per_epoch=16)
    accumulate = {"gradient_accumulation_steps": accumulation} if accumulation > 1 else {}
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(job.optimizer(keras.optimizers.SGD(0.1, **accumulate), batch), "mse")
    data = tf.data.Dataset.from_generator(
        lambda: ((x[i : i + 4], x[i : i + 4, :1]) for i in range(0, 16, 4)),
        output_signature=(tf.TensorSpec((4, 3)), tf.TensorSpec((4, 1))),
    )
    seen: list[tuple[int, int]] = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(model.optimizer.distlr.formula.counts())
    )
    model.fit(data, epochs=3, callbacks=job.callbacks([note]), verbose=0, shuffle=False)
    assert seen == [(4, 16), (8, 32), (12, 48)]
