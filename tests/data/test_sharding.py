"""The input pipeline: equal numbers of full training batches, and each validation sample exactly once."""

from __future__ import annotations

import collections
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr import GlobalBatch
from distlr.communicators import run_ranks
from distlr.data import sharding as data
from distlr.data.position import Position
from distlr.errors import ConfigurationError, ConfigurationTypeError, DistributionError
from distlr.job import Job

layers = keras.layers


def numbers(dataset):
    """The samples of each batch, where a sample is its own number."""
    return [np.asarray(batch[0] if isinstance(batch, tuple) else batch).ravel().tolist() for batch in dataset]


def flattened(batches):
    return list(itertools.chain.from_iterable(batches))


def training(user_data, batch, *, seed=0, remainder="drop", position=None, **options):
    """Calls `data.training` as `job.shard` does."""
    place = Position(batch, seed, remainder == "carry") if position is None else position
    return data.training(user_data, batch, position=place, **options)


def shards(n, batch, size=3, **options):
    return [training(tf.data.Dataset.range(n), batch, rank=rank, size=size, **options) for rank in range(size)]


def stream(n, *shape):
    """A data set that does not tell its length."""
    value = tf.TensorSpec(shape, tf.int64)
    return tf.data.Dataset.from_generator(lambda: iter(range(n)), output_signature=value)


@pytest.fixture(scope="module")
def job(four_cpus):
    return distlr.init(simulate=len(four_cpus), environ={})


# -- training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("n", [36, 37, 40, 47, 48])
def test_every_rank_has_the_same_number_of_full_batches_and_no_sample_twice(n, accumulation):
    batch = GlobalBatch(4, replicas=3, local_replicas=1, base_batch=4, accumulation=accumulation, samples_per_epoch=n)
    seen = collections.Counter()
    for dataset in shards(n, batch):
        assert int(dataset.cardinality()) == batch.steps_per_epoch
        batches = numbers(dataset)
        assert [len(part) for part in batches] == [4] * batch.steps_per_epoch
        seen.update(flattened(batches))
    assert max(seen.values()) == 1
    assert len(seen) == batch.updates_per_epoch * batch.size


def test_ranks_share_the_samples_before_they_shuffle():
    """So that each rank's samples are its own in every epoch, without a common seed."""
    batch = GlobalBatch(4, replicas=3, local_replicas=1, base_batch=4, samples_per_epoch=48)
    for rank, dataset in enumerate(shards(48, batch)):
        epochs = [flattened(numbers(dataset)) for _ in range(2)]
        for epoch in epochs:
            assert sorted(epoch) == list(range(rank, 48, 3))
        assert epochs[0] != epochs[1]
        assert epochs[0] != sorted(epochs[0])


def test_the_seed_and_the_order():
    batch = GlobalBatch(4, base_batch=4, samples_per_epoch=40)
    first, second = (numbers(shards(40, batch, 1, seed=7)[0]) for _ in range(2))
    assert first == second
    assert flattened(numbers(shards(40, batch, 1, shuffle=False)[0])) == list(range(40))
    near = flattened(numbers(shards(40, batch, 1, shuffle=np.int64(2))[0]))
    assert sorted(near) == list(range(40)) != near
    assert all(sample - place <= 1 for place, sample in enumerate(near))


@pytest.mark.parametrize("size", [5, 11, 70])
def test_the_orders_of_arrays_differ_as_much_as_they_can(size) -> None:
    """tf.random.experimental.index_shuffle, for example, has no more than 256 for the passes of one seed."""
    batch = GlobalBatch(size, base_batch=size, samples_per_epoch=size)
    position = Position(batch, 7)
    dataset = training((np.arange(size),), batch, rank=0, size=1, position=position)
    iterator, orders = iter(dataset.repeat()), collections.Counter()
    for _ in range(3000):
        orders[tuple(next(iterator)[0].numpy().tolist())] += 1
    assert all(sorted(order) == list(range(size)) for order in orders)
    if size == 5:  # 120 orders, 25 times each on average
        assert len(orders) == 120
        assert max(orders.values()) < 60
    else:
        assert len(orders) > 2990


