"""The communicator contract, and all of it that does not depend on a backend.

Every collective is one exchange of self-describing frames: each rank sends a header (kind, tag, operation,
dtype, shape) followed by its data, and receives every rank's frame. So the tag check costs no further
collective, and ranks that are in *different* collectives still enter the same primitive, where a real
engine's allreduce on one rank and broadcast on another would pair wrongly or hang. The reduction is done
here, in rank order, which makes it exact, reproducible and identical on each rank whatever the engine.

The price: an allreduce receives `size` times its payload. Communicators carry the control plane (metric
states, moving statistics, decisions) a few times an epoch; gradients never pass through them.
"""

from __future__ import annotations

import abc
import json
import time
from collections.abc import Mapping, Sequence
from typing import Literal, NoReturn, TypeVar, final

import numpy.typing as npt

from distlr.communicators.frames import (
    EMPTY,
    REDUCERS,
    Array,
    CollectiveMessage,
    Frame,
    check_same,
    checked_array,
    decode,
    encode,
    to_array,
    to_bytes,
    to_json,
)
from distlr.communicators.gradient_reducer import GradientReducer
from distlr.communicators.log import CollectiveLog
from distlr.communicators.lost_ranks import survivor_message
from distlr.errors import (
    ConfigurationError,
    ConfigurationTypeError,
    DistlrError,
    DistributionError,
    received,
)

__all__ = ["Communicator", "Op"]

Op = Literal["sum", "max", "min"]

_J = TypeVar("_J")  # a JSON value


