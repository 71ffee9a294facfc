"""Planning from the top down against flat planning, by the same world model.

    python benchmarks/hierarchy.py runs/slow-0 runs/slow-1 runs/slow-2 --name two_rooms_slow
    python benchmarks/hierarchy.py runs/maze-0 runs/maze-1 runs/maze-2 --name maze_long \
        --development runs/maze-3 --starts 8 --iterations 8 --trials 10 \
        --env-options '{"min_steps": 200, "episode_limit": null}'

Each run has levels above its world model (one training seed each). The flat rival plans with the
world model alone: every horizon x planner, with the latent distance and with TC(s, g), which is
trained on the same frames for as many updates as the levels and their TC(s, g) were. For each of
the distances the best pair is chosen on development episodes of the first run, or of one in another
maze; the chosen ones and the hierarchy then play the same held-out episodes of all runs. The
hierarchy is played as its run configures it.

Writes `benchmarks/results/hierarchy_NAME.json`; what it holds already is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forethought import load
from forethought.agent import (
    Agent,
    AgentController,
    Controller,
    GoalDistance,
    PolicyController,
    TemporalCost,
    TemporalDistance,
    held_out_seeds,
    run_episodes,
    summarise,
    time_decisions,
    train_temporal,
    wilson,
)
from forethought.envs import HELD_OUT_SEED, Dataset
from forethought.planners import CEM, MPPI, Gradient, Planner
from forethought.run_folder import commit
from forethought.running import Trained, baselines_of
from forethought.worldmodel import encode_dataset

RESULTS = Path(__file__).parent / "results"
DEVELOPMENT = HELD_OUT_SEED - 400_000  # first seed of the episodes that the rival is chosen on
Row = dict[str, Any]
Distances = dict[str, Callable[[], TemporalDistance | None]]


def main() -> None:
    """Choose the flat rival, then play everything that is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--development", type=Path, help="run that the rival is chosen on")
    parser.add_argument("--env-options", type=json.loads, default={}, help="that replace the run's")
    parser.add_argument("--starts", type=int, default=16, help="of gradient; CEM, MPPI: 4 times")
    parser.add_argument("--iterations", type=int, default=12, help="of gradient; CEM, MPPI: half")
    parser.add_argument("--horizons", type=int, nargs="+", default=[12, 24, 48, 96])
    parser.add_argument(
        "--discounts", type=float, nargs="*", default=[0.98], help="gamma of the rival's TC"
    )
    parser.add_argument("--episodes", type=int, default=100, help="held-out ones, per run")
    parser.add_argument("--trials", type=int, default=30, help="development episodes")
    parser.add_argument("--block", type=int, default=10, help="first block of held-out seeds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    chosen_on = given.development or given.runs[0]
    options = {"env": given.env_options, "starts": given.starts, "iterations": given.iterations}
    options |= {"trials": given.trials, "chosen_on": chosen_on.name}
    ledger = Ledger(given.results / f"hierarchy_{given.name}.json", options)
    rivals = planners(given.starts, given.iterations)
    for place, run in enumerate([chosen_on, *given.runs]):
        trained = load(run, device="cpu")
        if trained.agent.hierarchy is None:
            raise SystemExit(f"{run} has no levels: train it with --model.levels")
        # Trained when something is played by them, once.
        distances: Distances = {"latent": lambda: None}
        distances |= {
            f"TC {gamma}": cache(partial(distance_of, trained, gamma)) for gamma in given.discounts
        }
        if place:
            play(trained, rivals, distances, given, given.block + place - 1, ledger)
        else:
            choose(trained, rivals, distances, given, ledger)
    pool(ledger)


def planners(starts: int, iterations: int) -> dict[str, Planner]:
    """The flat rivals."""
    tried, rounds = 4 * starts, iterations // 2
    return {
        "gradient": Gradient(starts=starts, iterations=iterations),
        "CEM": CEM(candidates=tried, iterations=rounds, elites=tried // 8, initial_std=1.0),
        "MPPI": MPPI(candidates=tried, iterations=rounds, std=0.6),
    }


class Ledger:
    """The file of rows, written whenever one is added.

    Args:
        path: where.
        options: how the rows are made.
    """

    def __init__(self, path: Path, options: Row) -> None:
        self.path, self.options = path, options
        held = json.loads(path.read_text()) if path.exists() else {"options": options, "rows": []}
        if held["options"] != options:
            raise SystemExit(f"{path} was made with {held['options']}: move it away")
        self.rows: list[Row] = held["rows"]

    def find(self, **key: Any) -> Row | None:
        """The row that has these values."""
        return next((row for row in self.rows if key.items() <= row.items()), None)

    def add(self, **row: Any) -> None:
        """Keep one row, and show it."""
        print(json.dumps(row), flush=True)
        self.rows.append(row)
        content = {
            "command": "python " + shlex.join(sys.argv),
            "commit": commit(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
            "options": self.options,
            "rows": self.rows,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(content, indent=1) + "\n")


def distance_of(trained: Trained, discount: float) -> TemporalDistance:
    """TC(s, g) of the world model's own states, by as many updates as all above it took."""
    model, levels = trained.agent.model, trained.arguments["model"].levels
    data = encode_dataset(model, Dataset.open(trained.arguments["data"] or trained.folder.data))
    torch.manual_seed(trained.arguments["seed"])  # the initial weights
    module = TemporalDistance(model.latent_dim, discount)
    stages = trained.arguments["stages"]
    together = stages.joint.steps if stages.levels.together else 0
    steps = len(levels) * (stages.levels.steps + together)
    assert trained.agent.hierarchy is not None
    if isinstance(trained.agent.hierarchy.top, TemporalCost):
        steps += stages.temporal.steps
    stage = replace(stages.temporal, steps=steps)
    train_temporal(module, model, data, stage, torch.Generator().manual_seed(0))
    return module.requires_grad_(False)


def flat(
    trained: Trained, planner: Planner, horizon: int, distance: TemporalDistance | None
) -> Agent:
    """The agent without its levels."""
    agent = trained.agent
    cost = replace(agent.configurator.cost, horizon=horizon)
    return replace(
        agent,
        configurator=replace(agent.configurator, cost=cost),
        planner=planner,
        goal_term=GoalDistance() if distance is None else TemporalCost(distance),
        hierarchy=None,
    )


def controlled(agent: Agent, seed: int) -> AgentController:
    """What acts."""
    return AgentController(agent, torch.Generator().manual_seed(seed))


def choose(
    trained: Trained,
    rivals: dict[str, Planner],
    distances: Distances,
    given: argparse.Namespace,
    ledger: Ledger,
) -> None:
    """Play every flat planner on development episodes."""
    seeds = list(range(DEVELOPMENT, DEVELOPMENT + given.trials))
    env = trained.make_env(given.trials, **given.env_options)
    for distance, distance_to in distances.items():
        for horizon in given.horizons:
            for planner, made in rivals.items():
                key = {
                    "kind": "choice",
                    "distance": distance,
                    "horizon": horizon,
                    "planner": planner,
                }
                if ledger.find(**key):
                    continue
                agent = flat(trained, made, horizon, distance_to())
                outcomes = run_episodes(env, controlled(agent, 0), seeds)
                decisions = float(np.mean([outcome.decisions for outcome in outcomes]))
                ledger.add(**key, **summarise(outcomes), decisions=decisions)


def rival(
    trained: Trained,
    rivals: dict[str, Planner],
    found: Row,
    distance_to: Callable[[], TemporalDistance | None],
    seed: int,
) -> AgentController:
    """The flat planner of a row of choices."""
    made = rivals[found["planner"]]
    return controlled(flat(trained, made, found["horizon"], distance_to()), seed)


def best(ledger: Ledger, distance: str) -> Row:
    """The flat planner with the most successes; of equals the one with the shortest episodes."""
    rows = [
        row for row in ledger.rows if (row["kind"], row.get("distance")) == ("choice", distance)
    ]
    return max(rows, key=lambda row: (row["success_rate"], -row["decisions"]))


def play(
    trained: Trained,
    rivals: dict[str, Planner],
    distances: Distances,
    given: argparse.Namespace,
    block: int,
    ledger: Ledger,
) -> None:
    """Held-out episodes of one run, and the time of single decisions."""
    contenders: dict[str, Callable[[], Controller]] = {}
    for name, policy in baselines_of(trained.spec.id).items():
        rng = np.random.default_rng(block)
        contenders[name] = partial(PolicyController, policy, trained.spec.action_space, rng)
    contenders["hierarchy"] = partial(controlled, trained.agent, block)
    for distance, distance_to in distances.items():
        contenders[f"flat, {distance}"] = partial(
            rival, trained, rivals, best(ledger, distance), distance_to, block
        )
    env = trained.make_env(min(given.episodes, 50), **given.env_options)
    single = trained.make_env(1, **given.env_options)
    for name, make in contenders.items():
        key = {"kind": "test", "run": trained.folder.path.name, "controller": name, "block": block}
        if ledger.find(**key):
            continue
        controller = make()
        outcomes = run_episodes(env, controller, held_out_seeds(given.episodes, block))
        timed = time_decisions(single, controller, held_out_seeds(3, block), 100)
        row: Row = {**key, **summarise(outcomes)}
        row |= {"decisions": float(np.mean([outcome.decisions for outcome in outcomes]))}
        row |= {
            "ms": timed.ms_per_decision,
            "wins": [bool(outcome.success) for outcome in outcomes],
        }
        if isinstance(controller, AgentController):
            row["made"] = str(controller.agent.hierarchy or controller.agent.planner)[:60]
        ledger.add(**row)


def pool(ledger: Ledger) -> None:
    """One row per controller over all runs."""
    tests = [row for row in ledger.rows if row["kind"] == "test"]
    ledger.rows = [row for row in ledger.rows if row["kind"] != "all"]
    for name in dict.fromkeys(row["controller"] for row in tests):
        mine = [row for row in tests if row["controller"] == name]
        ledger.add(kind="all", controller=name, runs=len(mine), **rate(mine))


def rate(rows: Sequence[Row]) -> Row:
    """Success over all episodes of these rows, with its 95 % interval."""
    wins = [won for row in rows for won in row["wins"]]
    low, high = wilson(sum(wins), len(wins))
    return {
        "episodes": len(wins),
        "success_rate": sum(wins) / len(wins),
        "ci95_low": low,
        "ci95_high": high,
        "ms": float(np.mean([row["ms"] for row in rows])),
    }


if __name__ == "__main__":
    main()
