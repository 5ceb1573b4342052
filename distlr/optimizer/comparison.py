"""The formula of an optimizer as flat JSON, and how two of them differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["differences", "formula_of"]

# What another number of workers changes, and what says nothing about the rate.
_SIZES = {f"scaling.batch.{name}" for name in ("per_replica", "total", "replicas", "local_replicas", "accumulation")}
_SIZES |= {"scaling.rule.factor", "scaling.rule.k", "optimizer.config.gradient_accumulation_steps"}
_OLD_NAMES = {"GlobalBatchSchedule": "Scaled", "Multiply": "Scale"}  # as checkpoints of earlier versions have them
_NAMES = {"name", "module", "registered_name", "build_config", "compile_config"}


def formula_of(optimizer: Any) -> dict[str, Any]:
    """What the rate of an adopted optimizer depends on and what else its config says, as JSON values by dotted names.

    The sizes of the batch are left out: the formula is the same on any number of workers.
    """
    try:
        config = optimizer.get_config()
    except (TypeError, ValueError, NotImplementedError):  # a schedule of the user's own that cannot be serialized
        batch_schedule = optimizer.distlr.formula.batch_schedule
        name, schedule = optimizer.distlr.base_class.__name__, type(optimizer._learning_rate).__name__
        schedule = _OLD_NAMES.get(schedule, schedule)
        scaling = None if batch_schedule is None else batch_schedule.options()
        config = {"optimizer": {"class_name": name, "schedule": schedule}, "scaling": scaling}
    config.pop("reduction", None)  # earlier files do not have it
    return {name: value for name, value in _flattened(config) if name not in _SIZES}


def differences(saved: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """A line for each part that differs: what the checkpoint has, and what the script has."""
    names = sorted(saved.keys() | own.keys())
    return [
        f"{name}: {saved.get(name, 'nothing')!r} in the checkpoint, {own.get(name, 'nothing')!r} in the script"
        for name in names
        if saved.get(name) != own.get(name)
    ]


def _flattened(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        if value.get("class_name") in _OLD_NAMES:
            value = {**value, "class_name": _OLD_NAMES[value["class_name"]]}
        inside = [(key, part) for key, part in value.items() if key not in _NAMES]
        return [pair for key, part in inside for pair in _flattened(part, f"{path}.{key}" if path else str(key))]
    if isinstance(value, (list, tuple)):
        return [pair for i, part in enumerate(value) for pair in _flattened(part, f"{path}.{i}")]
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    return [(path, value if value is None or isinstance(value, (bool, int, float, str)) else repr(type(value)))]
