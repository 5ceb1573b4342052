"""Runs pytest in this rank: started by a launcher, once a rank, with the paths of the tests as arguments.

A rank whose test fails ends at once, so that the launcher ends the others, which wait for it.
"""

from __future__ import annotations

import os
import sys
import tempfile

import pytest

if __name__ == "__main__":
    os.environ["DISTLR_TEST_IN_RANKS"] = "1"
    options = ["-x", "-q", "-p", "no:cacheprovider", "--override-ini=addopts=--import-mode=importlib --strict-markers"]
    # A directory of its own: what pytest keeps of earlier runs it removes when it ends, and ranks would do it together.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        code = int(pytest.main([*options, f"--basetemp={folder}/pytest", *sys.argv[1:]]))
    print(f"in-ranks: exit {code}", flush=True)
    sys.stderr.flush()
    if code:
        os._exit(code)  # not over the engine's shutdown, in which the others would have to take part
    sys.exit(0)
