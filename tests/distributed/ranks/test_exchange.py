"""The exchange of gradients: what it averages, when, and what it refuses."""

from __future__ import annotations

import gc

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr.errors import ConfigurationError, DistributionError


class OneWeight(keras.Model):
    """Something that `job.broadcast` takes: a model of the given values."""

    def __init__(self, *values) -> None:
        super().__init__()
        self.kept = [
            self.add_weight(name=f"w{i}", shape=np.shape(v), initializer=keras.initializers.Constant(v))
            for i, v in enumerate(values)
        ]
        self.built = True


def adopted(job, *values, optimizer=None, **options):
    """A model of these weights, and an optimizer that may take steps."""
    model = OneWeight(*values)
    optimizer = job.optimizer(keras.optimizers.SGD(1.0) if optimizer is None else optimizer, **options)
    optimizer.build(model.trainable_variables)
    job.broadcast(model, optimizer)
    return model, optimizer


def stepper(optimizer, model, in_graph: bool):
    """Applies gradients to the model's weights, eagerly or in graph."""

    def apply(gradients) -> None:
        optimizer.apply(gradients, model.trainable_variables)

    return tf.function(apply) if in_graph else apply


def ranks_mean(job, of=lambda rank: rank):
    return sum(of(rank) for rank in range(job.size)) / job.size


@pytest.mark.parametrize("in_graph", [False, True])
def test_dense_gradients_are_averaged(job, in_graph) -> None:
    model, optimizer = adopted(job, [0.0, 0.0], [[0.0]])
    apply = stepper(optimizer, model, in_graph)
    for _ in range(3):
        apply([tf.constant([1.0, 2.0]) * job.rank, tf.constant([[10.0]]) * (job.rank + 1)])
    mean = ranks_mean(job)
    np.testing.assert_allclose(model.kept[0].numpy(), [-3 * mean, -6 * mean], rtol=1e-6)
    np.testing.assert_allclose(model.kept[1].numpy(), [[-30 * (mean + 1)]], rtol=1e-6)


@pytest.mark.parametrize("gated", [False, True])
def test_the_updates_of_one_graph_are_exchanged_one_after_the_other(job, gated) -> None:
    """This holds even if no gradient depends on the update before: a critic's by its last bias is a constant."""
    many = 8
    model, optimizer = adopted(job, np.zeros(100_000, "float32"), [0.0])
    if gated:
        optimizer.distlr.gradients.leave_out_bad_steps()

    @tf.function
    def step(gradient):
        for _ in range(many):  # unrolled: so many updates in one graph
            optimizer.apply([tf.fill([100_000], gradient), tf.fill([1], gradient)], model.trainable_variables)

    for _ in range(3):
        step(tf.constant(1.0 + job.rank))
    mean = 3 * many * ranks_mean(job, lambda rank: 1.0 + rank)
    np.testing.assert_allclose(model.kept[0].numpy(), -mean, rtol=1e-6)
    np.testing.assert_allclose(model.kept[1].numpy(), [-mean], rtol=1e-6)


def test_a_gradient_that_is_none_stays_none(job) -> None:
    model, optimizer = adopted(job, [5.0], [7.0])
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([None, tf.constant([1.0 + job.rank])], model.trainable_variables)
    assert model.kept[0].numpy().tolist() == [5.0]
    np.testing.assert_allclose(model.kept[1].numpy(), [6.0 - ranks_mean(job)])


def test_sparse_gradients_are_averaged_row_by_row(job) -> None:
    model, optimizer = adopted(job, np.zeros((4, 2), "float32"))

    @tf.function
    def step(rows, value):
        slices = tf.IndexedSlices(tf.fill([tf.size(rows), 2], value), rows, tf.constant([4, 2]))
        optimizer.apply([slices], model.trainable_variables)

    # A number of rows of its own on each rank; row 0 on all of them.
    step(tf.range(job.rank + 1), tf.constant(float(job.rank + 1)))
    expected = [-sum(rank + 1 for rank in range(job.size) if rank >= row) / job.size for row in range(4)]
    np.testing.assert_allclose(model.kept[0].numpy(), np.repeat(np.array(expected)[:, None], 2, axis=1), rtol=1e-6)


def test_clipping_comes_after_the_average(job) -> None:
    model, optimizer = adopted(job, [0.0, 0.0], optimizer=keras.optimizers.SGD(1.0, global_clipnorm=1.0))
    optimizer.apply([tf.constant([30.0, 40.0]) * (job.rank + 1)], model.trainable_variables)
    np.testing.assert_allclose(model.kept[0].numpy(), [-0.6, -0.8], rtol=1e-5)


