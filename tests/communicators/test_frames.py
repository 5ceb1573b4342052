"""The verdict on what the ranks sent; the conformance tests have it through every collective."""

from __future__ import annotations

import numpy as np
import pytest

from distlr.communicators.frames import EMPTY, CollectiveMessage, check_same, decode, encode, pad_frame, split_frames
from distlr.errors import CollectiveMismatchError, DistributionError


def parts(*different):
    plain = {"kind": "barrier", "tag": "t", "terms": {}, "length": 0, "refused": "", "data": EMPTY}
    return [CollectiveMessage(**{**plain, **each}) for each in different]


@pytest.mark.parametrize("equal", [({}, {}), ({"length": 1}, {"length": 2}), ({"updates": 3}, {"updates": 3})])
def test_what_may_differ(equal):
    check_same(parts(*equal), 0)


@pytest.mark.parametrize(
    ("different", "kind", "words"),
    [
        (
            ({"updates": 3}, {"tag": "u", "updates": 2}),
            CollectiveMismatchError,
            "rank 0 in barrier 't' after 3 updates; rank 1 in barrier 'u' after 2 updates",
        ),
        (
            ({"updates": 3}, {"updates": 2}),
            DistributionError,
            "ended at different batches before barrier 't' (this is rank 1 of 2): rank 0 after 3 updates",
        ),
        (({"refused": "No."}, {"updates": 2}), DistributionError, "A rank refused its argument in barrier 't'"),
        (({"terms": {"a": 1}}, {"terms": {"a": 2}}), DistributionError, "rank 0 with a=1; rank 1 with a=2"),
    ],
)
def test_what_must_not_differ(different, kind, words):
    with pytest.raises(DistributionError) as info:
        check_same(parts(*different), 1)
    assert type(info.value) is kind
    assert words in str(info.value)
    assert "this is rank 1 of 2" in str(info.value)


@pytest.mark.parametrize("unit", [8, 64, 2048])
def test_frames_one_behind_another_are_taken_apart(unit):
    data = [np.arange(size, dtype=np.uint8) for size in (0, 1, 8, 200, 0)]
    frames = [
        pad_frame(encode(CollectiveMessage("allgather", "t" * rank, {}, rank, "", payload)), unit)
        for rank, payload in enumerate(data)
    ]
    assert all(frame.size % unit == 0 for frame in frames)
    for rank, frame in enumerate(split_frames(np.concatenate(frames), len(frames), "allgather 't'", unit)):
        part = decode(frame, rank, "allgather 't'")
        assert (part.tag, part.length, part.data.tolist()) == ("t" * rank, rank, data[rank].tolist())
