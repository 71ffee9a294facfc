"""Gradient agreement: does the model's gradient point where the simulator's does?

A gradient planner follows dE/da through the model. Here the same energy is differentiated by
finite differences in the simulator, with encoded observations in the place of predicted states;
the cosine between the two, against the horizon, says how far ahead the gradient can be trusted.
Losses and probes do not show it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from forethought.agent.agent import Agent
from forethought.agent.loop import goal_of, select_info, select_rows
from forethought.planners import evaluate, smooth_noise
from forethought.worldmodel.latents import CODE, code_size


def gradient_agreement(
    agent: Agent,
    make: Callable[[int], VectorEnv[Any, Any, Any]],
    seeds: Sequence[int],
    generator: torch.Generator,
    *,
    horizons: Sequence[int],
    lead_in: int = 10,
    difference: float = 0.05,
) -> dict[str, float]:
    """Mean cosine between dE/da through the model and finite differences in the simulator.

    Args:
        agent: an agent with continuous actions.
        make: makes so many environments, in which a seed and actions decide everything.
        seeds: one random start each; starts whose episode ends on the way are left out.
        generator: source of the lead-in and of the actions at which is differentiated.
        horizons: horizons H to report.
        lead_in: random steps before the start, so that it is not always the reset's.
        difference: half the distance of a central difference, in actions of [-1, 1].

    Returns:
        `gradient_cosine_hH` for every horizon H that has a start left, 1 for perfect agreement.
    """
    size, longest = agent.model.action_dim, max(horizons)
    env = make(min(2 * longest * size, 16))
    found: dict[int, list[float]] = {horizon: [] for horizon in horizons}
    for seed in seeds:
        start = _played(agent, env, seed, generator, longest, lead_in, difference)
        if start is None:
            continue
        before, actions, after, setting = start
        for horizon in horizons:
            cost = replace(setting.cost, horizon=horizon, replan_every=1)
            problem = agent.problem(replace(setting, cost=cost), before)
            # Perturbations of the first `horizon` actions, up then down.
            count = 2 * horizon * size
            states = after[:count, :horizon]
            real = replace(problem, step=_unused, rollout=_given(states))
            moved = _moved(actions, longest, size, difference)[:count, :horizon]
            energies = evaluate(real, moved[None])[0][0].view(horizon, size, 2)
            simulated = (energies[..., 0] - energies[..., 1]) / (2 * difference)
            with torch.enable_grad():
                leaf = actions[None, None, :horizon].clone().requires_grad_()
                (slope,) = torch.autograd.grad(evaluate(problem, leaf)[0].sum(), leaf)
            cosine = torch.cosine_similarity(slope.flatten(), simulated.flatten(), dim=0)
            found[horizon].append(float(cosine))
    env.close()
    return {f"gradient_cosine_h{h}": float(np.mean(c)) for h, c in found.items() if c}


def _moved(actions: Tensor, horizon: int, size: int, difference: float) -> Tensor:
    """Actions `(H, A)` with each component moved up and down: `(2*H*A, H, A)`."""
    unit = torch.eye(horizon * size, device=actions.device).view(-1, 1, horizon, size)
    sign = torch.tensor([difference, -difference], device=actions.device).view(1, 2, 1, 1)
    return (actions + unit * sign).flatten(0, 1)


@torch.no_grad()
def _played(
    agent: Agent,
    env: VectorEnv[Any, Any, Any],
    seed: int,
    generator: torch.Generator,
    horizon: int,
    lead_in: int,
    difference: float,
) -> tuple[Tensor, Tensor, Tensor, Any] | None:
    """Play one start again and again, each time with another component of the actions moved.

    Returns:
        The encoded start `(1, D)`, actions `(H, A)`, encoded states after each action
        `(2*H*A, H, D)`, and the agent's setting; None if an episode ended on the way.
    """
    size, one = agent.model.action_dim, np.arange(1)
    _, info = env.reset(seed=[seed] * env.num_envs)  # type: ignore[arg-type]
    info = select_info(info, one)
    agent = _told(agent, info)
    goal = goal_of(agent, info)
    setting = agent.start(1, goal=goal, generator=generator).setting
    whole = agent.problem(
        replace(setting, cost=replace(setting.cost, horizon=lead_in + horizon)),
        torch.zeros(1, agent.model.latent_dim, device=agent.model.device),
    )
    drawn = smooth_noise(whole, 1, max(2, (lead_in + horizon) // 4), generator)[0, 0]
    drawn = drawn.clamp(difference - 1, 1 - difference)
    lead, actions = drawn[:lead_in], drawn[lead_in:]
    moved = _moved(actions, horizon, size, difference)
    before, rows = None, []
    for part in torch.split(moved, env.num_envs):
        idle = env.num_envs - len(part)
        played = torch.cat((lead.expand(len(part), -1, -1), part), 1)
        sent = torch.cat((played, played[:1].expand(idle, -1, -1))).cpu().numpy()
        observation, _ = env.reset(seed=[seed] * env.num_envs)  # type: ignore[arg-type]
        after = []
        for t in range(lead_in + horizon):
            if t == lead_in:
                before = agent.encode(select_rows(observation, one), setting.context)
            observation, _, terminated, truncated, _ = env.step(sent[:, t])
            if (terminated | truncated).any():
                return None
            if t >= lead_in:
                after.append(agent.encode(observation, setting.context)[: len(part)])
        rows.append(torch.stack(after, 1))
    assert before is not None
    return before, actions, torch.cat(rows), setting


def _told(agent: Agent, info: Mapping[str, Any]) -> Agent:
    """The agent, told the code of the one environment that `info` is of, if it reads one.

    Raises:
        ValueError: the environment gives no code, and the configurator has none.
    """
    configurator = agent.configurator
    if not code_size(agent.model) or configurator.adjust.modulation:
        return agent
    codes = info.get("quantities", {}).get(CODE)
    if codes is None:
        raise ValueError(
            f"the environment gives no info['quantities'][{CODE!r}], but the model is modulated: "
            "choose adjust.modulation, or an environment that gives it"
        )
    adjust = replace(configurator.adjust, modulation=tuple(map(float, codes[0])))
    return replace(agent, configurator=replace(configurator, adjust=adjust))


def _given(states: Tensor) -> Callable[..., Tensor]:
    """A roll-out that has been made already, in the simulator."""
    return lambda *_: states


def _unused(*_: Any) -> Any:
    raise RuntimeError("states were given, so no step is to be made")