def test_accumulated_gradients_are_exchanged_once_an_update(job) -> None:
    options = {"gradient_accumulation_steps": 2}
    model, optimizer = adopted(job, [0.0], optimizer=keras.optimizers.SGD(1.0, **options))
    calls = []
    average = optimizer.distlr.gradients.reducer.average
    optimizer.distlr.gradients.reducer.average = lambda *arguments: calls.append(1) or average(*arguments)
    for step in range(4):
        optimizer.apply([tf.constant([1.0 + step + job.rank])], model.trainable_variables)
    mean = ranks_mean(job)
    np.testing.assert_allclose(model.kept[0].numpy(), [-(1.5 + mean) - (3.5 + mean)], rtol=1e-6)
    assert len(calls) == 2


def test_fp16_compression(job, same_on_all) -> None:
    model, optimizer = adopted(job, [0.0, 0.0, 0.0], compression="fp16")
    optimizer.apply([tf.constant([1 / 3, 1e-3, 100.0]) * (1 + job.rank)], model.trainable_variables)
    expected = -np.array([1 / 3, 1e-3, 100.0]) * (1 + ranks_mean(job))
    gradient = model.kept[0].numpy()
    np.testing.assert_allclose(gradient, expected, rtol=2e-3)
    assert model.kept[0].dtype == "float32"
    assert (gradient != expected.astype("float32")).any(), "nothing was compressed"
    same_on_all(gradient.tolist())


def test_unknown_compression_is_refused(job) -> None:
    with pytest.raises(ConfigurationError, match="compression='int8'"):
        job.optimizer(keras.optimizers.SGD(1.0), compression="int8")


def test_without_exchange_the_gradients_are_the_ranks_own(job) -> None:
    model, optimizer = adopted(job, [0.0], exchange=False)
    optimizer.apply([tf.constant([float(job.rank)])], model.trainable_variables)
    assert model.kept[0].numpy().tolist() == [-float(job.rank)]


def test_an_extra_model_and_optimizer_on_one_rank_pair_right(job) -> None:
    if job.rank == 0:
        OneWeight([1.0])
        keras.optimizers.SGD(0.5)
    test_dense_gradients_are_averaged(job, in_graph=True)


def test_an_optimizer_that_was_saved_averages_after_the_broadcast(job, tmp_path) -> None:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(job.optimizer(keras.optimizers.SGD(1.0)), "mse")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    job.broadcast(loaded, loaded.optimizer)
    before = loaded.get_weights()[0].item()
    loaded.optimizer.apply([tf.constant([[float(job.rank)]])], loaded.trainable_variables)
    np.testing.assert_allclose(loaded.get_weights()[0].item(), before - ranks_mean(job), rtol=1e-6)


@pytest.mark.parametrize("in_graph", [False, True])
def test_the_first_step_before_a_broadcast_is_refused(job, in_graph) -> None:
    model = OneWeight([0.0])
    optimizer = job.optimizer(keras.optimizers.SGD(1.0))
    apply = stepper(optimizer, model, in_graph)
    with pytest.raises(DistributionError, match=r"never broadcast.*job\.callbacks.*job\.broadcast"):
        apply([tf.constant([1.0])])
    assert int(optimizer.iterations.numpy()) == 0


@pytest.mark.parametrize("wrapped", ["by the script", "by compile"])
def test_an_overflow_on_one_rank_makes_all_skip(job, same_on_all, wrapped) -> None:
    last = job.size - 1
    data = np.full((6, 1), 0.25, "float32"), np.zeros((6, 1), "float32")
    if job.rank == last:
        data[0][2:4] = 1e38  # of three steps the second overflows, on this rank alone
    batch = job.batch(per_replica=2, base_batch=2, samples_per_epoch=6 * job.size)
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")])
        plain = keras.optimizers.SGD(0.01)
        if wrapped == "by the script":
            plain = keras.optimizers.LossScaleOptimizer(plain)
        model.compile(job.optimizer(plain, batch), "mse")
    finally:
        keras.mixed_precision.set_global_policy("float32")
    model.fit(tf.data.Dataset.from_tensor_slices(data).batch(2), verbose=0, shuffle=False, callbacks=job.callbacks())
    weights = [weight.numpy().tolist() for weight in model.weights]
    assert np.isfinite(weights[0]).all()
    assert weights[0] != [[1.0]]
    same_on_all(weights)
    core = model.optimizer.inner_optimizer
    assert int(core.iterations.numpy()) == 2
    assert core.samples_seen == 4 * job.size
    assert float(model.optimizer.dynamic_scale.numpy()) == 2.0**14


