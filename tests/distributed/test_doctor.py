"""`distlr doctor` for real: what it says of gradients, under Horovod and under a multi-worker strategy."""

from __future__ import annotations

import json
import sys

import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(420)]


def test_gradients_are_averaged_by_distlr_and_not_by_stock_horovod(launching) -> None:
    finished = launching.run([sys.executable, "-m", "distlr.cli.main", "doctor", "--json"], limit=400).check()
    findings = {finding["name"]: finding for finding in json.loads(finished.output)["findings"]}
    assert findings["Horovod"]["status"] == "OK"
    for engine in ("horovod", "multi-worker"):
        assert findings[f"averaging ({engine})"]["status"] == "OK", findings
    stock = findings["stock Horovod"]
    assert stock["status"] == "warning"
    assert "averages nothing here" in stock["found"]
    assert "0.875 and -0.125" in stock["found"]
    assert "import distlr.horovod as hvd" in stock["to_do"]


@pytest.mark.parametrize(("launcher", "backend"), [("horovod-mpi", "horovod"), ("multi-worker", "multi-worker")])
def test_under_a_launcher_it_says_what_init_would_choose(launching, launcher, backend) -> None:
    """On each rank; the packages are asked in processes that are no part of the launch."""
    finished = launching.launch(launcher, 2, ["tests/distributed/scripts/doctor.py"], limit=200).check()
    for rank in (0, 1):
        assert f'"found": "{backend}, 2 replicas. ' in finished.output
        assert f"this is rank {rank}" in finished.output or f"this process is worker {rank}" in finished.output
