"""What README.md shows of the commands is what they print."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.processes
def test_the_readme_shows_what_the_commands_print() -> None:
    words = [sys.executable, str(ROOT / "docs" / "outputs.py"), "--check"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "output of: distlr plan" in (ROOT / "README.md").read_text()
