"""The type of the values that JSON can hold."""

from __future__ import annotations

from typing import TypeAlias

__all__ = ["JSON"]

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
