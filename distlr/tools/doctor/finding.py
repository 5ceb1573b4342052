"""What `distlr doctor` says: one finding a subject."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from distlr.errors import DistlrError

__all__ = ["Finding", "Status", "refused"]

Status = Literal["OK", "warning", "error"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what; of a script "file:line".
        status: "error" where a job cannot run or would train wrongly, "warning" where it may.
        found: what is there, in a sentence for a person.
        to_do: what to do about it; empty where there is nothing.
    """

    name: str
    status: Status
    found: str
    to_do: str = ""


def refused(name: str, error: DistlrError) -> Finding:
    """An error of distlr's as a finding: what follows its "Fix:" is what to do."""
    problem, to_do = [*re.split(" Fix: ", str(error), maxsplit=1), ""][:2]
    return Finding(name, "error", problem, f"{to_do[:1].upper()}{to_do[1:]}")
