"""Two-Rooms with a wall and a door drawn anew for each episode: does the latent hold the layout?

    python benchmarks/random_layout.py --seed 0                                  # two cores, 32 px
    python benchmarks/random_layout.py --seed 0 --config two-rooms-65 --device cuda

Trains by `--config` (or takes `--run`, a finished run), reads agent, wall and door from the latent
on held-out episodes, and plays blocks of held-out episodes beside random, greedy and scripted.
Two more arms of the same training stand beside it: `--arm equal`, all channels of the picture
equally loud, and `--arm blind`, whose encoder does not see the walls.

Writes `benchmarks/results/random_layout_CONFIG_SEED.json`. What is there already is not done
again, and a training that was cut goes on: the same call finishes what it began.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from forethought import call, load
from forethought.agent import (
    Controller,
    Outcome,
    PolicyController,
    held_out_seeds,
    run_episodes,
    wilson,
)
from forethought.course import quantities_of
from forethought.envs import Dataset, Smooth
from forethought.envs.policies import no_actions
from forethought.run_folder import RunFolder, commit
from forethought.running import Trained, baselines_of
from forethought.worldmodel import encode_dataset
from forethought.worldmodel.latents import to_tensor
from forethought.worldmodel.readouts import r_squared

RESULTS = Path(__file__).parent / "results"
NAMES = ("position", "wall", "door")
ARMS = {
    "recipe": [],
    "equal": ["--model.perception.gains=null"],
    "blind": ["--model.perception.gains=[1.0, 1e-6]"],
}
PROBED = 1000  # held-out episodes, one observation of each
LINEAR = 50_000  # states of the training data that the linear readout is fitted to
Row = dict[str, Any]


def main() -> None:
    """Train, probe and play what is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--config", default="two-rooms-random")
    parser.add_argument("--arm", choices=sorted(ARMS), default="recipe")
    parser.add_argument("--run", type=Path, help="run folder; one that is finished is taken")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--costs", nargs="+", choices=["latent", "temporal"], default=None)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--episodes", type=int, default=100, help="in each block")
    parser.add_argument("--num-envs", type=int, default=100)
    parser.add_argument("--train-only", action="store_true", help="leave playing to another call")
    parser.add_argument("--results", type=Path, default=RESULTS)
    # What is not known here is for `forethought train`: --stages.joint.steps=100, say.
    given, options = parser.parse_known_args()
    torch.set_num_threads(given.threads)
    run = given.run or Path("runs/random-layout") / f"{given.config}-{given.arm}-{given.seed}"
    file = given.results / f"random_layout_{Path(given.config).stem}_{given.seed}.json"
    results = Results(file, "probes", "rows")
    train(run, given, options)
    trained = load(run, device=given.device)
    if not results.has("probes", arm=given.arm):
        results.add("probes", {"arm": given.arm, **probed(trained), **facts(trained, run)})
    if not given.train_only:
        play(trained, given, results)


class Results:
    """The file of rows, written whenever one is added.

    Args:
        file: where.
        *groups: of rows.
    """

    def __init__(self, file: Path, *groups: str) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self.content: dict[str, Any] = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
            "commands": [],
            **{group: [] for group in groups},
        }
        if file.exists():
            self.content = json.loads(file.read_text())

    def has(self, group: str, **keys: Any) -> bool:
        """Whether a row with these keys is there."""
        return any(keys.items() <= row.items() for row in self.content[group])

    def add(self, group: str, row: Row) -> None:
        """Print a row and keep it, with the command that made it."""
        print(json.dumps(row), flush=True)
        command = "python " + shlex.join(sys.argv)
        if command not in self.content["commands"]:
            self.content["commands"].append(command)
        self.content[group].append({"commit": commit(), **row})
        self.file.write_text(json.dumps(self.content, indent=1) + "\n")


def train(run: Path, given: argparse.Namespace, options: list[str]) -> None:
    """Train, or go on with a training that was cut; nothing where it came to its end."""
    folder = RunFolder(run)
    if folder.config.exists() and RunFolder.open(run).read_json("training.json") is not None:
        return
    words = [f"--config={given.config}", f"--run={run}", f"--seed={given.seed}"]
    words += [f"--device={given.device}", f"--threads={given.threads}", *ARMS[given.arm], *options]
    call("train", [*words, "--resume"] if folder.config.exists() else words)


def facts(trained: Trained, run: Path) -> Row:
    """What the training took, and what its diagnostics say of the latent."""
    known = trained.folder.read_json("training.json") or {}
    report = trained.folder.read_json("diagnostics.json") or {}
    kept = ("latent_std", "effective_rank", "open_loop_position", "wall_violation_rate")
    return {
        "run": run.name,
        "device": str(trained.agent.model.device),
        "train_seconds": known.get("train_seconds"),
        "environment_steps": known.get("environment_steps"),
    } | {name: report[name] for name in kept if name in report}