def test_what_is_left_out_of_an_epoch_differs_from_epoch_to_epoch():
    batch = GlobalBatch(4, base_batch=4, samples_per_epoch=11)
    (dataset,) = shards(11, batch, 1, seed=1)
    assert len({frozenset(flattened(numbers(dataset))) for _ in range(8)}) > 1


def test_arrays_of_any_structure():
    x = {"a": np.arange(12), "b": np.ones((12, 2))}
    batch = GlobalBatch(4, base_batch=4, samples_per_epoch=12)
    dataset = training((x, [1] * 12, np.arange(12)), batch, rank=0, size=1)
    element = next(iter(dataset))
    assert element[0]["b"].shape == (4, 2)
    np.testing.assert_array_equal(element[0]["a"], element[2])


@pytest.mark.parametrize("remainder", ["drop", "carry"])
def test_keras_sees_the_steps_and_counts_them(remainder):
    batch = GlobalBatch(4, base_batch=4, samples_per_epoch=11)
    (dataset,) = shards(11, batch, 1, remainder=remainder)
    seen = []

    class Seeing(keras.Model):
        def train_step(self, batch):
            tf.py_function(lambda value: seen.extend(value.numpy().tolist()), [batch], [])
            return {"loss": 0.0}

    model = Seeing()
    model.compile()
    steps = batch.steps_per_epoch if remainder == "carry" else None
    model.fit(dataset, epochs=11, steps_per_epoch=steps, shuffle=False, verbose=0)
    counts = collections.Counter(seen)
    assert len(seen) == 11 * 2 * 4
    if remainder == "carry":  # 88 samples are 8 passes over the 11, whole
        assert set(counts.values()) == {8}
    else:
        assert set(counts.values()) != {8}


def test_an_endless_pipeline_needs_the_steps():
    (dataset,) = shards(11, GlobalBatch(4, base_batch=4, samples_per_epoch=11), 1, remainder="carry")
    assert int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY


def test_a_stream_of_unknown_length_has_the_steps_of_the_batch():
    batch = GlobalBatch(4, replicas=3, local_replicas=1, base_batch=4, samples_per_epoch=41)
    seen = set()
    for rank in range(3):
        dataset = training(stream(41), batch, rank=rank, size=3)
        assert int(dataset.cardinality()) == 3
        seen |= set(flattened(numbers(dataset)))
    assert len(seen) == 36


def test_a_stream_with_fewer_samples_than_the_batch_says_ends_the_run():
    batch = GlobalBatch(4, base_batch=4, samples_per_epoch=41)
    dataset = training(stream(30), batch, rank=0, size=1)
    with pytest.raises(tf.errors.FailedPreconditionError, match="expected to contain 10 elements but contained only 7"):
        numbers(dataset)


def test_a_stream_of_unknown_length_needs_the_number_on_several_ranks():
    batch = GlobalBatch(4, replicas=3, local_replicas=1, base_batch=4)
    with pytest.raises(ConfigurationError, match="`samples_per_epoch` must be given where"):
        training(stream(41), batch, rank=0, size=3)
    one = GlobalBatch(4, base_batch=4)
    assert [len(part) for part in numbers(training(stream(10), one, rank=0, size=1))] == [4, 4]


SMALL = GlobalBatch(4, base_batch=4, samples_per_epoch=40)
X, Y = np.zeros((40, 2), np.float32), np.zeros(40, np.float32)


@pytest.mark.parametrize(
    ("user_data", "error", "says"),
    [
        ((X[:39], Y[:39]), ConfigurationError, "39 samples and the batch was told samples_per_epoch=40.*=39"),
        ((X[:20], Y[:20]), ConfigurationError, "2 times too fast.*batched or sharded already"),
        ((X, Y[:39]), ConfigurationError, r"arrays of one length. Received: data=\[40, 39\]"),
        ((X[:0], Y[:0]), ConfigurationError, "at least one sample"),
        (tf.data.Dataset.range(0), ConfigurationError, "at least one sample"),
        (tf.data.Dataset.range(40).repeat(), ConfigurationError, r"leave out \.repeat\(\)"),
        (tf.data.Dataset.from_tensor_slices((X, Y)).batch(8), ConfigurationError, r"leave out \.batch\(\)"),
        (
            tf.data.Dataset.from_tensor_slices((X, Y)).batch(8, drop_remainder=True),
            ConfigurationError,
            "5 samples and the batch was told samples_per_epoch=40.*batched",
        ),
        (X, ConfigurationTypeError, "a tuple of arrays.*Received: data='ndarray'"),
        ([X, Y], ConfigurationTypeError, "a tuple of arrays.*Received: data='list'"),
        ((X, None), ConfigurationTypeError, r"tuple of arrays \(x, y\)"),
        ((np.float32(3), Y), ConfigurationTypeError, "tuple of arrays"),
        ("train.tfrecord", ConfigurationTypeError, "from_tensor_slices"),
    ],
)
def test_data_that_cannot_be_right(user_data, error, says):
    with pytest.raises(error, match=says):
        training(user_data, SMALL, rank=0, size=1)


