"""The number of ranks, and of the replicas in each."""

from __future__ import annotations

import dataclasses

from distlr.communicators.communicator import Communicator

__all__ = ["Topology"]


@dataclasses.dataclass(frozen=True)
class Topology:
    """The number of ranks and replicas that train together.

    >>> Topology(ranks=2, local_replicas=4).replicas
    8

    Attributes:
        ranks: processes.
        local_replicas: copies of the model in one process.
        strategy_spans_ranks: whether one `tf.distribute` strategy spans the ranks: its replicas are those of all.
    """

    ranks: int
    local_replicas: int
    strategy_spans_ranks: bool = False

    @property
    def replicas(self) -> int:
        """Copies of the model in all processes."""
        return self.ranks * self.local_replicas

    @classmethod
    def of(cls, communicator: Communicator, replicas_in_sync: int) -> Topology:
        """The topology of a job.

        Args:
            communicator: the job's.
            replicas_in_sync: of the job's strategy (`tf.distribute.Strategy.num_replicas_in_sync`).
        """
        spans = communicator.strategy_spans_ranks
        return cls(communicator.size, int(replicas_in_sync) // (communicator.size if spans else 1), spans)
