"""The verbs `collect` and `train`: from an environment to a world model in a run folder."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium.spaces import Discrete
from torch import Tensor

from forethought import envs, pictures
from forethought.agent import (
    REACH,
    Agent,
    Cost,
    Distillation,
    Task,
    gradient_agreement,
    task_from_reward,
    violation_rate,
)
from forethought.build import (
    Collection,
    Model,
    Round,
    Stages,
    build_agent,
    build_model,
    device_of,
)
from forethought.course import Course, Plan, environment_steps, progress_bar, quantities_of
from forethought.envs import HELD_OUT_SEED, Dataset, EnvSpec
from forethought.envs.resumable import COLLECTING
from forethought.envs.shard import replace_file
from forethought.parser import refuse_strangers
from forethought.planners import Gradient, Planner
from forethought.run_folder import Metrics, RunFolder
from forethought.tasks import read_task, task_for, task_yaml
from forethought.worldmodel import JEPA, LatentData, Losses, Readouts, diagnose, ranks

logger = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16"]

UNTIL = "collecting_until.json"


def set_threads(threads: int | None) -> None:
    """Let PyTorch use this many CPU threads; None leaves its own choice."""
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads is {threads}: choose 1 or more")
        torch.set_num_threads(threads)


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

    After a kill, the same call goes on to where the first one was to end.

    Args:
        data: folder of the data set.
        env: environment id, of Gymnasium or `dm_control/DOMAIN-TASK`.
        env_options: options of the environment.
        collection: how much, how wide, by which behaviour policy.
        seed: seed of the behaviour policy; episodes have the seeds that follow those stored.
        device: as for the other verbs; behaviour policies and environments run on the CPU.
        threads: as for the other verbs.

    Returns:
        Number of environment steps in the data set.
    """
    set_threads(threads)
    device_of(device)
    begun = _begun(data, collection, seed)
    if collection.episodes is not None:
        _collect_episodes(data, env, env_options, collection, collection.episodes, seed)
    else:
        begin = _decisions(data) if begun is None else begun
        note = {"begin": begin, **_described(collection, seed)}
        there = data.exists()
        data.mkdir(parents=True, exist_ok=True)
        replace_file(data / UNTIL, json.dumps(note, indent=1).encode())
        total = begin + collection.decisions
        try:
            _collect_decisions(data, env, env_options, collection, total, seed)
        except ValueError:  # what does not fit leaves nothing behind
            if begun is None and _decisions(data) == begin:
                (data / UNTIL).unlink()
                if not there:
                    with suppress(OSError):
                        data.rmdir()
            raise
    for name in (COLLECTING, UNTIL):
        (data / name).unlink(missing_ok=True)
    return environment_steps(Dataset.open(data))


def _described(collection: Collection, seed: int) -> dict[str, Any]:
    """What decides which data are collected, besides the environment."""
    asked = asdict(replace(collection, workers=1)) | {"policy": repr(collection.policy)}
    return {**asked, "seed": seed}


def _begun(data: Path, collection: Collection, seed: int) -> int | None:
    """Decisions that were there when this collection began, if a kill has cut it; else None.

    Raises:
        ValueError: the one that was cut is another one, or its note is damaged.
    """
    remedy = f"delete {UNTIL} and {COLLECTING} in {data} to leave it unfinished"
    try:
        note = json.loads((data / UNTIL).read_text())
        begin = int(note.pop("begin"))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{data / UNTIL} is damaged ({error}): {remedy}") from error
    asked = _described(collection, seed)
    if note == asked:
        return begin
    if _decisions(data) == begin:  # nothing of it is there
        return None
    changed = [f"{k} was {note.get(k)}, is {asked[k]}" for k in asked if note.get(k) != asked[k]]
    raise ValueError(
        f"a collection in {data} was interrupted, and this is another one ({'; '.join(changed)}): "
        f"repeat the one that was begun, or {remedy}"
    )


