"""The same, right learning rate at every step on every replica of a Keras 3 job.

    job = distlr.init()
    batch = job.batch(per_replica=64, base_batch=256, samples_per_epoch=60_000)
    with job.scope():
        model = build_model()
        optimizer = job.optimizer(keras.optimizers.SGD(0.1), batch, rule="linear", warmup="5ep")
        model.compile(optimizer, loss=...)
    model.fit(job.shard(data, batch), epochs=90, callbacks=job.callbacks([...]))

`lr(t) = schedule(t) * factor(k) * warmup(t) * multiplier`, with k = global batch / base batch and the time t
counted in samples.

    init            finds out where the script runs, and makes the job
    Job             batch, optimizer, data, callbacks; and what a loop of your own needs
    GlobalBatch     the samples of an update, and the clock
    Duration        a length of training with its unit: "5ep", "100ba", "60000sp", "0.05dur"
    Plateau         cuts the rate when a metric stops improving, without `fit`
    find_lr         the range test
    scale           a scaled schedule for any Keras optimizer, without state
    strip           the plain Keras optimizer again

    callbacks       ReduceLROnPlateau, Checkpoint, NonFiniteGuard, and what `job.callbacks` adds
    schedules       shapes, warmups and what combines them, also by name from JSON
    communicators   what ranks say to each other
    elastic         training on ranks that come and go
    errors          the exceptions
    testing         for your own tests: ranks as threads, rates without training

`import distlr.horovod as hvd` is the drop-in for `horovod.tensorflow.keras`. The package is imported without
TensorFlow; what needs it is imported, and says so, when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from distlr._version import __version__

if TYPE_CHECKING:
    from distlr import callbacks, communicators, elastic, errors, schedules, testing
    from distlr.batch.duration import Duration
    from distlr.batch.global_batch import GlobalBatch
    from distlr.job import Job
    from distlr.optimizer import strip
    from distlr.plateau.synchronized import Plateau
    from distlr.schedules import scale
    from distlr.start import init
    from distlr.tools.lr_finder.search import find_lr

__all__ = [
    "Duration",
    "GlobalBatch",
    "Job",
    "Plateau",
    "__version__",
    "callbacks",
    "communicators",
    "elastic",
    "errors",
    "find_lr",
    "init",
    "scale",
    "schedules",
    "strip",
    "testing",
]

_HOMES = {
    "Duration": "batch.duration",
    "GlobalBatch": "batch.global_batch",
    "Job": "job",
    "Plateau": "plateau.synchronized",
    "find_lr": "tools.lr_finder.search",
    "init": "start",
    "scale": "schedules",
    "strip": "optimizer",
}
_WITHOUT_TENSORFLOW = frozenset({"batch.duration", "batch.global_batch", "communicators", "errors", "testing"})
_MODULES = frozenset({"callbacks", "communicators", "elastic", "errors", "schedules", "testing"})


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return _imported(name)
    if name in _HOMES:
        value = getattr(_imported(_HOMES[name]), name)
        globals()[name] = value  # asked for once
        return value
    raise AttributeError(f"module 'distlr' has no attribute {name!r}")


def _imported(name: str) -> Any:
    if name not in _WITHOUT_TENSORFLOW:
        importlib.import_module("distlr._utils.keras_setup")
    return importlib.import_module(f"distlr.{name}")


def __dir__() -> list[str]:
    return sorted(__all__)
