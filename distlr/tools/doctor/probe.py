"""Prints facts about a package as one line of JSON, from a process of its own, which a broken build may end.

It is run by its path (`python probe.py tensorflow`) and imports nothing of distlr, which needs TensorFlow.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import Any

__all__: list[str] = []


def _tensorflow() -> dict[str, Any]:
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    answer: dict[str, Any] = {"version": tf.__version__, "cuda": tf.test.is_built_with_cuda(), "gpus": len(gpus)}
    try:
        import keras

        answer["keras"] = {"version": keras.__version__, "backend": keras.backend.backend()}
    except Exception as error:  # such as an error about a backend that is not installed
        answer["keras"] = {"error": f"{type(error).__name__}: {error}"}
    return answer


def _horovod() -> dict[str, Any]:
    import horovod

    answer: dict[str, Any] = {"version": horovod.__version__}
    try:
        import horovod.tensorflow as hvd

        answer |= {"gloo": bool(hvd.gloo_built()), "mpi": bool(hvd.mpi_built()), "nccl": bool(hvd.nccl_built())}
    except Exception as error:  # a library that cannot be loaded raises many kinds of errors
        answer["error"] = f"{type(error).__name__}: {error}"
    return answer


def _mpi4py() -> dict[str, Any]:
    import mpi4py

    mpi4py.rc.initialize = False  # under a launcher MPI would wait for the other processes
    answer: dict[str, Any] = {"version": mpi4py.__version__}
    try:
        from mpi4py import MPI

        answer["library"] = MPI.Get_library_version().strip("\0 \n")
    except Exception as error:
        answer["error"] = f"{type(error).__name__}: {error}"
    return answer


_PROBES = {"tensorflow": _tensorflow, "horovod": _horovod, "mpi4py": _mpi4py}


def _main(package: str) -> None:
    sys.path.pop(0)  # the folder of this file
    answer: dict[str, Any] = {}
    if importlib.util.find_spec(package) is not None:
        try:
            answer = _PROBES[package]()
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(answer))


if __name__ == "__main__":
    _main(sys.argv[1])
