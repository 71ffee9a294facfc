"""Who should act: mode `auto` against random thinking at the same share, with an early policy.

    python benchmarks/modes.py runs/cartpole-0 runs/cartpole-1 runs/cartpole-2 \
        --name cartpole_longer --lengthen pole_1

For each run (one training seed each) a policy is distilled from few plans, and plays held-out
episodes in Mode-1, in Mode-2, in mode `auto` with each signal, and with random thinking at the
share that `auto` turned out to take. The price of thinking is found on episodes that are not held
out, in the environment that is played in: as it was trained in, or with a pole 30 % longer
(`--lengthen`), of which model and policy know nothing.
Differences are paired: same run, same episodes; their interval is a bootstrap over runs, then
episodes.

Writes `benchmarks/results/modes_NAME.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forethought import load
from forethought.agent import (
    Agent,
    AgentController,
    Distillation,
    Thinking,
    Watch,
    bootstrap_mean,
    distill,
    held_out_seeds,
    price_for,
    run_episodes,
)
from forethought.build import build_policy
from forethought.envs import HELD_OUT_SEED, Dataset
from forethought.run_folder import commit
from forethought.running import Trained
from forethought.worldmodel import encode_dataset

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def main() -> None:
    """Run everything and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--lengthen", help="play where this body is longer; else as trained")
    parser.add_argument("--factor", type=float, default=1.3)
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--signals", nargs="+", default=["regret"])
    parser.add_argument("--patience", type=int, default=6, help="of the signals; chance has none")
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--block", type=int, default=20, help="first block of held-out seeds")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for place, run in enumerate(given.runs):
        rows += play(run, given, given.block + place)
        write(given, rows)


def play(run: Path, given: Any, block: int) -> list[Row]:
    """All modes, on one run."""
    trained = early(load(run, device="cpu"), given.problems, given.steps)
    options: dict[str, Any] = {}
    change = "as trained"
    if given.lengthen:
        options = {"lengthen": {given.lengthen: given.factor}}
        change = f"{given.lengthen} {given.factor} times as long"
    env = trained.make_env(given.episodes, **options)
    seeds = held_out_seeds(given.episodes, block)
    rows: list[Row] = []

    def measure(name: str, agent: Agent) -> float:
        watch = Watch(agent)
        generator = torch.Generator().manual_seed(block)
        began = time.perf_counter()
        outcomes = run_episodes(env, AgentController(agent, generator), seeds, on_step=watch)
        row = {
            "run": run.name,
            "environment": change,
            "mode": name,
            "returns": [round(outcome.return_, 3) for outcome in outcomes],
            "seconds": time.perf_counter() - began,
        } | {k: watch.summary()[k] for k in ("thinking_share", "model_steps_per_decision")}
        rows.append(row)
        print(
            f"{run.name} {change}: {name} {np.mean(row['returns']):.0f}, "
            f"share {row['thinking_share']:.2f}, {row['seconds']:.0f} s",
            flush=True,
        )
        return float(row["thinking_share"])

    measure("1", trained.in_mode(1))
    measure("2", trained.in_mode(2))
    for signal in given.signals:
        found = price(trained, env, signal, given)
        thinking = Thinking(signal=signal, price=found, share=1.0, patience=given.patience)
        share = measure(f"auto {signal}", thoughtful(trained, thinking))
        chance = Thinking(signal="random", price=1 - share, share=1.0)
        measure(f"random as {signal}", thoughtful(trained, chance))
    return rows


def early(trained: Trained, problems: int, steps: int) -> Trained:
    """With a policy distilled from few plans, in one round."""
    how = replace(trained.arguments["distillation"], rounds=1, problems=problems, steps=steps)
    assert isinstance(how, Distillation)
    source = trained.arguments["data"] or trained.folder.data
    states = encode_dataset(trained.agent.model, Dataset.open(source)).states
    policy = build_policy(trained.agent.model, trained.agent.configurator.task, 0)
    agent = distill(trained.agent, policy, states, how, torch.Generator().manual_seed(0))
    policy.eval().requires_grad_(False)
    return replace(trained, agent=agent)


def thoughtful(trained: Trained, thinking: Thinking) -> Agent:
    """The agent in mode `auto`."""
    configurator = replace(trained.agent.configurator, mode="auto", thinking=thinking)
    return replace(trained.agent, configurator=configurator)


def price(trained: Trained, env: Any, signal: Any, given: Any) -> float:
    """The price at which the share is kept, on episodes that are not held out."""
    thinking = Thinking(signal=signal, share=given.share, patience=given.patience)
    agent = thoughtful(trained, thinking)
    first = HELD_OUT_SEED - 200_000
    seeds = list(range(first, first + given.episodes))
    return price_for(agent, env, seeds, torch.Generator().manual_seed(0))


def write(given: Any, rows: list[Row]) -> None:
    """The rows, and the paired differences so far."""
    differences = []
    for change in dict.fromkeys(row["environment"] for row in rows):
        for signal in given.signals:
            by = {
                name: [
                    r["returns"] for r in rows if (r["environment"], r["mode"]) == (change, name)
                ]
                for name in (f"auto {signal}", f"random as {signal}")
            }
            auto, chance = by.values()
            paired = [list(np.subtract(a, b)) for a, b in zip(auto, chance, strict=True)]
            if paired:
                low, high = bootstrap_mean(paired)
                mean = float(np.mean([np.mean(p) for p in paired]))
                differences.append(
                    {
                        "environment": change,
                        "signal": signal,
                        "difference": mean,
                        "ci95_low": low,
                        "ci95_high": high,
                    }
                )
    content = {
        "command": "python benchmarks/modes.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch threads 1",
        "differences": differences,
        "rows": rows,
    }
    given.results.mkdir(parents=True, exist_ok=True)
    path = given.results / f"modes_{given.name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
