"""Writes the peers' own numbers beside this file: `make parity`, in an environment that has the peers and not distlr.

A case is the peer's name for a schedule, its values at 200 steps, and what `distlr.schedules.get` makes ours from.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import pathlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

STEPS = 200
LR, WARM = 0.4, 20

Case = tuple[str, dict[str, Any], Callable[[int], float], str]


def cosine(steps: float, initial: float = LR, floor: float = 0.0) -> dict[str, Any]:
    return {"name": "cosine", "initial": initial, "steps": steps, "floor": floor}


def line(times: list[float], values: list[float]) -> dict[str, Any]:
    return {"name": "interpolated", "times": times, "values": values}


def then(first: dict[str, Any], second: dict[str, Any], at: float) -> dict[str, Any]:
    return {"name": "join", "schedules": [first, second], "boundaries": [at]}


CLIMB = line([0, WARM], [0.0, LR])
CONSTANT = {"name": "constant", "initial": LR}


def optax_cases() -> Iterator[Case]:
    import jax

    jax.config.update("jax_enable_x64", True)
    import jax.numpy as jnp
    import optax

    def at(schedule: Any) -> Callable[[int], float]:
        return lambda step: float(schedule(jnp.asarray(float(step), jnp.float64)))

    yield "constant_schedule", CONSTANT, at(optax.constant_schedule(LR)), ""
    yield "cosine_decay_schedule", cosine(150, floor=0.04), at(optax.cosine_decay_schedule(LR, 150, alpha=0.1)), ""
    spec = {"name": "exponential", "initial": LR, "steps": 30, "rate": 0.7}
    yield "exponential_decay", spec, at(optax.exponential_decay(LR, 30, 0.7)), ""
    stairs = at(optax.exponential_decay(LR, 30, 0.7, staircase=True))
    yield "exponential_decay(staircase)", {**spec, "staircase": True}, stairs, ""
    floored = at(optax.exponential_decay(LR, 30, 0.7, end_value=0.05))
    yield "exponential_decay(end_value)", {"name": "floor", "floor": 0.05, "schedule": spec}, floored, ""
    spec = {"name": "polynomial", "initial": LR, "steps": 150, "end": 0.02, "power": 2.0}
    yield "polynomial_schedule", spec, at(optax.polynomial_schedule(LR, 0.02, 2.0, 150)), ""
    spec = {"name": "multi-step", "initial": LR, "boundaries": [60, 120], "gamma": 0.1}
    yield "piecewise_constant_schedule", spec, at(optax.piecewise_constant_schedule(LR, {60: 0.1, 120: 0.1})), ""
    for way in ("linear", "cosine"):
        spec = {**line([0, 50, 150], [LR, LR / 2, LR / 8]), "way": way}
        yield (
            f"piecewise_interpolate_schedule({way})",
            spec,
            at(optax.piecewise_interpolate_schedule(way, LR, {50: 0.5, 150: 0.25})),
            "",
        )
    spec = {"name": "one-cycle", "peak": LR, "steps": STEPS, "up": 0.3, "start_div": 25, "final_div": 1e4}
    yield "cosine_onecycle_schedule", spec, at(optax.cosine_onecycle_schedule(STEPS, LR, 0.3, 25, 1e4)), ""
    spec = line([0, 60, 170, 200], [LR / 25, LR, LR / 25, LR / 25 / 1e4])
    yield "linear_onecycle_schedule", spec, at(optax.linear_onecycle_schedule(STEPS, LR, 0.3, 0.85, 25, 1e4)), ""
    spec = then(CLIMB, cosine(130, floor=0.01), WARM)
    yield (
        "warmup_cosine_decay_schedule",
        spec,
        at(optax.warmup_cosine_decay_schedule(0.0, LR, WARM, 150, end_value=0.01)),
        "its decay_steps holds the warmup: ours is written without",
    )
    cycle = {"init_value": 0.0, "peak_value": LR, "warmup_steps": 5, "decay_steps": 50, "end_value": 0.0}
    cycles = [{**cycle, "peak_value": LR * 0.5**i} for i in range(4)]
    spec = {"name": "cosine-restarts", "initial": LR, "first_steps": 50, "m_mul": 0.5, "warmup_steps": 5}
    yield "sgdr_schedule", spec, at(optax.sgdr_schedule(cycles)), ""


def torch_optimizer() -> Any:
    import torch

    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)


def recorded(make: Callable[[Any], Any]) -> Callable[[int], float]:
    """The rates of a scheduler that counts for itself."""
    optimizer = torch_optimizer()
    scheduler = make(optimizer)
    values = []
    for _ in range(STEPS):
        values.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return lambda step: values[step]


def torch_cases() -> Iterator[Case]:
    from torch.optim import lr_scheduler as s

    spec = {"name": "multi-step", "initial": LR, "boundaries": [60, 120], "gamma": 0.1}
    yield "MultiStepLR", spec, recorded(lambda o: s.MultiStepLR(o, [60, 120], 0.1)), ""
    spec = {"name": "exponential", "initial": LR, "steps": 30, "rate": 0.5, "staircase": True}
    yield "StepLR", spec, recorded(lambda o: s.StepLR(o, 30, 0.5)), ""
    spec = {"name": "exponential", "initial": LR, "steps": 1, "rate": 0.97}
    yield "ExponentialLR", spec, recorded(lambda o: s.ExponentialLR(o, 0.97)), ""
    yield (
        "CosineAnnealingLR",
        cosine(STEPS, floor=0.01),
        recorded(lambda o: s.CosineAnnealingLR(o, STEPS, 0.01)),
        ("up again after T_max; ours stays"),
    )
    for t_mul in (1, 2):
        spec = {"name": "cosine-restarts", "initial": LR, "first_steps": 30, "t_mul": t_mul, "floor": 0.01}
        yield (
            f"CosineAnnealingWarmRestarts(T_mult={t_mul})",
            spec,
            recorded(lambda o, m=t_mul: s.CosineAnnealingWarmRestarts(o, 30, m, 0.01)),
            "",
        )
    spec = line([0, 50], [LR / 4, LR])
    yield "LinearLR", spec, recorded(lambda o: s.LinearLR(o, 0.25, 1.0, 50)), ""
    spec = {"name": "polynomial", "initial": LR, "steps": 150, "end": 0.0, "power": 2.0}
    yield "PolynomialLR", spec, recorded(lambda o: s.PolynomialLR(o, 150, 2.0)), ""
    last = STEPS - 1
    for anneal, word in (("cos", "cosine"), ("linear", "linear")):
        for three in (False, True):
            spec = {"name": "one-cycle", "peak": LR, "steps": last, "up": (0.3 * STEPS - 1) / last, "anneal": word}
            yield (
                f"OneCycleLR({anneal}, three_phase={three})",
                {**spec, "three_phase": three},
                recorded(
                    lambda o, a=anneal, t=three: s.OneCycleLR(
                        o, LR, STEPS, anneal_strategy=a, three_phase=t, cycle_momentum=False
                    )
                ),
                "its last step is total_steps - 1",
            )
    for mode in ("triangular", "triangular2", "exp_range"):
        spec = {"name": "cyclic", "initial": 0.1, "peak": LR, "up": 20, "down": 30, "mode": mode, "gamma": 0.99}
        yield (
            f"CyclicLR({mode})",
            spec,
            recorded(lambda o, m=mode: s.CyclicLR(o, 0.1, LR, 20, 30, mode=m, gamma=0.99, cycle_momentum=False)),
            "",
        )


def transformers_cases() -> Iterator[Case]:
    import transformers as t

    yield (
        "get_constant_schedule_with_warmup",
        CLIMB,
        recorded(lambda o: t.get_constant_schedule_with_warmup(o, WARM)),
        "",
    )
    spec = line([0, WARM, STEPS], [0.0, LR, 0.0])
    yield (
        "get_linear_schedule_with_warmup",
        spec,
        recorded(lambda o: t.get_linear_schedule_with_warmup(o, WARM, STEPS)),
        "",
    )
    spec = then(CLIMB, cosine(STEPS - WARM), WARM)
    yield (
        "get_cosine_schedule_with_warmup",
        spec,
        recorded(lambda o: t.get_cosine_schedule_with_warmup(o, WARM, STEPS)),
        "",
    )
    restarts = {"name": "cosine-restarts", "initial": LR, "first_steps": (STEPS - WARM) / 3}
    yield (
        "get_cosine_with_hard_restarts_schedule_with_warmup",
        then(CLIMB, restarts, WARM),
        recorded(lambda o: t.get_cosine_with_hard_restarts_schedule_with_warmup(o, WARM, STEPS, num_cycles=3)),
        "",
    )
    decay = {"name": "polynomial", "initial": LR, "steps": STEPS - WARM, "end": 1e-4, "power": 2.0}
    yield (
        "get_polynomial_decay_schedule_with_warmup",
        then(CLIMB, decay, WARM),
        recorded(lambda o: t.get_polynomial_decay_schedule_with_warmup(o, WARM, STEPS, lr_end=1e-4, power=2.0)),
        "",
    )
    decay = {"name": "inverse-sqrt", "initial": LR, "timescale": 50}
    yield (
        "get_inverse_sqrt_schedule",
        then(CLIMB, decay, WARM),
        recorded(lambda o: t.get_inverse_sqrt_schedule(o, WARM, timescale=50)),
        "",
    )
    spec = {"name": "warmup-stable-decay", "initial": LR, "warmup_steps": WARM, "stable_steps": 100, "decay_steps": 50}
    yield (
        "get_wsd_schedule",
        {**spec, "tail": "cosine"},
        recorded(lambda o: t.get_wsd_schedule(o, WARM, 50, num_stable_steps=100)),
        "",
    )


def timm_cases() -> Iterator[Case]:
    # Without the rest of timm, which needs a torchvision that fits the installed torch.
    found = importlib.util.find_spec("timm")
    assert found is not None
    package = sys.modules["timm"] = types.ModuleType("timm")
    package.__path__ = list(found.submodule_search_locations or ())
    from timm import scheduler as s

    def at(make: Callable[[Any], Any]) -> Callable[[int], float]:
        scheduler = make(torch_optimizer())
        return lambda step: float(scheduler._get_lr(step)[0])

    yield "CosineLRScheduler", cosine(STEPS, floor=0.01), at(lambda o: s.CosineLRScheduler(o, STEPS, 0.01)), ""
    spec = {**cosine(STEPS, floor=0.01), "k": 1.5}
    yield "CosineLRScheduler(k_decay)", spec, at(lambda o: s.CosineLRScheduler(o, STEPS, 0.01, k_decay=1.5)), ""
    spec = {"name": "cosine-restarts", "initial": LR, "first_steps": 25, "t_mul": 2, "m_mul": 0.5}
    yield (
        "CosineLRScheduler(cycle_mul, cycle_decay)",
        spec,
        at(lambda o: s.CosineLRScheduler(o, 25, cycle_mul=2.0, cycle_decay=0.5, cycle_limit=9)),
        "",
    )
    spec = {"name": "tanh", "initial": LR, "steps": STEPS, "floor": 0.01, "low": -7.0, "high": 3.0}
    yield "TanhLRScheduler", spec, at(lambda o: s.TanhLRScheduler(o, STEPS, -7.0, 3.0, lr_min=0.01)), ""
    spec = {"name": "exponential", "initial": LR, "steps": 30, "rate": 0.5, "staircase": True}
    yield "StepLRScheduler", spec, at(lambda o: s.StepLRScheduler(o, 30, 0.5)), ""
    spec = {"name": "multi-step", "initial": LR, "boundaries": [59, 119], "gamma": 0.1}
    yield (
        "MultiStepLRScheduler",
        spec,
        at(lambda o: s.MultiStepLRScheduler(o, [60, 120], 0.1)),
        ("drops one step before its boundary (it asks for t + 1)"),
    )
    spec = {"name": "polynomial", "initial": LR, "steps": STEPS, "end": 0.01, "power": 2.0}
    yield "PolyLRScheduler", spec, at(lambda o: s.PolyLRScheduler(o, STEPS, 2.0, 0.01)), ""
    spec = then({**line([0, WARM], [0.01, LR])}, {"name": "shift", "steps": -WARM, "schedule": cosine(STEPS)}, WARM)
    yield (
        "CosineLRScheduler(warmup_t)",
        spec,
        at(lambda o: s.CosineLRScheduler(o, STEPS, warmup_t=WARM, warmup_lr_init=0.01)),
        "the warmup lies over the schedule's own time, as distlr's does",
    )


def ignite_cases() -> Iterator[Case]:
    from ignite.handlers import param_scheduler as s

    def at(make: Callable[[Any], Any]) -> Callable[[int], float]:
        scheduler = make(torch_optimizer())
        values = []
        for _ in range(STEPS):
            scheduler(None)
            values.append(float(scheduler.optimizer_param_groups[0]["lr"]))
        return lambda step: values[step]

    spec = {"name": "cosine-restarts", "initial": LR, "first_steps": 50, "floor": 0.01}
    yield "CosineAnnealingScheduler", spec, at(lambda o: s.CosineAnnealingScheduler(o, "lr", LR, 0.01, 50)), ""
    spec = {"name": "repeat", "every": 50, "schedule": line([0, 25, 50], [LR, 0.01, LR])}
    yield "LinearCyclicalScheduler", spec, at(lambda o: s.LinearCyclicalScheduler(o, "lr", LR, 0.01, 50)), ""
    spec = line([10, 50, 150], [LR, 0.2, 0.05])
    yield "PiecewiseLinear", spec, at(lambda o: s.PiecewiseLinear(o, "lr", [(10, LR), (50, 0.2), (150, 0.05)])), ""


PEERS = {
    "optax": (optax_cases, ("optax", "jax")),
    "torch": (torch_cases, ("torch",)),
    "transformers": (transformers_cases, ("transformers", "torch")),
    "timm": (timm_cases, ("timm", "torch")),
    "ignite": (ignite_cases, ("pytorch-ignite", "torch")),
}


def main() -> None:
    folder = pathlib.Path(__file__).parent
    for peer, (cases, packages) in PEERS.items():
        content = {
            "versions": {package: importlib.metadata.version(package) for package in packages},
            "cases": [
                {"peer": name, "ours": spec, "note": note, "values": [value(step) for step in range(STEPS)]}
                for name, spec, value, note in cases()
            ],
        }
        assert all(math.isfinite(value) for case in content["cases"] for value in case["values"])
        text = json.dumps(content, indent=1)
        # One line for each list of numbers.
        lines = text.replace(",\n    ", ", ").replace("[\n    ", "[").replace("\n   ]", "]")
        (folder / f"{peer}.json").write_text(lines + "\n")
        print(f"{peer}: {len(content['cases'])} schedules, {content['versions']}")


if __name__ == "__main__":
    main()
