"""The page that is made of `results.json`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

__all__ = ["page"]


def page(results: dict[str, Any]) -> str:
    """`RESULTS.md`: a section a benchmark, with its targets and whether they were met."""
    machine, versions = results["machine"], results["versions"]
    head = [
        "# Results",
        "",
        "Written by `make bench` (`benchmarks/run.py`) from what was measured; `results.json` has all of it. Ratios "
        "are of pairs measured right beside each other in one run: the median, its 95% interval (bootstrap), and in "
        "brackets the least and the greatest. `control` is the same arm twice: what it shows is noise.",
        "",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}. "
        f"Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}.",
    ]
    sections = [section(results[name], results) for name, section in _SECTIONS.items() if results.get(name)]
    return "\n".join([*head, *(line for section in sections for line in ["", *section])]) + "\n"


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]


def _ratio(row: dict[str, float]) -> str:
    return f"{row['median']:.3f} [{row['low']:.3f}, {row['high']:.3f}] ({row['min']:.2f} to {row['max']:.2f})"


def _target(text: str, is_met: bool | None) -> str:
    return f"- {text}: **{'not measured' if is_met is None else 'met' if is_met else 'missed'}**"


def _measured(results: dict[str, Any], name: str) -> str:
    return f"Measured on {results['dates'][name]}."


def _section_step(step: dict[str, Any], results: dict[str, Any]) -> list[str]:
    rows, targets = [], []
    for backend, models in step.items():
        for model, arms in models.items():
            for arm, row in arms.items():
                cells = [backend, model, arm, row["beside"], _ratio(row["wall"]), _ratio(row["cpu"])]
                rows.append([*cells, f"{row['ms_a_step']:.2f}", row["retraced"], row.get("nodes_more", "")])
            full, control = arms.get("full_stack"), arms.get("control")
            if full and control:
                limit = 1.01 if model.startswith("cnn") else 1.03
                bound = limit * max(1.0, control["cpu"]["high"])
                text = (
                    f"{backend}, {model}: full stack, CPU time {full['cpu']['median']:.3f}, at most {limit} beyond the"
                )
                text += f" control's interval ({bound:.3f})"
                targets.append(_target(text, full["cpu"]["median"] <= bound))
                targets.append(_target(f"{backend}, {model}: no trace after the first fit", full["retraced"] == 0))
    heads = ["backend", "model", "arm", "beside", "wall time", "CPU time", "ms a step", "retraced", "nodes more"]
    return [
        "## A step",
        "",
        f"`benchmarks/step_overhead.py`. {_measured(results, 'step')}",
        "",
        *_table(heads, rows),
        "",
        *targets,
    ]


def _section_exchange(exchange: dict[str, Any], results: dict[str, Any]) -> list[str]:
    rows, times = [], []
    for backend, measurements in exchange.items():
        for row in measurements:
            size = f"{row['parameters']:,}"
            if "arm" in row:
                rows.append([backend, size, row["arm"], row["beside"], _ratio(row["wall"]), _ratio(row["cpu"])])
            else:
                times_text = ", ".join(f"{name} {value:g}" for name, value in row["ms_a_step"].items())
                hidden = "" if "hidden" not in row else f"{row['hidden']:.0%}"
                times.append([backend, size, times_text, hidden])
    return [
        "## The exchange of gradients",
        "",
        f"`benchmarks/gradient_exchange.py`, two ranks. {_measured(results, 'exchange')}",
        "",
        *_table(["backend", "parameters", "arm", "beside", "wall time", "CPU time"], rows),
        "",
        *_table(["backend", "parameters", "ms a step", "hidden behind back-propagation"], times),
    ]


def _section_epoch_end(epoch_end: dict[str, Any], results: dict[str, Any]) -> list[str]:
    rows = [
        [
            row["ranks"],
            row["metrics"],
            row["arm"],
            _ratio(row["ratio"]),
            *(row["ms"][arm] for arm in (row["arm"], "mean_of_ranks")),
            *(f"{row['collectives'][arm]:g}" for arm in (row["arm"], "mean_of_ranks")),
        ]
        for row in epoch_end["rows"]
    ]
    time_ratio = epoch_end.get("ratio_20_metrics_4_ranks")
    heads = [
        "ranks",
        "metrics",
        "arm",
        "beside the mean of ranks",
        "ms",
        "ms of the mean",
        "collectives",
        "of the mean",
    ]
    return [
        "## An epoch's end",
        "",
        f"`benchmarks/epoch_end.py`. {_measured(results, 'epoch_end')}",
        "",
        *_table(heads, rows),
        "",
        _target("20 metrics on 4 ranks: at most 0.4 of the mean's time", time_ratio and time_ratio["median"] <= 0.4),
    ]


def _section_control_plane(plane: dict[str, Any], results: dict[str, Any]) -> list[str]:
    rows = [
        [
            row["ranks"],
            "right",
            f"{row['collectives']:g}",
            f"{row['bytes_sent']:.0f}",
            f"{1e3 * row['seconds']:.0f}",
            f"{row['pss_mb']:.1f}",
            f"{row['rss_mb']:.1f}",
        ]
        for row in plane["rows"]
    ]
    last, predicted = plane["rows"][-1], plane["predicted"]
    sent = {round(row["bytes_sent"], -2) for row in plane["rows"]}
    heads = ["ranks", "result", "collectives an epoch", "bytes sent", "ms an epoch", "MB a rank (PSS)", "RSS"]
    return [
        "## The control plane on many ranks",
        "",
        f"`benchmarks/control_plane.py`, over MPI on this one machine. {_measured(results, 'control_plane')}",
        "",
        *_table(heads, rows),
        "",
        f"**Predicted, not measured**: on {predicted['ranks']:,} ranks of a network with "
        f"{1e6 * predicted['latency']:g} us and {predicted['bandwidth'] / 1e9:g} GB/s an epoch's end takes "
        f"{1e3 * predicted['seconds']:.1f} ms, in which a rank receives {predicted['received_mb']} MB.",
        "",
        _target(f"{last['ranks']} ranks: four collectives an epoch", last["collectives"] == 4),
        _target("what a rank sends does not grow with the ranks", len(sent) == 1),
        _target(f"{last['ranks']} ranks: under 40 MB a rank (PSS)", last["pss_mb"] < 40),
    ]


def _section_memory(memory: dict[str, Any], results: dict[str, Any]) -> list[str]:
    rows = [
        [backend, arm, f"{memory_rows['megabytes'][arm]:.0f}", _ratio(ratio)]
        for backend, memory_rows in memory.items()
        for arm, ratio in memory_rows["ratio"].items()
    ]
    imports = next(iter(memory.values()))["imported"]
    return [
        "## Memory",
        "",
        f"`benchmarks/memory.py`, the resident memory of rank 0. {_measured(results, 'memory')}",
        "",
        *_table(["backend", "arm", "MB", "beside the constant rate"], rows),
        "",
        f"Importing Keras takes {imports['keras']:.0f} MB, all of distlr with it {imports['distlr.job']:.0f} MB.",
    ]


def _section_large_batch(models: dict[str, Any], results: dict[str, Any]) -> list[str]:
    lines = [
        "## Large batches",
        "",
        "`benchmarks/large_batch.py` (`make bench-large`): test accuracy on Fashion-MNIST after 10 epochs, k times "
        "the batch of 32; mean, and least and greatest of so many seeds. Normalized by replica: batch normalization "
        "over each 32 samples, as k replicas compute it, instead of over the global batch; the same at k = 1. "
        "Augmented: shifted and mirrored images, weight decay, and 30 epochs. It "
        "mirrors Goyal et al. 2017 (arXiv 1706.02677, table 1): ResNet-50 on ImageNet, 23.60% error at a batch of 256, "
        "and 23.74% at 8,192.",
    ]
    lines += ["", "![Test accuracy against k, by arm, for each model](large_batch.png)"]
    targets = []
    for model, arms in models.items():
        ks = sorted({int(k) for arm in arms.values() for k in arm})
        rows = [[arm, *(_accuracy(by_k.get(str(k))) for k in ks)] for arm, by_k in arms.items()]
        lines += ["", f"**{model}**", "", *_table(["arm", *(f"k = {k}" for k in ks)], rows)]
        for k, points in ((32, 0.2), (64, 0.7)):
            base, ours = arms.get("base", {}).get("1", {}), arms.get("distlr", {}).get(str(k), {})
            both = sorted(base.keys() & ours.keys())
            text, is_met = f"{model}, k = {k}: within {points} points of k = 1", None
            if both:
                differences = [100 * (base[seed] - ours[seed]) for seed in both]
                lost = statistics.mean(differences)
                error = statistics.stdev(differences) / len(both) ** 0.5 if len(both) > 1 else math.inf
                text += f" ({'lost' if lost > 0 else 'gained'} {abs(lost):.2f}, standard error {error:.2f}, "
                text += f"{len(both)} seeds{_training(results, model, k)}"
                of_three = statistics.mean(differences[:3])  # which the target is for
                text += f"; {of_three:.2f} by the first three seeds)" if len(both) > 3 else ")"
                is_met = of_three <= points
            targets.append(_target(text, is_met))
    return [*lines, "", *targets]


def _training(results: dict[str, Any], model: str, k: int) -> str:
    """The training accuracy, where it was recorded for the same seeds."""
    arms = results.get("large_batch_training", {}).get(model, {})
    base, ours = arms.get("base", {}).get("1", {}), arms.get("distlr", {}).get(str(k), {})
    both = sorted(base.keys() & ours.keys())
    if not both:
        return ""
    values = [f"{100 * statistics.mean(by_seed[seed] for seed in both):.2f}%" for by_seed in (base, ours)]
    return f"; training accuracy {values[0]} at k = 1 and {values[1]} here, seeds {', '.join(both)}"


def _accuracy(by_seed: dict[str, float] | None) -> str:
    if not by_seed:
        return ""
    values = [100 * value for value in by_seed.values()]
    spread = "" if len(values) == 1 else f" ({min(values):.2f} to {max(values):.2f} of {len(values)})"
    return f"{statistics.mean(values):.2f}%{spread}"


_SECTIONS: dict[str, Callable[[dict[str, Any], dict[str, Any]], list[str]]] = {
    "step": _section_step,
    "exchange": _section_exchange,
    "epoch_end": _section_epoch_end,
    "control_plane": _section_control_plane,
    "large_batch": _section_large_batch,
    "memory": _section_memory,
}
