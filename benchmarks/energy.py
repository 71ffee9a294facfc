"""Energy-based predictors on latents of a trained run: the four facets, and whether thinking helps.

    python benchmarks/energy.py cartpole-swingup
    python benchmarks/energy.py two-rooms

Observations of fresh episodes are encoded by the run's encoder. Each arm learns s' from (s, a), one
step, on the same transitions: an energy-based predictor in several trainings, an MLP of as many
parameters, one of as many multiplications as the training's descent, the same descent without an
energy (`iterated`: y <- y + f(s, a, y)), and what copying gives. Tested are transitions of other
episodes, in terciles of a difficulty that no model has a say in (how far the nearest transition of
the training data misses), and two groups that the training data hold nothing of: states beyond a
quantile of their first principal component, and actions beyond a quantile of their largest entry.

Errors are mean squared, divided by that of copying the state over all transitions tested within
the data. Seeds differ in weights and batches, not in data.

Writes `benchmarks/results/energy_RUN.json` and, with `--plot`, a picture of the facets.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forethought import load
from forethought.envs import collect
from forethought.run_folder import commit
from forethought.running import Trained
from forethought.worldmodel import (
    EnergyMLP,
    EnergyPredictor,
    Predictor,
    Refinement,
    ResidualMLP,
    fit,
    mlp,
)
from forethought.worldmodel.latents import to_tensor
from forethought.worldmodel.predictors import Context

RESULTS = Path(__file__).parent / "results"
WIDTH = 128
SHOWN = 16  # steps of the descent whose errors are told
RANDOM = Refinement(steps=4, fewest=1, rate_spread=2.0)
NOISE = replace(RANDOM, start="noise", langevin=0.02)
TRAININGS: dict[str, tuple[str, Refinement]] = {
    "squares": ("squares", Refinement(steps=3)),
    "squares, random": ("squares", RANDOM),
    "squares, random, from a proposal": ("squares", replace(RANDOM, start="proposal")),
    "squares, random, from noise": ("squares", NOISE),
    "bowl, random": ("bowl", RANDOM),
    "bowl, random, from noise": ("bowl", NOISE),
    "scalar, random": ("scalar", RANDOM),
}
DRAWN = "squares, random"
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Transitions:
    """Steps of latents.

    Args:
        state: `(N, D)`.
        action: `(N, A)`.
        after: `(N, D)`.
    """

    state: Tensor
    action: Tensor
    after: Tensor

    def __len__(self) -> int:
        return len(self.state)

    def rows(self, index: Tensor) -> Transitions:
        """The transitions `index`."""
        return Transitions(self.state[index], self.action[index], self.after[index])


class Iterated(Predictor):
    """The descent without an energy: y <- y + f(s, a, y), so many times.

    Args:
        state_dim: size D of the state.
        action_dim: size A of the action.
        hidden: width of f.
        steps: how many times.
    """

    def __init__(self, state_dim: int, action_dim: int, hidden: int, steps: int) -> None:
        super().__init__()
        self.action_dim, self.steps = action_dim, steps
        self.layers = mlp(2 * state_dim + action_dim, [hidden] * 2, state_dim)

    def forward(
        self,
        state: Tensor,
        action: Tensor,
        latent: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """See `Predictor.forward`."""
        y = state
        for _ in range(self.steps):
            y = y + self.layers(torch.cat((state, action, y), -1))
        return y


def main() -> None:
    """Collect, train every arm with every seed, and write rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="run folder, or the name of a packaged run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--transitions", type=int, default=24_000, help="to collect")
    parser.add_argument("--arms", nargs="+", default=None, help="only these")
    parser.add_argument("--plot", type=Path, help="picture of the facets, of the first seed")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    trained = load(given.run, device="cpu")
    learned, groups = split(transitions(trained, given.transitions))
    sizes = {name: len(group) for name, group in groups.items()}
    print(json.dumps({"trained on": len(learned), "tested on": sizes}), flush=True)
    given.results.mkdir(parents=True, exist_ok=True)
    path = given.results / f"energy_{Path(given.run).name}.json"
    content: dict[str, Any] = {
        "command": "python benchmarks/energy.py " + " ".join(sys.argv[1:]),
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, "
        "threads 1",
        "trained_on": len(learned),
        "tested_on": sizes,
        "rows": [],
    }

    def told(row: Row) -> None:
        print(json.dumps({k: v for k, v in row.items() if k in ("arm", "seed", "error")}))
        content["rows"].append(row)
        path.write_text(json.dumps(rounded(content)) + "\n")

    members, drawn = list[Predictor](), None
    makers = arms(learned.state.shape[1], learned.action.shape[1])
    for seed, name in itertools.product(given.seeds, given.arms or makers):
        torch.manual_seed(seed)
        model = makers[name]()
        seconds = train(model, learned, given.updates, given.batch, seed)
        row = {"arm": name, "seed": seed, "train_milliseconds_per_update": seconds * 1e3}
        told(row | judged(model, groups))
        if name == "MLP, equal parameters":
            members.append(model)
        if drawn is None and name == DRAWN:
            drawn = model
    if len(members) > 1:
        told({"arm": "disagreement of MLPs", **disagreement(members, groups)})
    if given.plot is not None and isinstance(drawn, EnergyPredictor):
        draw(drawn, groups, content["rows"], given.plot)