@torch.no_grad()
def probed(trained: Trained) -> Row:
    """R^2 of agent, wall and door on held-out episodes, by the run's readouts and linearly.

    Wall and door are whole pixels, so that most layouts occur in the training data too: what is
    held out are episodes. Therefore the linear readout is also fitted to half of the layouts and
    judged on the other half (`unseen`), which the readout, though not the encoder, has never seen.
    """
    model, device = trained.agent.model, trained.agent.model.device
    observations, true = held_out(trained)
    states = model.encode(to_tensor(observations, device))
    read = trained.readouts(states)
    found: Row = {"probed_episodes": PROBED}
    found |= {f"r2_{name}": r_squared(read[name].cpu(), true[name]) for name in NAMES}
    dataset = Dataset.open(trained.arguments["data"] or trained.folder.data)
    latents = encode_dataset(model, dataset).states
    known = quantities_of(dataset, torch.device("cpu"))
    chosen = np.random.default_rng(0).permutation(len(latents))[:LINEAR]
    index = torch.as_tensor(chosen)
    seen = latents[index.to(device)].cpu()
    half = parity(known, index), parity(true, torch.arange(PROBED))
    for name in NAMES:
        values = known[name][index]
        told = linear(seen, values, states.cpu())
        found[f"r2_{name}_linear"] = r_squared(told, true[name])
        told = linear(seen[half[0]], values[half[0]], states.cpu()[~half[1]])
        found[f"r2_{name}_linear_unseen"] = r_squared(told, true[name][~half[1]])
    return found


def held_out(trained: Trained) -> tuple[np.ndarray, dict[str, Tensor]]:
    """One observation of each of `PROBED` held-out episodes, 10 smooth random actions in."""
    env = trained.make_env(PROBED)
    observation, info = env.reset(seed=held_out_seeds(PROBED, 900))
    actions, rng = no_actions(trained.spec.action_space, PROBED), np.random.default_rng(0)
    for _ in range(10):  # an episode that ends on the way stays where it ended
        actions = Smooth()(observation, info, actions, rng)
        observation, _, _, _, info = env.step(actions)
    told = {name: torch.as_tensor(np.array(info["quantities"][name])) for name in NAMES}
    env.close()
    return cast(np.ndarray, observation), told


def parity(quantities: dict[str, Tensor], index: Tensor) -> Tensor:
    """Half of the layouts, like the black fields of a chess board, `(N,)` bool."""
    layout = quantities["wall"][index, 0] + quantities["door"][index, 0]
    return layout.round().long() % 2 == 0


def linear(states: Tensor, values: Tensor, asked: Tensor) -> Tensor:
    """Ridge regression of `values` `(N, n)` on `states` `(N, D)`, at `asked` `(M, D)`."""

    def lifted(x: Tensor) -> Tensor:
        return torch.cat((x, torch.ones(len(x), 1)), 1).double()

    x = lifted(states)
    gram = x.T @ x + 1e-6 * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, x.T @ values.double())
    return (lifted(asked) @ weights).float()


def play(trained: Trained, given: argparse.Namespace, results: Results) -> None:
    """Blocks of held-out episodes for every controller; one row per block and one over all."""
    learned = ["temporal"] if trained.arguments["stages"].temporal.steps else []
    costs = given.costs or ["latent", *learned]
    env = trained.make_env(min(given.num_envs, given.episodes))
    baselines = baselines_of(trained.spec.id) if given.arm == "recipe" else {}
    for name in [*baselines, *costs]:
        keys = {"arm": given.arm, "controller": name}
        missing = [block for block in given.blocks if not results.has("rows", **keys, block=block)]
        if missing and name not in baselines:
            cost = replace(trained.arguments["cost"], goal=name)
            trained = load(trained.folder.path, cost=cost, device=given.device)
        for block in missing:
            began = time.perf_counter()
            seeds = held_out_seeds(given.episodes, block)
            outcomes = run_episodes(env, controller(trained, name, block), seeds)
            row = {**keys, "block": block, **measured(outcomes)}
            row |= {"seconds": time.perf_counter() - began, "setting": setting(trained, name)}
            results.add("rows", row)
        if missing:
            pooled(keys, results)


def controller(trained: Trained, name: str, seed: int) -> Controller:
    """A baseline, or the agent in Mode-2."""
    baselines = baselines_of(trained.spec.id)
    if name in baselines:
        rng = np.random.default_rng(seed)
        return PolicyController(baselines[name], trained.spec.action_space, rng)
    return trained.controller(seed=seed)


def setting(trained: Trained, name: str) -> str | None:
    """How the agent plans; None for a baseline."""
    if name in baselines_of(trained.spec.id):
        return None
    cost = trained.agent.configurator.cost
    summed = f"{cost.reduction} over {cost.horizon} steps, replanned every {cost.replan_every}"
    return f"{summed}; {trained.agent.planner}"


def measured(outcomes: list[Outcome]) -> Row:
    """Success with its Wilson interval, and decisions per episode (failures count in full)."""
    successes = sum(bool(outcome.success) for outcome in outcomes)
    decisions = float(np.mean([outcome.decisions for outcome in outcomes]))
    return {**rate(successes, len(outcomes)), "decisions": decisions}


def rate(successes: int, episodes: int) -> Row:
    """A success rate with its 95 % interval."""
    low, high = wilson(successes, episodes)
    found = {"episodes": episodes, "successes": successes, "success_rate": successes / episodes}
    return {**found, "ci95_low": low, "ci95_high": high}


def pooled(keys: Row, results: Results) -> None:
    """One row over all blocks that are there, in place of the one before."""
    every = {**keys, "block": "all"}
    rows = [row for row in results.content["rows"] if not every.items() <= row.items()]
    results.content["rows"] = rows
    blocks = [row for row in rows if keys.items() <= row.items()]
    successes, episodes = (sum(row[name] for row in blocks) for name in ("successes", "episodes"))
    results.add("rows", every | rate(successes, episodes))


if __name__ == "__main__":
    main()
