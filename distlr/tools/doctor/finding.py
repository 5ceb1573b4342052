"""The output of `distlr doctor`: one finding a subject."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from distlr.errors import DistlrError

__all__ = ["Finding", "Status", "refused"]

Status = Literal["OK", "warning", "error"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: the subject; for a script "file:line".
        status: "error" where a job cannot run or would train wrongly, "warning" where it may.
        found: the observation, in a sentence for a person.
        to_do: the advice; empty if there is nothing to do.
    """

    name: str
    status: Status
    found: str
    to_do: str = ""


def refused(name: str, error: DistlrError) -> Finding:
    """An error of distlr's as a finding: the text after "Fix:" is the advice."""
    problem, to_do = [*re.split(" Fix: ", str(error), maxsplit=1), ""][:2]
    return Finding(name, "error", problem, f"{to_do[:1].upper()}{to_do[1:]}")