def rounded(value: Any) -> Any:
    """Five digits of every number, which is more than seeds agree on."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


# --- data


@torch.no_grad()
def transitions(trained: Trained, count: int) -> tuple[Transitions, Tensor]:
    """Fresh transitions by the run's own behaviour policy, and the episode of each, `(N,)`."""
    collection, model = trained.arguments["collection"], trained.agent.model
    env, parts, number = trained.make_env(16), list[Transitions](), list[Tensor]()
    collected, episode = 0, 0
    policy = collection.policy
    while collected < count:
        for one in collect(
            env,
            policy,
            16,
            first_seed=500_000 + episode,
            generator=np.random.default_rng([7, episode]),
            length=collection.length,
        ):
            states = model.encode(to_tensor(one.observations, model.device))
            actions = torch.as_tensor(one.actions)
            if model.actions.discrete:
                actions = actions.squeeze(-1)
            parts.append(Transitions(states[:-1], model.actions(actions), states[1:]))
            number.append(torch.full((len(actions),), episode))
            collected, episode = collected + len(actions), episode + 1
    env.close()
    state, action, after = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("state", "action", "after")
    )
    return Transitions(state, action, after), torch.cat(number)


def split(found: tuple[Transitions, Tensor]) -> tuple[Transitions, dict[str, Transitions]]:
    """What is learned from, and the groups that are tested, at most 2000 of each."""
    every, episode = found
    centred = every.state - every.state.mean(0)
    direction = torch.linalg.eigh(centred.T @ centred)[1][:, -1]
    place, size = centred @ direction, every.action.abs().amax(1)
    far, strong = place > place.quantile(0.8), size > size.quantile(0.8)
    within, tested = ~far & ~strong, episode % 4 == 3
    learned = every.rows(within & ~tested)
    same = every.rows((within & tested).nonzero().squeeze(1)[:6000])
    order = difficulty(learned, same).argsort()
    easy, medium, hard = order.tensor_split(3)
    return learned, {
        "easy": same.rows(easy),
        "medium": same.rows(medium),
        "hard": same.rows(hard),
        "unseen states": every.rows((far & ~strong & tested).nonzero().squeeze(1)[:2000]),
        "unseen actions": every.rows((~far & strong & tested).nonzero().squeeze(1)[:2000]),
    }


def difficulty(known: Transitions, asked: Transitions) -> Tensor:
    """Squared error `(N,)` of the change of state that the nearest known transition made."""
    scale = known.state.std(0).clamp_min(1e-6), known.action.std(0).clamp_min(1e-6)
    keys = torch.cat((known.state / scale[0], known.action / scale[1]), 1)
    queries = torch.cat((asked.state / scale[0], asked.action / scale[1]), 1)
    nearest = torch.cat([torch.cdist(part, keys).argmin(1) for part in queries.split(256)])
    change = (known.after - known.state)[nearest]
    return (asked.state + change - asked.after).square().mean(1)


