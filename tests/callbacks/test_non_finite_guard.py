"""A NaN: the training ends, or every replica leaves the step out, or all go back."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr.callbacks import NonFiniteGuard
from distlr.errors import ConfigurationError, NonFiniteError

STEPS, PER_STEP = 6, 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(STEPS * PER_STEP, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)
BAD = 3  # the batch with a NaN, of which another replica than the first has it


class Rates(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, float]] = []
        self.weights: list[np.ndarray] = []

    def on_train_batch_end(self, batch, logs=None):
        optimizer = self.model.optimizer
        self.seen.append((optimizer.samples_seen, float(optimizer.learning_rate)))
        self.weights.append(self.model.get_weights()[0])


def poisoned(value: float = np.nan, sample: int = PER_STEP - 1) -> np.ndarray:
    x = X.copy()
    x[BAD * PER_STEP + sample] = value
    return x


def fit(x, y, *callbacks, replicas=1, epochs=1, accumulation=1, optimizer=None, rate=None, samples=STEPS * PER_STEP):
    keras.utils.set_random_seed(0)
    job = distlr.init(environ={}, simulate=replicas if replicas > 1 else None)
    batch = job.batch(PER_STEP // replicas, base_batch=PER_STEP, samples_per_epoch=samples, accumulation=accumulation)
    with job.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(1)])
        accumulate = {"gradient_accumulation_steps": accumulation} if accumulation > 1 else {}
        schedule = rate or keras.optimizers.schedules.CosineDecay(0.05, 40)
        plain = optimizer or keras.optimizers.Adam(schedule, weight_decay=0.01, **accumulate)
        model.compile(job.optimizer(plain, batch), "mse")
    rates = Rates()
    history = model.fit(
        job.shard((x, y), batch, shuffle=False),
        epochs=epochs,
        callbacks=job.callbacks([*callbacks, rates]),
        verbose=0,
        shuffle=False,
    )
    return model, rates, history.history


@pytest.mark.parametrize("each_step", [False, True])
def test_the_training_ends_by_default(each_step) -> None:
    callbacks = [NonFiniteGuard(each_step=True)] if each_step else []
    rates = Rates()
    when = "batch 4 of epoch 1 a gradient is not finite" if each_step else "the end of epoch 1 loss is nan"
    with pytest.raises(NonFiniteError, match=f"At {when}"):
        fit(poisoned(), Y, *callbacks, rates)
    if each_step:
        assert np.isfinite(rates.weights).all()


def test_a_metric_that_may_be_nan() -> None:
    def undefined(y, p):
        return y[:, 0] * np.nan

    job = distlr.init(environ={})
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(job.optimizer(keras.optimizers.SGD(0.01)), "mse", metrics=[undefined])
    fits = {"x": X, "y": Y, "verbose": 0}
    with pytest.raises(NonFiniteError, match="undefined is nan"):
        model.fit(**fits, callbacks=job.callbacks())
    model.fit(**fits, callbacks=job.callbacks([NonFiniteGuard(ignore=["undefined"])]))
    plateau = distlr.callbacks.ReduceLROnPlateau("undefined", mode="min", on_nan="ignore")
    model.fit(**fits, callbacks=job.callbacks([plateau]))
    model.fit(**fits, callbacks=job.callbacks([keras.callbacks.TerminateOnNaN()]))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_that_is_skipped_is_as_if_it_had_not_been(value, caplog) -> None:
    model, rates, history = fit(poisoned(value), Y, NonFiniteGuard("skip"))
    left = [i for i in range(len(X)) if i // PER_STEP != BAD]
    expected, expected_rates, _ = fit(X[left], Y[left], samples=STEPS * PER_STEP - PER_STEP)
    for actual, other in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, other)
    assert [pair for i, pair in enumerate(rates.seen) if i != BAD] == expected_rates.seen
    assert rates.seen[BAD] == rates.seen[BAD - 1]
    assert int(model.optimizer.iterations.numpy()) == STEPS - 1
    assert np.isfinite(history["loss"]).all()
    assert "At batch 4 of epoch 1 a gradient is not finite: the step is left out (1 of at most 10)." in caplog.text


@pytest.mark.replicas
@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_overflow_on_one_replica_alone(four_cpus, accumulation) -> None:
    """All leave the step out, and with accumulation the part of one."""
    options = {"accumulation": accumulation, "rate": 0.05}
    model, _, _ = fit(poisoned(), Y, NonFiniteGuard("skip"), replicas=4, **options)
    left = [i for i in range(len(X)) if i // PER_STEP != BAD]
    expected, _, _ = fit(X[left], Y[left], samples=len(left), **options)
    for actual, other in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(actual, other, rtol=1e-4, atol=1e-6)
    copies = model.distribute_strategy.experimental_local_results(model.weights[0].value)
    assert len({copy.numpy().tobytes() for copy in copies}) == 1
    assert int(model.optimizer.iterations.numpy()) == (STEPS - 1) // accumulation


def test_backtracking_returns_to_the_epochs_start_at_a_lower_rate(caplog) -> None:
    """The NaN is in the second epoch: in the data of every one, and the first has its own."""
    calls = []

    class Once(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            calls.append([weight.copy() for weight in self.model.get_weights()])

    model, rates, history = fit(poisoned(), Y, NonFiniteGuard("backtrack", factor=0.25), Once(), epochs=2)
    assert model.optimizer.multiplier == 0.25**2
    np.testing.assert_array_equal(rates.weights[BAD], calls[0][0])
    np.testing.assert_array_equal(rates.weights[STEPS + BAD], calls[1][0])
    assert np.abs(calls[1][0] - calls[0][0]).max() > 0
    assert np.isfinite(history["loss"]).all()
    assert "back to the weights of the epoch's start, at 0.25 of the rate (2 of at most 10)" in caplog.text
    full = keras.optimizers.schedules.CosineDecay(0.05, 40)
    assert rates.seen[BAD][1] == pytest.approx(0.25 * float(full(BAD)), rel=1e-5)


def test_a_loss_that_is_not_finite_though_the_gradients_are(caplog) -> None:
    def loss(y, p):
        return tf.where(y > 1e6, tf.stop_gradient(p) + np.inf, (y - p) ** 2)

    y = Y.copy()
    y[BAD * PER_STEP] = 1e9
    job = distlr.init(environ={})
    batch = job.batch(PER_STEP, base_batch=PER_STEP, samples_per_epoch=len(X))
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(job.optimizer(keras.optimizers.SGD(0.01), batch), loss)
    callbacks = job.callbacks([NonFiniteGuard("skip")])
    model.fit(job.shard((X, y), batch, shuffle=False), callbacks=callbacks, verbose=0, shuffle=False)
    assert "At batch 4 of epoch 1 the loss is not finite" in caplog.text


def test_the_number_is_bounded() -> None:
    with pytest.raises(NonFiniteError, match="the 3th time in this run, and the limit is 2"):
        fit(poisoned(), Y, NonFiniteGuard("skip", limit=2), epochs=4)
    with pytest.raises(NonFiniteError, match="the limit is 2"):
        fit(X, Y, NonFiniteGuard("skip", limit=2), epochs=4, optimizer=keras.optimizers.SGD(1e30))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="`policy` must be one of 'raise', 'skip', 'backtrack'"):
        NonFiniteGuard("ignore")
    with pytest.raises(ConfigurationError, match="`factor` must be at most 1"):
        NonFiniteGuard("backtrack", factor=2)
    job = distlr.init(environ={})
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    with pytest.raises(ConfigurationError, match="`policy` must be 'raise' with a plain Keras optimizer"):
        model.fit(X, Y, callbacks=job.callbacks([NonFiniteGuard("skip")]), verbose=0)


def test_a_plateau_returns_to_the_best_weights() -> None:
    """`restore_best`: the weights after each cut are those of the best epoch, slots and all."""
    ends: list[np.ndarray] = []
    starts: list[np.ndarray] = []

    class Metric(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            starts.append(self.model.get_weights()[0])

        def on_epoch_end(self, epoch, logs=None):
            ends.append(self.model.get_weights()[0])
            logs["mine"] = [3.0, 1.0, 2.0, 2.0, 2.0][epoch]

    plateau = distlr.callbacks.ReduceLROnPlateau("mine", factor=0.5, patience=2, mode="min", restore_best=True)
    model, _, _ = fit(X, Y, Metric(), plateau, epochs=5)
    assert [decision["epoch"] for decision in plateau.decisions] == [3]
    np.testing.assert_array_equal(starts[4], ends[1])
    assert np.abs(ends[3] - ends[1]).max() > 0
    assert model.optimizer.multiplier == 0.5


def test_one_value_of_several_that_is_not_finite_is_found() -> None:
    """A metric such as F1Score(average=None) is an array in the logs."""
    callback = NonFiniteGuard()
    callback.set_model(model := keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]))
    model.compile("sgd", "mse")
    callback.on_epoch_end(0, {"f1": np.array([0.5, 0.25]), "loss": 1.0, "note": "no number"})
    with pytest.raises(NonFiniteError, match="f1 is"):
        callback.on_epoch_end(1, {"f1": np.array([0.5, np.nan]), "loss": 1.0})


def test_the_limit_is_of_the_run_and_not_of_a_process(tmp_path) -> None:
    """Each of three processes trains one epoch, in which two steps are lost; two at the end of none are another's."""
    x = poisoned()
    x[PER_STEP] = np.nan  # in the second step as well

    def process(epochs: int, policy: str = "skip"):
        job = distlr.init(environ={})
        batch = job.batch(per_replica=PER_STEP, base_batch=PER_STEP, samples_per_epoch=len(x))
        with job.scope():
            model = keras.Sequential([keras.Input((x.shape[1],)), keras.layers.Dense(1)])
            model.compile(job.optimizer(keras.optimizers.SGD(0.01), batch), "mse")
        bad = NonFiniteGuard(policy, limit=5)
        callbacks = job.callbacks([bad, distlr.callbacks.Checkpoint(tmp_path)])
        data = job.shard((x, np.ones((len(x), 1), "float32")), batch, shuffle=False)
        error = None
        try:
            model.fit(data, epochs=epochs, callbacks=callbacks, shuffle=False, verbose=0)
        except NonFiniteError as raised:
            error = str(raised)
        return bad.count, error

    assert process(1) == (2, None)
    assert process(2) == (4, None)
    assert process(2) == (4, None)  # nothing is left to train
    count, error = process(3, "backtrack")  # under another policy, too
    assert count == 6
    assert "the 6th time in this run, and the limit is 5" in error


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.replicas)])
@pytest.mark.parametrize("bad", [0, 3, STEPS - 1])
def test_the_metrics_are_those_of_the_other_steps(four_cpus, bad, replicas) -> None:
    """The loss is that of plain Keras without that batch; 0 would be the best loss that a decider ever sees."""
    x = X.copy()
    x[bad * PER_STEP] = np.nan
    _, _, history = fit(x, Y, NonFiniteGuard("skip"), replicas=replicas, epochs=2, rate=0.05)
    keras.utils.set_random_seed(0)
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    plain.compile(keras.optimizers.Adam(0.05, weight_decay=0.01), "mse")
    rest = np.delete(np.arange(len(X)), np.s_[bad * PER_STEP : (bad + 1) * PER_STEP])
    expected = plain.fit(X[rest], Y[rest], batch_size=PER_STEP, epochs=2, shuffle=False, verbose=0).history
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)
