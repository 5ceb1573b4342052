"""Communicators: the communication between the ranks of a job, one backend a file.

Importing this package imports neither TensorFlow nor an engine.
"""

from __future__ import annotations

from distlr._utils.renamed import aliases
from distlr.communicators.communicator import Communicator
from distlr.communicators.engines import connect
from distlr.communicators.log import CollectiveLog
from distlr.communicators.single import SingleCommunicator, single_process_communicator
from distlr.communicators.threads import ThreadCommunicator, ThreadGroup, run_ranks
from distlr.startup.backend_selection import ENGINES
from distlr.startup.launcher import LauncherInfo, detect

__all__ = [
    "ENGINES",
    "CollectiveLog",
    "Communicator",
    "LauncherInfo",
    "SingleCommunicator",
    "ThreadCommunicator",
    "ThreadGroup",
    "connect",
    "detect",
    "run_ranks",
    "single_process_communicator",
]

__getattr__ = aliases(__name__, {"Launch": "LauncherInfo", "alone": "single_process_communicator"})
