#!/usr/bin/env python3
"""Runs the commands that README.md and the guides show, and writes what they print beneath them: `make docs`.

A block begins with `<!-- output of: COMMAND -->` and ends with `<!-- end -->`; what stands between them is replaced.
With `--check` nothing is written: a block of a command that says the same on every machine must be as it would be, and
there must be one of each of these commands.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- output of: "
BLOCK = re.compile(rf"{BEGIN}(?P<command>[^\n]*?) -->\n(?P<text>.*?)<!-- end -->", re.DOTALL)
SAME_EVERYWHERE = ("distlr plan", "distlr batch")
OF_TENSORFLOW = re.compile(r"WARNING: All log messages before absl|[IWE]\d{4} \d\d:\d\d:")
LONGEST = 600  # seconds
LIVE = "runs/live"  # the directory of a run that is under way while its commands are typed
TRAIN = ["launch/train.py", "--epochs", "10000", "--run-dir", LIVE]


def printed(command: str) -> str:
    """What a command prints, indented as Markdown has it, without this machine's paths and what TensorFlow says."""
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environ |= {"COLUMNS": "110", "NO_COLOR": "1", "TERM": "dumb", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    text = (done.stdout + done.stderr).replace(str(ROOT), ".").replace(str(Path.home()), "~")
    text = re.sub(rf"\b{re.escape(getpass.getuser())}\b", "maria", text)
    lines = [line.rstrip() for line in text.rstrip().splitlines() if not OF_TENSORFLOW.match(line)]
    return "".join(f"    {line}\n" if line else "\n" for line in [f"$ {command}", *lines])


@contextlib.contextmanager
def live_run(command: str) -> Iterator[None]:
    """Trains beside the command, where it names the live run."""
    if LIVE not in command:
        yield
        return
    shutil.rmtree(ROOT / LIVE, ignore_errors=True)
    process = subprocess.Popen([sys.executable, *TRAIN], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (ROOT / LIVE / "epochs.jsonl").is_file() and process.poll() is None:
            time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


def pages() -> list[Path]:
    """README.md and the guides."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path: Path) -> list[re.Match[str]]:
    """The blocks of a page.

    Raises:
        ValueError: one of them does not end.
    """
    text = path.read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    if len(found) != text.count(BEGIN) or any(BEGIN in each["text"] for each in found):
        raise ValueError(f"{path.relative_to(ROOT)}: a block does not end with <!-- end -->")
    return found


def block(command: str) -> str:
    """The whole block, as it has to be."""
    with live_run(command):
        return f"{BEGIN}{command} -->\n\n{printed(command)}\n<!-- end -->"


def check() -> list[str]:
    """What is wrong with the blocks of commands that say the same everywhere, a sentence each."""
    wrong, missing = [], set(SAME_EVERYWHERE)
    for path in pages():
        for found in blocks(path):
            command = found["command"]
            if not command.startswith(SAME_EVERYWHERE):
                continue
            missing = {each for each in missing if not command.startswith(each)}
            if block(command) != found[0]:
                name = path.relative_to(ROOT)
                wrong.append(f"{name} does not show what `{command}` prints. Fix: make docs")
    return [*wrong, *(f"no page shows what `{each}` prints" for each in sorted(missing))]


def write() -> None:
    """Runs every command, and writes the pages in which something changed."""
    for path in pages():
        text = old = path.read_text(encoding="utf-8")
        for found in blocks(path):
            text = text.replace(found[0], block(found["command"]))
        if text != old:
            path.write_text(text, encoding="utf-8")


def main() -> int:
    """Returns 1 where a checked block is not as it would be written."""
    if sys.argv[1:] != ["--check"]:
        write()
        return 0
    wrong = check()
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
