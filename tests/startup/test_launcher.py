"""Launcher detection: one row a case."""

from __future__ import annotations

import json
import types

import pytest

from distlr.communicators import LauncherInfo, detect
from distlr.errors import ConfigurationError


def env(names, *values):
    return dict(zip(names, map(str, values), strict=True))


HVD = ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE")
OMPI = tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
PMI = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")

# The shell of `salloc -n 4` or a batch script of 4 tasks: one process.
ALLOCATION = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "4",
    "SLURM_NPROCS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_TASKS_PER_NODE": "4",
    "SLURM_JOB_NAME": "interactive",
}


def step(rank, size, local, node=0, tasks=None):
    return {
        **ALLOCATION,
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(local),
        "SLURM_NODEID": str(node),
        "SLURM_STEP_TASKS_PER_NODE": tasks or str(size),
    }


def tf_config(kind, index, **cluster):
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


WORKERS = ["a:1", "a:2", "b:1"]

CASES = {
    "nothing": ({}, None),
    "horovodrun": (env(HVD, 5, 8, 1, 4), LauncherInfo("horovodrun", 5, 8, 1, 4)),
    "horovodrun of one": (env(HVD, 0, 1, 0, 1), LauncherInfo("horovodrun", 0, 1, 0, 1)),
    "mpirun": (env(OMPI, 3, 4, 1, 2), LauncherInfo("mpirun", 3, 4, 1, 2)),
    "mpirun of one": (env(OMPI, 0, 1, 0, 1), LauncherInfo("mpirun", 0, 1, 0, 1)),
    "pmi": (env(PMI, 1, 2, 1, 2), LauncherInfo("pmi", 1, 2, 1, 2)),
    "pmi of one": (env(PMI, 0, 1, 0, 1), None),
    "srun": (step(3, 4, 3), LauncherInfo("srun", 3, 4, 3, 4)),
    "srun, several nodes": (step(5, 7, 1, 2, "2(x3),1"), LauncherInfo("srun", 5, 7, 1, 2)),
    "srun, uneven last node": (step(6, 7, 0, 3, "2(x3),1"), LauncherInfo("srun", 6, 7, 0, 1)),
    "srun with pmi2": ({**step(1, 2, 1), "PMI_RANK": "1", "PMI_SIZE": "2"}, LauncherInfo("srun", 1, 2, 1, 2)),
    "allocation or batch script": (ALLOCATION, None),
    "interactive step": (step(0, 1, 0), None),
    "interactive step with pmi2": ({**step(0, 1, 0), "PMI_RANK": "0", "PMI_SIZE": "1"}, None),
    "worker": (tf_config("worker", 1, worker=WORKERS), LauncherInfo("tf_config", 1, 3, 1, 2)),
    "worker on another host": (tf_config("worker", 2, worker=WORKERS), LauncherInfo("tf_config", 2, 3, 0, 1)),
    "index as text": (tf_config("worker", "2", worker=WORKERS), LauncherInfo("tf_config", 2, 3, 0, 1)),
    "chief": (tf_config("chief", 0, chief=["c:1"], worker=WORKERS), LauncherInfo("tf_config", 0, 4, 0, 1)),
    "worker after chief": (
        tf_config("worker", 0, chief=["c:1"], worker=WORKERS),
        LauncherInfo("tf_config", 1, 4, 0, 2),
    ),
    "evaluator": (tf_config("evaluator", 0, worker=WORKERS), None),
    "one worker": (tf_config("worker", 0, worker=["a:1"]), None),
    "empty TF_CONFIG": ({"TF_CONFIG": ""}, None),
    "TF_CONFIG without cluster": ({"TF_CONFIG": "{}"}, None),
    # the order
    "horovodrun in a Slurm step": (
        {**step(0, 2, 0), **env(HVD, 3, 8, 3, 4)},
        LauncherInfo("horovodrun", 3, 8, 3, 4),
    ),
    "horovodrun before mpirun": (
        {**env(OMPI, 0, 1, 0, 1), **env(HVD, 1, 2, 1, 2)},
        LauncherInfo("horovodrun", 1, 2, 1, 2),
    ),
    "mpirun in a step of daemons": (
        {**step(1, 2, 0, 1, "1(x2)"), **env(OMPI, 5, 8, 1, 4)},
        LauncherInfo("mpirun", 5, 8, 1, 4),
    ),
    "pmi in a step of daemons": (
        {**step(1, 2, 0, 1, "1(x2)"), **env(PMI, 5, 8, 1, 4)},
        LauncherInfo("pmi", 5, 8, 1, 4),
    ),
    "srun before TF_CONFIG": (
        {**step(1, 2, 1), **tf_config("worker", 0, worker=WORKERS)},
        LauncherInfo("srun", 1, 2, 1, 2),
    ),
    "allocation with TF_CONFIG": (
        {**ALLOCATION, **tf_config("worker", 0, worker=WORKERS)},
        LauncherInfo("tf_config", 0, 3, 0, 2),
    ),
}


