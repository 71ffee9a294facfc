"""Where the arm is, how far it is from obstacles, and how it moves.

The base is at the origin; all links together have length 1. Angles `(..., 7)` are in radians, each
relative to the link before, without limits. Links are lines without width that pass through each
other. Circles `(..., K, 3)` are (x, y, radius).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Bools = NDArray[np.bool_]

LINKS = 7
LINK_LENGTH = 1.0 / LINKS

# Configurations at which a step is tested for contact. The tip moves by at most 4 times `max_step`
# in a step (all joints turn one way, the arm stretched): by default 0.05 between two tests, less
# than the radius of any obstacle.
CHECKS = 8

# An obstacle that is not there: out of reach, without size. It needs no mask.
ABSENT = (2.0, 2.0, 0.0)


def joints(angles: Array) -> Array:
    """Ends of all links, the base first and the tip last: `(..., 7)` to `(..., 8, 2)`."""
    headings = np.cumsum(angles, axis=-1)
    links = LINK_LENGTH * np.stack([np.cos(headings), np.sin(headings)], axis=-1)
    base = np.zeros_like(links[..., :1, :])
    return np.concatenate([base, np.cumsum(links, axis=-2)], axis=-2)


def clearance(angles: Array, circles: Array) -> Array:
    """Distance between the arm and the nearest obstacle, below 0 where they overlap.

    Args:
        angles: `(..., 7)`.
        circles: `(..., K, 3)`, leading axes as those of `angles`, or to be broadcast to them.

    Returns:
        `(...,)`, in arm lengths.
    """
    points = joints(angles)
    starts, ends = points[..., :-1, None, :], points[..., 1:, None, :]  # (..., 7, 1, 2)
    links, offsets = ends - starts, circles[..., None, :, :2] - starts  # (..., 7, K, 2)
    along = (links * offsets).sum(-1, keepdims=True) / LINK_LENGTH**2
    gaps = offsets - np.clip(along, 0.0, 1.0) * links
    distances = np.sqrt((gaps * gaps).sum(-1)) - circles[..., None, :, 2]
    return np.asarray(distances.min(axis=(-2, -1)))


def move(angles: Array, actions: Array, circles: Array, max_step: float) -> Array:
    """Carry out one step: a move that would touch an obstacle does not happen.

    Contact is tested at `CHECKS` configurations, evenly spaced along the move, the last one
    included.

    Args:
        angles: `(N, 7)`.
        actions: `(N, 7)`, clipped to [-1, 1]; 1 turns a joint by `max_step`.
        circles: `(N, K, 3)`.
        max_step: Radians.

    Returns:
        New angles `(N, 7)`.
    """
    turns = max_step * np.clip(actions, -1.0, 1.0)
    shares = np.arange(1, CHECKS + 1)[:, None] / CHECKS
    between = angles[:, None] + shares * turns[:, None]  # (N, CHECKS, 7)
    least = clearance(between, circles[:, None]).min(axis=1, keepdims=True)
    return np.where(least > 0, angles + turns, angles)


def jacobian(angles: Array) -> Array:
    """Derivative of the tip's position by the angles: `(..., 7)` to `(..., 2, 7)`."""
    points = joints(angles)
    levers = points[..., -1:, :] - points[..., :-1, :]  # (..., 7, 2): from each joint to the tip
    return np.stack([-levers[..., 1], levers[..., 0]], axis=-2)
