"""Two-Rooms: the environment, its geometry, its pictures and its controllers."""

from forethought.envs.two_rooms.control import greedy, oracle_path_length, oracle_steps, scripted
from forethought.envs.two_rooms.drawing import draw_scene
from forethought.envs.two_rooms.env import (
    TwoRooms,
    TwoRoomsVectorEnv,
    two_rooms_65,
    two_rooms_65_vector,
)
from forethought.envs.two_rooms.geometry import (
    GEOMETRIES,
    ROOMS_32,
    ROOMS_65,
    Geometry,
    crosses_wall,
)

__all__ = [
    "GEOMETRIES",
    "ROOMS_32",
    "ROOMS_65",
    "Geometry",
    "TwoRooms",
    "TwoRoomsVectorEnv",
    "crosses_wall",
    "draw_scene",
    "greedy",
    "oracle_path_length",
    "oracle_steps",
    "scripted",
    "two_rooms_65",
    "two_rooms_65_vector",
]