def test_jit_compile_is_refused_and_auto_switched_off(job, caplog) -> None:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(job.optimizer(keras.optimizers.SGD(0.1)), "mse", jit_compile=True)
    with pytest.raises(ConfigurationError, match=r"jit_compile=True cannot work on \d ranks \(horovod\)"):
        model.fit(np.ones((4, 1)), np.ones((4, 1)), verbose=0, callbacks=job.callbacks())
    assert int(model.optimizer.iterations.numpy()) == 0
    model.compile(job.optimizer(keras.optimizers.SGD(0.1)), "mse")
    model.jit_compile = True  # what 'auto' becomes on a machine with a GPU
    model.fit(np.ones((4, 1)), np.ones((4, 1)), batch_size=2, verbose=0, callbacks=job.callbacks())
    assert model.jit_compile is False


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["dense", "embedding"])
def test_ranks_together_equal_one_process_on_the_whole_batch(job, kind, accumulation) -> None:
    """Twenty updates of a model without batch normalization and dropout, clipped by global norm."""
    size, updates, features = 6 * job.size, 20, 5
    generator = np.random.default_rng(1)
    shape = (updates * accumulation, size, features)
    x = generator.normal(size=shape) if kind == "dense" else generator.integers(0, 7, shape)
    x = x.astype("float32" if kind == "dense" else "int32")
    y = generator.normal(size=(*shape[:2], 1)).astype("float32")

    def model():
        keras.utils.set_random_seed(3)
        first = [] if kind == "dense" else [keras.layers.Embedding(7, 3), keras.layers.Flatten()]
        layers = [*first, keras.layers.Dense(8, "tanh"), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)]
        return keras.Sequential([keras.Input((features,), dtype=x.dtype.name), *layers])

    def sgd():
        steps = accumulation if accumulation > 1 else None
        return keras.optimizers.SGD(0.05, momentum=0.9, global_clipnorm=0.7, gradient_accumulation_steps=steps)

    whole = model()
    whole.compile(sgd(), "mse")
    shared = model()
    shared.compile(job.optimizer(sgd()), "mse")
    whole.fit(x.reshape(-1, features), y.reshape(-1, 1), batch_size=size, shuffle=False, verbose=0)
    columns = slice(job.rank * 6, job.rank * 6 + 6)
    local_samples = x[:, columns].reshape(-1, features), y[:, columns].reshape(-1, 1)
    shared.fit(*local_samples, batch_size=6, shuffle=False, verbose=0, callbacks=job.callbacks())
    assert int(shared.optimizer.iterations.numpy()) == updates
    for a, b in zip(whole.weights, shared.weights, strict=True):
        error = np.linalg.norm(a.numpy() - b.numpy()) / np.linalg.norm(a.numpy())
        assert error < 1e-5


# -- what cannot be where all workers make each variable and take each step together


def test_different_models_are_refused_on_every_rank(job) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1 + (job.rank == 1)), keras.layers.Dense(1)])
    model.compile(job.optimizer(keras.optimizers.SGD(0.1)), "mse")
    with pytest.raises(DistributionError, match=r"they differ in variables: .*\(2, 1\).*\(2, 2\)"):
        model.fit(np.ones((2, 2)), np.ones((2, 1)), verbose=0, callbacks=job.callbacks())
    assert int(model.optimizer.iterations.numpy()) == 0


@pytest.mark.parametrize("every", [None, 3])  # the shorter ranks' data ends where all have just compared
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_data_of_unknown_length_is_compared_at_the_epochs_end(job, simple, every) -> None:
    def generator(batches):
        for _ in range(batches):
            yield np.ones((2, 2), "float32"), np.ones((2, 1), "float32")

    def run(batches):
        model = simple()
        signature = (tf.TensorSpec((2, 2)), tf.TensorSpec((2, 1)))
        stream = tf.data.Dataset.from_generator(lambda: generator(batches), output_signature=signature)
        callbacks = job.callbacks([distlr.callbacks.ReplicaGuard(every)])
        return model.fit(stream, epochs=2, verbose=0, shuffle=False, callbacks=callbacks)

    assert len(run(3).history["loss"]) == 2
    counted = 3 if every else 0
    pattern = f"after {3 - counted} updates; .* after {5 - counted} updates"
    with pytest.raises(DistributionError, match=rf"ended at different batches before .* of epoch 1.*{pattern}"):
        run(3 + 2 * (job.rank == job.size - 1))


