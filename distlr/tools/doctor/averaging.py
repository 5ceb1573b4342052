"""One update on two ranks with different gradients: are the weights after it those of the mean gradient?

    python -m distlr.tools.doctor.averaging horovod DIRECTORY SECONDS          # or multi-worker

runs on each rank of `distlr doctor`. Each rank writes its result to DIRECTORY, and ends after so many seconds
whatever it waits for. Under Horovod the same update is done once more with the optimizer that Horovod itself ships.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

import distlr
from distlr._utils.atomic_files import write_bytes

__all__ = ["main"]

_RANKS = 2
_RATE, _WEIGHT = 1 / 16, 1.0  # powers of two, so that all results are exact in float32
_SAMPLES = (1.0, 3.0)  # one a rank: the gradients of (weight * sample - 0)^2 are 2 and 18
# The weight after one update with the mean gradient; each rank's own gradient gives 0.875 and -0.125.
_AVERAGED = _WEIGHT - _RATE * sum(2 * _WEIGHT * sample**2 for sample in _SAMPLES) / _RANKS


def main(engine: str, directory: str, seconds: str) -> None:
    """Writes `<process number>.json`: the rank, its weights after the update, or the error that came instead."""
    signal.alarm(int(seconds))  # ends the process even where it waits inside of TensorFlow or MPI
    result: dict[str, Any] = {}
    try:
        job = distlr.init(engine, timeout=float(seconds))
        result |= {"rank": job.rank, "averaged": _AVERAGED, "distlr": _by_distlr(job)}
        if engine == "horovod":
            result |= _by_stock_horovod(job.rank)
    except Exception as error:
        result["error"] = _error_text(error)
        raise
    finally:
        write_bytes(Path(directory, f"{os.getpid()}.json"), json.dumps(result).encode())


def _by_distlr(job: distlr.Job) -> float:
    batch = job.batch(per_replica=1, base_batch=_RANKS, samples_per_epoch=_RANKS)  # so that nothing is scaled
    x = np.array(_SAMPLES, "float32")[:, None]
    with job.scope():
        model = _model()
        model.compile(job.optimizer(keras.optimizers.SGD(_RATE), batch), "mse")
    data = job.shard((x, np.zeros_like(x)), batch, shuffle=False)
    model.fit(data, verbose=0, shuffle=False, callbacks=job.callbacks())
    return _weight(model)


def _by_stock_horovod(rank: int) -> dict[str, Any]:
    """The weight after an update as in Horovod's documentation, or its error."""
    try:
        import horovod.tensorflow.keras as hvd

        model = _model()
        model.compile(hvd.DistributedOptimizer(keras.optimizers.SGD(_RATE)), "mse", jit_compile=False)
        x = np.array([[_SAMPLES[rank]]], "float32")
        model.fit(x, np.zeros_like(x), verbose=0)
        return {"stock": _weight(model)}
    except Exception as error:  # the type of the error is the result
        return {"stock_error": _error_text(error)}


def _model() -> keras.Model:
    return keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])


def _weight(model: keras.Model) -> float:
    return float(model.get_weights()[0].item())


def _error_text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main(*sys.argv[1:])
