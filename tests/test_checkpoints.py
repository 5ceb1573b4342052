"""Files that are whole or absent, whenever the process that writes them is killed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors import SafetensorError

from distlr.checkpoints import CheckpointDirectory

# The number of a checkpoint is in each of its values, so that two of them cannot be mixed up.
WRITER = """
import sys
import numpy as np
from distlr.checkpoints import CheckpointDirectory
directory = CheckpointDirectory(sys.argv[1], keep=2)
directory.clean()
number = int(sys.argv[2])
print("ready", flush=True)
while True:
    number += 1
    arrays = {name: np.full(shape, number, "float32") for name, shape in {"a": (700, 700), "b": (), "c": (3,)}.items()}
    directory.write(number, arrays, {"number": number})
"""


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
    for _ in range(50):
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(last)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0.0, 0.08))
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
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in directory.files())


def test_nothing_stays_of_a_write_that_fails(tmp_path) -> None:
    directory = CheckpointDirectory(tmp_path, keep=2)
    directory.write(1, {"a": np.zeros(2)}, {})
    with pytest.raises(ValueError, match="JSON"):
        directory.write(2, {"a": np.zeros(2)}, {"rate": float("nan")})
    with pytest.raises(SafetensorError, match="object"):
        directory.write(2, {"a": np.array([object()])}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000001.safetensors"]
