"""Controllers of mazes that read the true positions, and the best that can be done.

They are the yardsticks every figure stands beside: `greedy` ignores the walls, `scripted` follows
the shortest path. All work on `info["maze"]` and `info["quantities"]`, on all environments at once,
and for a body that has extent and inertia as well as for a point: `info["maze"]` says so then with
`radius` and `coast_seconds`, both `(N,)`, and there is a quantity `velocity` `(N, 2)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.envs.maze.geometry import SKIN, path_length, sees, shortest_path
from forethought.envs.maze.layouts import steps_for

Array = NDArray[Any]

# Distance from the goal that counts as touching it, in blocks: less than a wall is thick.
SUCCESS_RADIUS = 0.4

# Distance at which `scripted` passes corners, in blocks: with contact `stop` a path that grazes a
# corner would be stuck there.
CLEARANCE = 0.05


def greedy(maze: Mapping[str, Array], quantities: Mapping[str, Array]) -> NDArray[np.float32]:
    """Head straight for the goal, walls or not.

    Args:
        maze: `info["maze"]` with `max_step` `(N,)`.
        quantities: `info["quantities"]` with `position` and `goal_position`, `(N, 2)`.

    Returns:
        Actions `(N, 2)` of norm at most 1.
    """
    return _towards(maze, quantities, quantities["goal_position"])


def scripted(maze: Mapping[str, Array], quantities: Mapping[str, Array]) -> NDArray[np.float32]:
    """Head for the next bend of the shortest path to the goal.

    Args:
        maze: `info["maze"]` with `walls` `(N, n, n)` and `max_step` `(N,)`.
        quantities: `info["quantities"]` with `position` and `goal_position`, `(N, 2)`.

    Returns:
        Actions `(N, 2)` of norm at most 1.
    """
    starts = _coasted(maze, quantities)
    if "radius" in maze:
        # The path begins where the body coasts to, which moves by a step as a point does; but not
        # where a wall is in between.
        position = np.asarray(quantities["position"], np.float64)
        rows = zip(maze["walls"], position, starts, maze["radius"], strict=True)
        free = np.array([sees(*row) for row in rows])
        starts = np.where(free[:, None], starts, position)
    targets = starts.copy()
    for row, path in enumerate(_paths(maze, starts, quantities["goal_position"], CLEARANCE)):
        # Already at a bend: the next one.
        away = np.linalg.norm(path[1:] - path[0], axis=1) > 1e-4
        targets[row] = path[1:][int(away.argmax())]
    return _towards(maze, quantities, targets)


def oracle_path_length(maze: Mapping[str, Array], quantities: Mapping[str, Array]) -> Array:
    """Length in blocks of the shortest free path from position to goal.

    Exact to 1e-4 (see `shortest_path`). For a body with extent it is the way of its centre, round
    corners that are square: each bend makes it longer by less than half of the radius.

    Args:
        maze: `info["maze"]`, as for `scripted`.
        quantities: `info["quantities"]`, as for `scripted`.

    Returns:
        `(N,)` float64.
    """
    ends = quantities["position"], quantities["goal_position"]
    return np.array([path_length(path) for path in _paths(maze, *ends, 1e-6)])


def oracle_steps(maze: Mapping[str, Array], quantities: Mapping[str, Array]) -> NDArray[np.int64]:
    """Fewest steps after which the goal can count as reached (at least one), `(N,)`.

    A lower bound: it is met where no bend of the path falls into the middle of a step. A body with
    inertia is taken to move at full speed at once.
    """
    lengths = oracle_path_length(maze, quantities) - SUCCESS_RADIUS - SKIN
    pairs = zip(lengths, maze["max_step"], strict=True)
    return np.array([steps_for(float(length), float(step)) for length, step in pairs], np.int64)


def _paths(maze: Mapping[str, Array], starts: Array, goals: Array, clearance: float) -> list[Array]:
    radius = maze.get("radius", np.zeros(len(starts)))
    rows = zip(maze["walls"], starts, goals, radius, strict=True)
    return [
        shortest_path(walls, start, goal, clearance, float(extent))
        for walls, start, goal, extent in rows
    ]


def _coasted(maze: Mapping[str, Array], quantities: Mapping[str, Array]) -> Array:
    """Where agents come to rest if they do nothing, `(N, 2)` float64; walls are not asked."""
    position = np.asarray(quantities["position"], np.float64)
    if "coast_seconds" not in maze:
        return position
    coast = np.asarray(maze["coast_seconds"], np.float64)[:, None]
    return np.asarray(position + coast * quantities["velocity"])


def _towards(
    maze: Mapping[str, Array], quantities: Mapping[str, Array], target: Array
) -> NDArray[np.float32]:
    """Actions that lead to a target: a body with inertia is aimed from where it would coast to.

    That is proportional control of the position with damping by the velocity, in the ratio at
    which a body comes to rest at the target without overshooting it.
    """
    offset = np.asarray(target, np.float64) - _coasted(maze, quantities)
    action = offset / np.asarray(maze["max_step"], np.float64)[:, None]
    norm = np.linalg.norm(action, axis=1, keepdims=True)
    return np.asarray(action / np.maximum(norm, 1.0), np.float32)