def _collect_decisions(
    data: Path,
    env: str,
    env_options: dict[str, Any] | None,
    collection: Collection,
    total: int,
    seed: int,
) -> None:
    """Collect episodes until the data set holds `total` decisions."""
    while (missing := total - _decisions(data)) > 0:
        begun = envs.unfinished_episodes(data)
        length = _episode_length(data, env, env_options, collection)
        episodes = begun or max(1, round(missing / length))
        _collect_episodes(data, env, env_options, collection, episodes, seed)


def _collect_episodes(
    data: Path,
    env: str,
    env_options: dict[str, Any] | None,
    collection: Collection,
    episodes: int,
    seed: int,
) -> None:
    with progress_bar("collect episodes", episodes) as bar:
        envs.collect_to(
            data,
            env,
            collection.policy,
            episodes,
            options=env_options,
            seed=seed,
            num_envs=collection.num_envs,
            workers=collection.workers,
            length=collection.length,
            on_progress=bar.to,
        )


def _decisions(data: Path) -> int:
    """Decisions that a data set holds, 0 where there is none yet."""
    return Dataset.open(data).steps if (data / "index.json").exists() else 0


def _episode_length(
    data: Path, env: str, env_options: dict[str, Any] | None, collection: Collection
) -> float:
    """Decisions of an episode: those seen on average, or at most."""
    if (data / "index.json").exists():
        held = Dataset.open(data)
        return held.steps / held.episodes
    limit = _spec_of(env, env_options).episode_limit
    return min(limit, collection.length or limit)


def train(
    *,
    resolved: str,
    run: Path = Path("runs/run"),
    env: str | None = None,
    env_options: dict[str, Any] | None = None,
    task: str | None = None,
    collection: Collection = Collection(),  # noqa: B008 - frozen
    data: Path | None = None,
    model: Model = Model(),  # noqa: B008 - frozen
    losses: Losses = Losses(),  # noqa: B008 - frozen
    stages: Stages = Stages(),  # noqa: B008 - frozen
    rounds: int = 0,
    round: Round = Round(),  # noqa: B008 - frozen; the option's name
    cost: Cost = Cost(),  # noqa: B008 - frozen
    planner: Planner = Gradient(),  # noqa: B008 - frozen
    distillation: Distillation = Distillation(),  # noqa: B008 - frozen
    precision: Precision = "auto",
    resume: bool = False,
    trust: bool = False,
    check: bool = False,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
) -> RunFolder:
    """Train a world model into a run folder.

    Args:
        resolved: this call as YAML, kept with the run; the command line writes it.
        run: run folder to make.
        env: environment id, of Gymnasium or `dm_control/DOMAIN-TASK`; by default that of `data`.
        env_options: options of the environment, for training and evaluation; by default those of
            `data`.
        task: what the agent will minimise: a packaged task, a YAML file, `reach` (the goal that
            the environment gives) or `reward` (a cost learned from rewards). By default the
            packaged task written for the environment, else `reach` or `reward`.
        collection: what is collected where `data` is not given.
        data: folder of a data set; without it, data are collected into the run folder.
        model: perception and predictor.
        losses: weights of the joint stage's loss terms.
        stages: lengths and rates of the training stages.
        rounds: how often the agent collects with its planner and goes on training.
        round: how such a round goes.
        cost: how the agent sums energies up.
        planner: how the agent plans.
        distillation: how `distill` will compile plans into a policy; not used in training.
        precision: of the joint stage; `auto` is bfloat16 on CUDA and float32 elsewhere.
        resume: go on with the run that is there; its own configuration counts.
        trust: allow a run that is resumed, and data, to import code from outside of `forethought`.
        check: only check that everything fits together, and write nothing.
        seed: seed of everything.
        device: `auto`, `cpu`, `cuda` or `mps`.
        threads: CPU threads of PyTorch; by default its own choice.

    Returns:
        The run folder.
    """
    set_threads(threads)
    if rounds < 0:
        raise ValueError(f"rounds is {rounds}: choose 0 or more")
    where = device_of(device)
    ranks.start("nccl" if where.type == "cuda" else "gloo")
    if rounds and data is not None:
        raise ValueError(
            "rounds append to the data, but data belongs to somebody else: leave --data out, or "
            "copy that data set to RUN/data"
        )
    held = open_data(data, env, env_options, trust=trust) if data is not None else None
    # Made before the folder, so that what does not fit leaves nothing behind.
    if held is None and env is None:
        raise ValueError(
            "env is not given: choose an environment with --env ID (see `forethought envs`), an "
            "experiment with --config NAME, or a data set with --data DATA"
        )
    spec = held.spec if held is not None else _spec_of(str(env), env_options)
    there = RunFolder(run)
    begun = resume or not there.config.exists()  # else it is refused below
    if held is None and begun and (there.data / "index.json").exists():
        open_data(there.data, env, spec.options, trust=trust)
    jepa = build_model(model, spec, where, seed)
    if resume and there.task.is_file():  # what the run was begun with may have moved
        task = str(there.task)
    trusted = trust or not resume
    _check_task(task, spec, held, jepa.latent_dim, trust=trusted)
    if check:
        _report_check(spec, jepa, held, collection, rounds, round, task)
        return RunFolder(run)
    folder = _folder(run, resolved, seed, resume=resume)
    if held is None:
        if ranks.rank() == 0 and not _collected(folder.data, collection):
            _collect_for(folder.data, str(env), env_options, collection, seed)
        ranks.wait()
        held = open_data(folder.data, env, spec.options, trust=trust)
    for stage in (stages.joint, stages.predictor):
        if stage.steps:  # raises now, not after the first stage, if no episode is that long
            held.windows(stage.unroll)
    plan = Plan(losses, stages, rounds, round, cost, planner, seed, _bfloat16(precision, where))
    course = Course(folder, held.folder, _task(task, folder, held, trust=trusted), plan, jepa, held)
    _say_what_readouts_do(course)
    with Metrics(folder, writes=ranks.rank() == 0) as metrics:
        began = time.perf_counter()
        latents = course.run(metrics)
        seconds = time.perf_counter() - began
        if ranks.rank() == 0:
            _finish(folder, course, latents, metrics, seconds)
    ranks.wait()
    return folder


