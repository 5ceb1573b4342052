"""Trains until it is stopped by hand; each rank writes the rate of each update: controlled_by_hand.py RUN_DIR"""

from __future__ import annotations

import pathlib
import sys

import keras
import numpy as np

import distlr

PER_EPOCH = 100


class Rates(keras.callbacks.Callback):
    """Writes update and rate, as the update begins."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self.file = path.open("w", buffering=1)

    def on_train_batch_begin(self, batch, logs=None):
        optimizer = self.model.optimizer
        self.file.write(f"{int(optimizer.iterations.numpy())} {float(optimizer.learning_rate).hex()}\n")

    def on_train_end(self, logs=None):
        self.file.close()


def main(run_dir: pathlib.Path) -> None:
    job = distlr.init(timeout=60)
    keras.utils.set_random_seed(0)
    batch = job.batch(per_replica=2, base_batch=4, samples_per_epoch=2 * PER_EPOCH * job.replicas)
    with job.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(job.optimizer(keras.optimizers.SGD(0.01), batch), "mse")
    x = np.random.default_rng(0).normal(size=(batch.samples_per_epoch, 2)).astype("float32")
    run_dir.mkdir(exist_ok=True)
    callbacks = job.callbacks([Rates(run_dir / f"rates{job.rank}.txt")], run_dir=run_dir)
    data = job.shard((x, x.sum(axis=1, keepdims=True)), batch, seed=0)
    model.fit(data, epochs=10_000, callbacks=callbacks, verbose=0, shuffle=False)
    print(f"rank {job.rank} ends at {float(model.optimizer.learning_rate):g}", flush=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
