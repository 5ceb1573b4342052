"""What the rate will be, at the start and where a run goes on, in one line that a log keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distlr._utils.checks import counted
from distlr.optimizer.access import rate_of

__all__ = ["resume_line", "start_line"]


def start_line(parts: Mapping[str, Any], replicas: int, backend: str) -> str:
    """The line of an optimizer that a job has just adopted.

    Args:
        parts: what `OptimizerExtension.explain` gives.
        replicas: of the whole job.
        backend: the job's.
    """
    name, on = parts["optimizer"], counted(replicas, "replica")
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


def resume_line(
    optimizer: Any, path: Any, written: Mapping[str, Any], own: Mapping[str, Any], rewarm: Any = None
) -> str:
    """The line of a checkpoint that is continued: where, and what another number of workers changes.

    Args:
        optimizer: adopted, with the checkpoint's state.
        path: of the checkpoint.
        written: what `RunState.to_json` gave for the checkpoint.
        own: and for the script.
        rewarm: over which duration a change of the factor is climbed, if it is.
    """
    place = f"epoch {written['epoch'] + 1}"
    if written.get("to_validate") is not None:
        place += ", its validation alone"
    elif written["steps"]:
        place += f", after {written['steps']} steps of it"
    line = (
        f"Continuing {path}: {place} ({written['samples_seen']} samples seen), at the rate {rate_of(optimizer):.6g}, "
        f"multiplier {optimizer.distlr.formula.multiplier:g}"
    )
    if all(written[name] == own[name] for name in ("replicas", "global_batch", "factor")):
        return f"{line}."
    climb = "the warmup goes on" if optimizer.distlr.formula.in_warmup else "the warmup is over"
    if optimizer.distlr.explain().get("warmup") is None:
        climb = "no warmup"
    if rewarm is not None and written["factor"] != own["factor"]:
        climb = f"the rate climbs from its old value over {rewarm}"
    return (
        f"{line}. Written on {counted(written['replicas'], 'replica')} (batch {written['global_batch']}, factor "
        f"{written['factor']:g}), now {own['replicas']} (batch {own['global_batch']}, factor {own['factor']:g}, from "
        f"the base); {climb}; the clock and the plateau's state go on."
    )


def _also(parts: Mapping[str, Any]) -> str:
    """What is scaled beside the rate."""
    also = [f"{name} {base:g} -> {scaled:.4g}" for name, (base, scaled) in parts["scaled"].items()]
    also += ["momentum corrected while the rate climbs"] if parts["momentum_correction"] else []
    return f"; also scaled: {', '.join(also)}" if also else ""
