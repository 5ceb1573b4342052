"""Where a rank is lost, the error of those that are left says who speaks, and who is lost where that is known."""

from __future__ import annotations

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from distlr.callbacks import PreflightCheck
from distlr.communicators import ThreadGroup
from distlr.communicators.multi_worker.communicator import StrategyCommunicator
from distlr.strategies.engine_errors import explained
from distlr.strategies.workers import MultiWorker

# The errors of TensorFlow and Horovod when a rank was killed.
SOCKET_CLOSED = (
    "Collective ops is aborted by: Socket closed\nAdditional GRPC error information from remote target "
    "/job:worker/replica:0/task:1 while calling /tensorflow.WorkerService/RecvBuf:\n:UNKNOWN:Error received from peer"
)
SHUT_DOWN = "Horovod has been shut down. This was caused by an exception on one of the ranks or an attempt to allreduce"
BY_WATCHDOG = "Collective ops is aborted by: [rank 0] An update has waited for the other workers for 6 s"
SHAPES = "Incompatible shapes: [2] vs. [3]"


def workers(cluster: dict[str, list[str]], kind: str = "worker") -> StrategyCommunicator:
    """The communicator of one of these workers, which are not there."""
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster), task_type=kind, task_id=0
    )
    addresses = [address for kind in ("chief", "worker") for address in cluster.get(kind, [])]
    return StrategyCommunicator(types.SimpleNamespace(cluster_resolver=resolver), addresses, 0, 60)


def raised(communicator, error: tf.errors.OpError) -> tf.errors.OpError:
    with pytest.raises(type(error)) as caught, explained(communicator, "An update"):
        raise error
    return caught.value


@pytest.mark.parametrize(
    ("cluster", "kind", "lost"),
    [
        ({"worker": ["a:1", "b:1"]}, "worker", "rank 1 of 2"),
        ({"chief": ["a:1"], "worker": ["b:1", "c:1"]}, "chief", "rank 2 of 3"),
    ],
)
def test_a_worker_that_is_lost_is_named(cluster, kind, lost) -> None:
    error = raised(workers(cluster, kind), tf.errors.UnavailableError(None, None, SOCKET_CLOSED))
    assert type(error) is tf.errors.UnavailableError
    assert str(error).startswith(f"[rank 0] An update ended because {lost} ended, or cannot be reached. Fix: look at ")
    assert str(error).endswith(SOCKET_CLOSED)


def test_horovod_names_nobody_and_its_words_stay() -> None:
    """By which its own elastic mode knows the error, and distlr's."""
    error = raised(ThreadGroup(2, 60).communicators[1], tf.errors.UnknownError(None, None, SHUT_DOWN))
    assert error.message.startswith("[rank 1] An update ended because a rank of 2 ended, or did not come within 60 s.")
    assert error.message.endswith(SHUT_DOWN)


@pytest.mark.parametrize("message", [SHAPES, BY_WATCHDOG])
def test_other_errors_are_as_they_were(message) -> None:
    error = tf.errors.InvalidArgumentError(None, None, message)
    assert raised(ThreadGroup(2).communicators[1], error) is error


def test_fit_says_it() -> None:
    """The error of an update, in which nothing of distlr's is called: the exchange is in the graph."""

    class Lost(keras.Model):
        def train_step(self, data):
            raise tf.errors.UnavailableError(None, None, SOCKET_CLOSED)

    inputs = keras.Input((2,))
    model = Lost(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse", run_eagerly=True)
    audit = PreflightCheck(tf.distribute.get_strategy())
    audit.bind(ThreadGroup(2).communicators[1])
    with pytest.raises(tf.errors.UnavailableError, match=r"^\[rank 1\] An update ended because a rank of 2 ended"):
        model.fit(np.ones((4, 2)), np.ones((4, 1)), callbacks=[audit], verbose=0)


def test_what_keras_reads_of_all_workers_says_it(monkeypatch) -> None:
    """An example is a metric's result after a validation: no callback is called there."""

    def reduce(*arguments, **named):
        raise tf.errors.UnavailableError(None, None, SOCKET_CLOSED)

    monkeypatch.setattr(tf.distribute.MultiWorkerMirroredStrategy, "reduce", reduce)
    strategy = MultiWorker.__new__(MultiWorker)
    strategy.communicator = workers({"worker": ["a:1", "b:1"]})
    monkeypatch.setattr(MultiWorker, "experimental_local_results", lambda self, value: (value,))
    with pytest.raises(tf.errors.UnavailableError, match=r"^\[rank 0\] A reduction ended because rank 1 of 2 ended"):
        strategy.reduce("SUM", tf.constant(1.0))
