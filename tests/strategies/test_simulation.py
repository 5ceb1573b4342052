"""The parts of one GPU, on machines that have none: a stand-in answers for the driver."""

from __future__ import annotations

import types

import pytest

from distlr.errors import DistributionError
from distlr.strategies.simulation import _parts

GPU = types.SimpleNamespace(name="/physical_device:GPU:0")
BY_DRIVER = """
case $2 in
    0) echo 8000 ;;
    1 | GPU-7f3a) echo 16000 ;;
    *) echo "No devices were found"; exit 6 ;;
esac
"""


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Lets nvidia-smi be this script."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def answers(script: str) -> None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)

    return answers


@pytest.mark.parametrize(
    ("visible", "memory"), [(None, 8000), ("", 8000), ("0,1", 8000), ("1", 16000), ("1,0", 16000), ("GPU-7f3a", 16000)]
)
def test_the_memory_of_the_gpu_that_is_visible_is_split(driver, monkeypatch, visible, memory) -> None:
    driver(BY_DRIVER)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    parts = _parts(GPU, "GPU", 4)
    assert [part.memory_limit for part in parts] == [int(memory * 0.9 / 4)] * 4


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "No such file"),
        ("exit 9", "exit status 9"),
        ("echo '[N/A]'", "'[N/A]'"),
        ("echo no driver >&2; exit 1", "no driver"),
    ],
)
def test_what_the_driver_does_not_say_is_an_error_with_a_remedy(driver, script, message) -> None:
    if script is not None:
        driver(script)
    with pytest.raises(DistributionError, match="could not be read from nvidia-smi") as raised:
        _parts(GPU, "GPU", 4)
    assert message in str(raised.value)
    assert "CUDA_VISIBLE_DEVICES=-1" in str(raised.value)
