"""Which maze an episode is played in, and where it starts and ends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from forethought.envs.maze.control import SUCCESS_RADIUS
from forethought.envs.maze.geometry import SKIN, lengths_to
from forethought.envs.maze.layouts import (
    Walls,
    drawn,
    free_blocks,
    grid_distances,
    longest_way,
    random_maze,
    steps_for,
)

Array = NDArray[Any]

_ROOMS = 4  # along a side of a random maze, where nothing is said: 9 x 9 blocks, as `medium`

# Attempts, each with a maze of its own where episodes have one, before ends that far apart are
# given up; and goals that are tried in such a maze. (Trying all of them took a second where one
# maze of ten has any that will do.)
_ATTEMPTS = 200
_GOALS = 10


@dataclass(frozen=True)
class MazeTasks:
    """Episodes of mazes, before anything moves.

    Attributes:
        layout: A name in `MAZES`, a drawing (see `drawn`), or `random`.
        size: Rooms along a side of a random maze; None is 4.
        layout_seed: Random maze of that seed in all episodes; None draws one for each.
        loops: Share of a random maze's dead ends that get a second way out.
        distance: Least share, from 0 to 1, of the maze's longest way between two blocks that
            start and goal are apart (both counted in blocks through edges).
        min_steps: Least number of steps that the shortest path takes, see `oracle_steps`.
        max_step: Blocks covered by one step.
        radius: Of the agent in blocks; starts and goals keep off walls by so much. See
            `shortest_path`.

    Raises:
        ValueError: An option is out of range, contradicts another, or no episode is like that.
    """

    layout: str
    size: int | None = None
    layout_seed: int | None = None
    loops: float = 0.0
    distance: float = 0.0
    min_steps: int = 0
    max_step: float = 0.4
    radius: float = 0.0

    def __post_init__(self) -> None:
        if self.layout != "random":
            for name, left_out in (("size", None), ("layout_seed", None), ("loops", 0.0)):
                value = getattr(self, name)
                if value != left_out:
                    raise ValueError(
                        f"{name} is {value}: choose layout='random', or leave {name} out"
                    )
        if self.size is not None and self.size < 2:
            raise ValueError(f"size is {self.size}: choose 2 rooms along a side or more")
        if self.layout_seed is not None and self.layout_seed < 0:
            raise ValueError(f"layout_seed is {self.layout_seed}: choose 0 or above, or None")
        if not 0 <= self.loops <= 1:
            raise ValueError(f"loops is {self.loops}: choose a share from 0 to 1")
        if not 0 <= self.distance <= 1:
            raise ValueError(f"distance is {self.distance}: choose a share from 0 to 1")
        if self.min_steps < 0:
            raise ValueError(f"min_steps is {self.min_steps}: choose 0 or above")
        if self.min_steps and self.distance:
            raise ValueError(
                f"distance is {self.distance} and min_steps is {self.min_steps}: choose one of them"
            )
        self._check_reach()

    @cached_property
    def walls(self) -> Walls | None:
        """The walls of all episodes, `(n, n)`; None where each has its own."""
        if self.layout != "random":
            return drawn(self.layout)
        if self.layout_seed is None:
            return None
        return self._random(np.random.default_rng(self.layout_seed))

    @property
    def side(self) -> int:
        """Blocks along a side."""
        return 2 * self._rooms + 1 if self.walls is None else len(self.walls)

    @cached_property
    def longest_steps(self) -> int:
        """Steps that the longest way between two blocks takes, counted through edges."""
        blocks = (
            longest_way(self._rooms) if self.walls is None else grid_distances(self.walls).max()
        )
        return steps_for(float(blocks), self.max_step)

    def draw(self, generator: Generator) -> tuple[Walls, Array, Array]:
        """Draw an episode.

        Args:
            generator: Source of all randomness.

        Returns:
            Walls `(n, n)`, start and goal `(2,)` in blocks, in free blocks.

        Raises:
            ValueError: No start and goal are `min_steps` apart.
        """
        for _ in range(_ATTEMPTS):
            walls = self._random(generator) if self.walls is None else self.walls
            ends = (
                self._far_ends(walls, generator) if self.min_steps else self._ends(walls, generator)
            )
            if ends is not None:
                return walls, *ends
        raise self._too_far()

    @property
    def _rooms(self) -> int:
        return self.size or _ROOMS

    @property
    def _length(self) -> float:
        """Blocks of a shortest path that takes `min_steps`, at least."""
        return (self.min_steps - 1) * self.max_step + SUCCESS_RADIUS + SKIN + 1e-3

    def _check_reach(self) -> None:
        """Refuse options under which no episode can begin, as far as that is known already."""
        if not self.min_steps:
            return
        if self.walls is not None:
            if self._far_ends(self.walls, np.random.default_rng(0)) is None:
                raise self._too_far()
        elif self._length > longest_way(self._rooms):
            raise ValueError(
                f"min_steps is {self.min_steps}: choose at most {self.longest_steps}, a larger "
                f"size than {self._rooms}, or a smaller max_step than {self.max_step}"
            )

    def _too_far(self) -> ValueError:
        larger = ", or a larger size" if self.layout == "random" else ""
        return ValueError(
            f"min_steps is {self.min_steps}: choose less, since no start and goal are that far "
            f"apart, or a smaller max_step than {self.max_step}{larger}"
        )

    def _random(self, generator: Generator) -> Walls:
        return random_maze(self._rooms, generator, self.loops)

    def _ends(self, walls: Walls, generator: Generator) -> tuple[Array, Array]:
        """Start and goal, uniform over the pairs of blocks that `distance` allows."""
        blocks = free_blocks(walls)
        if self.distance == 0:
            pair = generator.integers(len(blocks), size=2)
        else:
            pairs = self._pairs if self.walls is not None else _far_pairs(walls, self.distance)
            pair = pairs[int(generator.integers(len(pairs)))]
        # Uniform within a block, columns being x; off its edges, where a wall may be.
        start, goal = blocks[pair][:, ::-1] + self._within(generator, 2)
        return start, goal

    def _far_ends(self, walls: Walls, generator: Generator) -> tuple[Array, Array] | None:
        """A goal, and a start from which it takes `min_steps`; None where there are none.

        The goal is drawn first, of those that are far from anything; then the start.
        """
        blocks = free_blocks(walls)
        tried = len(blocks) if self.walls is not None else _GOALS
        for index in generator.permutation(len(blocks))[:tried]:
            goal = blocks[index, ::-1] + self._within(generator, 1)[0]
            # A start is nearer than the middle of its block by half of a diagonal at most.
            nearer = np.sqrt(0.5)
            far = np.flatnonzero(lengths_to(walls, goal, self.radius) >= self._length + nearer)
            if len(far):
                block = blocks[far[int(generator.integers(len(far)))]]
                return block[::-1] + self._within(generator, 1)[0], goal
        return None

    def _within(self, generator: Generator, count: int) -> Array:
        margin = self.radius + SKIN
        return generator.uniform(margin, 1 - margin, (count, 2))

    @cached_property
    def _pairs(self) -> NDArray[np.int64]:
        assert self.walls is not None
        return _far_pairs(self.walls, self.distance)


def _far_pairs(walls: Walls, distance: float) -> NDArray[np.int64]:
    """Pairs of free blocks, as indices `(P, 2)`, that are far enough from each other."""
    lengths = grid_distances(walls)
    return np.argwhere(lengths >= distance * lengths.max() - 1e-9)