def test_sequences_of_one_open_dimension_are_not_taken_for_batches():
    text = tf.data.Dataset.from_generator(
        lambda: ((np.zeros(5), 1) for _ in range(40)),
        output_signature=(tf.TensorSpec((None,), tf.float32), tf.TensorSpec((), tf.int32)),
    )
    assert next(iter(training(text, SMALL, rank=0, size=1)))[0].shape == (4, 5)


def test_fewer_samples_than_a_batch():
    with pytest.raises(ConfigurationError, match=r"3 samples, fewer than one global batch.*of 4 samples"):
        training((X[:3], Y[:3]), GlobalBatch(4, base_batch=4), rank=0, size=1)


def test_data_that_is_sharded_twice_is_refused(job):
    batch = job.batch(4, base_batch=4, samples_per_epoch=40)
    shard = job.shard((X, Y), batch)
    for twice in (shard, job.distribute(shard), job.shard((X, Y), batch, training=False)):
        for training in (True, False):
            with pytest.raises(DistributionError, match="already, and sharding it twice would leave samples out"):
                job.shard(twice, batch, training=training)


def test_the_batch_of_another_job_is_refused(job):
    with pytest.raises(ConfigurationError, match=r"`batch` must be for 4 replicas.*replicas=2.*job\.batch"):
        job.shard((X, Y), GlobalBatch(4, replicas=2, base_batch=4))


# -- validation --------------------------------------------------------------------------------------------


def test_every_validation_sample_is_on_one_rank_once():
    batch = GlobalBatch(4, replicas=3, local_replicas=1, base_batch=4)
    seen = []
    for rank in range(3):
        dataset, paddings = data.validation(tf.data.Dataset.range(41), batch, rank=rank, size=3, local_replicas=1)
        assert paddings == [0, 0, 0]
        seen += flattened(numbers(dataset))
    assert sorted(seen) == list(range(41))


def test_predictions_for_padding_are_logged_once(job, caplog):
    caplog.set_level("INFO", logger="distlr")
    batch = job.batch(8, base_batch=8)
    job.shard((np.arange(8), np.zeros(8)), batch, training=False)
    assert "predict" not in caplog.text  # the four replicas divide 8
    for n in (9, 10):
        job.shard((np.arange(n), np.zeros(n)), batch, training=False)
    assert caplog.text.count("samples of weight 0 (3). fit and evaluate do not count them, but model.predict") == 1


@pytest.mark.parametrize("n", [3, 17, 361, 362, 363, 364])
def test_replicas_get_equal_shares_and_every_sample_once(job, n):
    batch = job.batch(8, base_batch=8)
    dataset = job.shard((np.arange(n), np.zeros(n), np.full(n, 2.0)), batch, training=False)
    seen, weights = collections.Counter(), []
    for element in job.distribute(dataset):
        x, _, w = (job.strategy.experimental_local_results(part) for part in element)
        assert len({part.shape[0] for part in x}) == 1
        for samples, weight in zip(np.concatenate(x), np.concatenate(w), strict=True):
            if weight:
                seen[int(samples)] += 1
                weights.append(float(weight))
    assert seen == collections.Counter(range(n))
    assert sum(weights) / (n + -n % 4) == pytest.approx(2.0, rel=1e-6)


def build_model():
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(3, 3, kernel_initializer=keras.initializers.GlorotUniform(1), kernel_regularizer="l2"),
            layers.BatchNormalization(momentum=0.5),
            layers.GlobalAveragePooling2D(),
        ]
    )


