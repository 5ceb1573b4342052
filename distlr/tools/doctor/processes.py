"""Other processes, each with a hard time limit, and facts about packages from one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distlr._utils.signal_names import signal_name

__all__ = ["Ended", "probe_package", "run", "without_launcher"]

# TensorFlow's lines of no consequence, also as horovodrun passes them on.
_CHATTER = re.compile(r"(\[\d+\]<\w+>:\s*)?([IW]\d{4} |WARNING: All log messages|To enable the following|\[distlr\]|$)")
_LAUNCHERS = re.compile("_?HOROVOD_|OMPI_|PRTE_|PMIX_|PMI_|MPI_LOCAL|SLURM_(?!CONF$)|DISTLR_|TF_CONFIG$")


@dataclasses.dataclass(frozen=True)
class Ended:
    """A command that has ended.

    Attributes:
        code: its exit status, negative for a signal; None where the limit ended it.
        out: its output on stdout.
        err: its output on stderr.
    """

    code: int | None
    out: str
    err: str

    @property
    def how(self) -> str:
        """How it ended, with the end of its output."""
        if self.code is None:
            how = "did not end in time"
        elif self.code < 0:
            how = f"was ended by {signal_name(-self.code)}"
        else:
            how = f"ended with status {self.code}"
        lines = (line.strip() for line in f"{self.out}\n{self.err}".splitlines())
        last = [line for line in lines if line and not _CHATTER.match(line)][-1:]
        return ": ".join([how, *last])[:600]


def without_launcher(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables of a launcher or for distlr, for a launch of its own."""
    return {name: value for name, value in environ.items() if not _LAUNCHERS.match(name)}


def run(words: Sequence[str], environ: Mapping[str, str], limit: float) -> Ended:
    """Runs a command in a process group of its own, and leaves nothing of the group behind.

    A command that cannot be started counts as ended with 126, as in a shell.

    Args:
        words: the command and its arguments.
        environ: its environment.
        limit: seconds after which it is killed.
    """
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):  # a pipe would be held open by what it started
        try:
            process = subprocess.Popen(
                list(words), env=dict(environ), stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
        except OSError as error:
            return Ended(126, "", str(error))
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        err.seek(0)
        return Ended(code, out.read().decode(errors="replace"), err.read().decode(errors="replace"))


def probe_package(package: str, environ: Mapping[str, str], limit: float = 60.0) -> dict[str, Any]:
    """The facts of `probe.py` about a package: {} if it is not installed, and with "error" if it does not load."""
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", **without_launcher(environ)}
    ended = run([sys.executable, str(Path(__file__).with_name("probe.py")), package], quiet, limit)
    for line in reversed(ended.out.splitlines()):
        with contextlib.suppress(ValueError):
            answer = json.loads(line)
            if isinstance(answer, dict):
                return answer
    return {"error": f"the process that imports it {ended.how}"}
