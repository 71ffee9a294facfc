"""A free path between two configurations, found offline: RRT-Connect, then shortcuts.

Source: Kuffner and LaValle, RRT-Connect, ICRA 2000. It knows the true obstacles and takes its time:
a yardstick, not a competitor.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.random import Generator

from forethought.envs.arm.geometry import Array, clearance

# Distance that a path keeps from obstacles where start and goal do, in arm lengths.
MARGIN = 0.01

_REACH = 1.5  # radians that a tree grows by towards a sample, at most
_GRAIN = 0.02  # radians between tested configurations: tests of a step lie as close, see CHECKS
# Radians beyond start and goal in which samples lie. The arm has to fold to pass an obstacle: with
# 1.5 a path was found in 89 of 100 episodes within 1000 rounds, with 3 in 99.
_AROUND = 3.0


def free_path(
    start: Array,
    goal: Array,
    circles: Array,
    max_step: float,
    generator: Generator,
    *,
    rounds: int = 3000,
    shortcuts: int = 150,
) -> Array | None:
    """Find a path that no obstacle blocks, cut into steps.

    Args:
        start: Angles `(7,)`, free.
        goal: Angles `(7,)`, free.
        circles: Obstacles `(K, 3)`.
        max_step: Radians by which an angle changes from one point to the next, at most.
        generator: Source of all randomness.
        rounds: Samples after which the search gives up.
        shortcuts: Attempts to replace a piece by a straight line.

    Returns:
        Angles `(P, 7)` from `start` to `goal`, or None where none was found.
    """
    margin = min(MARGIN, *(0.5 * float(clearance(end, circles)) for end in (start, goal)))
    if margin <= 0:
        return None
    corners = _connect(start, goal, circles, margin, generator, rounds)
    if corners is None:
        return None
    path = _cut(np.stack(corners), max_step)
    for _ in range(shortcuts):
        low, high = np.sort(generator.integers(len(path), size=2))
        line = _line(path[low], path[high], max_step)
        if len(line) <= high - low and _free_until(path[low], path[high], circles, margin) == 1.0:
            path = np.concatenate([path[:low], line, path[high:]])
    return path


def _connect(
    start: Array, goal: Array, circles: Array, margin: float, generator: Generator, rounds: int
) -> list[Array] | None:
    """Two trees grow towards samples and towards each other, in turns; corners of a path."""
    low, high = np.minimum(start, goal) - _AROUND, np.maximum(start, goal) + _AROUND
    trees = (_Tree(start), _Tree(goal))
    for turn in range(rounds):
        one, other = trees[turn % 2], trees[1 - turn % 2]
        # The first two samples are the other tree's root: a straight line is a path, too.
        sample = other.points[0] if turn < 2 else generator.uniform(low, high)
        reach = np.inf if turn < 2 else _REACH
        grown = one.grow(sample, circles, margin, reach)
        if grown is None:
            continue
        met = other.grow(one.points[grown], circles, margin, np.inf)
        if met is not None and np.array_equal(other.points[met], one.points[grown]):
            ways = one.way(grown), other.way(met)
            first, second = ways if turn % 2 == 0 else ways[::-1]
            return [*first, *second[::-1][1:]]
    return None


class _Tree:
    """Configurations that are connected to a root by free straight lines."""

    def __init__(self, root: Array) -> None:
        self.points = np.array(root)[None]
        self.parents = [-1]

    def grow(self, sample: Array, circles: Array, margin: float, reach: float) -> int | None:
        """Add the farthest free point towards `sample`; its index, None where there is none."""
        gaps = sample - self.points
        nearest = int((gaps * gaps).sum(1).argmin())
        start, gap = self.points[nearest], gaps[nearest]
        length = float(np.abs(gap).max())
        if length == 0:
            return nearest
        end = sample if length <= reach else start + reach / length * gap
        share = _free_until(start, end, circles, margin)
        if share == 0:
            return None
        point = end if share == 1 else start + share * (end - start)
        self.points = np.concatenate([self.points, point[None]])
        self.parents.append(nearest)
        return len(self.points) - 1

    def way(self, index: int) -> list[Array]:
        """Points from the root to one."""
        chain = []
        while index >= 0:
            chain.append(self.points[index])
            index = self.parents[index]
        return chain[::-1]


def _line(start: Array, end: Array, grain: float) -> Array:
    """Points of a straight line, its start included and its end left out, `(P, 7)`, P >= 1."""
    count = max(1, int(np.ceil(np.abs(end - start).max() / grain - 1e-9)))
    return np.asarray(start + np.arange(count)[:, None] / count * (end - start))


def _free_until(start: Array, end: Array, circles: Array, margin: float) -> float:
    """Share of a straight line from a free start that keeps the margin, from 0 to 1."""
    line = np.concatenate([_line(start, end, _GRAIN)[1:], end[None]])
    blocked = clearance(line, circles) < margin
    return 1.0 if not blocked.any() else float(blocked.argmax() / len(line))


def _cut(corners: Array, max_step: float) -> Array:
    """A chain of straight lines, cut into steps, `(P, 7)`."""
    pieces = [_line(start, end, max_step) for start, end in pairwise(corners)]
    return np.concatenate([*pieces, corners[-1:]])
