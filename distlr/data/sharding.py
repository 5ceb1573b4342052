"""The input pipeline's share of a rank: equal numbers of full training batches, each validation sample once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from distlr._utils.checks import integer, one_of
from distlr.batch.global_batch import GlobalBatch, check_batch
from distlr.data.position import Position
from distlr.errors import ConfigurationError, ConfigurationTypeError, DistributionError, received
from distlr.strategies.batches import is_divided

__all__ = ["REMAINDERS", "check_remainder", "own_share", "training", "validation"]

REMAINDERS = ("drop", "carry")
_STREAM_SHUFFLE = 10_000
_SHARDED = "_distlr_sharded"  # marks the data sets that come from here


def training(
    data: Any,
    batch: GlobalBatch,
    *,
    rank: int,
    size: int,
    position: Position,
    shuffle: bool | int = True,
) -> tf.data.Dataset:
    """This rank's training batches: `batch.steps_per_epoch` an epoch, all full, in an order that can be resumed.

    A final batch that is not full would give some replicas fewer samples, or none (which crashes, or turns
    batch normalization's statistics into NaN), so all are batched by `batch.local_batch`.

    Arrays are shuffled as a whole: which samples the n-th global batch of an epoch has depends on the seed and the
    epoch alone, on any number of ranks. A `tf.data.Dataset` is sharded first, and each share is shuffled in a buffer.

    Args:
        data: an unbatched `tf.data.Dataset`, or a tuple of arrays.
        shuffle: True for all samples (of a data set whose length is unknown, a buffer of 10,000), a number
            for a buffer of that size, False for the order given.
        position: the place of the run, in an order whose seed is the same on all ranks. If it is endless the samples
            that fill no batch go into the next epoch; otherwise this epoch leaves them out.
    """
    check_batch(batch)
    dataset = _dataset(data)
    samples = _cardinality(dataset)
    _check_samples(samples, batch, size)
    whole = _whole(data) if isinstance(shuffle, bool) else None
    if whole is not None:
        assert samples is not None
        pipeline = _from_arrays(whole, samples, batch, rank, bool(shuffle), position)
    else:
        share = dataset.shard(size, rank)
        pipeline = _from_stream(share, batch.local_batch, size, _buffer(shuffle, _cardinality(share)), position)
    if position.endless:
        return _marked(pipeline.repeat().prefetch(tf.data.AUTOTUNE))  # endless already; now Keras knows it, too
    expected = batch.samples_per_epoch
    steps = batch.steps_per_epoch if expected is not None else _whole_updates(samples, batch)
    if steps is not None and samples is not None:
        pipeline = pipeline.repeat().take(steps)  # a number that Keras knows; a resumed epoch ends before
    elif steps is not None:
        # Keras then knows the steps, and TensorFlow ends a run whose data has fewer.
        pipeline = pipeline.take(steps).apply(tf.data.experimental.assert_cardinality(steps))
    return _marked(pipeline.prefetch(tf.data.AUTOTUNE))


def _from_arrays(
    whole: Any, samples: int, batch: GlobalBatch, rank: int, shuffle: bool, position: Position
) -> tf.data.Dataset:
    """One iteration over arrays: the rank's slice of each global batch, gathered by the numbers of its samples."""
    feed, per_step = batch.local_batch, position.per_step

    def iteration(_: tf.Tensor) -> tf.data.Dataset:
        """Begins at the position, which it moves on to the next pass."""
        seed, epoch, offset = position.begin_iteration()

        def order(number: tf.Tensor) -> tf.Tensor:
            """The order of one pass: of all samples, the same on every rank."""
            numbers = tf.range(samples, dtype=tf.int64)
            if not shuffle:
                return numbers
            return tf.random.experimental.stateless_shuffle(numbers, tf.stack([seed, number]))

        def gathered(places: tf.Tensor) -> Any:
            """The rank's samples of one global batch."""
            local_places = tf.ensure_shape(places[rank * feed : (rank + 1) * feed], [feed])
            return tf.nest.map_structure(lambda array: tf.gather(array, local_places), whole)

        if position.endless:
            first = offset // samples
            passes = tf.data.Dataset.range(first, tf.int64.max).map(lambda n: order(position.inner_pass(epoch, n)))
            steps = passes.unbatch().skip(offset - first * samples).batch(per_step, drop_remainder=True)
        else:
            left = (samples - offset) // per_step
            places = order(epoch)[offset : offset + left * per_step]
            steps = tf.data.Dataset.from_tensor_slices(tf.reshape(places, [left, per_step]))
        return steps.map(gathered, num_parallel_calls=tf.data.AUTOTUNE)

    return tf.data.Dataset.range(1).flat_map(iteration)


def _from_stream(share: tf.data.Dataset, feed: int, size: int, buffer: int, position: Position) -> tf.data.Dataset:
    """One iteration over a rank's share of a data set."""
    length = _cardinality(share)

    def shuffled(seed: tf.Tensor, number: tf.Tensor) -> tf.data.Dataset:
        """The rank's share in the order of one pass, drawn from a buffer."""
        order = position.seed_of(seed, number)
        if not buffer:
            return share
        # Not share.shuffle: where the global seed is 0, TensorFlow compares this one with 0 in Python.
        shuffled = tf.raw_ops.ShuffleDatasetV3(
            input_dataset=tf.data.experimental.to_variant(share),
            buffer_size=tf.constant(buffer, tf.int64),
            seed=order,
            seed2=tf.constant(1, tf.int64),
            seed_generator=tf.raw_ops.DummySeedGenerator(),
            output_types=[spec.dtype for spec in tf.nest.flatten(share.element_spec)],
            output_shapes=[spec.shape for spec in tf.nest.flatten(share.element_spec)],
            reshuffle_each_iteration=False,
        )
        return tf.data.experimental.from_variant(shuffled, share.element_spec)

    def iteration(_: tf.Tensor) -> tf.data.Dataset:
        """Begins at the position, which it moves on to the next pass."""
        seed, epoch, offset = position.begin_iteration()
        local_offset = offset // size
        if not position.endless:
            return shuffled(seed, epoch).skip(local_offset).batch(feed, drop_remainder=True)
        first = 0 if length is None else local_offset // length
        samples = tf.data.Dataset.range(first, tf.int64.max).flat_map(
            lambda number: shuffled(seed, position.inner_pass(epoch, number))
        )
        return samples.skip(local_offset - first * (length or 0)).batch(feed, drop_remainder=True)

    return tf.data.Dataset.range(1).flat_map(iteration)


def _whole(data: Any) -> Any:
    """The arrays as tensors, in their structure; None for a data set, and for arrays that cannot be indexed."""
    if isinstance(data, tf.data.Dataset):
        return None
    with tf.device("CPU:0"):
        tensors = next(iter(tf.data.Dataset.from_tensors(data)))
    return tensors if all(isinstance(part, tf.Tensor) for part in tf.nest.flatten(tensors)) else None


def validation(
    data: Any, batch: GlobalBatch, *, rank: int, size: int, local_replicas: int
) -> tuple[tf.data.Dataset, list[int]]:
    """This rank's validation batches, each sample once, and how many padding samples those of each rank end with.

    Every replica gets an equal share of each batch: where the local replicas do not divide the number of
    samples, it is padded with samples of weight 0. Keras divides a weighted loss by the number of samples,
    padding included, so all weights are then raised by (n + padding) / n, over all ranks: a loss with Keras' default
    reduction, the mean over the samples, and the `weighted_metrics` are exact.
    """
    check_batch(batch)
    dataset = _dataset(data)
    if _cardinality(dataset) == 0:
        raise _empty()
    if local_replicas == 1:
        return _marked(dataset.shard(size, rank).batch(batch.local_batch).prefetch(tf.data.AUTOTUNE)), [0] * size
    samples = _cardinality(dataset)
    if samples is None:
        samples = int(dataset.reduce(np.int64(0), lambda count, *_: count + 1).numpy())
        if samples == 0:
            raise _empty()
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(samples))
    shares = [len(range(other, samples, size)) for other in range(size)]
    paddings = [-share % local_replicas for share in shares]
    padding, every = paddings[rank], sum(paddings)
    whole, dataset = dataset, dataset.shard(size, rank)
    if every:
        _check_labels(dataset)
        weight = (samples + every) / samples
        whole, dataset = (
            part.map(lambda *sample: _weighted(sample, weight), num_parallel_calls=tf.data.AUTOTUNE)
            for part in (whole, dataset)
        )
        blank = whole.take(1).repeat(padding).map(lambda x, y, w: (x, y, tf.zeros_like(w)))
        dataset = dataset.concatenate(blank)
    # tf.distribute gives each replica ceil(n / replicas) of a smaller last batch: equal shares, now that it divides.
    return _marked(dataset.batch(batch.local_batch).prefetch(tf.data.AUTOTUNE)), paddings


