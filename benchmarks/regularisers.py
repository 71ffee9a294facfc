"""What keeps a latent from collapsing: VICReg, SIGReg, slow targets and nothing, on the same data.

    python benchmarks/regularisers.py --seeds 0 1 2                 # prediction and the arm alone
    python benchmarks/regularisers.py --seeds 0 1 2 --setting with  # with the config's other terms
    python benchmarks/regularisers.py --costs                       # CPU time per update, as ratios

Every arm is a training of `two-rooms` on data recorded once. An arm is a name and what it needs:
`vicreg` (the config's weights), `sigreg WEIGHT`, `slow DECAY` (targets from a moving average of the
encoder), `none`, `untrained` (the encoder stays as it is drawn). With `normalised` behind it states
go through a layer norm, as the targets of I-JEPA do.

Writes `benchmarks/results/regularisers.json` and prints its table. What is there is not done again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from random_layout import Results, held_out, linear, measured  # beside this file
from torch import Tensor

from forethought import call, load
from forethought.agent import wilson
from forethought.build import build_model
from forethought.collecting import collect_for, collected
from forethought.course import quantities_of
from forethought.envs import Dataset
from forethought.parser import parse, parser_of
from forethought.running import Trained
from forethought.training import train
from forethought.worldmodel import (
    Objective,
    SlowEncoder,
    encode_dataset,
    latent_std,
    train_joint,
)
from forethought.worldmodel.latents import to_tensor
from forethought.worldmodel.readouts import r_squared

RESULTS = Path(__file__).parent / "results" / "regularisers.json"
SETTINGS = {
    "alone": ["--losses.temporal_similarity=0", "--losses.inverse_dynamics=0"],
    "with": [],
}
ARMS = [
    "vicreg",
    "sigreg 0.09",
    "slow 0.996",
    "slow 0.996 normalised",
    "none",
    "none normalised",
    "untrained",
]
READOUTS = 400  # updates of the run's own readouts
LINEAR = 20_000  # states of the training data that the linear readout is fitted to
REPETITIONS, UPDATES = 10, 20  # of the measurement of costs
Row = dict[str, Any]


def main() -> None:
    """Run what is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the training")
    parser.add_argument("--setting", choices=sorted(SETTINGS), default="alone")
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--updates", type=int, default=500, help="in each of the two stages")
    parser.add_argument("--episodes", type=int, default=50, help="played with each model")
    parser.add_argument("--costs", action="store_true", help="measure updates instead")
    parser.add_argument("--runs", type=Path, default=Path("runs/regularisers"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(given.results, "costs", "rows")
    data = recorded(given.runs / "data")
    if given.costs:
        measure_costs(given.arms, data, results)
    else:
        for seed in given.seeds:
            for arm in given.arms:
                run_arm(arm, seed, given, data, results)
    print_table(results)


def recorded(data: Path) -> Path:
    """The data of all arms: what `two-rooms` collects."""
    given = parsed([])
    if not collected(data, given["collection"]):
        collect_for(data, given["env"], given["env_options"], given["collection"], 0)
    return data


def parsed(words: list[str]) -> Row:
    """The arguments of a training of `two-rooms` with these words."""
    arguments, _ = parse(parser_of(train, "train"), ["--config=two-rooms", *words])
    return arguments


def words_of(arm: str, setting: str) -> list[str]:
    """Command-line words of an arm."""
    kind, *rest = arm.split()
    words = [*SETTINGS[setting]]
    if kind != "vicreg":
        words += ["--losses.variance=0", "--losses.covariance=0"]
    if kind == "sigreg":
        words += [f"--losses.sigreg={float(rest[0])}"]
    elif kind == "slow":
        words += [f"--stages.joint.target_decay={float(rest[0])}"]
    elif kind not in ("vicreg", "none", "untrained"):
        raise ValueError(f"arm is {arm!r}: choose a name that begins like {', '.join(ARMS)}")
    if "normalised" in rest:
        words += ["--model.perception=ImagePerception", "--model.perception.normalise=true"]
        words += ["--model.predictor=ResidualMLP", "--model.predictor.normalise=true"]
    return words


def run_arm(arm: str, seed: int, given: argparse.Namespace, data: Path, results: Results) -> None:
    """Train, look and play, unless the row is there."""
    keys = {"setting": given.setting, "arm": arm, "seed": seed, "updates": given.updates}
    if results.has("rows", **keys):
        return
    run = given.runs / "-".join(f"{value}".replace(" ", "-") for value in keys.values())
    shutil.rmtree(run, ignore_errors=True)
    words = [f"--data={data}", f"--run={run}", f"--seed={seed}", "--threads=1", "--device=cpu"]
    joint = 0 if arm.startswith("untrained") else given.updates
    words += [f"--stages.joint.steps={joint}", f"--stages.predictor.steps={given.updates}"]
    words += [f"--stages.readouts.steps={READOUTS}"]
    call("train", ["--config=two-rooms", *words, *words_of(arm, given.setting)])
    trained = load(run, device="cpu")
    report = json.loads((run / "diagnostics.json").read_text())
    kept = ["latent_std", "effective_rank", "open_loop_ratio", "action_sensitivity"]
    kept += ["r2_position", "wall_violation_rate"]
    found = {name: report[name] for name in kept if name in report} | looked_at(trained, data)
    # A block of held-out episodes per training seed; block 0 served to find the config.
    played = measured(trained.play(given.episodes, seed=1 + seed))
    results.add("rows", {**keys, **found, **played})


@torch.no_grad()
def looked_at(trained: Trained, data: Path) -> Row:
    """What the diagnostics do not say of the latent.

    Smallest std of a dimension; mean std by the states' root mean square, which a layer norm holds
    at 1; R^2 of the position read linearly on held-out episodes. For that states are standardised,
    so that the readout does not mind how small they have become.
    """
    model, dataset = trained.agent.model, Dataset.open(data)
    states = encode_dataset(model, dataset).states
    observations, true = held_out(trained)
    asked = model.encode(to_tensor(observations, model.device))
    mean, std = states.mean(0), states.std(0)
    chosen = torch.as_tensor(np.random.default_rng(0).permutation(len(states))[:LINEAR])

    def standard(x: Tensor) -> Tensor:
        return (x - mean) / std.clamp_min(1e-12)

    position = quantities_of(dataset, model.device)["position"]
    told = linear(standard(states[chosen]), position[chosen], standard(asked))
    return {
        "smallest_std": float(std.min()),
        "std_by_size": latent_std(states) / float(states.square().mean().sqrt()),
        "r2_position_linear": r_squared(told, true["position"]),
    }


def measure_costs(arms: list[str], data: Path, results: Results) -> None:
    """CPU time of an update by that of VICReg, both measured in turn in this process."""
    dataset = Dataset.open(data)
    update = {arm: updater(words_of(arm, "alone"), dataset) for arm in arms if arm != "untrained"}
    ratios: dict[str, list[float]] = {arm: [] for arm in update}
    for repetition in range(REPETITIONS + 1):
        seconds = {}
        for arm in np.random.default_rng(repetition).permutation(list(update)):
            began = time.process_time()
            update[arm]()
            seconds[arm] = time.process_time() - began
        if repetition:  # the first one warms up
            for arm, values in ratios.items():
                values.append(seconds[arm] / seconds["vicreg"])
    for arm, values in ratios.items():
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        ratio = {"ratio": float(middle), "quartile_low": float(low), "quartile_high": float(high)}
        how = {"repetitions": REPETITIONS, "updates": UPDATES, "ms": 1e3 * seconds[arm] / UPDATES}
        results.add("costs", {"arm": arm, **ratio, **how})


def updater(words: list[str], dataset: Dataset) -> Callable[[], None]:
    """A few updates of the joint stage, each call of it going on from the one before."""
    given = parsed([*words, f"--stages.joint.steps={UPDATES}"])
    stage = given["stages"].joint
    model = build_model(given["model"], dataset.spec, torch.device("cpu"), 0)
    slow = None if stage.target_decay is None else SlowEncoder(model.perception)
    directions, windows = torch.Generator().manual_seed(0), np.random.default_rng(0)
    heads = Objective(given["losses"], model.latent_dim, model.actions, directions, slow=slow)
    return lambda: train_joint(model, heads, dataset, stage, windows, standardise=False)


def print_table(results: Results) -> None:
    """One line per setting and arm: means over seeds with their range, success over episodes."""
    names = ("smallest_std", "latent_std", "effective_rank", "r2_position", "r2_position_linear")
    print("| setting | arm | seeds | " + " | ".join(names) + " | success | seconds per update |")
    print("|---" * (len(names) + 5) + "|")
    ratios = {row["arm"]: row for row in results.content["costs"]}
    rows = results.content["rows"]
    for setting, arm in dict.fromkeys((row["setting"], row["arm"]) for row in rows):
        found = [row for row in rows if (row["setting"], row["arm"]) == (setting, arm)]
        cells = [setting, arm, ", ".join(str(row["seed"]) for row in found)]
        for name in names:
            values = [row[name] for row in found]
            mean = statistics.mean(values)
            cells.append(f"{mean:.3g} ({min(values):.3g} to {max(values):.3g})")
        successes, episodes = (sum(row[key] for row in found) for key in ("successes", "episodes"))
        low, high = wilson(successes, episodes)
        cells.append(f"{successes / episodes:.0%} ({low:.0%} to {high:.0%}) of {episodes}")
        cells.append(f"{ratios[arm]['ratio']:.2f}" if arm in ratios else "")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
