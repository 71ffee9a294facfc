"""What is known about an environment once it exists: its spaces, its clock and its limits.

An `EnvSpec` is the only way in which sizes that are known at run time travel. It is stored as
JSON beside data sets and checkpoints, and two specs are equal when their JSON is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from numpy.typing import NDArray


@dataclass(frozen=True)
class EnvSpec:
    """Description of one (single, not vectorised) environment.

    Attributes:
        id: Gymnasium id, e.g. `forethought/TwoRooms-v0`.
        observation_space: Space of one observation: `Box`, `Discrete` or `Dict` of them.
        action_space: `Box` of rank 1 or `Discrete`.
        control_step_seconds: Time that passes between two decisions, in seconds.
        episode_limit: Decisions after which an episode is truncated.
        options: The keyword arguments `make` was given; values that JSON can hold.

    Raises:
        ValueError: A field is outside its range, or an option is not JSON.
    """

    id: str
    observation_space: Space[Any]
    action_space: spaces.Box | spaces.Discrete
    control_step_seconds: float
    episode_limit: int
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("id is empty: give the Gymnasium id of the environment")
        if not isinstance(self.action_space, spaces.Box | spaces.Discrete):
            raise ValueError(f"action_space is {self.action_space}: use Box or Discrete")
        if isinstance(self.action_space, spaces.Box) and len(self.action_space.shape) != 1:
            raise ValueError(
                f"action_space has shape {self.action_space.shape}: flatten it to one axis"
            )
        if not self.control_step_seconds > 0:
            raise ValueError(
                f"control_step_seconds is {self.control_step_seconds}: it must be above 0"
            )
        if self.episode_limit < 1:
            raise ValueError(f"episode_limit is {self.episode_limit}: it must be at least 1")
        try:
            # Through JSON once, so that a spec equals itself after a round trip (tuples, NumPy).
            options = json.loads(json.dumps(dict(self.options), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"options are {dict(self.options)}: use values that JSON can hold"
            ) from error
        object.__setattr__(self, "options", options)

    @property
    def action_dim(self) -> int:
        """Columns of an action array: `A` for a `Box`, 1 (the index) for a `Discrete`."""
        if isinstance(self.action_space, spaces.Discrete):
            return 1
        return int(self.action_space.shape[0])

    @property
    def action_repeat(self) -> int:
        """Steps of the environment in one decision: those of an episode are `length` times it.

        The actions of a block count each. (The last decision of an episode may hold fewer.)
        """
        return int(self.options.get("action_repeat", 1)) * int(self.options.get("block", 1))

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that strict JSON can hold; `from_json` undoes it."""
        return {
            "id": self.id,
            "observation_space": space_to_json(self.observation_space),
            "action_space": space_to_json(self.action_space),
            "control_step_seconds": self.control_step_seconds,
            "episode_limit": self.episode_limit,
            "options": dict(self.options),
        }

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> EnvSpec:
        """Rebuild a spec from `to_json`.

        Raises:
            ValueError: A field is missing or a space is of an unknown type.
        """
        try:
            action_space = space_from_json(record["action_space"])
            if not isinstance(action_space, spaces.Box | spaces.Discrete):
                raise ValueError(f"action_space is {action_space}: only Box and Discrete are known")
            return EnvSpec(
                id=record["id"],
                observation_space=space_from_json(record["observation_space"]),
                action_space=action_space,
                control_step_seconds=float(record["control_step_seconds"]),
                episode_limit=int(record["episode_limit"]),
                options=dict(record["options"]),
            )
        except KeyError as error:
            raise ValueError(
                f"the stored environment spec has no field {error}: write it with EnvSpec.to_json"
            ) from error


def space_to_json(space: Space[Any]) -> dict[str, Any]:
    """Describe a `Box`, `Discrete` or `Dict` space as JSON (bounds that are uniform as a scalar).

    Raises:
        ValueError: The space is of another type.
    """
    if isinstance(space, spaces.Box):
        return {
            "type": "Box",
            "shape": list(space.shape),
            "dtype": np.dtype(space.dtype).name,
            "low": _bound_to_json(space.low),
            "high": _bound_to_json(space.high),
        }
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.Dict):
        parts = {name: space_to_json(part) for name, part in space.spaces.items()}
        return {"type": "Dict", "spaces": parts}
    raise ValueError(f"space {space} is not supported: use Box, Discrete or Dict")


def space_from_json(record: Mapping[str, Any]) -> Space[Any]:
    """Rebuild a space from `space_to_json`.

    Raises:
        ValueError: The type is unknown.
    """
    kind = record["type"]
    if kind == "Box":
        shape, dtype = tuple(record["shape"]), np.dtype(record["dtype"])
        low = _bound_from_json(record["low"], shape, dtype)
        high = _bound_from_json(record["high"], shape, dtype)
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(int(record["n"]), start=int(record["start"]))
    if kind == "Dict":
        return spaces.Dict({key: space_from_json(part) for key, part in record["spaces"].items()})
    raise ValueError(f"space type {kind!r} is unknown: use Box, Discrete or Dict")


def _bound_to_json(bound: NDArray[Any]) -> Any:
    """Scalar if uniform, else nested lists; infinities as text, which strict JSON lacks."""
    if bound.size and (bound == bound.flat[0]).all():
        return _number_to_json(bound.flat[0])
    flat = [_number_to_json(number) for number in bound.flat]
    return {"flat": flat}


def _number_to_json(number: Any) -> int | float | str:
    if np.isinf(number):
        return "inf" if number > 0 else "-inf"
    value: int | float = number.item()
    return value


def _bound_from_json(record: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    if isinstance(record, Mapping):
        numbers = [float(item) if isinstance(item, str) else item for item in record["flat"]]
        return np.array(numbers, dtype).reshape(shape)
    return np.full(shape, float(record) if isinstance(record, str) else record, dtype)
