"""The verbs `collect` and `train`: from an environment to a world model in a run folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor

from forethought import envs, pictures
from forethought.agent import Cost, IntrinsicCost, violation_rate
from forethought.build import (
    Collection,
    Model,
    Stages,
    build_model,
    build_readouts,
    device_of,
)
from forethought.envs import HELD_OUT_SEED, Dataset
from forethought.planners import Gradient, Planner
from forethought.run_folder import Metrics, RunFolder
from forethought.worldmodel import (
    JEPA,
    LatentData,
    Losses,
    Objective,
    Readouts,
    diagnose,
    encode_dataset,
    save_checkpoint,
    train_joint,
    train_predictor,
)

logger = logging.getLogger(__name__)

OnStep = Callable[[int, dict[str, float]], None]


def set_threads(threads: int | None) -> None:
    """Let PyTorch use this many CPU threads; None leaves its own choice."""
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads is {threads}: choose 1 or more")
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Bar:
    """A progress bar: `to` says how much is done in all, `by` how much more."""

    progress: Progress
    task: TaskID

    def to(self, done: int) -> None:
        """So much is done in all."""
        self.progress.update(self.task, completed=done)

    def by(self, more: int) -> None:
        """So much more is done."""
        self.progress.advance(self.task, more)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Bar]:
    """A progress bar in the terminal."""
    columns = (TextColumn("{task.description:<22}"), BarColumn(), TextColumn("{task.completed}"))
    with Progress(*columns, TimeElapsedColumn()) as progress:
        yield Bar(progress, progress.add_task(title, total=total))


def collect(
    data: Path,
    *,
    env: str = "forethought/TwoRooms-v0",
    env_options: dict[str, Any] | None = None,
    collection: Collection = Collection(),  # noqa: B008 - frozen
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
) -> int:
    """Collect episodes into a data set; an existing one is appended to.

    Args:
        data: folder of the data set.
        env: Gymnasium id of the environment.
        env_options: options of the environment.
        collection: how much, how wide, by which behaviour policy.
        seed: seed of the behaviour policy; episodes have the seeds that follow those stored.
        device: as for the other verbs; behaviour policies and environments run on the CPU.
        threads: as for the other verbs.

    Returns:
        Number of environment steps collected.
    """
    set_threads(threads)
    device_of(device)
    before = Dataset.open(data) if (data / "index.json").exists() else None
    first = int(before.arrays("seed").max()) + 1 if before is not None else 0
    vector_env = envs.make(env, collection.num_envs, **(env_options or {}))
    with progress_bar("collect episodes", collection.episodes) as bar:
        envs.collect_to(
            data,
            vector_env,
            collection.policy,
            collection.episodes,
            first_seed=first,
            generator=np.random.default_rng([seed, first]),
            on_progress=bar.to,
        )
    return Dataset.open(data).steps - (before.steps if before is not None else 0)


def train(
    *,
    resolved: str,
    run: Path = Path("runs/run"),
    env: str = "forethought/TwoRooms-v0",
    env_options: dict[str, Any] | None = None,
    collection: Collection = Collection(),  # noqa: B008 - frozen
    data: Path | None = None,
    model: Model = Model(),  # noqa: B008 - frozen
    losses: Losses = Losses(),  # noqa: B008 - frozen
    stages: Stages = Stages(),  # noqa: B008 - frozen
    cost: Cost = Cost(),  # noqa: B008 - frozen
    planner: Planner = Gradient(),  # noqa: B008 - frozen
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
) -> RunFolder:
    """Train a world model into a run folder.

    Args:
        resolved: this call as YAML, kept with the run; the command line writes it.
        run: run folder to make.
        env: Gymnasium id of the environment.
        env_options: options of the environment, for training and evaluation.
        collection: what is collected where `data` is not given.
        data: folder of a data set; without it, data are collected into the run folder.
        model: perception and predictor.
        losses: weights of the joint stage's loss terms.
        stages: lengths and rates of the training stages.
        cost: what the agent will minimise; not used in training.
        planner: how the agent will plan; not used in training.
        seed: seed of everything.
        device: `auto`, `cpu`, `cuda` or `mps`.
        threads: CPU threads of PyTorch; by default its own choice.

    Returns:
        The run folder.
    """
    set_threads(threads)
    where = device_of(device)
    held = open_data(data, env, env_options) if data is not None else None
    # Made before the folder, so that what does not fit leaves nothing behind.
    spec = held.spec if held is not None else envs.spec_of(envs.make(env, **(env_options or {})))
    jepa = build_model(model, spec, where, seed)
    folder = RunFolder.create(run, resolved, seed)
    if held is None:
        collect(folder.data, env=env, env_options=env_options, collection=collection, seed=seed)
        held = Dataset.open(folder.data)
    for unroll in (stages.joint.unroll, stages.predictor.unroll):
        held.windows(unroll)  # raises now, not after the first stage, if no episode is that long
    began = time.perf_counter()
    generators = [torch.Generator().manual_seed(seed * 1000 + i) for i in range(4)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        objective = Objective(losses, jepa.latent_dim, jepa.action_dim, generators[0]).to(where)
    with Metrics(folder) as metrics:
        joint = stages.joint
        with _stage(metrics, "joint", joint.steps) as on_step:
            rng = np.random.default_rng([seed, 1])
            train_joint(jepa, objective, held, joint, rng, on_step)
        latents = encode_dataset(jepa, held)
        if stages.predictor.steps:
            with _stage(metrics, "predictor", stages.predictor.steps) as on_step:
                train_predictor(jepa, latents, stages.predictor, generators[1], on_step)
        quantities = quantities_of(held, where)
        sizes = {name: value.shape[1] for name, value in quantities.items()}
        readouts = build_readouts(jepa, sizes, seed)
        if sizes:
            readouts.fit(latents.states, quantities, generators[2])
        seconds = time.perf_counter() - began
        meta = {
            "env": held.spec.to_json(),
            "seed": seed,
            "readouts": sizes,
            "intrinsic_cost": IntrinsicCost().fingerprint(),
        }
        save_checkpoint(folder.model, {"model": jepa, "readouts": readouts}, meta)
        spent = {"environment_steps": held.steps, "train_seconds": seconds}
        folder.write_json("training.json", spent)
        horizon = min(24, int(latents.remaining.max()))
        report = diagnose(jepa, latents, readouts, quantities, horizon, generators[3])
        report |= wall_violations(jepa, readouts, held.spec.id, latents, quantities)
        metrics.log("diagnostics", joint.steps + stages.predictor.steps, report)
    folder.write_json("diagnostics.json", report)
    pictures.training_curves(folder.path / "metrics.jsonl", folder.path / "training.png")
    return folder


def open_data(data: Path, env: str, env_options: dict[str, Any] | None) -> Dataset:
    """Open a data set to train on.

    Raises:
        ValueError: it comes from another environment, or from held-out episodes.
    """
    held = Dataset.open(data)
    options = dict(env_options or {})
    if held.spec.id != env.rpartition(":")[2] or dict(held.spec.options) != options:
        raise ValueError(
            f"data set {data} holds {held.spec.id} with options {dict(held.spec.options)}, but env "
            f"is {env} with options {options}: give the data's own --env and --env-options"
        )
    if int(held.arrays("seed").max()) >= HELD_OUT_SEED:
        raise ValueError(
            f"data set {data} holds episodes with seeds of {HELD_OUT_SEED} and above, which are "
            "held out for evaluation: collect other episodes"
        )
    return held


@contextmanager
def _stage(metrics: Metrics, name: str, steps: int) -> Iterator[OnStep]:
    """Log a training stage, with a progress bar."""
    with progress_bar(f"train: {name}", steps) as bar:

        def on_step(step: int, values: dict[str, float]) -> None:
            metrics.log(name, step, values)
            bar.to(step)

        yield on_step


def quantities_of(dataset: Dataset, device: torch.device) -> dict[str, Tensor]:
    """Named quantities that a state could tell, `(N, n)`; the goal's own are left out."""
    return {
        name: torch.as_tensor(np.array(dataset.arrays(f"quantities.{name}")), device=device)
        for name in dataset.quantity_names
        if not name.startswith("goal")
    }