def compiled(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=loss, weighted_metrics=["accuracy"], jit_compile=False)
    return model


def images(n, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(n, 6, 6, 1)).astype(np.float32), random.integers(0, 3, n)


@pytest.fixture(scope="module")
def models(job):
    """The same small CNN with batch normalization on four replicas and on one device."""
    with job.scope():
        replicated = compiled(build_model())
    return replicated, compiled(build_model())


@pytest.mark.replicas
@pytest.mark.parametrize(
    ("n", "weighted"), [(361, False), (362, False), (363, False), (364, False), (3, False), (363, True), (364, True)]
)
def test_validation_on_four_replicas_is_that_of_one_device(job, models, n, weighted):
    replicated, single = models
    samples = images(n)
    if weighted:
        samples = (*samples, np.linspace(0.1, 3, n).astype(np.float32))
    batch = job.batch(32, base_batch=32)
    result = job.evaluate(replicated, job.shard(samples, batch, training=False))
    expected = single.evaluate(
        *samples[:2],
        batch_size=n,
        sample_weight=samples[2] if weighted else None,
        verbose=0,
        return_dict=True,
    )
    assert expected["loss"] > 0.1
    assert result == pytest.approx(expected, rel=1e-6)


def test_a_stream_of_unknown_length_is_validated_as_a_whole(job, models):
    x, y = images(50)
    streamed = tf.data.Dataset.from_tensor_slices((x, y)).filter(lambda x, y: True)
    assert int(streamed.cardinality()) == tf.data.UNKNOWN_CARDINALITY
    result = job.evaluate(models[0], job.shard(streamed, job.batch(8, base_batch=8), training=False))
    assert result == pytest.approx(models[1].evaluate(x, y, verbose=0, return_dict=True), rel=1e-6)


def test_nothing_to_validate_with_is_an_error(job):
    batch = job.batch(8, base_batch=8)
    empty = tf.data.Dataset.from_tensor_slices((X, Y)).filter(lambda x, y: False)
    for nothing in ((X[:0], Y[:0]), tf.data.Dataset.range(0), empty):
        with pytest.raises(ConfigurationError, match="at least one sample"):
            job.shard(nothing, batch, training=False)


def test_padding_needs_labels_to_weigh(job):
    with pytest.raises(ConfigurationError, match=r"\(x, y\) or \(x, y, sample_weight\)"):
        job.shard(tf.data.Dataset.range(3), job.batch(8, base_batch=8), training=False)


@pytest.mark.replicas
def test_batch_normalization_trains_and_validates_with_remainders(job):
    """A last batch of 2 samples on 4 replicas crashes a CNN, or makes the statistics NaN, in plain Keras."""
    x, y = images(34)
    batch = job.batch(2, base_batch=8, samples_per_epoch=34)
    with job.scope():
        model = build_model()
        optimizer = job.optimizer(keras.optimizers.SGD(0.01), batch)
        model.compile(optimizer, loss=keras.losses.SparseCategoricalCrossentropy(True), jit_compile=False)
    train, valid = job.shard((x, y), batch), job.shard((x, y), batch, training=False)
    history = model.fit(
        train, epochs=2, validation_data=valid, callbacks=job.callbacks(), shuffle=False, verbose=0
    ).history
    assert np.isfinite(history["loss"] + history["val_loss"]).all()
    assert all(np.isfinite(weight.numpy()).all() for weight in model.weights)
    assert optimizer.samples_seen == 2 * 34


def test_ranks_that_name_no_seed_have_one_order() -> None:
    """Rank 0 draws it: with an order of each rank's own, samples would be trained twice and others never."""

    def epoch(comm) -> list[int]:
        job = Job(tf.distribute.get_strategy(), "horovod", comm)
        batch = job.batch(per_replica=2, base_batch=2, samples_per_epoch=32)
        x = np.arange(32)
        return [int(value) for values, _ in job.shard((x, x), batch) for value in values.numpy()]

    first, second = run_ranks(epoch, 2, timeout=30.0)
    assert len(first) == len(second) == 16
    assert sorted(first + second) == list(range(32))
