"""The geometry of Two-Rooms: where walls are, what blocks a point, and the shortest path.

Coordinates are pixels, x to the right and y down; the centre of pixel (row i, column j) is the
point (x = j, y = i), so that a pixel covers [j - 0.5, j + 0.5]. The agent is a point. It moves
in the square `low <= x, y <= high`; the middle wall is the slab `|x - wall| < wall_half_thickness`
except where `|y - door| <= door_half_height`.

Every episode has its own `wall` (x of the wall's centre) and `door` (y of the door's centre).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Geometry:
    """All numbers of a Two-Rooms task, in pixels unless they say otherwise.

    Attributes:
        size: Side of the picture.
        border: Thickness of the outer wall.
        wall_half_thickness: Half of the thickness of the middle wall.
        door_half_height: Half of the height of the door.
        max_step: Distance covered by an action of norm 1.
        success_radius: Distance to the goal that counts as reached.
        agent_std: Standard deviation of the Gaussian that shows the agent.
        episode_limit: Steps after which an episode is truncated.
        fixed_wall: x of the wall's centre in layout `fixed`.
        fixed_door: y of the door's centre in layout `fixed`.
        wall_range: Lowest and highest integer x of the wall in layout `random`.
        door_range: Lowest and highest integer y of the door in layout `random`.
        substeps: Parts in which a step is carried out; each must be shorter than the wall.
    """

    size: int = 32
    border: int = 2
    wall_half_thickness: float = 1.5
    door_half_height: float = 2.5
    max_step: float = 2.0
    success_radius: float = 1.5
    agent_std: float = 1.0
    episode_limit: int = 60
    fixed_wall: float = 15.5
    fixed_door: float = 9.0
    wall_range: tuple[int, int] = (10, 21)
    door_range: tuple[int, int] = (6, 25)
    substeps: int = 4

    @property
    def low(self) -> float:
        """Lowest coordinate the agent can have."""
        return float(self.border)

    @property
    def high(self) -> float:
        """Highest coordinate the agent can have."""
        return float(self.size - 1 - self.border)


ROOMS_32 = Geometry()

# The numbers of Two-Rooms in eb_jepa (FAIR), whose published figures are compared with.
ROOMS_65 = Geometry(
    size=65,
    border=5,
    wall_half_thickness=1.5,
    door_half_height=4.0,
    max_step=2.45,
    success_radius=4.5,
    agent_std=1.3,
    episode_limit=200,
    fixed_wall=32.0,
    fixed_door=32.0,
    wall_range=(20, 44),
    door_range=(10, 54),
)

# By the id under which an environment of this geometry is registered.
GEOMETRIES = {"forethought/TwoRooms-v0": ROOMS_32, "forethought/TwoRooms65-v0": ROOMS_65}


def blocked(geometry: Geometry, wall: Array, door: Array, points: Array) -> NDArray[np.bool_]:
    """Say which points `(N, 2)` lie in a wall; `wall` and `door` are `(N,)`. Returns `(N,)`."""
    outside = ((points < geometry.low) | (points > geometry.high)).any(axis=1)
    in_slab = np.abs(points[:, 0] - wall) < geometry.wall_half_thickness
    in_door = np.abs(points[:, 1] - door) <= geometry.door_half_height
    return np.asarray(outside | (in_slab & ~in_door), np.bool_)


def move(
    geometry: Geometry, wall: Array, door: Array, points: Array, actions: Array, *, slide: bool
) -> Array:
    """Carry out one step of all agents.

    Args:
        geometry: Numbers of the task.
        wall: `(N,)`.
        door: `(N,)`.
        points: Positions `(N, 2)`.
        actions: `(N, 2)`, projected on the unit disc.
        slide: A blocked axis loses only its own movement; otherwise a blocked part of a step
            is not carried out, nor is the rest of the step.

    Returns:
        New positions `(N, 2)`.
    """
    norm = np.linalg.norm(actions, axis=1, keepdims=True)
    part = actions / np.maximum(norm, 1.0) * (geometry.max_step / geometry.substeps)
    moving = np.ones(len(points), np.bool_)
    for _ in range(geometry.substeps):
        start = points
        for axis in (0, 1):
            trial = points.copy()
            trial[:, axis] += part[:, axis]
            free = ~blocked(geometry, wall, door, trial)
            if not slide:
                moving &= free
            points = np.where(free[:, None], trial, points)
        if not slide:
            points = np.where(moving[:, None], points, start)
    return points


def crosses_wall(
    geometry: Geometry,
    wall: ArrayLike,
    door: ArrayLike,
    start: ArrayLike,
    end: ArrayLike,
    *,
    margin: float = 0.5,
) -> NDArray[np.bool_]:
    """Say which straight moves pass through the middle wall beside the door.

    Args:
        geometry: Numbers of the task.
        wall: x of the wall's centre, `(N,)`, `(N, 1)` or one number.
        door: y of the door's centre, likewise.
        start: `(N, 2)`.
        end: `(N, 2)`.
        margin: Pixels by which a move must enter the wall to count. Real moves bend round the
            door's edges inside one step, so that their straight chords cut the edge a little.

    Returns:
        `(N,)` bool.
    """
    start, end = np.asarray(start, np.float64), np.asarray(end, np.float64)
    left = np.reshape(wall, -1) - (geometry.wall_half_thickness - margin)
    right = np.reshape(wall, -1) + (geometry.wall_half_thickness - margin)
    reach = geometry.door_half_height + margin
    run = end[:, 0] - start[:, 0]
    safe_run = np.where(np.abs(run) < 1e-12, 1e-12, run)
    first, second = (left - start[:, 0]) / safe_run, (right - start[:, 0]) / safe_run
    enter = np.clip(np.minimum(first, second), 0.0, 1.0)
    leave = np.clip(np.maximum(first, second), 0.0, 1.0)
    # Heights above the door's centre where the move enters and leaves the slab.
    heights = start[:, 1] - np.reshape(door, -1)
    rise = end[:, 1] - start[:, 1]
    farthest = np.maximum(np.abs(heights + enter * rise), np.abs(heights + leave * rise))
    middle = start[:, 0] + 0.5 * (enter + leave) * run
    inside = (middle > left) & (middle < right)
    return np.asarray(inside & (farthest > reach), np.bool_)


def shortest_path(geometry: Geometry, wall: Array, door: Array, start: Array, end: Array) -> Array:
    """Length in pixels of the shortest path that no wall blocks.

    Exact: a path through the door crosses the two faces of the wall at heights within the door;
    the shortest is straight, or bends at one edge of the door, or at two.

    Args:
        geometry: Numbers of the task.
        wall: `(N,)`.
        door: `(N,)`.
        start: `(N, 2)`, in one of the rooms or in the door.
        end: `(N, 2)`, likewise.

    Returns:
        `(N,)`.
    """
    straight = np.linalg.norm(end - start, axis=1)
    # Swap so that the path runs from left to right.
    swap = (start[:, 0] > end[:, 0])[:, None]
    start, end = np.where(swap, end, start), np.where(swap, start, end)
    near = wall - geometry.wall_half_thickness
    far = wall + geometry.wall_half_thickness
    # A point inside the door stands for the face it has already passed.
    near, far = np.maximum(near, start[:, 0]), np.minimum(far, end[:, 0])
    through = near < far
    lowest, highest = door - geometry.door_half_height, door + geometry.door_half_height

    def height(x: Array, first: Array, second: Array) -> Array:
        """Height at `x` of the line from `first` to `second`, each `(N, 2)`, within the door."""
        part = (x - first[:, 0]) / np.maximum(second[:, 0] - first[:, 0], 1e-12)
        line = first[:, 1] + part * (second[:, 1] - first[:, 1])
        return np.asarray(np.clip(line, lowest, highest))

    best = np.full(len(start), np.inf)
    entries = [height(near, start, end), lowest, highest]
    exits = [height(far, start, end), lowest, highest]
    choices = [(entry, leave) for entry in entries for leave in exits]
    choices += [(entry, height(far, _stack(near, entry), end)) for entry in entries]
    choices += [(height(near, start, _stack(far, leave)), leave) for leave in exits]
    for entry, leave in choices:
        first, second = _stack(near, entry), _stack(far, leave)
        length = np.linalg.norm(first - start, axis=1) + np.linalg.norm(end - second, axis=1)
        best = np.minimum(best, length + np.linalg.norm(second - first, axis=1))
    return np.asarray(np.where(through, best, straight))


def _stack(x: Array, y: Array) -> Array:
    return np.stack([x, y], axis=1)
