"""Changes by hand on several ranks: the same update on each, and nothing exchanged while nobody asks."""

from __future__ import annotations

import pathlib

import keras
import pytest

from distlr.runlog.control_requests import ControlDirectory, Request
from distlr.runlog.directory import RunDirectory

STEPS, EVERY = 8, 2


class Watch(keras.callbacks.Callback):
    """Asks on rank 0 after the given number of batches, and keeps the rate of each update on every rank."""

    def __init__(self, job, run_dir, requests) -> None:
        super().__init__()
        self.job, self.directory, self.requests = job, ControlDirectory(run_dir), requests
        self.rates: list[float] = []

    def on_train_batch_begin(self, batch, logs=None):
        self.rates.append(float(self.model.optimizer.learning_rate))

    def on_train_batch_end(self, batch, logs=None):
        if self.job.is_root and len(self.rates) in self.requests:
            self.directory.ask(self.requests[len(self.rates)])


@pytest.fixture
def steered(job, tmp_path_factory, local_data):
    """Fits on every rank, with requests by the number of batches; gives the rates, the run and the collectives."""

    def fit(requests, epochs: int = 2):
        run_dir = pathlib.Path(job.communicator.broadcast_json(str(tmp_path_factory.mktemp("run")), tag="folder"))
        keras.utils.set_random_seed(0)
        batch = job.batch(per_replica=1, base_batch=job.replicas, samples_per_epoch=STEPS * job.replicas)
        with job.scope():
            model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            model.compile(job.optimizer(keras.optimizers.SGD(0.1), batch), "mse")
        watch = Watch(job, run_dir, requests)
        callbacks = job.callbacks([watch], run_dir=run_dir)
        for callback in callbacks:
            callback.every = EVERY if hasattr(callback, "bind_plateau") else getattr(callback, "every", None)
        before = job.communicator.log.total
        data = local_data(([[1.0, 2.0]] * STEPS, [[0.5]] * STEPS), 1)
        model.fit(data, epochs=epochs, verbose=0, shuffle=False, callbacks=callbacks)
        collectives = job.communicator.log.total - before
        job.communicator.barrier(tag="the run is written")
        return watch.rates, RunDirectory(run_dir).read(), collectives

    return fit


def test_every_rank_changes_at_the_same_update(job, steered, same_on_all) -> None:
    rates, run, _ = steered({3: Request("set-lr", multiply=0.5), 9: Request("stop")})
    rates = same_on_all(rates)
    # Found after the 4th batch; the 5th update carries it to all, who hear of it after the 6th. A stop is agreed on
    # once more, with the 13th, since a callback of the test's own looks at the batches and could have stopped one
    # rank.
    assert rates == pytest.approx([0.1] * 6 + [0.05] * 7)
    assert [(d["action"], d["samples_seen"] // job.replicas) for d in run.decisions] == [("set-lr", 6), ("stop", 12)]
    assert run.epochs[-1]["agreement"]["ranks"] == job.size


def test_at_an_epoch_and_refused(steered, same_on_all) -> None:
    rates, run, _ = steered({3: Request("set-lr", to=0.01, at_epoch=2), 4: Request("set-lr", to=1e4)})
    assert same_on_all(rates) == pytest.approx([0.1] * 8 + [0.01] * 8)
    assert [d["kind"] for d in run.decisions] == ["asked", "refused", "control"]


def test_nothing_is_exchanged_while_nobody_asks(steered) -> None:
    _, _, four = steered({}, epochs=4)
    _, _, two = steered({}, epochs=2)
    assert (four - two) / 2 <= 4
    _, _, with_request = steered({3: Request("set-lr", multiply=0.5)}, epochs=2)
    assert with_request == two + 1