@torch.no_grad()
def wall_violations(
    jepa: JEPA,
    readouts: Readouts,
    env_id: str,
    data: LatentData,
    quantities: dict[str, Tensor],
    *,
    steps: int = 12,
    samples: int = 512,
) -> dict[str, float]:
    """Two-Rooms: how often the model imagines a way through the wall.

    From states beside the wall and away from the door, the action that drives straight into it is
    repeated; losses and probes do not show whether the wall holds. Empty for other environments.
    """
    rooms = envs.GEOMETRIES.get(env_id)
    if rooms is None:
        return {}
    position, wall, door = (quantities[name] for name in ("position", "wall", "door"))
    across = wall[:, 0] - position[:, 0]
    beside = across.abs() < rooms.wall_half_thickness + 3 * rooms.max_step
    away = (position[:, 1] - door[:, 0]).abs() > rooms.door_half_height + rooms.max_step
    index = (beside & away).nonzero().squeeze(1)[:: max(1, int((beside & away).sum()) // samples)]
    if not len(index):
        return {}
    action = torch.stack((across[index].sign(), torch.zeros_like(across[index])), -1)
    imagined = jepa.rollout(
        data.states[index], action[:, None].expand(-1, steps, -1).to(data.states)
    )
    path = readouts(imagined)["position"].cpu().numpy()  # (N, steps, 2)
    walls, doors = wall[index].cpu().numpy(), door[index].cpu().numpy()

    def crosses(start: np.ndarray, end: np.ndarray) -> np.ndarray:
        through = envs.crosses_wall(rooms, walls, doors, start, end)
        far = np.sign(walls[:, 0] - end[:, 0]) != np.sign(across[index].cpu().numpy())
        return np.asarray(through & far)

    start = readouts(data.states[index])["position"].cpu().numpy()[:, None]
    return {"wall_violation_rate": violation_rate(np.concatenate((start, path), 1), crosses)}