def own_share(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The same data for a strategy that spans the ranks, which must not shard a rank's share again."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return _marked(dataset.with_options(options))


def _check_labels(dataset: tf.data.Dataset) -> None:
    parts = len(dataset.element_spec) if isinstance(dataset.element_spec, tuple) else 1
    if parts not in (2, 3):
        hint = "give every sample its label, so that padding can have weight 0; or let the replicas divide the samples"
        raise ConfigurationError(
            received("data", f"samples of {parts} parts", "of samples (x, y) or (x, y, sample_weight)", hint)
        )


def _weighted(sample: tuple[Any, ...], factor: float) -> tuple[Any, Any, tf.Tensor]:
    weight = tf.cast(sample[2], tf.float32) * factor if len(sample) == 3 else tf.constant(factor, tf.float32)
    return sample[0], sample[1], weight


# -- accepted data ------------------------------------------------------------------------------------


def check_remainder(remainder: Any) -> None:
    """Refuses an unknown way to treat the samples that fill no batch."""
    one_of("remainder", remainder, REMAINDERS)


def _dataset(data: Any) -> tf.data.Dataset:
    if hasattr(data, _SHARDED) or is_divided(data):
        what = "came from job.shard" if hasattr(data, _SHARDED) else "is distributed by tf.distribute"
        raise DistributionError(
            f"The data set {what} already, and sharding it twice would leave samples out. Received: "
            f"data={type(data).__name__}. Fix: give job.shard the unbatched data, once, and fit its result "
            "as it is."
        )
    if isinstance(data, tf.data.Dataset):
        _check_unbatched(data)
        return data
    arrays = list(_leaves(data)) if isinstance(data, tuple) else []
    sizes = [_length(array) for array in arrays]
    if not sizes or None in sizes:
        expected = "an unbatched tf.data.Dataset or a tuple of arrays (x, y)"
        hint = "write (x, y), or tf.data.Dataset.from_tensor_slices(...)"
        raise ConfigurationTypeError(received("data", type(data).__name__, expected, hint))
    if len(set(sizes)) != 1:
        raise ConfigurationError(received("data", sizes, "arrays of one length", "give each sample one entry in each"))
    if sizes[0] == 0:
        raise _empty()
    return tf.data.Dataset.from_tensor_slices(data)


def _leaves(data: Any) -> Iterator[Any]:
    """The arrays of nested tuples and dicts, as tf.data takes them; a list is an array."""
    if isinstance(data, dict):
        data = tuple(data.values())
    if isinstance(data, tuple):
        for part in data:
            yield from _leaves(part)
    else:
        yield data


def _length(array: Any) -> int | None:
    try:
        return None if isinstance(array, str) else len(array)
    except TypeError:
        return None


def _check_unbatched(dataset: tf.data.Dataset) -> None:
    """Refuses a batched data set. Full batches alone do not show that; the count of samples does."""
    count = int(dataset.cardinality().numpy())
    if count == tf.data.INFINITE_CARDINALITY:
        raise ConfigurationError(
            received("data", "a data set without an end", "one pass over the samples", "leave out .repeat()")
        )
    specs = tf.nest.flatten(dataset.element_spec)
    shapes: list[Any] = [getattr(spec, "shape", tf.TensorShape(None)) for spec in specs]
    if len(shapes) > 1 and all(shape.rank and shape[0] is None for shape in shapes):
        raise ConfigurationError(
            received(
                "data",
                [tuple(shape) for shape in shapes],
                "unbatched: job.shard batches it, and each sample has a length of its own here",
                "leave out .batch(), or take it back with .unbatch(); pad sequences to one length",
            )
        )


def _check_samples(samples: int | None, batch: GlobalBatch, size: int) -> None:
    expected = batch.samples_per_epoch
    if samples is None:
        if expected is None and size > 1:
            hint = "pass it to the batch, or put .apply(tf.data.experimental.assert_cardinality(n)) on the data"
            raise ConfigurationError(
                received("samples_per_epoch", None, "given where the data does not tell how many samples it has", hint)
            )
        return
    if samples == 0:
        raise _empty()
    if expected is not None and samples != expected:
        raise ConfigurationError(
            f"The training data has {samples} samples and the batch was told samples_per_epoch={expected}, so the "
            f"clock would run {expected / samples:.3g} times too fast. Fix: give the batch samples_per_epoch="
            f"{samples}; or, if the data is batched or sharded already, hand it over as it was before."
        )
    if samples < batch.size:
        raise ConfigurationError(
            f"The training data has {samples} samples, fewer than one global batch. Received: batch={batch!r}, of "
            f"{batch.size} samples. Fix: use smaller batches or fewer replicas; or, if the data is batched "
            "already, hand it over as it was before."
        )


def _empty() -> ConfigurationError:
    hint = "look for a filter or a path that matches nothing"
    return ConfigurationError(received("data", "0 samples", "at least one sample", hint))


def _marked(dataset: tf.data.Dataset) -> tf.data.Dataset:
    setattr(dataset, _SHARDED, True)
    return dataset


def _cardinality(dataset: tf.data.Dataset) -> int | None:
    count = int(dataset.cardinality().numpy())
    return count if count >= 0 else None


def _buffer(shuffle: bool | int, samples: int | None) -> int:
    if isinstance(shuffle, bool):
        return (samples or _STREAM_SHUFFLE) if shuffle else 0
    size = integer(shuffle)
    if size is None or size < 1:
        raise ConfigurationError(received("shuffle", shuffle, "True, False or a buffer size of at least 1"))
    return size


def _whole_updates(samples: int | None, batch: GlobalBatch) -> int | None:
    return None if samples is None else samples // batch.size * batch.accumulation
