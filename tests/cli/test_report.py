"""`distlr report`, as it is typed."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from distlr.cli.main import main
from distlr.runlog.directory import RunDirectory


@pytest.fixture(scope="module")
def sample(load_helper):
    return load_helper(pathlib.Path(__file__).parents[1] / "_sample_runs.py")


@pytest.fixture
def run_dirs(sample, tmp_path) -> list[pathlib.Path]:
    paths = []
    for run in sample.two():
        path = tmp_path / run.name
        path.mkdir()
        directory = RunDirectory(path)
        directory.begin(run.run)
        for epoch in run.epochs:
            directory.add_epoch(epoch)
        for decision in run.decisions:
            directory.add_decision(decision)
        paths.append(path)
    return paths


# The command as its console script runs it, where TensorFlow and Keras cannot be imported.
WITHOUT_TENSORFLOW = """
import sys
sys.modules.update(tensorflow=None, keras=None)
sys.argv[0] = "distlr"
from distlr.cli.main import main
sys.exit(main())
"""


def report(*words: object) -> int:
    return main(["report", *map(str, words)])


def test_the_page_is_in_the_first_run(run_dirs, capsys) -> None:
    assert report(*run_dirs) == 0
    page = run_dirs[0] / "report.html"
    assert capsys.readouterr().out == f"wrote {page}\n"
    text = page.read_text(encoding="utf-8")
    assert "<title>Report of linear and sqrt</title>" in text
    assert text.count('data-series="learning_rate"') == 2
    assert not (run_dirs[1] / "report.html").exists()


def test_files_a_title_and_silence(run_dirs, tmp_path, capsys) -> None:
    page, picture = tmp_path / "new" / "a.html", tmp_path / "new" / "a.png"
    assert report(run_dirs[1], "--output", page, "--png", picture, "--title", "<b> & rates") == 0
    assert capsys.readouterr().out == f"wrote {page} and {picture}\n"
    assert "<h1>&lt;b&gt; &amp; rates</h1>" in page.read_text(encoding="utf-8")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert report(run_dirs[1], "--output", page, "--quiet") == 0
    output = capsys.readouterr()
    assert output.out == output.err == ""


def test_a_run_that_is_under_way(run_dirs, capsys) -> None:
    lines = (run_dirs[0] / "epochs.jsonl").read_text().splitlines(keepends=True)
    (run_dirs[0] / "epochs.jsonl").write_text("".join(lines[:5]) + lines[5][:40])
    assert report(run_dirs[0], "--quiet") == 0
    assert "5 of 12 epochs so far" in (run_dirs[0] / "report.html").read_text(encoding="utf-8")


def test_damaged_lines_cost_those_lines_and_the_page_says_so(run_dirs, capsys) -> None:
    path = run_dirs[0] / "epochs.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:5], b"\0" * 9, b"\n", b"\xff\n", *lines[5:]]))
    assert report(run_dirs[0], "--quiet") == 0
    page = (run_dirs[0] / "report.html").read_text(encoding="utf-8")
    assert "Warning: epochs.jsonl cannot be read in 2 lines." in page
    assert "12 epochs" in page


def _fails(capsys, *words: object) -> str:
    assert report(*words) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("distlr: error: ")
    assert output.err.count("\n") == 1
    return output.err


def test_what_cannot_be_is_one_line(run_dirs, tmp_path, capsys) -> None:
    assert "a directory with a run.json" in _fails(capsys, tmp_path / "nothing")
    assert "a directory with a run.json" in _fails(capsys, run_dirs[0], tmp_path)
    assert "choose --output" in _fails(capsys, run_dirs[0], "--output", tmp_path)
    assert "choose --output" in _fails(capsys, run_dirs[0], "--output", run_dirs[0] / "run.json" / "report.html")
    (run_dirs[1] / "run.json").write_text("[1]\n")
    assert "is not what a run writes" in _fails(capsys, *run_dirs)
    assert not (run_dirs[0] / "report.html").exists()


def test_a_picture_without_matplotlib_is_one_line(run_dirs, tmp_path, capsys, monkeypatch) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "pip install 'distlr[plot]'" in _fails(capsys, run_dirs[0], "--png", tmp_path / "a.png")
    assert report(run_dirs[0], "--quiet") == 0


def test_the_command_needs_no_tensorflow(run_dirs) -> None:
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, "report", *map(str, run_dirs)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout == f"wrote {run_dirs[0] / 'report.html'}\n"
