"""Point mazes: a ball that is pushed through a maze by forces, simulated by MuJoCo.

The layouts and the task of `forethought.envs.maze`, with dynamics of second order: what counts
is where the ball will roll, not only where it is.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.random import Generator
from numpy.typing import NDArray

from forethought.envs.maze.control import SUCCESS_RADIUS
from forethought.envs.maze.drawing import draw_maze
from forethought.envs.maze.geometry import LONGEST_STEP
from forethought.envs.maze.tasks import MazeTasks
from forethought.envs.point_maze.scale import COAST_SECONDS, CONTROL_SECONDS, RADIUS
from forethought.envs.vector import Bools, EpisodicVectorEnv, SingleEnv

Array = NDArray[Any]

_FRAME_SIDE = 252


class PointMazeVectorEnv(EpisodicVectorEnv):
    """`N` episodes of a ball in a maze.

    Observation: float32 `(4,)`: position in blocks, velocity in blocks per second. Its goal is an
    observation, too: at rest at the goal. Action: `(2,)` in [-1, 1], projected on the unit disc: a
    force. An episode begins at rest; it ends, and pays 1, when the ball's centre is within 0.4
    blocks of the goal after a step, however fast. `info["quantities"]`: `position`,
    `goal_position`, `velocity`, `(N, 2)`. `info["maze"]` is for controllers and pictures: `walls`
    uint8 `(N, n, n)`, `max_step`, `radius`, `coast_seconds` `(N,)`. The oracles of
    `forethought.envs.maze` know this task; `oracle_steps` counts steps at full speed, so that it
    is a lower bound that is not reached.

    Args:
        num_envs: `N`.
        layout: As for `MazeVectorEnv`, and so are the next three.
        size: Rooms along a side of a random maze.
        layout_seed: Seed of the one random maze that all episodes share.
        loops: Share of a random maze's dead ends that get a second way out.
        distance: Least share of the maze's longest way that start and goal are apart.
        min_steps: Least number of steps of the shortest path at full speed; instead of `distance`.
        max_step: Blocks covered in a control step of 0.1 s at full speed, at most 0.5.
        episode_limit: Steps; None for twice what the longest way takes at full speed, and 20.
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
        distance: float = 0.0,
        min_steps: int = 0,
        max_step: float = 0.4,
        episode_limit: int | None = None,
        render_mode: str | None = "rgb_array",
    ) -> None:
        # Here, so that nobody waits for MuJoCo who does not ask for it.
        from forethought.envs.point_maze import model

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
            radius=RADIUS,
        )
        side = tasks.side
        if episode_limit is None:
            episode_limit = 2 * tasks.longest_steps + 20
        low = np.array([0.0, 0.0, -np.inf, -np.inf], np.float32)
        high = np.array([side, side, np.inf, np.inf], np.float32)
        super().__init__(
            num_envs,
            observation_space=spaces.Box(low, high),
            action_dim=2,
            control_step_seconds=CONTROL_SECONDS,
            episode_limit=episode_limit,
            render_mode=render_mode,
        )
        self.tasks, self.max_step = tasks, max_step
        self._simulation = model
        shared = None if tasks.walls is None else model.compiled(tasks.walls, max_step)
        self._models: list[Any] = [shared] * num_envs
        self._data: list[Any] = [None] * num_envs
        self._position = np.zeros((num_envs, 2))
        self._velocity = np.zeros((num_envs, 2))
        self._goal_position = np.zeros((num_envs, 2))
        self._walls = np.zeros((num_envs, side, side), np.uint8)

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Frames `(H, W, 3)` uint8, one per environment; None without a render mode."""
        if self.render_mode is None:
            return None
        scale = math.ceil(_FRAME_SIDE / self._walls.shape[-1])
        rows = zip(self._walls, self._position, self._goal_position, strict=True)
        return tuple(draw_maze(*row, scale) for row in rows)

    def _begin(self, row: int, generator: Generator) -> None:
        walls, start, goal = self.tasks.draw(generator)
        if self.tasks.walls is None:
            self._models[row] = self._simulation.compiled(walls, self.max_step)
        self._data[row] = self._simulation.at_rest(self._models[row], start)
        self._walls[row], self._goal_position[row] = walls, goal
        self._position[row], self._velocity[row] = start, 0.0

    def _advance(self, actions: Array, active: Bools) -> Array:
        forces = actions / np.maximum(np.linalg.norm(actions, axis=1, keepdims=True), 1.0)
        for row in np.flatnonzero(active).tolist():
            data = self._data[row]
            self._simulation.advance(self._models[row], data, forces[row])
            self._position[row], self._velocity[row] = data.qpos, data.qvel
        gap = np.linalg.norm(self._position - self._goal_position, axis=1)
        first = (gap <= SUCCESS_RADIUS) & active  # success ends an episode, so that it is the first
        self._success |= first
        self._terminated |= first
        return np.where(first, 1.0, 0.0)

    def _observe(self) -> Array:
        return np.concatenate([self._position, self._velocity], axis=1).astype(np.float32)

    def _goals(self) -> Array:
        return np.concatenate(
            [self._goal_position, np.zeros_like(self._velocity)], axis=1, dtype=np.float32
        )

    def _quantities(self) -> dict[str, Array]:
        return {
            "position": self._position.astype(np.float32),
            "goal_position": self._goal_position.astype(np.float32),
            "velocity": self._velocity.astype(np.float32),
        }

    def _info(self) -> dict[str, Any]:
        maze = {
            "walls": self._walls.copy(),
            "max_step": np.full(self.num_envs, self.max_step),
            "radius": np.full(self.num_envs, RADIUS),
            "coast_seconds": np.full(self.num_envs, COAST_SECONDS),
        }
        return {**super()._info(), "maze": maze}


class PointMaze(SingleEnv):
    """One episode of a point maze as a `gymnasium.Env`; options as for `PointMazeVectorEnv`."""

    def __init__(
        self,
        *,
        layout: str = "medium",
        size: int | None = None,
        layout_seed: int | None = None,
        loops: float = 0.0,
        distance: float = 0.0,
        min_steps: int = 0,
        max_step: float = 0.4,
        episode_limit: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        vector = PointMazeVectorEnv(
            1,
            layout=layout,
            size=size,
            layout_seed=layout_seed,
            loops=loops,
            distance=distance,
            min_steps=min_steps,
            max_step=max_step,
            episode_limit=episode_limit,
        )
        super().__init__(vector, render_mode)
