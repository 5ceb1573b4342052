"""`distlr doctor`: what it prints, its exit status, and that it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distlr.cli.main import main
from distlr.tools.doctor.finding import Finding
from distlr.tools.doctor.processes import Ended

ROOT = Path(__file__).resolve().parents[2]
SOUND = {
    "tensorflow": {
        "version": "2.21.0",
        "cuda": False,
        "gpus": 0,
        "keras": {"version": "3.15.1", "backend": "tensorflow"},
    },
    "horovod": {"version": "0.28.1", "gloo": True, "mpi": True, "nccl": False},
    "mpi4py": {},
}


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine whose packages answer as in the dict that is returned, and which has no launcher."""
    answers = {name: dict(answer) for name, answer in SOUND.items()}
    monkeypatch.setattr("distlr.tools.doctor.processes.probe_package", lambda package, environ: answers[package])
    monkeypatch.setattr("distlr.tools.doctor.connections.find", lambda program, environ: None)
    monkeypatch.setattr("distlr.tools.doctor.machine.driver_gpus", lambda environ: 0)
    for name in ("DISTLR_ENGINE", "DISTLR_SIMULATE", "TF_CONFIG", "TF_USE_LEGACY_KERAS"):
        monkeypatch.delenv(name, raising=False)
    return answers


def findings(capsys) -> dict[str, dict[str, str]]:
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"distlr", "findings"}
    assert all(list(finding) == ["name", "status", "found", "to_do"] for finding in printed["findings"])
    return {finding["name"]: finding for finding in printed["findings"]}


def test_a_sound_machine(machine, capsys) -> None:
    assert main(["doctor", "--quick", "--json"]) == 0
    by_name = findings(capsys)
    assert list(by_name) == [
        "Python",
        "machine",
        "TensorFlow",
        "Keras",
        "legacy Keras",
        "devices",
        "environment",
        "horovodrun",
        "mpirun",
        "srun",
        "MPI",
        "Horovod",
        "distlr.init()",
    ]
    assert {finding["status"] for finding in by_name.values()} == {"OK"}


def test_an_error_makes_the_status_1(machine, capsys) -> None:
    machine["horovod"] = {"version": "0.28.1", "error": "undefined symbol: _ZN"}
    assert main(["doctor", "--quick"]) == 1
    out = capsys.readouterr().out
    assert "error    Horovod: 0.28.1 cannot be loaded: it was built for another TensorFlow." in out
    assert "\n         Build it for this TensorFlow with docker/build-horovod.sh" in out


