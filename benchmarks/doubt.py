"""Doubt, played: what plans and thinking gain from a predictor that tells how sure it is.

    forethought train --config two-rooms --model.predictor Ensemble --run runs/ensemble-0 \
        --stages.joint.steps 600 --stages.predictor.steps 600
    python benchmarks/doubt.py runs/ensemble-0 --name two_rooms

Every run plays the same held-out episodes in Mode-2 with each weight of `cost.doubt`; then, with a
policy distilled from few plans, in Mode-1 and in mode `auto` with each signal, at the price that
keeps a share of decisions on episodes that are not held out. Milliseconds of Mode-2 are the fastest
of three turns, the weights in turn: only their ratio within a run means something. Nothing is
chosen on the held-out episodes.

Adds the run's rows to `benchmarks/results/doubt_NAME.json`, each as soon as it is there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from modes import early, price, thoughtful

from forethought import load
from forethought.agent import (
    Agent,
    AgentController,
    Thinking,
    Watch,
    held_out_seeds,
    run_episodes,
    summarise,
    time_decisions,
)
from forethought.planners import Gradient
from forethought.run_folder import commit
from forethought.running import Trained

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def main() -> None:
    """Play every run and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--weights", nargs="*", type=float, default=[0.0, 0.1, 1.0])
    parser.add_argument("--signals", nargs="*", default=["gain", "doubt", "random"])
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--patience", type=int, default=0)
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--starts", type=int, default=16, help="of the planner")
    parser.add_argument("--iterations", type=int, default=12, help="of the planner")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--priced", type=int, default=50, help="episodes a price is found on")
    parser.add_argument("--timed", type=int, default=20, help="decisions timed in each turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = given.results / f"doubt_{given.name}.json"
    content = json.loads(path.read_text()) if path.exists() else []
    for run in given.runs:
        planner = Gradient(starts=given.starts, iterations=given.iterations)
        trained = load(run, planner=planner, device="cpu")
        about = {
            "run": run.name,
            "predictor": type(trained.agent.model.predictor).__name__,
            "training_seed": trained.arguments["seed"],
            "seed": given.seed,
            "planner": str(planner),
            "train_seconds": (trained.folder.read_json("training.json") or {})["train_seconds"],
            "command": "python benchmarks/doubt.py " + " ".join(sys.argv[1:]),
            "commit": commit(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch threads 1",
        }
        rows: list[Row] = []
        content.append(about | {"rows": rows})
        for row in itertools.chain(planned(trained, given), thought(trained, given)):
            rows.append(row)
            path.write_text(json.dumps(content, indent=1) + "\n")


def planned(trained: Trained, given: argparse.Namespace) -> Iterator[Row]:
    """Mode-2 with each weight of doubt."""
    agents = {weight: doubting(trained.agent, weight) for weight in given.weights}
    single, seeds = trained.make_env(1), held_out_seeds(50, 999)
    fastest = dict.fromkeys(agents, np.inf)
    for _ in range(3 if given.timed else 0):
        for weight, agent in agents.items():
            controller = AgentController(agent, torch.Generator().manual_seed(given.seed))
            timing = time_decisions(single, controller, seeds, given.timed)
            fastest[weight] = min(fastest[weight], timing.ms_per_decision)
    for weight, agent in agents.items():
        row: Row = {"mode": "2", "cost.doubt": weight}
        if given.timed:
            ms, first = fastest[weight], fastest[given.weights[0]]
            row |= {"ms_per_decision": ms, "ms_ratio": ms / first}
        yield row | played(trained, agent, given)


def thought(trained: Trained, given: argparse.Namespace) -> Iterator[Row]:
    """Mode-1, and mode `auto` with each signal."""
    if not given.signals:
        return
    trained = early(trained, given.problems, given.steps)
    yield {"mode": "1"} | played(trained, trained.in_mode(1), given)
    env = trained.make_env(given.priced)
    asked = argparse.Namespace(**vars(given) | {"episodes": given.priced})
    for signal in given.signals:
        found = price(trained, env, signal, asked)
        thinking = Thinking(signal=signal, price=found, share=1.0, patience=given.patience)
        row = {"mode": "auto", "signal": signal, "price": found}
        yield row | played(trained, thoughtful(trained, thinking), given)


def doubting(agent: Agent, weight: float) -> Agent:
    """The agent with another weight of doubt."""
    cost = replace(agent.configurator.cost, doubt=weight)
    return replace(agent, configurator=replace(agent.configurator, cost=cost))


def played(trained: Trained, agent: Agent, given: argparse.Namespace) -> Row:
    """Success with its Wilson interval, decisions (failures count in full), thinking."""
    watch = Watch(agent)
    env = trained.make_env(min(50, given.episodes))
    controller = AgentController(agent, torch.Generator().manual_seed(given.seed))
    seeds = held_out_seeds(given.episodes, given.seed)
    outcomes = run_episodes(env, controller, seeds, on_step=watch)
    row = summarise(outcomes) | {
        "lost": [place for place, one in enumerate(outcomes) if not one.success],
        "decisions": float(np.mean([one.decisions for one in outcomes])),
    }
    row |= {k: watch.summary()[k] for k in ("thinking_share", "model_steps_per_decision")}
    print(type(agent.model.predictor).__name__, row, flush=True)
    return row


if __name__ == "__main__":
    main()
