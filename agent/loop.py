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
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from gymnasium.vector import VectorEnv
from torch import Tensor

from forethought.agent.agent import Agent, AgentState, Observation
from forethought.envs.policies import Policy, env_actions, no_actions
from forethought.worldmodel.latents import CODE, code_size

Info = Mapping[str, Any]
OnDecision = Callable[[np.ndarray, Any, Info, Any], None]


@dataclass(frozen=True)
class Outcome:
    """What one episode came to.

    Args:
        seed: seed of the episode.
        success: the environment's own verdict at the end, or None where it has none.
        return_: sum of rewards.
        decisions: how many actions were chosen; times the action repeat, environment steps.
        decision_seconds: wall-clock seconds of each decision; meaningful with one environment.
        quantities: the environment's named quantities at the end, `(n,)` each.
    """

    seed: int
    success: bool | None
    return_: float
    decisions: int
    decision_seconds: tuple[float, ...] = field(default=(), repr=False)
    quantities: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)


class Controller(ABC):
    """Acts in B environments side by side; what it carries along is passed in and returned."""

    @abstractmethod
    def start(self, observation: Observation, info: Info) -> Any:
        """Begin B episodes from what `reset` returned."""

    @abstractmethod
    def act(self, carried: Any, observation: Observation, info: Info) -> tuple[np.ndarray, Any]:
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

    def start(self, observation: Observation, info: Info) -> AgentState:
        """Encode the goal where the task has one; see `Controller.start`."""
        return self.agent.start(
            count(observation),
            goal=goal_of(self.agent, info),
            generator=self.generator,
            code=code_of(self.agent, info),
        )

    def act(
        self, carried: AgentState, observation: Observation, info: Info
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
        action_space: action space of one environment.
        generator: source of its randomness.
    """

    policy: Policy
    action_space: Space[Any]
    generator: np.random.Generator

    def start(self, observation: Observation, info: Info) -> np.ndarray:
        """See `Controller.start`."""
        return np.asarray(no_actions(self.action_space, count(observation)))

    def act(
        self, carried: np.ndarray, observation: Observation, info: Info
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Controller.act`."""
        policy = self.policy.for_space(self.action_space)
        action = policy(observation, info, carried, self.generator)
        return env_actions(self.action_space, action), action

    def select(self, carried: np.ndarray, index: np.ndarray) -> np.ndarray:
        """See `Controller.select`."""
        kept: np.ndarray = carried[index]
        return kept


class AgentPolicy(Policy):
    """The agent as a behaviour policy, so that its own experience can be collected.

    Unlike other behaviour policies it remembers (its last plan), so it serves one collection.

    Args:
        agent: the agent.
        generator: source of the planner's randomness.
        noise: standard deviation of Gaussian noise on the actions; with discrete actions the
            probability of a random one.
    """

    def __init__(self, agent: Agent, generator: torch.Generator, noise: float = 0.0) -> None:
        self.agent, self.generator, self.noise = agent, generator, noise
        self._carried: AgentState | None = None

    @property
    def name(self) -> str:
        """Name under which episodes record this policy."""
        return f"mode{self.agent.configurator.mode}"

    def for_space(self, action_space: Space[Any]) -> Policy:
        """See `Policy.for_space`; the model knows its space."""
        return self

    def __call__(
        self,
        observations: Observation,
        info: Info,
        previous_actions: np.ndarray,
        generator: np.random.Generator,
    ) -> np.ndarray:
        """See `Policy`."""
        discrete = self.agent.model.actions.discrete
        begun = (previous_actions == (-1 if discrete else 0)).all(axis=1)
        if self._carried is None or begun.any():
            self._carried = self._begin(self._carried, begun, observations, info)
        before = self._carried
        action, decided = self.agent.act(before, observations)
        if discrete:
            drawn = generator.integers(self.agent.model.action_dim, size=len(action))
            done = np.where(generator.uniform(size=len(action)) < self.noise, drawn, action)
            done = done.astype(np.int64)
        else:
            noisy = action + self.noise * generator.standard_normal(action.shape)
            done = np.clip(noisy, -1, 1).astype(np.float32)
        # What is believed next, and remembered, follows from what is done, not from what was
        # decided.
        previous = torch.as_tensor(done, device=self.agent.model.device)
        self._carried = self.agent.instead(decided, before, previous)
        return done[:, None] if discrete else done

    def _begin(
        self, carried: AgentState | None, begun: np.ndarray, observations: Observation, info: Info
    ) -> AgentState:
        """Begin the episodes under the mask `begun` `(N,)`; the others keep their plans."""
        fresh = self.agent.start(
            count(observations),
            goal=goal_of(self.agent, info),
            generator=self.generator,
            code=code_of(self.agent, info),
        )
        if carried is None or begun.all():
            return fresh
        return carried.begin(fresh, torch.as_tensor(begun, device=self.agent.model.device))


def select_info(info: Info, index: np.ndarray) -> dict[str, Any]:
    """The rows `index` of every array in `info`, nested dictionaries included."""
    return {
        key: select_info(value, index)
        if isinstance(value, Mapping)
        else (value[index] if isinstance(value, np.ndarray) else value)
        for key, value in info.items()
    }


def select_rows(observation: Observation, index: np.ndarray) -> Observation:
    """The rows `index` of observations `(N, *O)` or of a mapping of them."""
    if isinstance(observation, Mapping):
        return select_info(observation, index)
    rows: np.ndarray = observation[index]
    return rows


def count(observation: Observation) -> int:
    """Number N of observations."""
    if isinstance(observation, Mapping):
        return len(next(iter(observation.values())))
    return len(observation)


def goal_of(agent: Agent, info: Info) -> Observation | None:
    """The goals that the environment gives, where the agent's task has one.

    Raises:
        ValueError: the task has a goal, but the environment gives none.
    """
    if not agent.configurator.task.goal:
        return None
    if "goal" not in info:
        raise ValueError(
            "the environment gives no info['goal'], but the task has one: choose a task with "
            "--task, or an environment that gives goals"
        )
    goal: Observation = info["goal"]
    return goal


def code_of(agent: Agent, info: Info) -> Tensor | None:
    """What the environment tells of its conditions, `(B, M)`, where the model is modulated by it.

    Raises:
        ValueError: it tells nothing, and the configurator is not adjusted to a code.
    """
    if not code_size(agent.model) or agent.configurator.adjust.modulation:
        return None
    codes = info.get("quantities", {}).get(CODE)
    if codes is None:
        raise ValueError(
            "the environment gives no info['quantities']['code'], but the model is modulated: "
            "choose adjust.modulation, or an environment that gives it"
        )
    return torch.as_tensor(codes, device=agent.model.device).float()


def run_episodes(
    env: VectorEnv,
    controller: Controller,
    seeds: Sequence[int],
    *,
    on_step: OnDecision | None = None,
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
    on_step: OnDecision | None,
    on_progress: Callable[[int], None] | None,
) -> list[Outcome]:
    """Run at most `num_envs` episodes side by side, until the last one ends."""
    number = len(seeds)
    padding = [seeds[-1]] * (env.num_envs - number)
    observation, info = env.reset(seed=seeds + padding)  # type: ignore[arg-type]
    running = np.arange(number)
    carried = controller.start(select_rows(observation, running), select_info(info, running))
    outcomes: dict[int, Outcome] = {}
    returns, seconds = np.zeros(env.num_envs), [list[float]() for _ in range(number)]
    decisions = 0
    while len(running):
        seen, rows = select_info(info, running), select_rows(observation, running)
        began = time.perf_counter()
        action, carried = controller.act(carried, rows, seen)
        elapsed = time.perf_counter() - began
        if on_step is not None:
            on_step(running, rows, seen, carried)
        actions = np.zeros((env.num_envs, *action.shape[1:]), action.dtype)
        actions[running] = action
        observation, reward, terminated, truncated, info = env.step(actions)
        decisions += 1
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
                decisions,
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
    return [outcomes[index] for index in range(number)]
