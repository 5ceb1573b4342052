"""Frames: how one rank's part of a collective travels, whether all mean the same one, and how ranks are named.

A frame is a header (magic, two lengths), a signature as JSON (kind, tag, terms, length, refusal, updates) and the data,
each padded to a multiple of 8 bytes. This module imports neither TensorFlow, Keras nor an engine.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from distlr._utils.rank_names import name_ranks
from distlr.errors import (
    CollectiveMismatchError,
    ConfigurationError,
    ConfigurationTypeError,
    DistlrError,
    DistributionError,
    received,
)

__all__ = [
    "EMPTY",
    "REDUCERS",
    "Array",
    "CollectiveMessage",
    "Frame",
    "check_same",
    "checked_array",
    "decode",
    "encode",
    "group_by_rank",
    "pad_frame",
    "split_frames",
    "to_array",
    "to_bytes",
    "to_json",
]

Array = npt.NDArray[np.float32 | np.float64 | np.int64 | np.bool_ | np.uint8]
Frame = npt.NDArray[np.uint8]

EMPTY: Frame = np.zeros(0, np.uint8)

REDUCERS: dict[str, np.ufunc] = {"sum": np.add, "max": np.maximum, "min": np.minimum}
"""The functions that combine arrays over ranks, by name."""

_DTYPES = ("float32", "float64", "int64", "bool", "uint8")
_MAGIC = b"DLR2"
_HEADER = struct.Struct("<4sIQ")  # magic, bytes of the signature, bytes of the payload


@dataclasses.dataclass(frozen=True)
class CollectiveMessage:
    """One rank's decoded frame. `terms` must agree on all ranks; `length` is an allgather's leading size.

    `updates` is how often the rank has averaged gradients since the collective before, which must agree too.
    """

    kind: str
    tag: str
    terms: Mapping[str, object]
    length: int
    refused: str
    data: Frame
    updates: int = 0


def checked_array(array: npt.ArrayLike) -> Array:
    """The array in native byte order; refuses a type that a communicator does not carry."""
    try:
        value = np.asarray(array)
    except (TypeError, ValueError) as error:
        text = f"`array` must be a numpy array. Received: {type(array).__name__}, which numpy refuses: {error}"
        raise ConfigurationTypeError(text) from error
    if value.dtype.name not in _DTYPES:
        hint = "cast it on every rank, so that no precision is lost unseen"
        raise ConfigurationTypeError(received("array.dtype", str(value.dtype), f"one of {_DTYPES}", hint))
    return value


def to_bytes(value: Array) -> Frame:
    """The bytes of an array, little-endian and in C order, whatever the machine's."""
    flat = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<")).reshape(-1)
    return flat.view(np.uint8)


def to_array(data: Frame, dtype: np.dtype[np.generic], shape: Sequence[int]) -> Array:
    """The inverse of `to_bytes`: a new array, writable, in the machine's byte order."""
    value: Array = data.view(dtype.newbyteorder("<")).astype(dtype.newbyteorder("="), copy=True)
    return value.reshape(shape)


def to_json(obj: object) -> Frame:
    """A JSON value as bytes; refuses anything else, naming its type."""

    def refuse(item: object) -> NoReturn:
        raise ConfigurationTypeError(
            f"`obj` must be JSON (dict, list, str, int, float, bool, None). Received: a "
            f"{type(item).__module__}.{type(item).__qualname__}. Fix: convert it, as with float() or "
            ".tolist()."
        )

    try:
        text = json.dumps(obj, allow_nan=True, default=refuse)
    except DistlrError:
        raise
    except TypeError as error:
        raise ConfigurationTypeError(f"`obj` must be JSON: {error}.") from error
    except ValueError as error:
        raise ConfigurationError(f"`obj` must be JSON: {error}.") from error
    return np.frombuffer(text.encode(), np.uint8)