def _check_task(
    name: str | None, spec: EnvSpec, held: Dataset | None, latent_dim: int, *, trust: bool
) -> None:
    """Refuse a task that needs what neither the data nor the environment give.

    Raises:
        FileNotFoundError, ValueError: there is no such task, or it does not fit.
    """
    chosen = name or task_for(spec.id)
    if chosen in (None, "reward"):
        return
    task = read_task(str(chosen), trust=trust)
    if held is not None:
        rows = {name: held.arrays(f"quantities.{name}")[:1] for name in held.quantity_names}
        goals = held.has_goals
    else:
        made = envs.make(spec.id, **spec.options)
        _, info = made.reset(seed=0)
        made.close()
        rows, goals = info["quantities"], "goal" in info
    told = {name: np.size(row) for name, row in rows.items() if not name.startswith("goal")}
    told |= {"reward": 1, "terminated": 1}
    missing = sorted(set(task.bank.reads) - set(told) - {"state"})
    if missing:
        raise ValueError(
            f"task {chosen} reads {', '.join(missing)}, but {spec.id} tells "
            f"{', '.join(sorted(told))}: choose another task or environment"
        )
    if task.goal and not goals:
        raise ValueError(
            f"task {chosen} is to reach a goal, but {spec.id} gives none: choose another task, "
            "such as --task reward"
        )
    if not task.has_cost:
        return
    quantities = {
        name: torch.zeros(1, size) for name, size in (told | {"state": latent_dim}).items()
    }
    discrete = isinstance(spec.action_space, Discrete)
    action = torch.zeros(1, dtype=torch.int64) if discrete else torch.zeros(1, spec.action_dim)
    try:
        task.bank.values(quantities, action)
    except (ValueError, RuntimeError, LookupError, TypeError) as error:
        raise ValueError(f"task {chosen} does not fit {spec.id}: {error}") from error


