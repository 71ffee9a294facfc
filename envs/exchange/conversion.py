"""One episode from elsewhere becomes an `Episode`: dtypes, axes, and numbers that are finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from forethought.envs.episode import Episode, Observation, entries
from forethought.envs.exchange.actions import ActionCode, check_finite, columns
from forethought.envs.index import boxes
from forethought.envs.spec import EnvSpec

Array = NDArray[Any]

_FIELDS = (
    "observations",
    "actions",
    "rewards",
    "terminated",
    "truncated",
    "success",
    "quantities",
    "goal",
    "seed",
    "policy",
)
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Conversion:
    """What is done to each episode.

    Attributes:
        spec: What the episodes will fit.
        code: What is done to actions.
        channels_last: Whether pictures are `(H, W, C)`; None decides by the sizes.
        policy: Name of the behaviour policy where an episode names none.
        exact: The spec was there first: dtypes that fit it are kept, axes are not guessed.
    """

    spec: EnvSpec
    code: ActionCode
    channels_last: bool | None
    policy: str
    exact: bool

    def episode(self, record: Mapping[str, Any], number: int) -> Episode:
        """Convert an episode, whose fields are those of `import_episodes`.

        Raises:
            ValueError: A field is missing, unknown, or does not fit.
        """
        actions = self.code.encode(columns(field_of(record, "actions")))
        terminated = bool(record.get("terminated", False))
        success, goal = record.get("success"), record.get("goal")
        rewards = record.get("rewards")
        if rewards is None:
            rewards = np.zeros(len(actions), np.float32)
        return Episode(
            observations=self._observations("observations", field_of(record, "observations")),
            actions=actions,
            rewards=self._floats("rewards", rewards),
            terminated=terminated,
            truncated=bool(record.get("truncated", not terminated)),
            success=None if success is None else bool(success),
            quantities={
                name: self._columns(f"quantities.{name}", quantity)
                for name, quantity in record.get("quantities", {}).items()
            },
            goal=None if goal is None else self._goal(goal),
            seed=int(record.get("seed", number)),
            env_id=self.spec.id,
            policy=str(record.get("policy", self.policy)),
        )

    def _observations(self, field: str, value: Any) -> Observation:
        if not self.exact:
            return observations_of(field, value, self.channels_last)
        dtypes = {name: box.dtype for name, box in boxes(self.spec, field).items()}

        def convert(name: str, given: Any) -> Array:
            array = _numbers(name, given)
            dtype = dtypes.get(name, array.dtype)
            if not np.can_cast(array.dtype, dtype, "same_kind"):
                raise ValueError(
                    f"{name} have dtype {array.dtype}, the spec says {dtype}: convert them"
                )
            if self.channels_last and array.ndim == 4:
                array = np.moveaxis(array, 3, 1)
            return check_finite(name, _cast(array, dtype))

        converted: Observation = each(field, value, convert)
        return converted

    def _goal(self, goal: Any) -> Observation:
        row = each("goal", goal, lambda _, array: np.asarray(array)[None])
        first: Observation = each(
            "goal", self._observations("goal", row), lambda _, array: array[0]
        )
        return first

    def _floats(self, name: str, value: Any) -> Array:
        array = _numbers(name, value)
        keep = self.exact and array.dtype.kind == "f"
        return check_finite(name, array if keep else _cast(array, np.dtype(np.float32)))

    def _columns(self, name: str, value: Any) -> Array:
        array = self._floats(name, value)
        return array[:, None] if array.ndim == 1 else array


def field_of(record: Mapping[str, Any], field: str) -> Any:
    """Return a field that every episode has.

    Raises:
        ValueError: It is missing, or another one is unknown.
    """
    if unknown := sorted(set(record) - set(_FIELDS)):
        raise ValueError(f"fields {unknown} are unknown: use some of {', '.join(_FIELDS)}")
    if record.get(field) is None:
        raise ValueError(f"{field} are missing: an episode has observations and actions")
    return record[field]


def each(field: str, value: Any, convert: Callable[[str, Any], Any]) -> Any:
    """Convert an observation entry by entry; `convert` gets the flat name as well."""
    if isinstance(value, Mapping):
        return {name: convert(f"{field}.{name}", entry) for name, entry in value.items()}
    return convert(field, value)


def observations_of(field: str, value: Any, channels_last: bool | None) -> Observation:
    """Observations `(N, *O)` as they are stored: uint8 or float32, pictures channels first.

    Raises:
        ValueError: They are no numbers, or one is not finite.
    """

    def convert(name: str, given: Any) -> Array:
        array = _numbers(name, given)
        if array.dtype != np.uint8:
            array = check_finite(name, _cast(array, np.dtype(np.float32)))
        grey = array.ndim == 3 and array.dtype == np.uint8
        if array.ndim == 1 or grey:
            return array[:, None]
        if array.ndim != 4:
            return array
        last = channels_last
        if last is None:
            last = array.shape[3] in _CHANNELS and array.shape[1] not in _CHANNELS
        return np.moveaxis(array, 3, 1) if last else array

    converted: Observation = each(field, value, convert)
    return converted


def space_of(observations: Observation) -> spaces.Space[Any]:
    """The space of what `observations_of` returns: without bounds, but for the bytes' own."""
    parts = {}
    for name, array in entries("observations", observations).items():
        low, high = (0, 255) if array.dtype == np.uint8 else (-np.inf, np.inf)
        parts[name] = spaces.Box(low, high, array.shape[1:], array.dtype.type)
    if not isinstance(observations, Mapping):
        return parts["observations"]
    return spaces.Dict({name: parts[f"observations.{name}"] for name in observations})


def _numbers(name: str, value: Any) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} have dtype {array.dtype}: give numbers")
    if array.ndim == 0:
        raise ValueError(f"{name} are a single number, {array}: give a row for each step")
    return array


def _cast(array: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):  # an infinity, which is found
        return array.astype(dtype, copy=False)
