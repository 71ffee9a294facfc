"""Environments, and the experience that comes out of them.

Importing this package registers our environments with Gymnasium.
"""

from forethought.envs.collect import HELD_OUT_SEED, collect, collect_to
from forethought.envs.dataset import Dataset, write_shard
from forethought.envs.episode import Episode, Windows
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
from forethought.envs.make import make, register, spec_of
from forethought.envs.policies import Greedy, Policy, Random, Scripted, Smooth
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
from forethought.envs.vector import EpisodicVectorEnv, SingleEnv
from forethought.envs.windows import WindowSampler

register()

__all__ = [
    "GEOMETRIES",
    "HELD_OUT_SEED",
    "ROOMS_32",
    "ROOMS_65",
    "Dataset",
    "DoubleIntegrator",
    "DoubleIntegratorVectorEnv",
    "EnvSpec",
    "Episode",
    "EpisodicVectorEnv",
    "Geometry",
    "Greedy",
    "LinearQuadratic",
    "Policy",
    "Random",
    "Scripted",
    "ShardRecord",
    "SingleEnv",
    "Smooth",
    "TwoRooms",
    "TwoRoomsVectorEnv",
    "WindowSampler",
    "Windows",
    "collect",
    "collect_to",
    "crosses_wall",
    "double_integrator",
    "draw_scene",
    "finite_horizon_gains",
    "greedy",
    "make",
    "optimal_actions",
    "optimal_cost",
    "oracle_path_length",
    "oracle_steps",
    "register",
    "scripted",
    "spec_of",
    "trajectory_cost",
    "write_shard",
]
