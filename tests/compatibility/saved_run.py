"""A small run whose files are kept in `saved/`, so that later versions prove that they load them.

    python tests/compatibility/saved_run.py     # writes saved/ anew: only where an older file may stop loading

Keras reads no file of a later Keras, so the files are written with the oldest one that distlr supports.
Two epochs are trained, everything is saved, and a third epoch is trained to know where the run leads.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import distlr

SAVED = Path(__file__).parent / "saved"
KINDS = ("momentum", "loss scale")
EPOCHS = 2

_numbers = np.random.default_rng(7)
X = _numbers.normal(size=(64, 3)).astype("float32")
Y = (X @ np.array([[1.0], [-2.0], [0.5]]) + 0.3).astype("float32")


def folder(kind: str, root: Path = SAVED) -> Path:
    """Where the files of one kind of optimizer are."""
    return root / kind.replace(" ", "-")


def optimizer(kind: str, job: distlr.Job, batch: distlr.GlobalBatch) -> Any:
    """The optimizer of one kind, adopted."""
    schedule = keras.optimizers.schedules.CosineDecay(0.02, 100)
    plain = keras.optimizers.SGD(schedule, momentum=0.5, use_ema=True)
    if kind == "loss scale":
        plain = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.02), initial_scale=8.0)
    return job.optimizer(plain, batch, rule="linear", warmup="1ep")


def parts(kind: str) -> tuple[Any, distlr.Job, distlr.GlobalBatch]:
    """A compiled model that always begins with the same weights, its job and its batch."""
    job = distlr.init()
    batch = job.batch(per_replica=8, base_batch=4, samples_per_epoch=len(X))
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, name="first"), keras.layers.Dense(1, name="last")]
    )
    model.set_weights([np.linspace(-0.5, 0.5 + i, w.size).reshape(w.shape) for i, w in enumerate(model.get_weights())])
    model.compile(optimizer(kind, job, batch), "mse")
    return model, job, batch


def train(model: Any, job: distlr.Job, batch: distlr.GlobalBatch, epochs: int, directory: Path | None = None) -> None:
    """Trains to the end of epoch `epochs`, with a plateau that cuts after each epoch."""
    plateau = distlr.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9)
    callbacks = [plateau]
    if directory is not None:
        callbacks.append(distlr.callbacks.Checkpoint(directory))
    data = job.shard((X, Y), batch, seed=3)
    model.fit(data, epochs=epochs, shuffle=False, callbacks=job.callbacks(callbacks), verbose=0)


def state(model: Any) -> dict[str, Any]:
    """The numbers by which two runs are compared."""
    core = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return {
        "samples_seen": core.samples_seen,
        "multiplier": core.multiplier,
        "learning_rate": float(core.learning_rate),
        "iterations": int(core.iterations),
        "weights": [w.ravel().tolist() for w in model.get_weights()],
        "slots": [
            v.numpy().ravel().tolist() for v in core.variables if "plateau" not in v.path and "count" not in v.path
        ],
    }


def write(kind: str) -> None:
    """Writes the files of one kind."""
    where = folder(kind)
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(parents=True)
    model, job, batch = parts(kind)
    train(model, job, batch, EPOCHS, where / "checkpoints")
    model.save(where / "model.keras")
    model.save_weights(where / "model.weights.h5")
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(where / "tracked"))
    saved = state(model)
    whole, job, batch = parts(kind)
    train(whole, job, batch, EPOCHS + 1)
    versions = {"distlr": distlr.__version__, "keras": keras.__version__, "tensorflow": tf.__version__}
    expected = {"versions": versions, "saved": saved, "after_one_more_epoch": state(whole)}
    (where / "expected.json").write_text(json.dumps(expected) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for each in KINDS:
        write(each)