def _padded(size: int, unit: int = 8) -> int:
    return -(-size // unit) * unit


def encode(part: CollectiveMessage) -> Frame:
    """One frame: a header with the lengths, the signature as JSON, the data; each padded to 8 bytes."""
    signature = json.dumps([part.kind, part.tag, part.terms, part.length, part.refused, part.updates]).encode()
    start = _HEADER.size + _padded(len(signature))
    frame: Frame = np.zeros(start + _padded(part.data.size), np.uint8)
    head = _HEADER.pack(_MAGIC, len(signature), part.data.size) + signature
    frame[: len(head)] = np.frombuffer(head, np.uint8)
    frame[start : start + part.data.size] = part.data
    return frame


def pad_frame(frame: Frame, unit: int) -> Frame:
    """The frame with zeros behind it, up to a multiple of `unit` bytes.

    >>> pad_frame(np.ones(9, np.uint8), 8).size
    16
    """
    return np.concatenate([frame, np.zeros(_padded(frame.size, unit) - frame.size, np.uint8)])


def split_frames(frames: Frame, count: int, label: str, unit: int = 8) -> list[Frame]:
    """Splits `count` frames that an engine has concatenated; each holds its own length.

    Args:
        frames: concatenated.
        count: how many there are.
        label: the collective, for the message.
        unit: what each was padded to.
    """
    parts: list[Frame] = []
    start = 0
    for rank in range(count):
        size = _frame_size(frames[start:], rank, label)
        parts.append(frames[start : start + size])
        start += _padded(size, unit)
    return parts


def _frame_size(frame: Frame, rank: int, label: str) -> int:
    """The length of the frame at the beginning of `frame`; refuses bytes that are no frame."""
    head = frame[: _HEADER.size].tobytes()
    magic, signed, size = _HEADER.unpack(head) if len(head) == _HEADER.size else (b"", 0, 0)
    total = _HEADER.size + _padded(signed) + _padded(size)
    if magic != _MAGIC or total > frame.size:
        raise DistributionError(
            f"Rank {rank} sent something else than a distlr collective while this rank was in {label}: "
            "another library's collective, or another version of distlr."
        )
    return int(total)


def decode(frame: Frame, rank: int, label: str) -> CollectiveMessage:
    """Decodes the frame that `rank` sent; refuses bytes that are no frame."""
    _frame_size(frame, rank, label)
    _, signed, size = _HEADER.unpack(frame[: _HEADER.size].tobytes())
    start = _HEADER.size + _padded(signed)
    kind, tag, terms, length, refused, updates = json.loads(frame[_HEADER.size : _HEADER.size + signed].tobytes())
    return CollectiveMessage(kind, tag, terms, length, refused, frame[start : start + size], updates)


def check_same(parts: Sequence[CollectiveMessage], rank: int) -> None:
    """Raises where the ranks' parts belong to different collectives or have different terms, or a rank refuses.

    Every rank sees the same parts, so all come to the same verdict and all raise or none does.

    Args:
        parts: by rank.
        rank: this one, for the message.

    Raises:
        CollectiveMismatchError: they are in different collectives.
        DistributionError: a rank refused its argument, has made another number of updates, or passed other terms.
    """
    this_rank = f"this is rank {rank} of {len(parts)}"
    labels = [f"{part.kind} {part.tag!r}" for part in parts]
    equal_updates = len({part.updates for part in parts}) == 1
    if len(set(labels)) > 1:
        places = [
            label if equal_updates else f"{label} after {part.updates} updates"
            for label, part in zip(labels, parts, strict=True)
        ]
        raise CollectiveMismatchError(
            f"The ranks are in different collectives ({this_rank}): {group_by_rank(places, 'in')}. Every rank must "
            "call the same collectives in the same order: look for one that only some ranks reach, "
            "such as under `if is_root`."
        )
    refusals = [f"{other}: {part.refused}" for other, part in enumerate(parts) if part.refused]
    if refusals:
        raise DistributionError(
            f"A rank refused its argument in {labels[0]} ({this_rank}). On rank {' On rank '.join(refusals)}"
        )
    if not equal_updates:
        texts = [f"{part.updates} updates" for part in parts]
        fewest = [rank for rank, part in enumerate(parts) if part.updates == min(other.updates for other in parts)]
        raise DistributionError(
            f"The ranks' data ended at different batches before {labels[0]} ({this_rank}): "
            f"{group_by_rank(texts, 'after')}. The weights are no longer those of one training. "
            "Fix: feed each rank with job.shard(data, batch), or give every rank the same number of steps. If their "
            "data is equally long, something on "
            f"{name_ranks(fewest)} alone ended the epoch, such as a callback that set model.stop_training: give the "
            "callbacks to job.callbacks, which lets all ranks stop together."
        )
    if any(part.terms != parts[0].terms for part in parts):
        texts = [", ".join(f"{key}={value!r}" for key, value in part.terms.items()) for part in parts]
        raise DistributionError(
            f"The ranks disagree in {labels[0]} ({this_rank}): {group_by_rank(texts, 'with')}. Every rank must pass "
            "the same of these."
        )


def group_by_rank(texts: Sequence[str], verb: str) -> str:
    """Groups ranks that have the same text, so that a message stays short at 512 ranks.

    >>> group_by_rank(["a 'x'", "b 'y'", "b 'y'"], "in")
    "rank 0 in a 'x'; ranks 1-2 in b 'y'"
    """
    groups: dict[str, list[int]] = {}
    for rank, text in enumerate(texts):
        groups.setdefault(text, []).append(rank)
    return "; ".join(f"{name_ranks(ranks)} {verb} {text}" for text, ranks in groups.items())
