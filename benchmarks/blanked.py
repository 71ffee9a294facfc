"""What a recurrent belief is worth where observations are blank for ten decisions at a time.

    python benchmarks/blanked.py runs/demo/cartpole --blank 20 10 40
    python benchmarks/blanked.py runs/demo/slide --blank 4 10 20

Loads a trained run, trains a correction on its data, and compares it with the memoryless model
and with the open loop, which does not look at all while observations are blank:

- `readout`: root mean squared error of the named quantities that are read from the belief at blank
  decisions, in standard deviations, along the episodes that the agent lives through with its eyes
  open (so that all three see the same);
- `mode2`: return or success of planning from either belief, with and without blank decisions, and
  the decisions of an episode.

Writes `benchmarks/results/blanked_NAME.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forethought.agent import AgentController, held_out_seeds, run_episodes, summarise
from forethought.envs import Dataset
from forethought.envs.wrappers import Blank
from forethought.run_folder import commit
from forethought.running import Trained, load
from forethought.worldmodel import JEPA, encode_dataset
from forethought.worldmodel.belief import (
    BeliefStage,
    Correction,
    encoded_blank,
    is_normalised,
    train_belief,
)

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Train the correction of one run and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--blank", type=int, nargs="+", default=[20, 10, 40])
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--steps", type=int, default=BeliefStage.steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    blank = Blank.of(given.blank)
    trained = load(given.run, device="cpu")
    memoryless = trained.agent.model
    stage = BeliefStage(steps=given.steps)
    began = time.perf_counter()
    recurrent, losses = with_correction(trained, stage, given.seed)
    seconds = time.perf_counter() - began
    seeds = held_out_seeds(given.episodes, given.seed)
    eyes_open, episodes = live(trained, memoryless, seeds, given.seed)
    shape = (blank.start, blank.length) + (() if blank.period is None else (blank.period,))
    found = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch threads {given.threads}",
        "commit": commit(),
        "seed": given.seed,
        "task": trained.spec.id,
        "blank": asdict(blank),
        "stage": asdict(stage),
        "train_seconds": seconds,
        "losses": losses,
        "readout": readout_errors(trained, recurrent, blank, episodes),
        "mode2": {
            "memoryless, nothing blank": eyes_open,
            "belief, nothing blank": live(trained, recurrent, seeds, given.seed)[0],
            "memoryless, blank": live(trained, memoryless, seeds, given.seed, blank=shape)[0],
            "belief, blank": live(trained, recurrent, seeds, given.seed, blank=shape)[0],
        },
    }
    given.results.mkdir(parents=True, exist_ok=True)
    target = given.results / f"blanked_{given.run.name}.json"
    target.write_text(json.dumps(found, indent=2) + "\n")


def with_correction(
    trained: Trained, stage: BeliefStage, seed: int
) -> tuple[JEPA, dict[str, float]]:
    """The run's model with a correction that was trained on the run's data; its last losses."""
    model = trained.agent.model
    torch.manual_seed(seed)
    correction = Correction(
        model.latent_dim, normalise=is_normalised(model.perception, trained.spec)
    )
    recurrent = JEPA(model.perception, model.predictor, model.actions, correction)
    data = Dataset.open(trained.arguments["data"] or trained.folder.data)
    last: dict[str, float] = {}
    train_belief(
        recurrent,
        encode_dataset(recurrent, data),
        encoded_blank(recurrent, trained.spec),
        stage,
        torch.Generator().manual_seed(seed),
        on_step=lambda step, terms: last.update(terms),
    )
    kept = {name: last[name] for name in ("loss", "blank", "seen")}
    return recurrent.requires_grad_(False).eval(), kept


Lived = dict[int, list[tuple[Tensor, Tensor, dict[str, np.ndarray]]]]


def live(
    trained: Trained, model: JEPA, seeds: list[int], seed: int, **options: Any
) -> tuple[dict[str, Any], Lived]:
    """Episodes in Mode-2; a row of results, and what was encoded, done and true at each decision.

    Environments that have ended are told apart by their index, which is the seed's.
    """
    agent = replace(trained.in_mode(2), model=model)
    lived: Lived = {index: [] for index in range(len(seeds))}

    def keep(running: np.ndarray, observation: Any, info: Any, carried: Any) -> None:
        for row, index in enumerate(running):
            true = {name: value[row] for name, value in info["quantities"].items()}
            lived[index].append((carried.belief[row], carried.previous_action[row], true))

    env = trained.make_env(len(seeds), **options)
    controller = AgentController(agent, torch.Generator().manual_seed(seed))
    outcomes = run_episodes(env, controller, seeds, on_step=keep)
    env.close()
    decisions = float(np.mean([outcome.decisions for outcome in outcomes]))
    returns = float(np.mean([outcome.return_ for outcome in outcomes]))
    return {**summarise(outcomes), "return": returns, "decisions": decisions}, lived


@torch.no_grad()
def readout_errors(
    trained: Trained, recurrent: JEPA, blank: Blank, episodes: Lived
) -> dict[str, Any]:
    """Errors at blank decisions of what is read from the three beliefs, and with open eyes."""
    seen_blank = encoded_blank(recurrent, trained.spec)
    squared: dict[str, dict[str, list[Tensor]]] = {}
    names = [name for name in trained.readouts.sizes if trained.readouts.varies(name)]
    scale = dict(
        zip(
            trained.readouts.sizes,
            trained.readouts.std.split(list(trained.readouts.sizes.values())),
            strict=True,
        )
    )
    for steps in episodes.values():
        beliefs: dict[str, Tensor] = {}
        action: Tensor | None = None
        for time_, (clean, taken, true) in enumerate(steps):
            hidden = bool(blank.covers(np.array(time_)))
            encoded = (seen_blank if hidden else clean)[None]
            before = beliefs.get("belief")
            open_loop = clean[None]
            if hidden and action is not None:
                open_loop = recurrent.predict(beliefs["open loop"], action)
            beliefs = {
                "memoryless": encoded,
                "belief": recurrent.update(before, action, encoded),
                "open loop": open_loop,
                "not blank": clean[None],
            }
            action = taken[None]
            if not hidden:
                continue
            for kind, state in beliefs.items():
                read = trained.readouts(state)
                for name in names:
                    if name in true:
                        error = (read[name][0] - torch.as_tensor(true[name])) / scale[name]
                        found = error[scale[name] > 0].square().mean()
                        squared.setdefault(name, {}).setdefault(kind, []).append(found)
    return {
        name: {kind: float(torch.stack(errors).mean().sqrt()) for kind, errors in kinds.items()}
        for name, kinds in squared.items()
    }


if __name__ == "__main__":
    main()
