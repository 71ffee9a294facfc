"""What blocks a point in a maze, what it sees, and the shortest path.

Coordinates are blocks, as in `forethought.envs.maze.layouts`. The agent is a point. Contact is
exact: a step is swept from line to line of the grid, so that no wall is jumped over and no corner
cut, however the step is aimed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.envs.maze.layouts import Walls, block_of, free_blocks

Array = NDArray[Any]
Bools = NDArray[np.bool_]

# A step crosses one line of the grid at most in x and one in y.
LONGEST_STEP = 0.5

# Where on a line a block is looked at before the line is cut, which is slow: most lines across a
# maze are blocked. Uneven, so that points in the middle of blocks give no corner of the grid.
_LOOKS = (0.4871, 0.2317, 0.7459, 0.1093, 0.8731, 0.3617, 0.6203)

# Blocks by which an agent is kept off the walls, so that its position is in a free block after
# rounding to float32 too.
SKIN = 1e-3


def move(walls: Walls, points: Array, steps: Array, *, slide: bool) -> Array:
    """Carry out one step of all agents.

    Args:
        walls: `(N, n, n)`.
        points: Positions `(N, 2)` in free blocks.
        steps: `(N, 2)` in blocks, none longer than `LONGEST_STEP`.
        slide: A step that meets a wall goes on along it; otherwise it ends there.

    Returns:
        New positions `(N, 2)`, in free blocks.
    """
    rows = np.arange(len(points))
    block = np.floor(points)
    target = points + steps
    crossing = np.floor(target) != block
    sign = np.where(steps > 0, 1.0, -1.0)
    line = block + (steps > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        time = np.where(crossing, np.clip((line - points) / steps, 0.0, 1.0), np.inf)
    beside = line - SKIN * sign
    first = time.argmin(axis=1)
    stopped = np.zeros(len(points), np.bool_)
    for turn, axis in enumerate((first, 1 - first)):
        at = (rows, axis)
        tried = block.copy()
        tried[at] += sign[at]
        row, column = tried[:, 1].astype(np.int64), tried[:, 0].astype(np.int64)
        meets = crossing[at] & ~stopped
        hits = np.zeros(len(points), np.bool_)
        hits[meets] = walls[rows[meets], row[meets], column[meets]] != 0
        enters = meets & ~hits
        block[enters] = tried[enters]
        if not slide:
            ends = points + np.where(hits, time[at], 0.0)[:, None] * steps
            if turn == 0:  # the other line was not reached, whatever rounding says
                near = np.where(steps > 0, np.minimum(ends, beside), np.maximum(ends, beside))
                ends = np.where(crossing, near, ends)
            target = np.where(hits[:, None], ends, target)
            stopped |= hits
        target[at] = np.where(hits, beside[at], target[at])
    # A step that ends on a corner of the grid can be rounded into the block beside it.
    row, column = block_of(target)
    target = np.where((walls[rows, row, column] != 0)[:, None], points, target)
    row, column = block_of(target)
    low, high = np.stack([column, row], axis=1) + 0.0, np.stack([column, row], axis=1) + 1.0
    low[:, 0] += SKIN * (walls[rows, row, column - 1] != 0)
    low[:, 1] += SKIN * (walls[rows, row - 1, column] != 0)
    high[:, 0] -= SKIN * (walls[rows, row, column + 1] != 0)
    high[:, 1] -= SKIN * (walls[rows, row + 1, column] != 0)
    return np.asarray(np.clip(target, low, high))


def visible(walls: Walls, start: Array, end: Array) -> Bools:
    """Say which straight lines no wall blocks.

    Exact for lines that run through no corner of the grid and along none of its lines: the line is
    cut where it crosses lines of the grid, and each piece lies in one block.

    Args:
        walls: `(n, n)`, or `(S, n, n)` with one maze for each line.
        start: `(S, 2)`.
        end: `(S, 2)`.

    Returns:
        `(S,)`.
    """
    start, end = np.asarray(start, np.float64), np.asarray(end, np.float64)
    free = np.zeros(len(start), np.bool_)
    lines = np.arange(len(start))
    for share in _LOOKS:
        row, column = block_of(start[lines] + share * (end[lines] - start[lines]))
        lines = lines[(walls[row, column] if walls.ndim == 2 else walls[lines, row, column]) == 0]
    free[lines] = _uncut(walls if walls.ndim == 2 else walls[lines], start[lines], end[lines])
    return free


def _uncut(walls: Walls, start: Array, end: Array) -> Bools:
    """See `visible`."""
    run = end - start
    low = np.floor(np.minimum(start, end)).min(axis=0, initial=walls.shape[-1]).astype(np.int64)
    high = np.floor(np.maximum(start, end)).max(axis=0, initial=0).astype(np.int64)
    cuts = [np.zeros((len(start), 1)), np.ones((len(start), 1))]
    safe_run = np.where(run == 0, 1e-30, run)
    for axis in (0, 1):
        lines = np.arange(low[axis] + 1, high[axis] + 1)
        share = (lines - start[:, axis, None]) / safe_run[:, axis, None]
        cuts.append(np.clip(share, 0.0, 1.0))
    times = np.sort(np.concatenate(cuts, axis=1), axis=1)
    middles = 0.5 * (times[:, 1:] + times[:, :-1])  # (S, P), one for each piece
    row, column = block_of(start[:, None] + middles[..., None] * run[:, None])
    if walls.ndim == 2:
        solid = walls[row, column]
    else:
        solid = walls[np.arange(len(start))[:, None], row, column]
    return np.asarray((solid == 0).all(axis=1))


def corners(walls: Walls, clearance: float) -> Array:
    """Points at which a shortest path can bend: beside the corners that walls turn outwards.

    Args:
        walls: `(n, n)`.
        clearance: Blocks by which they are kept off the corner, in x and in y.

    Returns:
        `(K, 2)`.
    """
    solid = walls != 0
    found = []
    # At an inner vertex of the grid four blocks meet; one of them solid, and its two neighbours
    # free, is a corner, and the path passes on the side of the fourth.
    for right in (0, 1):
        for below in (0, 1):

            def quarter(i: int, j: int) -> Bools:
                return np.asarray(solid[i : len(solid) - 1 + i, j : len(solid) - 1 + j])

            turns = quarter(below, right) & ~quarter(1 - below, right) & ~quarter(below, 1 - right)
            turns &= ~quarter(1 - below, 1 - right)
            vertex = np.argwhere(turns)[:, ::-1] + 1.0
            found.append(vertex + clearance * np.array([1.0 - 2.0 * right, 1.0 - 2.0 * below]))
    return np.concatenate(found)


def shortest_path(
    walls: Walls, start: Array, goal: Array, clearance: float = 1e-6, radius: float = 0.0
) -> Array:
    """The shortest path that no wall blocks, as a chain of straight lines.

    A shortest path among blocks is straight but for bends at corners of walls: the best chain of
    corners that see each other is searched. It is exact up to `clearance`: each bend makes the
    path longer by at most three times that.

    Args:
        walls: `(n, n)`.
        start: `(2,)`, in a free block.
        goal: `(2,)`, likewise.
        clearance: Distance in x and y by which the path passes corners, in blocks.
        radius: Of the body whose centre goes along the path, in blocks: 0, or one over a whole
            number from 3. Walls are thicker by so much then, their corners square; a start among
            them is moved out first.

    Returns:
        Points `(P, 2)` from `start` to `goal`, two at least.

    Raises:
        ValueError: There is no way, or the radius is not as it should be.
    """
    start, goal = np.asarray(start, np.float64), np.asarray(goal, np.float64)
    if radius > 0:
        fine, cells = thickened(walls, radius)
        start, goal = _moved_out(fine, cells * start), _moved_out(fine, cells * goal)
        return shortest_path(fine, start, goal, cells * clearance) / cells
    bends, lengths, goes_by = _to_goal(walls.tobytes(), len(walls), tuple(goal), clearance)
    ends = np.concatenate([goal[None], bends])
    seen = visible(walls, np.broadcast_to(start, ends.shape), ends)
    if seen[0]:
        return np.stack([start, goal])
    reach = np.where(seen[1:], np.linalg.norm(bends - start, axis=1) + lengths, np.inf)
    if not np.isfinite(reach).any():
        raise ValueError(f"start is {start.tolist()}: choose points in connected free blocks")
    chain, point = [start], int(reach.argmin())
    while point >= 0:
        chain.append(bends[point])
        point = int(goes_by[point])
    return np.stack([*chain, goal])


def sees(walls: Walls, start: Array, end: Array, radius: float) -> bool:
    """Whether a body of this radius can go straight from `start` to `end`, each `(2,)`.

    A start among the thicker walls is moved out first, as in `shortest_path`.
    """
    fine, cells = thickened(walls, radius)
    start = _moved_out(fine, cells * np.asarray(start))
    return bool(visible(fine, start[None], cells * np.asarray(end)[None])[0])


def lengths_to(walls: Walls, goal: Array, radius: float = 0.0) -> Array:
    """Lengths of the shortest paths to a goal from the middles of all free blocks.

    Args:
        walls: `(n, n)`.
        goal: `(2,)`, in a free block.
        radius: As for `shortest_path`.

    Returns:
        `(F,)` in the order of `free_blocks`; infinite where there is no way.
    """
    fine, cells = (walls, 1) if radius == 0 else thickened(walls, radius)
    middles = (free_blocks(walls)[:, ::-1] + 0.5) * cells
    goal = np.asarray(goal, np.float64) * cells
    _, lengths, _ = _to_goal(fine.tobytes(), len(fine), tuple(goal), cells * 1e-6)
    seen = _sights(fine.tobytes(), len(fine), cells, walls.tobytes())
    ways = (seen + lengths).min(axis=1, initial=np.inf)
    straight = visible(fine, middles, np.broadcast_to(goal, middles.shape))
    direct = np.where(straight, np.linalg.norm(middles - goal, axis=1), np.inf)
    return np.asarray(np.minimum(ways, direct) / cells)


def thickened(walls: Walls, radius: float) -> tuple[Walls, int]:
    """Where the centre of a body of this radius can be, in a finer grid.

    Args:
        walls: `(n, n)`.
        radius: One over a whole number from 3, in blocks.

    Returns:
        `(n * cells, n * cells)`, not 0 within a radius of walls in x and y, and `cells`, which is
        one over the radius.

    Raises:
        ValueError: The radius is not as it should be.
    """
    cells = round(1 / radius)
    if cells < 3 or abs(cells * radius - 1) > 1e-9:
        raise ValueError(f"radius is {radius}: choose 1/3, 1/4, 1/5 and so on of a block")
    return _thickened(walls.tobytes(), len(walls), cells), cells


@lru_cache(maxsize=256)
def _thickened(blocks: bytes, side: int, cells: int) -> Walls:
    fine = np.kron(_walls(blocks, side), np.ones((cells, cells), np.uint8))
    rows = fine.copy()
    rows[1:] |= fine[:-1]
    rows[:-1] |= fine[1:]
    both = rows.copy()
    both[:, 1:] |= rows[:, :-1]
    both[:, :-1] |= rows[:, 1:]
    return np.asarray(both, np.uint8)


def _moved_out(walls: Walls, point: Array) -> Array:
    """The nearest point `(2,)` in a free block, of those at most two blocks away."""
    row, column = (int(index) for index in block_of(point))
    if walls[row, column] == 0:
        return point
    top, left = max(row - 2, 0), max(column - 2, 0)
    near = free_blocks(walls[top : row + 3, left : column + 3])[:, ::-1] + np.array([left, top])
    if not len(near):
        return point
    inside = np.clip(point, near + SKIN, near + 1 - SKIN)
    return np.asarray(inside[np.linalg.norm(inside - point, axis=1).argmin()])


def path_length(path: Array) -> float:
    """Length of a chain of straight lines `(P, 2)`."""
    return float(np.linalg.norm(np.diff(path, axis=0), axis=1).sum())


# Controllers ask for the same episode's path at every step; the maze does not change meanwhile.
@lru_cache(maxsize=1024)
def _to_goal(
    blocks: bytes, side: int, goal: tuple[float, float], clearance: float
) -> tuple[Array, Array, NDArray[np.int64]]:
    """Corners `(K, 2)`, their distances to the goal `(K,)`, and the corner after each, or -1."""
    bends, seen = _views(blocks, side, clearance)
    walls = _walls(blocks, side)
    end = np.broadcast_to(np.array(goal), bends.shape)
    lengths = np.where(visible(walls, bends, end), np.linalg.norm(bends - end, axis=1), np.inf)
    after = np.full(len(bends), -1, np.int64)
    for _ in range(len(bends)):  # Bellman and Ford: a path has no more bends than there are corners
        through = seen + lengths
        nearer = through.min(axis=1, initial=np.inf) < lengths - 1e-12
        if not nearer.any():
            break
        after[nearer] = through[nearer].argmin(axis=1)
        lengths = np.where(nearer, through.min(axis=1), lengths)
    return bends, lengths, after


@lru_cache(maxsize=64)
def _views(blocks: bytes, side: int, clearance: float) -> tuple[Array, Array]:
    """Corners `(K, 2)`, and the distances `(K, K)` between those that see each other."""
    walls = _walls(blocks, side)
    bends = corners(walls, clearance)
    one, other = np.triu_indices(len(bends), k=1)
    seen = visible(walls, bends[one], bends[other])
    distances = np.full((len(bends), len(bends)), np.inf)
    lengths = np.linalg.norm(bends[one] - bends[other], axis=1)
    distances[one[seen], other[seen]] = distances[other[seen], one[seen]] = lengths[seen]
    return bends, distances


@lru_cache(maxsize=8)  # a maze that all episodes share is asked for again at each reset
def _sights(blocks: bytes, side: int, cells: int, coarse: bytes) -> Array:
    """Distances `(F, K)` of the middles of free blocks from the corners that they see."""
    bends, _ = _views(blocks, side, cells * 1e-6)
    middles = (free_blocks(_walls(coarse, side // cells))[:, ::-1] + 0.5) * cells
    rows, columns = (part.ravel() for part in np.indices((len(middles), len(bends))))
    seen = visible(_walls(blocks, side), middles[rows], bends[columns])
    lengths = np.linalg.norm(middles[rows] - bends[columns], axis=1)
    return np.where(seen, lengths, np.inf).reshape(len(middles), len(bends))


def _walls(blocks: bytes, side: int) -> Walls:
    return np.frombuffer(blocks, np.uint8).reshape(side, side)
