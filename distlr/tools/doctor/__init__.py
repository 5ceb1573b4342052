"""`distlr doctor`: checks this machine and a script. TensorFlow runs in processes of its own."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distlr.tools.doctor.finding import Finding, Status

__all__ = ["Finding", "Status", "examine"]


def examine(
    script: str | Path | None = None,
    *,
    quick: bool = False,
    environ: Mapping[str, str] | None = None,
    waiting: Callable[[str], None] = lambda what: None,
) -> list[Finding]:
    """Looks at Python, TensorFlow, Keras, devices, launchers, MPI and Horovod, and tries one update on two ranks.

    Args:
        script: a Python file to read, too. If it has a function `setup` as for `distlr lr-find`, it is imported
            in a process of its own, and one update on two replicas is compared with one device's.
        quick: leave out the checks that train.
        environ: the environment to read; `os.environ` by default.
        waiting: is called with a description of each step that takes a while.

    Raises:
        ConfigurationError: the script is no Python file.
    """
    from distlr.tools.doctor import two_replicas
    from distlr.tools.doctor.processes import probe_package
    from distlr.tools.doctor.script import read

    environ = os.environ if environ is None else environ
    path = None if script is None else Path(script)
    of_script = [] if path is None else read(path)
    tensorflow = probe_package("tensorflow", environ)
    gpus = int(tensorflow.get("gpus", 0))
    findings = _machine_findings(tensorflow, environ)
    works = all(finding.status != "error" for finding in findings if finding.name in ("TensorFlow", "Keras"))
    horovod = probe_package("horovod", environ) if works else None
    findings += _engine_findings(horovod, gpus, environ)
    if works and not quick:
        findings += _of_ranks(horovod, gpus, environ, waiting)
        if path is not None and two_replicas.has_setup(path):
            waiting(f"one update on two replicas ({path}): some seconds, at most {two_replicas.LIMIT:g}")
            compared = two_replicas.check(path, environ)
            of_script = [*read(path, measured=compared.status != "warning"), compared]
    return findings + of_script


def _machine_findings(tensorflow: Mapping[str, Any], environ: Mapping[str, str]) -> list[Finding]:
    from distlr.tools.doctor import machine

    findings = [machine.python(), machine.hardware(), machine.tensorflow(tensorflow)]
    if "keras" in tensorflow:
        legacy = importlib.util.find_spec("tf_keras") is not None
        findings += [machine.keras(tensorflow["keras"]), machine.legacy_keras(environ, legacy)]
        findings.append(machine.devices(tensorflow, machine.driver_gpus(environ), environ))
    return [*findings, machine.environment(environ)]


def _engine_findings(horovod: Mapping[str, Any] | None, gpus: int, environ: Mapping[str, str]) -> list[Finding]:
    """The findings on engines. `horovod` is the result of `probe_package`, or None if nothing here can train."""
    from distlr.tools.doctor import connections
    from distlr.tools.doctor.processes import probe_package

    findings, versions = [], {}
    for program in ("horovodrun", "mpirun", "srun"):
        path = connections.find(program, environ)
        versions[program] = connections.version_of(path, environ)
        findings.append(connections.launcher(program, path, versions[program], (horovod or {}).get("version")))
    mpi = probe_package("mpi4py", environ)
    findings.append(connections.mpi(mpi, versions["mpirun"]))
    if horovod is not None:
        findings.append(connections.horovod(horovod, gpus))
    missing = connections.missing(horovod, mpi)
    return [*findings, connections.chosen(environ, gpus, missing)]


def _of_ranks(
    horovod: Mapping[str, Any] | None, gpus: int, environ: Mapping[str, str], waiting: Callable[[str], None]
) -> list[Finding]:
    from distlr.tools.doctor.two_ranks import LIMIT, check

    findings = []
    for engine in ("horovod", "multi-worker"):
        if engine == "horovod" and (not horovod or "error" in horovod):
            continue  # reported already
        waiting(f"one update on two ranks ({engine}): some seconds, at most {LIMIT:g}")
        findings += check(engine, environ, gpus=gpus)
    return findings
