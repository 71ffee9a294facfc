"""Mazes as arrays of blocks: those that have names, those that are drawn, and random ones.

Walls `(n, n)` uint8 hold 1 where a block is solid: row i and column j are the square
[j, j + 1] x [i, i + 1], x to the right and y down. Lengths are in blocks. The outermost blocks are
solid, so that nobody leaves.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[Any]
Walls = NDArray[np.uint8]

# Rows from above; `#` is a block, `.` is free.
MAZES = {
    # A dead end that opens to the left: what lies behind its back is reached only by leaving it.
    "u": """
        #########
        #.......#
        #.#####.#
        #.....#.#
        #.....#.#
        #.....#.#
        #.#####.#
        #.......#
        #########""",
    "four_rooms": """
        ###########
        #....#....#
        #....#....#
        #.........#
        #....#....#
        ##.####.###
        #....#....#
        #....#....#
        #.........#
        #....#....#
        ###########""",
    # One corridor, so that near in space is far on foot.
    "spiral": """
        ###########
        #.........#
        #########.#
        #.......#.#
        #.#####.#.#
        #.#...#.#.#
        #.#.###.#.#
        #.#.....#.#
        #.#######.#
        #.........#
        ###########""",
    # 7 x 7 blocks within the border; it has two ways round in places, and dead ends.
    "medium": """
        #########
        #...#...#
        #.#.#.#.#
        #.#...#.#
        #.###.#.#
        #...#.#.#
        ###.#.#.#
        #.....#.#
        #########""",
}


def drawn(layout: str) -> Walls:
    """The walls of a named or a drawn maze.

    Args:
        layout: A name in `MAZES`, or rows of `#` (solid) and `.` (free), separated by spaces, line
            ends or `/`, as in `"####/#..#/#..#/####"`.

    Returns:
        `(n, n)` uint8.

    Raises:
        ValueError: The name is unknown, or the drawing is not a closed square whose free blocks
            are connected, or two blocks touch at a corner only.
    """
    rows = MAZES.get(layout, layout).replace("/", " ").split()
    if not rows or set("".join(rows)) - set("#."):
        raise ValueError(
            f"layout is {layout!r}: choose random, {', '.join(MAZES)}, or rows of # and . "
            "separated by /"
        )
    if any(len(row) != len(rows) for row in rows):
        raise ValueError(f"layout is {layout!r}: choose as many rows as columns")
    walls = np.array([[block == "#" for block in row] for row in rows], np.uint8)
    if not (walls[[0, -1]].all() and walls[:, [0, -1]].all()):
        raise ValueError(f"layout is {layout!r}: choose # all round")
    if (walls == 0).sum() < 2:
        raise ValueError(f"layout is {layout!r}: choose at least two free blocks")
    if not np.isfinite(grid_distances(walls)).all():
        raise ValueError(f"layout is {layout!r}: choose free blocks that are connected by edges")
    first, second = walls[:-1, :-1] == walls[1:, 1:], walls[:-1, 1:] == walls[1:, :-1]
    if (first & second & (walls[:-1, :-1] != walls[:-1, 1:])).any():
        # A line through that corner would be free, but nothing can go along it.
        raise ValueError(f"layout is {layout!r}: choose no two blocks that touch at a corner only")
    return walls


def random_maze(size: int, generator: Generator, loops: float = 0.0) -> Walls:
    """Draw a maze by depth-first search: one way between any two rooms, but for loops.

    Args:
        size: Rooms along a side; between two rooms is a wall or a passage, of a block each.
        generator: Source of all randomness.
        loops: Share of the dead ends that get a second way out, from 0 to 1.

    Returns:
        `(2 * size + 1, 2 * size + 1)` uint8.
    """
    walls = np.ones((2 * size + 1, 2 * size + 1), np.uint8)
    row, column = (int(number) for number in generator.integers(size, size=2))
    walls[2 * row + 1, 2 * column + 1] = 0
    path = [(row, column)]
    while path:
        row, column = path[-1]
        beside = ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1))
        fresh = [
            (i, j)
            for i, j in beside
            if 0 <= i < size and 0 <= j < size and walls[2 * i + 1, 2 * j + 1]
        ]
        if not fresh:
            path.pop()
            continue
        i, j = fresh[int(generator.integers(len(fresh)))]
        walls[2 * i + 1, 2 * j + 1] = walls[row + i + 1, column + j + 1] = 0
        path.append((i, j))
    if loops > 0:
        _open_dead_ends(walls, loops, generator)
    return walls


def _open_dead_ends(walls: Walls, share: float, generator: Generator) -> None:
    """Open a second side of dead ends, in place. Vertices stay solid: no corner is cut."""
    last = len(walls) - 2
    for i in range(1, last + 1, 2):
        for j in range(1, last + 1, 2):
            sides = [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
            shut = [side for side in sides if walls[side]]
            if len(shut) < 3 or generator.uniform() >= share:
                continue
            inner = [
                (row, column) for row, column in shut if {row, column}.isdisjoint({0, last + 1})
            ]
            walls[inner[int(generator.integers(len(inner)))]] = 0


def free_blocks(walls: Walls) -> NDArray[np.int64]:
    """Row and column of every free block, `(F, 2)`, in the order of reading."""
    return np.argwhere(walls == 0)


def grid_distances(walls: Walls) -> Array:
    """Blocks from every free block to every other one, through edges (breadth-first search).

    Args:
        walls: `(n, n)`.

    Returns:
        `(F, F)` float64 in the order of `free_blocks`; infinite where there is no way.
    """
    free, side = walls.ravel() == 0, walls.shape[1]
    cells = np.flatnonzero(free)
    distances = np.full((len(cells), len(free)), np.inf)
    sources = np.arange(len(cells))  # one search from every block, side by side
    distances[sources, cells] = steps = 0
    while len(sources):
        steps += 1
        found = []
        for offset in (side, -side, 1, -1):  # nothing wraps round: the border is solid
            beside = cells + offset
            fresh = free[beside] & np.isinf(distances[sources, beside])
            found.append((sources[fresh], beside[fresh]))
            distances[found[-1]] = steps
        sources, cells = (np.concatenate(part) for part in zip(*found, strict=True))
    return distances[:, free]


def longest_way(size: int) -> int:
    """Most blocks that two blocks of a random maze of `size` rooms a side can be apart."""
    return 2 * (size * size - 1)


def block_of(points: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of the block in which each of the points `(..., 2)` lies, each `(...,)`."""
    floor = np.floor(points).astype(np.int64)
    return floor[..., 1], floor[..., 0]


def steps_for(length: float, max_step: float) -> int:
    """Steps that a way of `length` blocks takes, at least one."""
    return max(1, math.ceil(length / max_step))
