"""Several named arrays in one collective."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Iterable, Mapping
from typing import cast

import numpy as np
import numpy.typing as npt

from distlr._utils.json_types import JSON
from distlr.communicators.communicator import Communicator
from distlr.communicators.frames import REDUCERS, Array, Frame, checked_array, to_array, to_bytes, to_json
from distlr.errors import DistlrError, DistributionError

__all__ = [
    "Bundle",
    "broadcast_arrays",
    "bundle_numbers",
    "exchange_bundles",
    "exchange_together",
    "first_numbers",
    "mean_over",
    "reduce_over",
    "to_number",
]

_LENGTH = struct.Struct("<Q")
_CHUNK = 64 * 2**20  # bytes of a collective where a whole model is sent; limits the copies in memory


@dataclasses.dataclass(frozen=True)
class Bundle:
    """One rank's contribution: named arrays, which another rank may lack, and a JSON value beside them."""

    arrays: Mapping[str, Array]
    note: object = None

    @property
    def fields(self) -> dict[str, JSON]:
        """The note, where it is an object of JSON."""
        assert isinstance(self.note, dict)
        return self.note


def exchange_bundles(communicator: Communicator, bundle: Bundle, *, tag: str) -> list[Bundle]:
    """Every rank's bundle, in rank order. Collective, and one collective whatever the number of arrays.

    >>> from distlr.communicators import run_ranks
    >>> def rank(comm):
    ...     local = Bundle({"total": np.ones(2)} if comm.is_root else {}, note=comm.rank)
    ...     return [(sorted(b.arrays), b.note) for b in exchange_bundles(comm, local, tag="metrics")]
    >>> run_ranks(rank, 2)[0]
    [(['total'], 0), ([], 1)]
    """
    try:
        packed = _pack(bundle)
    except DistlrError as error:
        communicator.refuse("allgather", tag, error)
    return [_unpack(part.view(np.uint8)) for part in communicator.allgather(packed, tag=tag)]


def exchange_together(communicator: Communicator, parts: Mapping[str, Bundle], *, tag: str) -> dict[str, list[Bundle]]:
    """`exchange_bundles` of several bundles, in one collective.

    Args:
        communicator: the job's.
        parts: by names that are the same on every rank and have no slash.
        tag: names the call; the same on all ranks.

    >>> from distlr.communicators import run_ranks
    >>> def rank(comm):
    ...     local = {"loss": Bundle({"total": np.ones(2)}), "plan": Bundle({}, note=comm.rank)}
    ...     replies = exchange_together(comm, local, tag="epoch")
    ...     return sorted(replies["loss"][1].arrays), [plan.note for plan in replies["plan"]]
    >>> run_ranks(rank, 2)[0]
    (['total'], [0, 1])
    """
    arrays = {f"{part}/{name}": array for part, bundle in parts.items() for name, array in bundle.arrays.items()}
    notes = {part: bundle.note for part, bundle in parts.items()}
    all_ranks = exchange_bundles(communicator, Bundle(arrays, note=notes), tag=tag)

    def extract(part: str, whole: Bundle) -> Bundle:
        """One rank's bundle of this name, from all that it sent."""
        start = f"{part}/"
        arrays = {name[len(start) :]: array for name, array in whole.arrays.items() if name.startswith(start)}
        return Bundle(arrays, note=whole.fields[part])

    return {part: [extract(part, whole) for whole in all_ranks] for part in parts}


def reduce_over(bundles: Iterable[Bundle], how: Mapping[str, str] | None = None) -> dict[str, Array]:
    """Each array reduced over the ranks that have it, in rank order: floats in float64, integers in int64.

    Args:
        bundles: the result of `exchange_bundles`.
        how: "max" or "min" by the name of an array; every other one is summed.

    Raises:
        DistributionError: two ranks have arrays of one name that differ in shape.
    """
    how = {} if how is None else how
    result: dict[str, Array] = {}
    for rank, bundle in enumerate(bundles):
        for name, array in bundle.arrays.items():
            widened: Array = array.astype(np.float64) if array.dtype.kind == "f" else array.astype(np.int64)
            if name not in result:
                result[name] = widened
            elif result[name].shape != widened.shape:
                raise DistributionError(
                    f"'{name}' has shape {widened.shape} on rank {rank} and {result[name].shape} on a rank before it. "
                    "Fix: build the same model, with the same metrics, on every rank."
                )
            else:
                result[name] = np.asarray(REDUCERS[how.get(name, "sum")](result[name], widened))
    return result


def bundle_numbers(values: Mapping[str, float]) -> Bundle:
    """A bundle of numbers by their names."""
    return Bundle({name: np.asarray(value, np.float64) for name, value in values.items()})


def to_number(value: object) -> float:
    """Converts a metric's result to a float; to an array where it has several values: `F1Score(average=None)`."""
    array = np.asarray(value)
    return float(array.item()) if array.size == 1 else cast(float, array)  # typed as it nearly always is


def first_numbers(bundles: Iterable[Bundle]) -> dict[str, float]:
    """The numbers of the first rank that has any, in rank order; an array where there are several of one name."""
    return next(({name: to_number(value) for name, value in b.arrays.items()} for b in bundles if b.arrays), {})


def mean_over(bundles: list[Bundle]) -> dict[str, npt.NDArray[np.float64]]:
    """The mean of each array over the ranks that have it, in float64."""
    count: dict[str, int] = {}
    for bundle in bundles:
        for name in bundle.arrays:
            count[name] = count.get(name, 0) + 1
    return {name: np.asarray(total / count[name], np.float64) for name, total in reduce_over(bundles).items()}


def broadcast_arrays(communicator: Communicator, arrays: list[Array], *, tag: str) -> list[Array]:
    """Gives every rank rank 0's arrays, bit for bit. Collective; one collective for each 64 MiB.

    Args:
        arrays: the same number, dtypes and shapes on every rank; of any dtype that has a fixed size.
        tag: names the call; the same on all ranks.
    """
    byte_views = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays]
    local_bytes = np.concatenate(byte_views) if byte_views else np.zeros(0, np.uint8)
    chunks = [
        communicator.broadcast(local_bytes[start : start + _CHUNK], tag=f"{tag} at byte {start}")
        for start in range(0, max(local_bytes.size, 1), _CHUNK)
    ]
    data, results, start = np.concatenate(chunks), [], 0
    for array in arrays:
        results.append(data[start : start + array.nbytes].view(array.dtype).reshape(array.shape))
        start += array.nbytes
    return results


def _pack(bundle: Bundle) -> Frame:
    values = {name: checked_array(array) for name, array in bundle.arrays.items()}
    manifest = to_json([[[name, value.dtype.name, list(value.shape)] for name, value in values.items()], bundle.note])
    head = np.frombuffer(_LENGTH.pack(manifest.size), np.uint8)
    return np.concatenate([head, manifest, *(to_bytes(value) for value in values.values())])


def _unpack(data: Frame) -> Bundle:
    (length,) = _LENGTH.unpack(data[: _LENGTH.size].tobytes())
    start = _LENGTH.size + length
    layout, note = json.loads(data[_LENGTH.size : start].tobytes())
    arrays: dict[str, Array] = {}
    for name, dtype, shape in layout:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        arrays[name] = to_array(data[start : start + size], np.dtype(dtype), shape)
        start += size
    return Bundle(arrays, note)
