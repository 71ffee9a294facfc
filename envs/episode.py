"""Records of experience: one episode, and a batch of windows cut from episodes.

Index layout. Observation t comes before action t, reward t after it:

    observations   o0    o1    o2   ...  o(T-1)    oT        T + 1
    actions           a0    a1    a2 ...      a(T-1)         T
    rewards           r0    r1    r2 ...      r(T-1)         T      r(t) is paid for o(t), a(t)
    quantities     q0    q1    q2   ...  q(T-1)    qT        T + 1  measured with the observation

A window of length H that starts at t keeps the layout, and lies inside one episode:

    observations   o(t)      o(t+1)   ...  o(t+H)            H + 1
    actions             a(t)          ...       a(t+H-1)     H
    valid starts   0 <= t <= T - H, so an episode holds T - H + 1 windows of length H
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Episode:
    """One episode, from reset to its end. The arrays are not to be changed.

    Attributes:
        observations: `(T+1, *O)`.
        actions: `(T, A)`; a discrete action is one int64 column.
        rewards: `(T,)`.
        terminated: The task ended the episode (its end is part of the problem).
        truncated: The clock ended the episode (its future is unknown, not worthless).
        success: The environment's own verdict at the end; None where it has none.
        quantities: Named physical quantities, each `(T+1, n)`.
        goal: `(*O)`, an observation; None where the task has no goal.
        seed: Seed of the environment, which alone decides the start, layout and goal.
        env_id: Gymnasium id.
        policy: Name of the behaviour policy.

    Raises:
        ValueError: Lengths disagree, an array is not finite, or nothing happened.
    """

    observations: NDArray[Any]
    actions: NDArray[Any]
    rewards: NDArray[Any]
    terminated: bool
    truncated: bool
    success: bool | None
    quantities: Mapping[str, NDArray[Any]]
    goal: NDArray[Any] | None
    seed: int
    env_id: str
    policy: str

    def __post_init__(self) -> None:
        steps = len(self.actions)
        if steps < 1:
            raise ValueError("actions are empty: an episode has at least one step")
        if self.actions.ndim != 2:
            raise ValueError(f"actions have shape {self.actions.shape}: give (T, A)")
        self._check_length("observations", self.observations, steps + 1)
        if self.rewards.ndim != 1:
            raise ValueError(f"rewards have shape {self.rewards.shape}: give (T,)")
        self._check_length("rewards", self.rewards, steps)
        for name, quantity in self.quantities.items():
            if quantity.ndim != 2:
                raise ValueError(f"quantities[{name!r}] has shape {quantity.shape}: give (T+1, n)")
            self._check_length(f"quantities[{name!r}]", quantity, steps + 1)
        if self.goal is not None and self.goal.shape != self.observations.shape[1:]:
            raise ValueError(
                f"goal has shape {self.goal.shape}: give one observation, "
                f"{self.observations.shape[1:]}"
            )
        for name, array in self._arrays().items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"{name} holds a number that is not finite: drop the episode")

    @property
    def length(self) -> int:
        """Number of steps `T`."""
        return len(self.actions)

    def _check_length(self, name: str, array: NDArray[Any], expected: int) -> None:
        if len(array) != expected:
            raise ValueError(
                f"{name} has {len(array)} rows: {len(self.actions)} actions need {expected}"
            )

    def _arrays(self) -> dict[str, NDArray[Any]]:
        arrays = {
            "observations": self.observations,
            "actions": self.actions,
            "rewards": self.rewards,
        }
        arrays |= {f"quantities[{name!r}]": array for name, array in self.quantities.items()}
        return arrays if self.goal is None else arrays | {"goal": self.goal}


@dataclass(frozen=True)
class Windows:
    """A batch of windows of equal length, each from inside one episode.

    Attributes:
        observations: `(B, T+1, *O)`.
        actions: `(B, T, A)`.
        quantities: Named physical quantities, each `(B, T+1, n)`.
    """

    observations: NDArray[Any]
    actions: NDArray[Any]
    quantities: Mapping[str, NDArray[Any]]
