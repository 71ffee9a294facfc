"""What a training refuses before it begins: data, tasks and options that do not fit."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Discrete

from forethought import envs
from forethought.agent import Cost, TopDown
from forethought.build import Collection, Round, Stages
from forethought.envs import HELD_OUT_SEED, Dataset, EnvSpec
from forethought.parser import refuse_strangers
from forethought.tasks import read_task, task_for
from forethought.worldmodel import JEPA

logger = logging.getLogger(__name__)


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


def check_fit(jepa: JEPA, stages: Stages, cost: Cost, top_down: TopDown | None) -> None:
    """Refuse what the model cannot do now, and not when it is trained.

    Args:
        jepa: the world model.
        stages: of its training.
        cost: what plans minimise.
        top_down: how levels above plan, where there are any.

    Raises:
        ValueError: the field, its value, and what to choose.
    """
    window, unroll = jepa.predictor.window, stages.joint.unroll
    if stages.joint.teacher_forcing and stages.joint.steps and unroll > window > 1:
        raise ValueError(
            f"stages.joint.unroll is {unroll} with teacher_forcing, but the predictor's window is "
            f"{window}: choose {window} or less"
        )
    if cost.doubt:
        jepa.predictor.check_doubts(f"cost.doubt is {cost.doubt}")
    if stages.levels.together and top_down is None:
        raise ValueError(
            "stages.levels.together is true, but model.levels is empty: give levels, or choose "
            "false"
        )
    if stages.levels.together and not stages.joint.steps:
        raise ValueError(
            "stages.levels.together is true, but stages.joint.steps is 0: choose 1 or more, or "
            "false"
        )
    if top_down is not None:
        top_down.check(discrete=jepa.actions.discrete, temporal=cost.goal == "temporal")


def check_task(
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


def report_check(
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
