"""A run saves and restores the training's weights, whatever is in the model meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal

import keras
import numpy as np
import pytest
from restarts import Killed

import distlr
from distlr.checkpoint.store import CheckpointDirectory, read_checkpoint
from distlr.optimizer import averages, training_values_of

pytestmark = pytest.mark.replicas

K = keras.callbacks
RATE, MOMENTUM, STEPS, EPOCHS = 0.05, 0.9, 3, 4
X = np.random.default_rng(0).normal(size=(8 * STEPS, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


class Watch(K.Callback):
    """Notes the weights that each step begins with; dies before an epoch."""

    def __init__(self, die_before: int | None) -> None:
        super().__init__()
        self.die_before = die_before
        self.begins: dict[tuple[int, int], list] = {}

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        if epoch == self.die_before:
            raise Killed

    def on_train_batch_begin(self, batch, logs=None):
        self.begins[self.epoch, batch] = self.model.get_weights()[0].ravel().tolist()


class Run:
    """One process of a job: everything is made anew."""

    def __init__(self, directory=None, *more, epochs=EPOCHS, die_before=None, replicas=1, **options):
        self.job = distlr.init(environ={}, simulate=replicas if replicas > 1 else None)
        batch = self.job.batch(total=8, base_batch=8, samples_per_epoch=len(X))
        loss_scale = options.pop("loss_scale", False)
        ema = {"use_ema": True, "ema_momentum": MOMENTUM} | options
        with self.job.scope():
            self.model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="zeros")])
            optimizer = keras.optimizers.SGD(RATE, **ema)
            if loss_scale:
                optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0)
            self.model.compile(self.job.optimizer(optimizer, batch), "mse")
        self.watch = Watch(die_before)
        self.data = self.job.shard((X, Y), batch, shuffle=False)
        self.valid = self.job.shard((X[:8], Y[:8]), batch, training=False)
        self.given = [*more, self.watch]
        if directory is not None:
            every = "1ep" if die_before is not None else "3ep"  # of the end nothing but the end is written
            self.given.append(distlr.callbacks.Checkpoint(directory, every, signals=["SIGTERM"]))
        self.callbacks = self.job.callbacks(self.given)
        with contextlib.suppress(Killed):
            self.fit(epochs)

    def fit(self, epochs, **more):
        return self.model.fit(
            self.data,
            epochs=epochs,
            validation_data=self.valid,
            callbacks=self.callbacks,
            shuffle=False,
            verbose=0,
            **more,
        )

    @property
    def weights(self):
        return self.model.get_weights()[0].ravel()


def by_hand(steps: int, overwrite: int | None = None) -> tuple[list[np.ndarray], np.ndarray]:
    """The kernel and the bias that each step begins with, and their averages at the end, of SGD in float64."""
    x = np.concatenate([X, np.ones((len(X), 1))], axis=1).astype(np.float64)
    weights, average, begins = np.zeros(4), np.zeros(4), []
    for step in range(steps):
        begins.append(weights[:3].copy())
        part = slice(8 * (step % STEPS), 8 * (step % STEPS) + 8)
        gradient = 2 * (x[part] @ weights - Y[part, 0]) @ x[part] / 8
        weights = weights - RATE * gradient
        average = weights if step == 0 else MOMENTUM * average + (1 - MOMENTUM) * weights
        if overwrite and (step + 1) % overwrite == 0:
            weights = average.copy()
    return begins, average[:3]


@pytest.fixture(scope="module")
def whole():
    """A run without anything that puts other weights into the model before its end, and no checkpoint."""
    return Run()


def test_the_whole_run_is_that_by_hand(whole) -> None:
    begins, average = by_hand(STEPS * EPOCHS)
    np.testing.assert_allclose(list(whole.watch.begins.values()), begins, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(whole.weights, average, rtol=1e-4)


def assert_part_of(run: Run, whole: Run, first: int) -> None:
    """To the bit: the epochs from `first` on, and the averages that both leave in the model."""
    assert run.watch.begins == {at: weights for at, weights in whole.watch.begins.items() if at[0] >= first}
    np.testing.assert_array_equal(run.weights, whole.weights)


SWAPS = {
    "nothing": lambda: [],
    "at tests": lambda: [K.SwapEMAWeights()],
    "at epochs": lambda: [K.SwapEMAWeights(swap_on_epoch=True)],
}


@pytest.mark.parametrize("swaps", SWAPS)
@pytest.mark.parametrize("how", ["killed", "ended"])
def test_a_run_goes_on_from_its_weights(tmp_path, whole, swaps, how) -> None:
    first = Run(tmp_path, *SWAPS[swaps](), **({"die_before": 2} if how == "killed" else {"epochs": 2}))
    if how == "ended":
        _, average = by_hand(2 * STEPS)
        np.testing.assert_allclose(first.weights, average, rtol=1e-4)  # what is left in the model
    assert_part_of(Run(tmp_path, *SWAPS[swaps]()), whole, first=2)


@pytest.mark.parametrize("options", [{"loss_scale": True}, {"ema_overwrite_frequency": 4}])
def test_inside_a_loss_scale_and_with_averages_that_are_written_over(tmp_path, options) -> None:
    whole = Run(**options)
    begins, _ = by_hand(STEPS * EPOCHS, options.get("ema_overwrite_frequency"))
    np.testing.assert_allclose(list(whole.watch.begins.values()), begins, rtol=1e-4, atol=1e-6)
    Run(tmp_path, K.SwapEMAWeights(swap_on_epoch=True), epochs=3, **options)
    assert_part_of(Run(tmp_path, K.SwapEMAWeights(swap_on_epoch=True), **options), whole, first=3)


@pytest.mark.replicas
def test_on_replicas(four_cpus, tmp_path) -> None:
    whole = Run(replicas=4)
    begins, _ = by_hand(STEPS * EPOCHS)
    np.testing.assert_allclose(list(whole.watch.begins.values()), begins, rtol=1e-4, atol=1e-6)
    Run(tmp_path, K.SwapEMAWeights(swap_on_epoch=True), replicas=4, die_before=2)
    resumed = Run(tmp_path, K.SwapEMAWeights(swap_on_epoch=True), replicas=4)
    assert_part_of(resumed, whole, first=2)
    assert len(set(resumed.job.weights_digests(resumed.model))) == 1


@pytest.mark.parametrize("swaps", SWAPS)
def test_a_further_fit_goes_on_from_the_weights_where_there_is_a_checkpoint(tmp_path, whole, swaps) -> None:
    run = Run(tmp_path, *SWAPS[swaps](), epochs=2)
    run.fit(EPOCHS, initial_epoch=2)
    assert_part_of(run, whole, first=0)


def test_a_further_fit_without_a_checkpoint_goes_on_from_the_averages_as_in_keras() -> None:
    run = Run(epochs=2)
    run.fit(EPOCHS, initial_epoch=2)
    assert run.watch.begins[2, 0] == pytest.approx(by_hand(2 * STEPS)[1].tolist(), rel=1e-4)


def test_weights_that_were_assigned_between_two_fits_are_the_ones_to_go_on_from(tmp_path) -> None:
    run = Run(tmp_path, epochs=2)
    run.model.set_weights([np.full((3, 1), 7.0), np.zeros(1)])
    run.fit(EPOCHS, initial_epoch=2)
    assert run.watch.begins[2, 0] == [7.0, 7.0, 7.0]


class SignalIn(K.Callback):
    """Ends the process in the validation of the second epoch."""

    tests = 0

    def on_test_batch_end(self, batch, logs=None):
        self.tests += 1
        if self.tests == 2:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("on_epoch", [False, True])
def test_a_signal_while_the_averages_are_in_the_model(tmp_path, whole, on_epoch) -> None:
    with pytest.raises(SystemExit):
        Run(tmp_path, K.SwapEMAWeights(on_epoch), SignalIn())
    assert_part_of(Run(tmp_path, K.SwapEMAWeights(on_epoch)), whole, first=2)


def test_an_interrupted_validation_leaves_averages_and_a_further_fit_takes_the_weights(whole) -> None:
    class Interrupt(K.Callback):
        def on_test_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations == STEPS and not getattr(self, "done", False):
                self.done = True
                raise Killed

    run = Run(None, K.SwapEMAWeights(), Interrupt())
    assert training_values_of(run.model.optimizer)
    run.fit(EPOCHS, initial_epoch=1)
    assert_part_of(run, whole, first=0)


def test_savers_of_keras(tmp_path, whole) -> None:
    """ModelCheckpoint has the averages, for use, BackupAndRestore the weights, to go on from."""
    make_savers = lambda: [  # noqa: E731
        K.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False),
        K.SwapEMAWeights(swap_on_epoch=True),
        K.ModelCheckpoint(tmp_path / "{epoch}.keras"),
    ]
    Run(None, *make_savers(), die_before=2)
    for epoch in (1, 2):
        saved = keras.saving.load_model(tmp_path / f"{epoch}.keras")
        average = by_hand(epoch * STEPS)[1]
        np.testing.assert_allclose(saved.get_weights()[0].ravel(), average, rtol=1e-4)
        saved_average = averages(saved.optimizer)[0][1]
        np.testing.assert_allclose(saved_average.numpy().ravel(), average, rtol=1e-4)
    assert_part_of(Run(None, *make_savers()), whole, first=2)


def test_a_run_that_is_stopped_early_ends_with_the_averages() -> None:
    """Keras exchanges once, then writes the weights over the averages."""
    stop = K.EarlyStopping("loss", patience=1, min_delta=1e9)
    run = Run(None, K.SwapEMAWeights(swap_on_epoch=True), stop)
    assert stop.stopped_epoch == 1
    np.testing.assert_allclose(run.weights, by_hand(2 * STEPS)[1], rtol=1e-4)


class Score(K.Callback):
    """A metric that is best in the first epoch."""

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = float(epoch)


def test_a_return_to_earlier_weights_while_the_averages_are_in_the_model() -> None:
    """`backtrack` copies as an epoch begins, `restore_best` where it ends: both before and after the exchange."""
    begins, _ = by_hand(2 * STEPS)
    best = distlr.callbacks.ReduceLROnPlateau("score", 0.5, patience=1, mode="min", restore_best=True)
    run = Run(None, K.SwapEMAWeights(swap_on_epoch=True), Score(), best, epochs=3)
    np.testing.assert_allclose(run.watch.begins[2, 0], begins[STEPS], rtol=1e-4)  # of the end of the first epoch
    x = X.copy()
    x[-1] = np.nan
    run = Run(None, K.SwapEMAWeights(swap_on_epoch=True), epochs=0)
    run.callbacks = run.job.callbacks([*run.given, distlr.callbacks.NonFiniteGuard("backtrack", factor=1.0)])
    run.fit(1)
    run.data = run.job.shard((x, Y), run.model.optimizer.distlr.batch, shuffle=False)
    run.fit(3, initial_epoch=1)
    assert run.watch.begins[2, 0] == pytest.approx(run.watch.begins[1, 0])  # back to where the second epoch began


# -- the best weights -------------------------------------------------------------------------------------


def stopping(patience: int) -> list:
    return [Score(), K.EarlyStopping("score", patience=patience, mode="min", restore_best_weights=True)]


def test_after_the_best_weights_a_run_goes_on_from_its_own_or_not_at_all(tmp_path) -> None:
    whole = Run(None, use_ema=False)
    begins, _ = by_hand(STEPS * EPOCHS)
    first = Run(tmp_path, *stopping(2), use_ema=False)  # stops after the third epoch
    best = whole.watch.begins[1, 0]
    assert first.weights.tolist() == best
    (path, *_) = CheckpointDirectory(tmp_path, 3).files()
    arrays, _ = read_checkpoint(path)
    np.testing.assert_allclose(arrays["weight/0"].ravel(), begins[3 * STEPS], rtol=1e-4)
    again = Run(tmp_path, *stopping(2), use_ema=False)
    assert again.watch.begins == {}
    assert again.weights.tolist() == best
    later = Run(tmp_path, *stopping(9), use_ema=False)
    assert_part_of_weights(later, whole, first=3)
    assert later.weights.tolist() == best


def assert_part_of_weights(run: Run, whole: Run, first: int) -> None:
    assert run.watch.begins == {at: weights for at, weights in whole.watch.begins.items() if at[0] >= first}


def test_a_further_fit_after_the_best_weights(tmp_path) -> None:
    whole = Run(None, use_ema=False)
    run = Run(tmp_path, *stopping(1), use_ema=False)
    run.given[1].best = np.inf  # before Keras 3.13 it is not reset as a `fit` begins
    run.fit(EPOCHS, initial_epoch=2)
    assert_part_of_weights(run, whole, first=0)


def test_an_unannounced_end_is_not_written_with_other_weights(tmp_path, caplog) -> None:
    class Stop(K.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    run = Run(tmp_path, epochs=0)
    run.callbacks = [*run.callbacks, Stop()]
    with caplog.at_level("WARNING", "distlr"):
        run.fit(EPOCHS)
    assert "a callback that is not among job.callbacks stopped it" in caplog.text
    assert CheckpointDirectory(tmp_path, 3).files() == []