# --- arms


def arms(state_dim: int, action_dim: int) -> dict[str, Callable[[], Predictor]]:
    """What is compared; `squares` sets the size of the controls."""

    def descent(head: Any, refinement: Refinement) -> Predictor:
        return EnergyMLP(state_dim, action_dim, head=head, refinement=refinement, hidden=WIDTH)

    def plain(width: int) -> Predictor:
        return ResidualMLP(state_dim, action_dim, hidden=width)

    steps = TRAININGS["squares"][1].steps
    base = descent(*TRAININGS["squares"])
    wanted = operations(base, steps)
    equal = closest(lambda width: parameters(plain(width)), parameters(base))
    wide = closest(lambda width: operations(plain(width), 1), wanted)
    made: dict[str, Callable[[], Predictor]] = {
        "MLP, equal parameters": lambda: plain(equal),
        "MLP, equal operations": lambda: plain(wide),
        "iterated": lambda: Iterated(state_dim, action_dim, WIDTH, steps),
    }
    for name, training in TRAININGS.items():
        made[name] = lambda training=training: descent(*training)  # type: ignore[misc]
    return made


def parameters(model: nn.Module) -> int:
    """Trained numbers."""
    return sum(p.numel() for p in model.parameters())


def operations(model: nn.Module, steps: int) -> int:
    """Multiplications of a prediction with so many steps.

    A slope takes each matrix that y comes through twice: there, and back.
    """
    sizes = {
        name: layer.weight.numel()
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    }
    if not isinstance(model, EnergyMLP):
        return steps * sum(sizes.values())
    once = sum(size for name, size in sizes.items() if name.startswith(("told", "proposal")))
    return once + 2 * steps * (sum(sizes.values()) - once)


def closest(measure: Callable[[int], int], wanted: int) -> int:
    """The width whose measure is the closest one."""
    return min(range(16, 1025, 4), key=lambda width: abs(measure(width) - wanted))


def train(model: Predictor, data: Transitions, updates: int, batch: int, seed: int) -> float:
    """Learn; seconds per update."""
    generator = torch.Generator().manual_seed(seed)
    scale = (data.after - data.state).square().mean()

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        chosen = data.rows(torch.randint(len(data), (batch,), generator=generator))
        error = (model(chosen.state, chosen.action) - chosen.after).square().mean() / scale
        return error, {"prediction": error}

    model.train()
    began = time.perf_counter()
    fit(model.parameters(), loss, steps=updates, learning_rate=1e-3)
    model.eval().requires_grad_(False)
    return (time.perf_counter() - began) / updates


# --- measures


@torch.no_grad()
def judged(model: Predictor, groups: Mapping[str, Transitions]) -> Row:
    """Everything that is told of one model."""
    same = joined([groups[name] for name in ("easy", "medium", "hard")])
    unit = (same.after - same.state).square().mean()
    row: Row = {"parameters": parameters(model), "copying": {}, "error": {}}
    for name, group in groups.items():
        row["copying"][name] = float((group.state - group.after).square().mean() / unit)
        row["error"][name] = float(error_of(model, group).mean() / unit)
    if not isinstance(model, EnergyPredictor):
        row["operations"] = operations(model, getattr(model, "steps", 1))
        return row
    row["operations_in_training"] = operations(model, model.refinement.steps)
    row["rate"] = float(model.rate)
    row["error_by_steps"], row["steps"], thoughts = {}, {}, {}
    kept = model.refinement
    model.refinement = replace(kept, most=SHOWN, tolerance=0.0, halvings=SHOWN)
    for name, group in groups.items():
        path = model.think(group.state, group.action).path
        errors = [(y - group.after).square().mean() / unit for y in path]
        errors += errors[-1:] * (SHOWN + 1 - len(errors))
        row["error_by_steps"][name] = [float(error) for error in errors]
    model.refinement = kept
    for name, group in groups.items():
        thoughts[name] = model.think(group.state, group.action)
        taken = thoughts[name].steps
        row["steps"][name] = {
            "mean": float(taken.float().mean()),
            "refused": float(thoughts[name].refused.float().mean()),
            "histogram": torch.bincount(taken, minlength=kept.most + 1).tolist(),
        }
        row["monotone"] = row.get("monotone", True) and bool(
            (thoughts[name].trace.diff(dim=0) <= 0).all()
        )
    energies = {name: thought.energy for name, thought in thoughts.items()}
    row["uncertainty"] = uncertainty(model, groups, energies)
    row["internal"] = internal(model, same)
    row["evaluation"] = evaluation(model, same, unit)
    row["best_of_8"] = best_of(model, groups, unit, 8)
    return row


