"""The `distlr` command: what it prints, how it fails, and that it is light."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from fractions import Fraction

import pytest

from distlr._version import __version__
from distlr.cli.main import COMMANDS, main

BATCH = ["batch", "--per-replica", "64", "--base-batch", "256"]

# Runs the command as its console script does and reports what that imported.
AS_SCRIPT = """
import sys
sys.argv[0] = "distlr"
{prelude}
from distlr.cli.main import main
try:
    code = main()
except SystemExit as stop:
    code = stop.code
heavy = {{"tensorflow", "keras", "horovod", "mpi4py", "matplotlib"}}
print("IMPORTED", sorted(heavy & {{name.partition(".")[0] for name in sys.modules}}))
sys.exit(code)
"""

# Hides TensorFlow and Keras from the import system, as on a machine where they are not installed.
HIDE_TENSORFLOW = """
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "keras"):
            return None
        return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""


def _script(*arguments: str, prelude: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", AS_SCRIPT.format(prelude=prelude), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_console_script_is_the_entry_point():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="distlr")
    assert script.load() is main
    assert importlib.metadata.version("distlr") == __version__


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"distlr {__version__}\n"


def test_help_lists_every_subcommand(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert command.__name__.rpartition(".")[2].replace("_", "-") in out


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], BATCH], ids=lambda words: words[0])
@pytest.mark.parametrize("prelude", ["", HIDE_TENSORFLOW], ids=["installed", "hidden"])
def test_the_command_imports_no_tensorflow_and_needs_none(arguments, prelude):
    process = _script(*arguments, prelude=prelude)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.endswith("IMPORTED []\n")


def test_without_tensorflow_what_needs_it_fails_with_one_line_that_says_how_to_install_it():
    attempt = "import distlr\ntry:\n    distlr.init\nexcept ImportError as error:\n    print(error)"
    code = f"import sys\n{HIDE_TENSORFLOW}\n{attempt}"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    (line,) = process.stdout.splitlines()
    assert 'pip install "distlr[cpu]"' in line


def test_batch_table(capsys):
    assert main([*BATCH, "--replicas", "1", "8", "64"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "replicas  global batch     k  factor",
        "       1            64  0.25    0.25",
        "       8           512     2       2",
        "      64          4096    16      16",
    ]


def test_batch_table_with_epochs_accumulation_and_a_rule(capsys):
    options = [
        "--replicas",
        "2",
        "4",
        "--samples-per-epoch",
        "60000",
        "--accumulation",
        "8",
        "--rule",
        "sqrt",
    ]
    assert main([*BATCH, *options]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "replicas  global batch  k   factor  updates per epoch",
        "       2          1024  4        2                 58",
        "       4          2048  8  2.82843                 29",
    ]


@pytest.mark.parametrize(
    ("rule", "expected"), [("linear", [0.25, 2, 16]), ("sqrt", [0.5, 2**0.5, 4]), ("none", [1, 1, 1])]
)
def test_batch_json(capsys, rule, expected):
    options = ["--replicas", "1", "8", "64", "--rule", rule, "--samples-per-epoch", "10000", "--json"]
    assert main([*BATCH, *options]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [list(row) for row in rows] == [["replicas", "global_batch", "k", "factor", "updates_per_epoch"]] * 3
    assert [row["replicas"] for row in rows] == [1, 8, 64]
    assert [row["global_batch"] for row in rows] == [64, 512, 4096]
    assert [Fraction(row["k"]) for row in rows] == [Fraction(1, 4), 2, 16]
    assert [row["factor"] for row in rows] == pytest.approx(expected, rel=1e-15)
    assert [row["updates_per_epoch"] for row in rows] == [156, 19, 2]


def test_batch_json_without_an_epoch_has_null(capsys):
    assert main([*BATCH, "--replicas", "1", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["updates_per_epoch"] is None


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ([], "COMMAND"),
        (["nonsense"], "nonsense"),
        (["batch"], "--per-replica"),
        (["batch", "--per-replica", "64"], "--base-batch"),
        (["batch", "--per-replica", "many", "--base-batch", "256"], "many"),
        (["batch", "--per-replica", "0", "--base-batch", "256"], "per_replica=0"),
        (["batch", "--per-replica", "64", "--base-batch", "-1"], "base_batch=-1"),
        ([*BATCH, "--replicas", "8", "0"], "replicas=0"),
        ([*BATCH, "--replicas"], "--replicas"),
        ([*BATCH, "--accumulation", "0"], "accumulation=0"),
        ([*BATCH, "--samples-per-epoch", "0"], "samples_per_epoch=0"),
        ([*BATCH, "--samples-per-epoch", "100", "--replicas", "2"], "samples_per_epoch=100"),
        ([*BATCH, "--rule", "cubic"], "rule='cubic'"),
        ([*BATCH, "--unknown"], "--unknown"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_one_line_and_exit_code_2(capsys, arguments, argument):
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("distlr: error: ")
    assert argument in line


@pytest.mark.skipif(os.name != "posix", reason="a pipe whose reader left")
def test_a_reader_that_leaves_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from distlr.cli.main import main; sys.exit(main(sys.argv[1:]))"
    try:
        process = subprocess.run(
            [sys.executable, "-c", code, *BATCH],
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(write)
    assert (process.returncode, process.stderr) == (1, b"")
