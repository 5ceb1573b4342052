"""A function that rank 0 alone calls, with its result, or its error, on every rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, cast

from distlr._utils.renamed import aliases
from distlr.communicators.bundles import Bundle, exchange_bundles
from distlr.communicators.communicator import Communicator
from distlr.errors import DistlrError, DistributionError

__all__ = ["compute_bundle_on_root", "compute_on_root"]

_J = TypeVar("_J")  # a JSON value


def compute_on_root(
    communicator: Communicator,
    make: Callable[[], _J],
    *,
    tag: str,
    what: str,
    raised: Sequence[type[DistlrError]] = (DistributionError,),
) -> _J:
    """Calls `make` on rank 0 and returns its result on every rank; an error of rank 0 ends all. Collective.

    >>> from distlr.communicators import run_ranks
    >>> run_ranks(lambda comm: compute_on_root(comm, lambda: [1, "a"], tag="t", what="choose"), 2)
    [[1, 'a'], [1, 'a']]

    Args:
        communicator: the job's.
        make: called on rank 0; its result is a JSON value, and is returned as decoded from JSON on rank 0, too.
        tag: names the call; the same on all ranks.
        what: completes the sentence "Rank 0 could not".
        raised: the other ranks raise the first of these classes that rank 0's error belongs to, or the last.

    Raises:
        Exception: on rank 0 the error of `make`; on the others one of `raised`, with its text.
    """
    bundle = compute_bundle_on_root(communicator, lambda: Bundle({}, note=make()), tag=tag, what=what, raised=raised)
    return cast(_J, bundle.note)


def compute_bundle_on_root(
    communicator: Communicator,
    make: Callable[[], Bundle],
    *,
    tag: str,
    what: str,
    raised: Sequence[type[DistlrError]] = (DistributionError,),
) -> Bundle:
    """Works as `compute_on_root`, where `make` returns arrays as well. Collective."""
    bundle, failure = Bundle({}), None
    if communicator.is_root:
        try:
            local = make()
            bundle = Bundle(local.arrays, note={"made": local.note})
        except Exception as error:  # every rank must receive it before this one raises, or the others wait
            failure = error
            place = next((i for i, each in enumerate(raised) if isinstance(error, each)), len(raised) - 1)
            text = str(error) if isinstance(error, DistlrError) else f"{type(error).__name__}: {error}"
            bundle = Bundle({}, note={"error": text, "kind": place})
    reply = exchange_bundles(communicator, bundle, tag=tag)[0]
    if "error" in reply.fields:
        kind = reply.fields["kind"]
        assert isinstance(kind, int)
        raise failure or raised[kind](f"[rank {communicator.rank}] Rank 0 could not {what}: {reply.fields['error']}")
    return Bundle(reply.arrays, reply.fields["made"])


__getattr__ = aliases(__name__, {"from_root": "compute_on_root"})
