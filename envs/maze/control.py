"""Controllers of mazes that read the true positions, and the best that can be done.

They are the yardsticks every figure stands beside: `greedy` ignores the walls, `scripted` follows
the shortest path. All work on `info["maze"]` and `info["quantities"]`, on all environments at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.envs.maze.geometry import SKIN, path_length, shortest_path
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
    return _towards(maze, quantities["position"], quantities["goal_position"])


def scripted(maze: Mapping[str, Array], quantities: Mapping[str, Array]) -> NDArray[np.float32]:
    """Head for the next bend of the shortest path to the goal.

    Args:
        maze: `info["maze"]` with `walls` `(N, n, n)` and `max_step` `(N,)`.
        quantities: `info["quantities"]` with `position` and `goal_position`, `(N, 2)`.

    Returns:
        Actions `(N, 2)` of norm at most 1.
    """
    position = np.asarray(quantities["position"], np.float64)
    targets = position.copy()
    for row, path in enumerate(_paths(maze, quantities, CLEARANCE)):
        # Already at a bend: the next one.
        away = np.linalg.norm(path[1:] - path[0], axis=1) > 1e-4
        targets[row] = path[1:][int(away.argmax())]
    return _towards(maze, position, targets)


def oracle_path_length(maze: Mapping[str, Array], quantities: Mapping[str, Array]) -> Array:
    """Length in blocks of the shortest free path from position to goal.

    Exact to 1e-4 (see `shortest_path`).

    Args:
        maze: `info["maze"]`, as for `scripted`.
        quantities: `info["quantities"]`, as for `scripted`.

    Returns:
        `(N,)` float64.
    """
    return np.array([path_length(path) for path in _paths(maze, quantities, 1e-6)])


def oracle_steps(maze: Mapping[str, Array], quantities: Mapping[str, Array]) -> NDArray[np.int64]:
    """Fewest steps after which the goal can count as reached (at least one), `(N,)`.

    A lower bound: it is met where no bend of the path falls into the middle of a step.
    """
    lengths = oracle_path_length(maze, quantities) - SUCCESS_RADIUS - SKIN
    pairs = zip(lengths, maze["max_step"], strict=True)
    return np.array([steps_for(float(length), float(step)) for length, step in pairs], np.int64)


def _paths(
    maze: Mapping[str, Array], quantities: Mapping[str, Array], clearance: float
) -> list[Array]:
    position, goal = quantities["position"], quantities["goal_position"]
    rows = zip(maze["walls"], position, goal, strict=True)
    return [shortest_path(walls, start, end, clearance) for walls, start, end in rows]


def _towards(maze: Mapping[str, Array], position: Array, target: Array) -> NDArray[np.float32]:
    offset = np.asarray(target, np.float64) - position
    action = offset / np.asarray(maze["max_step"], np.float64)[:, None]
    norm = np.linalg.norm(action, axis=1, keepdims=True)
    return np.asarray(action / np.maximum(norm, 1.0), np.float32)
