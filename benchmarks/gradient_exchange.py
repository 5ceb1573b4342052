#!/usr/bin/env python3
"""The cost of exchanging gradients on two ranks: distlr on Horovod beside the leanest exchange, Horovod's own
optimizer on legacy Keras, and `tf.distribute`.

    python benchmarks/gradient_exchange.py [--parameters 10000 1000000 50000000] [--rounds 10]

Starts the ranks on itself. All arms on Horovod train the same model with `fit` in the same two processes, in turns,
in an order drawn anew each round and the same on both ranks:

- lean: a Keras SGD whose `apply` calls `hvd.allreduce` on each gradient, and nothing more;
- control: the same once more, against lean: what it shows is noise;
- distlr: an adopted SGD with scaling, warmup, multiplier and clock;
- horovod_tf_keras: `hvd.DistributedOptimizer` on legacy Keras (the package tf_keras), left out where it is missing;
- alone: no exchange, each rank trains for itself.

`exchange` is the time of the lean arm's allreduces by themselves, in a graph that does nothing else. What of it is
hidden behind back-propagation is `alone + exchange - distlr`. On a multi-worker strategy, in a job of its own, the
arms are the strategy with a plain Keras SGD (strategy, control) and distlr on it; their seconds are set beside
Horovod's.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from _common import lean, patience, ratio, result, shown, start

BATCH, FEATURES, CLASSES, DEPTH = 64, 64, 10, 6
Run = Callable[[], Any]


def layers(keras: Any, parameters: int) -> list[Any]:
    """Dense layers with about so many weights in all."""
    # width * features + (depth - 1) * width^2 + width * classes
    a, b = DEPTH - 1, FEATURES + CLASSES
    width = max(8, round((-b + (b * b + 4 * a * parameters) ** 0.5) / (2 * a)))
    dense = [keras.layers.Dense(width, activation="relu") for _ in range(DEPTH)]
    return [*dense, keras.layers.Dense(CLASSES)]


class Arms:
    """The arms by name, for one number of parameters."""

    def __init__(self, job: Any, parameters: int, steps: int) -> None:
        import tensorflow as tf

        self.job, self.parameters, self.steps = job, parameters, steps
        generator = np.random.default_rng(job.rank)
        x = generator.normal(size=(steps * BATCH, FEATURES)).astype("float32")
        y = generator.integers(0, CLASSES, steps * BATCH)
        from distlr.data.sharding import own_share

        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH, drop_remainder=True).cache()
        self.data = own_share(data) if job.backend == "multi-worker" else data
        self.models: dict[str, Any] = {}

    def make(self) -> dict[str, Run]:
        """Each trains so many steps."""
        import keras

        plain = keras.optimizers.SGD
        if self.job.backend == "multi-worker":
            return {
                "strategy": self._arm("strategy", keras, lambda: plain(0.01, momentum=0.9)),
                "control": self._arm("control", keras, lambda: plain(0.01, momentum=0.9)),
                "distlr": self._arm("distlr", keras, self._adopted),
            }
        arms = {
            "lean": self._arm("lean", keras, lambda: lean(plain)(0.01, momentum=0.9, name="lean")),
            "control": self._arm("control", keras, lambda: lean(plain)(0.01, momentum=0.9, name="control")),
            "distlr": self._arm("distlr", keras, self._adopted),
            "alone": self._arm("alone", keras, lambda: plain(0.01, momentum=0.9)),
        }
        if importlib.util.find_spec("tf_keras"):
            # After Keras 3 has been imported: only `tf.keras` becomes the legacy one, for Horovod's module.
            os.environ["TF_USE_LEGACY_KERAS"] = "1"
            import horovod.tensorflow.keras as hvd_keras
            import tf_keras

            arms["horovod_tf_keras"] = self._arm(
                "horovod_tf_keras",
                tf_keras,
                lambda: hvd_keras.DistributedOptimizer(tf_keras.optimizers.legacy.SGD(0.01, momentum=0.9)),
            )
        return {**arms, "exchange": self._exchange()}

    def _arm(self, name: str, library: Any, optimizer: Callable[[], Any]) -> Run:
        library.utils.set_random_seed(0)
        with self.job.scope():
            model = library.Sequential([library.Input((FEATURES,)), *layers(library, self.parameters)])
            loss = library.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(optimizer(), loss, jit_compile=False)
            if library.__name__ == "keras":
                model.optimizer.build(model.trainable_variables)
        if hasattr(model.optimizer, "distlr"):
            self.job.broadcast(model, model.optimizer)
        self.models[name] = model
        return lambda: model.fit(self.data, verbose=0, shuffle=False)

    def _adopted(self) -> Any:
        import keras

        batch = self.job.batch(BATCH, base_batch=BATCH, samples_per_epoch=self.steps * BATCH * self.job.size)
        rate = keras.optimizers.schedules.CosineDecay(0.01, 10**6)
        return self.job.optimizer(keras.optimizers.SGD(rate, momentum=0.9), batch, warmup="100ep")

    def _exchange(self) -> Run:
        import horovod.tensorflow as hvd
        import tensorflow as tf

        shapes = [variable.shape for variable in self.models["lean"].trainable_variables]
        tensors = [tf.random.normal(shape) for shape in shapes]

        @tf.function
        def once() -> Any:
            return [hvd.allreduce(tensor, op=hvd.Average, name=f"alone.{i}") for i, tensor in enumerate(tensors)]

        def run() -> None:
            for _ in range(self.steps):
                averaged = once()
            averaged[0].numpy()

        return run


def measure(arms: dict[str, Run], job: Any, rounds: int) -> dict[str, np.ndarray]:
    """By arm, of shape (rounds, 2): CPU seconds of both ranks together and wall seconds, a round."""
    for arm in arms.values():
        arm()
        arm()
    times: dict[str, list[list[float]]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name in random.sample(list(arms), len(arms)):
            job.communicator.barrier(tag="round")
            cpu, wall = time.process_time(), time.perf_counter()
            arms[name]()
            local_seconds = [time.process_time() - cpu, time.perf_counter() - wall]
            total = job.communicator.allreduce(np.array(local_seconds), tag="seconds")
            times[name].append([float(total[0]), float(total[1]) / job.size])
    return {name: np.array(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("horovod", "multi-worker"), default="horovod")
    parser.add_argument("--parameters", nargs="+", type=int, default=[10_000, 1_000_000, 50_000_000])
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    start(options.backend, 2)
    import keras

    import distlr

    job = distlr.init(timeout=patience(options.backend))
    random.seed(0)
    rows = []
    for parameters in options.parameters:
        steps = max(4, min(100, 10**8 // parameters // 4))
        arms = Arms(job, parameters, steps)
        runs = arms.make()
        times = measure(runs, job, options.rounds if parameters < 10**7 else max(3, options.rounds // 3))
        keras.backend.clear_session()
        first = next(iter(runs))
        for name in ("control", "distlr"):
            others = [first] if name == "control" else [o for o in (first, "horovod_tf_keras") if o in runs]
            for other in others:
                row = {"parameters": parameters, "arm": name, "beside": other}
                row |= {clock: ratio(times[name][:, i], times[other][:, i]) for i, clock in enumerate(("cpu", "wall"))}
                rows.append(row)
        milliseconds = {name: 1e3 * float(np.median(seconds[:, 1])) / steps for name, seconds in times.items()}
        row = {"parameters": parameters, "ms_a_step": {name: round(value, 3) for name, value in milliseconds.items()}}
        if "exchange" in milliseconds:
            hidden = milliseconds["alone"] + milliseconds["exchange"] - milliseconds["distlr"]
            row["hidden"] = round(hidden / milliseconds["exchange"], 3)
        rows.append(row)
    if not job.is_root:
        return
    print(f"{'parameters':>11}  {'arm':<10}{'beside':<18}{'cpu: low median high':<24}{'wall: low median high'}")
    for row in rows:
        if "arm" in row:
            cells = f"{shown(row['cpu']):<24}{shown(row['wall'])}"
            print(f"{row['parameters']:>11}  {row['arm']:<10}{row['beside']:<18}{cells}")
        else:
            print(f"{row['parameters']:>11}  ms a step: {row['ms_a_step']}, hidden: {row.get('hidden')}")
    result({"backend": options.backend, "rows": rows})


if __name__ == "__main__":
    main()
