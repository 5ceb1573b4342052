#!/usr/bin/env python3
"""What a training step costs on two ranks of Horovod: distlr beside the leanest exchange and Horovod's own optimizer.

    python benchmarks/gradient_exchange.py [--rounds 30] [--steps 40]

Starts `horovodrun -np 2` on itself. All arms train the same model with `fit` in the same two processes, in turns, in an
order drawn anew each round and the same on both ranks:

- lean: a Keras SGD whose `apply` calls `hvd.allreduce` on each gradient, and nothing more;
- control: the same once more, against lean: what it shows is noise;
- distlr: an adopted SGD with scaling, warmup, multiplier and clock;
- horovod_tf_keras: `hvd.DistributedOptimizer` on legacy Keras (the package tf_keras), where it works.

The last line is a JSON object: `vs_lean`, `vs_horovod_tf_keras` and `control` are each [low, median, high] of the
ratios of CPU time, pair by pair, with a 95% interval of the median (bootstrap); `wall` holds the same of wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from _ratios import interval

BATCH, FEATURES, CLASSES, WIDTH, DEPTH = 64, 64, 10, 256, 6
INSIDE = "DISTLR_BENCHMARK_RANK"


def launch() -> None:
    """Becomes the launcher of two ranks of this script."""
    from distlr.cli.run import command

    words, variables = command(2, "horovod", __file__, sys.argv[1:])
    os.execvpe(words[0], words, {**os.environ, **variables, INSIDE: "yes", "TF_NUM_INTEROP_THREADS": "2"})


def layers(keras: Any) -> list[Any]:
    dense = [keras.layers.Dense(WIDTH, activation="relu") for _ in range(DEPTH)]
    return [*dense, keras.layers.Dense(CLASSES)]


def make_arms(steps: int) -> tuple[dict[str, Callable[[], Any]], Any]:
    """The arms by name, and the job that runs them."""
    import keras
    import tensorflow as tf

    import distlr

    job = distlr.init("horovod")
    # After Keras 3 has been imported: only `tf.keras` becomes the legacy one, for Horovod's module.
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import horovod.tensorflow as hvd
    import horovod.tensorflow.keras as hvd_keras
    import tf_keras

    class Lean(keras.optimizers.SGD):
        def apply(self, grads: Any, trainable_variables: Any = None) -> None:
            averaged = [hvd.allreduce(grad, op=hvd.Average, name=f"{self.name}.{i}") for i, grad in enumerate(grads)]
            super().apply(averaged, trainable_variables)

    generator = np.random.default_rng(job.rank)
    x = generator.normal(size=(steps * BATCH, FEATURES)).astype("float32")
    y = generator.integers(0, CLASSES, steps * BATCH)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH, drop_remainder=True).cache()

    def arm(library: Any, optimizer: Any) -> Callable[[], Any]:
        library.utils.set_random_seed(0)
        model = library.Sequential([library.Input((FEATURES,)), *layers(library)])
        loss = library.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer(), loss, jit_compile=False)
        if library is keras:
            model.optimizer.build(model.trainable_variables)
        if hasattr(model.optimizer, "mark_broadcast"):
            job.broadcast(model, model.optimizer)
        return lambda: model.fit(data, verbose=0, shuffle=False)

    def scaled() -> Any:
        batch = job.batch(BATCH, base_batch=BATCH, samples_per_epoch=len(x) * job.size)
        rate = keras.optimizers.schedules.CosineDecay(0.01, 10**6)
        return job.optimizer(keras.optimizers.SGD(rate, momentum=0.9), batch, warmup="100ep")

    arms = {
        "lean": arm(keras, lambda: Lean(0.01, momentum=0.9, name="lean")),
        "control": arm(keras, lambda: Lean(0.01, momentum=0.9, name="control")),
        "distlr": arm(keras, scaled),
        "horovod_tf_keras": arm(
            tf_keras, lambda: hvd_keras.DistributedOptimizer(tf_keras.optimizers.legacy.SGD(0.01, momentum=0.9))
        ),
    }
    return arms, job


def measure(arms: dict[str, Callable[[], Any]], job: Any, rounds: int) -> dict[str, np.ndarray]:
    """By arm, of shape (rounds, 2): CPU seconds of both ranks together and wall seconds, a round."""
    for arm in arms.values():
        arm()
        arm()
    times: dict[str, list[list[float]]] = {name: [] for name in arms}
    order = list(arms)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            job.communicator.barrier(tag="round")
            cpu, wall = time.process_time(), time.perf_counter()
            arms[name]()
            own = [time.process_time() - cpu, time.perf_counter() - wall]
            total = job.communicator.allreduce(np.array(own), tag="seconds")
            times[name].append([float(total[0]), float(total[1]) / job.size])
    return {name: np.array(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=40, help="steps a round and arm")
    options = parser.parse_args()
    if INSIDE not in os.environ:
        launch()
    random.seed(0)
    arms, job = make_arms(options.steps)
    times = measure(arms, job, options.rounds)
    if not job.is_root:
        return
    import keras
    import tensorflow as tf

    pairs = {
        "vs_lean": ("distlr", "lean"),
        "vs_horovod_tf_keras": ("distlr", "horovod_tf_keras"),
        "control": ("control", "lean"),
    }
    clocks = {
        clock: {name: interval(times[over][:, i], times[under][:, i]) for name, (over, under) in pairs.items()}
        for i, clock in enumerate(("cpu", "wall"))
    }
    print(f"{'ratio':<22}{'cpu: low median high':<26}{'wall: low median high':<26}")
    for name in pairs:
        cells = ["  ".join(f"{value:.3f}" for value in clocks[clock][name]) for clock in ("cpu", "wall")]
        print(f"{name:<22}{cells[0]:<26}{cells[1]:<26}")
    milliseconds = {name: round(1e3 * float(np.median(t[:, 1])) / options.steps, 3) for name, t in times.items()}
    versions = {"python": platform.python_version(), "tensorflow": tf.__version__, "keras": keras.__version__}
    more = {"wall": clocks["wall"], "ms_a_step": milliseconds, "cores": os.cpu_count(), "versions": versions}
    print(json.dumps({**clocks["cpu"], **more}), flush=True)


if __name__ == "__main__":
    main()
