"""Files that no run may obey: each is put where requests are read, and must lead to one warning and nothing else."""

from __future__ import annotations

import json
import os
import pathlib
import socket
from collections.abc import Callable, Iterator

GOOD = {"distlr": 1, "action": "set-lr", "multiply": 0.5}


def _text(value: object) -> bytes:
    return (value if isinstance(value, str) else json.dumps(value)).encode()


CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "truncated": _text(GOOD)[:-9],
    "binary": bytes(range(256)),
    "not_utf8": b'{"distlr": 1, "action": "stop\xff"}',
    "utf16": json.dumps(GOOD).encode("utf-16"),
    "huge": b" " * 10_000_000 + _text(GOOD),
    "deep": b'{"distlr": 1, "action": ' + b"[" * 4000,
    "deep_and_closed": b"[" * 2000 + b"]" * 2000,
    "nan": _text('{"distlr": 1, "action": "set-lr", "multiply": NaN}'),
    "infinity": _text('{"distlr": 1, "action": "set-lr", "to": Infinity}'),
    "overflow": _text('{"distlr": 1, "action": "set-lr", "to": 1e999}'),
    "many_digits": b'{"distlr": 1, "action": "stop", "at_epoch": ' + b"9" * 4000 + b"}",
    "a_list": _text([GOOD]),
    "a_number": _text(3),
    "null": _text("null"),
    "two_objects": _text(GOOD) * 2,
    "no_version": _text({"action": "stop"}),
    "other_version": _text({**GOOD, "distlr": 2}),
    "true_version": _text({**GOOD, "distlr": True}),
    "no_action": _text({"distlr": 1}),
    "unknown_action": _text({"distlr": 1, "action": "__import__('os').system('true')"}),
    "unknown_key": _text({**GOOD, "__class__": "Request"}),
    "key_twice": _text('{"distlr": 1, "action": "set-lr", "multiply": 1.0, "multiply": 50}'),
    "a_pickle": b"\x80\x04cposix\nsystem\n(Vtrue\ntR.",
    "text_as_number": _text({**GOOD, "multiply": "0.5"}),
    "true_as_number": _text({**GOOD, "multiply": True}),
    "zero": _text({**GOOD, "multiply": 0}),
    "negative": _text({"distlr": 1, "action": "set-lr", "to": -0.1}),
    "both": _text({**GOOD, "to": 0.1}),
    "neither": _text({"distlr": 1, "action": "set-lr"}),
    "stop_with_a_rate": _text({"distlr": 1, "action": "stop", "to": 0.1}),
    "too_large_a_change": _text({**GOOD, "multiply": 1000}),
    "beyond_any_rate": _text({**GOOD, "multiply": 1e11, "force": True}),
    "forced_by_a_word": _text({**GOOD, "multiply": 1000, "force": "yes"}),
    "epoch_0": _text({**GOOD, "at_epoch": 0}),
    "half_an_epoch": _text({**GOOD, "at_epoch": 2.5}),
    "an_epoch_that_is_over": _text({**GOOD, "at_epoch": 1}),
}


def write(directory: pathlib.Path, elsewhere: pathlib.Path) -> list[str]:
    """Puts all of them into a control directory, and returns their names."""
    elsewhere.mkdir(exist_ok=True)
    good = elsewhere / "good.json"
    good.write_bytes(_text(GOOD))
    good.chmod(0o600)
    for name, data in CONTENTS.items():
        _put(directory / f"{name}.json", data)
    names = [f"{name}.json" for name in CONTENTS]
    for name, make in _special(directory, good):
        make()
        names.append(name)
    return names


def _put(path: pathlib.Path, data: bytes, mode: int = 0o600) -> None:
    path.write_bytes(data)
    path.chmod(mode)


def _special(directory: pathlib.Path, good: pathlib.Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is not in the contents: kinds of files, names, owners, permissions."""

    def in_quotes(name: str) -> tuple[str, Callable[[], object]]:
        return name, lambda: _put(directory / name, _text(GOOD))

    yield "symlink.json", lambda: (directory / "symlink.json").symlink_to(good)
    yield "dangling.json", lambda: (directory / "dangling.json").symlink_to("/nowhere/at/all")
    yield "device.json", lambda: (directory / "device.json").symlink_to("/dev/zero")
    yield "hard_link.json", lambda: os.link(good, directory / "hard_link.json")
    yield "folder.json", lambda: (directory / "folder.json").mkdir()
    yield "pipe.json", lambda: os.mkfifo(directory / "pipe.json", 0o600)
    yield "socket.json", lambda: _bind(directory / "socket.json")
    yield "others_may_write.json", lambda: _put(directory / "others_may_write.json", _text(GOOD), 0o666)
    yield in_quotes("..%2f..%2fetc.json")
    yield in_quotes("a name.json")
    yield in_quotes("new\nline.json")
    yield in_quotes("\x1b[31mred.json")
    yield in_quotes("request.txt")
    yield in_quotes("l" * 200 + ".json")
    if os.geteuid() == 0:
        yield "of_another.json", lambda: (_put(directory / "of_another.json", _text(GOOD)), _give(directory))


def _give(directory: pathlib.Path) -> None:
    os.chown(directory / "of_another.json", 12345, -1)


def _bind(path: pathlib.Path) -> None:
    where = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(where)