def _spec_of(env: str, env_options: dict[str, Any] | None) -> EnvSpec:
    made = envs.make(env, **(env_options or {}))
    spec = envs.spec_of(made)
    made.close()
    return spec


def _folder(run: Path, resolved: str, seed: int, *, resume: bool) -> RunFolder:
    """The run's folder, made by the first rank."""
    if not resume and ranks.rank() == 0:
        RunFolder.create(run, resolved, seed)
    ranks.wait()
    folder = RunFolder.open(run)
    if resume and not folder.snapshot.exists() and folder.read_json("training.json") is not None:
        raise ValueError(f"run {run} has come to its end already: train another --run")
    return folder


def _collect_for(
    data: Path,
    env: str,
    env_options: dict[str, Any] | None,
    collection: Collection,
    seed: int,
) -> None:
    """A run's first collection, or what is missing of it."""
    if collection.episodes is not None:
        _collect_episodes(data, env, env_options, collection, collection.episodes, seed)
    else:
        _collect_decisions(data, env, env_options, collection, collection.decisions, seed)


def _collected(data: Path, collection: Collection) -> bool:
    """Whether the run's first collection has come to its end."""
    if not (data / "index.json").exists():
        return False
    held = Dataset.open(data)
    if collection.episodes is None:
        if held.steps < collection.decisions:
            return False
    elif held.episodes < collection.episodes:
        return False
    # A kill can leave the note of a collection behind: one that had all its shards, or a round's,
    # which the round begins again.
    (data / COLLECTING).unlink(missing_ok=True)
    return True


def _bfloat16(precision: Precision, device: torch.device) -> bool:
    if precision == "auto":
        return device.type == "cuda"
    return precision == "bfloat16"


def _task(name: str | None, folder: RunFolder, held: Dataset, *, trust: bool) -> Task:
    """The run's task; decided once, and kept in the run folder."""
    if name == str(folder.task):
        return read_task(name, trust=trust)
    chosen = name or task_for(held.spec.id)
    if chosen is None:
        chosen = "reach" if held.has_goals else "reward"
    if chosen == "reward":
        task = task_from_reward(np.asarray(held.arrays("rewards")), held.terminal())
        logger.info(
            "cost: learned from the environment's reward, for want of a hard-wired one; an "
            "episode's end by the task is taken for a %s",
            task.end,
        )
    else:
        task = REACH if chosen == "reach" else read_task(chosen, trust=trust)
        logger.info("task: %s (%s)", chosen, ", ".join(task.terms))
    if ranks.rank() == 0:
        folder.write_text(folder.task, task_yaml(replace(task, env=held.spec.id)))
    return task


def _say_what_readouts_do(course: Course) -> None:
    told = ", ".join(course.readouts.sizes) or "nothing"
    how = "shape the encoder" if course.objective.readouts is not None else "only listen"
    logger.info("readouts of %s: they %s", told, how)


def _report_check(
    spec: EnvSpec,
    jepa: JEPA,
    held: Dataset | None,
    collection: Collection,
    rounds: int,
    round_: Round,
    task: str | None,
) -> None:
    """Say what a training would do."""
    repeat, limit = spec.action_repeat, spec.episode_limit
    length = min(limit, collection.length or limit)
    wanted = collection.decisions if collection.episodes is None else collection.episodes * length
    begun = held.steps if held is not None else wanted
    steps = (begun + rounds * round_.episodes * limit) * repeat
    sizes = [sum(p.numel() for p in part.parameters()) for part in (jepa.perception, jepa)]
    logger.info("environment: %s, options %s", spec.id, dict(spec.options))
    logger.info("observations: %s", spec.observation_space)
    logger.info("actions: %s, every %g s", spec.action_space, spec.control_step_seconds)
    logger.info("task: %s", task or task_for(spec.id) or "reach or reward, as the data have it")
    logger.info("parameters: %d in perception, %d in all", *sizes)
    logger.info("environment steps: at most %d", steps)
    logger.info("everything fits together; nothing was written")


