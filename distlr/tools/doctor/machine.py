"""The machine: Python, cores, TensorFlow, Keras, GPUs, and its environment variables."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from distlr.tools.doctor.finding import Finding
from distlr.tools.doctor.processes import run

__all__ = ["devices", "driver_gpus", "environment", "hardware", "keras", "legacy_keras", "python", "tensorflow"]

_PYTHON, _TENSORFLOW = ((3, 10), (3, 13)), ((2, 16), (2, 21))  # oldest and newest that distlr is tested on
_INSTALL = 'pip install "distlr[cpu]" (or "distlr[gpu]")'

# Nothing else of the environment is ever shown: it may hold secrets.
_SHOWN = re.compile(
    "(HOROVOD_|DISTLR_).*|OMPI_COMM_WORLD_(RANK|SIZE|LOCAL_RANK|LOCAL_SIZE|NODE_RANK)|PMI_(RANK|SIZE)"
    "|MPI_LOCAL(RANKID|NRANKS)|SLURM_(JOB_ID|STEP_ID|PROCID|LOCALID|NODEID|NTASKS|STEP_NUM_TASKS|STEP_TASKS_PER_NODE)"
    "|TF_CONFIG|KERAS_BACKEND|TF_USE_LEGACY_KERAS"
)
_SECRET = re.compile("SECRET|TOKEN|PASSW|CREDENTIAL|_KEY")


def python(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """Whether this Python is one that distlr runs on."""
    text = platform.python_version() if version == sys.version_info[:2] else _dotted(version)
    oldest, newest = _PYTHON
    if version < oldest:
        to_do = f"Install Python {_dotted(oldest)} to {_dotted(newest)}."
        return Finding("Python", "error", f"{text} is older than distlr's oldest, {_dotted(oldest)}.", to_do)
    if version > newest:
        to_do = f"Where something fails, take Python {_dotted(oldest)} to {_dotted(newest)}."
        return Finding("Python", "warning", f"{text} is newer than any that distlr was tested on.", to_do)
    return Finding("Python", "OK", f"{text}, {sys.executable}")


def hardware() -> Finding:
    """The platform, and the cores and the memory that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{platform.system()} {platform.machine()}, {cores} cores"
    if os.name != "posix":
        to_do = "Use Linux or macOS, or Windows' WSL 2."
        return Finding("machine", "warning", f"{text}; distlr is not tested on this system.", to_do)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Finding("machine", "OK", f"{text}, {memory / 2**30:.0f} GiB of memory")


def tensorflow(probed: Mapping[str, Any]) -> Finding:
    """Whether TensorFlow is installed, loads, and is one that distlr runs on.

    Args:
        probed: the result of `processes.probe_package`.
    """
    name, (oldest, newest) = "TensorFlow", _TENSORFLOW
    if not probed:
        return Finding(name, "error", "TensorFlow is not installed.", f"{_INSTALL}.")
    if "error" in probed:
        to_do = f"Install it anew for this Python: {_INSTALL}."
        return Finding(name, "error", f"TensorFlow cannot be imported: {probed['error']}", to_do)
    text, version = probed["version"], _numbers(probed["version"])
    if version < oldest:
        to_do = f"Install {_dotted(oldest)} to {_dotted(newest)}: {_INSTALL}."
        return Finding(name, "error", f"{text} is older than distlr's oldest, {_dotted(oldest)}.", to_do)
    if version > newest:
        to_do = f'Where something fails: pip install "tensorflow>={_dotted(oldest)},<{_dotted((2, newest[1] + 1))}".'
        return Finding(name, "warning", f"{text} is newer than any that distlr was tested on.", to_do)
    return Finding(name, "OK", f"{text}, built {'with' if probed['cuda'] else 'without'} CUDA")


