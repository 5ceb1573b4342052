"""Which ports the workers of a Slurm step take."""

from __future__ import annotations

from distlr.strategies.workers import first_slurm_port


def job(number: int, **more: str) -> dict[str, str]:
    return {"SLURM_JOB_ID": str(number), "SLURM_STEP_ID": "0", **more}


def test_they_are_below_those_that_systems_give_away() -> None:
    for tasks in (1, 2, 8, 16, 512, 30_000):
        assert all(12_000 <= first_slurm_port(tasks, job(number)) < 32_000 for number in range(200))


def test_jobs_whose_numbers_are_near_or_apart_by_a_round_number_have_other_ports() -> None:
    for tasks in (4, 8, 64):
        for apart in (1, 2, 10, 100, 1000, 1250, 2500, 5000, 10_000):
            same = sum(
                abs(first_slurm_port(tasks, job(n)) - first_slurm_port(tasks, job(n + apart))) < tasks
                for n in range(7_000, 7_200)
            )
            assert same <= 8, (tasks, apart)  # by chance: one pair in 20,000 / tasks


def test_a_job_that_is_started_anew_and_a_second_step_have_other_ports() -> None:
    ports = {
        first_slurm_port(8, job(7)),
        first_slurm_port(8, job(7, SLURM_RESTART_COUNT="1")),
        first_slurm_port(8, job(7, SLURM_STEP_ID="1")),
    }
    assert len(ports) == 3
