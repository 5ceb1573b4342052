"""`launch/supervise.sh`: a job that dies is started anew, so many times, and no process of it stays."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

SUPERVISE = pathlib.Path(__file__).resolve().parents[2] / "launch" / "supervise.sh"


def supervise(*words: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(SUPERVISE), *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=30)
    return process.returncode, output


def wait_for(path: pathlib.Path) -> str:
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return path.read_text().strip()


def test_it_starts_the_job_until_it_ends_well(tmp_path) -> None:
    job = f'echo run >> {tmp_path}/runs; [ "$(wc -l < {tmp_path}/runs)" -ge 3 ] || exit 7'
    code, output = ended(supervise("--tries", "5", "--pause", "0", "bash", "-c", job))
    assert code == 0
    assert (tmp_path / "runs").read_text().split() == ["run"] * 3
    assert output.count("the job ended with 7") == 2
    assert "try 3 of 5 in 0 s" in output


def test_the_tries_are_bounded(tmp_path) -> None:
    code, output = ended(
        supervise("--tries", "3", "--pause", "0", "bash", "-c", f"echo run >> {tmp_path}/runs; exit 9")
    )
    assert code == 9
    assert (tmp_path / "runs").read_text().split() == ["run"] * 3
    assert "that was try 3 of 3, and the last" in output


@pytest.mark.parametrize(
    ("number", "arrives_as"),
    [(signal.SIGHUP, "TERM"), (signal.SIGTERM, "TERM"), (signal.SIGINT, "INT"), (signal.SIGQUIT, "QUIT")],
)
def test_what_ends_the_script_ends_the_job(tmp_path, number, arrives_as) -> None:
    """A closed terminal as well: the job must not go on without anybody to watch it."""
    job = f"trap 'echo {arrives_as} > {tmp_path}/heard; exit 9' {arrives_as}; echo $$ > {tmp_path}/pid; "
    process = supervise("bash", "-c", job + "for i in {1..400}; do sleep 0.05; done")
    pid = int(wait_for(tmp_path / "pid"))
    process.send_signal(number)
    assert ended(process)[0] == 9
    assert wait_for(tmp_path / "heard") == arrives_as
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_request_for_a_checkpoint_goes_to_those_that_listen(tmp_path) -> None:
    """SIGUSR1 ends neither the script nor a process of the job that does not listen, as horovodrun does not."""
    deaf = [sys.executable, "-c", "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"]
    listener = [
        sys.executable,
        "-c",
        "import pathlib, signal, sys, time\n"
        "folder, heard = pathlib.Path(sys.argv[1]), []\n"
        "signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))\n"
        "(folder / 'ready').write_text('1')\n"
        "while not heard: time.sleep(0.02)\n"
        "(folder / 'heard').write_text('1')",
        str(tmp_path),
    ]
    process = supervise("--tries", "1", *deaf, *listener)
    wait_for(tmp_path / "ready")
    process.send_signal(signal.SIGUSR1)
    assert ended(process)[0] == 0
    assert wait_for(tmp_path / "heard") == "1"


def test_numbers_are_decimal(tmp_path) -> None:
    code, output = ended(supervise("--tries", "2", "--pause", "00", "sh", "-c", "exit 9"))
    assert (code, "try 2 of 2 in 0 s" in output) == (9, True)
    process = supervise("--tries", "2", "--pause", "08", "sh", "-c", f"echo run >> {tmp_path}/runs; exit 9")
    wait_for(tmp_path / "runs")
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert "in 8 s" in ended(process)[1]


@pytest.mark.parametrize("while_pausing", [False, True])
def test_a_signal_ends_the_job_and_starts_no_other(tmp_path, while_pausing) -> None:
    job = f"trap 'exit 143' TERM; echo run >> {tmp_path}/runs; "
    job += "exit 3" if while_pausing else "while true; do sleep 0.05; done"
    process = supervise("--pause", "20", "bash", "-c", job)
    wait_for(tmp_path / "runs")
    time.sleep(0.3 if while_pausing else 0)
    process.send_signal(signal.SIGTERM)
    code, _ = ended(process)
    assert code == (3 if while_pausing else 143)
    assert (tmp_path / "runs").read_text().split() == ["run"]


@pytest.mark.parametrize("nth", [1, 2])
def test_a_signal_that_comes_as_the_job_is_started_is_passed_on(tmp_path, nth) -> None:
    """Between the start and the note of its number: of the job, and of the pause after it. Bash itself sends it."""
    (tmp_path / "env").write_text(
        "begun=0\n"
        f"signalled() {{ begun=$((begun + 1)); [[ $begun != {nth} ]] || {{ trap - DEBUG; kill -TERM $$; }}; }}\n"
        "trap '[[ $BASH_COMMAND != \"job=\\$!\" ]] || signalled' DEBUG\n"
    )
    job = "exit 3" if nth == 2 else "sleep 60"
    start = time.monotonic()
    process = supervise("--pause", "60", "sh", "-c", job, env={**os.environ, "BASH_ENV": str(tmp_path / "env")})
    code, _ = ended(process)
    assert code == (3 if nth == 2 else 128 + signal.SIGTERM)
    assert time.monotonic() - start < 20


def test_what_the_job_leaves_behind_is_ended(tmp_path) -> None:
    job = f"sleep 60 & echo $! > {tmp_path}/left; exit 4"
    code, _ = ended(supervise("--tries", "1", "bash", "-c", job))
    assert code == 4
    pid = int(wait_for(tmp_path / "left"))
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return  # dead, and nobody has asked how it ended
        time.sleep(0.02)
    pytest.fail(f"process {pid} is still there")


@pytest.mark.parametrize(
    "words",
    [[], ["--tries", "0", "true"], ["--pause", "x", "true"], ["--unknown", "1", "true"], ["--tries", "9" * 20, "true"]],
)
def test_the_usage(words) -> None:
    code, output = ended(supervise(*words))
    assert code == 2
    assert "usage: " in output
