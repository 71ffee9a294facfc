"""Latent distance against temporal distance as what Mode-2 minimises, on a run of Two-Rooms.

    python benchmarks/goal_costs.py runs/demo/stop --name stop --horizons 20 8

Trains TC(s, g) on the run's own data, evaluates both goal terms with every reduction over time, and
writes `benchmarks/results/goal_costs_NAME.json`: `training` and `rows` with Wilson intervals, also
on the episodes that greedy loses, with random, greedy and scripted beside.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forethought import load
from forethought.agent import (
    AgentController,
    Outcome,
    PolicyController,
    held_out_seeds,
    run_episodes,
    summarise,
)
from forethought.agent.cost import GoalDistance, GoalTerm
from forethought.agent.cost.temporal import (
    TemporalCost,
    TemporalDistance,
    TemporalStage,
    train_temporal,
)
from forethought.envs import GEOMETRIES, Dataset
from forethought.envs.two_rooms.geometry import shortest_path
from forethought.run_folder import commit
from forethought.running import Trained, baselines_of
from forethought.worldmodel import LatentData, encode_dataset

RESULTS = Path(__file__).parent / "results"
PAIRS = 4000


def main() -> None:
    """Train the temporal distance, evaluate both goal terms, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--horizons", type=int, nargs="+", default=[20, 8])
    parser.add_argument("--reductions", nargs="+", default=["sum", "softmin", "last"])
    parser.add_argument("--discount", type=float, default=0.95, help="gamma per decision of TC")
    parser.add_argument("--steps", type=int, default=TemporalStage().steps)
    parser.add_argument("--actions", type=int, default=TemporalStage().actions)
    parser.add_argument("--weight", type=float, default=TemporalStage().weight)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--num-envs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the training of TC and of planning")
    parser.add_argument("--block", type=int, default=1, help="block of held-out seeds")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    trained = load(given.run)
    stage = TemporalStage(steps=given.steps, actions=given.actions, weight=given.weight)
    module, training = distance_of(trained, stage, given.discount, given.seed)
    report(training)
    rows = [common(given) | row for row in evaluated(trained, module, given)]
    RESULTS.mkdir(exist_ok=True)
    results = {
        "command": "python " + shlex.join(sys.argv),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "training": training,
        "rows": rows,
    }
    target = RESULTS / f"goal_costs_{given.name}.json"
    target.write_text(json.dumps(results, indent=1) + "\n")


def common(given: argparse.Namespace) -> dict[str, Any]:
    """What all rows share."""
    first = held_out_seeds(1, given.block)[0]
    return {"seed": given.seed, "commit": commit(), "held_out_from": first}


def report(row: Mapping[str, Any]) -> None:
    """Print one line."""
    print(json.dumps(row), flush=True)


def distance_of(
    trained: Trained, stage: TemporalStage, discount: float, seed: int
) -> tuple[TemporalDistance, dict[str, Any]]:
    """TC(s, g), trained on the run's data, and what is known of it."""
    model = trained.agent.model
    dataset = Dataset.open(trained.arguments["data"] or trained.folder.data)
    data = encode_dataset(model, dataset)
    torch.manual_seed(seed)  # the initial weights
    module = TemporalDistance(model.latent_dim, discount).to(model.device)
    began = time.perf_counter()
    train_temporal(module, model, data, stage, torch.Generator().manual_seed(seed))
    seconds = time.perf_counter() - began
    module.requires_grad_(False)
    known = {"discount": discount, "stage": asdict(stage), "seconds": seconds}
    return module, known | against_shortest_paths(trained, dataset, data, module, seed)


@torch.no_grad()
def against_shortest_paths(
    trained: Trained, dataset: Dataset, data: LatentData, module: TemporalDistance, seed: int
) -> dict[str, float]:
    """Rank correlations with the true path, over pairs of states in the data.

    The pairs come from the data that TC was trained on; their paths were not part of it. Empty
    where the true path is not known at once, as in mazes.
    """
    geometry = GEOMETRIES.get(trained.spec.id)
    if geometry is None:
        return {}
    drawn = np.random.default_rng(seed).integers(len(data.states), size=(2, PAIRS))
    position, wall, door = (
        dataset.arrays(f"quantities.{name}") for name in ("position", "wall", "door")
    )
    here, there = position[drawn[0]].astype(float), position[drawn[1]].astype(float)
    walls, doors = wall[drawn[0], 0].astype(float), door[drawn[0], 0].astype(float)
    same = (wall[drawn[0]] == wall[drawn[1]])[:, 0] & (door[drawn[0]] == door[drawn[1]])[:, 0]
    true = shortest_path(geometry, walls, doors, here, there) / geometry.max_step
    states, goals = (data.states[torch.as_tensor(index)] for index in drawn)
    steps = module.steps(states, goals).cpu().numpy()
    latent = (states - goals).square().mean(-1).cpu().numpy()
    across = same & ((here[:, 0] < walls) != (there[:, 0] < walls))
    return {
        "rank_correlation_temporal": ranked(steps[same], true[same]),
        "rank_correlation_latent": ranked(latent[same], true[same]),
        "rank_correlation_temporal_across": ranked(steps[across], true[across]),
        "rank_correlation_latent_across": ranked(latent[across], true[across]),
        "mean_error_decisions": float(np.abs(steps - true)[same].mean()),
        "mean_path_decisions": float(true[same].mean()),
    }


def ranked(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of `(N,)` values without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (first, second)]
    return float(np.corrcoef(*ranks)[0, 1])


def evaluated(
    trained: Trained, module: TemporalDistance, given: argparse.Namespace
) -> list[dict[str, Any]]:
    """One row per controller and, for the agent, one on the episodes that greedy loses."""
    env = trained.make_env(min(given.num_envs, given.episodes))
    seeds = held_out_seeds(given.episodes, given.block)
    rows, lost = [], np.zeros(given.episodes, bool)
    for name, policy in baselines_of(trained.spec.id).items():
        rng = np.random.default_rng(given.seed)
        controller = PolicyController(policy, trained.spec.action_space, rng)
        outcomes = run_episodes(env, controller, seeds)
        rows.append({"cost": None, "mode": name} | measured(outcomes))
        report(rows[-1])
        if name == "greedy":
            lost = np.array([not outcome.success for outcome in outcomes])
    terms: dict[str, GoalTerm] = {"latent": GoalDistance(), "temporal": TemporalCost(module)}
    for horizon in given.horizons:
        for reduction in given.reductions:
            for name, term in terms.items():
                agent = replace(trained.agent, goal_term=term)
                configurator = agent.configurator
                cost = replace(
                    configurator.cost, horizon=horizon, reduction=reduction, replan_every=1
                )
                agent = replace(agent, configurator=replace(configurator, cost=cost))
                generator = torch.Generator().manual_seed(given.seed)
                outcomes = run_episodes(env, AgentController(agent, generator), seeds)
                row = {"cost": name, "mode": 2, "reduction": reduction, "horizon": horizon}
                row |= {"planner": str(agent.planner), "only_where_greedy_fails": False}
                rows.append(row | measured(outcomes))
                report(rows[-1])
                hard = [one for one, fails in zip(outcomes, lost, strict=True) if fails]
                if hard:
                    rows.append(row | measured(hard) | {"only_where_greedy_fails": True})
    return rows


def measured(outcomes: Sequence[Outcome]) -> dict[str, float | int]:
    """Success with its Wilson interval, and decisions per episode (failures count in full)."""
    return summarise(outcomes) | {"decisions": float(np.mean([one.decisions for one in outcomes]))}


if __name__ == "__main__":
    main()
