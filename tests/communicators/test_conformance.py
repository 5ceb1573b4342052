"""The communicator contract, asserted in terms of `size` on every backend.

Here on one process and on threads. `tests/distributed/test_in_ranks.py` runs this same file inside launched ranks, on
the engine that DISTLR_TEST_COMMUNICATOR names.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from distlr.communicators import Communicator, SingleCommunicator, connect, detect, run_ranks
from distlr.errors import (
    CollectiveMismatchError,
    CollectiveTimeoutError,
    ConfigurationError,
    ConfigurationTypeError,
    DistlrError,
    DistributionError,
)

Run = Callable[[Callable[[Communicator], Any]], "list[Any]"]


@dataclasses.dataclass(frozen=True)
class Backend:
    name: str
    size: int
    run: Run
    impatient: Run | None = None  # with a deadline that a test can wait for


def _threads(size: int) -> Backend:
    def run(timeout: float) -> Run:
        return lambda fn: run_ranks(fn, size, timeout=timeout)

    return Backend("threads", size, run(30.0), run(0.2))


def _name(backend: Backend) -> str:
    return f"{backend.name}{backend.size}"


@functools.cache
def _communicator(engine: str) -> Communicator:
    if engine == "multi-worker":  # made together with its strategy
        import distlr

        return distlr.init(timeout=60).communicator
    return connect(engine, detect(os.environ))


def _launched(engine: str) -> Backend:
    """This process is one rank; what the others returned comes from them (pickled: the tests trust themselves)."""
    comm = _communicator(engine)

    def run(fn: Callable[[Communicator], Any]) -> list[Any]:
        comm.log.__init__()  # as new, as the tests expect it
        local_result = np.frombuffer(pickle.dumps(fn(comm)), np.uint8)
        return [pickle.loads(part.tobytes()) for part in comm.allgather(local_result, tag="what the test returned")]

    return Backend(engine, comm.size, run)


ENGINE = os.environ.get("DISTLR_TEST_COMMUNICATOR")
BACKENDS = (
    [_launched(ENGINE)]
    if ENGINE
    else [
        Backend("single", 1, lambda fn: [fn(SingleCommunicator())]),
        *(_threads(size) for size in (1, 2, 3)),
    ]
)

DTYPES = ["float32", "float64", "int64", "bool", "uint8"]

COLLECTIVES: dict[str, Callable[[Communicator, str], Any]] = {
    "allreduce": lambda comm, tag: comm.allreduce(np.ones(2), tag=tag),
    "allgather": lambda comm, tag: comm.allgather(np.ones(2), tag=tag),
    "broadcast": lambda comm, tag: comm.broadcast(np.ones(2), tag=tag),
    "barrier": lambda comm, tag: comm.barrier(tag=tag),
    "broadcast_json": lambda comm, tag: comm.broadcast_json({"a": 1}, tag=tag),
    "gather_json": lambda comm, tag: comm.gather_json({"a": 1}, tag=tag),
}

several = pytest.mark.parametrize("backend", [b for b in BACKENDS if b.size > 1], ids=_name, indirect=True)


@pytest.fixture(params=BACKENDS, ids=_name)
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


def errors(backend: Backend, fn: Callable[[Communicator], Any]) -> list[Exception]:
    """Runs `fn`, which must raise on every rank, and returns what each rank raised."""

    def caught(comm: Communicator) -> Exception:
        with pytest.raises(DistlrError) as info:
            fn(comm)
        return info.value

    return backend.run(caught)


def test_numbers_of_the_rank(backend):
    results = backend.run(lambda c: (c.rank, c.size, c.local_rank, c.local_size, c.is_root, c.name))
    size = backend.size
    assert results == [(rank, size, rank, size, rank == 0, backend.name) for rank in range(size)]


def test_int64_sums_are_exact_beyond_float64(backend):
    big = 2**53 + 1
    for result in backend.run(lambda c: c.allreduce(np.array([big, -big, c.rank]), tag="t")):
        n = backend.size
        assert result.dtype == np.int64
        assert result.tolist() == [n * big, -n * big, n * (n - 1) // 2]


def test_float64_sums_are_exact_and_in_rank_order(backend):
    values = [1e16, 1.0, -1e16]
    expected = 0.0
    for value in values[: backend.size]:
        expected += value
    results = backend.run(lambda c: c.allreduce(np.array(values[c.rank]), tag="t"))
    assert [result.item() for result in results] == [expected] * backend.size
    tiny = backend.run(lambda c: c.allreduce(np.float64(1 + 2**-52), tag="t"))
    assert tiny[0].item() == backend.size * (1 + 2**-52)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 3)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["sum", "max", "min"])
def test_allreduce_keeps_dtype_and_shape(backend, op, dtype, shape):
    if op == "sum" and dtype in ("bool", "uint8"):
        return
    expected = {"sum": backend.size, "max": 1, "min": 0 if backend.size > 1 else 1}[op]

    def fn(comm):
        value = np.full(shape, 1 if op == "sum" or comm.rank == 0 else 0, dtype)
        result = comm.allreduce(value, op, tag="t")
        assert result is not value
        assert result.flags.writeable
        return result

    for result in backend.run(fn):
        assert isinstance(result, np.ndarray)
        np.testing.assert_array_equal(result, np.full(shape, expected, dtype), strict=True)


@pytest.mark.parametrize("op", ["max", "min"])
def test_nan_on_one_rank_wins(backend, op):
    last = backend.size - 1
    results = backend.run(lambda c: c.allreduce(math.nan if c.rank == last else 1.0, op, tag="t"))
    assert all(math.isnan(result) for result in results)


def test_results_are_identical_on_all_ranks_and_independent(backend):
    def fn(comm):
        value = np.random.default_rng(comm.rank).normal(size=(7, 5))
        results = [comm.allreduce(value, tag="a"), *comm.allgather(value, tag="b")]
        results.append(comm.broadcast(value, tag="c"))
        digest = b"".join(result.tobytes() for result in results)
        comm.barrier(tag="d")
        for result in results:  # writes must not reach other ranks or the argument
            result[...] = comm.rank
        comm.barrier(tag="e")
        return digest, all((result == comm.rank).all() for result in results), value.sum()

    results = backend.run(fn)
    assert len({digest for digest, _, _ in results}) == 1
    assert all(has_own_result for _, has_own_result, _ in results)
    assert results[0][2] == np.random.default_rng(0).normal(size=(7, 5)).sum()


@pytest.mark.parametrize("dtype", DTYPES)
def test_allgather_of_different_sizes(backend, dtype):
    results = backend.run(lambda c: c.allgather(np.full((c.rank, 2), c.rank, dtype), tag="t"))
    for parts in results:
        assert len(parts) == backend.size
        for rank, part in enumerate(parts):
            np.testing.assert_array_equal(part, np.full((rank, 2), rank, dtype), strict=True)


def test_allgather_of_scalars_and_of_nothing(backend):
    assert backend.run(lambda c: [x.item() for x in c.allgather(c.rank, tag="t")])[-1] == list(range(backend.size))
    empty = backend.run(lambda c: c.allgather(np.zeros((0, 4), np.int64), tag="t"))[-1]
    assert [(part.shape, part.dtype.name) for part in empty] == [((0, 4), "int64")] * backend.size


@pytest.mark.parametrize("dtype", DTYPES)
def test_broadcast_from_each_root(backend, dtype):
    def fn(comm):
        return [comm.broadcast(np.full((2, 1), comm.rank % 2, dtype), root=r, tag="t") for r in range(comm.size)]

    for results in backend.run(fn):
        for root, result in enumerate(results):
            np.testing.assert_array_equal(result, np.full((2, 1), root % 2, dtype), strict=True)


def test_non_contiguous_and_big_endian_arrays(backend):
    value = np.arange(12.0).reshape(3, 4).T[::2].astype(">f8")
    for result in backend.run(lambda c: c.broadcast(value, tag="t")):
        np.testing.assert_array_equal(result, value)
        assert result.dtype.isnative


def test_json_round_trip(backend):
    obj = {"grüße": ["学习率", "\U0001f600", "\ud800"], "nest": [{"a": [None, True, 1.5, -(2**70)]}], "e": {}}
    results = backend.run(lambda c: c.broadcast_json(obj if c.is_root else object(), tag="t"))
    assert results == [obj] * backend.size
    gathered = backend.run(lambda c: c.gather_json({"rank": c.rank, "text": "é" * c.rank}, tag="t"))
    assert gathered == [[{"rank": r, "text": "é" * r} for r in range(backend.size)]] * backend.size


def test_json_carries_nan_and_infinity(backend):
    for reply in backend.run(lambda c: c.broadcast_json([math.nan, math.inf, -math.inf], tag="t")):
        assert math.isnan(reply[0])
        assert reply[1:] == [math.inf, -math.inf]


def test_json_root_gets_what_the_others_get(backend):
    results = backend.run(lambda c: c.broadcast_json({1: (2, 3)}, tag="t"))
    assert results == [{"1": [2, 3]}] * backend.size


@several
@pytest.mark.parametrize("kind", COLLECTIVES)
def test_tag_mismatch_is_named_on_every_rank(backend, kind):
    call = COLLECTIVES[kind]
    raised = errors(backend, lambda c: call(c, "metrics" if c.rank == 0 else "stop_flag"))
    others = "rank 1 in" if backend.size == 2 else "ranks 1-2 in"
    for rank, error in enumerate(raised):
        assert type(error) is CollectiveMismatchError
        assert f"rank 0 in {kind} 'metrics'; {others} {kind} 'stop_flag'" in str(error)
        assert f"this is rank {rank} of {backend.size}" in str(error)


@several
@pytest.mark.parametrize("kind", [kind for kind in COLLECTIVES if kind != "barrier"])
def test_kind_mismatch_is_named_on_every_rank(backend, kind):
    last = backend.size - 1
    raised = errors(backend, lambda c: COLLECTIVES["barrier" if c.rank == last else kind](c, "t"))
    for error in raised:
        assert type(error) is CollectiveMismatchError
        assert f"in {kind} 't'" in str(error)
        assert f"rank {last} in barrier 't'" in str(error)


@several
@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda c, odd: c.allreduce(1.0, "max" if odd else "sum", tag="t"), ["op='sum'", "op='max'"]),
        (lambda c, odd: c.allreduce(np.ones(3 if odd else 2), tag="t"), ["shape=[2]", "shape=[3]"]),
        (
            lambda c, odd: c.allreduce(np.ones(2, "f4" if odd else "f8"), tag="t"),
            ["dtype='float64'", "dtype='float32'"],
        ),
        (lambda c, odd: c.allgather(np.ones((2, 3 if odd else 2)), tag="t"), ["'any', 2", "'any', 3"]),
        (lambda c, odd: c.allgather(np.ones(2) if odd else 1.0, tag="t"), ["shape=[]", "shape=['any']"]),
        (lambda c, odd: c.allgather(np.ones(2, int if odd else float), tag="t"), ["'float64'", "'int64'"]),
        (lambda c, odd: c.broadcast(np.ones(2), root=int(odd), tag="t"), ["root=0", "root=1"]),
        (lambda c, odd: c.broadcast(np.ones(1 + odd), tag="t"), ["shape=[1]", "shape=[2]"]),
    ],
)
def test_disagreement_is_named_on_every_rank(backend, call, parts):
    for rank, error in enumerate(errors(backend, lambda c: call(c, c.rank == 1))):
        assert type(error) is DistributionError
        assert f"The ranks disagree in {error.args[0].split(' in ')[1].split(' ')[0]} 't'" in str(error)
        assert f"this is rank {rank} of {backend.size}" in str(error)
        assert "rank 1 with" in str(error)
        for part in parts:
            assert part in str(error)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda c: c.allreduce(np.ones(2, np.int32), tag="t"), ConfigurationTypeError, "'int32'"),
        (lambda c: c.allgather(np.ones(2, np.float16), tag="t"), ConfigurationTypeError, "'float16'"),
        (lambda c: c.broadcast(np.ones(2, complex), tag="t"), ConfigurationTypeError, "'complex128'"),
        (lambda c: c.broadcast(["a"], tag="t"), ConfigurationTypeError, "array.dtype"),
        (lambda c: c.allgather([[1], [1, 2]], tag="t"), ConfigurationTypeError, "numpy refuses"),
        (lambda c: c.allreduce([True], tag="t"), ConfigurationTypeError, "cast it to int64"),
        (lambda c: c.allreduce(1.0, "mean", tag="t"), ConfigurationError, "op='mean'"),
        (lambda c: c.allreduce(1.0, ["sum"], tag="t"), ConfigurationError, "op=['sum']"),
        (
            lambda c: c.broadcast(1.0, root=c.size, tag="t"),
            ConfigurationError,
            "`root` must be a rank in 0 to",
        ),
        (lambda c: c.broadcast(1.0, root=-1, tag="t"), ConfigurationError, "root=-1"),
        (lambda c: c.broadcast(1.0, root="0", tag="t"), ConfigurationTypeError, "root='0'"),
        (lambda c: c.gather_json({"a": {1}}, tag="t"), ConfigurationTypeError, "Received: a builtins.set"),
        (lambda c: c.gather_json(np.float32(1), tag="t"), ConfigurationTypeError, "a numpy.float32"),
        (lambda c: c.gather_json({(1, 2): 3}, tag="t"), ConfigurationTypeError, "not tuple"),
        (lambda c: c.barrier(tag=None), ConfigurationTypeError, "`tag` must be a str"),
        (lambda c: c.barrier(tag=""), ConfigurationError, "`tag`"),
    ],
)
def test_bad_arguments_are_refused_and_leave_the_communicator_usable(backend, call, kind, message):
    def fn(comm):
        with pytest.raises(kind) as info:
            call(comm)
        return str(info.value), comm.allreduce(1, tag="after").item()

    for text, total in backend.run(fn):
        assert message in text
        assert total == backend.size


@several
def test_refusal_on_one_rank_is_told_to_all(backend):
    raised = errors(backend, lambda c: c.gather_json(object() if c.rank == 1 else 1, tag="digest"))
    for rank, error in enumerate(raised):
        assert type(error) is (ConfigurationTypeError if rank == 1 else DistributionError)
        assert "a builtins.object" in str(error)
        if rank != 1:
            assert "refused its argument in gather_json 'digest'" in str(error)
            assert "On rank 1: " in str(error)


def test_collectives_are_counted(backend):
    def fn(comm):
        log = comm.log
        assert (log.total, log.bytes_sent, log.seconds) == (0, 0, 0.0)
        for call in COLLECTIVES.values():
            call(comm, "epoch")
        before = log.bytes_sent
        comm.allreduce(np.zeros(1000), tag="metrics")
        return log.total, before, log.bytes_sent, log.seconds

    for total, before, after, seconds in backend.run(fn):
        assert total == len(COLLECTIVES) + 1
        assert 64 * len(COLLECTIVES) < before < 256 * len(COLLECTIVES)
        assert 8000 < after - before < 8200
        assert seconds > 0


def test_only_the_root_sends_a_broadcast(backend):
    def fn(comm):
        comm.broadcast(np.zeros(10_000), tag="t")
        return comm.log.bytes_sent

    byte_counts = backend.run(fn)
    assert byte_counts[0] > 80_000
    assert all(count < 200 for count in byte_counts[1:])


if not ENGINE:  # an engine ends the process of a rank that waits: tests/distributed/test_launchers.py

    @several
    def test_no_rank_waits_for_ever(backend):
        """Rank 0 alone is in a collective."""

        def alone(comm):
            if comm.is_root:
                comm.barrier(tag="nobody else comes")

        assert backend.impatient is not None, "give the backend of one process an `impatient` run"
        with pytest.raises(CollectiveTimeoutError, match="nobody else comes"):
            backend.impatient(alone)


@several
def test_many_collectives_in_a_row(backend):
    def fn(comm):
        return [comm.allreduce(step * (comm.rank + 1), tag=f"step {step}").item() for step in range(300)]

    factor = backend.size * (backend.size + 1) // 2
    assert backend.run(fn) == [[step * factor for step in range(300)]] * backend.size


def test_frames_of_another_sender_are_refused():
    class Foreign(SingleCommunicator):
        def _exchange(self, frame, label):
            return [np.zeros(4, np.uint8)]

    class Short(SingleCommunicator):
        def _exchange(self, frame, label):
            return []

    class Padded(SingleCommunicator):
        def _exchange(self, frame, label):
            assert frame.size % 8 == 0
            return [np.concatenate([frame, np.zeros(24, np.uint8)])]

    with pytest.raises(DistributionError, match="Rank 0 sent something else than a distlr collective"):
        Foreign().barrier(tag="t")
    with pytest.raises(DistributionError, match="0 frames in barrier 't' for 1 ranks"):
        Short().barrier(tag="t")
    assert Padded().broadcast_json("x", tag="t") == "x"
