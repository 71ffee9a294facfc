"""Mazes for a body with inertia, in MuJoCo; `forethought.envs.maze` holds layouts and oracles.

`forethought.envs.point_maze.model` holds what MuJoCo simulates; it is imported when the first
environment is made, so that others go without MuJoCo.
"""

from forethought.envs.point_maze.env import PointMaze, PointMazeVectorEnv

__all__ = ["PointMaze", "PointMazeVectorEnv"]
