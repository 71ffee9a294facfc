"""Environments, and the experience that comes out of them.

Importing this package registers our environments with Gymnasium.
"""

from forethought.envs.arm import Arm, ArmVectorEnv, draw_arm
from forethought.envs.blocks import ActionBlocks, InBlocks
from forethought.envs.collect import HELD_OUT_SEED, check_seeds, collect
from forethought.envs.dataset import Dataset, write_shard
from forethought.envs.description import describe
from forethought.envs.episode import Episode, Windows
from forethought.envs.exchange import (
    ImportOptions,
    export_minari,
    import_arrays,
    import_episodes,
    import_file,
    import_minari,
    unscale_actions,
)
from forethought.envs.index import ShardRecord
from forethought.envs.linear import (
    DoubleIntegrator,
    DoubleIntegratorVectorEnv,
    LinearQuadratic,
    double_integrator,
    finite_horizon_gains,
    optimal_actions,
    optimal_cost,
    trajectory_cost,
)
from forethought.envs.make import make, options_of, register, spec_of
from forethought.envs.maze import MAZES, Maze, MazeVectorEnv, draw_maze
from forethought.envs.pictures import RenderingError
from forethought.envs.point_maze import PointMaze, PointMazeVectorEnv
from forethought.envs.policies import Greedy, Policy, Random, Scripted, Smooth
from forethought.envs.resumable import collect_to, unfinished_episodes
from forethought.envs.simulator import Simulator, SimulatorVectorEnv
from forethought.envs.spec import EnvSpec
from forethought.envs.two_rooms import (
    GEOMETRIES,
    ROOMS_32,
    ROOMS_65,
    Geometry,
    TwoRooms,
    TwoRoomsVectorEnv,
    crosses_wall,
    draw_scene,
    greedy,
    oracle_path_length,
    oracle_steps,
    scripted,
)
from forethought.envs.vector import EpisodicVectorEnv, MaskedResetVectorEnv, SingleEnv
from forethought.envs.windows import WindowSampler
from forethought.envs.wrappers import View

register()

__all__ = [
    "GEOMETRIES",
    "HELD_OUT_SEED",
    "MAZES",
    "ROOMS_32",
    "ROOMS_65",
    "ActionBlocks",
    "Arm",
    "ArmVectorEnv",
    "Dataset",
    "DoubleIntegrator",
    "DoubleIntegratorVectorEnv",
    "EnvSpec",
    "Episode",
    "EpisodicVectorEnv",
    "Geometry",
    "Greedy",
    "ImportOptions",
    "InBlocks",
    "LinearQuadratic",
    "MaskedResetVectorEnv",
    "Maze",
    "MazeVectorEnv",
    "PointMaze",
    "PointMazeVectorEnv",
    "Policy",
    "Random",
    "RenderingError",
    "Scripted",
    "ShardRecord",
    "Simulator",
    "SimulatorVectorEnv",
    "SingleEnv",
    "Smooth",
    "TwoRooms",
    "TwoRoomsVectorEnv",
    "View",
    "WindowSampler",
    "Windows",
    "check_seeds",
    "collect",
    "collect_to",
    "crosses_wall",
    "describe",
    "double_integrator",
    "draw_arm",
    "draw_maze",
    "draw_scene",
    "export_minari",
    "finite_horizon_gains",
    "greedy",
    "import_arrays",
    "import_episodes",
    "import_file",
    "import_minari",
    "make",
    "optimal_actions",
    "optimal_cost",
    "options_of",
    "oracle_path_length",
    "oracle_steps",
    "register",
    "scripted",
    "spec_of",
    "trajectory_cost",
    "unfinished_episodes",
    "unscale_actions",
    "write_shard",
]
