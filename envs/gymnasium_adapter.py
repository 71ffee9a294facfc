"""Environments of Gymnasium's registry as simulators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import gymnasium
import numpy as np
from gymnasium import Space, spaces
from numpy.typing import NDArray

from forethought.envs.pictures import (
    RenderingError,
    cannot_render,
    channel_first,
    listen_to_mujoco,
    resize,
)
from forethought.envs.simulator import Observation, Outcome, Simulator
from forethought.envs.wrappers import View

Array = NDArray[Any]
Reader = Callable[[Any], Array]

_LONGEST_QUANTITY = 64  # entries; more than that is not a list of things to read out


class GymnasiumSimulator(Simulator):
    """One environment of Gymnasium's registry.

    Observation: its own, with pictures channel-first, other numbers float32, `Discrete` as float32
    one-hot vectors, and nested dictionaries flat (`outer.inner`). Quantities: those in its infos
    where it has any (`info["quantities"]`), else vectors among its observations of at most 64
    entries. Success: `success` or `is_success` in its infos. Goal: `goal` in the infos of a reset,
    an observation, as OGBench gives it.

    The seed of an episode also decides what the environment draws from its action space and from
    NumPy's global generator, as OGBench does (an environment that draws from it in its steps, but
    never in a reset, is not noticed).

    Args:
        id: In Gymnasium's registry.
        view: What is rendered, and the episode limit in steps.
        render_mode: `rgb_array` or None.
        **options: Of the environment.

    Raises:
        ValueError: Spaces are of an unknown kind, or there is no such camera.
    """

    def __init__(self, id: str, view: View, render_mode: str | None = None, **options: Any) -> None:
        self._id, self._view = id, view
        rendered = view.observe != "vector"
        listen_to_mujoco()  # it was imported with the environment's code
        limit = {"max_episode_steps": view.episode_limit} if view.episode_limit else {}
        try:
            self.env = gymnasium.make(
                id,
                render_mode="rgb_array" if rendered else render_mode,
                disable_env_checker=True,
                **limit,
                **options,
            )
        except TypeError as error:  # what Gymnasium raises for arguments that do not fit
            raise ValueError(f"{id} cannot be made with options {options}: {error}") from error
        self.observation_space, self._read = _reading(self.env.observation_space)
        space = self.env.action_space
        self._offset = 0
        if isinstance(space, spaces.Discrete):
            self._offset = int(space.start)
            space = spaces.Discrete(space.n)
        if not isinstance(space, spaces.Box | spaces.Discrete):
            raise ValueError(f"action space {space} of {id} is not supported: use Box or Discrete")
        self.action_space = space
        self.control_step_seconds = _control_step_seconds(self.env)
        own_limit = None if self.env.spec is None else self.env.spec.max_episode_steps
        self.episode_limit = view.episode_limit or own_limit
        self._observation: Observation = np.zeros(0)
        self._info: Mapping[str, Any] = {}
        self._draws = _GlobalDraws()
        self._prepare_mujoco()

    def begin(self, seed: int | None) -> None:
        """See `Simulator`."""
        if seed is not None:
            self.env.action_space.seed(seed)
            self._draws.seed(seed)
        with self._draws.swapped():
            observation, self._info = self.env.reset(seed=seed)
        self._observation = self._read(observation)
        self.success = self._verdict()
        if self.success is None and "goal" in self._info:
            self.success = False  # said from the first step on, where there is a goal

    def advance(self, action: Array) -> Outcome:
        """See `Simulator`."""
        if isinstance(self.action_space, spaces.Discrete):
            taken: Any = int(action) + self._offset
        else:
            taken = action.astype(self.action_space.dtype)
        with self._draws.swapped() if self._draws.used else nullcontext():
            observation, reward, terminated, truncated, self._info = self.env.step(taken)
        self._observation = self._read(observation)
        self.success = self._verdict()
        return float(reward), bool(terminated), bool(truncated)

    def observe(self) -> Observation:
        """See `Simulator`."""
        return self._observation

    def quantities(self) -> Mapping[str, Array]:
        """See `Simulator`."""
        if "quantities" in self._info:
            return {
                name: np.atleast_1d(np.asarray(value, np.float32))
                for name, value in self._info["quantities"].items()
            }
        own = self._observation
        named = own if isinstance(own, dict) else {"observation": own}
        return {
            name: entry
            for name, entry in named.items()
            if entry.ndim == 1 and len(entry) <= _LONGEST_QUANTITY
        }

    def goal(self) -> Observation | None:
        """See `Simulator`."""
        return self._read(self._info["goal"]) if "goal" in self._info else None

    def picture(self, size: int) -> NDArray[np.uint8]:
        """See `Simulator`."""
        return np.asarray(channel_first(resize(self.frame(), size)), np.uint8)

    def frame(self) -> NDArray[np.uint8]:
        """See `Simulator`."""
        try:
            frame: Any = self.env.render()
        except Exception as error:
            raise cannot_render(self._id, error, with_mujoco=self._with_mujoco) from error
        if not isinstance(frame, np.ndarray) or frame.ndim != 3:
            raise RenderingError(f"{self._id} draws no pictures: use observe='vector'")
        return np.asarray(frame, np.uint8)

    def close(self) -> None:
        """See `Simulator`."""
        self.env.close()

    def _verdict(self) -> bool | None:
        for name in ("success", "is_success"):
            if name in self._info:
                return bool(self._info[name])
        return None

    def _prepare_mujoco(self) -> None:
        """Camera, size and quality of MuJoCo's pictures, before the first one is rendered."""
        view, renderer = self._view, getattr(self.env.unwrapped, "mujoco_renderer", None)
        self._with_mujoco = renderer is not None
        if renderer is None:
            if view.camera:
                raise ValueError(f"camera is {view.camera}: {self._id} has one view only, give 0")
            return
        model: Any = self.env.unwrapped.model  # type: ignore[attr-defined]
        if view.camera >= max(model.ncam, 1):
            raise ValueError(
                f"camera is {view.camera}: {self._id} has cameras 0 to {model.ncam - 1}"
            )
        if view.camera:
            renderer.camera_id = view.camera
        if view.observe != "vector":
            renderer.width = renderer.height = view.picture_size
            if view.lean:
                model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
                model.vis.global_.offwidth = model.vis.global_.offheight = view.picture_size


