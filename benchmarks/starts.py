"""What each proposal saves Mode-2: the energy after few steps, by what is among the starts.

    python benchmarks/starts.py runs/cartpole-0 runs/cartpole-1 runs/cartpole-2 --name cartpole

The agent plays in Mode-2; every tenth decision becomes a problem: its belief, the rest of the last
plan, its memory. Each problem is planned with as many starts and iterations, but with different
proposals among them: none (the planner's own, the zero action first), the rest of the last plan,
the policy's roll-out, the nearest moments of the memory, and all of these. Told is how far the
energy stays above the best found by anything (`excess`), and the number of iterations after which
proposals are as good as none with the most iterations.

Writes `benchmarks/results/starts_NAME.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forethought import load
from forethought.agent import AgentController, AgentState, bootstrap_mean, run_episodes
from forethought.envs import HELD_OUT_SEED
from forethought.planners import Gradient, Problem
from forethought.run_folder import commit
from forethought.running import Trained

RESULTS = Path(__file__).parent / "results"
KINDS = ("none", "last plan", "policy", "memory", "all")
Decision = tuple[Problem, dict[str, Tensor | None]]


def main() -> None:
    """Run everything and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--starts", type=int, default=4)
    parser.add_argument("--iterations", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    excess = {(kind, n): list[list[float]]() for kind in KINDS for n in given.iterations}
    for run in given.runs:
        for key, values in measure(load(run, device="cpu"), given).items():
            excess[key].append(values)
    rows = []
    for (kind, iterations), groups in excess.items():
        low, high = bootstrap_mean(groups)
        mean = float(np.mean([np.mean(group) for group in groups]))
        rows.append({"proposals": kind, "iterations": iterations, "excess": mean})
        rows[-1] |= {"ci95_low": low, "ci95_high": high, "problems": sum(map(len, groups))}
    most = max(given.iterations)
    bar = next(r["excess"] for r in rows if (r["proposals"], r["iterations"]) == ("none", most))
    enough = {
        kind: next(
            (r["iterations"] for r in rows if r["proposals"] == kind and r["excess"] <= bar), None
        )
        for kind in KINDS
    }
    content = {
        "command": "python benchmarks/starts.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch threads 1",
        "as_good_as_none_after": enough,
        "rows": rows,
    }
    given.results.mkdir(parents=True, exist_ok=True)
    path = given.results / f"starts_{given.name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    for row in rows:
        print(row)
    print(enough)


def measure(trained: Trained, given: Any) -> dict[tuple[str, int], list[float]]:
    """Excess energies of every kind and number of iterations, for each problem."""
    found: dict[tuple[str, int], list[Tensor]] = {}
    for problem, proposals in decisions(trained, given.episodes, given.every):
        energies = {}
        for kind in KINDS:
            chosen = [
                actions
                for name, actions in proposals.items()
                if actions is not None and kind in (name, "all")
            ]
            starts = torch.stack(chosen, 1) if chosen else None
            for iterations in given.iterations:
                planner = Gradient(starts=given.starts, iterations=iterations)
                generator = torch.Generator().manual_seed(0)
                plan = planner.plan(problem, proposals=starts, generator=generator)
                energies[kind, iterations] = plan.energy
        best = torch.stack([*energies.values()]).amin(0)
        for key, energy in energies.items():
            found.setdefault(key, []).append(energy - best)
    return {key: torch.cat(values).tolist() for key, values in found.items()}


def decisions(trained: Trained, episodes: int, every: int) -> list[Decision]:
    """Problems of B environments side by side, with what could be proposed for each."""
    agent = trained.in_mode(2)
    env = trained.make_env(episodes)
    kept: list[Decision] = []
    before: list[AgentState] = []

    def note(running: Any, observation: Any, info: Any, carried: AgentState) -> None:
        if before and carried.time % every == 0 and before[0].plan is not None:
            last, belief = before[0], carried.belief
            assert belief is not None
            if len(belief) == len(last.plan):  # type: ignore[arg-type]
                assert agent.policy is not None
                horizon = carried.setting.cost.horizon
                rolled = agent.policy.rollout(
                    agent.model, belief, carried.setting.context, horizon
                )[0]
                memory = None
                if last.memory is not None:
                    memory = last.memory.proposals(belief, carried.setting)[:, 0]
                kept.append(
                    (
                        agent.problem(carried.setting, belief),
                        {"last plan": last.plan, "policy": rolled, "memory": memory},
                    )
                )
        before[:] = [carried]

    first = HELD_OUT_SEED - 300_000
    controller = AgentController(
        replace(agent, recall=trained.arguments["recall"]), torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        run_episodes(env, controller, list(range(first, first + episodes)), on_step=note)
    return kept


if __name__ == "__main__":
    main()
