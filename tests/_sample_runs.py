"""Runs to report on, as a job leaves them: a cosine with a warmup over 12 epochs, and one that is hostile."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from distlr.runlog.directory import Run

EPOCHS, WARMUP, PER_EPOCH = 12, 3, 50_000
METRICS = ("loss", "val_loss", "accuracy", "val_accuracy")
HOSTILE = "<script>alert(1)</script>\"' onload='x' ]]> <!-- \x00\x1b[31m \ud800 \u202e</title></style> &lt; http://a.b"


def cosine(
    name: str = "linear", peak: float = 0.4, *, done: int = EPOCHS, decisions: Any = (), shift: float = 0.0
) -> Run:
    """A run of four replicas of which `done` epochs have ended.

    Args:
        name: of the run, and of its rule.
        peak: the rate without warmup at the beginning.
        done: how many of the 12 epochs have ended.
        decisions: lines of its file; each that has a multiplier changes the rate from there on.
        shift: is added to the losses.
    """

    def multiplier(at: float) -> float:
        return math.prod(each["multiplier"] for each in decisions if each["multiplier"] and each["at"] <= at)

    def rate(at: float) -> float:
        warmup = min(1.0, 0.25 + 0.75 * at / WARMUP)
        return peak * warmup * 0.5 * (1 + math.cos(math.pi * at / EPOCHS)) * multiplier(at)

    epochs = []
    for epoch in range(done):
        last = epoch + 23 / 24
        loss = 2.1 * math.exp(-(epoch + 1) / 3.2) + 0.3 + shift
        logs = {"loss": loss, "val_loss": loss * 1.15, "accuracy": 1 - loss / 3, "val_accuracy": 1 - loss / 2.6}
        epochs.append(
            {
                "epoch": epoch,
                "learning_rate": rate(last),
                "lr_multiplier": multiplier(last),
                "samples_seen": (epoch + 1) * PER_EPOCH,
                "logs": logs,
                "curve": [[epoch + i / 24, rate(epoch + i / 24)] for i in range(24)],
                "seconds": 31.4,
                "agreement": {"ranks": 4, "replicas": 4, "equal": True, "rates": [rate(last).hex()] * 4},
            }
        )
    about = {
        "format": 1,
        "started": "2026-03-14T09:00:00+00:00",
        "command": ["train.py", "--rule", name],
        "host": "gpu-7",
        "epochs": EPOCHS,
        "job": {
            "backend": "horovod",
            "ranks": 4,
            "replicas": 4,
            "rule": name,
            "factor": peak / 0.1,
            "base_batch": 256,
            "global_batch": 1024,
            "warmup": {"epochs": 3.0, "updates": 147, "from": 0.1},
        },
        "versions": {"distlr": "0.1.0", "keras": "3.11.2", "tensorflow": "2.20.0", "python": "3.11.7"},
    }
    return Run(name, about, epochs, list(decisions))


def decision(kind: str, at: float, multiplier: float | None, reason: str, by: str) -> dict[str, Any]:
    """A line of the file of decisions."""
    return {
        "kind": kind,
        "epoch": math.ceil(at) - 1,
        "at": at,
        "samples_seen": int(at * PER_EPOCH),
        "multiplier": multiplier,
        "learning_rate": None if multiplier is None else 0.01,
        "reason": reason,
        "by": by,
        "time": f"2026-03-14T09:{int(4 * at):02}:00+00:00",
    }


def two() -> list[Run]:
    """Two runs: one was cut on a plateau, the other changed by hand, once, and once asked for what was refused."""
    cut = decision("plateau", 8.0, 0.1, "val_loss did not improve on 0.53 for 3 epochs", "ReduceLROnPlateau")
    changed = decision("control", 4.5, 0.5, "set-lr --multiply 0.5", "maria")
    refused = decision("refused", 6.2, None, "by more than a factor of 100", "maria")
    return [cosine("linear", decisions=[cut]), cosine("sqrt", 0.2, decisions=[changed, refused], shift=0.15)]


def hostile() -> Run:
    """A run of whose texts each tries to be something else, with values of other types than a run writes."""
    text = HOSTILE * 2 + "x" * 100_000
    good = cosine(done=3)
    epochs = [
        {**epoch, "logs": {**epoch["logs"], text: 0.5 + i, f"val_{HOSTILE}": i}} for i, epoch in enumerate(good.epochs)
    ]
    agreement = {"ranks": text, "replicas": [], "equal": text, "rates": [text, 1, None, {}, "0xzz", "0x1p99999"]}
    epochs += [
        {
            "epoch": 3,
            "logs": {"loss": 10**400, "accuracy": 1e308, "val_loss": text},
            "curve": text,
            "agreement": agreement,
        },
        {"epoch": text, "logs": [], "curve": [[None, 1], [1], text, [4.5, text], [4.6, float("nan")]], "agreement": 7},
        {"learning_rate": True, "lr_multiplier": {}, "logs": {"loss": float("inf"), "accuracy": -1e308}},
        {},
    ]
    keys = ("kind", "at", "multiplier", "learning_rate", "reason", "by", "time", "epoch")
    decisions: list[dict[str, Any]] = [
        {},
        dict.fromkeys(keys, text),
        {key: [] for key in keys},
        {"kind": "plateau", "at": 1e400, "multiplier": 0, "time": "9999-99-99"},
        {"kind": HOSTILE, "at": 1.5, "reason": HOSTILE, "by": HOSTILE, "time": HOSTILE},
    ]
    nested: dict[str, Any] = {}
    for _ in range(50):
        nested = {"deeper": nested, HOSTILE: [nested]}
    about = {
        "command": [text, [text], {}],
        "host": text,
        "epochs": text,
        "job": {text: text, "n": nested},
        "versions": text,
    }
    return Run(text, about, epochs, decisions)


def with_epochs(run: Run, change: Any) -> Run:
    """The run with each of its epochs changed by a function."""
    return dataclasses.replace(run, epochs=[change(epoch) for epoch in run.epochs])
