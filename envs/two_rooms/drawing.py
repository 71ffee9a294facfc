"""Pictures of Two-Rooms: the observations a model sees, and frames for people.

Observations are made for speed: the agent is an outer product of two Gaussians, the walls are
outer products of how much of each row and column they cover. Frames are drawn in NumPy with
smooth edges, and take trajectories (real or imagined) as paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forethought.envs.two_rooms.geometry import Geometry

Array = NDArray[Any]
Colour = tuple[int, int, int]

BACKGROUND: Colour = (246, 244, 239)
WALL: Colour = (58, 62, 74)
AGENT: Colour = (38, 98, 217)
GOAL: Colour = (34, 160, 90)


def agent_channel(geometry: Geometry, points: Array) -> NDArray[np.uint8]:
    """Show agents as Gaussians with a peak of 255, at sub-pixel positions.

    Args:
        geometry: Numbers of the task.
        points: `(N, 2)`.

    Returns:
        `(N, size, size)` uint8.
    """
    pixels = np.arange(geometry.size, dtype=np.float32)
    offsets = (pixels - points.astype(np.float32)[:, :, None]) / np.float32(geometry.agent_std)
    profile = np.exp(np.float32(-0.5) * offsets * offsets)  # (N, 2, size)
    column, row = profile[:, 0, None, :], profile[:, 1, :, None] * np.float32(255.0)
    # + 0.5 and truncation is rounding to the nearest.
    return np.asarray(row * column + np.float32(0.5), np.uint8)


def wall_channel(geometry: Geometry, wall: Array, door: Array) -> NDArray[np.uint8]:
    """Show the walls; a pixel that a wall covers in part has that part of 255.

    Args:
        geometry: Numbers of the task.
        wall: `(N,)`.
        door: `(N,)`.

    Returns:
        `(N, size, size)` uint8.
    """
    slab = _covered(geometry.size, wall, geometry.wall_half_thickness)  # (N, size) over x
    opening = _covered(geometry.size, door, geometry.door_half_height)  # (N, size) over y
    middle = slab[:, None, :] * (1.0 - opening[:, :, None])
    pixels = np.arange(geometry.size)
    border = (pixels < geometry.low) | (pixels > geometry.high)
    shown = np.where(border[:, None] | border[None, :], 1.0, middle)
    return np.asarray(np.rint(255.0 * shown), np.uint8)


def _covered(size: int, centre: Array, half: float) -> Array:
    """Part of each pixel that [centre - half, centre + half] covers, `(N, size)`."""
    pixels = np.arange(size)
    upper = np.minimum(centre[:, None] + half, pixels + 0.5)
    lower = np.maximum(centre[:, None] - half, pixels - 0.5)
    return np.asarray(np.clip(upper - lower, 0.0, 1.0))


def draw_scene(
    geometry: Geometry,
    wall: float,
    door: float,
    agent: ArrayLike | None,
    goal: ArrayLike | None,
    scale: int = 8,
    paths: Sequence[tuple[ArrayLike, Colour]] | None = None,
) -> NDArray[np.uint8]:
    """Draw one frame for people.

    Args:
        geometry: Numbers of the task.
        wall: x of the wall's centre.
        door: y of the door's centre.
        agent: `(2,)`, or None to leave it out.
        goal: `(2,)`, or None to leave it out.
        scale: Frame pixels per pixel of the task.
        paths: Trajectories `(P, 2)` in pixels of the task, each with its colour (RGB, 0 to 255).

    Returns:
        `(size * scale, size * scale, 3)` uint8.

    Raises:
        ValueError: `scale` is below 1, or a path is not `(P, 2)`.
    """
    if scale < 1:
        raise ValueError(f"scale is {scale}: it must be at least 1")
    centres = (np.arange(geometry.size * scale) + 0.5) / scale - 0.5
    solid_x = np.abs(centres - float(wall)) < geometry.wall_half_thickness
    solid_y = np.abs(centres - float(door)) > geometry.door_half_height
    edge = (centres < geometry.low - 0.5) | (centres > geometry.high + 0.5)
    solid = (solid_y[:, None] & solid_x[None, :]) | edge[:, None] | edge[None, :]
    frame = np.where(solid[..., None], np.asarray(WALL, np.float64), np.asarray(BACKGROUND))
    if goal is not None:
        # The goal is a ring of the radius that counts, with a dot in its middle.
        disc(frame, centres, goal, geometry.success_radius, scale, GOAL, strength=0.35)
        disc(frame, centres, goal, 0.25 * geometry.success_radius, scale, GOAL)
    for points, colour in paths or ():
        polyline(frame, centres, np.asarray(points, np.float64), scale, colour)
    if agent is not None:
        disc(frame, centres, agent, geometry.agent_std, scale, AGENT)
    return np.asarray(np.rint(frame), np.uint8)


def _blend(region: Array, alpha: Array, colour: Colour) -> None:
    region += alpha[..., None] * (np.asarray(colour, np.float64) - region)


def disc(
    frame: Array,
    centres: Array,
    point: ArrayLike,
    radius: float,
    scale: int,
    colour: Colour,
    strength: float = 1.0,
) -> None:
    """Draw a disc with a smooth edge into `frame`.

    Args:
        frame: `(H, W, 3)` float, 0 to 255, changed in place.
        centres: Where the centres of rows and columns are, `(max(H, W),)`, evenly spaced.
        point: Centre of the disc, `(2,)` (x, y), on the scale of `centres`.
        radius: On the same scale.
        scale: Frame pixels per unit of it.
        colour: RGB, 0 to 255.
        strength: 1 covers what is there, 0 leaves it.
    """
    height, width = frame.shape[:2]
    x, y = np.asarray(point, np.float64).reshape(2)
    distance = np.hypot(centres[None, :width] - x, centres[:height, None] - y)
    _blend(frame, strength * np.clip((radius - distance) * scale + 0.5, 0.0, 1.0), colour)


def polyline(
    frame: Array, centres: Array, points: Array, scale: int, colour: Colour, width: float = 0.3
) -> None:
    """Draw a line through points; joints are covered once, by the largest coverage.

    What is outside of the frame is left out, and so are pieces whose ends are not finite: an
    imagined trajectory may run off.

    Args:
        frame: `(H, W, 3)` float, 0 to 255, changed in place.
        centres: Where the centres of rows and columns are, `(max(H, W),)`, evenly spaced.
        points: `(P, 2)` (x, y), on the scale of `centres`.
        scale: Frame pixels per unit of it.
        colour: RGB, 0 to 255.
        width: Half of the line's width, on the same scale.

    Raises:
        ValueError: `points` is not `(P, 2)`.
    """
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"a path has shape {points.shape}: give (P, 2)")
    alpha = np.zeros(frame.shape[:2])
    for start, end in pairwise(points):
        if not np.isfinite([start, end]).all():
            continue
        low = np.searchsorted(centres, np.minimum(start, end) - width - 1.0 / scale)
        high = np.searchsorted(centres, np.maximum(start, end) + width + 1.0 / scale)
        across, down = min(high[0], frame.shape[1]), min(high[1], frame.shape[0])
        if across <= low[0] or down <= low[1]:
            continue
        rows, columns = slice(low[1], down), slice(low[0], across)
        dx, dy = centres[None, columns] - start[0], centres[rows, None] - start[1]
        run, rise = end - start
        along = (dx * run + dy * rise) / max(float(run**2 + rise**2), 1e-12)
        along = np.clip(along, 0.0, 1.0)
        distance = np.hypot(dx - along * run, dy - along * rise)
        cover = np.clip((width - distance) * scale + 0.5, 0.0, 1.0)
        alpha[rows, columns] = np.maximum(alpha[rows, columns], cover)
    _blend(frame, alpha, colour)