@pytest.mark.parametrize(("environ", "expected"), CASES.values(), ids=CASES)
def test_detect(environ, expected):
    before = dict(environ)
    assert detect(types.MappingProxyType(environ)) == expected
    assert environ == before


def without(environ, name):
    return {key: value for key, value in environ.items() if key != name}


BAD = {
    "not an integer": (env(HVD, "x", 2, 0, 1), ["HOROVOD_RANK='x'", "integer"]),
    "negative": (env(OMPI, -1, 2, 0, 1), ["OMPI_COMM_WORLD_RANK='-1'"]),
    "empty": (env(HVD, 0, "", 0, 1), ["HOROVOD_SIZE=''"]),
    "rank is size": (env(HVD, 2, 2, 0, 1), ["HOROVOD_RANK=2", "HOROVOD_SIZE=2", "below"]),
    "size of zero": (env(OMPI, 0, 0, 0, 1), ["OMPI_COMM_WORLD_SIZE=0"]),
    "local rank too large": (env(OMPI, 0, 4, 2, 2), ["OMPI_COMM_WORLD_LOCAL_RANK=2", "LOCAL_SIZE=2"]),
    "local size too large": (env(HVD, 0, 2, 0, 4), ["HOROVOD_LOCAL_SIZE=4", "HOROVOD_SIZE=2"]),
    "size missing": (without(env(HVD, 0, 2, 0, 2), "HOROVOD_SIZE"), ["HOROVOD_SIZE is not set"]),
    "local rank missing": (without(env(PMI, 0, 2, 0, 2), "MPI_LOCALRANKID"), ["MPI_LOCALRANKID is not set"]),
    "bad PMI size": (env(PMI, 0, "two", 0, 2), ["PMI_SIZE='two'"]),
    "bad Slurm tasks": ({**step(0, 2, 0), "SLURM_STEP_NUM_TASKS": "2x"}, ["SLURM_STEP_NUM_TASKS='2x'"]),
    "bad Slurm rank": (step(2, 2, 0), ["SLURM_PROCID=2", "SLURM_STEP_NUM_TASKS=2"]),
    "bad Slurm layout": (step(0, 2, 0, 0, "2(3)"), ["SLURM_STEP_TASKS_PER_NODE='2(3)'"]),
    "Slurm node beyond layout": (step(0, 4, 0, 2, "2(x2)"), ["SLURM_NODEID=2"]),
    "Slurm local rank beyond node": (step(2, 3, 1, 1, "2,1"), ["SLURM_LOCALID=1"]),
    "broken JSON": ({"TF_CONFIG": "{'cluster'"}, ["TF_CONFIG=", "must be JSON", "{'cluster'"]),
    "JSON of another kind": ({"TF_CONFIG": "[1]"}, ["TF_CONFIG='[1]'", "object"]),
    "workers not a list": (tf_config("worker", 0, worker={"0": "a:1"}), ["cluster.worker must be a list"]),
    "index too large": (
        tf_config("worker", 3, worker=WORKERS),
        ["task.index", "below the 3 of cluster.worker"],
    ),
    "index missing": (tf_config("worker", None, worker=WORKERS), ["task.index"]),
    "size of many digits": (env(OMPI, 0, "9" * 5000, 0, 1), ["OMPI_COMM_WORLD_SIZE='999", "integer"]),
    "digits of another script": (env(HVD, "\u0661", 2, 0, 1), ["HOROVOD_RANK="]),
    "underscored": (env(HVD, 1, "1_0", 0, 1), ["HOROVOD_SIZE='1_0'"]),
    "Slurm nodes beyond the tasks": (step(0, 2, 0, 0, "2(x999999999)"), ["SLURM_STEP_TASKS_PER_NODE=", "2 nodes"]),
    "Slurm tasks of many digits": (step(0, 2, 0, 0, "9" * 5000), ["SLURM_STEP_TASKS_PER_NODE='999"]),
    "a Slurm command": (step(0, 2, 0, 0, "$(id)"), ["SLURM_STEP_TASKS_PER_NODE='$(id)'"]),
    "deep TF_CONFIG": ({"TF_CONFIG": "[" * 100_000}, ["TF_CONFIG='[[[", "must be JSON"]),
    "index of many digits": (tf_config("worker", "9" * 5000, worker=WORKERS), ["task.index"]),
    "infinite index": (
        {"TF_CONFIG": '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1e400}}'},
        ["task.index"],
    ),
    "parameter server": (tf_config("ps", 0, ps=["p:1"], worker=WORKERS), ["task.type", "'ps'"]),
}


@pytest.mark.parametrize(("environ", "parts"), BAD.values(), ids=BAD)
def test_malformed(environ, parts):
    with pytest.raises(ConfigurationError) as info:
        detect(environ)
    for part in [*parts, "Fix: "]:
        assert part in str(info.value)
    assert len(str(info.value)) < 2000
