"""Control tasks over several training seeds: train, distill, evaluate on held-out episodes.

    python benchmarks/control.py --configs cartpole-swingup pendulum-swingup --seeds 0 1 2

Writes, for each config and seed, `benchmarks/results/control_CONFIG_SEED.json`: `rows` as
`forethought evaluate` writes them, `returns` of every round, seconds and diagnostics of the
training. What is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from forethought import call

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run every config and seed that is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", nargs="+", default=["cartpole-swingup", "pendulum-swingup"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.results.mkdir(parents=True, exist_ok=True)
    for config in given.configs:
        for seed in given.seeds:
            target = given.results / f"control_{config}_{seed}.json"
            if target.exists():
                continue
            run = given.runs / f"{config}-{seed}"
            found = run_one(config, seed, run, given.threads, given.episodes)
            target.write_text(json.dumps(found, indent=2) + "\n")


def run_one(config: str, seed: int, run: Path, threads: int, episodes: int) -> dict[str, Any]:
    """Train, distill and evaluate one seed; block `1 + seed` of held-out seeds is its own."""
    if run.exists():
        shutil.rmtree(run)
    common = [f"--seed={seed}", f"--threads={threads}"]
    began = time.perf_counter()
    call("train", [f"--config={config}", f"--run={run}", *common])
    trained = time.perf_counter()
    call("distill", [str(run), *common])
    distilled = time.perf_counter()
    held_out = [f"--seed={1 + seed}", f"--threads={threads}", f"--episodes={episodes}"]
    rows = call("evaluate", [str(run), *held_out])
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rounds = [line for line in map(json.loads, lines) if line["stage"] == "collect"]
    return {
        "command": f"python benchmarks/control.py --configs {config} --seeds {seed} "
        f"--threads {threads}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch threads {threads}",
        "train_wall_seconds": trained - began,
        "distill_wall_seconds": distilled - trained,
        "rounds": rounds,
        "diagnostics": json.loads((run / "diagnostics.json").read_text()),
        "rows": rows,
    }


if __name__ == "__main__":
    main()
