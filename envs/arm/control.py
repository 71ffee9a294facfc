"""Controllers of the arm that read its true configuration: the yardsticks beside every figure.

`greedy` ignores obstacles; `scripted` follows a path that was searched offline. Both work on
`info["arm"]`, on all environments at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from forethought.envs.arm.geometry import LINKS, Array, jacobian, joints
from forethought.envs.arm.search import free_path

_DAMPING = 1e-3  # of the inverse, in squared arm lengths; it matters where the arm is stretched


def greedy(arm: Mapping[str, Array]) -> NDArray[np.float32]:
    """Turn the joints so that the tip heads straight for the target, obstacles or not.

    Damped least squares (Wampler 1986): J' (J J' + damping I)^-1 gap, shortened to one step.

    Args:
        arm: `info["arm"]`, of which `angles`, `goal_angles` and `max_step` are read.

    Returns:
        Actions `(N, 7)` in [-1, 1].
    """
    angles = np.asarray(arm["angles"], np.float64)
    gap = joints(arm["goal_angles"])[:, -1] - joints(angles)[:, -1]
    slope = jacobian(angles)  # (N, 2, 7)
    square = slope @ slope.transpose(0, 2, 1) + _DAMPING * np.eye(2)
    turns = (slope.transpose(0, 2, 1) @ np.linalg.solve(square, gap[..., None]))[..., 0]
    return _within_one_step(turns, arm["max_step"])


def scripted(arm: Mapping[str, Array]) -> NDArray[np.float32]:
    """Follow the path that `free_path` finds from the episode's start to its goal configuration.

    Where none is found it does what `greedy` does. The search has a seed of its own, so that an
    episode has one path.

    Args:
        arm: `info["arm"]`.

    Returns:
        Actions `(N, 7)` in [-1, 1].
    """
    actions = greedy(arm)
    rows = zip(
        arm["angles"],
        arm["start_angles"],
        arm["goal_angles"],
        arm["obstacles"],
        arm["max_step"],
        strict=True,
    )
    for row, (angles, start, goal, circles, max_step) in enumerate(rows):
        path = _path(start.tobytes(), goal.tobytes(), circles.tobytes(), float(max_step))
        if path is None:
            continue
        nearest = int(np.abs(path - angles).max(axis=1).argmin())
        turns = path[min(nearest + 1, len(path) - 1)] - angles
        actions[row] = _within_one_step(turns[None], arm["max_step"][row : row + 1])[0]
    return actions


# Controllers ask for the same episode's path at every step.
@lru_cache(maxsize=1024)
def _path(start: bytes, goal: bytes, circles: bytes, max_step: float) -> Array | None:
    return free_path(
        np.frombuffer(start),
        np.frombuffer(goal),
        np.frombuffer(circles).reshape(-1, 3),
        max_step,
        np.random.default_rng(0),
    )


def _within_one_step(turns: Array, max_step: Array) -> NDArray[np.float32]:
    """Actions `(N, 7)` of joint turns in radians, shortened where the largest exceeds a step."""
    actions = turns / np.asarray(max_step, np.float64)[:, None]
    return np.asarray(
        actions / np.maximum(np.abs(actions).max(axis=1, keepdims=True), 1.0), np.float32
    ).reshape(-1, LINKS)
