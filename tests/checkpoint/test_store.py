"""Files that are whole or absent, whenever the process that writes them is killed."""

from __future__ import annotations

import fcntl
import os
import pathlib
import pickle
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors import SafetensorError

from distlr._utils import atomic_files
from distlr._utils.directory_lock import DirectoryLock
from distlr.checkpoint.store import CheckpointDirectory
from distlr.errors import ConfigurationError

# The number of a checkpoint is in each of its values, so that two of them cannot be mixed up.
WRITER = """
import sys
import numpy as np
from distlr.checkpoint.store import CheckpointDirectory
directory = CheckpointDirectory(sys.argv[1], keep=2)
directory.clean()
number = int(sys.argv[2])
print("ready", flush=True)
while True:
    number += 1
    arrays = {name: np.full(shape, number, "float32") for name, shape in {"a": (700, 700), "b": (), "c": (3,)}.items()}
    directory.write(number, arrays, {"number": number})
"""


def names(path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.name != "checkpoints.lock")


def written(path, *numbers: int, keep: int = 3) -> CheckpointDirectory:
    """A directory with these checkpoints, as a job of now has left it."""
    directory = CheckpointDirectory(path, keep)
    for number in numbers:
        directory.write(number, {"a": np.full(3, number, "float32")}, {"number": number})
    directory.release()
    return CheckpointDirectory(path, keep)


def truncate(path, number: int) -> None:
    with open(path / f"step-{number:012d}.safetensors", "r+b") as file:
        file.truncate(20)


def wait_for_unfinished_file(path) -> None:
    """Waits until a writer has begun a file, for half a minute at most."""
    deadline = time.monotonic() + 30
    while not any(name.startswith(".") for name in os.listdir(path)):
        assert time.monotonic() < deadline, "the writer began no file"


def newest(directory: CheckpointDirectory) -> int:
    """The number of the newest checkpoint, which must be whole; 0 where there is none."""
    for path, arrays, run in directory.readable():
        number = int(run["number"])
        assert path.name == f"step-{number:012d}.safetensors"
        assert {name: array.shape for name, array in arrays.items()} == {"a": (700, 700), "b": (), "c": (3,)}
        assert all((array == number).all() for array in arrays.values())
        return number
    return 0


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_killed_at_fifty_moments_while_it_writes(tmp_path, caplog) -> None:
    directory, rng, last = CheckpointDirectory(tmp_path, keep=2), random.Random(0), 0
    unfinished = files = 0
    for i in range(50):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(last)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0.0, 0.08))
            if i % 2:  # a slow disk leaves few of the moments at random within a file
                wait_for_unfinished_file(tmp_path)
            writer.send_signal(signal.SIGKILL)
        unfinished += any(path.name.startswith(".") for path in tmp_path.iterdir())
        number = newest(directory)
        assert number >= last
        # The oldest is removed after the newest is there, so a kill between the two leaves one more.
        assert 0 < len(directory.files()) <= max(files, 2) + 1 or number == 0
        files = len(directory.files())
        last = number
    assert "is no checkpoint" not in caplog.text  # not one was half
    assert unfinished > 5  # some were killed in the middle of a file
    assert last > 50
    directory.clean()
    directory.release()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in directory.files())


def test_nothing_stays_of_a_write_that_fails(tmp_path) -> None:
    directory = CheckpointDirectory(tmp_path, keep=2)
    directory.write(1, {"a": np.zeros(2)}, {})
    with pytest.raises(ValueError, match="JSON"):
        directory.write(2, {"a": np.zeros(2)}, {"rate": float("nan")})
    with pytest.raises(SafetensorError, match="object"):
        directory.write(2, {"a": np.array([object()])}, {})
    directory.release()
    assert names(tmp_path) == ["step-000000000001.safetensors"]


@pytest.mark.parametrize("keep", [1, 2, 3])
@pytest.mark.parametrize("looked", [True, False])
def test_a_new_checkpoint_stays_beside_newer_ones_that_cannot_be_read(tmp_path, keep, looked) -> None:
    """A power cut has damaged all that are kept: the run begins anew, and its checkpoints count from the first on."""
    directory = written(tmp_path, *range(1000, 1000 + keep), keep=keep)
    for number in range(1000, 1000 + keep):
        truncate(tmp_path, number)
    if looked:
        assert list(directory.readable()) == []
    for number in range(1, 6):
        path = directory.write(number, {"a": np.zeros(1)}, {})
        assert path.exists()
    good = [f"step-{number:012d}.safetensors" for number in range(6 - keep, 6)]
    damaged = [f"step-{number:012d}.safetensors" for number in range(1000, 1000 + keep)]
    assert names(tmp_path) == good + damaged


def test_what_is_damaged_gets_another_name_once_and_nothing_is_lost(tmp_path, caplog) -> None:
    directory = written(tmp_path, 1, 2, 3)
    whole = (tmp_path / "step-000000000003.safetensors").read_bytes()
    (tmp_path / "step-000000000003.safetensors").write_bytes(whole[:-1] + b"x")
    (tmp_path / "step-000000000003.safetensors.damaged").write_text("an earlier one")
    directory.acquire()
    assert [run["number"] for _, _, run in directory.readable()] == [2, 1]
    assert [run["number"] for _, _, run in directory.readable()] == [2, 1]
    assert caplog.text.count("step-000000000003.safetensors is damaged") == 1
    assert "It is step-000000000003.safetensors.damaged-2 now. The checkpoint before it is tried." in caplog.text
    assert (tmp_path / "step-000000000003.safetensors.damaged-2").read_bytes() == whole[:-1] + b"x"
    assert (tmp_path / "step-000000000003.safetensors.damaged").read_text() == "an earlier one"


