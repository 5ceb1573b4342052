"""The communicator of one process: a real backend, of size 1."""

from __future__ import annotations

from collections.abc import Sequence

from distlr.communicators.base import Communicator
from distlr.communicators.frames import Frame

__all__ = ["SingleCommunicator"]


class SingleCommunicator(Communicator):
    """One rank alone. Arguments, tags and results obey the whole contract, so code that is wrong in its
    dtypes or JSON fails here already, before it is launched on many ranks.

    >>> SingleCommunicator().allreduce([1.0, 2.0], tag="loss")
    array([1., 2.])
    """

    @property
    def name(self) -> str:
        """'single'."""
        return "single"

    @property
    def rank(self) -> int:
        """0."""
        return 0

    @property
    def size(self) -> int:
        """1."""
        return 1

    @property
    def local_rank(self) -> int:
        """0."""
        return 0

    @property
    def local_size(self) -> int:
        """1."""
        return 1

    def _exchange(self, frame: Frame, label: str) -> Sequence[Frame]:
        return [frame]
