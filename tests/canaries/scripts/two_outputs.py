"""A functional model with inputs and outputs by name, and `tf.data` of dictionaries."""

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import distlr

job = distlr.init()
keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
images, labels = (images[:320] / 16).astype("float32"), labels[:320]
x = {"pixels": images, "sums": images.sum(axis=1, keepdims=True) / 32}
y = {"digit": labels, "even": (labels % 2 == 0).astype("float32")[:, None]}
batch = job.batch(per_replica=8, base_batch=8, samples_per_epoch=256)

with job.scope():
    pixels, sums = keras.Input((64,), name="pixels"), keras.Input((1,), name="sums")
    hidden = keras.layers.Dense(32, activation="relu")(keras.layers.Concatenate()([pixels, sums]))
    outputs = {
        "digit": keras.layers.Dense(10, activation="softmax", name="digit")(hidden),
        "even": keras.layers.Dense(1, activation="sigmoid", name="even")(hidden),
    }
    model = keras.Model({"pixels": pixels, "sums": sums}, outputs)
    model.compile(
        optimizer=job.optimizer(keras.optimizers.SGD(0.05, momentum=0.9), batch),
        loss={"digit": "sparse_categorical_crossentropy", "even": "binary_crossentropy"},
        loss_weights={"digit": 1.0, "even": 0.5},
        weighted_metrics={"digit": ["accuracy"], "even": [keras.metrics.BinaryAccuracy(name="accuracy")]},
    )


def slower(epoch, rate):
    return rate * 0.5 if epoch == 1 else rate


def of(arrays, part):
    return {name: array[part] for name, array in arrays.items()}


train = tf.data.Dataset.from_tensor_slices((of(x, slice(256)), of(y, slice(256))))
valid = tf.data.Dataset.from_tensor_slices((of(x, slice(256, None)), of(y, slice(256, None))))
model.fit(
    job.shard(train, batch, remainder="carry"),
    steps_per_epoch=batch.steps_per_epoch,
    epochs=2,
    shuffle=False,
    validation_data=job.shard(valid, batch, training=False),
    callbacks=job.callbacks([keras.callbacks.LearningRateScheduler(slower)]),
    verbose=2 if job.is_root else 0,
)
digits = model.predict(of(x, slice(256, None)), verbose=0)["digit"].argmax(axis=1)
assert np.isin(digits, range(10)).all()
