#!/usr/bin/env python3
"""The reference script: a small CNN that trains the same way on one device and on any number of replicas.

python launch/train.py --data digits                            # one device
DISTLR_SIMULATE=4 python launch/train.py --data digits          # four simulated replicas
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import keras
import report

import distlr

layers, schedules = keras.layers, keras.optimizers.schedules


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=datasets.LOADERS, default="digits")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--per-replica", type=int, default=16, help="samples a replica and step")
    parser.add_argument("--base-batch", type=int, default=16, help="the batch that the base rate was tuned at")
    parser.add_argument("--base-lr", type=float, help="default: 0.05 for sgd, 0.001 for adam")
    parser.add_argument("--optimizer", choices=("sgd", "adam"), default="sgd")
    parser.add_argument(
        "--schedule", choices=("constant", "cosine", "exponential", "per-epoch", "plateau"), default="cosine"
    )
    parser.add_argument("--patience", type=int, help="cut the rate after so many epochs without a better val_loss")
    parser.add_argument("--rule", choices=("linear", "sqrt", "none"), default="linear")
    parser.add_argument("--warmup", default="2ep", help='a duration: "2ep", "100ba", "5000sp", "0.05dur", "0ep"')
    parser.add_argument(
        "--checkpoint", metavar="EVERY", help='a duration: keep checkpoints in RUN_DIR, and continue the last, "1ep"'
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/train"))
    return parser.parse_args(words)


def build_model(shape: tuple[int, ...], classes: int) -> keras.Model:
    model = keras.Sequential([keras.Input(shape)])
    for filters in (16, 32):
        model.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
        model.add(layers.BatchNormalization(momentum=0.9))
        model.add(layers.ReLU())
        model.add(layers.MaxPooling2D())
    model.add(layers.Flatten())
    model.add(layers.Dense(classes))
    return model


def base_rate(args: argparse.Namespace, steps: int) -> float | schedules.LearningRateSchedule:
    """The rate of the one-GPU script: written for the base batch, in steps of the base batch."""
    rate = args.base_lr or {"sgd": 0.05, "adam": 0.001}[args.optimizer]
    if args.schedule == "cosine":
        return schedules.CosineDecay(rate, decay_steps=steps)
    if args.schedule == "exponential":
        return schedules.ExponentialDecay(rate, decay_steps=steps, decay_rate=0.01)
    if args.schedule == "per-epoch":  # a tenth from the middle on, a hundredth for the last quarter
        drops = (args.epochs // 2, 3 * args.epochs // 4)
        return distlr.schedules.PerEpoch(lambda epoch, lr: lr * 0.1 if epoch in drops else lr, rate, epochs=args.epochs)
    return rate


def setup(job: distlr.Job, args: argparse.Namespace | None = None) -> tuple[keras.Model, Any, Any]:
    """The model, and this rank's data for training and validation; `distlr lr-find train:setup` calls it, too."""
    args = arguments([]) if args is None else args
    keras.utils.set_random_seed(args.seed)
    train, test = datasets.load(args.data)
    samples = len(train[0])
    batch = job.batch(
        per_replica=args.per_replica,
        base_batch=args.base_batch,
        samples_per_epoch=samples,
        duration=f"{args.epochs}ep",
    )

    with job.scope():
        model = build_model(train[0].shape[1:], classes=10)
        job.scale_moving_averages(model, batch)
        rate = base_rate(args, steps=args.epochs * samples // args.base_batch)
        plain = keras.optimizers.SGD(rate, momentum=0.9) if args.optimizer == "sgd" else keras.optimizers.Adam(rate)
        optimizer = job.optimizer(plain, batch, rule=args.rule, warmup=args.warmup)
        model.compile(
            optimizer,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            weighted_metrics=["accuracy"],
        )
    return model, job.shard(train, batch, seed=args.seed), job.shard(test, batch, training=False)


def main() -> None:
    args = arguments()
    job = distlr.init()
    model, train, valid = setup(job, args)

    callbacks = []
    patience = args.patience or (5 if args.schedule == "plateau" else None)
    if patience:
        callbacks.append(distlr.callbacks.ReduceLROnPlateau("val_loss", factor=0.1, patience=patience))
    if args.checkpoint:
        callbacks.append(distlr.callbacks.Checkpoint(args.run_dir / "checkpoints", every=args.checkpoint))
    model.fit(
        train,
        epochs=args.epochs,
        validation_data=valid,
        callbacks=job.callbacks(callbacks, run_dir=args.run_dir),
        shuffle=False,  # job.shard does; Keras warns otherwise
        verbose=2 if job.is_root else 0,
    )
    accuracy = job.evaluate(model, valid)["accuracy"]
    report.write(args.run_dir, job, model, accuracy)


if __name__ == "__main__":
    main()
