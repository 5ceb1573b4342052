"""One job at a time in a directory. Another process' lock is another open file here: to `flock` they are the same."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import json
import os
import pathlib
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator

import pytest

from distlr._utils import directory_lock
from distlr._utils.directory_lock import DirectoryLock, release_all
from distlr.errors import ConfigurationError


@contextlib.contextmanager
def locked_by_another(directory: pathlib.Path, name: str = "run", text: str | None = None) -> Iterator[None]:
    """The lock of another job, which has written `text` into the file, or who it is."""
    holder = {"host": "node7", "pid": 4242, "since": "2026-01-31T12:00:00+00:00"}
    with open(directory / f"{name}.lock", "w") as file:
        file.write(json.dumps(holder) if text is None else text)
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_free(directory: pathlib.Path, name: str = "run") -> bool:
    """Whether another job could lock the directory."""
    with open(directory / f"{name}.lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.fixture
def lock(tmp_path) -> Iterator[DirectoryLock]:
    lock = DirectoryLock(tmp_path, "run")
    yield lock
    lock.release()


def test_a_lock_says_who_has_it_and_leaves_nothing(tmp_path, lock) -> None:
    lock.acquire()
    assert lock.held
    assert not is_free(tmp_path)
    holder = json.loads((tmp_path / "run.lock").read_text())
    assert (holder["pid"], sorted(holder)) == (os.getpid(), ["host", "pid", "since"])
    lock.acquire()  # once more
    lock.release()
    assert not lock.held
    assert list(tmp_path.iterdir()) == []


def test_another_job_is_waited_for_then_refused_with_who_it_is(tmp_path, lock, caplog) -> None:
    begin = time.monotonic()
    with (
        locked_by_another(tmp_path),
        pytest.raises(ConfigurationError, match=r"process 4242 on host node7, since 2026-01-31.*within 1 s\. Fix: end"),
    ):
        lock.acquire(timeout=2.0)  # half of it is waited
    assert 1.0 <= time.monotonic() - begin < 2.0
    assert caplog.text.count(f"{tmp_path} is in use by another job") == 1
    assert "waits up to 1 s for it to end" in caplog.text
    lock.acquire()  # its process has ended, and left the file behind
    assert not is_free(tmp_path)


def test_the_wait_is_two_minutes_where_nobody_waits_meanwhile(tmp_path, lock, monkeypatch) -> None:
    """The clock is the test's: each pause lasts a minute."""
    now = [0.0]
    monkeypatch.setattr(directory_lock.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(directory_lock.time, "sleep", lambda seconds: now.insert(0, now[0] + 60.0))
    with locked_by_another(tmp_path), pytest.raises(ConfigurationError, match="within 120 s"):
        lock.acquire()
    assert now[0] == 120.0


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"host": 1}', '{"host": "a", "pid": "x", "since": "b"}', "\0" * 9]
)
def test_what_a_holder_says_is_trusted_in_nothing(tmp_path, lock, text) -> None:
    with locked_by_another(tmp_path, text=text), pytest.raises(ConfigurationError, match="a process that has not said"):
        lock.acquire(timeout=0.0)


def test_a_hosts_name_comes_printable(tmp_path, lock) -> None:
    text = json.dumps({"host": "\x1b[2Jnode\n7", "pid": 1, "since": "now"})
    with locked_by_another(tmp_path, text=text), pytest.raises(ConfigurationError) as info:
        lock.acquire(timeout=0.0)
    assert str(info.value).isprintable()


def test_the_same_process_takes_it_over(tmp_path, lock) -> None:
    """A second `fit`, the next generation of an elastic job: they do not wait for themselves."""
    (tmp_path / "to").symlink_to(tmp_path)
    later = DirectoryLock(tmp_path / "to", "run")  # the same directory by another name
    lock.acquire()
    later.acquire()
    assert (lock.held, lock.lost, later.held) == (False, True, True)
    lock.release()
    assert not is_free(tmp_path)
    lock.acquire()
    assert (lock.held, lock.lost, later.lost) == (True, False, True)
    later.release()
    assert not is_free(tmp_path)


def test_a_lock_that_nobody_refers_to_is_released(tmp_path) -> None:
    DirectoryLock(tmp_path, "run").acquire()
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_all_locks_of_a_process_are_released_together(tmp_path) -> None:
    locks = [DirectoryLock(tmp_path, name) for name in ("run", "checkpoints")]
    for lock in locks:
        lock.acquire()
    release_all()
    assert not any(lock.held for lock in locks)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_its_holder_removes_is_not_locked_twice(tmp_path, lock, monkeypatch) -> None:
    """Between the opening of the file and its lock the holder has released it, and a third job has it anew."""
    real, third = fcntl.flock, []

    def flock(file, how):
        if not third:
            (tmp_path / "run.lock").unlink()
            third.append(open(tmp_path / "run.lock", "w"))  # noqa: SIM115
            real(third[0], fcntl.LOCK_EX)
        return real(file, how)

    (tmp_path / "run.lock").touch()
    monkeypatch.setattr(directory_lock.fcntl, "flock", flock)
    with pytest.raises(ConfigurationError, match="in use by another job"):
        lock.acquire(timeout=0.0)
    third[0].close()


def test_a_directory_that_was_made_anew_is_locked_anew(tmp_path) -> None:
    lock = DirectoryLock(tmp_path / "a", "run")
    lock.acquire()
    (tmp_path / "a" / "run.lock").unlink()
    with locked_by_another(tmp_path / "a"):
        with pytest.raises(ConfigurationError, match="in use by another job"):
            lock.acquire(timeout=0.0)
        lock.release()
        assert (tmp_path / "a" / "run.lock").exists()  # it is the other's


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_without_locks_there_is_one_warning_and_on_it_goes(tmp_path, lock, number, caplog, monkeypatch) -> None:
    def flock(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(directory_lock.fcntl, "flock", flock)
    lock.acquire()
    lock.acquire()
    assert lock.held
    assert caplog.text.count("cannot be locked") == 1
    assert os.strerror(number) in caplog.text


def test_a_lock_file_that_is_none_is_no_reason_not_to_train(tmp_path, lock, caplog) -> None:
    (tmp_path / "run.lock").mkdir()
    lock.acquire()
    assert "cannot be locked" in caplog.text
    lock.release()
    assert (tmp_path / "run.lock").is_dir()


def test_no_child_inherits_it(tmp_path, lock) -> None:
    """Neither a program that is started with all files open, nor a process that is forked, as data workers are."""
    lock.acquire()
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer versions of Python warn where there are threads
        forked = os.fork()  # the lock's file is closed before this returns in the child
    if forked == 0:
        time.sleep(60)
        os._exit(0)
    try:
        time.sleep(0.2)
        os.close(lock._descriptor)  # what the kernel does as the process is killed
        lock._descriptor = None
        assert is_free(tmp_path)
    finally:
        os.kill(forked, 9)
        os.waitpid(forked, 0)
        child.kill()
        child.wait()


HOLDER = """
import sys, time
from distlr._utils.directory_lock import DirectoryLock
lock = DirectoryLock(sys.argv[1], "run")
lock.acquire()
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.processes
@pytest.mark.timeout(60)
def test_the_next_job_goes_on_as_soon_as_the_first_is_killed(tmp_path, lock, caplog) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        with pytest.raises(ConfigurationError, match=f"process {holder.pid} on host"):
            lock.acquire(timeout=0.0)
        holder.kill()
    lock.acquire(timeout=4.0)
    assert lock.held
