"""The end of a training: diagnostics of the world model, and what the training took."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forethought import envs, pictures
from forethought.agent import (
    Agent,
    calibration,
    gradient_agreement,
    realised,
    recorded_gaps,
    violation_rate,
)
from forethought.build import build_agent
from forethought.course import Course, environment_steps, quantities_of
from forethought.envs import HELD_OUT_SEED, EnvSpec
from forethought.run_folder import Metrics
from forethought.worldmodel import (
    JEPA,
    LatentData,
    Level,
    Readouts,
    diagnose,
    examine,
)
from forethought.worldmodel.latents import CODE, code_size

logger = logging.getLogger(__name__)


def finish(course: Course, latents: LatentData, metrics: Metrics, seconds: float) -> None:
    """Write the diagnostics, and what the training took, into the run folder.

    All but the gradient agreement are computed on the data that were trained on: they say what is
    wrong with a model, not how good it is on episodes that it has not seen. `evaluate` does.

    Args:
        course: what has been trained.
        latents: every observation of the data, encoded.
        metrics: where the diagnostics are logged; it knows of legs before an interruption.
        seconds: wall-clock time of the last leg.
    """
    folder, jepa, readouts, held = course.folder, course.jepa, course.readouts, course.held
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
    report |= wall_violations(
        jepa,
        readouts,
        held.spec.id,
        latents,
        quantities,
        max_step=held.spec.options.get("max_step"),
    )
    report |= agreement(agent, held.spec, course.plan.seed)
    report |= _recorded_gaps(course, latents, quantities, generator)
    report |= _levels(course, generator)
    steps = sum(course.scaled(r).joint.steps for r in range(course.plan.rounds + 1))
    metrics.log("diagnostics", steps, report)
    folder.write_json("diagnostics.json", report)
    folder.write_json("training.json", spent)
    calibrated = _calibration(course, latents, quantities)
    if calibrated is not None:
        folder.write_json("calibration.json", calibrated)
    try:
        pictures.training_curves(folder.metrics, folder.path / "training.png")
        if calibrated is not None:
            pictures.calibration_plot(calibrated, folder.path / "calibration.png")
    except (ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        logger.warning("the curves cannot be drawn: %s", error)  # the run is whole without them
    folder.snapshot.unlink(missing_ok=True)


def _levels(course: Course, generator: torch.Generator, *, ahead: int = 6) -> dict[str, float]:
    """The diagnostics of each level above, as `level2_...` and so on.

    `levelN_horizon` is how far its open-loop errors look ahead, in decisions.
    """
    found: dict[str, float] = {}
    span = 1
    for place, (level, probes) in enumerate(zip(course.levels, course.probes, strict=True)):
        assert isinstance(level, Level)
        assert isinstance(probes, Readouts)
        data, quantities = course.data_of(place + 1)
        unroll = min(ahead, int(data.remaining.max()))
        span *= level.shape.stride
        report = examine(level.model, data, probes, quantities, unroll, generator)
        report["horizon"] = float(unroll * span)
        found |= {f"level{place + 2}_{name}": value for name, value in report.items()}
    return found


def _calibration(
    course: Course, latents: LatentData, quantities: dict[str, Tensor]
) -> dict[str, Any] | None:
    """What the critic expects against what came; None where it promises no sums of cost."""
    critic = course.critic
    if critic is None or course.plan.stages.critic.form != "td":
        return None
    lasting = course.task.lasting.to(latents.states.device)
    came, known = realised(latents, course.costs(quantities), lasting, critic.discount)
    count = int(known.sum())
    if not count:
        return None
    names = course.task.bank.names
    return calibration(critic, latents.states[known], came[known], names=names, bins=min(10, count))


def _recorded_gaps(
    course: Course,
    latents: LatentData,
    quantities: dict[str, Tensor],
    generator: torch.Generator,
) -> dict[str, float]:
    """Cost that the model imagines along recorded actions against what happened, per term.

    What `evaluate` compares the gaps of plans with. Empty where no term counts.
    """
    bank = course.task.bank
    ahead = min(8, course.plan.cost.horizon, int(latents.remaining.max()))
    if not course.task.has_cost:
        return {}
    gaps = recorded_gaps(
        course.jepa, bank, course.readouts, latents, quantities, generator, ahead=ahead
    )
    found: dict[str, float] = {}
    for end, gap in (("", gaps.next), ("_ahead", gaps.ahead)):
        means = gap.mean.nan_to_num(0.0).tolist()
        found |= {f"recorded_gap_{n}{end}": m for n, m in zip(bank.names, means, strict=True)}
    return found


def agreement(agent: Agent, spec: EnvSpec, seed: int, starts: int = 4) -> dict[str, float]:
    """Gradient agreement with the simulator, where there is one and actions are continuous.

    Empty also where the model reads a code that the simulator does not tell.
    """
    horizon = min(agent.configurator.cost.horizon, spec.episode_limit - 11, 256 // spec.action_dim)
    if agent.model.actions.discrete or horizon < 1:
        return {}
    try:
        env = envs.make(spec.id, **spec.options)
    except (ValueError, ImportError):  # recorded data whose simulator is elsewhere
        return {}
    untold = code_size(agent.model) and CODE not in env.reset(seed=0)[1].get("quantities", {})
    env.close()
    if untold:
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


@torch.no_grad()
def wall_violations(
    jepa: JEPA,
    readouts: Readouts,
    env_id: str,
    data: LatentData,
    quantities: dict[str, Tensor],
    *,
    max_step: float | None = None,
    steps: int = 12,
    samples: int = 512,
) -> dict[str, float]:
    """Two-Rooms: how often the model imagines a way through the wall.

    From states beside the wall and away from the door, the action that drives straight into it is
    repeated; losses and probes do not show whether the wall holds. `steps` are those of the usual
    length; shorter ones, of `max_step` pixels, are more. Empty for other environments.
    """
    rooms = envs.GEOMETRIES.get(env_id)
    if rooms is None:
        return {}
    if max_step is not None:  # as long a way, in more steps
        steps = math.ceil(steps * rooms.max_step / max_step)
        rooms = replace(rooms, max_step=max_step)
    position, wall, door = (quantities[name] for name in ("position", "wall", "door"))
    across = wall[:, 0] - position[:, 0]
    beside = across.abs() < rooms.wall_half_thickness + 3 * rooms.max_step
    away = (position[:, 1] - door[:, 0]).abs() > rooms.door_half_height + rooms.max_step
    index = (beside & away).nonzero().squeeze(1)[:: max(1, int((beside & away).sum()) // samples)]
    if not len(index):
        return {}
    action = torch.stack((across[index].sign(), torch.zeros_like(across[index])), -1)
    block = data.actions.shape[1] // action.shape[1]  # actions of a decision
    action, steps = action.repeat(1, block), math.ceil(steps / block)
    imagined = jepa.rollout(
        data.states[index],
        action[:, None].expand(-1, steps, -1).to(data.states),
        context=data.context(index),
    )
    path = readouts(imagined)["position"].cpu().numpy()  # (N, steps, 2)
    walls, doors = wall[index].cpu().numpy(), door[index].cpu().numpy()

    def crosses(start: np.ndarray, end: np.ndarray) -> np.ndarray:
        through = envs.crosses_wall(rooms, walls, doors, start, end)
        far = np.sign(walls[:, 0] - end[:, 0]) != np.sign(across[index].cpu().numpy())
        return np.asarray(through & far)

    start = readouts(data.states[index])["position"].cpu().numpy()[:, None]
    return {"wall_violation_rate": violation_rate(np.concatenate((start, path), 1), crosses)}
