"""Mazes: the environment, its layouts and geometry, its pictures and its controllers."""

from forethought.envs.maze.control import (
    SUCCESS_RADIUS,
    greedy,
    oracle_path_length,
    oracle_steps,
    scripted,
)
from forethought.envs.maze.drawing import draw_maze
from forethought.envs.maze.env import Maze, MazeVectorEnv
from forethought.envs.maze.geometry import path_length, shortest_path, visible
from forethought.envs.maze.layouts import MAZES, drawn, random_maze
from forethought.envs.maze.tasks import MazeTasks

__all__ = [
    "MAZES",
    "SUCCESS_RADIUS",
    "Maze",
    "MazeTasks",
    "MazeVectorEnv",
    "draw_maze",
    "drawn",
    "greedy",
    "oracle_path_length",
    "oracle_steps",
    "path_length",
    "random_maze",
    "scripted",
    "shortest_path",
    "visible",
]
