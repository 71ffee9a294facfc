"""Controllers of Two-Rooms that read the true positions, and the best that can be done.

They are the yardsticks every figure stands beside: `greedy` ignores the wall, `scripted` takes
the door. All work on `info["quantities"]`, on all environments at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.envs.two_rooms.geometry import Geometry, shortest_path

Array = NDArray[Any]

# Distance kept from the wall's faces and the door's edges, in pixels: with contact `stop` a
# path that grazes an edge would be stuck there.
CLEARANCE = 0.5


def greedy(geometry: Geometry, quantities: Mapping[str, Array]) -> NDArray[np.float32]:
    """Head straight for the goal, walls or not.

    Args:
        geometry: Numbers of the task.
        quantities: `info["quantities"]` with `position` and `goal_position`, `(N, 2)`.

    Returns:
        Actions `(N, 2)` of norm at most 1.
    """
    return _towards(geometry, quantities["position"], quantities["goal_position"])


def scripted(geometry: Geometry, quantities: Mapping[str, Array]) -> NDArray[np.float32]:
    """Head for the goal by way of the door: to its entry, through to its exit, to the goal.

    Args:
        geometry: Numbers of the task.
        quantities: `info["quantities"]` with `position`, `goal_position` `(N, 2)`, `wall` and
            `door` `(N, 1)`.

    Returns:
        Actions `(N, 2)` of norm at most 1.
    """
    position, goal = _float64(quantities, "position"), _float64(quantities, "goal_position")
    wall, door = _float64(quantities, "wall")[:, 0], _float64(quantities, "door")[:, 0]
    side = np.where(goal[:, 0] > wall, 1.0, -1.0)  # the goal's side
    ahead = side * (position[:, 0] - wall)  # how far the agent is past the wall's centre
    reach = geometry.wall_half_thickness + CLEARANCE
    level = np.abs(position[:, 1] - door) <= geometry.door_half_height - CLEARANCE
    entry = np.stack([wall - side * reach, door], axis=1)
    leave = np.stack([wall + side * reach, door], axis=1)
    through = level | (np.abs(ahead) < geometry.wall_half_thickness)
    target = np.where(through[:, None], leave, entry)
    # A hair below the face, as positions arrive rounded to float32.
    past = ahead >= geometry.wall_half_thickness - 1e-4
    return _towards(geometry, position, np.where(past[:, None], goal, target))


def oracle_path_length(geometry: Geometry, quantities: Mapping[str, Array]) -> Array:
    """Length in pixels of the shortest free path from position to goal.

    Args:
        geometry: Numbers of the task.
        quantities: `info["quantities"]`, as for `scripted`.

    Returns:
        `(N,)` float64.
    """
    return shortest_path(
        geometry,
        _float64(quantities, "wall")[:, 0],
        _float64(quantities, "door")[:, 0],
        _float64(quantities, "position"),
        _float64(quantities, "goal_position"),
    )


def oracle_steps(geometry: Geometry, quantities: Mapping[str, Array]) -> NDArray[np.int64]:
    """Fewest steps after which the goal can count as reached (at least one), `(N,)`.

    A lower bound: it is met unless an edge of the door falls into the middle of a step.
    """
    length = oracle_path_length(geometry, quantities) - geometry.success_radius
    return np.maximum(1, np.ceil(length / geometry.max_step)).astype(np.int64)


def _float64(quantities: Mapping[str, Array], name: str) -> Array:
    return np.asarray(quantities[name], np.float64)


def _towards(geometry: Geometry, position: Array, target: Array) -> NDArray[np.float32]:
    action = (target - position) / geometry.max_step
    norm = np.linalg.norm(action, axis=1, keepdims=True)
    return np.asarray(action / np.maximum(norm, 1.0), np.float32)