class Communicator(abc.ABC):
    """The communication between the ranks of a job.

    **Who calls.** Every public method but the properties is collective: every rank calls it, in the same
    order, with the same `tag`, from one thread a rank. A collective that some ranks skip ends, on the ranks
    that wait, in the backend's deadline (`timeout`); one with another kind or tag on another rank raises
    `CollectiveMismatchError` on *every* rank, naming both tags and the ranks. A tag names one call site;
    writing the epoch into it makes even a rank that is one epoch behind visible.

    **Errors.** An argument that this rank refuses (`ConfigurationError`, `ConfigurationTypeError`) still
    enters the exchange, as a refusal, and then raises; the other ranks raise `DistributionError` with the
    reason and the rank, and nobody is left waiting. Only a bad `tag` raises before anything is sent.
    Ranks that agree on the tag but not on operation, dtype, shape or root raise `DistributionError`. What
    the engine itself raises passes through unchanged. After any of these but a refusal, do not go on.

    **Arrays.** float32, float64, int64, bool and uint8, of any shape, empty included; anything else is
    refused instead of being cast. Results are new, writable, in native byte order and keep their dtype.

    **Writing a backend.** Connect the ranks, then call `super().__init__` with the name and the four numbers, which
    stay: an elastic job makes a communicator for each generation of ranks. Implement `_exchange`; set `timeout` where
    there is a deadline. The public methods are final.

    Args:
        name: the backend's name, such as 'threads'.
        rank: this process' number, in 0 to `size - 1`.
        size: number of ranks.
        local_rank: this rank's number on its host, in 0 to `local_size - 1`.
        local_size: number of ranks on this host.

    Attributes:
        name, rank, size, local_rank, local_size: as given.
        timeout: seconds that a collective waits for the other ranks, or None where the backend has no
            deadline of its own.
        log: the collectives this rank entered.
        may_lose_ranks: whether the job continues without a rank that is lost, from its last checkpoint.
        strategy_spans_ranks: whether one `tf.distribute` strategy spans the ranks, which then averages the gradients
            and reads metrics over all of them by itself.
        exchanges_gradients: whether `gradients` returns a reducer; without one the communicator is for control alone,
            and no optimizer is adopted on several ranks.

    >>> import numpy as np
    >>> from distlr.testing import run_ranks
    >>> def choose(comm):
    ...     losses = comm.allgather([1.0 / (1 + comm.rank)], tag="losses of epoch 3")
    ...     plan = {"best": int(np.argmin(losses))} if comm.is_root else None
    ...     return comm.broadcast_json(plan, tag="plan of epoch 3")
    >>> run_ranks(choose, size=2)
    [{'best': 1}, {'best': 1}]
    """

    timeout: float | None = None
    may_lose_ranks: bool = False
    strategy_spans_ranks: bool = False
    exchanges_gradients: bool = False

    def __init__(self, name: str, rank: int, size: int, local_rank: int, local_size: int) -> None:
        self.name = name
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size
        self.log = CollectiveLog()

    def gradients(self, prefix: str, compression: str = "none") -> GradientReducer:
        """Creates the gradient reducer of the optimizer called `prefix`.

        >>> from distlr.communicators import SingleCommunicator
        >>> SingleCommunicator().exchanges_gradients
        False
        """
        raise DistributionError(f"The {self.name} engine is for control alone: it does not exchange gradients.")

    def data_ended(self, reducer: GradientReducer | None) -> None:  # noqa: B027  (an engine that averages no gradients has nothing to do)
        """Lets the next collective take part in updates that other ranks still make, though this one made none lately.

        Args:
            reducer: that of the optimizer that all ranks train with; or None.

        >>> from distlr.communicators import SingleCommunicator
        >>> SingleCommunicator().data_ended(None)  # there are no others
        """

    @abc.abstractmethod
    def _exchange(self, frame: Frame, label: str) -> Sequence[Frame]:
        """Sends `frame` to all ranks and returns every rank's frame, in rank order.

        Args:
            frame: contiguous, one-dimensional, at least 16 bytes, a multiple of 8 long (so an engine that
                refuses uint8 may send `frame.view(np.int32)`); its length differs by rank. Not kept.
            label: what to call this collective in messages, such as "allreduce 'metrics'". It may differ
                by rank and must not take part in the pairing.

        Returns:
            `size` uint8 arrays, the same on all ranks; each may have padding after its own bytes.
        """

    def lost_rank(self, message: str) -> int | None:
        """Returns the lost rank that an engine's error names; None where it names none.

        >>> from distlr.communicators import SingleCommunicator
        >>> SingleCommunicator().lost_rank("Connection reset by peer") is None
        True
        """
        return None

    @final
    def survivor_message(self, what: str, message: str) -> str:
        """Returns the error text of this rank where the engine has ended something because a rank is lost.

        >>> from distlr.communicators import SingleCommunicator
        >>> SingleCommunicator().survivor_message("An update", "Connection reset by peer").partition(", or")[0]
        '[rank 0] An update ended because a rank of 1 ended'

        Args:
            what: what has ended, to begin a sentence with.
            message: the engine's error.
        """
        return survivor_message(self.rank, self.size, what, self.timeout, self.lost_rank(message))

    @property
    def ranks_changed(self) -> bool:
        """Whether this rank was notified that the job continues with other ranks; only in an elastic job."""
        return False

    @property
    @final
    def is_root(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @final
    def allreduce(self, array: npt.ArrayLike, op: Op = "sum", *, tag: str) -> Array:
        """Reduces an array element by element over all ranks. Collective: every rank calls.

        Args:
            array: the same dtype and shape on all ranks.
            op: 'sum', 'max' or 'min', the same on all ranks. A sum takes float32, float64 or int64 (bool
                and uint8 would overflow), adds in rank order in the array's own dtype and, as numpy does,
                wraps for int64. 'max' and 'min' give NaN where any rank has NaN; for bool they mean
                any and all.
            tag: names the call; the same on all ranks.

        Returns:
            A new array of the same dtype and shape, identical bit for bit on each rank.

        Raises:
            ConfigurationError, ConfigurationTypeError: on this rank, an argument cannot be right.
            DistributionError: another rank refused its argument, or the ranks' arguments differ.
            CollectiveMismatchError: the ranks are in different collectives.
            CollectiveTimeoutError: not all came in time.

        >>> from distlr.testing import run_ranks
        >>> run_ranks(lambda comm: comm.allreduce([1, comm.rank], tag="counts").tolist(), size=3)
        [[3, 3], [3, 3], [3, 3]]
        """
        try:
            value = checked_array(array)
            if op not in tuple(REDUCERS):
                raise ConfigurationError(received("op", op, "'sum', 'max' or 'min'"))
            if op == "sum" and value.dtype.name in ("bool", "uint8"):
                hint = "cast it to int64, or use op='max' or op='min'"
                what = "float32, float64 or int64 for a sum"
                raise ConfigurationTypeError(received("array.dtype", value.dtype.name, what, hint))
        except DistlrError as error:
            self.refuse("allreduce", tag, error)
        terms = {"op": op, "dtype": value.dtype.name, "shape": list(value.shape)}
        parts = self._collective("allreduce", tag, terms, to_bytes(value))
        result = to_array(parts[0].data, value.dtype, value.shape)
        for part in parts[1:]:
            # `out` keeps 0-d arrays arrays; numpy would return a scalar.
            REDUCERS[op](result, to_array(part.data, value.dtype, value.shape), out=result)
        return result

    @final
    def allgather(self, array: npt.ArrayLike, *, tag: str) -> list[Array]:
        """Gathers each rank's array on all ranks. Collective: every rank calls.

        Args:
            array: the same dtype, number of dimensions and trailing shape on all ranks; the leading size
                differs freely and may be 0. Nothing is padded.
            tag: names the call; the same on all ranks.

        Returns:
            One new array per rank, in rank order, each with its rank's shape; identical on each rank.

        Errors are those of `allreduce`.

        >>> import numpy as np
        >>> from distlr.testing import run_ranks
        >>> parts = run_ranks(lambda comm: comm.allgather(np.arange(comm.rank), tag="parts"), size=3)
        >>> [part.tolist() for part in parts[0]]
        [[], [0], [0, 1]]
        """
        try:
            value = checked_array(array)
        except DistlrError as error:
            self.refuse("allgather", tag, error)
        trailing = value.shape[1:]
        terms = {"dtype": value.dtype.name, "shape": ["any", *trailing] if value.ndim else []}
        length = value.shape[0] if value.ndim else 0
        parts = self._collective("allgather", tag, terms, to_bytes(value), length)
        shapes = [(part.length, *trailing) if value.ndim else () for part in parts]
        return [to_array(part.data, value.dtype, shape) for part, shape in zip(parts, shapes, strict=True)]

    @final
    def broadcast(self, array: npt.ArrayLike, *, root: int = 0, tag: str) -> Array:
        """Gives every rank the root's array. Collective: every rank calls.

        Args:
            array: the same dtype and shape on all ranks; only the root's values are sent.
            root: the rank whose values count, the same on all ranks.
            tag: names the call; the same on all ranks.

        Returns:
            A new array with the root's values, identical on each rank, the root included.

        Errors are those of `allreduce`.

        >>> from distlr.testing import run_ranks
        >>> run_ranks(lambda comm: comm.broadcast(comm.rank, root=1, tag="winner").item(), size=3)
        [1, 1, 1]
        """
        try:
            value = checked_array(array)
            self._check_root(root)
        except DistlrError as error:
            self.refuse("broadcast", tag, error)
        terms = {"root": root, "dtype": value.dtype.name, "shape": list(value.shape)}
        data = to_bytes(value) if self.rank == root else EMPTY
        parts = self._collective("broadcast", tag, terms, data)
        return to_array(parts[root].data, value.dtype, value.shape)

    @final
    def barrier(self, *, tag: str) -> None:
        """Returns once every rank has called. Collective: every rank calls.

        Args:
            tag: names the call; the same on all ranks.

        Errors are those of `allreduce`.

        >>> from distlr.testing import run_ranks
        >>> run_ranks(lambda comm: comm.barrier(tag="files are there"), size=2)
        [None, None]
        """
        self._collective("barrier", tag, {}, EMPTY)

    @final
    def broadcast_json(self, obj: _J, *, tag: str) -> _J:
        """Gives every rank rank 0's object, as JSON. Collective: every rank calls.

        Args:
            obj: on rank 0, anything that JSON can hold, never pickled. NaN and infinities are carried, as
                Python's `json` writes them; numpy scalars other than float64 are refused. Ignored on the
                other ranks.
            tag: names the call; the same on all ranks.

        Returns:
            The decoded object, equal on each rank, rank 0 included: tuples come back as lists and the
            keys of dicts as strings.

        Errors are those of `allreduce`.

        >>> from distlr.testing import run_ranks
        >>> run_ranks(lambda comm: comm.broadcast_json({"at": (comm.rank, 2)}, tag="plan"), size=2)
        [{'at': [0, 2]}, {'at': [0, 2]}]
        """
        try:
            data = to_json(obj) if self.is_root else EMPTY
        except DistlrError as error:
            self.refuse("broadcast_json", tag, error)
        parts = self._collective("broadcast_json", tag, {}, data)
        result: _J = json.loads(parts[0].data.tobytes())
        return result

    @final
    def gather_json(self, obj: _J, *, tag: str) -> list[_J]:
        """Gives every rank the list of all ranks' objects, as JSON. Collective: every rank calls.

        Args:
            obj: as in `broadcast_json`; each rank's may have another form.
            tag: names the call; the same on all ranks.

        Returns:
            The decoded objects in rank order, equal on each rank.

        Errors are those of `allreduce`.

        >>> from distlr.testing import run_ranks
        >>> run_ranks(lambda comm: comm.gather_json({"rank": comm.rank}, tag="who"), size=2)[0]
        [{'rank': 0}, {'rank': 1}]
        """
        try:
            data = to_json(obj)
        except DistlrError as error:
            self.refuse("gather_json", tag, error)
        parts = self._collective("gather_json", tag, {}, data)
        return [json.loads(part.data.tobytes()) for part in parts]

    @final
    def refuse(self, kind: str, tag: str, error: DistlrError) -> NoReturn:
        """Tells the other ranks, which are in a collective, that this one refuses its argument; then raises the reason.

        It is for functions over the collectives, which refuse an argument before they enter one.

        Args:
            kind: the collective's name, such as "allgather".
            tag: its tag.
            error: the reason.

        >>> from distlr.testing import run_ranks
        >>> def rank(comm):
        ...     try:
        ...         if comm.rank == 1:
        ...             comm.refuse("barrier", "start", ConfigurationError("no"))
        ...         comm.barrier(tag="start")
        ...     except DistlrError as error:
        ...         return type(error).__name__
        >>> run_ranks(rank, size=2)
        ['DistributionError', 'ConfigurationError']
        """
        self._send(kind, tag, {}, EMPTY, refused=str(error))
        raise error

    def _check_root(self, root: int) -> None:
        if isinstance(root, bool) or not isinstance(root, int):
            raise ConfigurationTypeError(received("root", root, "a rank as an int"))
        if not 0 <= root < self.size:
            raise ConfigurationError(received("root", root, f"a rank in 0 to {self.size - 1}"))

    def _pop_update_count(self) -> int:
        """Returns how often this rank has averaged gradients since the last call.

        An engine that averages them beside its collectives overrides it. There a rank whose data has ended enters the
        next collective while another still averages, and its `_exchange` must take part, or both would wait for ever.
        """
        return 0

    def _collective(
        self, kind: str, tag: str, terms: Mapping[str, object], data: Frame, length: int = 0
    ) -> list[CollectiveMessage]:
        """Exchanges one frame and checks that all ranks mean the same collective."""
        parts = self._send(kind, tag, terms, data, length)
        check_same(parts, self.rank)
        return parts

    def _send(
        self, kind: str, tag: str, terms: Mapping[str, object], data: Frame, length: int = 0, refused: str = ""
    ) -> list[CollectiveMessage]:
        if not isinstance(tag, str):
            raise ConfigurationTypeError(received("tag", tag, "a str"))
        if not tag:
            raise ConfigurationError(received("tag", tag, "a name that is not empty"))
        frame = encode(CollectiveMessage(kind, tag, terms, length, refused, data, self._pop_update_count()))
        self.log.enter(frame.size)
        label = f"{kind} {tag!r}"
        began = time.monotonic()
        frames = self._exchange(frame, label)
        self.log.seconds += time.monotonic() - began
        if len(frames) != self.size:
            raise DistributionError(
                f"The {self.name} backend returned {len(frames)} frames in {label} for {self.size} ranks."
            )
        return [decode(frame, rank, label) for rank, frame in enumerate(frames)]
