"""A run with a checkpoint every few updates: each rank notes samples and rate after each step, rank 0 the weights.

Under an elastic launcher it goes on with whatever ranks there are; a new generation appends to the rank's notes.

resumable.py DIRECTORY ATTEMPT [EPOCHS]
"""

import hashlib
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Sequence

import keras
import numpy as np

import distlr

SAMPLES, PER_REPLICA = 330, 4
directory, attempt = pathlib.Path(sys.argv[1]), sys.argv[2]
epochs = int(sys.argv[3]) if len(sys.argv) > 3 else 6


def train(job: distlr.Job, more: Sequence[keras.callbacks.Callback] = ()) -> None:
    keras.utils.set_random_seed(job.rank)  # another dropout on each rank
    batch = job.batch(PER_REPLICA, base_batch=PER_REPLICA, samples_per_epoch=SAMPLES)
    x = np.random.default_rng(0).normal(size=(SAMPLES, 8)).astype("float32")
    y = (x.sum(axis=1, keepdims=True) > 0).astype("float32")
    with job.scope():
        model = keras.Sequential(
            [
                keras.Input((8,)),
                keras.layers.Dense(16, "relu"),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(0.2),
                keras.layers.Dense(1, "sigmoid"),
            ]
        )
        schedule = keras.optimizers.schedules.CosineDecay(0.02, epochs * SAMPLES // PER_REPLICA)
        optimizer = job.optimizer(keras.optimizers.SGD(schedule, momentum=0.9), batch, warmup="1.5ep")
        model.compile(optimizer, "binary_crossentropy", metrics=["accuracy"])

    directory.mkdir(parents=True, exist_ok=True)
    log = open(directory / f"{attempt}-{job.rank}.txt", "a", buffering=1)  # noqa: SIM115 (a killed process closes it)

    class Note(keras.callbacks.Callback):
        times: list[float] = []  # noqa: RUF012

        def on_train_batch_end(self, batch, logs=None):
            self.times.append(time.monotonic())
            if attempt == "fails" and len(self.times) == 30:
                raise ValueError("a mistake of the script's own")
            if attempt == "lost" and job.replicas == 2 and job.is_root and len(self.times) == 40:
                time.sleep(1)  # the other rank waits in the checkpoint's collective by then
                os.kill(os.getpid(), signal.SIGKILL)
            log.write(f"{optimizer.samples_seen} {float(optimizer.learning_rate).hex()}\n")

    callbacks = [
        *more,
        Note(),
        distlr.callbacks.ReduceLROnPlateau("val_loss", patience=1, factor=0.5, min_delta=0.1),
        distlr.callbacks.Checkpoint(directory / "checkpoints", every="10ba"),
    ]
    data = job.shard((x, y), batch)
    valid = job.shard((x[:50], y[:50]), batch, training=False)
    history = model.fit(
        data, epochs=epochs, validation_data=valid, callbacks=job.callbacks(callbacks), shuffle=False, verbose=0
    )
    values = [np.asarray(v.numpy()) for v in [*model.weights, *optimizer.variables]]
    result = {
        "replicas": job.replicas,
        "multiplier": optimizer.multiplier,
        "logs": {name: [float(value).hex() for value in values] for name, values in history.history.items()},
        "seconds": Note.times[-1] - Note.times[0] if Note.times else 0.0,
        "weights": hashlib.sha256(b"".join(value.tobytes() for value in values)).hexdigest(),
    }
    if job.is_root:
        (directory / f"{attempt}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    distlr.elastic.run(train, timeout=60)
