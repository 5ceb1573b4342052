"""The input pipeline's share of a rank: equal numbers of full training batches, each validation sample once."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from distlr.batch import GlobalBatch
from distlr.errors import ConfigurationError, ConfigurationTypeError, received

__all__ = ["REMAINDERS", "training", "validation"]

REMAINDERS = ("drop", "carry")
_STREAM_SHUFFLE = 10_000


def training(
    data: Any,
    batch: GlobalBatch,
    *,
    rank: int,
    size: int,
    shuffle: bool | int = True,
    seed: int | None = None,
    remainder: str = "drop",
) -> tf.data.Dataset:
    """This rank's training batches: `batch.steps_per_epoch` an epoch, all full.

    Sharded before it is shuffled, so that ranks need not agree on a seed, and batched by `batch.feed`.
    A final batch that is not full would give some replicas fewer samples, or none (which crashes, or turns
    batch normalization's statistics into NaN).

    Args:
        data: an unbatched `tf.data.Dataset`, or a tuple of arrays.
        shuffle: True for a buffer of the whole shard (10,000 samples where the number is unknown), a number
            for a buffer of that size, False for the order given.
        remainder: "drop" leaves the samples that fill no batch out of the epoch (others each epoch, when
            shuffled); "carry" takes them into the next one, and needs `fit(steps_per_epoch=batch.steps_per_epoch)`.
    """
    if remainder not in REMAINDERS:
        raise ConfigurationError(received("remainder", remainder, "'drop' or 'carry'"))
    dataset = _dataset(data)
    samples = _cardinality(dataset)
    expected = batch.samples_per_epoch
    if samples is not None and expected is not None and samples != expected:
        raise ConfigurationError(
            f"The training data has {samples} samples and the batch was told samples_per_epoch={expected}, so the "
            f"clock would run {expected / max(samples, 1):.3g} times too fast. To mend it: give the batch samples_per_epoch="
            f"{samples}."
        )
    if samples is not None and samples < batch.size:
        raise ConfigurationError(
            f"The training data has {samples} samples, fewer than one global batch of {batch.size}. To mend it: use "
            "smaller batches or fewer replicas."
        )
    dataset = dataset.shard(size, rank)
    buffer = _buffer(shuffle, _cardinality(dataset))
    if buffer:
        dataset = dataset.shuffle(buffer, seed=seed, reshuffle_each_iteration=True)
    if remainder == "carry":
        return dataset.repeat().batch(batch.feed, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    dataset = dataset.batch(batch.feed, drop_remainder=True)
    steps = batch.steps_per_epoch if expected is not None else _whole_updates(samples, batch)
    if steps is not None:
        dataset = dataset.take(steps)
    return dataset.prefetch(tf.data.AUTOTUNE)


def validation(
    data: Any, batch: GlobalBatch, *, rank: int, size: int, local_replicas: int
) -> tuple[tf.data.Dataset, int]:
    """This rank's validation batches, each sample once, and how many padding samples they contain.

    The last samples are split evenly over the local replicas; fewer than one a replica are padded with
    samples of weight 0. Keras divides a weighted loss by the number of samples, padding included, so that
    all weights are then raised by (n + padding) / n: the loss and the `weighted_metrics` are exact.
    """
    dataset = _dataset(data).shard(size, rank)
    if local_replicas == 1:
        return dataset.batch(batch.feed).prefetch(tf.data.AUTOTUNE), 0
    samples = _cardinality(dataset)
    if samples is None:
        samples = int(dataset.reduce(np.int64(0), lambda count, *_: count + 1).numpy())
    padding = -samples % local_replicas
    if not padding:
        return dataset.batch(batch.feed).prefetch(tf.data.AUTOTUNE), 0
    weight = (samples + padding) / samples
    real = dataset.map(lambda *sample: _weighted(sample, weight), num_parallel_calls=tf.data.AUTOTUNE)
    blank = real.take(1).repeat(padding).map(lambda x, y, w: (x, y, tf.zeros_like(w)))
    even = samples - samples % local_replicas
    head = real.take(even).batch(batch.feed)
    tail = real.skip(even).concatenate(blank).batch(local_replicas)
    return head.concatenate(tail).prefetch(tf.data.AUTOTUNE), padding


def _weighted(sample: tuple[Any, ...], factor: float) -> tuple[Any, Any, tf.Tensor]:
    if len(sample) == 2:
        return sample[0], sample[1], tf.constant(factor, tf.float32)
    if len(sample) == 3:
        return sample[0], sample[1], tf.cast(sample[2], tf.float32) * factor
    raise ConfigurationError(
        received(
            "data",
            f"{len(sample)} components",
            "(x, y) or (x, y, sample_weight)",
            "make validation data of these",
        )
    )


def _dataset(data: Any) -> tf.data.Dataset:
    if isinstance(data, tf.data.Dataset):
        return data
    if isinstance(data, tuple) and data and all(hasattr(part, "__len__") for part in data):
        sizes = [len(part) for part in data]
        if len(set(sizes)) != 1:
            raise ConfigurationError(received("data", sizes, "arrays of one length"))
        if sizes[0] == 0:
            raise ConfigurationError(received("data", "0 samples", "at least one sample"))
        return tf.data.Dataset.from_tensor_slices(data)
    raise ConfigurationTypeError(
        received("data", type(data).__name__, "an unbatched tf.data.Dataset or a tuple of arrays (x, y)")
    )


def _cardinality(dataset: tf.data.Dataset) -> int | None:
    count = int(dataset.cardinality().numpy())
    return count if count >= 0 else None


def _buffer(shuffle: bool | int, samples: int | None) -> int:
    if isinstance(shuffle, bool):
        return (samples or _STREAM_SHUFFLE) if shuffle else 0
    if not isinstance(shuffle, int) or shuffle < 1:
        raise ConfigurationError(received("shuffle", shuffle, "True, False or a buffer size of at least 1"))
    return shuffle


def _whole_updates(samples: int | None, batch: GlobalBatch) -> int | None:
    return None if samples is None else samples // batch.size * batch.accumulation
