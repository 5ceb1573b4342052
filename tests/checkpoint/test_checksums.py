"""The checksum of a checkpoint: every bit of the file counts."""

from __future__ import annotations

import logging
import os
import re
import zlib

import numpy as np
import pytest
import safetensors.numpy

from distlr.checkpoint.store import read_checkpoint, write_checkpoint
from distlr.errors import StateError

ARRAYS = {"weight/0": np.arange(6, dtype="float32").reshape(2, 3), "optimizer/clock": np.int64(64_000)}
RUN = {"epoch": 1, "formula": {'"checksum":"00000000"': "text that looks like the field"}}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "step-000000000001.safetensors"
    write_checkpoint(path, ARRAYS, RUN)
    return path


def same(actual, expected) -> bool:
    return actual.keys() == expected.keys() and all(np.array_equal(actual[name], expected[name]) for name in expected)


def refusal(path) -> str:
    """Why a file is refused; empty where it is read."""
    try:
        read_checkpoint(path)
    except StateError as error:
        return str(error)
    return ""


def test_every_single_bit_that_flips_is_noticed(file) -> None:
    """The bits are of the length, the header, its padding, the checksum itself and the values."""
    whole = file.read_bytes()
    messages = []
    with open(file, "r+b", buffering=0) as damaged:
        for place in range(len(whole) * 8):
            at, bit = divmod(place, 8)
            os.pwrite(damaged.fileno(), bytes([whole[at] ^ 1 << bit]), at)
            messages.append(refusal(file))
            os.pwrite(damaged.fileno(), whole[at : at + 1], at)
    assert [place for place, text in enumerate(messages) if not text] == []
    assert all(str(file) in text and "Fix: " in text for text in messages)
    assert same(read_checkpoint(file)[0], ARRAYS)


@pytest.mark.parametrize(
    "change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: data[:8], lambda data: b""]
)
def test_a_file_of_another_length_is_noticed(file, change) -> None:
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(StateError, match=r"step-000000000001.safetensors is .*Fix: "):
        read_checkpoint(file)


def test_the_message_says_what_differs(file) -> None:
    whole = bytearray(file.read_bytes())
    stored = re.search(rb'"checksum":"([0-9a-f]{8})"', whole)[1].decode()
    whole[-1] ^= 1
    file.write_bytes(whole)
    with pytest.raises(StateError, match=f"is damaged: its checksum is {stored}, and what it holds has (?!{stored})"):
        read_checkpoint(file)


def test_the_checksum_is_that_of_the_whole_file_and_others_can_read_it(file) -> None:
    """By hand: the CRC-32 of all bytes while the field is zeros. Safetensors itself reads the file as ever."""
    whole = file.read_bytes()
    stored = re.search(rb'"checksum":"([0-9a-f]{8})"', whole)[1]
    assert f"{zlib.crc32(whole.replace(stored, b'0' * 8)):08x}".encode() == stored
    assert same(safetensors.numpy.load_file(file), ARRAYS)
    assert read_checkpoint(file)[1] == RUN


def test_a_file_without_a_checksum_is_read_with_a_warning(file, caplog) -> None:
    """The file is as earlier versions wrote it, by the format's own library."""
    caplog.set_level(logging.INFO, "distlr")
    values = {name: np.asarray(array) for name, array in ARRAYS.items()}
    file.write_bytes(safetensors.numpy.save(values, {"format": "1", "run": '{"epoch": 1}'}))
    arrays, run = read_checkpoint(file)
    assert same(arrays, ARRAYS)
    assert run == {"epoch": 1}
    assert caplog.text.count("of an earlier version, without a checksum") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"format": "1", "run": "[" * 100_000}, "nested too deeply"),
        ({"format": "1", "run": '{"rate": 1e999}'}, "1e999 is no finite number"),
        ({"format": "1", "run": '{"rate": NaN}'}, "NaN is no finite number"),
        ({"format": "1", "run": "{}", "chacksum": "00000000"}, "says its 'chacksum' and has no checksum"),
        ({"format": "1"}, "does not say its 'run'"),
        ({"format": "9", "run": "{}"}, "has the format '9', and this version of distlr reads '1'"),
        ({"format": "1", "run": "[]"}, "its 'run' is no object"),
    ],
)
def test_text_that_no_run_has_written(file, text, message) -> None:
    file.write_bytes(safetensors.numpy.save({"a": np.ones(1)}, text))
    with pytest.raises(StateError, match=message):
        read_checkpoint(file)
