"""The names of signals that end processes."""

from __future__ import annotations

import signal

__all__ = ["signal_name"]


def signal_name(number: int) -> str:
    """The name of a signal; real-time signals but the first and the last have none, and are counted from the first.

    >>> signal_name(9), signal_name(signal.SIGRTMIN + 1)
    ('SIGKILL', 'SIGRTMIN+1')
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
