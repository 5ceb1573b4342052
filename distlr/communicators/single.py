"""The communicator of one process: a real backend, of size 1."""

from __future__ import annotations

import os
from collections.abc import Sequence

from distlr.communicators.communicator import Communicator
from distlr.communicators.frames import Frame
from distlr.errors import DistributionError
from distlr.startup.launcher import detect

__all__ = ["SingleCommunicator", "single_process_communicator"]


class SingleCommunicator(Communicator):
    """One rank alone. Arguments, tags and results obey the whole contract, so code that is wrong in its
    dtypes or JSON fails here already, before it is launched on many ranks.

    >>> SingleCommunicator().allreduce([1.0, 2.0], tag="loss")
    array([1., 2.])
    """

    def __init__(self) -> None:
        super().__init__("single", rank=0, size=1, local_rank=0, local_size=1)

    def _exchange(self, frame: Frame, label: str) -> Sequence[Frame]:
        return [frame]


def single_process_communicator(who: str, hint: str) -> SingleCommunicator:
    """Returns the communicator of a single process; refuses where a launcher started several.

    Args:
        who: the caller's name, for the message.
        hint: how the caller can be given the job's communicator.

    Raises:
        DistributionError: a launcher started several processes.

    >>> single_process_communicator("The script", "pass communicator=job.communicator").size
    1
    """
    launch = detect(os.environ)
    if launch is not None and launch.size > 1:
        raise DistributionError(
            f"[rank {launch.rank}] {who} runs on {launch.size} ranks ({launch.launcher}) without knowing them, so each "
            f"rank would decide for itself and their rates would drift apart. Fix: {hint}."
        )
    return SingleCommunicator()
