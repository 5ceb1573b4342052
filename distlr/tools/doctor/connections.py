"""The ways to connect ranks here: launchers, MPI, Horovod; and the choice of `distlr.init()`."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distlr._utils.checks import counted
from distlr.errors import DistlrError
from distlr.startup.backend_selection import choose_backend
from distlr.tools.doctor.finding import Finding, refused
from distlr.tools.doctor.processes import Ended, run, without_launcher

__all__ = ["chosen", "find", "horovod", "launcher", "missing", "mpi", "version_of"]

_BUILD = "Build it for this TensorFlow with docker/build-horovod.sh (`make horovod` in a clone of distlr)"
_NEEDED_FOR = {
    "horovodrun": "Horovod's ranks",
    "mpirun": "ranks over MPI",
    "srun": "ranks under Slurm",
}
_MPI = (
    ("Open MPI", re.compile(r"Open MPI\)? v?(\d+)[\d.]*")),
    ("MPICH", re.compile(r"(?:MPICH Version:|HYDRA build details:\s+Version:)\s+(\d+)[\d.]*")),
    ("Intel MPI", re.compile(r"Intel\(R\) MPI Library.*?(20\d\d)[\d.]*")),
)


def find(program: str, environ: Mapping[str, str]) -> str | None:
    """The program's path: that on PATH, else the one beside this Python."""
    folders = [*environ.get("PATH", os.defpath).split(os.pathsep), str(Path(sys.executable).parent)]
    return shutil.which(program, path=os.pathsep.join(folders))


def version_of(path: str | None, environ: Mapping[str, str]) -> Ended | None:
    """The output of a program for `--version`; None if there is no such program."""
    return None if path is None else run([path, "--version"], without_launcher(environ), limit=30)


def launcher(program: str, path: str | None, version: Ended | None, horovod: str | None = None) -> Finding:
    """Whether a launcher is there, and runs.

    Args:
        program: "horovodrun", "mpirun" or "srun".
        path: the result of `find`.
        version: the result of `version_of`.
        horovod: the version of the Horovod that this Python imports.
    """
    if path is None or version is None:
        return Finding(program, "OK", f"Not found; needed only for {_NEEDED_FOR[program]}.")
    first = version.out.strip().partition("\n")[0]
    if version.code != 0 or not first:
        to_do = f"Mend its installation where you need it, for {_NEEDED_FOR[program]}."
        return Finding(program, "warning", f"`{path} --version` {version.how}", to_do)
    if program == "horovodrun" and horovod is not None and first != horovod:
        to_do = f"Put {Path(sys.executable).parent} first on PATH, so that launcher and script have the same Horovod."
        text = f"{path} is of Horovod {first}, and this Python imports {horovod}."
        return Finding(program, "warning", text, to_do)
    return Finding(program, "OK", f"{first}, {path}")


def mpi(probed: Mapping[str, Any], mpirun: Ended | None) -> Finding:
    """Whether mpi4py loads, with the MPI library that `mpirun` belongs to.

    Args:
        probed: the result of `processes.probe_package("mpi4py")`.
        mpirun: the result of `version_of` for it.
    """
    if not probed:
        return Finding("MPI", "OK", 'mpi4py is not installed; needed only for distlr.init("mpi").')
    if "error" in probed:
        to_do = 'pip install "distlr[mpi]", or load the MPI library that mpi4py was built with.'
        return Finding("MPI", "warning", f"mpi4py cannot load its MPI library: {probed['error']}", to_do)
    text = f"mpi4py {probed.get('version', '')} with {probed['library'].splitlines()[0].split(', package')[0]}"
    if mpirun is None or mpirun.code != 0:
        return Finding("MPI", "OK", f"{text}; there is no mpirun to start it with.")
    library, started = _flavor(probed["library"]), _flavor(mpirun.out)
    if library is None or started is None:
        first = mpirun.out.strip().partition("\n")[0]
        return Finding("MPI", "OK", f"{text}; mpirun says {first!r}")
    if library != started:
        to_do = "Use the mpirun of the library: with another one each process would be a job of its own, of size 1."
        text = f"{text}, and mpirun is that of {started[0]} {started[1]}."
        return Finding("MPI", "warning", text, to_do)
    return Finding("MPI", "OK", f"{text}; mpirun is of the same")


def horovod(probed: Mapping[str, Any], gpus: int) -> Finding:
    """How Horovod was built, and whether it loads with the installed TensorFlow.

    Args:
        probed: the result of `processes.probe_package("horovod")`.
        gpus: how many TensorFlow sees.
    """
    if not probed:
        text = "Not installed; needed only for its ranks, not for GPUs of one machine or a multi-worker strategy."
        return Finding("Horovod", "OK", text)
    version = probed.get("version", "Horovod")
    if "error" in probed:
        return Finding("Horovod", "error", f"{version} cannot be loaded{_why(probed['error'])}", f"{_BUILD}.")
    built = [name for name, key in (("gloo", "gloo"), ("MPI", "mpi"), ("NCCL", "nccl")) if probed[key]]
    text = f"{version}, built with {', '.join(built) or 'nothing to exchange over'}; it loads with this TensorFlow"
    if gpus and not probed["nccl"]:
        to_do = f"{_BUILD}, with --gpu: otherwise gradients leave the GPU for every exchange."
        return Finding("Horovod", "warning", f"{text}. There are GPUs, and it has no NCCL.", to_do)
    return Finding("Horovod", "OK", text)


def missing(horovod: Mapping[str, Any] | None, mpi: Mapping[str, Any]) -> dict[str, str]:
    """The advice for each backend of `Job.backend` that cannot be started here.

    Args:
        horovod: the result of `processes.probe_package("horovod")`; None if TensorFlow or Keras do not work.
        mpi: the result of `processes.probe_package("mpi4py")`.
    """
    if horovod is None:
        return dict.fromkeys(("local", "simulated", "multi-worker", "horovod", "mpi"), "First fix the errors above.")
    remedies = {}
    if not horovod or "error" in horovod:
        remedies["horovod"] = f"{_BUILD}; or start tf.distribute's workers, with launch/tf_config.sh."
    if not mpi or "error" in mpi:
        remedies["mpi"] = 'pip install "distlr[mpi]".'
    return remedies


def chosen(environ: Mapping[str, str], gpus: int, missing: Mapping[str, str]) -> Finding:
    """The choice of `distlr.init()` in this environment, with the reason; its errors are findings.

    Args:
        environ: the environment.
        gpus: how many TensorFlow sees.
        missing: the result of `missing`.
    """
    name = "distlr.init()"
    try:
        choice = choose_backend(environ=environ, gpus=gpus)
    except DistlrError as error:
        return refused(name, error)
    text = f"{choice.backend}, {counted(choice.replicas, 'replica')}. {choice.reason}"
    if choice.backend in missing:
        return Finding(name, "error", f"{text} This cannot be started here.", missing[choice.backend])
    return Finding(name, "OK", text)


def _why(error: str) -> str:
    """The meaning of an error of the dynamic loader."""
    meanings = {
        "undefined symbol": ": it was built for another TensorFlow.",
        "has not been built": ": it was built without TensorFlow.",
        "cannot open shared object": ": a library that it was built with is missing.",
    }
    meaning = next((meaning for words, meaning in meanings.items() if words in error), ".")
    return f"{meaning} {' '.join(error.split())[:400]}"


def _flavor(text: str) -> tuple[str, str] | None:
    """The MPI of a version text, and its major version."""
    for name, pattern in _MPI:
        match = pattern.search(text)
        if match is not None:
            return name, match[1]
    return None
