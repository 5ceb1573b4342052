#!/usr/bin/env python3
"""The cost of an epoch's end on the ranks of Horovod, with 1, 5 and 20 metrics: distlr beside the mean of the ranks.

    python benchmarks/epoch_end.py [--ranks 4] [--rounds 15]

Starts `horovodrun` on itself. The arms are sets of callbacks on the same model and data, whose hooks around the
validation and at the epoch's end are timed, in `fit`s of a few epochs, in an order drawn anew each round:

- mean_of_ranks: what Horovod's `MetricAverageCallback` does, written for Keras 3: an allreduce a metric of the logs;
- control: the same once more;
- distlr: all of `job.callbacks` with a plateau: exact metrics, the decision, and the comparison of the ranks.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from _common import ratio, result, shown, start

EPOCHS = 6  # a fit; the first is not counted
HOOKS = ("on_epoch_end", "on_test_begin", "on_test_end")


def mean_of_ranks(job: Any) -> Any:
    """Does what Horovod's `MetricAverageCallback` does, which raises on Keras 3."""
    import horovod.tensorflow as hvd
    import keras
    import tensorflow as tf

    class MeanOfRanks(keras.callbacks.Callback):
        calls = 0

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            for name in sorted(logs):
                mean = hvd.allreduce(tf.constant(logs[name], tf.float32), op=hvd.Average, name=f"mean.{name}")
                logs[name] = float(mean.numpy())
                type(self).calls += 1

    return MeanOfRanks()


class Timed:
    """Adds up the seconds in the hooks of a list of callbacks, epoch by epoch."""

    def __init__(self, callbacks: list[Any]) -> None:
        self.seconds: list[float] = []
        for callback in callbacks:
            for hook in HOOKS:
                setattr(callback, hook, self._timed(getattr(callback, hook)))

    def _timed(self, method: Any) -> Any:
        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                self.seconds[-1] += time.perf_counter() - began

        return timed


class Arm:
    """A model with so many metrics, and the callbacks of one arm."""

    def __init__(self, job: Any, arm: str, metrics: int) -> None:
        import keras
        import tensorflow as tf

        import distlr
        from distlr.data.sharding import own_share

        keras.utils.set_random_seed(0)
        self.job, self.arm = job, arm
        batch = job.batch(8, base_batch=8, samples_per_epoch=16 * job.size)
        self.model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(1)])
        metric_list = [keras.metrics.MeanSquaredError(name=f"metric_{i}") for i in range(metrics)]
        self.model.compile(job.optimizer(keras.optimizers.SGD(0.01), batch), "mse", weighted_metrics=metric_list)
        self.model.optimizer.build(self.model.trainable_variables)
        job.broadcast(self.model, self.model.optimizer)
        x = np.random.default_rng(job.rank).normal(size=(16, 8)).astype("float32")
        self.data = own_share(tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(8).cache())
        self.averaging = None
        if arm == "distlr":
            self.callbacks = job.callbacks([distlr.callbacks.ReduceLROnPlateau("val_loss", patience=10**6)])
        else:
            self.averaging = mean_of_ranks(job)
            self.callbacks = [self.averaging]
        self.timed = Timed(self.callbacks)

    def __call__(self) -> tuple[float, float]:
        """Seconds and collectives of an epoch's end."""
        import keras

        self.timed.seconds = [0.0]
        count = [self.collectives()]

        def begin(epoch: int, logs: Any) -> None:
            self.job.communicator.barrier(tag="epoch")  # the wait for another rank's steps does not count
            self.timed.seconds.append(0.0)
            count.append(self.collectives())

        # Its barrier is counted, and taken off again.
        beginning = keras.callbacks.LambdaCallback(on_epoch_begin=begin)
        self.model.fit(
            self.data,
            validation_data=self.data,
            epochs=EPOCHS,
            verbose=0,
            shuffle=False,
            callbacks=[*self.callbacks, beginning],
        )
        barriers = 1 if self.arm == "distlr" else 0
        collectives = (count[-1] - count[2]) / (len(count) - 3) - barriers
        return float(np.median(self.timed.seconds[2:])), collectives

    def collectives(self) -> int:
        """The number of collectives so far: of distlr, or of the mean of the ranks."""
        return self.job.communicator.log.total if self.averaging is None else type(self.averaging).calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--metrics", nargs="+", type=int, default=[1, 5, 20])
    options = parser.parse_args()
    start("horovod", options.ranks)
    import distlr

    job = distlr.init(timeout=120)
    random.seed(0)
    if job.is_root:
        print(f"{'ranks':>5}{'metrics':>9}  {'arm':<15}{'ratio: low median high':<26}{'ms':>8}{'collectives':>13}")
    rows = []
    for metrics in options.metrics:
        arms = {name: Arm(job, name, metrics) for name in ("mean_of_ranks", "control", "distlr")}
        for arm in arms.values():
            arm()
        milliseconds: dict[str, list[float]] = {name: [] for name in arms}
        collectives = {}
        for _ in range(options.rounds):
            for name in random.sample(list(arms), len(arms)):
                seconds, collectives[name] = arms[name]()
                mean = job.communicator.allreduce(np.array(seconds), tag="seconds") / job.size
                milliseconds[name].append(float(mean))
        for name in ("control", "distlr"):
            spread = ratio(milliseconds[name], milliseconds["mean_of_ranks"])
            row = {"ranks": job.size, "metrics": metrics, "arm": name, "ratio": spread}
            row["ms"] = {each: round(1e3 * float(np.median(milliseconds[each])), 2) for each in (name, "mean_of_ranks")}
            row["collectives"] = {each: collectives[each] for each in (name, "mean_of_ranks")}
            rows.append(row)
            if job.is_root:
                ms, count = row["ms"][name], collectives[name]
                line = f"{job.size:>5}{metrics:>9}  {name:<15}{shown(spread):<26}{ms:>8.2f}{count:>13g}"
                print(line, flush=True)
    if job.is_root:
        result({"rows": rows})


if __name__ == "__main__":
    main()
