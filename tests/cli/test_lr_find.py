"""`distlr lr-find`, as it is typed."""

from __future__ import annotations

import io
import json
import sys

import pytest

from distlr.cli.main import main

SCRIPT = """
import keras
import numpy as np

def setup(job):
    keras.utils.set_random_seed(0)
    batch = job.batch(per_replica=16, base_batch=8, samples_per_epoch=256)
    with job.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile(job.optimizer(keras.optimizers.SGD(0.1), batch), "mse")
    x = np.random.default_rng(0).normal(size=(256, 4)).astype("float32")
    return model, job.shard((x, x.sum(axis=1, keepdims=True)), batch, seed=0), "and more"

def nothing(job):
    return None

number = 3
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    (tmp_path / "a_script.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    for name in ("DISTLR_SIMULATE", "DISTLR_ENGINE", "TF_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    path = list(sys.path)
    yield tmp_path
    assert sys.path == path
    sys.modules.pop("a_script", None)


def find(*words: str) -> int:
    return main(["lr-find", *words])


SHORT = ["--low", "1e-4", "--steps", "40"]


def test_a_picture_that_cannot_be_written_is_one_line(script, capsys) -> None:
    assert find("a_script:setup", *SHORT, "--png", "/proc/nope/x") == 2
    error = capsys.readouterr().err
    assert "The curve cannot be drawn: " in error
    assert error.count("\n") == 1


def test_the_chart_and_the_suggestions(script, capsys) -> None:
    assert find("a_script:setup", *SHORT, "--png", "out/curve.png") == 0
    output = capsys.readouterr()
    assert output.err == ""  # no progress where there is no terminal
    for text in ("█", "0.0001", "valley: ", "steepest: ", "at the base batch", "multiplies it by 2"):
        assert text in output.out, text
    assert any(sorted(line.split()) == ["s", "v"] for line in output.out.splitlines())
    assert (script / "out" / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.replicas
def test_json_on_simulated_replicas(script, capsys) -> None:
    assert find("a_script:setup", *SHORT, "--json", "-n", "4") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["factor"] == 8
    assert result["base"]["valley"] == result["valley"] / 8
    assert len(result["rates"]) == len(result["losses"]) <= 40


def test_quiet(script, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert find("a_script:setup", *SHORT, "--quiet") == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert "█" not in output.out
    assert "valley: " in output.out


def test_progress_on_a_terminal(script, monkeypatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert find("a_script:setup", *SHORT) == 0
    assert "rate " in terminal.getvalue()
    assert "loss " in terminal.getvalue()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a_script"], "`setup` must be of the form package.module:name"),
        ([":setup"], "`setup` must be of the form package.module:name"),
        (["no_such_module:setup"], "cannot be imported"),
        (["a_script:absent"], "cannot be imported"),
        (["a_script:number"], "must be a function that takes the job"),
        (["a_script:nothing"], "a function that gives NoneType"),
        (["a_script:setup", "--low", "2", "--high", "1"], "`high` must be above low=2"),
        (["a_script:setup", "--steps", "0"], "`steps` must be at least 1"),
        (["a_script:setup", "-n", "0"], "`simulate` must be a number of replicas"),
    ],
)
def test_what_cannot_be_is_one_line(script, capsys, words, message) -> None:
    assert find(*words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_replicas_are_not_simulated_in_a_launcher(script, capsys, monkeypatch) -> None:
    monkeypatch.setenv("HOROVOD_RANK", "0")
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    monkeypatch.setenv("HOROVOD_LOCAL_RANK", "0")
    monkeypatch.setenv("HOROVOD_LOCAL_SIZE", "2")
    assert find("a_script:setup", "-n", "2") == 2
    assert "would simulate 2 replicas in each" in capsys.readouterr().err
