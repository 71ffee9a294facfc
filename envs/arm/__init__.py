"""A planar arm among obstacles: the environment, its kinematics, its pictures and controllers.

`forethought.envs.arm.model` holds the same dynamics in PyTorch, for planning without a learned
model; it is imported by name only, so that environments go without torch.
"""

from forethought.envs.arm.control import greedy, scripted
from forethought.envs.arm.drawing import draw_arm
from forethought.envs.arm.env import SUCCESS_RADIUS, Arm, ArmVectorEnv
from forethought.envs.arm.geometry import LINKS, clearance, joints, move
from forethought.envs.arm.search import free_path

__all__ = [
    "LINKS",
    "SUCCESS_RADIUS",
    "Arm",
    "ArmVectorEnv",
    "clearance",
    "draw_arm",
    "free_path",
    "greedy",
    "joints",
    "move",
    "scripted",
]
