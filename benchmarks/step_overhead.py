#!/usr/bin/env python3
"""The cost of a training step with distlr, beside the same model with a constant rate and no callback of distlr.

    python benchmarks/step_overhead.py [--backend simulated] [--rounds 20] [--steps 400]

All arms run in the same processes, in turns, in an order drawn anew each round. Each is paired with a run of the
constant arm right beside it, and the table gives the median of the pairs' ratios with a 95% interval of that median
(bootstrap). `control` is the constant arm against itself: what it shows is noise. CPU time is that of all processes,
wall time beside it. A run is one `fit` of one epoch, less a `fit` of a few steps of the same arm right after it: what
a `fit` and an epoch's end cost once, whatever their length, is no step's time; `ms a fit` shows it (`epoch_end.py`
measures it).

Backends: `single`; `simulated`, 4 replicas in one process; `horovod`, 2 ranks, where the constant arm averages its
gradients by `hvd.allreduce` and nothing more; `multi-worker`, 2 workers of a `tf.distribute` strategy, which averages.

Beside the time: how often a step was traced after the first fit, and the nodes of the graph of one update.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from _common import lean, patience, ratio, result, shown, start

BATCH, BASE_BATCH = 64, 16
SHAPES = {"cnn": (8, 8, 1), "mlp": (32,)}
OPTIMIZERS = {"cnn": "sgd", "mlp": "adamw"}
SHORT = 4  # steps of the short fit
ARMS = ("constant", "control", "keras_schedule", "full_stack", "checkpoint", "run_dir", "set_from_python")
EVERY = "100ba"  # a checkpoint in the arm of that name
BESIDE = {"checkpoint": "full_stack", "run_dir": "full_stack"}  # compared with, where not with the constant rate
REPLICAS = {"single": 1, "simulated": 4, "horovod": 2, "multi-worker": 2}


def build(name: str) -> Any:
    """The reference script's CNN, or 30 dense layers: 60 variables."""
    import keras
    from train import build_model

    if name == "cnn":
        return build_model(SHAPES["cnn"], 10)
    dense = [keras.layers.Dense(32, activation="relu") for _ in range(29)]
    return keras.Sequential([keras.Input(SHAPES["mlp"]), *dense, keras.layers.Dense(10)])


def optimizer(name: str, rate: Any, by_itself: bool = False) -> Any:
    """A Keras optimizer; one that averages its gradients over Horovod's ranks by itself where that is asked for."""
    import keras

    cls = {"sgd": keras.optimizers.SGD, "adamw": keras.optimizers.AdamW}[OPTIMIZERS[name]]
    options = {"momentum": 0.9} if OPTIMIZERS[name] == "sgd" else {}
    return (lean(cls) if by_itself else cls)(rate, **options)


class Arm:
    """One arm: calling it trains an epoch of so many steps."""

    def __init__(self, job: Any, arm: str, model_name: str, steps: int) -> None:
        import keras

        import distlr

        self.traces = 0
        samples = steps * BATCH * job.replicas
        rng = np.random.default_rng(0)
        images = rng.random((samples, *SHAPES[model_name]), "float32")
        batch = job.batch(BATCH, base_batch=BASE_BATCH, samples_per_epoch=samples)
        cosine = keras.optimizers.schedules.CosineDecay(0.01, 10**6)
        keras.utils.set_random_seed(0)
        self.callbacks: list[Any] = []
        ours = arm in ("full_stack", *BESIDE)
        with job.scope():
            self.model = build(model_name)
            if ours:
                chosen = job.optimizer(optimizer(model_name, cosine), batch, warmup="100ep")
                self.callbacks = [distlr.callbacks.ReduceLROnPlateau("loss", patience=10**6)]
            else:
                chosen = optimizer(model_name, cosine if arm == "keras_schedule" else 0.01, job.backend == "horovod")
                self.callbacks = [SetFromPython()] if arm == "set_from_python" else []
            self._count_traces(chosen)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            self.model.compile(chosen, loss, jit_compile="auto" if job.replicas == 1 else False)
        self.data = job.shard((images, rng.integers(0, 10, samples)), batch, shuffle=False).cache()
        self.job, self.arm = job, arm
        if arm == "full_stack":
            self.callbacks = job.callbacks(self.callbacks)

    def __call__(self) -> None:
        if self.arm not in BESIDE:
            self.model.fit(self.data, verbose=0, shuffle=False, callbacks=self.callbacks)
            return
        import distlr

        with tempfile.TemporaryDirectory() as folder:
            directory = self.job.communicator.broadcast_json(folder, tag="folder")
            checkpoint, run_dir = [], None
            if self.arm == "checkpoint":
                checkpoint = [distlr.callbacks.Checkpoint(directory, EVERY)]
            else:
                run_dir = directory
            callbacks = self.job.callbacks([*self.callbacks, *checkpoint], run_dir=run_dir)
            self.model.fit(self.data, verbose=0, shuffle=False, callbacks=callbacks)
            self.job.communicator.barrier(tag="done")

    def nodes(self) -> int:
        """The nodes of the graph of one update on one device, in all its functions."""
        import tensorflow as tf

        variables = self.model.trainable_variables
        gradients = [tf.TensorSpec(variable.shape, tf.float32) for variable in variables]
        traced = tf.function(lambda *grads: self.model.optimizer.apply(list(grads), variables))
        graph = traced.get_concrete_function(*gradients).graph.as_graph_def()
        return len(graph.node) + sum(len(function.node_def) for function in graph.library.function)

    def _count_traces(self, chosen: Any) -> None:
        apply = chosen.apply

        def counted(*arguments: Any, **options: Any) -> Any:
            self.traces += 1  # Python runs where a step is traced, and nowhere else
            return apply(*arguments, **options)

        chosen.apply = counted