def _finish(
    folder: RunFolder, course: Course, latents: LatentData, metrics: Metrics, seconds: float
) -> None:
    """Diagnostics, and what the training took.

    All but the gradient agreement are computed on the data that were trained on: they say what is
    wrong with a model, not how good it is on episodes that it has not seen. `evaluate` does.

    Args:
        folder: the run.
        course: what has been trained.
        latents: every observation of the data, encoded.
        metrics: where the diagnostics are logged; it knows of legs before an interruption.
        seconds: wall-clock time of the last leg.
    """
    jepa, readouts, held = course.jepa, course.readouts, course.held
    quantities = quantities_of(held, jepa.device)
    spent = {
        "environment_steps": environment_steps(held),
        "train_seconds": metrics.before + seconds,
    }
    generator = torch.Generator().manual_seed(course.plan.seed * 1000 + 3)
    agent = build_agent(
        jepa,
        held.spec,
        course.task,
        course.plan.cost,
        course.plan.planner,
        readouts=readouts,
        critic=course.critic,
    )
    horizon = min(24, int(latents.remaining.max()))
    report = diagnose(jepa, latents, readouts, quantities, horizon, generator)
    report |= wall_violations(jepa, readouts, held.spec.id, latents, quantities)
    report |= _agreement(agent, held.spec, course.plan.seed)
    steps = sum(course.scaled(r).joint.steps for r in range(course.plan.rounds + 1))
    metrics.log("diagnostics", steps, report)
    folder.write_json("diagnostics.json", report)
    folder.write_json("training.json", spent)
    try:
        pictures.training_curves(folder.metrics, folder.path / "training.png")
    except (ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        logger.warning("the curves cannot be drawn: %s", error)  # the run is whole without them
    folder.snapshot.unlink(missing_ok=True)


def _agreement(agent: Agent, spec: EnvSpec, seed: int, starts: int = 4) -> dict[str, float]:
    """Gradient agreement with the simulator, where there is one and actions are continuous."""
    horizon = min(agent.configurator.cost.horizon, spec.episode_limit - 11, 256 // spec.action_dim)
    if agent.model.actions.discrete or horizon < 1:
        return {}
    try:
        envs.make(spec.id, **spec.options).close()
    except (ValueError, ImportError):  # recorded data whose simulator is elsewhere
        return {}
    horizons = sorted({max(1, horizon // 4), max(1, horizon // 2), horizon})
    first = HELD_OUT_SEED - 100_000 + 1000 * (seed % 100)  # never held out, whatever the seed
    return gradient_agreement(
        agent,
        lambda count: envs.make(spec.id, count, **spec.options),
        [first + k for k in range(starts)],
        torch.Generator().manual_seed(seed),
        horizons=horizons,
    )


def open_data(
    data: Path,
    env: str | None,
    env_options: Mapping[str, Any] | None,
    *,
    trust: bool = False,
) -> Dataset:
    """Open a data set to train on; None takes the data's own environment, or its own options.

    Raises:
        ValueError: it comes from another environment, or from held-out episodes; or its environment
            is code from outside of `forethought` that is neither named by `env` nor trusted.
    """
    held = Dataset.open(data)
    own = held.spec
    if not trust:
        named = own.to_json()
        if env is not None and own.id == env:
            del named["id"]
        if env_options is not None and own.options == env_options:
            del named["options"]
        refuse_strangers(named, data / "index.json")
    env = own.id if env is None else env
    options = dict(own.options if env_options is None else env_options)
    name = env.rpartition(":")[2]
    if own.id not in (env, name) or dict(own.options) != options:
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
