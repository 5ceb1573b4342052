#!/usr/bin/env python3
"""Test accuracy at large batches, at equal epochs: Fashion-MNIST, a small CNN and a small ResNet.

    python benchmarks/large_batch.py [--models cnn] [--ks 1 32] [--seeds 1]     # resumes --out

One device trains the whole global batch, k times the base batch of 32: 10 epochs, a cosine to 0, batch normalization
of momentum 0.99. SGD with momentum 0.9 from the model's base rate, or Adam from 0.001. The ResNet is trained in three
ways: as said, normalized over the global batch, as one device does it; normalized over each 32 samples, as k replicas
of 32 samples do it without synchronized batch normalization (Goyal et al., section 2.3: the loss is then the base
batch's); and with what Goyal et al. have beside the rate (section 5.1): images that are shifted and mirrored, weight
decay on all but the normalizations, and more epochs, 30. This one was added after the other two had missed their
targets; the record has its base and distlr's arm. The arms:

    nothing       the rate of the base batch
    linear        the rate times k
    warmup        that, with a warmup over 3 epochs
    distlr        that, with the moving averages scaled too (`job.scale_moving_averages`): what docs/rules.md says to do
    sqrt adam     Adam: the rate times sqrt(k), warmup, moving averages (k is too large here to scale its betas)

At k = 1 the four of SGD are the same, and are trained once, as "base"; likewise "base adam". Each run is appended to a
file, a JSON object a line, as it ends; runs that are there are not made again. It mirrors, at a size that two cores can
train, Goyal et al. 2017 (arXiv 1706.02677, table 1): ResNet-50 on ImageNet, 23.60% error at a batch of 256 and 23.74%
at 8,192 (k = 32).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from _common import ROOT

import distlr

import datasets  # isort: skip  (beside the reference script, where `_common` looks)

layers, ops = keras.layers, keras.ops

BASE_BATCH, WARMUP = 32, "3ep"  # Keras' own default batch
ADAM_RATE = 0.001
KS = (1, 8, 32, 64)
ARMS: dict[str, dict[str, Any]] = {
    "nothing": {"rule": "none"},
    "linear": {},
    "warmup": {"warmup": WARMUP},
    "distlr": {"warmup": WARMUP, "averages": True},
    "sqrt adam": {"optimizer": "adam", "rule": "sqrt", "warmup": WARMUP, "averages": True},
}
OUT = ROOT / "benchmarks" / "large_batch.jsonl"


Norm = Callable[[], keras.layers.Layer]


def cnn(norm: Norm) -> keras.Model:
    """Two strided convolutions and a hidden layer: enough to fit the data in the few hundred steps of k = 32."""
    parts: list[Any] = [keras.Input((28, 28, 1))]
    for layer in (_convolution(16, 2), _convolution(32, 2), layers.Dense(256, use_bias=False)):
        flatten = [layers.Flatten()] if isinstance(layer, layers.Dense) else []
        parts += [*flatten, layer, norm(), layers.ReLU()]
    return keras.Sequential([*parts, layers.Dense(10)])


def resnet(norm: Norm, augment: Callable[[Any], Any] = lambda images: images) -> keras.Model:
    """Residual blocks (He et al. 2015, arXiv 1512.03385) of 16, 32 and 64 filters, on 14, 7 and 4 pixels squared."""
    inputs = keras.Input((28, 28, 1))
    x = layers.ReLU()(norm()(_convolution(16, 2)(augment(inputs))))
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        inner = layers.ReLU()(norm()(_convolution(filters, stride)(x)))
        inner = norm()(_convolution(filters, 1)(inner))
        if stride > 1:
            x = norm()(layers.Conv2D(filters, 1, strides=stride, use_bias=False)(x))
        x = layers.ReLU()(layers.Add()([x, inner]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def augmented_resnet(norm: Norm) -> keras.Model:
    """The same, of images that are mirrored, or not, and shifted by up to two pixels while it is trained."""
    shift = layers.RandomTranslation(2 / 28, 2 / 28, fill_mode="constant", interpolation="nearest")
    return resnet(norm, lambda images: shift(layers.RandomFlip("horizontal")(images)))


def _convolution(filters: int, stride: int) -> Any:
    return layers.Conv2D(filters, 3, strides=stride, padding="same", use_bias=False)


class ReplicaNormalization(layers.BatchNormalization):
    """Batch normalization as k replicas compute it, each over its own `BASE_BATCH` samples."""

    def call(self, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        if not training:
            return super().call(inputs, training=False)
        replicas = ops.reshape(inputs, (-1, BASE_BATCH, *inputs.shape[1:]))
        mean, variance = ops.moments(replicas, tuple(range(1, len(replicas.shape) - 1)), keepdims=True)
        for moving, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
            over_replicas = ops.reshape(ops.mean(now, axis=0), moving.shape)
            moving.assign(moving * self.momentum + over_replicas * (1.0 - self.momentum))
        scale = ops.rsqrt(variance + self.epsilon) * self.gamma
        return ops.reshape(replicas * scale + (self.beta - mean * scale), ops.shape(inputs))


class Setting(NamedTuple):
    """A model and the settings of its training."""

    make: Callable[[Norm], keras.Model]
    rate: float  # SGD's rate, at the base batch
    norm: type[layers.BatchNormalization] = layers.BatchNormalization
    base: str = ""  # the setting that is the same at k = 1, which alone is trained there
    epochs: int = 10
    decay: float | None = None  # weight decay, times the rate at every update, as in Keras


SETTINGS = {
    "cnn": Setting(cnn, 0.0125),
    "resnet": Setting(resnet, 0.025),
    "resnet, normalized by replica": Setting(resnet, 0.025, ReplicaNormalization, "resnet"),
    "resnet, augmented": Setting(augmented_resnet, 0.025, epochs=30, decay=0.005),
}


def train(name: str, arm: dict[str, Any], k: int, data: Any, seed: int) -> dict[str, float]:
    """The test accuracy after the last epoch, and the training accuracy as Keras averages it over that epoch."""
    (train_set, test_set), samples = data, len(data[0][0])
    keras.utils.set_random_seed(seed)
    job = distlr.init()
    batch = job.batch(BASE_BATCH * k, base_batch=BASE_BATCH, samples_per_epoch=samples)
    setting = SETTINGS[name]
    model = setting.make(functools.partial(setting.norm, momentum=0.99))
    if arm.get("averages"):
        job.scale_moving_averages(model, batch)
    adam = arm.get("optimizer") == "adam"
    steps = setting.epochs * samples // BASE_BATCH
    rate = keras.optimizers.schedules.CosineDecay(ADAM_RATE if adam else setting.rate, steps)
    make = keras.optimizers.Adam if adam else functools.partial(keras.optimizers.SGD, momentum=0.9)
    plain = make(rate, weight_decay=setting.decay)
    plain.exclude_from_weight_decay(var_names=["gamma", "beta"])
    options = {"rule": arm.get("rule")}
    if "warmup" in arm and k > 1:
        options["warmup"] = arm["warmup"]
    model.compile(
        job.optimizer(plain, batch, **options),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
    )
    # A run that diverges has an accuracy, too.
    callbacks = job.callbacks([distlr.callbacks.NonFiniteGuard(ignore={"loss", "accuracy"})])
    shard = job.shard(train_set, batch, seed=seed)
    history = model.fit(shard, epochs=setting.epochs, verbose=0, shuffle=False, callbacks=callbacks).history
    test = job.evaluate(model, job.shard(test_set, batch, training=False))
    return {"accuracy": round(test["accuracy"], 4), "train_accuracy": round(history["accuracy"][-1], 4)}


def grid(models: list[str], ks: list[int], seeds: int, arms: list[str]) -> Iterator[dict[str, Any]]:
    """The runs, seed by seed, so that whatever is there is a whole table."""
    for seed in range(seeds):
        for model in models:
            for k in [k for k in ks if k > 1 or not SETTINGS[model].base]:
                for arm in [one for one in (("base", "base adam") if k == 1 else ARMS) if one in arms]:
                    yield {"model": model, "arm": arm, "k": k, "seed": seed}


def runs(path: Path) -> list[dict[str, Any]]:
    """The runs that the file has so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def tables(path: Path) -> list[dict[str, Any]]:
    """The runs of each setting, with those at k = 1 of the setting that is the same there."""
    trained = runs(path)
    names = {run["model"] for run in trained}
    shared = [
        run | {"model": name}
        for name, setting in SETTINGS.items()
        for run in trained
        if name in names and run["model"] == setting.base and run["k"] == 1
    ]
    return [*trained, *shared]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--ks", nargs="+", type=int, choices=KS, default=list(KS))
    parser.add_argument("--seeds", type=int, default=3)
    every = ["base", "base adam", *ARMS]
    parser.add_argument("--arms", nargs="+", choices=every, default=every)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    data = datasets.load("fashion_mnist")
    there = [{name: run[name] for name in ("model", "arm", "k", "seed")} for run in runs(options.out)]
    for run in grid(options.models, options.ks, options.seeds, options.arms):
        if run in there:
            continue
        start = time.perf_counter()
        arm = ARMS["sqrt adam" if "adam" in run["arm"] else "nothing"] if run["k"] == 1 else ARMS[run["arm"]]
        run |= train(run["model"], arm, run["k"], data, run["seed"])
        keras.backend.clear_session()
        run |= {"seconds": round(time.perf_counter() - start)}
        with options.out.open("a") as file:
            file.write(json.dumps(run) + "\n")
        print(json.dumps(run), flush=True)


if __name__ == "__main__":
    main()
