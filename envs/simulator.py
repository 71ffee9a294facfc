"""Environments of others, one at a time behind `Simulator`, many behind our vector API.

A `Simulator` is one environment, reduced to what collecting and planning need. Acting and looking
are apart, so that nothing is looked at or rendered which nobody asked for: with action repeat,
only the last step is. `forethought.envs.wrappers` adds to simulators, `SimulatorVectorEnv` makes
a Gymnasium vector environment out of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from numpy.typing import NDArray

from forethought.envs.vector import Bools, MaskedResetVectorEnv

Array = NDArray[Any]
# An array, or arrays by name where the observation space is a `Dict`.
Observation = Array | dict[str, Array]
# Reward, terminated, truncated.
Outcome = tuple[float, bool, bool]


class Simulator(ABC):
    """Abstract: one environment of somebody else's.

    Attributes:
        observation_space: `Box`, or a flat `Dict` of them.
        action_space: `Box` of rank 1, or `Discrete` from 0.
        control_step_seconds: Seconds between two calls of `advance`.
        episode_limit: Calls of `advance` after which an episode is truncated, or None.
        success: The environment's own verdict on the episode so far; None where it has none.
    """

    observation_space: Space[Any]
    action_space: spaces.Box | spaces.Discrete
    control_step_seconds: float
    episode_limit: int | None
    success: bool | None = None

    @abstractmethod
    def begin(self, seed: int | None) -> None:
        """Begin an episode, which `seed` alone decides; None goes on with the same generator."""

    @abstractmethod
    def advance(self, action: Array) -> Outcome:
        """Move on by one control step; `action` `(A,)` float64, or an int64 scalar."""

    @abstractmethod
    def observe(self) -> Observation:
        """The observation now, in arrays that are not written to again."""

    @abstractmethod
    def quantities(self) -> Mapping[str, Array]:
        """Named quantities now, each float32 `(n,)`."""

    def goal(self) -> Observation | None:
        """The goal of this episode as an observation; None where there is none."""
        return None

    @abstractmethod
    def picture(self, size: int) -> NDArray[np.uint8]:
        """What a camera sees now, `(3, size, size)`.

        Raises:
            RenderingError: Pictures cannot be rendered here.
        """

    @abstractmethod
    def frame(self) -> NDArray[np.uint8]:
        """What a camera sees now, for people: `(H, W, 3)`.

        Raises:
            RenderingError: Pictures cannot be rendered here.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what is held outside of Python."""


class SimulatorVectorEnv(MaskedResetVectorEnv):
    """`N` simulators of the same kind, side by side.

    `info["quantities"]` holds the simulators' quantities `(N, n)`; `info["goal"]` and
    `info["success"]` are there where the simulators have them.

    Args:
        simulators: At least one; they are stepped in turn.
        render_mode: `rgb_array` or None.
    """

    def __init__(self, simulators: Sequence[Simulator], render_mode: str | None = None) -> None:
        self.simulators = tuple(simulators)
        first = self.simulators[0]
        super().__init__(
            len(self.simulators),
            observation_space=first.observation_space,
            action_space=first.action_space,
            control_step_seconds=first.control_step_seconds,
            episode_limit=first.episode_limit,
            render_mode=render_mode,
        )
        space = first.observation_space
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        self._observations = {
            name: np.zeros((self.num_envs, *(part.shape or ())), part.dtype)
            for name, part in parts.items()  # in the order of the space, which sorts names
        }
        self._named: dict[str, Array] = {}
        self._goals: dict[str, Array] = {}
        self._judges = False

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Frames `(H, W, 3)` uint8, one per environment; None without a render mode."""
        if self.render_mode is None:
            return None
        return tuple(simulator.frame() for simulator in self.simulators)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the simulators; `close` calls this once."""
        for simulator in self.simulators:
            simulator.close()

    def _start(self, row: int, seed: int | None) -> None:
        simulator = self.simulators[row]
        simulator.begin(seed)
        self._judges |= simulator.success is not None
        self._look(row)
        goal = simulator.goal()
        if goal is not None:
            self._put(self._goals, row, _named(goal))

    def _advance(self, actions: Array, active: Bools) -> Array:
        if isinstance(self.single_action_space, spaces.Box):
            actions = np.clip(actions, -1.0, 1.0)
        rewards = np.zeros(self.num_envs)
        for row in np.flatnonzero(active).tolist():
            simulator = self.simulators[row]
            rewards[row], terminated, truncated = simulator.advance(actions[row])
            self._terminated[row] = terminated
            self._truncated[row] = truncated and not terminated
            if simulator.success is not None:
                self._judges = True
                self._success[row] = simulator.success
            self._look(row)
        return rewards

    def _observe(self) -> Any:
        return _unnamed({name: array.copy() for name, array in self._observations.items()})

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {
            "quantities": {name: array.copy() for name, array in self._named.items()}
        }
        if self._goals:
            info["goal"] = _unnamed({name: array.copy() for name, array in self._goals.items()})
        if self._judges:
            info["success"] = self._success.copy()
        return info

    def _look(self, row: int) -> None:
        simulator = self.simulators[row]
        self._put(self._observations, row, _named(simulator.observe()))
        self._put(self._named, row, simulator.quantities())

    def _put(self, batch: dict[str, Array], row: int, entries: Mapping[str, Array]) -> None:
        """Write the arrays of one row into those of all rows, which the first one makes."""
        for name, entry in entries.items():
            try:
                batch[name][row] = entry
            except KeyError:
                batch[name] = np.zeros((self.num_envs, *entry.shape), entry.dtype)
                batch[name][row] = entry


def _named(observation: Observation) -> dict[str, Array]:
    return observation if isinstance(observation, dict) else {"": observation}


def _unnamed(arrays: dict[str, Array]) -> Observation:
    return arrays.get("", arrays)
