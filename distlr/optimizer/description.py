"""What the rate will be, in one line that a log keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["start_line"]


def start_line(parts: Mapping[str, Any], replicas: int, backend: str) -> str:
    """The line of an optimizer that a job has just adopted.

    Args:
        parts: what `ScaledOptimizer.explain` gives.
        replicas: of the whole job.
        backend: the job's.
    """
    name, on = parts["optimizer"], f"{replicas} replica{'s' if replicas > 1 else ''}"
    if "base_batch" not in parts:
        return f"{name}: the rate is not scaled (no batch was given); {on} ({backend})."
    climb = parts["warmup"]
    warmup = "no warmup"
    if climb is not None:
        epochs = "" if climb["epochs"] is None else f"{climb['epochs']:g} epochs = "
        warmup = f"warmup over {epochs}{climb['updates']:g} updates from x{climb['from']:.4g}"
    clock = "in samples (base steps)" if parts["clock"] == "samples" else "in Keras' steps"
    return (
        f"{name}: rate {parts['base_rate']:g} x {parts['factor']:g} ({parts['rule']}) = {parts['peak_rate']:g}; "
        f"batch {parts['base_batch']} x {parts['ratio']:g} = {parts['global_batch']} on {on} "
        f"({backend}); {warmup}; the schedule counts {clock}{_also(parts)}."
    )


def _also(parts: Mapping[str, Any]) -> str:
    """What is scaled beside the rate."""
    also = [f"{name} {base:g} -> {scaled:.4g}" for name, (base, scaled) in parts["scaled"].items()]
    also += ["momentum corrected while the rate climbs"] if parts["momentum_correction"] else []
    return f"; also scaled: {', '.join(also)}" if also else ""
