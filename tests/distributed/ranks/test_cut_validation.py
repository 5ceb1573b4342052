"""A SIGTERM in a long validation of some rank: all ranks leave with one file, and go on with that validation."""

from __future__ import annotations

import os
import signal
import time

import keras
import numpy as np
import pytest

import distlr
from distlr.callbacks import Checkpoint, cut_validation
from distlr.checkpoint.store import CheckpointDirectory

STEPS, PER_RANK, EPOCHS, CUT_IN, BATCHES = 3, 4, 3, 1, 10
GRACE, BATCH_SECONDS = 0.2, 0.1


class Leave(keras.callbacks.Callback):
    """Lets a validation last, and asks this rank to leave in it."""

    distlr_state = ()

    def __init__(self) -> None:
        super().__init__()
        self.epoch = self.batches = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.batches = epoch, 0

    def on_test_batch_end(self, batch, logs=None):
        self.batches += 1
        if self.epoch == CUT_IN:
            if batch == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(BATCH_SECONDS)


def fit(job, directory, *callbacks, statistics, validates):
    """One process of a rank: its model and its history."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(BATCHES * PER_RANK * job.size, 3)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    samples = STEPS * PER_RANK * job.size
    batch = job.batch(PER_RANK, base_batch=PER_RANK, samples_per_epoch=samples)
    with job.scope():
        layers = [keras.layers.BatchNormalization()] if statistics else []
        model = keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dropout(0.2), keras.layers.Dense(1)])
        optimizer = job.optimizer(keras.optimizers.SGD(0.01, momentum=0.9), batch)
        model.compile(optimizer, "mse", weighted_metrics=["mae"])
    plateau = distlr.callbacks.ReduceLROnPlateau("val_loss", patience=1, min_delta=1e9)
    history = model.fit(
        job.shard((x[:samples], y[:samples]), batch, seed=1),
        epochs=EPOCHS,
        validation_data=job.shard((x, y), batch, training=False) if validates else None,
        callbacks=job.callbacks([*callbacks, plateau, Checkpoint(directory)]),
        verbose=0,
        shuffle=False,
    )
    return model, {epoch: {n: v[i] for n, v in history.history.items()} for i, epoch in enumerate(history.epoch)}


@pytest.mark.parametrize(
    ("signalled", "validating", "statistics"),
    [("all", "all", True), ("the last", "all", False), ("the first", "the first", True)],
)
def test_all_ranks_leave_and_go_on_with_the_validation(
    job, spans, same_on_all, tmp_path_factory, monkeypatch, signalled, validating, statistics
) -> None:
    monkeypatch.setattr(cut_validation, "GRACE", GRACE)
    shared = job.communicator.broadcast_json(str(tmp_path_factory.mktemp("run")), tag="directory")
    here = {"all": True, "the first": job.is_root, "the last": job.rank == job.size - 1}
    options = {"statistics": statistics, "validates": here[validating]}
    whole, expected = fit(job, f"{shared}/whole", **options)
    leave = Leave()
    with pytest.raises(SystemExit) as ended:
        fit(job, f"{shared}/run", *([leave] if here[signalled] else []), **options)
    assert ended.value.code == 143
    if spans:  # whose ranks make each batch together, so they leave after the validation
        assert leave.epoch == (CUT_IN + 1 if here[signalled] else 0)
        return
    if here[signalled]:
        assert 2 <= leave.batches < BATCHES
    if job.is_root:
        (_, _, run), *_ = CheckpointDirectory(f"{shared}/run", 1).readable()
        same = {"epoch": CUT_IN, "steps": STEPS, "to_validate": ["loss", "mae"]}
        assert {name: run[name] for name in same} == same
    rest, logs = fit(job, f"{shared}/run", **options)
    assert logs == {epoch: expected[epoch] for epoch in logs}
    assert list(logs) == list(range(CUT_IN, EPOCHS))
    assert same_on_all(rest.optimizer.multiplier) == whole.optimizer.multiplier < 1
    assert job.weights_digests(rest) == job.weights_digests(whole)
