"""Two-Rooms: a point agent, a wall with a door, and a goal shown as a picture.

The smallest task from pixels in which a plan must leave the straight line. Two channels: the
agent, and the walls; nothing shows the goal but the goal's own picture in `info["goal"]`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from gymnasium import spaces
from numpy.random import Generator
from numpy.typing import NDArray

from forethought.envs.two_rooms.drawing import agent_channel, draw_scene, wall_channel
from forethought.envs.two_rooms.geometry import ROOMS_32, ROOMS_65, Geometry, move
from forethought.envs.vector import Bools, EpisodicVectorEnv, SingleEnv

Array = NDArray[Any]
Layout = Literal["fixed", "random"]
Task = Literal["any", "between", "within"]
Contact = Literal["slide", "stop"]
Success = Literal["touch", "last"]


class TwoRoomsVectorEnv(EpisodicVectorEnv):
    """`N` episodes of Two-Rooms.

    Observation: uint8 `(2, size, size)`: the agent, then the walls. Action: `(2,)` in [-1, 1],
    projected on the unit disc; norm 1 is `geometry.max_step` pixels. `info["quantities"]`:
    `position`, `goal_position` `(N, 2)`, `wall`, `door` `(N, 1)`, in pixels (x, y).

    Args:
        num_envs: `N`.
        geometry: Numbers of the task.
        layout: `fixed`, or `random`: wall and door drawn anew for each episode.
        task: Start and goal in `any` rooms, `between` two rooms, or `within` one.
        contact: `slide` along walls, or `stop` at them.
        success: `touch`: at the goal after any step, which ends the episode and pays 1;
            `last`: at the goal after the last step, which pays 1; episodes have full length.
        max_step: Pixels covered by an action of norm 1; None for the geometry's, which is also the
            most. `geometry` of the environment says so, for the oracles, and so does
            `info["two_rooms"]`, which holds `max_step` `(N,)` where the option is given.
        episode_limit: Steps; None for the geometry's.
        render_mode: `rgb_array` or None.

    Raises:
        ValueError: An option has an unknown value or is out of range.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        geometry: Geometry = ROOMS_32,
        layout: Layout = "fixed",
        task: Task = "any",
        contact: Contact = "slide",
        success: Success = "touch",
        max_step: float | None = None,
        episode_limit: int | None = None,
        render_mode: str | None = "rgb_array",
    ) -> None:
        _check_choice("layout", layout, Layout)
        _check_choice("task", task, Task)
        _check_choice("contact", contact, Contact)
        _check_choice("success", success, Success)
        if max_step is not None:
            if not 0 < max_step <= geometry.max_step:
                raise ValueError(
                    f"max_step is {max_step}: choose above 0 and at most {geometry.max_step}"
                )
            geometry = replace(geometry, max_step=float(max_step))
        size = geometry.size
        super().__init__(
            num_envs,
            observation_space=spaces.Box(0, 255, (2, size, size), np.uint8),
            action_dim=2,
            control_step_seconds=0.1,  # a convention: the task has no clock of its own
            episode_limit=geometry.episode_limit if episode_limit is None else episode_limit,
            render_mode=render_mode,
        )
        self.geometry = geometry
        self.layout, self.task, self.contact, self.success = layout, task, contact, success
        self._own_step = max_step is not None
        self._position = np.zeros((num_envs, 2))
        self._goal_position = np.zeros((num_envs, 2))
        self._wall = np.zeros(num_envs)
        self._door = np.zeros(num_envs)
        self._walls = np.zeros((num_envs, size, size), np.uint8)
        self._goal = np.zeros((num_envs, 2, size, size), np.uint8)

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Frames `(H, W, 3)` uint8, one per environment; None without a render mode."""
        if self.render_mode is None:
            return None
        scale = max(1, 256 // self.geometry.size)
        layouts = zip(self._wall, self._door, self._position, self._goal_position, strict=True)
        return tuple(draw_scene(self.geometry, *layout, scale) for layout in layouts)

    def _begin(self, row: int, generator: Generator) -> None:
        geometry = self.geometry
        wall, door = geometry.fixed_wall, geometry.fixed_door
        if self.layout == "random":
            wall = float(generator.integers(*geometry.wall_range, endpoint=True))
            door = float(generator.integers(*geometry.door_range, endpoint=True))
        self._wall[row], self._door[row] = wall, door
        start = self._draw_point(wall, None, generator)
        on_left = bool(start[0] < wall)
        left = {"any": None, "between": not on_left, "within": on_left}[self.task]
        self._position[row] = start
        self._goal_position[row] = self._draw_point(wall, left, generator)

    def _draw_point(self, wall: float, left: bool | None, generator: Generator) -> Array:
        """Draw a point, uniform over both rooms, or over the left or the right one."""
        low, high, half = self.geometry.low, self.geometry.high, self.geometry.wall_half_thickness
        if left is None:
            x = generator.uniform(low, high - 2 * half)
            x += 2 * half if x > wall - half else 0.0  # draw without the wall, then put it back
        elif left:
            x = generator.uniform(low, wall - half)
        else:
            x = generator.uniform(wall + half, high)
        return np.array([x, generator.uniform(low, high)])

    def _begun(self, mask: Bools) -> None:
        self._walls[mask] = wall_channel(self.geometry, self._wall[mask], self._door[mask])
        self._goal[mask, 0] = agent_channel(self.geometry, self._goal_position[mask])
        self._goal[mask, 1] = self._walls[mask]

    def _advance(self, actions: Array, active: Bools) -> Array:
        moved = move(
            self.geometry,
            self._wall,
            self._door,
            self._position,
            actions,
            slide=self.contact == "slide",
        )
        self._position = np.where(active[:, None], moved, self._position)
        distance = np.linalg.norm(self._position - self._goal_position, axis=1)
        reached = distance <= self.geometry.success_radius
        if self.success == "last":
            self._success = np.where(active, reached, self._success)
            return np.where(reached & (self._elapsed >= self.episode_limit), 1.0, 0.0)
        first = reached & active  # success ends an episode, so that it is the first
        self._success |= first
        self._terminated |= first
        return np.where(first, 1.0, 0.0)

    def _observe(self) -> Array:
        size = self.geometry.size
        observations = np.empty((self.num_envs, 2, size, size), np.uint8)
        observations[:, 0] = agent_channel(self.geometry, self._position)
        observations[:, 1] = self._walls
        return observations

    def _goals(self) -> Array:
        return self._goal

    def _quantities(self) -> dict[str, Array]:
        return {
            "position": self._position.astype(np.float32),
            "goal_position": self._goal_position.astype(np.float32),
            "wall": self._wall.astype(np.float32)[:, None],
            "door": self._door.astype(np.float32)[:, None],
        }

    def _info(self) -> dict[str, Any]:
        info = super()._info()
        if self._own_step:
            info["two_rooms"] = {"max_step": np.full(self.num_envs, self.geometry.max_step)}
        return info


class TwoRooms(SingleEnv):
    """One episode of Two-Rooms as a `gymnasium.Env`; options as for `TwoRoomsVectorEnv`."""

    def __init__(
        self,
        *,
        geometry: Geometry = ROOMS_32,
        layout: Layout = "fixed",
        task: Task = "any",
        contact: Contact = "slide",
        success: Success = "touch",
        max_step: float | None = None,
        episode_limit: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        vector = TwoRoomsVectorEnv(
            1,
            geometry=geometry,
            layout=layout,
            task=task,
            contact=contact,
            success=success,
            max_step=max_step,
            episode_limit=episode_limit,
        )
        super().__init__(vector, render_mode)


def two_rooms_65_vector(
    num_envs: int = 1,
    *,
    layout: Layout = "random",
    task: Task = "any",
    contact: Contact = "stop",
    success: Success = "last",
    max_step: float | None = None,
    episode_limit: int | None = None,
    render_mode: str | None = "rgb_array",
) -> TwoRoomsVectorEnv:
    """`N` episodes with eb_jepa's numbers: 65 pixels, 200 steps, judged at the last one."""
    return TwoRoomsVectorEnv(
        num_envs,
        geometry=ROOMS_65,
        layout=layout,
        task=task,
        contact=contact,
        success=success,
        max_step=max_step,
        episode_limit=episode_limit,
        render_mode=render_mode,
    )


def two_rooms_65(
    *,
    layout: Layout = "random",
    task: Task = "any",
    contact: Contact = "stop",
    success: Success = "last",
    max_step: float | None = None,
    episode_limit: int | None = None,
    render_mode: str | None = None,
) -> TwoRooms:
    """One episode with eb_jepa's numbers; see `two_rooms_65_vector`."""
    return TwoRooms(
        geometry=ROOMS_65,
        layout=layout,
        task=task,
        contact=contact,
        success=success,
        max_step=max_step,
        episode_limit=episode_limit,
        render_mode=render_mode,
    )


def _check_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} is {value!r}: use one of {', '.join(get_args(choices))}")
