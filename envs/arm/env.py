"""A planar arm of 7 joints that reaches for a target among round obstacles.

Kinematic, so that its dynamics are known exactly (`forethought.envs.arm.model`): what a planner
misses here, it misses by planning.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.random import Generator
from numpy.typing import NDArray

from forethought.envs.arm.drawing import draw_arm
from forethought.envs.arm.geometry import ABSENT, LINKS, Array, clearance, joints, move
from forethought.envs.vector import Bools, EpisodicVectorEnv, SingleEnv

# Distance of the tip from the target that counts as touching it, in arm lengths.
SUCCESS_RADIUS = 0.05

MOST_OBSTACLES = 5

_CLEAR = 0.03  # arm lengths that start and goal keep from obstacles
_FAR = 0.4  # arm lengths between the tip and the target, at least
_RADII = (0.06, 0.12)
_BASE = 0.15  # arm lengths that obstacles keep from the base


class ArmVectorEnv(EpisodicVectorEnv):
    """`N` episodes of an arm among obstacles, which are drawn anew for each episode.

    Observation: float32 `(31,)`: cosines and sines of the angles (14), obstacles as (x, y, radius)
    (15; those missing are at (2, 2) with radius 0), position of the tip (2). Its goal is an
    observation, too: of a free configuration whose tip is at the target. Action: `(7,)` in
    [-1, 1], what each joint turns by; 1 is `max_step`. A step that would touch an obstacle does not
    happen. An episode ends, and pays 1, when the tip is within 0.05 of the target after a step.
    `info["quantities"]`: `angles` (unbounded), `tip`, `goal_position`, `clearance`. `info["arm"]`
    is for controllers and exact planning, in float64: `angles`, `start_angles`, `goal_angles`
    `(N, 7)`, `obstacles` `(N, 5, 3)`, `max_step` `(N,)`.

    Nobody has looked for a way from start to goal before an episode begins; `scripted` finds
    one almost always.

    Args:
        num_envs: `N`.
        obstacles: Number of obstacles, 0 to 5; None draws 3 to 5.
        max_step: Radians that a joint turns by in a step, at most 0.2.
        episode_limit: Steps.
        render_mode: `rgb_array` or None.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        obstacles: int | None = None,
        max_step: float = 0.1,
        episode_limit: int = 100,
        render_mode: str | None = "rgb_array",
    ) -> None:
        if obstacles is not None and not 0 <= obstacles <= MOST_OBSTACLES:
            raise ValueError(f"obstacles is {obstacles}: choose 0 to {MOST_OBSTACLES}, or None")
        if not 0 < max_step <= 0.2:
            raise ValueError(f"max_step is {max_step}: choose above 0 and at most 0.2")
        low = np.r_[-np.ones(2 * LINKS), np.tile([-2.0, -2.0, 0.0], MOST_OBSTACLES), [-1.0, -1.0]]
        high = np.r_[np.ones(2 * LINKS), np.tile([2.0, 2.0, 1.0], MOST_OBSTACLES), [1.0, 1.0]]
        super().__init__(
            num_envs,
            observation_space=spaces.Box(low.astype(np.float32), high.astype(np.float32)),
            action_dim=LINKS,
            control_step_seconds=0.1,  # at 1 rad/s with the default step
            episode_limit=episode_limit,
            render_mode=render_mode,
        )
        self.obstacles, self.max_step = obstacles, max_step
        self._angles = np.zeros((num_envs, LINKS))
        self._start_angles = np.zeros((num_envs, LINKS))
        self._goal_angles = np.zeros((num_envs, LINKS))
        self._circles = np.tile(ABSENT, (num_envs, MOST_OBSTACLES, 1))

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Frames `(H, W, 3)` uint8, one per environment; None without a render mode."""
        if self.render_mode is None:
            return None
        rows = zip(self._angles, self._circles, self._targets(), strict=True)
        return tuple(draw_arm(*row, SUCCESS_RADIUS) for row in rows)

    def _begin(self, row: int, generator: Generator) -> None:
        scene = None
        while scene is None:
            scene = _draw_scene(self.obstacles, generator)
        self._start_angles[row], self._goal_angles[row], self._circles[row] = scene
        self._angles[row] = self._start_angles[row]

    def _advance(self, actions: Array, active: Bools) -> Array:
        moved = move(self._angles, actions, self._circles, self.max_step)
        self._angles = np.where(active[:, None], moved, self._angles)
        gap = np.linalg.norm(joints(self._angles)[:, -1] - self._targets(), axis=1)
        first = (gap <= SUCCESS_RADIUS) & active  # success ends an episode, so that it is the first
        self._success |= first
        self._terminated |= first
        return np.where(first, 1.0, 0.0)

    def _targets(self) -> Array:
        return joints(self._goal_angles)[:, -1]

    def _observed(self, angles: Array) -> Array:
        parts = (np.cos(angles), np.sin(angles), self._circles.reshape(self.num_envs, -1))
        tips = np.clip(joints(angles)[:, -1], -1.0, 1.0)  # rounding may stretch the arm
        return np.concatenate([*parts, tips], axis=1).astype(np.float32)

    def _observe(self) -> Array:
        return self._observed(self._angles)

    def _goals(self) -> Array:
        return self._observed(self._goal_angles)

    def _quantities(self) -> dict[str, Array]:
        quantities = {
            "angles": self._angles,
            "tip": joints(self._angles)[:, -1],
            "goal_position": self._targets(),
            "clearance": clearance(self._angles, self._circles)[:, None],
        }
        return {name: value.astype(np.float32) for name, value in quantities.items()}

    def _info(self) -> dict[str, Any]:
        arm = {
            "angles": self._angles.copy(),
            "start_angles": self._start_angles.copy(),
            "goal_angles": self._goal_angles.copy(),
            "obstacles": self._circles.copy(),
            "max_step": np.full(self.num_envs, self.max_step),
        }
        return {**super()._info(), "arm": arm}


class Arm(SingleEnv):
    """One episode of an arm as a `gymnasium.Env`; options as for `ArmVectorEnv`."""

    def __init__(
        self,
        *,
        obstacles: int | None = None,
        max_step: float = 0.1,
        episode_limit: int = 100,
        render_mode: str | None = None,
    ) -> None:
        vector = ArmVectorEnv(
            1, obstacles=obstacles, max_step=max_step, episode_limit=episode_limit
        )
        super().__init__(vector, render_mode)


def _draw_scene(count: int | None, generator: Generator) -> tuple[Array, Array, Array] | None:
    """Angles at the start and at the goal, and circles `(5, 3)`; None where they do not fit."""
    ends = np.concatenate(
        [generator.uniform(-math.pi, math.pi, (2, 1)), generator.normal(0.0, 0.5, (2, LINKS - 1))],
        axis=1,
    )
    # The goal is at most a quarter turn away, so that an episode takes some tens of steps.
    ends[1, 0] = ends[0, 0] + generator.uniform(-0.5 * math.pi, 0.5 * math.pi)
    tips = joints(ends)[:, -1]
    if np.linalg.norm(tips[1] - tips[0]) < _FAR:
        return None
    circles = np.tile(ABSENT, (MOST_OBSTACLES, 1))
    drawn = int(generator.integers(3, MOST_OBSTACLES, endpoint=True)) if count is None else count
    for place in range(drawn):
        for _ in range(50):
            # The first one is in the way of the tip, about half-way to the target; the others are
            # anywhere within reach.
            reach, heading = math.sqrt(generator.uniform()), generator.uniform(-math.pi, math.pi)
            centre = reach * np.array([math.cos(heading), math.sin(heading)])
            if place == 0:
                centre = tips.mean(axis=0) + generator.normal(0.0, 0.15, 2)
            circle = np.r_[centre, generator.uniform(*_RADII)]
            near_base = np.linalg.norm(circle[:2]) - circle[2] < _BASE
            if not near_base and clearance(ends, circle[None]).min() > _CLEAR:
                circles[place] = circle
                break
        else:
            return None
    return ends[0], ends[1], circles
