"""TensorBoard reads back the values of the clock, also beyond the whole numbers of float32."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import distlr
from distlr.callbacks import TensorBoardScalars


def written(folder: Path) -> dict[str, list[float]]:
    scalars: dict[str, list[float]] = {}
    for path in sorted(folder.iterdir()):
        for record in tf.data.TFRecordDataset(str(path)):
            for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars" or value.tag in scalars:
                    scalars.setdefault(value.tag, []).append(float(tf.make_ndarray(value.tensor)))
    return scalars


def test_whole_numbers_above_those_of_float32(tmp_path) -> None:
    job = distlr.init(environ={})
    batch = job.batch(per_replica=1, base_batch=1, samples_per_epoch=2**25)
    with job.scope():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(job.optimizer(keras.optimizers.SGD(0.1), batch), "mse")
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    optimizer.distlr.variables.samples_seen.assign(2**24 + 1)
    scalars = TensorBoardScalars(tmp_path)
    scalars.set_model(model)
    scalars.on_train_begin()
    scalars.on_epoch_end(0)
    scalars.on_train_end()
    values = written(tmp_path)
    assert int(np.float32(2**24 + 1)) == 2**24
    assert values["distlr/samples_seen"] == [2**24 + 1]
    assert values["distlr/learning_rate"] == [optimizer.distlr.formula.reading().rate]
