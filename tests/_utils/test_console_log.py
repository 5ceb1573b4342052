"""Who hears distlr's lines: the console, where the application has configured no logging; never by importing alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

JOB = """
job = distlr.init()
job.optimizer(keras.optimizers.SGD(0.1), job.batch(per_replica=8, base_batch=4))
"""


def lines_of(code: str) -> list[str]:
    """What a program that begins with this code writes to stderr: distlr's lines alone."""
    ended = subprocess.run(
        [sys.executable, "-c", f"import logging, keras, distlr\n{code}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    return [line for line in (ended.stdout + ended.stderr).splitlines() if "SGD: rate" in line or "handlers" in line]


@pytest.mark.processes
def test_importing_sets_nothing_up():
    code = "import distlr.callbacks\nlogger = logging.getLogger('distlr')\n"
    code += "print('handlers', logger.handlers, logger.level)"
    assert lines_of(code) == ["handlers [] 0"]


@pytest.mark.processes
def test_a_job_speaks_on_the_console_where_no_logging_is_configured():
    (line,) = lines_of(JOB)
    assert line.startswith("[distlr] SGD: rate 0.1 x 2 (linear) = 0.2")


@pytest.mark.processes
def test_an_application_that_has_configured_logging_hears_what_it_asked_for():
    assert lines_of("logging.basicConfig(level=logging.WARNING)\n" + JOB) == []
    (line,) = lines_of("logging.basicConfig(level=logging.INFO)\n" + JOB)
    assert line.startswith("INFO:distlr:SGD: rate 0.1 x 2")
    assert lines_of("logging.getLogger('distlr').setLevel(logging.ERROR)\n" + JOB) == []
