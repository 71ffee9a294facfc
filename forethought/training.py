"""The verb `train`: from an environment, or data, to a world model in a run folder."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from forethought.agent import REACH, Cost, Distillation, Recall, Task, TopDown, task_from_reward
from forethought.build import Collection, Model, Round, Stages, build_model, device_of
from forethought.checking import check_fit, check_task, open_data, report_check
from forethought.collecting import collect_for, collected, spec_by_id
from forethought.course import Course, Plan
from forethought.diagnosing import finish
from forethought.envs import Dataset, EnvSpec
from forethought.foreign import take_weights
from forethought.planners import Gradient, Planner
from forethought.run_folder import Metrics, RunFolder
from forethought.tasks import read_task, task_for, task_yaml
from forethought.threads import set_threads
from forethought.worldmodel import JEPA, Losses, ranks

logger = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16"]
WEIGHTS = "weights.json"  # in the run folder: what was taken from others, and what not


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
    weights: Path | None = None,
    losses: Losses = Losses(),  # noqa: B008 - frozen
    stages: Stages = Stages(),  # noqa: B008 - frozen
    rounds: int = 0,
    round: Round = Round(),  # noqa: B008 - frozen; the option's name
    cost: Cost = Cost(),  # noqa: B008 - frozen
    planner: Planner = Gradient(),  # noqa: B008 - frozen
    recall: Recall = Recall(),  # noqa: B008 - frozen
    top_down: TopDown = TopDown(),  # noqa: B008 - frozen
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
        weights: folder of a stable-worldmodel checkpoint of LeWorldModel: the model begins with
            its tensors where shapes agree (`--config leworldmodel` builds such a model).
        losses: weights of the joint stage's loss terms.
        stages: lengths and rates of the training stages.
        rounds: how often the agent collects with its planner and goes on training.
        round: how such a round goes.
        cost: how the agent sums energies up.
        planner: how the agent plans.
        recall: what the agent remembers of an episode, and what for.
        top_down: how levels above the world model plan, where there are any (`model.levels`).
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
    # All of this comes before the folder, so that what does not fit leaves nothing behind.
    held = open_data(data, env, env_options, trust=trust) if data is not None else None
    spec = held.spec if held is not None else _spec(env, env_options)
    there = RunFolder(run)
    if held is None and (resume or not there.config.exists()):  # else it is refused below
        _check_own_data(there.data, env, spec, trust=trust)
    jepa = build_model(model, spec, where, seed)
    check_fit(jepa, stages, cost, top_down if model.levels else None)
    begun = None if weights is None else _begin_with(weights, jepa, there, resume=resume)
    if resume and there.task.is_file():  # what the run was begun with may have moved
        task = str(there.task)
    trusted = trust or not resume
    check_task(task, spec, held, jepa.latent_dim, trust=trusted)
    if check:
        report_check(spec, jepa, held, collection, rounds, round, task)
        return there
    folder = _folder(run, resolved, seed, resume=resume)
    if begun is not None and ranks.rank() == 0:
        folder.write_json(WEIGHTS, begun)
    if held is None:
        _collect_first(folder.data, str(env), env_options, collection, seed)
        held = open_data(folder.data, env, spec.options, trust=trust)
    _check_unrolls(held, stages, model)
    low = _bfloat16(precision, where)
    standardise = begun is None or not begun["standardised"]
    plan = Plan(
        losses,
        stages,
        rounds,
        round,
        cost,
        planner,
        recall,
        model.levels,
        top_down,
        seed,
        low,
        standardise,
    )
    course = Course(folder, held.folder, _task(task, folder, held, trust=trusted), plan, jepa, held)
    _say_what_readouts_do(course)
    _walk(course)
    return folder


def _begin_with(weights: Path, jepa: JEPA, there: RunFolder, *, resume: bool) -> dict[str, Any]:
    """Fill the model from weights of others; or, where a run goes on from its own, what was taken.

    A run that was stopped before its first snapshot has none of its own yet.
    """
    noted: dict[str, Any] | None = there.read_json(WEIGHTS) if resume else None
    if noted is not None and (there.snapshot.exists() or there.read_json("training.json")):
        return noted
    taken = take_weights(jepa, weights)
    logger.info("weights of %s: %s", weights, taken)
    return {"weights": str(weights), **asdict(taken)}


def _spec(env: str | None, env_options: dict[str, Any] | None) -> EnvSpec:
    """The environment's description, where no data hold it."""
    if env is None:
        raise ValueError(
            "env is not given: choose an environment with --env ID (see `forethought envs`), an "
            "experiment with --config NAME, or a data set with --data DATA"
        )
    return spec_by_id(env, env_options)


def _check_own_data(data: Path, env: str | None, spec: EnvSpec, *, trust: bool) -> None:
    """Refuse what lies in the run folder already, if it does not fit."""
    if (data / "index.json").exists():
        open_data(data, env, spec.options, trust=trust)


def _collect_first(
    data: Path,
    env: str,
    env_options: dict[str, Any] | None,
    collection: Collection,
    seed: int,
) -> None:
    """The run's first collection, by the first rank; the others wait for it."""
    if ranks.rank() == 0 and not collected(data, collection):
        collect_for(data, env, env_options, collection, seed)
    ranks.wait()


def _check_unrolls(held: Dataset, stages: Stages, model: Model) -> None:
    """Refuse unrolls longer than every episode now, and not after the first stage."""
    for stage in (stages.joint, stages.predictor):
        if stage.steps:
            held.windows(stage.unroll)
    span, longest = math.prod(level.stride for level in model.levels), int(held.lengths.max())
    if model.levels and span > longest:
        raise ValueError(
            f"model.levels: one step of the top level is {span} decisions, but the longest "
            f"episode has {longest}: choose shorter strides, or longer episodes"
        )


def _walk(course: Course) -> None:
    """All stages and rounds, then the diagnostics."""
    with Metrics(course.folder, writes=ranks.rank() == 0) as metrics:
        began = time.perf_counter()
        latents = course.run(metrics)
        seconds = time.perf_counter() - began
        if ranks.rank() == 0:
            finish(course, latents, metrics, seconds)
    ranks.wait()


def _folder(run: Path, resolved: str, seed: int, *, resume: bool) -> RunFolder:
    """The run's folder, made by the first rank."""
    if not resume and ranks.rank() == 0:
        RunFolder.create(run, resolved, seed)
    ranks.wait()
    folder = RunFolder.open(run)
    if resume and not folder.snapshot.exists() and folder.read_json("training.json") is not None:
        raise ValueError(f"run {run} has come to its end already: train another --run")
    return folder


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
