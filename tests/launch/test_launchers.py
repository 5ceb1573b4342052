"""`launch/horovodrun.sh` and `launch/mpirun.sh`: what they hand on, to a stand-in for the launcher."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch"
HOSTS = [
    ["-H", "a:1,b:1"],
    ["-Ha:1,b:1"],
    ["--host", "a:1,b:1"],
    ["--hosts=a:1,b:1"],
    ["-hostfile", "names"],
    ["--hostfile", "names.py"],
]


def handed_on(tmp_path: pathlib.Path, launcher: str, *options: str) -> str:
    """The words that the launcher is started with, and whether there may be more ranks than cores."""
    stand_in = tmp_path / "bin" / launcher
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\necho "$@" "oversubscribe=$OMPI_MCA_rmaps_base_oversubscribe"\n')
    stand_in.chmod(0o755)
    environ = {**os.environ, "VIRTUAL_ENV": str(tmp_path)}
    environ.pop("OMPI_MCA_rmaps_base_oversubscribe", None)
    words = [str(LAUNCH / f"{launcher}.sh"), "-np", "2", *options, "train.py", "--epochs", "3"]
    return subprocess.run(words, env=environ, capture_output=True, text=True, timeout=30, check=True).stdout


@pytest.mark.parametrize("launcher", ["horovodrun", "mpirun"])
def test_on_one_machine_nothing_leaves_it(tmp_path, launcher) -> None:
    words = handed_on(tmp_path, launcher)
    assert "train.py --epochs 3 oversubscribe=1" in words
    assert ("--network-interface lo" in words) == (launcher == "horovodrun")


@pytest.mark.parametrize("options", HOSTS, ids=" ".join)
@pytest.mark.parametrize("launcher", ["horovodrun", "mpirun"])
def test_hosts_are_several_machines_however_they_are_written(tmp_path, launcher, options) -> None:
    words = handed_on(tmp_path, launcher, *options)
    assert f"-np 2 {' '.join(options)} " in words
    assert "--network-interface" not in words
    assert words.endswith("train.py --epochs 3 oversubscribe=\n")


def test_a_script_that_finds_the_hosts_is_not_the_one_to_start(tmp_path) -> None:
    words = handed_on(tmp_path, "horovodrun", "--min-np", "1", "--host-discovery-script", "hosts.py")
    assert re.search(r"--host-discovery-script hosts.py \S*python\S* train.py --epochs 3", words)
    assert "--network-interface" not in words


@pytest.mark.parametrize("launcher", ["horovodrun", "mpirun"])
def test_a_value_that_speaks_of_a_host_names_none(tmp_path, launcher) -> None:
    option = {"horovodrun": ["--timeline-filename", "ghost.json"], "mpirun": ["-x", "DATA=host.py"]}[launcher]
    words = handed_on(tmp_path, launcher, *option)
    assert f"{' '.join(option)} " in words
    assert "train.py --epochs 3 oversubscribe=1" in words
