"""Episodes: run a controller in a vector environment, one episode per seed.

A controller is anything that acts: the agent, or a policy that reads the environment's quantities
(random, greedy, scripted). Environments are in autoreset mode DISABLED; a finished episode leaves
the batch, so that no decision is made for it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv

from forethought.agent.agent import Agent, AgentState
from forethought.envs import Policy

Info = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What one episode came to.

    Args:
        seed: seed of the episode.
        success: the environment's own verdict at the end, or None where it has none.
        return_: sum of rewards.
        steps: environment steps.
        decision_seconds: wall-clock seconds of each decision; meaningful with one environment.
        quantities: the environment's named quantities at the end, `(n,)` each.
    """

    seed: int
    success: bool | None
    return_: float
    steps: int
    decision_seconds: tuple[float, ...] = field(default=(), repr=False)
    quantities: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)


class Controller(ABC):
    """Acts in B environments side by side; what it carries along is passed in and returned."""

    @abstractmethod
    def start(self, observation: np.ndarray, info: Info) -> Any:
        """Begin B episodes from what `reset` returned."""

    @abstractmethod
    def act(self, carried: Any, observation: np.ndarray, info: Info) -> tuple[np.ndarray, Any]:
        """Actions `(B, A)` for observations `(B, *O)`, and what to carry on."""

    @abstractmethod
    def select(self, carried: Any, index: np.ndarray) -> Any:
        """What is carried for the environments `index` alone."""


@dataclass(frozen=True)
class AgentController(Controller):
    """The agent as a controller.

    Args:
        agent: the agent.
        generator: source of its randomness.
    """

    agent: Agent
    generator: torch.Generator

    def start(self, observation: np.ndarray, info: Info) -> AgentState:
        """Encode the goal; see `Controller.start`."""
        if "goal" not in info:
            raise ValueError("the environment gives no info['goal']: this agent needs a goal")
        return self.agent.start(info["goal"], generator=self.generator)

    def act(
        self, carried: AgentState, observation: np.ndarray, info: Info
    ) -> tuple[np.ndarray, AgentState]:
        """One perception-action step; see `Controller.act`."""
        return self.agent.act(carried, observation)

    def select(self, carried: AgentState, index: np.ndarray) -> AgentState:
        """See `Controller.select`."""
        return carried.select(torch.as_tensor(index, device=self.agent.model.device))


@dataclass(frozen=True)
class PolicyController(Controller):
    """A behaviour policy of `envs` as a controller; it carries its previous actions.

    Args:
        policy: the policy.
        action_dim: size A of the action.
        generator: source of its randomness.
    """

    policy: Policy
    action_dim: int
    generator: np.random.Generator

    def start(self, observation: np.ndarray, info: Info) -> np.ndarray:
        """See `Controller.start`."""
        return np.zeros((len(observation), self.action_dim), np.float32)

    def act(
        self, carried: np.ndarray, observation: np.ndarray, info: Info
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Controller.act`."""
        action = self.policy(observation, info, carried, self.generator)
        return action, action

    def select(self, carried: np.ndarray, index: np.ndarray) -> np.ndarray:
        """See `Controller.select`."""
        kept: np.ndarray = carried[index]
        return kept


def select_info(info: Info, index: np.ndarray) -> dict[str, Any]:
    """The rows `index` of every array in `info`, nested dictionaries included."""
    return {
        key: select_info(value, index)
        if isinstance(value, Mapping)
        else (value[index] if isinstance(value, np.ndarray) else value)
        for key, value in info.items()
    }


def run_episodes(
    env: VectorEnv,
    controller: Controller,
    seeds: Sequence[int],
    *,
    on_step: Callable[[np.ndarray, np.ndarray, Info, Any], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[Outcome]:
    """Run one episode per seed.

    Args:
        env: a vector environment in autoreset mode DISABLED.
        controller: what acts.
        seeds: seeds of the episodes.
        on_step: called after each decision with the indices of the running environments, their
            observations before the decision, the info before it, and what the controller carries.
        on_progress: called with the number of episodes just finished.

    Returns:
        Outcomes in the order of `seeds`.
    """
    outcomes: list[Outcome] = []
    for first in range(0, len(seeds), env.num_envs):
        block = list(seeds[first : first + env.num_envs])
        outcomes += _run_block(env, controller, block, on_step, on_progress)
    return outcomes


def _run_block(
    env: VectorEnv,
    controller: Controller,
    seeds: list[int],
    on_step: Callable[[np.ndarray, np.ndarray, Info, Any], None] | None,
    on_progress: Callable[[int], None] | None,
) -> list[Outcome]:
    """Run at most `num_envs` episodes side by side, until the last one ends."""
    count = len(seeds)
    space = cast(Box, env.single_action_space)  # as `build_model` has checked
    padding = [seeds[-1]] * (env.num_envs - count)
    observation, info = env.reset(seed=seeds + padding)  # type: ignore[arg-type]
    running = np.arange(count)
    carried = controller.start(observation[running], select_info(info, running))
    outcomes: dict[int, Outcome] = {}
    returns, seconds = np.zeros(env.num_envs), [list[float]() for _ in range(count)]
    steps = 0
    while len(running):
        seen = select_info(info, running)
        began = time.perf_counter()
        action, carried = controller.act(carried, observation[running], seen)
        elapsed = time.perf_counter() - began
        if on_step is not None:
            on_step(running, observation[running], seen, carried)
        actions = np.zeros((env.num_envs, *space.shape), space.dtype)
        actions[running] = action
        observation, reward, terminated, truncated, info = env.step(actions)
        steps += 1
        returns[running] += reward[running]
        for index in running:
            seconds[index].append(elapsed)
        ended = (terminated | truncated)[running]
        for index in running[ended]:
            success = bool(info["success"][index]) if "success" in info else None
            quantities = {
                name: value[index]
                for name, value in info.get("quantities", {}).items()
                if not name.startswith("_")  # Gymnasium's marks of which rows are given
            }
            outcomes[index] = Outcome(
                seeds[index],
                success,
                float(returns[index]),
                steps,
                tuple(seconds[index]),
                quantities,
            )
        over = terminated | truncated
        if over.any():
            # Who has ended is begun again and ignored: some environments refuse to be stepped on.
            env.reset(seed=seeds + padding, options={"reset_mask": over})  # type: ignore[arg-type]
        if ended.any():
            if on_progress is not None:
                on_progress(int(ended.sum()))
            keep = np.flatnonzero(~ended)
            carried, running = controller.select(carried, keep), running[keep]
    return [outcomes[index] for index in range(count)]
