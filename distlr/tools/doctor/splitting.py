"""One update by a script's `train_step`, on one replica and on two of the same samples: are they the same update?

    python -m distlr.tools.doctor.splitting SCRIPT OUT SECONDS

is a process of its own of `distlr doctor --script`, since it imports the script. It calls the script's
`setup(job)` for one replica and for two, which gives a compiled model and data, and puts a plain `SGD(1.0)` in the
place of the model's optimizer, so that an update is the gradient. Each of the two replicas gets the same samples as the
one: batch normalization then sees the same statistics, and the mean over all samples is the same.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import distlr
from distlr._utils.atomic_files import write_bytes
from distlr.errors import DistlrError

__all__ = ["main"]

_REPLICAS = 2
_REPEATS = 32  # where a step draws random numbers
_SAME = 1e-5  # two updates by the same step differ by more only where it draws random numbers


def main(script: str, out: str, seconds: str) -> None:
    """Writes to `out`, as JSON, how the two updates compare, or why they could not be made."""
    signal.alarm(int(seconds))  # ends the process even where it waits inside of TensorFlow
    result: dict[str, Any] = {}
    try:
        result = _compared(Path(script))
    except DistlrError as error:
        result = {"refused": str(error)}
    except Exception as error:  # an error of the script's own, or one about a request that it cannot fulfil
        result = {"error": f"{type(error).__name__}: {error}"}
    write_bytes(Path(out), json.dumps(result).encode())


def _compared(script: Path) -> dict[str, Any]:
    two = distlr.init(simulate=_REPLICAS, environ={})  # before the script, which may start TensorFlow
    one = distlr.init(environ={})
    # Each job has a module of its own: its steps may read what its `setup` has put into the module's names.
    trained = {job.replicas: _Trained(job, *_setup_of(script)(job)[:2]) for job in (one, two)}
    half = trained[_REPLICAS].first(1 / _REPLICAS)
    start = trained[1].model.get_weights()
    updates: dict[int, list[Any]] = {}
    for replicas, each in trained.items():
        updates[replicas] = [each.update(start, half) for _ in range(2)]
    noisy = any(_distance(a, b) > _SAME for a, b in updates.values())
    if noisy:
        for replicas, each in trained.items():
            updates[replicas] += [each.update(start, half) for _ in range(_REPEATS - 2)]
    return _verdict(updates[1], updates[_REPLICAS], noisy)


def _verdict(one: list[Any], two: list[Any], noisy: bool) -> dict[str, Any]:
    """The factor between the updates of two replicas and of one, and the rest.

    With noise both are means: the product of different updates of one replica has no noise of its own.
    """
    square = float(np.mean([a @ b for i, a in enumerate(one) for j, b in enumerate(one) if i != j]))
    product = float(np.mean([a @ b for a in one for b in two]))
    factor = product / square if square > 0 else float("nan")
    left = _distance(two[0], factor * one[0])
    return {"replicas": _REPLICAS, "factor": factor, "left": left, "noisy": noisy}


def _distance(a: Any, b: Any) -> float:
    size = float(np.linalg.norm(b))
    return float(np.linalg.norm(a - b)) / size if size > 0 else float(np.linalg.norm(a) > 0)


def _setup_of(script: Path) -> Any:
    sys.path.insert(0, str(script.parent.resolve()))  # as Python does where it runs the script
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module
    sys.argv = [str(script)]
    spec.loader.exec_module(module)
    return module.setup


class _Trained:
    """A script's model and data on one job, with an optimizer whose update is the gradient."""

    def __init__(self, job: distlr.Job, model: Any, data: Any) -> None:
        self.job, self.model, self.data = job, model, data
        with job.scope():
            model.optimizer = job.optimizer(keras.optimizers.SGD(1.0))
            if not model.trainable_variables:  # it is built by its first call
                batch = next(iter(data))
                model(batch[0] if isinstance(batch, tuple) else batch)
        model.jit_compile = False
        self._batch: Any = None

    def first(self, share: float = 1.0) -> Any:
        """The first samples of the first batch: this share of them."""
        if self._batch is None:
            self._batch = tf.nest.map_structure(np.asarray, next(iter(self.data)))
        return tf.nest.map_structure(lambda array: array[: round(share * len(array))], self._batch)

    def update(self, start: list[Any], half: Any) -> Any:
        """The change of all trainable weights from `start` by a step on `half`, as often as fills this job's batch."""
        self.model.set_weights(start)
        before = self._weights()
        size = len(tf.nest.flatten(self.first())[0])
        times = size // len(tf.nest.flatten(half)[0])
        whole = tf.nest.map_structure(lambda array: np.concatenate([array] * times), half)
        data = tf.data.Dataset.from_tensor_slices(whole).batch(size, drop_remainder=True)
        self.model.fit(data, verbose=0, shuffle=False)
        return self._weights() - before

    def _weights(self) -> Any:
        return np.concatenate([np.ravel(np.asarray(each, "float64")) for each in self.model.trainable_variables])


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # does not wait for threads that the script has started
