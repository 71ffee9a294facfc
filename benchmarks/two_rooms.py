"""Two-Rooms over several training seeds: both modes, planners, starts, contact, ablations.

    python benchmarks/two_rooms.py --seeds 0 1 2 --threads 1

Writes `benchmarks/results/two_rooms.json` (rows as `forethought evaluate` writes them, each with
`arm`) and `two_rooms_diagnostics.json`. An arm that is already in the results is not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from forethought import call, load
from forethought.agent import Agent, AgentController, held_out_seeds, time_decisions
from forethought.envs import make
from forethought.planners import CEM, MPPI, Gradient, Planner

RESULTS = Path(__file__).parent / "results"

# Weights of 0 leave a term out; what is not named keeps its weight.
ABLATIONS = {
    "prediction and temporal similarity alone": {
        "variance": 0,
        "covariance": 0,
        "inverse_dynamics": 0,
    },
    "inverse dynamics alone": {
        "prediction": 0,
        "variance": 0,
        "covariance": 0,
        "temporal_similarity": 0,
    },
    "prediction and inverse dynamics": {
        "variance": 0,
        "covariance": 0,
        "temporal_similarity": 0,
    },
    "statistics over B*T": {"flatten": "true"},
    "temporal similarity 0.1": {"temporal_similarity": 0.1},
}


def equal_time(agent: Agent, run: Path, spec_options: dict[str, Any]) -> dict[str, list[str]]:
    """Options that give CEM and MPPI the time of the default gradient planner, by iterations."""
    env = make("forethought/TwoRooms-v0", 1, **spec_options)

    def seconds(planner: Planner) -> float:
        trained = load(run, planner=planner)
        controller = AgentController(trained.agent, torch.Generator().manual_seed(0))
        return time_decisions(env, controller, held_out_seeds(20, 998), 40).ms_per_decision

    target = seconds(Gradient())
    options = {}
    for name, planner in {"CEM": CEM(), "MPPI": MPPI()}.items():
        iterations = max(1, round(planner.iterations * target / seconds(planner)))
        options[name] = [f"--planner={name}", f"--planner.iterations={iterations}"]
    return options


def main() -> None:
    """Run every arm that is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    given = parser.parse_args()
    threads = f"--threads={given.threads}"
    rows_file, diagnostics_file = (
        RESULTS / f"two_rooms{suffix}.json" for suffix in ("", "_diagnostics")
    )
    rows = json.loads(rows_file.read_text()) if rows_file.exists() else []
    reports = json.loads(diagnostics_file.read_text()) if diagnostics_file.exists() else []

    def record(arm: str, seed: int, run: Path, *options: str) -> None:
        if any(row["arm"] == arm and row["seed"] == seed for row in rows):
            return
        found = call("evaluate", [str(run), threads, *options])
        rows.extend({"arm": arm, **row} for row in found)
        rows_file.write_text(json.dumps(rows, indent=1) + "\n")

    def trained(arm: str, seed: int, *options: str) -> Path:
        run = given.runs / f"{arm.replace(' ', '-').replace('*', 'x')}-{seed}"
        if (run / "training.json").exists():
            return run
        shutil.rmtree(run, ignore_errors=True)
        began = time.perf_counter()
        call("train", ["--config=two-rooms", f"--run={run}", f"--seed={seed}", threads, *options])
        report = json.loads((run / "diagnostics.json").read_text())
        seconds = time.perf_counter() - began
        reports.append({"arm": arm, "seed": seed, "seconds_with_collection": seconds, **report})
        diagnostics_file.write_text(json.dumps(reports, indent=1) + "\n")
        return run

    alone = ["--modes=[2]", "--no-baselines"]
    for seed in given.seeds:
        run = trained("recipe", seed)
        if not (run / "policy.safetensors").exists():
            call("distill", [str(run), f"--seed={seed}", threads])
        record("recipe", seed, run)
        trained_run = load(run)
        for name, options in equal_time(
            trained_run.agent, run, dict(trained_run.spec.options)
        ).items():
            record(f"{name} at equal time", seed, run, *alone, *options)
        for starts in (1, 8):
            record(f"{starts} starts", seed, run, *alone, f"--planner.starts={starts}")
        for reduction in ("sum", "last"):
            record(f"cost {reduction}", seed, run, *alone, f"--cost.reduction={reduction}")
        record("CEM, white noise", seed, run, *alone, "--planner=CEM", "--planner.correlation=0")
        record("contact stop", seed, trained("contact stop", seed, "--env-options.contact=stop"))
        for arm, weights in ABLATIONS.items():
            options = [f"--losses.{name}={value}" for name, value in weights.items()]
            record(arm, seed, trained(arm, seed, *options), *alone)


if __name__ == "__main__":
    main()
