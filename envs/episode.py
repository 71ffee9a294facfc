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

An observation is one array, or a mapping from names to arrays (a camera and the joints, say);
so are observations in a row, and a goal. Below, `(T+1, *O)` then holds for each entry, with an
`*O` of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Observation: TypeAlias = Array | Mapping[str, Array]

_T = TypeVar("_T")


def entries(field: str, value: Observation) -> dict[str, Array]:
    """Arrays of an observation under flat names: `FIELD`, or `FIELD.NAME` for each entry."""
    if isinstance(value, Mapping):
        return {f"{field}.{name}": array for name, array in value.items()}
    return {field: value}


def from_entries(field: str, names: Sequence[str], read: Callable[[str], _T]) -> _T | dict[str, _T]:
    """Undo `entries`: `read` is called with each flat name, with `field` itself without names."""
    return {name: read(f"{field}.{name}") for name in names} if names else read(field)


@dataclass(frozen=True)
class Episode:
    """One episode, from reset to its end. The arrays are not to be changed.

    Attributes:
        observations: `(T+1, *O)`, or a mapping from names to such arrays.
        actions: `(T, A)`; a discrete action is one int64 column.
        rewards: `(T,)`.
        terminated: The task ended the episode (its end is part of the problem).
        truncated: The clock ended the episode (its future is unknown, not worthless).
        success: The environment's own verdict at the end; None where it has none.
        quantities: Named physical quantities, each `(T+1, n)`.
        goal: `(*O)`, one observation, a mapping where `observations` is one; None where the task
            has no goal.
        seed: Seed of the environment, which alone decides the start, layout and goal.
        env_id: Gymnasium id.
        policy: Name of the behaviour policy.

    Raises:
        ValueError: Lengths disagree, an array is not finite, or nothing happened.
    """

    observations: Observation
    actions: Array
    rewards: Array
    terminated: bool
    truncated: bool
    success: bool | None
    quantities: Mapping[str, Array]
    goal: Observation | None
    seed: int
    env_id: str
    policy: str

    def __post_init__(self) -> None:
        steps = len(self.actions)
        if steps < 1:
            raise ValueError("actions are empty: an episode has at least one step")
        if self.actions.ndim != 2:
            raise ValueError(f"actions have shape {self.actions.shape}: give (T, A)")
        observed = entries("observations", self.observations)
        if not observed:
            raise ValueError("observations are an empty mapping: give at least one entry")
        for name, array in observed.items():
            self._check_length(name, array, steps + 1)
        if self.rewards.ndim != 1:
            raise ValueError(f"rewards have shape {self.rewards.shape}: give (T,)")
        self._check_length("rewards", self.rewards, steps)
        for name, quantity in self.quantities.items():
            if quantity.ndim != 2:
                raise ValueError(f"quantities[{name!r}] has shape {quantity.shape}: give (T+1, n)")
            self._check_length(f"quantities[{name!r}]", quantity, steps + 1)
        if self.goal is not None:
            self._check_goal(self.goal)
        for name, array in self._arrays().items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"{name} holds a number that is not finite: drop the episode")

    @property
    def length(self) -> int:
        """Number of steps `T`."""
        return len(self.actions)

    def _check_length(self, name: str, array: Array, expected: int) -> None:
        if len(array) != expected:
            raise ValueError(
                f"{name} has {len(array)} rows: {len(self.actions)} actions need {expected}"
            )

    def _check_goal(self, goal: Observation) -> None:
        observed = entries("goal", self.observations)
        given = entries("goal", goal)
        if given.keys() != observed.keys():
            raise ValueError(
                f"goal has the entries {sorted(given)}, an observation {sorted(observed)}: "
                "give one observation"
            )
        for name, array in given.items():
            if array.shape != observed[name].shape[1:]:
                raise ValueError(
                    f"{name} has shape {array.shape}: give one observation, "
                    f"{observed[name].shape[1:]}"
                )

    def _arrays(self) -> dict[str, Array]:
        arrays = entries("observations", self.observations)
        arrays |= {"actions": self.actions, "rewards": self.rewards}
        arrays |= {f"quantities[{name!r}]": array for name, array in self.quantities.items()}
        return arrays if self.goal is None else arrays | entries("goal", self.goal)


@dataclass(frozen=True)
class Windows:
    """A batch of windows of equal length, each from inside one episode.

    Attributes:
        observations: `(B, T+1, *O)`, or a mapping from names to such arrays.
        actions: `(B, T, A)`.
        quantities: Named physical quantities, each `(B, T+1, n)`.
        rewards: `(B, T)` float32.
        terminal: `(B, T)` bool: this step ended its episode by termination. Only a window's last
            step can.
    """

    observations: Observation
    actions: Array
    quantities: Mapping[str, Array]
    rewards: NDArray[np.float32]
    terminal: NDArray[np.bool_]
