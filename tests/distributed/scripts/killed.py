"""The resumable run, in which one rank kills itself (SIGKILL) at one place; at any other word than these it ends whole.

killed.py DIRECTORY ATTEMPT EPOCHS PLACE RANK
"""

import io
import os
import signal
import sys
import time
from pathlib import Path

import keras
import resumable  # which reads the first three arguments

import distlr

PLACE, RANK = sys.argv[4], int(sys.argv[5])
LATE = 110  # updates, from which on a checkpoint is not the first one


def die() -> None:
    time.sleep(0.3)  # the other rank waits for this one by then
    Path(sys.argv[1], f"{sys.argv[2]}.killed").touch()
    os.kill(os.getpid(), signal.SIGKILL)


class Dying(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        if PLACE == "before the first step":
            die()

    def on_test_batch_begin(self, batch, logs=None):
        if PLACE == "in a validation":
            die()


class DyingFile(io.FileIO):
    def write(self, data):
        super().write(data[: len(data) // 2])
        die()


def is_late(path) -> bool:
    """Whether it is the temporary file of a checkpoint that is not the first one."""
    name = Path(path).name
    return name.startswith(".step-") and int(name[6:18]) >= LATE


def arrange(job: distlr.Job) -> None:
    """Has this process die in what distlr does itself."""
    exchange, fdopen, replace = job.communicator._exchange, os.fdopen, os.replace

    def dying_exchange(frame, label):
        if "replicas at epoch 2" in label:
            die()
        return exchange(frame, label)

    def dying_fdopen(descriptor, *arguments, **named):
        if is_late(os.readlink(f"/proc/self/fd/{descriptor}")):
            return DyingFile(descriptor, "wb")
        return fdopen(descriptor, *arguments, **named)

    def dying_replace(source, target):
        late = is_late(source)
        if late and PLACE == "before a checkpoint's rename":
            die()
        replace(source, target)
        if late:
            die()

    if PLACE == "in the guard":
        job.communicator._exchange = dying_exchange
    elif PLACE == "in a checkpoint's file":
        os.fdopen = dying_fdopen
    elif PLACE in ("before a checkpoint's rename", "after a checkpoint's rename"):
        os.replace = dying_replace


def train(job: distlr.Job) -> None:
    if job.rank == RANK:
        arrange(job)
    resumable.train(job, [Dying()] if job.rank == RANK else [])


if __name__ == "__main__":
    distlr.elastic.run(train, timeout=60)
