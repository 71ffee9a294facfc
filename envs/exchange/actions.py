"""Actions from elsewhere: continuous ones are mapped to [-1, 1], whole numbers are choices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from forethought.envs.spec import EnvSpec

Array = NDArray[Any]
Bound = float | Sequence[float]

LOW, HIGH = "action_low", "action_high"


@dataclass(frozen=True)
class ActionCode:
    """How the actions of a source become those of a data set.

    Attributes:
        space: `Box` in [-1, 1] with `A` columns, or `Discrete`.
        low: `(A,)`, what becomes -1; None where actions stay as they are.
        high: `(A,)`, what becomes 1.
    """

    space: spaces.Box | spaces.Discrete
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None

    @property
    def options(self) -> dict[str, list[float]]:
        """What an `EnvSpec` keeps, so that `unscale_actions` can undo it."""
        if self.low is None or self.high is None:
            return {}
        return {LOW: self.low.tolist(), HIGH: self.high.tolist()}

    def encode(self, actions: Array) -> Array:
        """Map actions `(T, A)`, as `columns` returns them.

        Raises:
            ValueError: There are too many or too few columns, or an action lies outside.
        """
        if isinstance(self.space, spaces.Discrete):
            first, end = int(self.space.start), int(self.space.start + self.space.n)
            if actions.dtype.kind not in "iub" or actions.shape[1] != 1:
                raise ValueError(
                    f"actions are {actions.dtype} {actions.shape}, others are whole numbers in "
                    "one column: give all alike"
                )
            _check_inside(actions, np.array([first]), np.array([end - 1]), "discrete_actions")
            return actions.astype(np.int64)
        if actions.shape[1:] != self.space.shape:
            raise ValueError(
                f"actions have {actions.shape[1]} columns, others have {self.space.shape[0]}: "
                "give all alike"
            )
        if self.low is None or self.high is None:
            _check_inside(actions, self.space.low, self.space.high, f"{LOW} and {HIGH}")
            return actions.astype(self.space.dtype)
        _check_inside(actions, self.low, self.high, f"{LOW} and {HIGH}")
        half = (self.high - self.low) / 2
        centred = actions.astype(np.float64) - (self.low + half)
        # A column that never varies has nothing to be divided by, and becomes 0.
        scaled = np.divide(centred, half, out=np.zeros_like(centred), where=half > 0)
        return np.clip(scaled, -1, 1).astype(np.float32)


def columns(actions: ArrayLike) -> Array:
    """Actions as `(T, A)`; one number per step is one column.

    Raises:
        ValueError: They are no numbers, have more axes, or one is not finite.
    """
    array = np.asarray(actions)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"actions have dtype {array.dtype}: give numbers")
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        raise ValueError(f"actions have shape {array.shape}: give (T, A) or (T,)")
    check_finite("actions", array)
    return array


def code_of(
    actions: Iterable[Array], low: Bound | None, high: Bound | None, choices: int | None
) -> ActionCode:
    """Decide how actions are coded; arguments as for `import_episodes`.

    Args:
        actions: Of each episode, `(T, A)`.
        low: Given lower bounds.
        high: Given upper bounds.
        choices: Given number of discrete actions.

    Raises:
        ValueError: Bounds are not in order, or actions are of no kind that can be stored.
    """
    stream = iter(actions)
    first = next(stream)
    width = first.shape[1]
    bounded = low is not None or high is not None
    if choices is not None and bounded:
        raise ValueError(f"discrete_actions is {choices}: give it or {LOW} and {HIGH}, not both")
    if choices is not None and choices < 1:
        raise ValueError(f"discrete_actions is {choices}: there is at least 1")
    discrete = choices is not None or (first.dtype.kind in "iub" and not bounded)
    if discrete and (width != 1 or first.dtype.kind not in "iub"):
        raise ValueError(
            f"actions are {first.dtype} with {width} columns: give discrete actions as one column "
            "of whole numbers, and others as floating-point numbers"
        )
    if discrete and choices is not None:
        return ActionCode(spaces.Discrete(choices))
    if not discrete and low is not None and high is not None:
        lows, highs = _bounds(LOW, low, width), _bounds(HIGH, high, width)
    else:
        lows, highs = _observed(first, stream)
        if discrete:
            return ActionCode(spaces.Discrete(max(int(highs[0]) + 1, 1)))
        lows = lows if low is None else _bounds(LOW, low, width)
        highs = highs if high is None else _bounds(HIGH, high, width)
    if (lows > highs).any() or (bounded and (lows == highs).any()):
        raise ValueError(
            f"{LOW} is {lows.tolist()}, {HIGH} is {highs.tolist()}: the latter must be above"
        )
    return ActionCode(spaces.Box(-1, 1, (width,), np.float32), lows, highs)


def unscale_actions(spec: EnvSpec, actions: Array) -> Array:
    """Return actions of an imported data set in the units they had before.

    Args:
        spec: The data set's.
        actions: `(..., A)` in [-1, 1].

    Returns:
        `(..., A)` float64 between the `action_low` and `action_high` among the options of the
        spec; the actions themselves where it has none.
    """
    if LOW not in spec.options or HIGH not in spec.options:
        return actions
    low = np.asarray(spec.options[LOW], np.float64)
    high = np.asarray(spec.options[HIGH], np.float64)
    return low + (np.asarray(actions, np.float64) + 1) / 2 * (high - low)


def check_finite(name: str, array: Array) -> Array:
    """Return the array, `(N, ...)`, after checking that all its numbers are finite.

    Raises:
        ValueError: One is not; the first one's row is named.
    """
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        row = int(np.argwhere(~finite)[0, 0])
        number = np.atleast_1d(array[row])[~np.atleast_1d(finite[row])][0]
        raise ValueError(
            f"{name} hold {number} in row {row}: mend the source, or leave the episode out"
        )
    return array


def _observed(first: Array, others: Iterable[Array]) -> tuple[Array, Array]:
    low, high = first.min(0), first.max(0)
    for actions in others:
        if actions.shape[1] != len(low):
            raise ValueError(
                f"actions have {actions.shape[1]} columns, others have {len(low)}: give all alike"
            )
        low, high = np.minimum(low, actions.min(0)), np.maximum(high, actions.max(0))
    return low.astype(np.float64), high.astype(np.float64)


def _bounds(name: str, bound: Bound, width: int) -> NDArray[np.float64]:
    array = np.asarray(bound, np.float64)
    if array.ndim > 1 or (array.ndim == 1 and len(array) != width) or not np.isfinite(array).all():
        raise ValueError(
            f"{name} is {array.tolist()}: give one finite number, or {width}, one for each column"
        )
    return np.broadcast_to(array, (width,)).copy()


def _check_inside(actions: Array, low: Array, high: Array, remedy: str) -> None:
    margin = 1e-6 * (high - low)  # single precision rounds
    outside = (actions < low - margin) | (actions > high + margin)
    if outside.any():
        row, column = (int(index) for index in np.argwhere(outside)[0])
        raise ValueError(
            f"actions hold {actions[row, column]} in row {row}, column {column}, outside of "
            f"{low[column]} to {high[column]}: set {remedy} to include it, or clip the actions"
        )
