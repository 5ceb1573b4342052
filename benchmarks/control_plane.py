#!/usr/bin/env python3
"""The collectives of an epoch's end on 2 to 256 real ranks of MPI on this machine, without TensorFlow.

    python benchmarks/control_plane.py [--ranks 2 4 8 16 32 64 128 256] [--epochs 10]

Each rank does what the callbacks do at the end of an epoch, with 20 metrics of its own: two sums of metric states,
the plateau's decision by rank 0, and the gather that compares the ranks; and checks what comes of it, which is known.
Counted by rank and epoch: collectives and bytes sent, which must not grow with the ranks (what a rank receives does:
each collective here is a gather of all ranks' frames). Memory is a rank's own and its share of the libraries (PSS).
The seconds are reported, not fitted: here all ranks share the cores.

The prediction for 4,096 ranks on a real network is of a model, not measured: an allgather of m bytes a rank by
recursive doubling takes log2(p) latency + (p - 1) m / bandwidth, with 5 us and 10 GB/s.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import ROOT, memory, result, written

METRICS, SAMPLES = 20, 100
LIMIT = 400  # seconds a number of ranks
LATENCY, BANDWIDTH, MANY = 5e-6, 1e10, 4096


def epoch_end(comm: Any, policy: Any, state: Any, epoch: int) -> tuple[Any, Any]:
    """One epoch's end: four collectives. Returns the plateau's state and its decision, and checks both and the sums."""
    from distlr.communicators.bundles import Bundle, exchange_bundles, reduce_over
    from distlr.plateau.policy import Decision, PlateauState

    for tag in ("training", "validation"):
        # A metric's states: the sum of this rank's losses, and its number of samples, which differs by rank.
        local_states = {f"{i}.total": np.array(float((comm.rank + 1) * (i + 1))) for i in range(METRICS)}
        local_states |= {f"{i}.count": np.array(float(SAMPLES + comm.rank)) for i in range(METRICS)}
        sums = reduce_over(exchange_bundles(comm, Bundle(local_states), tag=f"{tag} metrics of epoch {epoch}"))
        ranks = comm.size * (comm.size + 1) / 2
        assert all(sums[f"{i}.total"] == ranks * (i + 1) for i in range(METRICS))
        assert all(sums[f"{i}.count"] == SAMPLES * comm.size + ranks - comm.size for i in range(METRICS))
    message = None
    if comm.is_root:
        state, decision = policy.step(state, 1.0, rate=0.1, in_warmup=False)
        message = {"decision": decision.to_dict(), "state": list(state.as_vector())}
    message = comm.broadcast_json(message, tag=f"plateau {epoch}")
    state, decision = PlateauState.from_vector(message["state"]), Decision.from_dict(message["decision"])
    assert decision.cut == (epoch > 0)  # 1.0 does not improve on itself, with a patience of one epoch
    replies = comm.gather_json(
        {"stop": False, "state": {"iterations": epoch, "rate": "0" * 64}}, tag=f"replicas {epoch}"
    )
    assert len(replies) == comm.size
    assert all(other == replies[0] for other in replies)
    return state, decision


def rank(epochs: int, path: Path) -> None:
    """The code of each rank."""
    from distlr.communicators.mpi import MpiCommunicator
    from distlr.plateau.policy import PlateauPolicy

    comm = MpiCommunicator(timeout=LIMIT)
    policy = PlateauPolicy("loss", patience=1, mode="min")
    state: Any = policy.initial_state()
    comm.barrier(tag="begin")
    before, sent, began = comm.log.total, comm.log.bytes_sent, time.perf_counter()
    for epoch in range(epochs):
        state, _ = epoch_end(comm, policy, state, epoch)
    seconds = (time.perf_counter() - began) / epochs
    local_figures = {
        "collectives": (comm.log.total - before) / epochs,
        "bytes_sent": (comm.log.bytes_sent - sent) / epochs,
        "seconds": seconds,
        "pss_mb": memory("Pss"),
        "rss_mb": memory(),
        "tensorflow": "tensorflow" in sys.modules,
    }
    all_ranks = comm.gather_json(local_figures, tag="measured")
    if comm.is_root:
        worst = {name: max(other[name] for other in all_ranks) for name in local_figures}
        path.write_text(json.dumps({"ranks": comm.size, "right": True, **worst}))


def measure(ranks: int, epochs: int) -> dict[str, Any]:
    """Starts so many ranks and reads the file of rank 0."""
    words = [str(ROOT / "launch" / "mpirun.sh"), "-np", str(ranks), __file__, "--epochs", str(epochs), "--inside"]
    variables = {"PYTHON": sys.executable, "VIRTUAL_ENV": sys.prefix}
    variables |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    figures: dict[str, Any] = written(lambda path: [*words, str(path)], LIMIT, **variables)
    return figures


def predicted(bytes_a_collective: float, collectives: float) -> dict[str, float]:
    """Seconds of an epoch's end on 4,096 ranks, by the model, and the megabytes that a rank receives."""
    transfer = (MANY - 1) * bytes_a_collective / BANDWIDTH
    seconds = collectives * (math.log2(MANY) * LATENCY + transfer)
    return {
        "ranks": MANY,
        "seconds": round(seconds, 5),
        "received_mb": round(collectives * MANY * bytes_a_collective / 1e6, 1),
        "latency": LATENCY,
        "bandwidth": BANDWIDTH,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        rank(options.epochs, options.inside)
        return
    print(f"{'ranks':>6}{'collectives':>13}{'bytes sent':>12}{'ms an epoch':>13}{'PSS MB':>8}{'RSS MB':>8}")
    rows = []
    for ranks in options.ranks:
        row = measure(ranks, options.epochs)
        rows.append(row)
        print(
            f"{row['ranks']:>6}{row['collectives']:>13g}{row['bytes_sent']:>12.0f}{1e3 * row['seconds']:>13.1f}"
            f"{row['pss_mb']:>8.1f}{row['rss_mb']:>8.1f}",
            flush=True,
        )
    last = rows[-1]
    result({"rows": rows, "predicted": predicted(last["bytes_sent"] / last["collectives"], last["collectives"])})


if __name__ == "__main__":
    main()
