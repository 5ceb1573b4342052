"""What rank 0 makes, and what it could not make, on every rank."""

from __future__ import annotations

import numpy as np
import pytest

from distlr.communicators import run_ranks
from distlr.communicators.bundles import Bundle
from distlr.communicators.rank_zero import compute_bundle_on_root, compute_on_root
from distlr.errors import ConfigurationError, ConfigurationTypeError, DistributionError, StateError


def failing(error):
    """A function that raises it."""

    def make():
        raise error

    return make


def raised(make, size=3, **options):
    """The error of each rank; and nobody is left waiting."""

    def rank(comm):
        with pytest.raises(Exception) as info:  # noqa: PT011
            compute_on_root(comm, make, tag="t", what="read the file", **options)
        assert comm.allreduce(1, tag="after") == comm.size
        return info.value

    return run_ranks(rank, size, timeout=5.0)


@pytest.mark.parametrize("size", [1, 3])
def test_every_rank_gets_what_rank_0_makes_in_one_collective(size) -> None:
    calls = []

    def rank(comm):
        value = compute_on_root(comm, lambda: calls.append(comm.rank) or {"a": (1, None)}, tag="t", what="make")
        return value, comm.log.total

    assert run_ranks(rank, size, timeout=5.0) == [({"a": [1, None]}, 1)] * size
    assert calls == [0]


def test_arrays_come_with_a_value() -> None:
    bundles = run_ranks(
        lambda comm: compute_bundle_on_root(comm, lambda: Bundle({"a": np.arange(3)}, note=7), tag="t", what="make"), 2
    )
    assert [(bundle.note, bundle.arrays["a"].tolist()) for bundle in bundles] == [(7, [0, 1, 2])] * 2
    assert (
        run_ranks(lambda comm: compute_bundle_on_root(comm, lambda: Bundle({}), tag="t", what="make").note, 2)
        == [None] * 2
    )


@pytest.mark.parametrize("error", [ConfigurationError("No such file."), KeyError("epoch"), OSError(28, "full")])
def test_any_error_of_rank_0_is_one_of_all(error) -> None:
    errors = raised(failing(error))
    assert errors[0] is error
    text = str(error) if isinstance(error, ConfigurationError) else f"{type(error).__name__}: {error}"
    for number in (1, 2):
        assert type(errors[number]) is DistributionError
        assert str(errors[number]) == f"[rank {number}] Rank 0 could not read the file: {text}"


@pytest.mark.parametrize(
    ("error", "kind"), [(StateError("x"), StateError), (ConfigurationError("x"), DistributionError)]
)
def test_the_other_ranks_raise_the_first_class_that_fits_or_the_last(error, kind) -> None:
    errors = raised(failing(error), raised=(StateError, DistributionError))
    assert [type(each) for each in errors] == [type(error), kind, kind]


def test_a_value_that_cannot_be_sent_is_an_error_of_all() -> None:
    kinds = [type(error) for error in raised(lambda: {1, 2})]
    assert kinds == [ConfigurationTypeError, DistributionError, DistributionError]