class _GlobalDraws:
    """NumPy's global generator as one environment sees it: with a state of its own.

    Attributes:
        used: Whether anything was drawn so far.
    """

    def __init__(self) -> None:
        self.used = False
        self._own: Any = None

    def seed(self, seed: int) -> None:
        """Begin anew."""
        generator = np.random.MT19937(np.random.SeedSequence(seed))
        self._own = np.random.RandomState(generator).get_state(legacy=False)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Put the own state in place meanwhile; nothing happens before `seed` was called."""
        if self._own is None:
            yield
            return
        own, others = self._own, np.random.get_state(legacy=False)
        np.random.set_state(own)
        try:
            yield
        finally:
            self._own = np.random.get_state(legacy=False)
            np.random.set_state(others)
            drawn = not np.array_equal(self._own["state"]["key"], own["state"]["key"])
            self.used |= drawn or self._own["state"]["pos"] != own["state"]["pos"]


def _reading(space: Space[Any]) -> tuple[Space[Any], Callable[[Any], Observation]]:
    """The space in which an observation is given on, and how it gets there."""
    if isinstance(space, spaces.Dict):
        parts = _flat(space)

        def read(observation: Any) -> dict[str, Array]:
            return {name: reader(_at(observation, path)) for name, path, _, reader in parts}

        return spaces.Dict({name: part for name, _, part, _ in parts}), read
    return _reading_part(space)


def _flat(
    space: spaces.Dict, above: tuple[str, ...] = ()
) -> list[tuple[str, tuple[str, ...], spaces.Box, Reader]]:
    """Name, path, space and reader of each part of a nested dictionary."""
    parts = []
    for key, part in space.spaces.items():
        path = (*above, key)
        if isinstance(part, spaces.Dict):
            parts += _flat(part, path)
        else:
            parts.append((".".join(path), path, *_reading_part(part)))
    return parts


def _at(observation: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        observation = observation[key]
    return observation


def _reading_part(space: Space[Any]) -> tuple[spaces.Box, Reader]:
    if isinstance(space, spaces.Discrete):
        rows, start = np.eye(int(space.n), dtype=np.float32), int(space.start)
        return spaces.Box(0.0, 1.0, (int(space.n),), np.float32), lambda index: rows[index - start]
    if not isinstance(space, spaces.Box):
        raise ValueError(f"observation space {space} is not supported: use Box, Discrete or Dict")
    shape, last = space.shape, (space.shape or (0,))[-1]
    if space.dtype == np.uint8 and len(shape) == 3:
        if last not in (1, 3, 4):
            return space, np.array  # channel-first already
        flipped = spaces.Box(0, 255, (last, *shape[:2]), np.uint8)
        return flipped, channel_first
    if space.dtype == np.uint8 and len(shape) == 2:
        return spaces.Box(0, 255, (1, *shape), np.uint8), lambda picture: np.array(picture)[None]
    with np.errstate(over="ignore"):  # bounds beyond float32 become infinite
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    return spaces.Box(low, high, dtype=np.float32), lambda array: np.array(array, np.float32)


def _control_step_seconds(env: gymnasium.Env[Any, Any]) -> float:
    """The environment's own number, its simulator's `dt`, its frame rate, or 1."""
    base = env.unwrapped
    for name in ("control_step_seconds", "dt"):
        if getattr(base, name, None) is not None:
            return float(getattr(base, name))
    rate = base.metadata.get("render_fps")
    return 1.0 / rate if rate else 1.0
