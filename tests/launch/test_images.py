"""Containers run without rights that they do not need, and among hosts that prove to be the job's."""

from __future__ import annotations

import pathlib
import re
import shlex
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _ssh_options() -> dict[str, str]:
    lines = (ROOT / "docker" / "ssh_config").read_text().splitlines()
    pairs = [line.strip().partition(" ") for line in lines if line.strip() and not line.startswith("#")]
    return {name: value for name, _, value in pairs}


def test_a_host_is_known_by_the_jobs_own_key(tmp_path) -> None:
    options = _ssh_options()
    assert options["StrictHostKeyChecking"] == "yes"
    keygen = tmp_path / "ssh-keygen"
    keygen.write_text('#!/bin/sh\necho "ssh-rsa AAAA of $*"\n')
    keygen.chmod(0o755)
    command = shlex.split(options["KnownHostsCommand"])
    assert command[0].startswith("/")  # ssh takes no other
    assert "%" not in options["KnownHostsCommand"]  # which ssh would replace
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": "/home/mpiuser"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=10, check=True)
    assert finished.stdout == "* ssh-rsa AAAA of -y -f /home/mpiuser/.ssh/id_rsa\n"
    assert "HostKey /home/mpiuser/.ssh/id_rsa\n" in (ROOT / "docker" / "sshd_config").read_text()


def test_each_container_of_the_kubernetes_job_gives_up_what_it_does_not_need() -> None:
    text = (ROOT / "launch" / "mpijob.yaml").read_text()
    contexts = re.findall(r"securityContext: \{(.*)\}", text)
    assert len(contexts) == text.count("image:") == 2
    for context in contexts:
        assert "allowPrivilegeEscalation: false" in context
        assert "capabilities: {drop: [ALL]}" in context
        assert "runAsNonRoot: true" in context
