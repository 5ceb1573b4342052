"""A NaN on one rank, and a signal to one rank: all ranks do the same at the same step."""

from __future__ import annotations

import os
import signal

import keras
import numpy as np
import pytest

import distlr
from distlr.callbacks import Checkpoint, NonFiniteGuard
from distlr.errors import DistlrError, NonFiniteError

STEPS, PER_RANK = 6, 4


def data(job, poisoned_rank=None, step=3):
    """Arrays for all ranks, in order; the poisoned rank's part of one step has a NaN."""
    x = np.random.default_rng(0).normal(size=(STEPS * PER_RANK * job.size, 3)).astype("float32")
    y = x.sum(axis=1, keepdims=True)
    if poisoned_rank is not None:
        x[step * PER_RANK * job.size + poisoned_rank * PER_RANK] = np.nan
    return x, y


def fit(job, arrays, *callbacks, epochs=1, accumulation=None):
    keras.utils.set_random_seed(0)
    steps = accumulation or 1
    batch = job.batch(PER_RANK // steps, accumulation=steps, base_batch=PER_RANK, samples_per_epoch=len(arrays[0]))
    with job.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        plain = keras.optimizers.SGD(0.01, momentum=0.9, gradient_accumulation_steps=accumulation)
        model.compile(job.optimizer(plain, batch), "mse")
    training = job.shard(arrays, batch, shuffle=False)
    model.fit(training, epochs=epochs, callbacks=job.callbacks(list(callbacks)), verbose=0, shuffle=False)
    return model


def test_all_ranks_leave_out_the_step_in_which_one_has_a_nan(job, same_on_all) -> None:
    arrays = data(job, poisoned_rank=job.size - 1)
    model = fit(job, arrays, NonFiniteGuard("skip"))
    optimizer = model.optimizer
    same_on_all(job.weights_digests(model))
    assert same_on_all([int(optimizer.iterations.numpy()), optimizer.distlr.gradients.bad_steps]) == [STEPS - 1, 1]
    left = [i for i in range(len(arrays[0])) if i // (PER_RANK * job.size) != 3]
    expected = fit(job, tuple(array[left] for array in arrays))
    for actual, other in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(actual, other, rtol=1e-5)


def test_all_ranks_go_back_together(job, same_on_all) -> None:
    starts = []

    class Start(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            starts.append(self.model.get_weights()[0].copy())

        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                np.testing.assert_array_equal(self.model.get_weights()[0], starts[-1])

    model = fit(job, data(job, poisoned_rank=0), NonFiniteGuard("backtrack", factor=0.5), Start(), epochs=2)
    assert same_on_all(model.optimizer.multiplier) == 0.25
    same_on_all(job.weights_digests(model))


def test_every_rank_raises_at_the_step(job, same_on_all) -> None:
    with pytest.raises(NonFiniteError, match="At batch 4 of epoch 1 a gradient is not finite"):
        fit(job, data(job, poisoned_rank=job.size - 1), NonFiniteGuard(each_step=True))
    job.communicator.barrier(tag="all have raised")


def test_a_signal_after_the_last_update_ends_all_once_it_is_written(job, tmp_path_factory) -> None:
    directory = job.communicator.broadcast_json(str(tmp_path_factory.mktemp("run")), tag="directory")

    class Signal(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if job.rank == job.size - 1:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        fit(job, data(job), Signal(), Checkpoint(directory, every="9ep"))
    assert ended.value.code == 143
    assert f"step-{STEPS:012d}.safetensors" in os.listdir(directory)


def test_what_rank_0_cannot_load_is_told_to_all(job, tmp_path_factory) -> None:
    directory = job.communicator.broadcast_json(str(tmp_path_factory.mktemp("run")), tag="directory")
    fit(job, data(job), Checkpoint(directory))
    with pytest.raises(DistlrError, match="does not fit the optimizer"):
        fit(job, data(job), Checkpoint(directory), epochs=2, accumulation=2)
    job.communicator.barrier(tag="all have raised")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_rank_is_one_to_all(job, same_on_all, tmp_path_factory, number) -> None:
    shared = job.communicator.broadcast_json(str(tmp_path_factory.mktemp("run")), tag="directory")

    class Signal(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2 and job.rank == job.size - 1:
                os.kill(os.getpid(), number)

    directory = os.path.join(shared, "checkpoints")
    checkpoint = Checkpoint(directory, every="9ep")
    if number == signal.SIGTERM:
        with pytest.raises(SystemExit) as ended:
            fit(job, data(job), Signal(), checkpoint)
        assert ended.value.code == 143
    else:
        fit(job, data(job), Signal(), checkpoint)
    names = sorted(name for name in os.listdir(directory) if name.startswith("step-")) if job.is_root else []
    if job.is_root:  # heard at the update after it; and the end of the run that went on
        ends = [STEPS] if number == signal.SIGUSR1 else []
        assert names == [f"step-{step:012d}.safetensors" for step in (4, *ends)]
    same_on_all(distlr.__version__)
