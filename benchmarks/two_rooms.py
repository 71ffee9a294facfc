"""Two-Rooms over several training seeds: both modes, planners, starts, contact, ablations.

    python benchmarks/two_rooms.py --seeds 0 1 2 --threads 1

Writes, for each seed, `benchmarks/results/two_rooms_SEED.json`: `rows` as `forethought evaluate`
writes them, each with its `arm`, and `diagnostics` of every training. An arm that is already in the
results is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from forethought import call, load
from forethought.agent import AgentController, held_out_seeds, time_decisions
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
}


def equal_time(run: Path, spec_options: dict[str, Any]) -> dict[str, list[str]]:
    """Command-line options that give CEM and MPPI the time of `Gradient()`, by their iterations."""
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
    RESULTS.mkdir(exist_ok=True)
    torch.set_num_threads(given.threads)
    threads = f"--threads={given.threads}"
    for seed in given.seeds:
        run_seed(seed, given.runs, threads)


def run_seed(seed: int, runs: Path, threads: str) -> None:
    """Run every arm of one training seed."""
    file = RESULTS / f"two_rooms_{seed}.json"
    results: dict[str, Any] = {
        "command": f"python benchmarks/two_rooms.py --seeds {seed} {threads.replace('=', ' ')}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "diagnostics": [],
        "rows": [],
    }
    if file.exists():
        results = json.loads(file.read_text())

    def save() -> None:
        file.write_text(json.dumps(results, indent=1) + "\n")

    def record(arm: str, run: Path, *options: str) -> None:
        if not any(row["arm"] == arm for row in results["rows"]):
            # A block of held-out episodes per training seed; block 0 served to find the recipe.
            words = [str(run), threads, f"--seed={1 + seed}", *options]
            found = call("evaluate", words)
            results["rows"] += [{"arm": arm, **row} for row in found]
            save()

    def trained(arm: str, *options: str) -> Path:
        run = runs / f"{arm.replace(' ', '-')}-{seed}"
        if not any(report["arm"] == arm for report in results["diagnostics"]):
            shutil.rmtree(run, ignore_errors=True)
            words = ["--config=two-rooms", f"--run={run}", f"--seed={seed}", threads, *options]
            call("train", words)
            report = json.loads((run / "diagnostics.json").read_text())
            report |= json.loads((run / "training.json").read_text())
            results["diagnostics"].append({"arm": arm, **report})
            save()
        return run

    alone = ["--modes=[2]", "--no-baselines"]
    run = trained("recipe")
    if not (run / "policy.safetensors").exists():
        call("distill", [str(run), f"--seed={seed}", threads])
    record("recipe", run)
    loaded = load(run)
    for name, options in equal_time(run, dict(loaded.spec.options)).items():
        record(f"{name} at equal time", run, *alone, *options)
    for starts in (1, 8):
        record(f"{starts} starts", run, *alone, f"--planner.starts={starts}")
    record("contact stop", trained("contact stop", "--env-options.contact=stop"))
    for arm, weights in ABLATIONS.items():
        options = [f"--losses.{name}={value}" for name, value in weights.items()]
        record(arm, trained(arm, *options), *alone)


if __name__ == "__main__":
    main()