def test_a_warning_does_not(machine, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    assert main(["doctor", "--quick", "--quiet"]) == 0
    assert [line[:24] for line in capsys.readouterr().out.splitlines() if line[0] != " "] == [
        "warning  legacy Keras: T"
    ]


def test_quiet_says_nothing_where_all_is_well(machine, capsys) -> None:
    assert main(["doctor", "--quick", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_without_tensorflow_it_says_so_and_asks_no_further(machine, capsys) -> None:
    machine["tensorflow"] = {}
    assert main(["doctor", "--json"]) == 1  # not quick: there is nothing to launch
    by_name = findings(capsys)
    assert by_name["TensorFlow"]["status"] == by_name["distlr.init()"]["status"] == "error"
    assert not {"Keras", "devices", "Horovod"} & by_name.keys()


@pytest.mark.parametrize(
    ("horovod", "engines"), [(SOUND["horovod"], ["horovod", "multi-worker"]), ({}, ["multi-worker"])]
)
def test_each_engine_that_is_there_is_tried(machine, monkeypatch, capsys, horovod, engines) -> None:
    machine["horovod"] = horovod
    tried = []

    def check(engine, environ, *, gpus):
        tried.append(engine)
        return [Finding(f"averaging ({engine})", "error", "Gradients are not averaged.")]

    monkeypatch.setattr("distlr.tools.doctor.two_ranks.check", check)
    assert main(["doctor", "--json"]) == 1
    assert tried == engines
    assert [name for name in findings(capsys) if "averaging" in name] == [f"averaging ({engine})" for engine in engines]


@pytest.mark.parametrize(
    ("options", "terminal", "speaks"), [([], True, True), ([], False, False), (["--quiet"], True, False)]
)
def test_what_is_waited_for_is_said_on_a_terminal(machine, monkeypatch, capsys, options, terminal, speaks) -> None:
    monkeypatch.setattr("distlr.tools.doctor.two_ranks.check", lambda engine, environ, gpus: [])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert main(["doctor", *options]) == 0
    assert ("one update on two ranks (horovod): some seconds, at most 120 ..." in capsys.readouterr().err) == speaks


def test_on_a_terminal_it_is_a_table(machine, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["doctor", "--quick"]) == 0
    out = capsys.readouterr().out
    assert "TensorFlow" in out
    assert "─┼─" in out


def test_a_script_is_read(machine, tmp_path, capsys) -> None:
    script = tmp_path / "train.py"
    script.write_text("import horovod.tensorflow.keras as hvd\nopt = hvd.DistributedOptimizer(opt)\n")
    assert main(["doctor", "--quick", "--quiet", "--script", str(script)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"warning  {script}:1: `import horovod.tensorflow.keras as hvd`")
    assert lines[2].startswith(f"error    {script}:2: `hvd.DistributedOptimizer(...)` averages nothing")


@pytest.mark.parametrize(
    ("status", "statuses"), [("OK", ["OK", "OK"]), ("error", ["OK", "error"]), ("warning", ["warning", "warning"])]
)
def test_a_script_with_setup_is_measured_and_its_losses_are_then_not_guessed_at(
    machine, monkeypatch, tmp_path, capsys, status, statuses
) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import distlr, keras, tensorflow as tf\njob = distlr.init()\nclass Net(keras.Model):\n"
        "    def train_step(self, data):\n        with tf.GradientTape():\n            loss = tf.reduce_mean(data)\n"
        "def setup(job): ...\n"
    )
    scripts = []
    monkeypatch.setattr("distlr.tools.doctor.two_ranks.check", lambda engine, environ, gpus: [])
    monkeypatch.setattr(
        "distlr.tools.doctor.two_replicas.check",
        lambda path, environ: scripts.append(path) or Finding(f"{path}: one update on two replicas", status, "Said."),
    )
    assert main(["doctor", "--quick", "--json", "--script", str(script)]) == 0
    assert scripts == []
    capsys.readouterr()
    main(["doctor", "--json", "--script", str(script)])
    assert scripts == [script]
    of_script = {name: each for name, each in findings(capsys).items() if name.startswith(str(script))}
    assert [each["status"] for each in of_script.values()] == statuses


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [(["--script", "absent.py"], "--script"), (["--slow"], "--slow"), (["--script"], "--script")],
)
def test_bad_arguments_are_one_line_and_status_2(capsys, arguments, argument) -> None:
    try:
        code = main(["doctor", *arguments])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    (line,) = captured.err.splitlines()
    assert line.startswith("distlr: error: ")
    assert argument in line


@pytest.mark.processes
def test_on_this_machine(capsys) -> None:
    code = main(["doctor", "--quick", "--json"])
    by_name = findings(capsys)
    assert code == int(any(finding["status"] == "error" for finding in by_name.values()))
    assert by_name["TensorFlow"]["status"] in ("OK", "warning")
    assert by_name["Keras"]["status"] == "OK"
    assert by_name["distlr.init()"]["found"].startswith("local")


@pytest.mark.processes
def test_without_tensorflow_the_command_answers(tmp_path) -> None:
    """As on a machine where it is not installed: the command starts, and so do the processes that it asks."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'tensorflow':\n"
        "            raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    code = "import sys; sys.argv[0] = 'distlr'; from distlr.cli.main import main; sys.exit(main())"
    ended = subprocess.run(
        [sys.executable, "-c", code, "doctor", "--json"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (1, "")
    by_name = {finding["name"]: finding for finding in json.loads(ended.stdout)["findings"]}
    assert by_name["TensorFlow"]["status"] == "error"
    assert "pip install" in by_name["TensorFlow"]["to_do"]


@pytest.mark.processes
def test_a_package_that_ends_its_process_is_a_finding(tmp_path, monkeypatch) -> None:
    from distlr.tools.doctor.processes import probe_package

    (tmp_path / "horovod.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert probe_package("horovod", os.environ) == {"error": "the process that imports it was ended by SIGSEGV"}
    (tmp_path / "horovod.py").write_text("print('hello')\n__version__ = '1'\n")
    assert probe_package("horovod", os.environ)["version"] == "1"
    (tmp_path / "horovod.py").write_text("import time\ntime.sleep(60)\n")
    assert probe_package("horovod", os.environ, limit=1) == {"error": "the process that imports it did not end in time"}


def test_ended_is_what_a_finding_says() -> None:
    assert Ended(0, "a\n", "").how == "ended with status 0: a"