def joined(groups: list[Transitions]) -> Transitions:
    """All of them."""
    return Transitions(
        *(torch.cat([getattr(g, name) for g in groups]) for name in ("state", "action", "after"))
    )


def error_of(model: Predictor, group: Transitions) -> Tensor:
    """Mean squared errors `(N,)`."""
    return (model(group.state, group.action) - group.after).square().mean(1)


def uncertainty(
    model: Predictor, groups: Mapping[str, Transitions], signal: Mapping[str, Tensor]
) -> Row:
    """How well a signal ranks the errors, and tells what is out of the data from what is not."""
    errors = {name: error_of(model, group) for name, group in groups.items()}
    same = ["easy", "medium", "hard"]
    there = torch.cat([signal[name] for name in same])
    return {
        "rank_correlation_within": rank_correlation(
            there, torch.cat([errors[name] for name in same])
        ),
        "rank_correlation_all": rank_correlation(
            torch.cat([signal[name] for name in groups]), torch.cat([*errors.values()])
        ),
        "area_unseen_states": area(signal["unseen states"], there),
        "area_unseen_actions": area(signal["unseen actions"], there),
    }


def disagreement(members: list[Predictor], groups: Mapping[str, Transitions]) -> Row:
    """The same of the spread of several predictors, judged by the first one's errors."""
    spread = {}
    with torch.no_grad():
        for name, group in groups.items():
            told = torch.stack([model(group.state, group.action) for model in members])
            spread[name] = told.var(0).mean(1)
        return {"uncertainty": uncertainty(members[0], groups, spread)}