def test_who_only_reads_changes_nothing(tmp_path) -> None:
    directory = written(tmp_path, 1, 2)
    truncate(tmp_path, 2)
    before = names(tmp_path)
    assert [run["number"] for _, _, run in directory.readable()] == [1]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == before


def test_older_ones_that_cannot_be_read_do_not_count(tmp_path) -> None:
    """Two of four that were kept by hand are cut off: two whole ones stay beside the new one."""
    directory = written(tmp_path, 1, 2, 3, 4, keep=4)
    directory.keep = 3
    for number in (3, 4):
        truncate(tmp_path, number)
    directory.write(5, {"a": np.zeros(1)}, {})
    assert [path.name[-13:-12] for path in directory.files()] == ["5", "4", "3", "2", "1"]
    directory.write(6, {"a": np.zeros(1)}, {})
    assert [path.name[-13:-12] for path in directory.files()] == ["6", "5", "4", "3", "2"]


@pytest.mark.parametrize("kind", ["directory", "full directory", "pipe", "dangling link", "no permission", "pickle"])
@pytest.mark.parametrize("number", [1, 5, 7])
def test_what_only_has_the_name_of_a_checkpoint_ends_nothing(tmp_path, kind, number, caplog, monkeypatch) -> None:
    """It is older than the one that is continued, as old as one that will be written, or newer than all."""
    directory = written(tmp_path, 2, 3, keep=2)
    odd = tmp_path / f"step-{number:012d}.safetensors"
    if "directory" in kind:
        odd.mkdir()
        if kind == "full directory":
            (odd / "file").touch()
    elif kind == "pipe":
        os.mkfifo(odd)
    elif kind == "dangling link":
        odd.symlink_to("nowhere")
    else:
        odd.write_bytes(pickle.dumps([1]))
    if kind == "no permission":  # root may read everything
        real = os.open
        refuse = lambda path, *how: real(path, *how) if path != odd else real("/proc/nothing", *how)  # noqa: E731
        monkeypatch.setattr(atomic_files.os, "open", refuse)
    directory.acquire()
    directory.clean()
    read = next(directory.readable())
    assert read[2]["number"] == 3
    assert caplog.text.count(f"{odd} is no checkpoint of distlr") == (number > 3)
    for later in range(4, 9):
        if later == number:
            monkeypatch.undo()  # the new file is none that cannot be opened
        path = directory.write(later, {"a": np.zeros(1)}, {"number": later})
        assert path.is_file()
        assert next(directory.readable())[2]["number"] == later
    assert [name for name in names(tmp_path) if name[5:17] > f"{6:012d}" and name.endswith("s")] == [
        f"step-{later:012d}.safetensors" for later in (7, 8)
    ]


def test_where_none_can_be_read_a_warning_says_that_the_training_begins_anew(tmp_path, caplog) -> None:
    directory = written(tmp_path, 1)
    truncate(tmp_path, 1)
    assert list(directory.readable()) == []
    assert f"None of the checkpoints in {tmp_path} can be read, so the training begins anew. Fix: " in caplog.text
    caplog.clear()
    assert list(CheckpointDirectory(tmp_path / "new", 1).readable()) == []
    assert caplog.text == ""


def test_what_cannot_be_removed_stays_and_ends_nothing(tmp_path, caplog, monkeypatch) -> None:
    directory = written(tmp_path, 1, 2, 3)

    def unlink(path):
        raise PermissionError(13, "Permission denied", str(path))

    directory.acquire()
    monkeypatch.setattr(pathlib.Path, "unlink", unlink)
    for number in (4, 5):
        directory.write(number, {"a": np.zeros(1)}, {})
    monkeypatch.undo()
    assert len(directory.files()) == 5
    assert caplog.text.count("cannot be removed, and stays") == 1
    directory.write(6, {"a": np.zeros(1)}, {})
    assert len(directory.files()) == 3


def test_a_file_that_is_being_written_is_no_leftover(tmp_path, monkeypatch) -> None:
    """A second job that began meanwhile once removed it, and the first one's write ended with an error."""
    directory, real = CheckpointDirectory(tmp_path, 3), os.fsync

    def fsync(descriptor: int) -> None:
        CheckpointDirectory(tmp_path, 3).clean()
        real(descriptor)

    directory.acquire()
    (tmp_path / ".step-000000000001.safetensors.0123").touch()
    monkeypatch.setattr(atomic_files.os, "fsync", fsync)
    directory.write(2, {"a": np.zeros(1)}, {})
    assert names(tmp_path) == ["step-000000000002.safetensors"]


def test_another_jobs_directory_is_refused_before_anything_is_touched(tmp_path) -> None:
    directory = written(tmp_path, 1)
    (tmp_path / ".step-000000000002.safetensors.0123").touch()
    before = names(tmp_path)
    with open(tmp_path / "checkpoints.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for use in (lambda: directory.acquire(0.0), directory.clean, lambda: directory.write(2, {}, {})):
            directory._lock.acquire = lambda timeout=None: DirectoryLock.acquire(directory._lock, 0.0)
            with pytest.raises(ConfigurationError, match="is in use by another job"):
                use()
    assert names(tmp_path) == before


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"directory that can be made.*Not a directory.*Fix: name another one"):
        CheckpointDirectory(tmp_path / "file" / "checkpoints", 3).acquire()
