"""`distlr plan`, as it is typed."""

from __future__ import annotations

import csv
import json
import sys

import pytest

from distlr.cli.main import main

RUN = ["--per-replica", "64", "--base-batch", "256", "--samples-per-epoch", "25600", "--epochs", "10"]
COSINE = {"name": "cosine", "initial": 0.1, "steps": "10ep"}


def plan(*words: str) -> int:
    return main(["plan", *words])


def test_the_table_the_chart_and_the_warnings(capsys) -> None:
    assert plan(json.dumps(COSINE), *RUN, "--replicas", "4", "16", "256", "--warmup", "2ep") == 0
    output = capsys.readouterr()
    for text in ("4 replicas", "batch 1024", "factor 4", "the warmup ends", "0.0095491", "█"):
        assert text in output.out, text
    assert output.err.count("warning (") == 1
    assert "warning (256 replicas): k = 64 is beyond" in output.err


def test_files_and_silence(tmp_path, capsys) -> None:
    spec = tmp_path / "schedule.json"
    spec.write_text(json.dumps(COSINE))
    files = ["--csv", str(tmp_path / "rates.csv"), "--png", str(tmp_path / "rates.png")]
    assert plan(str(spec), *RUN, "--replicas", "4", "8", "--quiet", *files) == 0
    assert capsys.readouterr().out == ""
    rows = list(csv.reader((tmp_path / "rates.csv").read_text().splitlines()))
    assert rows[0] == ["epoch", "replicas_4", "replicas_8"]
    assert [float(value) for value in rows[1]] == [0.0, 0.1, 0.2]
    assert float(rows[-1][0]) == 10
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")


def test_what_can_be_imported(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "my_rates.py").write_text(
        "import keras\nschedule = keras.optimizers.schedules.CosineDecay(0.1, 1000)\n"
        "class Settings:\n    optimizer = keras.optimizers.SGD(schedule)\n"
        "rate = 0.2\nadam = keras.optimizers.Adam(0.3)\n"
    )
    monkeypatch.chdir(tmp_path)
    try:
        for name, first in (("schedule", "0.1"), ("Settings.optimizer", "0.1"), ("rate", "0.2"), ("adam", "0.3")):
            assert plan(f"my_rates:{name}", *RUN, "--replicas", "4") == 0
            assert f"│     0 │        {first} │" in capsys.readouterr().out
    finally:
        sys.modules.pop("my_rates", None)


@pytest.mark.parametrize("spec", ["0.5", "5e-1", "+0.5", ".5", "50E-2"])
def test_a_rate_however_it_is_written(capsys, spec) -> None:
    assert plan(spec, *RUN, "--replicas", "4") == 0
    assert "│     0 │        0.5 │" in capsys.readouterr().out


def test_the_length_of_the_run_is_not_rounded(capsys) -> None:
    """1dur ends where the run does."""
    cosine = json.dumps({"name": "cosine", "initial": 0.1, "steps": "1dur"})
    assert plan(cosine, *RUN[:-1], "1234567.5", "--replicas", "4") == 0
    assert "│ 1.23457e+06 │          0 │" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--csv", "--png"])
def test_a_file_that_cannot_be_written_is_one_line(capsys, option) -> None:
    assert plan("0.1", *RUN, "--quiet", option, "/proc/nope/x") == 2
    error = capsys.readouterr().err
    assert "The curves cannot be written: " in error
    assert "choose --csv and --png elsewhere" in error


def test_a_file_that_is_no_text_is_one_line(tmp_path, capsys) -> None:
    (tmp_path / "weights").write_bytes(b"\x89HDF\xff")
    assert plan(str(tmp_path / "weights"), *RUN) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "weights cannot be read" in error


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing_here", "must be an importable object, JSON, or a file of it"),
        ("no_such_module:rate", "cannot be imported"),
        ("math:no_such_name", "cannot be imported"),
        ("math:pi_", "cannot be imported"),
        ("{not json", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("x" * 1000, "cannot be read"),
        ("nan", "must be a finite number of at least 0"),
        ('{"name": "cosin"}', "did you mean 'cosine'"),
        ('{"name": "cosine", "initial": 0.1, "steps": "1zz"}', "steps"),
    ],
)
def test_what_cannot_be_is_one_line(capsys, spec, message) -> None:
    assert plan(spec, *RUN) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
