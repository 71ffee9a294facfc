"""Behaviour policies: what acts while data are collected.

A policy is stateless. All it may remember is the previous action, which the collector passes
in; all its randomness comes from the generator it is handed.

Actions have one row per environment: `(N, A)` float32 in [-1, 1] where the space is a `Box`,
`(N, 1)` int64 where it is `Discrete`. Before an episode's first action the row of previous
actions says so: it is all 0, or -1 where actions are `Discrete`; see `no_actions`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.random import Generator
from numpy.typing import NDArray

from forethought.envs import arm, maze
from forethought.envs.two_rooms import ROOMS_32, ROOMS_65, Geometry, greedy, scripted

Array = NDArray[Any]


class Policy(ABC):
    """Abstract: observations in, actions out, for `N` environments at once."""

    @property
    def name(self) -> str:
        """Name under which episodes record this policy."""
        return type(self).__name__.lower()

    def for_space(self, action_space: spaces.Space[Any]) -> Policy:
        """This policy for environments with an action space, or another one that stands for it.

        By default a policy acts in a `Box` in [-1, 1] only.

        Args:
            action_space: Of one environment.

        Raises:
            ValueError: The policy cannot act in it.
        """
        if isinstance(action_space, spaces.Discrete):
            raise ValueError(f"policy {self.name} has no actions in {action_space}: use Random")
        return self

    @abstractmethod
    def __call__(
        self,
        observations: Any,
        info: Mapping[str, Any],
        previous_actions: Array,
        generator: Generator,
    ) -> Array:
        """Choose actions.

        Args:
            observations: `(N, *O)`, or a dictionary of them.
            info: The environment's infos.
            previous_actions: `(N, A)`; all zero (-1 where actions are `Discrete`) in a row whose
                episode has just begun.
            generator: Source of all randomness.

        Returns:
            Actions `(N, A)`: float32 in [-1, 1], or int64 where actions are `Discrete`.
        """


@dataclass(frozen=True)
class Random(Policy):
    """Uniform actions, in a `Box` or a `Discrete` space.

    Attributes:
        hold: Probability of repeating the previous action instead of drawing a new one.
    """

    hold: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.hold < 1:
            raise ValueError(f"hold is {self.hold}: it must be in [0, 1)")

    def for_space(self, action_space: spaces.Space[Any]) -> Policy:
        """See `Policy`."""
        if isinstance(action_space, spaces.Discrete):
            return _RandomIndices(int(action_space.n), self.hold, self.name)
        return self

    def __call__(
        self,
        observations: Any,
        info: Mapping[str, Any],
        previous_actions: Array,
        generator: Generator,
    ) -> Array:
        """See `Policy`."""
        fresh = generator.uniform(-1.0, 1.0, previous_actions.shape)
        held = generator.uniform(size=len(previous_actions)) < self.hold
        held &= ~_begun(previous_actions)
        return np.where(held[:, None], previous_actions, fresh).astype(np.float32)


@dataclass(frozen=True)
class Smooth(Policy):
    """Random walks with inertia: each action is a mix of the previous one and fresh noise.

    a_t = correlation * a_{t-1} + sqrt(1 - correlation^2) * scale * noise, clipped to [-1, 1]:
    a first-order autoregression whose spread stays at `scale` (less what clipping cuts).
    `Discrete` actions have no in-between: there it is `Random(hold=0.8)`.

    Attributes:
        correlation: Of successive actions, in [0, 1). 0.9 remembers for about ten steps.
        scale: Standard deviation of one action component before clipping.
    """

    correlation: float = 0.9
    scale: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.correlation < 1:
            raise ValueError(f"correlation is {self.correlation}: it must be in [0, 1)")
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale}: it must be above 0")

    def for_space(self, action_space: spaces.Space[Any]) -> Policy:
        """See `Policy`."""
        if isinstance(action_space, spaces.Discrete):
            return _RandomIndices(int(action_space.n), 0.8, self.name)
        return self

    def __call__(
        self,
        observations: Any,
        info: Mapping[str, Any],
        previous_actions: Array,
        generator: Generator,
    ) -> Array:
        """See `Policy`."""
        noise = self.scale * generator.standard_normal(previous_actions.shape)
        fresh_part = np.sqrt(1.0 - self.correlation**2)
        mixed = self.correlation * previous_actions + fresh_part * noise
        # An episode begins at the stationary spread, not at rest.
        actions = np.where(_begun(previous_actions)[:, None], noise, mixed)
        return np.clip(actions, -1.0, 1.0).astype(np.float32)


@dataclass(frozen=True)
class _RandomIndices(Policy):
    """Uniform actions in a `Discrete` space.

    Attributes:
        count: Number of actions.
        hold: Probability of repeating the previous action instead of drawing a new one.
        of: Name of the policy that it stands for.
    """

    count: int
    hold: float
    of: str

    @property
    def name(self) -> str:
        """The name of the policy that it stands for."""
        return self.of

    def for_space(self, action_space: spaces.Space[Any]) -> Policy:
        """See `Policy`."""
        return self

    def __call__(
        self,
        observations: Any,
        info: Mapping[str, Any],
        previous_actions: Array,
        generator: Generator,
    ) -> Array:
        """See `Policy`."""
        fresh = generator.integers(self.count, size=previous_actions.shape)
        held = generator.uniform(size=previous_actions.shape) < self.hold
        return np.where(held & (previous_actions >= 0), previous_actions, fresh)


@dataclass(frozen=True)
class Greedy(Policy):
    """Two-Rooms, mazes, the arm: straight for the goal by the true position, walls or not.

    Attributes:
        noise: Standard deviation of Gaussian noise on each action component.
    """

    noise: float = 0.0

    def __post_init__(self) -> None:
        _check_noise(self.noise)

    def __call__(
        self,
        observations: Any,
        info: Mapping[str, Any],
        previous_actions: Array,
        generator: Generator,
    ) -> Array:
        """See `Policy`."""
        if "arm" in info:
            actions = arm.greedy(info["arm"])
        elif "maze" in info:
            actions = maze.greedy(info["maze"], info["quantities"])
        else:
            actions = greedy(_geometry(observations, info, self.name), info["quantities"])
        return _with_noise(actions, self.noise, generator)


@dataclass(frozen=True)
class Scripted(Policy):
    """Two-Rooms, mazes, the arm: by a free path to the goal, found with the true positions.

    Attributes:
        noise: Standard deviation of Gaussian noise on each action component.
    """

    noise: float = 0.0

    def __post_init__(self) -> None:
        _check_noise(self.noise)

    def __call__(
        self,
        observations: Any,
        info: Mapping[str, Any],
        previous_actions: Array,
        generator: Generator,
    ) -> Array:
        """See `Policy`."""
        if "arm" in info:
            actions = arm.scripted(info["arm"])
        elif "maze" in info:
            actions = maze.scripted(info["maze"], info["quantities"])
        else:
            actions = scripted(_geometry(observations, info, self.name), info["quantities"])
        return _with_noise(actions, self.noise, generator)


def no_actions(action_space: spaces.Space[Any], count: int) -> Array:
    """Previous actions `(N, A)` of `count` episodes that have just begun; see the module."""
    if isinstance(action_space, spaces.Discrete):
        return np.full((count, 1), -1, np.int64)
    return np.zeros((count, *(action_space.shape or ())), np.float32)


def env_actions(action_space: spaces.Space[Any], actions: Array) -> Array:
    """What `VectorEnv.step` takes, from a policy's actions `(N, A)`: `(N,)` where `Discrete`."""
    return actions[:, 0] if isinstance(action_space, spaces.Discrete) else actions


def _begun(previous_actions: Array) -> NDArray[np.bool_]:
    """Rows `(N,)` whose episode has just begun."""
    return np.asarray((previous_actions == 0).all(axis=1), np.bool_)


def _check_noise(noise: float) -> None:
    if not noise >= 0:
        raise ValueError(f"noise is {noise}: it must be 0 or above")


def _with_noise(actions: Array, noise: float, generator: Generator) -> Array:
    noisy = actions + noise * generator.standard_normal(actions.shape)
    return np.clip(noisy, -1.0, 1.0).astype(np.float32)


def _geometry(observations: Any, info: Mapping[str, Any], policy: str) -> Geometry:
    """The Two-Rooms geometry with pictures of this size, and with the step that `info` tells."""
    shape = getattr(observations, "shape", ())[1:]
    for geometry in (ROOMS_32, ROOMS_65):
        if shape == (2, geometry.size, geometry.size):
            told = info.get("two_rooms")
            step = geometry.max_step if told is None else float(told["max_step"][0])
            return replace(geometry, max_step=step)
    raise ValueError(
        f"policy {policy} got observations of shape {shape}: "
        "it knows mazes, the arm, and the pictures of Two-Rooms only"
    )
