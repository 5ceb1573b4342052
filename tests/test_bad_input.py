"""Bad input over the whole public surface: the class of the error, and a message that helps.

Every message names the argument, shows the value that came, and says what to do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr import GlobalBatch, scale
from distlr import horovod as drop_in
from distlr._utils.keras_setup import _check
from distlr.errors import ConfigurationError, ConfigurationTypeError, DistributionError
from distlr.schedules import Constant, PerEpoch, Warmup
from distlr.testing import assert_rates

ROOT = Path(__file__).resolve().parents[1]
VALUE, TYPE, WORLD = ConfigurationError, ConfigurationTypeError, DistributionError
SHAPES, CALLBACKS = keras.optimizers.schedules, distlr.callbacks
NAN, INF = float("nan"), float("inf")
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
BATCH = GlobalBatch(8, base_batch=4, samples_per_epoch=800, duration="10ep")
X, Y = np.zeros((800, 2), np.float32), np.zeros(800, np.float32)


def job():
    return distlr.init(environ={})


def call(function, *arguments, **options):
    return lambda: function(*arguments, **options)


def init(**options):
    return call(distlr.init, **{"environ": {}, **options})


def batch(*arguments, **options):
    return lambda: job().batch(*arguments, **options)


def adopt(optimizer, given=BATCH, **options):
    """Adopts what a function makes."""
    return lambda: job().optimizer(optimizer() if callable(optimizer) else optimizer, given, **options)


def scaled(rate=0.1, given=BATCH, rule="linear", **options):
    return call(scale, rate, given, rule, **options)


def shard(data, given=BATCH, **options):
    return lambda: job().shard(data() if callable(data) else data, given, **options)


def callbacks(given):
    return lambda: job().callbacks(given)


def reduce(**options):
    return call(CALLBACKS.ReduceLROnPlateau, **options)


def rates(expected, target=None, **options):
    return lambda: assert_rates(scale(0.1, BATCH) if target is None else target, BATCH, expected, **options)


def plateau(**options):
    return distlr.Plateau(job().optimizer(sgd(), BATCH), **options)


def sgd(rate=0.1, **options):
    return keras.optimizers.SGD(rate, **options)


def assign(value):
    def assigning():
        job().optimizer(sgd(), BATCH).learning_rate = value

    return assigning


def fit(optimizer, added):
    def fitting():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(optimizer(), loss="mse", jit_compile=False)
        model.fit(X, Y, batch_size=8, verbose=0, callbacks=added())

    return fitting


class Raising(SHAPES.LearningRateSchedule):
    def __call__(self, step):
        raise KeyError("no rate")


def mirrored():
    return distlr.init(simulate=2, environ={})


def accumulating():
    return sgd(gradient_accumulation_steps=4)


def cosine():
    return sgd(SHAPES.CosineDecay(0.1, 9))


LARGER = GlobalBatch(16, base_batch=4, samples_per_epoch=800)
UNKNOWN_EPOCH = GlobalBatch(8, base_batch=4)
UNKNOWN_RUN = GlobalBatch(8, base_batch=4, samples_per_epoch=800)
CLIMBING = SHAPES.CosineDecay(0.0, 9, warmup_target=0.1, warmup_steps=3)
LEGACY_SGD = type("SGD", (), {"__module__": "tf_keras.optimizers"})()
SIMULATE = "DISTLR_SIMULATE"

# The error, the argument, the value as the message shows it, what to do, and what does it.
CASES = [
    # init
    (VALUE, "simulate", "0", "from 1 to 1024", init(simulate=0)),
    (VALUE, "simulate", "2.5", "simulate=4", init(simulate=2.5)),
    (VALUE, "simulate", "True", "simulate=4", init(simulate=True)),
    (VALUE, SIMULATE, "'four'", "DISTLR_SIMULATE=4", init(environ={SIMULATE: "four"})),
    (VALUE, SIMULATE, "'-1'", "leave it out", init(environ={SIMULATE: "-1"})),
    (VALUE, SIMULATE, "'9999'", "from 1 to 1024", init(environ={SIMULATE: "9999"})),
    (VALUE, "simulate", "2", "leave one of them out", init(strategy=tf.distribute.get_strategy(), simulate=2)),
    (TYPE, "strategy", "'mirrored'", "MirroredStrategy()", init(strategy="mirrored")),
    (VALUE, "engine", "'nccl'", "one of 'horovod', 'mpi', 'multi-worker'", init(engine="nccl")),
    (VALUE, "simulate", "4", "leave one of them out", init(engine="horovod", simulate=4)),
    (VALUE, "timeout", "0", "Fix: ", init(timeout=0)),
    (VALUE, "compression", "'int8'", "'none', 'fp16'", adopt(lambda: keras.optimizers.SGD(0.1), compression="int8")),
    (VALUE, "scale", "'beta'", "'weight_decay'", adopt(lambda: keras.optimizers.SGD(0.1), scale=["beta"])),
    (VALUE, "timeout", "nan", "Fix: ", init(timeout=NAN)),
    (WORLD, "mpirun", "simulate 4 replicas", "without a launcher", init(environ={**OPEN_MPI, SIMULATE: "4"})),
    # batch
    (VALUE, "base_batch", "None", "base_batch=256", batch(8)),
    (VALUE, "base_batch", "0", "at least 1", batch(8, base_batch=0)),
    (VALUE, "per_replica", "-8", "at least 1", batch(-8, base_batch=8)),
    (TYPE, "per_replica", "8.5", "whole number", batch(8.5, base_batch=8)),
    (TYPE, "base_batch", "nan", "whole number", batch(8, base_batch=NAN)),
    (TYPE, "base_batch", "inf", "whole number", batch(8, base_batch=INF)),
    (VALUE, "total", "16", "pass per_replica", batch(8, total=16, base_batch=8)),
    (VALUE, "accumulation", "0", "at least 1", batch(8, base_batch=8, accumulation=0)),
    (VALUE, "total", "10", "total=8 or total=12", call(GlobalBatch, total=10, replicas=4, base_batch=8)),
    (VALUE, "samples_per_epoch", "7", "lower the global batch", batch(8, base_batch=8, samples_per_epoch=7)),
    (VALUE, "duration", "'90ep'", "samples_per_epoch=60_000", batch(8, base_batch=8, duration="90ep")),
    (VALUE, "replica", "2", "'replicas'", call(BATCH.replace, replica=2)),
    # optimizer
    (TYPE, "optimizer", "'sgd'", "SGD(0.1)", adopt("sgd")),
    (TYPE, "optimizer", "SGD", "Keras 3", adopt(LEGACY_SGD)),
    (TYPE, "batch", "64", "job.batch(", adopt(sgd, 64)),
    (VALUE, "batch", "replicas=2", "job.batch(", adopt(sgd, GlobalBatch(8, replicas=2, base_batch=4))),
    (VALUE, "batch", "None", "batch=job.batch(", adopt(sgd, None, warmup="5ep")),
    (VALUE, "optimizer", "adopted already", "once for each", adopt(adopt(sgd))),
    (VALUE, "gradient_accumulation_steps", "4 steps and the batch 1", "the same number", adopt(accumulating)),
    (TYPE, "learning_rate", "ReduceLROnPlateau", "job.callbacks([", adopt(lambda: sgd(CALLBACKS.ReduceLROnPlateau()))),
    (WORLD, "optimizer", "MirroredStrategy", "inside `with job.scope():`", lambda: mirrored().optimizer(sgd())),
    (TYPE, "learning_rate", "'0.1'", "a number", assign("0.1")),
    (VALUE, "learning_rate", "nan", "finite", assign(NAN)),
    (VALUE, "learning_rate", "-0.1", "at least 0", assign(-0.1)),
    # scale
    (VALUE, "rule", "'linaer'", "did you mean 'linear'", scaled(rule="linaer")),
    (TYPE, "rule", "2", "a function from k", scaled(rule=2)),
    (VALUE, "rule(2)", "nan", "return a float", scaled(rule=lambda k: NAN)),
    (TYPE, "rule(2)", "'2'", "return a float", scaled(rule=str)),
    (VALUE, "warmup", "'5'", "'5ep'", scaled(warmup="5")),
    (TYPE, "warmup", "5", "'5ep'", scaled(warmup=5)),
    (VALUE, "warmup", "'5min'", "'5ep'", scaled(warmup="5min")),
    (VALUE, "warmup", "'-5ep'", "0 or more", scaled(warmup="-5ep")),
    (VALUE, "warmup", "'11ep'", "shorten it", scaled(warmup="11ep")),
    (VALUE, "warmup", "'5ep'", "samples_per_epoch=60_000", scaled(given=UNKNOWN_EPOCH, warmup="5ep")),
    (VALUE, "warmup", "'5ep'", "drop one", scaled(CLIMBING, warmup="5ep")),
    (VALUE, "warmup_from", "1.5", "from 0 to 1", scaled(warmup="5ep", warmup_from=1.5)),
    (TYPE, "warmup_from", "'0'", "from 0 to 1", scaled(warmup="5ep", warmup_from="0")),
    (VALUE, "warmup_from", "0", "begin at 0.01", scaled(warmup="5ep", warmup_from=0, warmup_shape="exponential")),
    (VALUE, "warmup_from", "0.1", "add `warmup=`", scaled(warmup_from=0.1)),
    (VALUE, "warmup_shape", "'liner'", "'linear'", scaled(warmup="5ep", warmup_shape="liner")),
    (VALUE, "clock", "'epochs'", "'samples', 'steps'", scaled(clock="epochs")),
    (VALUE, "schedule", "scaled", "scale in one place", lambda: scale(scale(0.1, BATCH), BATCH)),
    (TYPE, "batch", "256", "GlobalBatch(", scaled(given=256)),
    (TYPE, "schedule", "'cosine'", "CosineDecay(0.1", scaled("cosine")),
    (VALUE, "schedule", "Raising", "__call__(self, step)", scaled(Raising())),
    (VALUE, "duration", "None", 'duration="90ep"', scaled(lambda epoch: 0.1, UNKNOWN_RUN)),
    (VALUE, "initial_learning_rate", "None", "initial_learning_rate=0.1", scaled(lambda epoch, lr: lr)),
    # schedules
    (VALUE, "learning_rate", "inf", "at least 0", call(Constant, INF)),
    (TYPE, "learning_rate", "'0.1'", "finite number", call(Constant, "0.1")),
    (TYPE, "function(0)", "None", "return the rate", call(PerEpoch, lambda epoch: None, epochs=3)),
    (VALUE, "function[1]", "-1", "such as 0.1", call(PerEpoch, [0.1, -1])),
    (VALUE, "function", "[]", "at least one rate", call(PerEpoch, [])),
    (TYPE, "function", "{0: 0.1}", "a list of rates", call(PerEpoch, {0: 0.1})),
    (VALUE, "epochs", "0", "at least 1", call(PerEpoch, lambda epoch: 0.1, epochs=0)),
    (VALUE, "lr", "'last'", "'current' or 'base'", call(PerEpoch, [0.1], lr="last")),
    (VALUE, "steps_per_epoch", "0", "above 0", call(PerEpoch, [0.1], steps_per_epoch=0)),
    (VALUE, "steps", "nan", "above 0", call(Warmup, Constant(0.1), NAN)),
    (TYPE, "steps", "'5ep'", "above 0", call(Warmup, Constant(0.1), "5ep")),
    (VALUE, "power", "0", "above 0", call(Warmup, Constant(0.1), 5, power=0)),
    # shard
    (TYPE, "data", "'ndarray'", "write (x, y)", shard(X)),
    (VALUE, "data", "[800, 799]", "one entry in each", shard((X, Y[1:]))),
    (VALUE, "samples_per_epoch", "=800", "samples_per_epoch=80", shard((X[:80], Y[:80]))),
    (VALUE, "remainder", "'keep'", "'drop', 'carry'", shard((X, Y), remainder="keep")),
    (VALUE, "shuffle", "0", "True, False or", shard((X, Y), shuffle=0)),
    (TYPE, "batch", "64", "job.batch(", shard((X, Y), 64)),
    (WORLD, "data", "came from job.shard", "once", shard(shard((X, Y)))),
    # callbacks
    (TYPE, "callbacks", "ReduceLROnPlateau", "job.callbacks([", callbacks(CALLBACKS.ReduceLROnPlateau())),
    (TYPE, "callbacks", "'plateau'", "job.callbacks([", callbacks(["plateau"])),
    (VALUE, "factor", "1.0", "in (0, 1)", reduce(factor=1.0)),
    (VALUE, "patience", "-1", "at least 0", reduce(patience=-1)),
    (VALUE, "mode", "'maxx'", "'max'", reduce(mode="maxx")),
    (VALUE, "min_lr", "nan", "at least 0", reduce(min_lr=NAN)),
    (TYPE, "monitor", "3", "name of a metric", reduce(monitor=3)),
    (
        VALUE,
        "steps_per_epoch",
        "100 steps",
        "job.shard(data, batch)",
        fit(adopt(sgd, LARGER), lambda: job().callbacks()),
    ),
    (VALUE, "rate", "CosineDecay", "job.optimizer(", fit(cosine, lambda: [CALLBACKS.ReduceLROnPlateau("loss")])),
    # Plateau, strip, assert_rates
    (VALUE, "mode", "'auto'", "write mode='min' or mode='max'", lambda: plateau(monitor="quality")),
    (ValueError, "val_loss", "nan", "on_nan='worse'", lambda: plateau().step(NAN)),
    (TypeError, "val_loss", "'low'", "a real number", lambda: plateau().step("low")),
    (TYPE, "model", "'model'", "a compiled model", call(distlr.strip, "model")),
    (VALUE, "expected", "{}", '{"0ep": 0.1', rates({})),
    (TYPE, "expected", "[0.1]", '{"0ep": 0.1', rates([0.1])),
    (VALUE, "expected['5']", "'5'", "'5ep'", rates({"5": 0.1})),
    (VALUE, "expected['5ep']", "nan", "at least 0", rates({"5ep": NAN})),
    (VALUE, "rtol", "0", "1e-6", rates({"5ep": 0.1}, rtol=0)),
    (TYPE, "target", "ReduceLROnPlateau", "job.callbacks([", rates({"5ep": 0.1}, CALLBACKS.ReduceLROnPlateau())),
    # the drop-in
    (VALUE, "op", "'mean'", "hvd.Average or hvd.Sum", call(drop_in.allreduce, 1.0, op="mean")),
    (VALUE, "op", "'mean'", "hvd.Average or hvd.Sum", call(drop_in.DistributedOptimizer, None, op="mean")),
    # the installation
    (VALUE, "keras", "2.15.0", "pip install 'keras>=3'", call(_check, "2.15.0", "tensorflow")),
    (VALUE, "keras.backend.backend()", "'torch'", "KERAS_BACKEND=tensorflow", call(_check, "3.15.1", "torch")),
]
IDS = [f"{argument}={value}-{number}" for number, (_, argument, value, _, _) in enumerate(CASES)]


def test_the_table_is_as_long_as_it_should_be():
    assert len(CASES) >= 40


@pytest.mark.parametrize(("error", "argument", "value", "remedy", "mistake"), CASES, ids=IDS)
def test_bad_input(error, argument, value, remedy, mistake):
    with pytest.raises(error) as info:
        mistake()
    message = str(info.value)
    assert isinstance(info.value, distlr.errors.DistlrError), f"not on purpose: {info.value!r}"
    missing = [part for part in (argument, value, remedy) if part not in message]
    assert not missing, f"not in the message: {missing}\n{message}"
    assert "must be" in message or "Fix: " in message, message
    assert len(message) < 900


# Modules that stand for an installation: what is not needed to find the mistake is not even loaded.
STAND_INS = """
import importlib.machinery, sys, types
for name in {names}:
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
sys.modules["keras"].__version__ = {version!r}
sys.modules["keras"].backend = types.SimpleNamespace(backend=lambda: {backend!r})
"""
LEGACY = STAND_INS.format(names=["tensorflow", "keras"], version="2.15.0", backend="tensorflow")
ON_JAX = STAND_INS.format(names=["tensorflow", "keras"], version="3.15.1", backend="jax")

# What stands before `import distlr`, what is used of it, and what the error's last line says.
INSTALLATIONS = {
    "no TensorFlow": (
        "import sys; sys.modules['tensorflow'] = None",
        "init",
        ["ImportError: This part of distlr needs TensorFlow 2.16 or later", 'Fix: pip install "distlr[cpu]"'],
    ),
    "no TensorFlow, a package": (
        "import sys; sys.modules['tensorflow'] = sys.modules['keras'] = None",
        "__version__; import distlr.horovod",
        ["ImportError: This part of distlr needs TensorFlow 2.16 or later"],
    ),
    "Keras 2": (
        LEGACY,
        "init",
        ["ConfigurationError", "Received: keras 2.15.0 (legacy Keras)", "pip install 'keras>=3'"],
    ),
    "Keras on JAX": (
        ON_JAX,
        "callbacks",
        ["ConfigurationError", "keras.backend.backend()='jax'", "KERAS_BACKEND=tensorflow"],
    ),
}


WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = sys.modules["keras"] = None
import distlr
from distlr.plateau import PlateauPolicy
from distlr.scaling import factor
batch = distlr.GlobalBatch(64, replicas=4, base_batch=64, samples_per_epoch=6400)
sums = distlr.testing.run_ranks(lambda ranks: ranks.allreduce(ranks.rank + 1, tag="sum").item(), size=3)
print(distlr.__version__ != "", batch.size, distlr.Duration.parse("5ep").value, factor("linear", 4), sums)
"""


def test_what_needs_no_tensorflow_works_in_any_script_without_it(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(WITHOUT_TENSORFLOW)
    ended = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.stdout, ended.stderr) == ("True 256 5 4.0 [6, 6, 6]\n", "")


@pytest.mark.parametrize("name", INSTALLATIONS)
def test_bad_installations(name):
    prelude, used, parts = INSTALLATIONS[name]
    ended = subprocess.run(
        [sys.executable, "-c", f"{prelude}\nimport distlr\ndistlr.{used}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert not [part for part in parts if part not in last], ended.stderr
