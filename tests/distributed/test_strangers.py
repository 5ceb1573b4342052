"""Strangers at the ports of a real job, from its first moment to its last: it trains as if they were not there."""

from __future__ import annotations

import json
import pathlib
import threading
import time
from collections.abc import Callable

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(200)]

COUNT = 200


@pytest.fixture(scope="session")
def strangers(load_helper):
    return load_helper(pathlib.Path(__file__).parents[1] / "_strangers.py")


class Strangers:
    """A `watch` that disturbs a job while a worker waits for the other, while both start, and while they train."""

    def __init__(self, directory: pathlib.Path, strangers) -> None:
        self.directory, self.disturb = directory, strangers.disturb
        self.taken: dict[str, list[int]] = {}

    def __call__(self, ranks: Callable[[], dict[int, int]]) -> None:
        assert self._until(lambda: 0 in ranks())
        environ = pathlib.Path(f"/proc/{ranks()[0]}/environ").read_bytes().decode().split("\0")
        config = next(entry for entry in environ if entry.startswith("TF_CONFIG="))
        workers = json.loads(config.partition("=")[2])["cluster"]["worker"]
        self.taken["one waits"] = self.disturb(workers[:1], threading.Event(), COUNT)
        both_train = threading.Event()
        while_starting = threading.Thread(target=self._while_starting, args=(workers, both_train))
        while_starting.start()
        (self.directory / "come").touch()
        self._until(lambda: all((self.directory / f"trains-{rank}").exists() for rank in (0, 1)))
        both_train.set()
        while_starting.join(30)
        self.taken["both train"] = self.disturb(workers, threading.Event(), COUNT)
        (self.directory / "go on").touch()

    def _while_starting(self, workers: list[str], stop: threading.Event) -> None:
        """Without end: the workers meet, each lets its port go, and TensorFlow takes it."""
        self.taken["both start"] = self.disturb(workers, stop, 100_000)

    @staticmethod
    def _until(there: Callable[[], bool], seconds: float = 60) -> bool:
        deadline = time.monotonic() + seconds
        while not there() and time.monotonic() < deadline:
            time.sleep(0.02)
        return there()


def test_a_job_trains_among_strangers(launching, tmp_path, strangers) -> None:
    watch = Strangers(tmp_path, strangers)
    script = ["tests/distributed/scripts/among_strangers.py", str(tmp_path)]
    finished = launching.launch("multi-worker", 2, script, limit=120, watch=watch).check()
    assert watch.taken["one waits"] == [COUNT]
    assert min(watch.taken["both start"]) >= 10, watch.taken
    assert watch.taken["both train"] == [COUNT, COUNT]
    # 20 steps: each takes the weight's distance to 1 times 1 - 2 * 0.05.
    for rank in (0, 1):
        assert float((tmp_path / f"weight-{rank}").read_text()) == pytest.approx(1 - 0.9**20, rel=1e-5)
    assert strangers.WORD not in finished.output
    assert all(letter.isprintable() or letter in "\n\t" for letter in finished.output)
