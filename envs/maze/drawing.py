"""Pictures of mazes: the observations a model sees, and frames for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forethought.envs.maze.control import SUCCESS_RADIUS
from forethought.envs.two_rooms.drawing import (
    AGENT,
    BACKGROUND,
    GOAL,
    WALL,
    Colour,
    disc,
    polyline,
)
from forethought.envs.two_rooms.drawing import agent_channel as two_rooms_agent_channel
from forethought.envs.two_rooms.geometry import ROOMS_32

Array = NDArray[Any]

# Standard deviation of the Gaussian that shows the agent, in pixels: wide enough that it moves
# smoothly from pixel to pixel.
AGENT_STD = 1.3


def agent_channel(points: Array, side: int, picture: int) -> NDArray[np.uint8]:
    """Show agents as Gaussians with a peak of 255, at sub-pixel positions.

    Args:
        points: `(N, 2)` in blocks.
        side: Blocks along a side of the maze.
        picture: Pixels along a side of the picture.

    Returns:
        `(N, picture, picture)` uint8.
    """
    # There the centre of the first pixel is 0; here its edge is.
    pixels = points * (picture / side) - 0.5
    return two_rooms_agent_channel(replace(ROOMS_32, size=picture, agent_std=AGENT_STD), pixels)


def wall_channel(walls: Array, picture: int) -> NDArray[np.uint8]:
    """Show walls `(N, n, n)` as `(N, picture, picture)` uint8.

    A pixel that walls cover in part has that part of 255.
    """
    side = walls.shape[-1]
    pixels = np.arange(picture)[:, None] * (side / picture)  # upper edges, in blocks
    upper = np.minimum(pixels + side / picture, np.arange(side) + 1)
    lower = np.maximum(pixels, np.arange(side))
    covers = np.clip(upper - lower, 0.0, 1.0) * (picture / side)  # (picture, side)
    return np.asarray(np.rint(255.0 * (covers @ walls @ covers.T)), np.uint8)


def draw_maze(
    walls: ArrayLike,
    agent: ArrayLike | None,
    goal: ArrayLike | None,
    scale: int = 28,
    paths: Sequence[tuple[ArrayLike, Colour]] | None = None,
) -> NDArray[np.uint8]:
    """Draw one frame for people.

    Args:
        walls: `(n, n)`, not 0 where a block is solid.
        agent: `(2,)` in blocks, or None to leave it out.
        goal: `(2,)` in blocks, or None to leave it out.
        scale: Frame pixels per block.
        paths: Trajectories `(P, 2)` in blocks, each with its colour (RGB, 0 to 255).

    Returns:
        `(n * scale, n * scale, 3)` uint8.

    Raises:
        ValueError: `scale` is below 1, `walls` is no square, or a path is not `(P, 2)`.
    """
    solid = np.asarray(walls) != 0
    if solid.ndim != 2 or solid.shape[0] != solid.shape[1]:
        raise ValueError(f"walls have shape {solid.shape}: choose (n, n)")
    if scale < 1:
        raise ValueError(f"scale is {scale}: choose at least 1")
    centres = (np.arange(len(solid) * scale) + 0.5) / scale
    shown = solid.repeat(scale, axis=0).repeat(scale, axis=1)
    frame = np.where(shown[..., None], np.asarray(WALL, np.float64), np.asarray(BACKGROUND))
    if goal is not None:
        # The goal is a ring of the radius that counts, with a dot in its middle.
        disc(frame, centres, goal, SUCCESS_RADIUS, scale, GOAL, strength=0.35)
        disc(frame, centres, goal, 0.25 * SUCCESS_RADIUS, scale, GOAL)
    for points, colour in paths or ():
        polyline(frame, centres, np.asarray(points, np.float64), scale, colour, width=0.07)
    if agent is not None:
        disc(frame, centres, agent, 0.25, scale, AGENT)
    return np.asarray(np.rint(frame), np.uint8)
