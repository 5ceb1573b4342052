"""Checkpoints of several ranks while the averages are in the model, and the counters of each rank's callbacks."""

from __future__ import annotations

import contextlib
import pathlib

import keras
import numpy as np

import distlr

K = keras.callbacks
EPOCHS, DIES_BEFORE = 5, 3
SCORES = [3.0, 1.0, 2.0, 2.5, 4.0]


class Killed(Exception):
    """Stands for the end of the process."""


class Watch(K.Callback):
    """Gives a metric, notes the weights that each epoch begins with, and dies before an epoch."""

    def __init__(self, dies_before: int | None) -> None:
        super().__init__()
        self.dies_before = dies_before
        self.begins: dict[str, list] = {}

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.dies_before:
            raise Killed
        self.epoch = str(epoch)

    def on_train_batch_begin(self, batch, logs=None):
        self.begins.setdefault(self.epoch, self.model.get_weights()[0].ravel().tolist())

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = SCORES[epoch]


def train(job, folder, dies_before=None):
    """One process of each rank; what it began epochs with, the weights at the end, and what EarlyStopping counted."""
    x = np.random.default_rng(0).normal(size=(24, 2)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    batch = job.batch(per_replica=2, base_batch=2, samples_per_epoch=len(x))
    with job.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="zeros")])
        optimizer = keras.optimizers.SGD(0.02, use_ema=True, ema_momentum=0.5)
        model.compile(job.optimizer(optimizer, batch), "mse")
    stop = K.EarlyStopping("score", mode="min", patience=3, restore_best_weights=True)
    best = K.ModelCheckpoint(folder / "best.keras", monitor="score", mode="min", save_best_only=True)
    watch = Watch(dies_before)
    callbacks = [watch, K.SwapEMAWeights(swap_on_epoch=True), stop, best, distlr.callbacks.Checkpoint(folder / "ck")]
    with contextlib.suppress(Killed):
        model.fit(
            job.shard((x, y), batch, shuffle=False),
            epochs=EPOCHS,
            validation_data=job.shard((x, y), batch, training=False),
            callbacks=job.callbacks(callbacks),
            shuffle=False,
            verbose=0,
        )
    return watch.begins, model.get_weights()[0].ravel().tolist(), [stop.best, stop.best_epoch, stop.stopped_epoch]


def test_every_rank_goes_on_from_the_weights_and_decides_as_before(job, same_on_all, tmp_path_factory) -> None:
    shared = pathlib.Path(job.communicator.broadcast_json(str(tmp_path_factory.mktemp("run")), tag="folder"))
    begins, end, stopped = train(job, shared / "whole")
    train(job, shared / "resumed", DIES_BEFORE)
    resumed = train(job, shared / "resumed")
    assert resumed[0] == {epoch: weights for epoch, weights in begins.items() if int(epoch) >= DIES_BEFORE}
    assert resumed[1] == end
    assert resumed[2] == stopped == [1.0, 1, 4]
    same_on_all([begins, end, *resumed])
    if job.is_root:
        best = keras.saving.load_model(shared / "resumed" / "best.keras").get_weights()[0].ravel().tolist()
        assert best == end  # the averages after the second epoch, with which it was judged
