"""Both arms of distillation on trained runs, with the same CPU time.

    python benchmarks/distill_arms.py runs/cartpole --seeds 0 1 2 --json \
        benchmarks/results/distill_arms_cartpole.json

`labels` regresses the policy on plans, as the run says; its CPU time is the budget of the others.
`gradient` sends the gradient of the imagined energy into the policy; `unsupported` does so without
the support term; `both` begins with half of the rounds of `labels` and spends the rest on
`gradient`, from the policy it has. Every policy plays the same held-out episodes in Mode-1, and
`energy` is that of its roll-outs from starts of the data that are the same for all. The run folder
is only read.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forethought import load
from forethought.agent import (
    AgentController,
    Distillation,
    Policy,
    distill,
    held_out_seeds,
    run_episodes,
    summarise,
)
from forethought.build import build_policy
from forethought.envs import Dataset
from forethought.parser import read_yaml
from forethought.run_folder import commit
from forethought.running import Trained
from forethought.worldmodel import encode_dataset

ARMS = ("labels", "gradient", "unsupported", "both")
TRIED = 40  # updates that say how long one takes
Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """One run and the states of its data."""

    trained: Trained
    states: Tensor  # (N, D)

    @staticmethod
    def of(run: Path) -> Bench:
        """Load a run and encode its data once."""
        trained = load(run, device="cpu")
        source = trained.arguments["data"] or trained.folder.data
        return Bench(trained, encode_dataset(trained.agent.model, Dataset.open(source)).states)

    def policy(self, seed: int) -> Policy:
        """An untrained policy."""
        return build_policy(self.trained.agent.model, self.trained.agent.configurator.task, seed)

    def spend(self, policy: Policy, how: Distillation, seed: int) -> tuple[float, Row]:
        """Distill into `policy`; CPU seconds, and what was logged last."""
        last: Row = {}
        generator = torch.Generator().manual_seed(seed)
        began = time.process_time()
        agent = self.trained.agent
        distill(agent, policy, self.states, how, generator, lambda _, values: last.update(values))
        return time.process_time() - began, last

    def steps(self, how: Distillation, seconds: float, seed: int) -> int:
        """Updates per round of arm `gradient` that fit into CPU seconds."""
        trial = replace(how, rounds=1, steps=TRIED)
        generator = torch.Generator().manual_seed(seed)
        began = time.process_time()
        distill(self.trained.agent, self.policy(seed), self.states, trial, generator)
        each = (time.process_time() - began) / TRIED
        return max(1, int(seconds / each / how.rounds))

    def play(self, policy: Policy, episodes: int, block: int) -> Row:
        """Held-out episodes in Mode-1."""
        agent = replace(self.trained.agent, policy=policy.eval().requires_grad_(False))
        agent = replace(agent, configurator=replace(agent.configurator, mode=1))
        env = self.trained.make_env(min(episodes, 50))
        controller = AgentController(agent, torch.Generator().manual_seed(block))
        return summarise(run_episodes(env, controller, held_out_seeds(episodes, block)))


def measure(bench: Bench, labels: Distillation, seed: int, given: argparse.Namespace) -> list[Row]:
    """All arms of one seed, `labels` first: it sets the budget."""
    gradient = replace(labels, arm="gradient", batch=given.batch)
    rows: list[Row] = []
    budget = 0.0
    for arm in ("labels", *(arm for arm in given.arms if arm != "labels")):
        policy, before, how = bench.policy(seed), 0.0, labels
        if arm == "both":
            half = replace(labels, rounds=max(1, labels.rounds // 2))
            before = bench.spend(policy, half, seed)[0]
        if arm != "labels":
            support = 0.0 if arm == "unsupported" else given.support
            how = replace(
                gradient, support=support, learning_rate=given.learning_rate, rounds=given.rounds
            )
            steps = given.steps or bench.steps(how, max(0.0, budget - before), seed)
            how = replace(how, steps=steps)
        seconds, logged = bench.spend(policy, how, seed)
        budget = budget or seconds
        row = {"arm": arm, "seed": seed, "cpu_seconds": before + seconds}
        row |= {name: logged.get(name) for name in ("energy", "planner_energy", "lost")}
        row |= bench.play(policy, given.episodes, given.block)
        rows.append(row | {"distillation": asdict(how)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Measure, show, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS])
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--block", type=int, default=7, help="block of held-out seeds")
    parser.add_argument("--batch", type=int, default=64, help="roll-outs per gradient update")
    parser.add_argument("--support", type=float, default=Distillation.support)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of the gradient arm")
    parser.add_argument("--steps", type=int, help="gradient updates per round, not by CPU time")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for run in given.runs:
        bench = Bench.of(run)
        asked = read_yaml(bench.trained.folder.config)["distillation"]
        for seed in given.seeds:
            rows += [
                {"run": run.name} | row for row in measure(bench, asked_of(asked), seed, given)
            ]
            if given.json is not None:
                write(given.json, rows)


def asked_of(config: dict[str, Any]) -> Distillation:
    """What a run says about distillation, by the arm of labels."""
    return replace(Distillation(**config), arm="labels")


def write(path: Path, rows: list[Row]) -> None:
    """Rows with what they depend on."""
    record = {
        "command": " ".join(["python", "benchmarks/distill_arms.py", *sys.argv[1:]]),
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch threads 1",
        "rows": rows,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
