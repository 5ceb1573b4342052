"""`fit` with weights of classes, then of samples, Keras' own savers, early stopping, and a logger on rank 0 alone."""

import importlib.util

import keras
import numpy as np
from sklearn.datasets import load_digits

import distlr

job = distlr.init()
keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
images = (images / 16).astype("float32")
train, valid = (images[:256], labels[:256]), (images[256:350], labels[256:350])
batch = job.batch(per_replica=8, base_batch=8, samples_per_epoch=256)


class Logger(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        print({name: round(value, 3) for name, value in logs.items()}, float(self.model.optimizer.learning_rate))


with job.scope():
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(10)])
    model.compile(
        optimizer=job.optimizer(keras.optimizers.SGD(0.05, momentum=0.9), batch, warmup="1ep"),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
    )


def callbacks():
    given = [
        keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True),
        keras.callbacks.ModelCheckpoint("best.keras", monitor="val_accuracy", save_best_only=True),
        keras.callbacks.CSVLogger("epochs.csv", append=True),
    ]
    if importlib.util.find_spec("tensorboard"):
        given.append(keras.callbacks.TensorBoard("logs"))
    if job.is_root:
        given.append(Logger())
    return job.callbacks(given)


model.fit(
    job.shard(train, batch, seed=1),
    epochs=2,
    shuffle=False,
    class_weight={digit: 2.0 if digit == 8 else 1.0 for digit in range(10)},
    validation_data=job.shard(valid, batch, training=False),
    callbacks=callbacks(),
    verbose=2 if job.is_root else 0,
)
weights = np.where(train[1] == 8, 2.0, 1.0).astype("float32")
model.fit(
    job.shard((*train, weights), batch, seed=2),
    epochs=2,
    shuffle=False,
    validation_data=job.shard(valid, batch, training=False),
    callbacks=callbacks(),
    verbose=2 if job.is_root else 0,
)
result = job.evaluate(model, job.shard(valid, batch, training=False))
if job.is_root:
    print(result)
