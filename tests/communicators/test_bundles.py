"""Several named arrays in one collective."""

from __future__ import annotations

import numpy as np
import pytest

from distlr.communicators import run_ranks
from distlr.communicators.bundles import (
    Bundle,
    broadcast_arrays,
    bundle_numbers,
    exchange_bundles,
    exchange_together,
    first_numbers,
    mean_over,
    reduce_over,
)
from distlr.errors import ConfigurationTypeError, DistlrError, DistributionError


def exchanged(make, size: int = 3):
    """What each rank got, and the number of collectives that it took."""

    def rank(comm):
        return exchange_bundles(comm, make(comm.rank), tag="t"), comm.log.total

    return run_ranks(rank, size, timeout=5.0)


def test_a_rank_may_lack_an_array_and_all_of_them() -> None:
    def make(rank):
        arrays = {"a": np.array([1.5, 2.5]) * rank, "n": np.array(rank)} if rank else {}
        return Bundle(arrays, note={"rank": rank})

    for bundles, collectives in exchanged(make):
        assert collectives == 1
        assert [bundle.note for bundle in bundles] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        total = reduce_over(bundles)
        np.testing.assert_array_equal(total["a"], [4.5, 7.5])
        assert total["n"].item() == 3
        np.testing.assert_array_equal(mean_over(bundles)["a"], [2.25, 3.75])
        assert mean_over(bundles)["n"].shape == ()


def test_sums_are_in_float64_and_int64_and_in_rank_order() -> None:
    big = 2**53 + 1
    values = [np.float32(1e8), np.float32(1), np.float32(1)]
    bundles, _ = exchanged(lambda rank: Bundle({"f": np.array(values[rank]), "i": np.array(big)}))[0]
    total = reduce_over(bundles)
    assert total["f"].item() == 100000002.0
    assert total["i"].item() == 3 * big


def test_arrays_can_be_combined_by_their_largest_and_smallest() -> None:
    bundles, _ = exchanged(lambda rank: Bundle({"a": np.array(rank), "b": np.array([rank, -rank]), "c": np.array(1)}))[
        0
    ]
    total = reduce_over(bundles, {"a": "max", "b": "min"})
    assert (total["a"].item(), total["b"].tolist(), total["c"].item()) == (2, [0, -2], 3)


def test_shapes_that_differ_are_named() -> None:
    bundles, _ = exchanged(lambda rank: Bundle({"a": np.zeros(2 + (rank == 2))}))[0]
    with pytest.raises(DistributionError, match=r"'a' has shape \(3,\) on rank 2 and \(2,\)"):
        reduce_over(bundles)


def test_what_a_communicator_does_not_carry_is_refused() -> None:
    with pytest.raises(ConfigurationTypeError, match="float16"):
        exchanged(lambda rank: Bundle({"a": np.zeros(2, np.float16)}), size=1)


@pytest.mark.parametrize("bad", [Bundle({"a": np.zeros(2, np.float16)}), Bundle({}, note=object())])
def test_a_refusal_on_one_rank_is_told_to_all(bad) -> None:
    def rank(comm):
        with pytest.raises(DistlrError) as info:
            exchange_bundles(comm, bad if comm.rank == 1 else Bundle({}), tag="t")
        return type(info.value), str(info.value), comm.allreduce(1, tag="after").item()

    replies = run_ranks(rank, 3, timeout=5.0)
    assert [kind for kind, _, _ in replies] == [DistributionError, ConfigurationTypeError, DistributionError]
    assert [after for _, _, after in replies] == [3, 3, 3]
    for other in (0, 2):
        assert (
            f"A rank refused its argument in allgather 't' (this is rank {other} of 3). On rank 1: "
            in replies[other][1]
        )


def test_the_first_ranks_numbers_are_floats_and_arrays_where_there_are_several() -> None:
    values = {"loss": 0.5, "of one class": np.array([0.25]), "f1": np.array([0.5, 1.0])}
    bundles, _ = exchanged(lambda rank: bundle_numbers(values) if rank else Bundle({}))[0]
    values = first_numbers(bundles)
    assert (values["loss"], values["of one class"], values["f1"].tolist()) == (0.5, 0.25, [0.5, 1.0])
    assert type(values["loss"]) is type(values["of one class"]) is float


def test_empty_arrays_and_no_arrays() -> None:
    bundles, _ = exchanged(lambda rank: Bundle({"a": np.zeros((0, 3))} if rank else {}), size=2)[0]
    assert bundles[0].arrays == {}
    assert bundles[1].arrays["a"].shape == (0, 3)


@pytest.mark.parametrize("chunk", [64 * 2**20, 8])
def test_a_broadcast_of_many_arrays_keeps_every_bit_and_any_type(monkeypatch, chunk) -> None:
    monkeypatch.setattr("distlr.communicators.bundles._CHUNK", chunk)
    root = [np.float32([1.1, np.nan]), np.array(2**60 + 1), np.float16([[0.1], [0.2]]), np.zeros(0), np.array(True)]

    def rank(comm):
        local_arrays = root if comm.is_root else [np.zeros_like(array) for array in root]
        return broadcast_arrays(comm, local_arrays, tag="t"), comm.log.total

    for received, collectives in run_ranks(rank, 2, timeout=5.0):
        for expected, array in zip(root, received, strict=True):
            assert (array.dtype, array.shape, array.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())
        assert collectives == (1 if chunk > 100 else 3)


def test_a_broadcast_of_nothing() -> None:
    assert run_ranks(lambda comm: broadcast_arrays(comm, [], tag="t"), 2, timeout=5.0) == [[], []]


def test_several_bundles_in_one_collective_stay_apart():
    def rank(comm):
        parts = {"a": Bundle({"ab/x": np.ones(2)}, note="a"), "ab": Bundle({"x": np.zeros(1)} if comm.rank else {})}
        return exchange_together(comm, parts, tag="t"), comm.log.total

    for replies, collectives in run_ranks(rank, 2):
        assert collectives == 1
        assert [bundle.note for bundle in replies["a"]] == ["a", "a"]
        assert [{name: array.tolist() for name, array in b.arrays.items()} for b in replies["a"]] == [
            {"ab/x": [1, 1]}
        ] * 2
        assert [{name: array.tolist() for name, array in b.arrays.items()} for b in replies["ab"]] == [{}, {"x": [0]}]
