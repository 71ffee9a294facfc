"""Critics side by side: from episodes, from memory, in an ensemble, the simple form, re-weighted.

    python benchmarks/critics.py runs/cartpole-0 runs/cartpole-1 runs/cartpole-2 --name cartpole

On the latents of a trained run every fourth episode is held back. Each critic learns from the
others and is compared with what came in those held back: slope of realised upon predicted (1:
calibrated), correlation, mean absolute error, on the scale of (1 - gamma) TC, averages in [0, 1].
`reweighted` is the per-term critic with weights that it was not asked for, against one trained anew
for that weighted sum. `remembered` is the share of moments that the memory keeps.

Then Mode-2 plays held-out episodes with critics from all episodes, from memory, and without any.

Writes `benchmarks/results/critics_NAME.json`.
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

import torch
from torch import Tensor

from forethought import load
from forethought.agent import (
    AgentController,
    Critic,
    CriticStage,
    calibration,
    held_out_seeds,
    realised,
    recollect,
    remember_episodes,
    reweighting,
    run_episodes,
    summarise,
    terminations,
    train_critic,
    weighted,
)
from forethought.course import quantities_of
from forethought.envs import Dataset
from forethought.run_folder import commit
from forethought.running import Trained
from forethought.worldmodel import LatentData, MemoryConfig, encode_dataset

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Experience:
    """Latents with the cost of what followed each action, `(N, n)`."""

    data: LatentData
    costs: Tensor

    def rows(self, mask: Tensor) -> Experience:
        """The rows under `mask` `(N,)`, whole episodes."""
        d = self.data
        kept = LatentData(d.states[mask], d.actions[mask], d.remaining[mask], d.terminal[mask])
        return Experience(kept, self.costs[mask])


def main() -> None:
    """Run everything and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--episodes", type=int, default=20, help="to play with each; 0: none")
    parser.add_argument("--only-play", action="store_true", help="leave the comparison out")
    parser.add_argument("--block", type=int, default=40, help="first block of held-out seeds")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for number, run in enumerate(given.runs):
        trained = load(run, device="cpu")
        rows += [] if given.only_play else compare(trained, given.steps)
        if given.episodes:
            rows += play(trained, given.steps, held_out_seeds(given.episodes, given.block + number))
    content = {
        "command": "python benchmarks/critics.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch threads 1",
        "rows": rows,
    }
    given.results.mkdir(parents=True, exist_ok=True)
    path = given.results / f"critics_{given.name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")


def play(trained: Trained, steps: int, seeds: list[int]) -> list[dict[str, Any]]:
    """Mode-2 with critics that learned from all episodes, from the memory of them, and without."""
    experience = experience_of(trained)
    memory = remember_episodes(MemoryConfig(), experience.data, experience.costs)
    recalled = Experience(*recollect(memory, terminations(experience.data)))
    stage = replace(trained.arguments["stages"].critic, steps=steps)
    task = trained.agent.configurator.task
    critics: dict[str, Critic | None] = {"none": None}
    for name, learned in (("episodes", experience), ("memory", recalled)):
        torch.manual_seed(0)
        discount = trained.agent.configurator.discount
        critic = Critic(trained.agent.model.latent_dim, len(task.terms), discount)
        train_critic(
            critic,
            trained.agent.model,
            learned.data,
            learned.costs,
            task.lasting,
            stage,
            torch.Generator().manual_seed(0),
        )
        critics[name] = critic.eval().requires_grad_(False)
    env, rows = trained.make_env(len(seeds)), list[dict[str, Any]]()
    for name, held in critics.items():
        # Without the policy among the starts: what the critic brings would hide behind it.
        agent = replace(trained.agent, critic=held, policy=None)
        outcomes = run_episodes(
            env, AgentController(agent, torch.Generator().manual_seed(0)), seeds
        )
        rows.append(
            {"run": trained.folder.path.name, "critic": name, "mode": 2} | summarise(outcomes)
        )
        print(rows[-1], flush=True)
    return rows


def compare(trained: Trained, steps: int) -> list[dict[str, Any]]:
    """One row per critic, on one run."""
    task = trained.agent.configurator.task
    experience = experience_of(trained)
    episode = (experience.data.remaining == 0).cumsum(0) - (experience.data.remaining == 0).long()
    held_back = episode % 4 == 3
    learned, tested = experience.rows(~held_back), experience.rows(held_back)
    end, discount = task.lasting, trained.agent.configurator.discount
    came, counts = realised(tested.data, tested.costs, end, discount)
    stage = replace(trained.arguments["stages"].critic, steps=steps)
    memory = remember_episodes(MemoryConfig(), learned.data, learned.costs)
    recalled = Experience(*recollect(memory, terminations(learned.data)))
    kept = float(memory.slots.used.sum() / (learned.data.remaining > 0).sum())
    states, came = tested.data.states[counts], came[counts]
    rows = []

    def told(name: str, critic: Critic, returns: Tensor, **more: Any) -> None:
        names = task.bank.names if returns.shape[1] > 1 else ("sum",)
        found = calibration(critic, states, returns, names=names)
        terms = {
            term: {key: value for key, value in numbers.items() if key != "bins"}
            for term, numbers in found["terms"].items()
        }
        rows.append({"run": trained.folder.path.name, "critic": name, "terms": terms} | more)
        print(rows[-1], flush=True)

    def taught(experience: Experience, members: int = 1, **changes: Any) -> Critic:
        torch.manual_seed(0)
        terms = experience.costs.shape[1]
        critic = Critic(trained.agent.model.latent_dim, terms, discount, members=members)
        how: CriticStage = replace(stage, **changes)
        lasting = end if terms == len(end) else weighted(end, other)
        generator = torch.Generator().manual_seed(0)
        train_critic(
            critic,
            trained.agent.model,
            experience.data,
            experience.costs,
            lasting,
            how,
            generator,
        )
        return critic.eval()

    # Weights nobody asked for: the order of the task's own turned round.
    other = task.bank.weights(task.weights).flip(0)
    per_term = taught(learned)
    told("episodes", per_term, came)
    told("memory", taught(recalled), came, remembered=kept)
    told("ensemble of 3", taught(learned, members=3), came)
    summed = Experience(learned.data, weighted(learned.costs, other))
    anew = taught(summed)
    told("trained for other weights", anew, weighted(came, other))
    again = reweighting(per_term, anew, states, other)
    mixed = weighted(per_term.average(states), other)
    error = float((mixed - weighted(came, other)).abs().mean().detach())
    rows[-1]["reweighted"] = {
        key: again[key] for key in ("slope", "correlation", "mean_absolute_error")
    } | {"mean_absolute_error_to_realised": error}
    return rows


@torch.no_grad()
def experience_of(trained: Trained) -> Experience:
    """The run's own data, by the word of the environment."""
    source = trained.arguments["data"] or trained.folder.data
    held = Dataset.open(source)
    data = encode_dataset(trained.agent.model, held)
    quantities = quantities_of(held, trained.agent.model.device)
    after = {name: torch.cat((q[1:], q[-1:])) for name, q in quantities.items()}
    after["state"] = torch.cat((data.states[1:], data.states[-1:]))
    costs = trained.agent.bank.values(after, data.actions)
    return Experience(data, torch.where(data.remaining[:, None] > 0, costs, 0.0))


if __name__ == "__main__":
    main()
