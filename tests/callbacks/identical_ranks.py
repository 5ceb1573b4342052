"""Ranks that all do and say the same, of which this process is rank 0."""

from __future__ import annotations

import tensorflow as tf

import distlr
from distlr.communicators import SingleCommunicator
from distlr.communicators.gradient_reducer import GradientReducer
from distlr.job import Job


class IdenticalRanks(SingleCommunicator):
    """Rank 0 of n ranks that all do and say the same: what it says is what each of them says."""

    exchanges_gradients = True

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def _exchange(self, frame, label):
        return [frame] * self.size

    def gradients(self, prefix, compression="none"):
        return MeanOfIdenticalRanks()


class MeanOfIdenticalRanks(GradientReducer):
    """The mean of gradients that are the same on each rank."""

    def average(self, gradients, names):
        return list(gradients)

    def all_true(self, flag):
        return flag


def job_on(ranks: int, simulate: int | None) -> Job:
    """A job of several identical ranks, or of one rank with so many simulated replicas (None for its one device)."""
    if ranks > 1:
        return Job(tf.distribute.get_strategy(), "horovod", IdenticalRanks(ranks))
    return distlr.init(environ={}, simulate=simulate)
