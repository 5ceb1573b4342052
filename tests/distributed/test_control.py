"""`distlr control` against real jobs: all ranks at the same step, and no hostile file does anything."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(200)]

COMMAND = pathlib.Path(sys.executable).with_name("distlr")


@pytest.fixture(scope="session")
def hostile(load_helper):
    return load_helper(pathlib.Path(__file__).parents[1] / "_hostile_requests.py")


class ByHand:
    """A `watch` that steers a run once it is under way, by the command that a person types."""

    def __init__(self, run_dir: pathlib.Path, hostile) -> None:
        self.run_dir, self.hostile = run_dir, hostile
        self.files: list[str] = []
        self.said: list[subprocess.CompletedProcess[str]] = []

    def __call__(self, ranks) -> None:
        assert self._until(lambda: (self.run_dir / "epochs.jsonl").is_file()), "the run did not begin"
        self._type("set-lr", "--multiply", "0.5", "--wait", "60")
        self.files = self.hostile.write(self.run_dir / "control", self.run_dir / "elsewhere")
        assert self._until(lambda: len(list((self.run_dir / "control").glob("*.refused"))) >= len(self.files))
        self._type("set-lr", "--to", "1e3", "--wait", "60")
        self._type("set-lr", "--to", "1e-5", "--force", "--wait", "60")
        self._type("stop", "--wait", "60")

    def _type(self, *words: str) -> None:
        command = [str(COMMAND), "control", str(self.run_dir), *words]
        self.said.append(subprocess.run(command, capture_output=True, text=True, timeout=90, check=False))

    @staticmethod
    def _until(there, seconds: float = 60) -> bool:
        deadline = time.monotonic() + seconds
        while not there():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True


def _rates(path: pathlib.Path) -> list[tuple[int, float]]:
    lines = [line.split() for line in path.read_text().splitlines()]
    return [(int(step), float.fromhex(rate)) for step, rate in lines]


@pytest.mark.parametrize("launcher", ["gloo", "multi-worker"])
def test_a_run_is_controlled_by_hand(launching, tmp_path, hostile, launcher) -> None:
    run_dir = tmp_path / "run"
    by_hand = ByHand(run_dir, hostile)
    finished = launching.launch(
        launcher, 2, ["tests/distributed/scripts/controlled_by_hand.py", str(run_dir)], limit=150, watch=by_hand
    ).check()
    assert [each.returncode for each in by_hand.said] == [0, 1, 0, 0], by_hand.said
    assert "multiplied the rate by 0.5: the rate goes from 0.01 to 0.005" in by_hand.said[0].stdout
    assert "by more than a factor of 100. Fix: add --force" in by_hand.said[1].stdout
    assert "to 1e-05" in by_hand.said[2].stdout
    # Each step and rate, to the bit, on both ranks; a rate holds from one step on.
    first, second = (_rates(run_dir / f"rates{rank}.txt") for rank in range(2))
    assert first == second
    changes = [(step, rate) for (step, rate), (_, before) in zip(first[1:], first, strict=False) if rate != before]
    assert [rate for _, rate in changes] == pytest.approx([0.005, 1e-5])
    decisions = [json.loads(line) for line in (run_dir / "decisions.jsonl").read_text().splitlines()]
    done = [entry for entry in decisions if entry["kind"] == "control"]
    assert [entry["samples_seen"] // 4 for entry in done[:2]] == [step for step, _ in changes]
    assert all(entry["by"] and entry["time"] for entry in decisions)
    refused = [entry for entry in decisions if entry["kind"] == "refused"]
    assert len(refused) == len(by_hand.files) + 1 >= 31
    assert finished.output.count("is refused and changes nothing") == len(refused)
    assert finished.output.count("ends at 1e-05") == 2
