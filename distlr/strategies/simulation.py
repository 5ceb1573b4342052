"""Simulated replicas: n logical devices of one real device."""

from __future__ import annotations

import os
import subprocess

import tensorflow as tf

from distlr.errors import DistributionError
from distlr.strategies.mirrored import mirrored

__all__ = ["simulated"]

_MEMORY_SHARE = 0.9


def simulated(replicas: int) -> tf.distribute.Strategy:
    """A `MirroredStrategy` over `replicas` logical devices: parts of the one GPU, if there is one, else CPUs.

    Everything but the speed is that of real devices: each replica has its own copy of the variables and
    its own share of the batch, and the gradients are summed across them.

    Raises:
        DistributionError: TensorFlow has started already, with fewer logical devices; or the GPU's memory cannot be
            read.
    """
    gpus = tf.config.list_physical_devices("GPU")
    kind = "GPU" if gpus else "CPU"
    device = (gpus or tf.config.list_physical_devices("CPU"))[0]
    configured = tf.config.get_logical_device_configuration(device)
    if configured is None or len(configured) < replicas:
        try:
            tf.config.set_logical_device_configuration(device, _parts(device, kind, replicas))
        except RuntimeError as error:
            raise DistributionError(
                f"{replicas} simulated replicas need {replicas} logical {kind}s, and TensorFlow has started with "
                f"{len(tf.config.list_logical_devices(kind))}. Fix: call distlr.init before the first "
                "TensorFlow operation."
            ) from error
    return mirrored([f"/{kind}:{i}" for i in range(replicas)])


def _parts(device: tf.config.PhysicalDevice, kind: str, replicas: int) -> list[tf.config.LogicalDeviceConfiguration]:
    if kind == "CPU":
        return [tf.config.LogicalDeviceConfiguration() for _ in range(replicas)]
    share = int(_gpu_memory(device) * _MEMORY_SHARE / replicas)
    return [tf.config.LogicalDeviceConfiguration(memory_limit=share) for _ in range(replicas)]


def _gpu_memory(device: tf.config.PhysicalDevice) -> int:
    """The GPU's memory in MB, from the driver, since a question to TensorFlow would start it."""
    tool = ["nvidia-smi", "-i", _driver_name(device), "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(tool, capture_output=True, text=True, errors="replace", timeout=30, check=False)
        problem = f"exit status {answer.returncode}, {(answer.stdout + answer.stderr).strip()!r}"
        memory = answer.stdout.partition("\n")[0].strip()
        if answer.returncode == 0 and memory.isdecimal():
            return int(memory)
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    raise DistributionError(
        f"The memory of {device.name} could not be read from nvidia-smi, so it cannot be split. Received: {problem}. "
        "Fix: hide the GPU (CUDA_VISIBLE_DEVICES=-1) to simulate on CPUs."
    )


def _driver_name(device: tf.config.PhysicalDevice) -> str:
    """The driver's name for a GPU: TensorFlow counts the visible ones, and the driver all."""
    index = int(device.name.rsplit(":", 1)[1])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return visible[index].strip() if any(visible) and index < len(visible) else str(index)