def internal(model: EnergyPredictor, data: Transitions) -> Row:
    """R^2 of the true change of state, told linearly from the features, as the prediction changes.

    At the start the features know state and action alone; that is the control.
    """
    path = model.think(data.state, data.action).path
    change = data.after - data.state
    half = torch.arange(len(data)) % 2 == 0
    found = {}
    for name, y in (("start", path[0]), ("one step", path[1]), ("end", path[-1])):
        features = model.internal(data.state, data.action, y)
        x = torch.cat((features, torch.ones(len(features), 1)), 1).double()
        gram = x[half].T @ x[half] + 1e-3 * torch.eye(x.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(gram, x[half].T @ change[half].double())
        left = (x[~half] @ weights - change[~half]).square().mean()
        found[name] = float(1 - left / change[~half].var(0, correction=0).mean())
    moved = model.internal(data.state, data.action, path[-1])
    still = model.internal(data.state, data.action, path[0])
    found["moved"] = float((moved - still).square().mean() / still.var(0).mean())
    return found


def evaluation(model: EnergyPredictor, data: Transitions, unit: Tensor) -> Row:
    """Whether the energy tells a good next state from a bad one, of the same state and action."""
    generator = torch.Generator().manual_seed(3)
    scale = unit.sqrt()

    def noise() -> Tensor:
        return scale * torch.randn(data.state.shape, generator=generator)

    at = model.think(data.state, data.action)
    worse = [
        model.energy(data.state, data.action, at.prediction + 0.5 * noise()) > at.energy
        for _ in range(4)
    ]
    energies, errors = [], []
    for size in torch.logspace(-1.5, 0.5, 16):
        y = data.after + size * noise()
        energies.append(model.energy(data.state, data.action, y))
        errors.append((y - data.after).square().mean(1))
    ranks = [torch.stack(x).argsort(0).argsort(0).double() for x in (energies, errors)]
    ranks = [x - x.mean(0) for x in ranks]
    correlation = (ranks[0] * ranks[1]).sum(0) / ranks[0].square().sum(0)
    return {
        "perturbed_is_higher": float(torch.stack(worse).float().mean()),
        "rank_correlation_of_candidates": float(correlation.mean()),
    }


def best_of(
    model: EnergyPredictor, groups: Mapping[str, Transitions], unit: Tensor, count: int
) -> Row:
    """Errors of one of several starts, of the one of lowest energy, and of their mean."""
    generator, found = torch.Generator().manual_seed(4), {}
    for name, group in groups.items():
        told, energies = [], []
        for _ in range(count):
            if model.refinement.start == "noise":
                start = torch.randn(group.state.shape, generator=generator)
            else:
                begun = model.think(group.state, group.action).path[0]
                start = begun + unit.sqrt() * torch.randn(begun.shape, generator=generator)
            thought = model.think(group.state, group.action, start=start)
            told.append(thought.prediction)
            energies.append(thought.energy)
        every, rows = torch.stack(told), torch.arange(len(group))
        best = every[torch.stack(energies).argmin(0), rows]

        def error(y: Tensor, after: Tensor = group.after) -> float:
            return float((y - after).square().mean() / unit)

        found[name] = {"one": error(every[0]), "best": error(best), "mean": error(every.mean(0))}
    return found


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's."""
    ranks = torch.stack([x.argsort().argsort().double() for x in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])


def area(above: Tensor, below: Tensor) -> float:
    """Chance that a signal from the first group is higher than one of the second (ROC area)."""
    ranks = torch.cat((above, below)).argsort().argsort()[: len(above)].double() + 1
    count = len(above) * len(below)
    return float((ranks.sum() - len(above) * (len(above) + 1) / 2) / count)


# --- picture


@torch.no_grad()
def draw(
    model: EnergyPredictor, groups: Mapping[str, Transitions], rows: list[Row], path: Path
) -> None:
    """The facets of one model, side by side, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    row = next(row for row in rows if row["arm"] == DRAWN)
    figure, axes = plt.subplots(1, 5, figsize=(22, 4))
    names = ["start", "one step", "end"]
    axes[0].bar(names, [row["internal"][name] for name in names], color="0.5")
    axes[0].set(title="internal state", ylabel="R² of the change, told from the features")
    group = groups["medium"]
    along = torch.linspace(-2, 2, 41)
    at = model.think(group.state[:8], group.action[:8]).prediction
    away = group.after.std() * torch.nn.functional.normalize(torch.randn_like(at), dim=1)
    for one in range(8):
        y = at[one] + along.unsqueeze(1) * away[one]
        energies = model.energy(
            group.state[one].expand(41, -1), group.action[one].expand(41, -1), y
        )
        axes[1].plot(along, energies - energies.min(), linewidth=1)
    axes[1].set(title="evaluation", xlabel="away from the prediction", ylabel="energy")
    for name in groups:
        axes[2].plot(row["steps"][name]["histogram"], label=name)
        axes[4].plot(row["error_by_steps"][name], label=name)
    axes[2].set(title="steps taken", xlabel="steps", ylabel="predictions")
    for name, group in groups.items():
        energy = model.think(group.state, group.action).energy
        axes[3].scatter(energy, error_of(model, group), s=2, label=name)
    axes[3].set(title="uncertainty", xlabel="energy", ylabel="error", xscale="log", yscale="log")
    axes[4].set(title="error by steps", xlabel="steps", yscale="log")
    for axis in axes[2:]:
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