def SetFromPython() -> Any:
    """Sets the rate at every batch, as Horovod's callbacks and a `LearningRateScheduler` by batch do."""
    import keras

    class Setter(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.model.optimizer.learning_rate = 0.01 * (1 + batch) / (2 + batch)

    return Setter()


def seconds(job: Any, arm: Arm) -> np.ndarray:
    """The seconds of one run: CPU time of all processes, and wall time."""
    job.communicator.barrier(tag="begin")
    cpu, wall = time.process_time(), time.perf_counter()
    arm()
    local_seconds = np.array([time.process_time() - cpu, time.perf_counter() - wall])
    total: np.ndarray = job.communicator.allreduce(local_seconds, tag="seconds")
    return total / [1, job.size]


def measure(job: Any, arms: dict[str, tuple[Arm, Arm]], rounds: int) -> dict[str, dict[str, np.ndarray]]:
    """By arm and clock, one a round: the pairs (seconds of the arm, seconds of the arm that it is compared with).

    `short` holds the seconds of the short fits in the same form.
    """
    for both in arms.values():
        for arm in (*both, *both):
            arm()
        for arm in both:
            arm.traces = 0  # the first fit's
    pairs: dict[str, dict[str, list[Any]]] = {
        name: {"cpu": [], "wall": [], "short": []} for name in arms if name != "constant"
    }
    order = list(pairs)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            beside = BESIDE.get(name, "constant")
            pair = [name, beside]
            random.shuffle(pair)
            seconds_by_arm = {}
            for arm in pair:
                long, short = arms[arm]
                whole, once = seconds(job, long), seconds(job, short)
                seconds_by_arm[arm] = {"cpu": (whole - once)[0], "wall": (whole - once)[1], "short": once[0]}
            for clock, values in pairs[name].items():
                values.append((seconds_by_arm[name][clock], seconds_by_arm[beside][clock]))
    return {name: {clock: np.array(values) for clock, values in clocks.items()} for name, clocks in pairs.items()}


def rows(job: Any, model_name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row an arm."""
    lengths = (options.steps + SHORT, SHORT)
    names = dict.fromkeys(("constant", *(BESIDE[arm] for arm in options.arms if arm in BESIDE), *options.arms))
    arms = {arm: tuple(Arm(job, arm, model_name, steps) for steps in lengths) for arm in names}
    times = measure(job, arms, options.rounds)
    summary = []
    for arm in options.arms:
        constant = times[arm]["wall"]
        row = {"model": f"{model_name} {OPTIMIZERS[model_name]}", "arm": arm, "beside": BESIDE.get(arm, "constant")}
        row |= {clock: ratio(*times[arm][clock].T) for clock in ("wall", "cpu")}
        row["ms_a_step"] = round(1e3 * float(np.median(constant[:, 0])) / options.steps, 3)
        row["ms_a_fit"] = round(1e3 * float(np.median(times[arm]["short"][:, 0])), 1)
        row["retraced"] = sum(each.traces for each in arms[arm])
        summary.append(row)
    if job.replicas == 1:
        plain = arms["constant"][0].nodes()
        for row in summary:
            row["nodes_more"] = arms[row["arm"]][0].nodes() - plain
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=REPLICAS, default="single")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400, help="steps a round and arm")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--arms", nargs="+", choices=ARMS[1:], default=ARMS[1:], help="default: all")
    options = parser.parse_args()
    start(options.backend, REPLICAS[options.backend])
    import distlr

    job = distlr.init(timeout=patience(options.backend))
    random.seed(0)  # the same order on every rank
    all_rows = [row for model_name in options.models for row in rows(job, model_name, options)]
    if not job.is_root:
        return
    heads = ("wall: low median high", "cpu: low median high")
    print(f"{'model':<10}{'arm':<18}{heads[0]:<26}{heads[1]:<26}{'ms a step':>10}{'ms a fit':>10}{'traces':>8}")
    for row in all_rows:
        cells = [shown(row[clock]) for clock in ("wall", "cpu")]
        print(
            f"{row['model']:<10}{row['arm']:<18}{cells[0]:<26}{cells[1]:<26}{row['ms_a_step']:>10.3f}"
            f"{row['ms_a_fit']:>10.1f}{row['retraced']:>8}"
        )
    result({"backend": options.backend, "replicas": job.replicas, "rounds": options.rounds, "rows": all_rows})


if __name__ == "__main__":
    main()
