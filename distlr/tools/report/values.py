"""Values of a run's files, none of which is trusted: each may be missing, null, or of another type."""

from __future__ import annotations

import html
import math
import re
from typing import Any

__all__ = ["DASH", "TIMES", "escaped", "mapping", "named", "number", "plain", "sequence", "short", "whole"]

TIMES, DASH = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"

# Characters that XML forbids, half of a surrogate pair, and marks that turn the direction of the text around them.
_NOT_SHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_LARGEST = 1e300  # the difference of two numbers is finite, too


def number(value: Any) -> float | None:
    """A finite float; None for all else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    if not abs(result) <= _LARGEST:
        return None
    return result if abs(result) >= 1 / _LARGEST else 0.0


def whole(value: Any) -> int | None:
    """A count; None for all else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**63 else None


def mapping(value: Any) -> dict[str, Any]:
    """A dict; empty for all else."""
    return value if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    """A list; empty for all else."""
    return value if isinstance(value, list) else []


def plain(value: Any, longest: int = 300) -> str:
    """Text that can be shown: one line, without control characters, and not longer than `longest`."""
    text = value if isinstance(value, str) else named(value)
    text = _NOT_SHOWN.sub("\N{REPLACEMENT CHARACTER}", re.sub(r"[\t\n\r]", " ", text[: longest + 1]))
    return text if len(text) <= longest else text[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"


def escaped(value: Any, longest: int = 300) -> str:
    """Text as it stands in HTML, in SVG, and in an attribute of either."""
    return html.escape(plain(value, longest), quote=True)


def short(value: float) -> str:
    """A number to four digits: `0.0012`, `0.4`, `1200`.

    >>> short(0.4), short(0.00123456), short(120000.0), short(2e-06)
    ('0.4', '0.001235', '120000', '2e-6')
    """
    text = f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.4g}"
    return re.sub(r"e([+-])0*(\d)", lambda match: f"e{match[1].strip('+')}{match[2]}", text)


def named(value: Any) -> str:
    """A value of JSON in words, for a cell of a table; nested values in a list are left out.

    >>> named(None), named(True), named(0.1), named(["a", 1, []])
    ('none', 'yes', '0.1', 'a 1 ...')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.12g}" if math.isfinite(value) else "not a finite number"
    if isinstance(value, list):
        return " ".join("..." if isinstance(part, (dict, list)) else named(part) for part in value)
    return str(value)