def keras(probed: Mapping[str, Any]) -> Finding:
    """Whether it is Keras 3, on TensorFlow."""
    if not probed or "error" in probed:
        why = f"Keras cannot be imported: {probed['error']}" if probed else "Keras is not installed."
        to_do = "pip install 'keras>=3', and set KERAS_BACKEND=tensorflow (or leave it out)."
        return Finding("Keras", "error", why, to_do)
    version, backend = probed["version"], probed["backend"]
    if _numbers(version)[0] < 3:
        return Finding("Keras", "error", f"{version}; distlr needs Keras 3.", "pip install 'keras>=3'.")
    if backend != "tensorflow":
        to_do = "Set KERAS_BACKEND=tensorflow, or leave it out; or change `backend` in ~/.keras/keras.json."
        return Finding("Keras", "error", f"{version}, on {backend}; distlr needs the TensorFlow backend.", to_do)
    return Finding("Keras", "OK", f"{version}, on TensorFlow")


def legacy_keras(environ: Mapping[str, str], installed: bool) -> Finding:
    """Whether `tf.keras` is legacy Keras, of which distlr adopts no optimizer.

    Args:
        environ: the environment.
        installed: whether the package `tf_keras` is there.
    """
    if environ.get("TF_USE_LEGACY_KERAS", "0").lower() in ("", "0", "false"):
        text = "tf_keras is installed and not in use." if installed else "tf_keras is not installed."
        return Finding("legacy Keras", "OK", text)
    text = f"TF_USE_LEGACY_KERAS={environ['TF_USE_LEGACY_KERAS']}: `tf.keras` is legacy Keras, which distlr refuses."
    to_do = "Unset TF_USE_LEGACY_KERAS, or write `import keras` in place of `tf.keras` in the script."
    return Finding("legacy Keras", "warning", text, to_do)


def driver_gpus(environ: Mapping[str, str]) -> int:
    """How many GPUs NVIDIA's driver knows of."""
    tool = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if tool is None:
        return 0
    ended = run([tool, "-L"], environ, limit=30)
    return sum(line.startswith("GPU ") for line in ended.out.splitlines()) if ended.code == 0 else 0


def devices(probed: Mapping[str, Any], driver: int, environ: Mapping[str, str]) -> Finding:
    """Whether TensorFlow sees the machine's GPUs; a machine without any is as good.

    Args:
        probed: the result of `processes.probe_package("tensorflow")`.
        driver: how many GPUs the driver knows of.
        environ: the environment.
    """
    seen, hidden = probed.get("gpus", 0), environ.get("CUDA_VISIBLE_DEVICES")
    if seen or not driver:
        many = (
            f"{seen} GPU{'s' if seen > 1 else ''}" if seen else "No GPU: the CPU is used. `distlr run -n 4` simulates."
        )
        of = f" of the machine's {driver} (CUDA_VISIBLE_DEVICES={hidden})" if seen < driver and hidden else ""
        return Finding("devices", "OK", f"{many}{of}")
    text = f"The machine has {driver} GPU{'s' if driver > 1 else ''}"
    if hidden is not None and (not hidden or hidden.startswith("-")):
        return Finding("devices", "OK", f"{text}, hidden by CUDA_VISIBLE_DEVICES={hidden}.")
    if not probed.get("cuda"):
        to_do = 'pip uninstall tensorflow-cpu, then pip install "distlr[gpu]".'
        return Finding("devices", "warning", f"{text}, and TensorFlow is built without CUDA.", to_do)
    to_do = (
        f'pip install "tensorflow[and-cuda]=={probed["version"]}"; python -c "import tensorflow" says what it misses.'
    )
    return Finding("devices", "warning", f"{text}, and TensorFlow sees none: it does not find CUDA's libraries.", to_do)


def environment(environ: Mapping[str, str]) -> Finding:
    """The variables of launchers, and those that users set for distlr and Keras. It shows no other, and no secret."""
    shown = {name: environ[name] for name in sorted(environ) if _SHOWN.fullmatch(name)}
    words = [f"{name}={'(hidden)' if _SECRET.search(name) else value}" for name, value in shown.items()]
    return Finding("environment", "OK", ", ".join(words) or "No variable of a launcher, of distlr or of Keras is set.")


def _numbers(version: str) -> tuple[int, int]:
    major, minor, *_ = [*map(int, re.findall(r"\d+", version)), 0, 0]
    return major, minor


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
