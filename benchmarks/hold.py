"""Cartpole goes to another position and holds it by Setting alone: no training, an aim is passed.

    python benchmarks/hold.py runs/cartpole-0 runs/cartpole-1 runs/cartpole-2

Each run was trained to swing the pole up and hold it over the middle of the rail. So it does for
the first decisions; then the setting changes, as a configurator may change it at any time: the term
`centred` gets the weight 0, an aim says where the cart shall be, and the critic, which knows
nothing of the aim, counts less. Mode-2 plays held-out episodes for each place;
told are the return (the task's own, which pays for the middle), the cart's mean distance from
the place and the share of time with the pole up (cosine above 0.9), over the second half of each
episode;
beside them the same agent without adjustment, and the random policy.

Writes `benchmarks/results/hold.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forethought import load
from forethought.agent import (
    Adjustment,
    AgentController,
    AgentState,
    Aim,
    Configurator,
    Controller,
    PolicyController,
    bootstrap_mean,
    held_out_seeds,
    run_episodes,
)
from forethought.envs import Random
from forethought.run_folder import commit
from forethought.running import Trained

RESULTS = Path(__file__).parent / "results"
PLACES = (-0.5, -0.25, 0.25, 0.5)


def main() -> None:
    """Run everything and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--episodes", type=int, default=10, help="for each place")
    parser.add_argument("--block", type=int, default=30, help="first block of held-out seeds")
    parser.add_argument("--weight", type=float, default=1.0, help="of the aim")
    parser.add_argument("--critic", type=float, default=0.3, help="weight of the critic")
    parser.add_argument("--horizon", type=int, default=30, help="once the setting has changed")
    parser.add_argument("--after", type=int, default=100, help="decisions before it changes")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for number, run in enumerate(given.runs):
        trained = load(run, device="cpu")
        for place in PLACES:
            seeds = held_out_seeds(given.episodes, given.block + number)
            for name, controller in contenders(trained, place, given).items():
                rows.append(
                    {"run": run.name, "place": place, "controller": name}
                    | measure(trained, controller, seeds, place)
                )
                last = rows[-1]
                print(run.name, place, name, {k: np.round(np.mean(last[k]), 3) for k in KEYS})
    content = {
        "command": "python benchmarks/hold.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch threads 1",
        "means": means(rows),
        "rows": rows,
    }
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / "hold.json").write_text(json.dumps(content, indent=1) + "\n")


KEYS = ("return", "distance", "upright")


@dataclass(frozen=True)
class Redirected(AgentController):
    """The agent, told something else on its way.

    Args:
        configurator: what tells it.
        after: decisions before that.
    """

    configurator: Configurator
    after: int

    def act(
        self, carried: AgentState, observation: Any, info: Any
    ) -> tuple[np.ndarray, AgentState]:
        """One perception-action step; the last plan is of the old horizon and is dropped."""
        if carried.time == self.after:
            setting = self.configurator.configure(None, len(carried.setting.u), torch.device("cpu"))
            carried = replace(carried, setting=setting, plan=None, until_replan=0)
        return super().act(carried, observation, info)


def contenders(trained: Trained, place: float, given: Any) -> dict[str, Controller]:
    """With the aim, without it, and at random."""
    task = replace(trained.agent.configurator.task, aims={"position": Aim("position[0]", 0.5)})
    adjust = Adjustment({"centred": 0.0}, {"position": (place,)}, {"position": given.weight})
    cost = replace(trained.agent.configurator.cost, critic=given.critic, horizon=given.horizon)
    knowing = replace(trained.agent.configurator, task=task)
    told = replace(knowing, adjust=adjust, cost=cost)
    agent = replace(trained.agent, configurator=knowing)
    generator = torch.Generator().manual_seed(0)
    return {
        "adjusted": Redirected(agent, generator, told, given.after),
        "as trained": AgentController(trained.agent, torch.Generator().manual_seed(0)),
        "random": PolicyController(Random(), trained.spec.action_space, np.random.default_rng(0)),
    }


def measure(
    trained: Trained, controller: Controller, seeds: list[int], place: float
) -> dict[str, list[float]]:
    """Return, distance and share of time upright of every episode."""
    env = trained.make_env(len(seeds))
    path: list[np.ndarray] = []

    def note(running: Any, observation: Any, info: Any, carried: Any) -> None:
        path.append(np.asarray(info["quantities"]["position"])[:, :2])

    outcomes = run_episodes(env, controller, seeds, on_step=note)
    late = np.stack(path)[len(path) // 2 :]  # (T/2, N, 2): nothing ends before its time
    return {
        "return": [outcome.return_ for outcome in outcomes],
        "distance": np.abs(late[:, :, 0] - place).mean(0).tolist(),
        "upright": (late[:, :, 1] > 0.9).mean(0).tolist(),
    }


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over runs and places, with intervals by bootstrap over runs, then episodes."""
    found = []
    for name in dict.fromkeys(row["controller"] for row in rows):
        mine = [row for row in rows if row["controller"] == name]
        entry: dict[str, Any] = {"controller": name}
        for key in KEYS:
            runs = dict.fromkeys(row["run"] for row in mine)
            groups = [[x for row in mine if row["run"] == run for x in row[key]] for run in runs]
            entry[key] = float(np.mean([np.mean(group) for group in groups]))
            entry[f"{key}_ci95"] = bootstrap_mean(groups)
        found.append(entry)
    return found


if __name__ == "__main__":
    main()
