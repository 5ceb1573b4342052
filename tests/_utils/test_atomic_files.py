"""Files that are whole or absent, with the permissions that the process asked for."""

from __future__ import annotations

import os
import stat
import threading

import pytest

from distlr._utils import atomic_files
from distlr._utils.atomic_files import write_bytes, write_json, write_parts


def _mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("umask", "mode", "expected"), [(0o022, 0o666, 0o644), (0o077, 0o666, 0o600), (0, 0o640, 0o640)]
)
def test_the_mode_follows_the_umask(tmp_path, umask, mode, expected) -> None:
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "file", b"1", mode=mode)
    finally:
        os.umask(before)
    assert _mode(tmp_path / "file") == expected


def test_files_of_other_threads_keep_their_permissions(tmp_path, monkeypatch) -> None:
    """The umask is the process': a thread that makes a file while another one's is written must not notice."""
    real, modes = os.umask, []

    def umask(mask: int) -> int:
        before = real(mask)
        thread = threading.Thread(target=(tmp_path / f"{len(modes)}").touch)
        thread.start()
        thread.join()
        modes.append(_mode(tmp_path / f"{len(modes)}"))
        return before

    before = os.umask(0o077)
    try:
        monkeypatch.setattr(atomic_files.os, "umask", umask)
        write_json(tmp_path / "file", {})
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert set(modes) <= {0o600}
    assert _mode(tmp_path / "file") == 0o600


def test_the_pieces_stand_one_after_the_other(tmp_path) -> None:
    write_parts(tmp_path / "new" / "file", [b"ab", bytearray(b"c"), memoryview(b"xde")[1:]])
    assert (tmp_path / "new" / "file").read_bytes() == b"abcde"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_an_error_is_not_hidden_by_a_temporary_file_that_is_gone(tmp_path, monkeypatch) -> None:
    def replace(temporary: str, target: object) -> None:
        assert atomic_files.is_being_written(temporary)
        os.unlink(temporary)
        raise PermissionError("no rename here")

    monkeypatch.setattr(atomic_files.os, "replace", replace)
    with pytest.raises(PermissionError, match="no rename here"):
        write_bytes(tmp_path / "file", b"1")
    assert list(tmp_path.iterdir()) == []
    assert not atomic_files._being_written