def ends_early(job, steps) -> None:
    """Rank 0 takes all the steps, every other rank one less, and all come to a collective that tells them."""
    for step in steps if job.is_root else steps[:-1]:
        step()
    with pytest.raises(DistributionError, match=r"ended at different batches before barrier 'done'"):
        job.communicator.barrier(tag="done")
    job.communicator.barrier(tag="and all go on")


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("compression", ["none", "fp16"])
def test_a_rank_that_waits_takes_part_with_zeros(job, in_graph, compression) -> None:
    model, optimizer = adopted(job, [0.0, 0.0], [[0.0]], [0.0, 0.0], compression=compression)
    apply = stepper(optimizer, model, in_graph)
    ends_early(job, [lambda: apply([tf.ones(2), tf.ones([1, 1]), 2 * tf.ones(2)])] * 3)
    last = 1 / job.size if job.is_root else 0.0
    np.testing.assert_allclose(model.kept[0].numpy(), [-2 - last] * 2, rtol=1e-3)
    np.testing.assert_allclose(model.kept[1].numpy(), [[-2 - last]], rtol=1e-3)
    np.testing.assert_allclose(model.kept[2].numpy(), [-4 - 2 * last] * 2, rtol=1e-3)


def test_a_rank_that_waits_has_no_rows(job) -> None:
    model, optimizer = adopted(job, np.zeros((4, 2), "float32"), [0.0])

    @tf.function
    def step(values, rows, dense):  # arguments: what is exchanged of constants alone TensorFlow exchanges once
        optimizer.apply([tf.IndexedSlices(values, rows, tf.constant([4, 2])), dense], model.trainable_variables)

    ends_early(job, [lambda: step(tf.ones([1, 2]), tf.constant([3]), tf.ones(1))] * 2)
    np.testing.assert_allclose(model.kept[0].numpy()[3], [-1.0 - job.is_root / job.size] * 2, rtol=1e-6)


def test_a_rank_waits_for_all_optimizers_at_once(job) -> None:
    pairs = [adopted(job, [0.0]) for _ in range(3)]
    first, second, third = (stepper(optimizer, model, True) for model, optimizer in pairs)
    both = [lambda: first([tf.ones(1)]), lambda: second([tf.ones(1)])]
    third([tf.ones(1)])
    ends_early(job, both * 2)
    ends_early(job, [*both, both[1], both[0]])
    late = job.is_root / job.size  # what rank 0 does while the others wait, of each of the two once
    for (model, _), expected in zip(pairs, (-3 - late, -3 - late, -1), strict=True):
        np.testing.assert_allclose(model.kept[0].numpy(), [expected], rtol=1e-6)


def test_an_optimizer_that_is_gone_is_used_no_more(job) -> None:
    def exchanges() -> int:
        gc.collect()
        job.communicator.barrier(tag="who is gone goes")
        return len(job.communicator._reducers)

    def train() -> int:
        model, optimizer = adopted(job, [0.0])
        stepper(optimizer, model, True)([tf.ones(1)])
        return exchanges()

    train()  # the job keeps its first optimizer, to explain it
    before = exchanges()
    assert train() == before + 1
    assert exchanges() == before


def test_updates_of_an_optimizer_that_is_gone_on_one_rank_alone_are_reported(job) -> None:
    def train():
        model, optimizer = adopted(job, [0.0])
        stepper(optimizer, model, True)([tf.ones(1)])
        return optimizer if job.is_root else None  # Python collects on each rank when it likes

    adopted(job, [0.0])  # the job keeps its first optimizer, to explain it
    kept_optimizer = train()
    gc.collect()
    job.communicator.barrier(tag="with the updates of both")
    assert (kept_optimizer is not None) == job.is_root
    job.communicator.barrier(tag="and all go on")


def test_a_rank_that_waits_knows_a_shape_that_the_gradient_has_lost(job) -> None:
    model, optimizer = adopted(job, [0.0, 0.0])
    step = tf.function(lambda gradient: optimizer.apply([gradient], model.trainable_variables))
    traced = step.get_concrete_function(tf.TensorSpec(None, tf.float32))
    ends_early(job, [lambda: traced(tf.ones(2))] * 2)
    np.testing.assert_allclose(model.kept[0].numpy(), [-1 - job.is_root / job.size] * 2, rtol=1e-6)


@pytest.mark.parametrize("in_graph", [False, True])
def test_where_a_rank_waits_the_others_leave_watched_steps_out(job, in_graph) -> None:
    model, optimizer = adopted(job, [0.0])
    optimizer.distlr.gradients.leave_out_bad_steps()
    apply = stepper(optimizer, model, in_graph)
    ends_early(job, [lambda: apply([tf.ones(1)])] * 3)
    assert model.kept[0].numpy().tolist() == [-2.0]
    assert optimizer.distlr.gradients.bad_steps == int(job.is_root)
