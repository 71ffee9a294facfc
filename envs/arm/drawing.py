"""Pictures of the arm for people."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forethought.envs.arm.geometry import joints
from forethought.envs.two_rooms.drawing import AGENT, BACKGROUND, GOAL, WALL, disc, polyline


def draw_arm(
    angles: ArrayLike | None,
    obstacles: ArrayLike,
    target: ArrayLike | None,
    radius: float = 0.05,
    size: int = 240,
) -> NDArray[np.uint8]:
    """Draw one frame: x to the right and y down, from -1.1 to 1.1.

    Args:
        angles: `(7,)`, or None to leave the arm out.
        obstacles: `(K, 3)`.
        target: `(2,)`, or None to leave it out.
        radius: Distance from the target that counts.
        size: Pixels along a side.

    Returns:
        `(size, size, 3)` uint8.

    Raises:
        ValueError: `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}: choose at least 1")
    scale = size / 2.2
    centres = (np.arange(size) + 0.5) / scale - 1.1
    frame = np.full((size, size, 3), np.asarray(BACKGROUND, np.float64))
    if target is not None:
        disc(frame, centres, target, radius, int(scale), GOAL)
    for x, y, extent in np.asarray(obstacles, np.float64):
        if extent > 0:
            disc(frame, centres, (x, y), extent, int(scale), WALL)
    if angles is not None:
        points = joints(np.asarray(angles, np.float64))
        polyline(frame, centres, points, int(scale), AGENT, width=0.012)
        for point in points:
            disc(frame, centres, point, 0.02, int(scale), AGENT)
    return np.asarray(np.rint(frame), np.uint8)
