"""Mazes: a point agent among blocks, and a goal that is reached by detours only.

Harder than Two-Rooms where it counts for planning: dead ends, several bends, and with layout
`random` walls that the model has never seen.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np
from gymnasium import spaces
from numpy.random import Generator
from numpy.typing import NDArray

from forethought.envs.maze.control import SUCCESS_RADIUS
from forethought.envs.maze.drawing import agent_channel, draw_maze, wall_channel
from forethought.envs.maze.geometry import LONGEST_STEP, move
from forethought.envs.maze.tasks import MazeTasks
from forethought.envs.vector import Bools, EpisodicVectorEnv, SingleEnv

Array = NDArray[Any]
Contact = Literal["slide", "stop"]
Observe = Literal["pixels", "vector"]

_FRAME_SIDE = 252


class MazeVectorEnv(EpisodicVectorEnv):
    """`N` episodes of a maze.

    Observation: uint8 `(2, picture, picture)`: the agent, then the walls; or float32 `(2,)`: the
    agent's position. Action: `(2,)` in [-1, 1], projected on the unit disc; norm 1 is `max_step`.
    An episode ends, and pays 1, when the agent is within 0.4 blocks of the goal after a step.
    `info["quantities"]`: `position`, `goal_position` `(N, 2)` in blocks (x, y). `info["maze"]` is
    for controllers and pictures: `walls` uint8 `(N, n, n)` and `max_step` `(N,)`.

    Args:
        num_envs: `N`.
        layout: A name in `MAZES`, a drawing (see `drawn`), or `random`: a maze without loops, drawn
            anew for each episode.
        size: Rooms along a side of a random maze (`2 * size + 1` blocks); None is 4.
        layout_seed: Seed of the one random maze that all episodes share; None draws one for each.
        loops: Share of a random maze's dead ends that get a second way out.
        observe: `pixels`, or `vector`: with layout `random` that does not show the walls.
        contact: `slide` along walls, or `stop` at them.
        distance: Least share, from 0 to 1, of the maze's longest way between two blocks that
            start and goal are apart (both counted in blocks through edges); 0 draws both anywhere.
        min_steps: Least number of steps of the shortest path from start to goal, as `oracle_steps`
            counts them; instead of `distance`. Goals are uniform over the blocks that are far from
            any other, starts over those far from the goal.
        max_step: Blocks covered by an action of norm 1, at most 0.5.
        picture: Pixels along a side of the picture.
        episode_limit: Steps; None for twice what the longest way takes.
        render_mode: `rgb_array` or None.

    Raises:
        ValueError: An option is out of range, or contradicts another; `reset` says so where no
            random maze has start and goal `min_steps` apart.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        layout: str = "medium",
        size: int | None = None,
        layout_seed: int | None = None,
        loops: float = 0.0,
        observe: Observe = "pixels",
        contact: Contact = "slide",
        distance: float = 0.0,
        min_steps: int = 0,
        max_step: float = 0.4,
        picture: int = 64,
        episode_limit: int | None = None,
        render_mode: str | None = "rgb_array",
    ) -> None:
        for name, value, choices in (("observe", observe, Observe), ("contact", contact, Contact)):
            if value not in get_args(choices):
                raise ValueError(f"{name} is {value!r}: choose {' or '.join(get_args(choices))}")
        if not 0 < max_step <= LONGEST_STEP:
            raise ValueError(f"max_step is {max_step}: choose above 0 and at most {LONGEST_STEP}")
        tasks = MazeTasks(
            layout=layout,
            size=size,
            layout_seed=layout_seed,
            loops=loops,
            distance=distance,
            min_steps=min_steps,
            max_step=max_step,
        )
        side = tasks.side
        if picture < side:
            raise ValueError(f"picture is {picture}: choose at least a pixel a block, {side}")
        if episode_limit is None:
            episode_limit = 2 * tasks.longest_steps
        space = (
            spaces.Box(0, 255, (2, picture, picture), np.uint8)
            if observe == "pixels"
            else spaces.Box(0.0, float(side), (2,), np.float32)
        )
        super().__init__(
            num_envs,
            observation_space=space,
            action_dim=2,
            control_step_seconds=0.1,  # a convention: the task has no clock of its own
            episode_limit=episode_limit,
            render_mode=render_mode,
        )
        self.tasks, self.observe, self.contact = tasks, observe, contact
        self.max_step, self.picture = max_step, picture
        self._position = np.zeros((num_envs, 2))
        self._goal_position = np.zeros((num_envs, 2))
        self._walls = np.zeros((num_envs, side, side), np.uint8)
        pixels = (num_envs, 2, picture, picture) if observe == "pixels" else (num_envs, 2, 0, 0)
        self._goal_pictures = np.zeros(pixels, np.uint8)

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Frames `(H, W, 3)` uint8, one per environment; None without a render mode."""
        if self.render_mode is None:
            return None
        scale = math.ceil(_FRAME_SIDE / self._walls.shape[-1])
        rows = zip(self._walls, self._position, self._goal_position, strict=True)
        return tuple(draw_maze(*row, scale) for row in rows)

    def _begin(self, row: int, generator: Generator) -> None:
        drawn = self.tasks.draw(generator)
        self._walls[row], self._position[row], self._goal_position[row] = drawn

    def _begun(self, mask: Bools) -> None:
        if self.observe == "vector":
            return
        points = self._goal_position[mask]
        self._goal_pictures[mask, 0] = agent_channel(points, self._walls.shape[-1], self.picture)
        self._goal_pictures[mask, 1] = wall_channel(self._walls[mask], self.picture)

    def _advance(self, actions: Array, active: Bools) -> Array:
        norm = np.linalg.norm(actions, axis=1, keepdims=True)
        steps = actions / np.maximum(norm, 1.0) * self.max_step
        moved = move(self._walls, self._position, steps, slide=self.contact == "slide")
        self._position = np.where(active[:, None], moved, self._position)
        gap = np.linalg.norm(self._position - self._goal_position, axis=1)
        first = (gap <= SUCCESS_RADIUS) & active  # success ends an episode, so that it is the first
        self._success |= first
        self._terminated |= first
        return np.where(first, 1.0, 0.0)

    def _observe(self) -> Array:
        if self.observe == "vector":
            return self._position.astype(np.float32)
        observations = self._goal_pictures.copy()  # in which the walls are the same
        observations[:, 0] = agent_channel(self._position, self._walls.shape[-1], self.picture)
        return observations

    def _goals(self) -> Array:
        if self.observe == "vector":
            return self._goal_position.astype(np.float32)
        return self._goal_pictures

    def _quantities(self) -> dict[str, Array]:
        return {
            "position": self._position.astype(np.float32),
            "goal_position": self._goal_position.astype(np.float32),
        }

    def _info(self) -> dict[str, Any]:
        maze = {"walls": self._walls.copy(), "max_step": np.full(self.num_envs, self.max_step)}
        return {**super()._info(), "maze": maze}


class Maze(SingleEnv):
    """One episode of a maze as a `gymnasium.Env`; options as for `MazeVectorEnv`."""

    def __init__(
        self,
        *,
        layout: str = "medium",
        size: int | None = None,
        layout_seed: int | None = None,
        loops: float = 0.0,
        observe: Observe = "pixels",
        contact: Contact = "slide",
        distance: float = 0.0,
        min_steps: int = 0,
        max_step: float = 0.4,
        picture: int = 64,
        episode_limit: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        vector = MazeVectorEnv(
            1,
            layout=layout,
            size=size,
            layout_seed=layout_seed,
            loops=loops,
            observe=observe,
            contact=contact,
            distance=distance,
            min_steps=min_steps,
            max_step=max_step,
            picture=picture,
            episode_limit=episode_limit,
        )
        super().__init__(vector, render_mode)
