"""What can be put round a simulator: action repeat and blocks, frame stack, pictures, scaling.

`wrapped` puts them on in the one order that makes sense. Each is a simulator itself. `Blanked`
alone goes round the vector environment, since it serves our own environments too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from forethought.envs.blocks import block_space
from forethought.envs.pictures import channel_first, resize
from forethought.envs.simulator import Observation, Outcome, Simulator

Array = NDArray[Any]
Observe = Literal["vector", "pixels", "both"]


@dataclass(frozen=True)
class View:
    """Options that every environment of others understands.

    They come before an option of that name that the environment has itself.

    Attributes:
        action_repeat: Control steps for which an action is held. Rewards are summed; an episode
            that ends in between ends the repetition.
        block: Actions that make up one decision, one after the other, each held for
            `action_repeat` control steps; see `ActionBlock`.
        observe: `vector`: the environment's own observation; `pixels`: a rendered picture, uint8
            `(3, size, size)`; `both`: a dictionary `vector`, `pixels`.
        size: Side of pictures in pixels. None is 64 for rendered pictures, and leaves pictures
            that the environment itself observes as they are.
        frame_stack: Observations that are stacked, the latest last: along the channels of
            pictures, behind one another in vectors. An episode begins with equal ones.
        camera: Number of the camera, where the environment has cameras.
        lean: Render MuJoCo without shadows, reflections, sky, haze and multisampling.
        episode_limit: Control steps (before action repeat) after which an episode is truncated;
            None for the environment's own limit.
        held: Success is, instead of what the environment says of it, that each of the last
            `held` control steps had a reward above 0, as a finger that stays in the target of
            dm_control's reacher; 0 leaves it to the environment.

    Raises:
        ValueError: A value is out of range.
    """

    action_repeat: int = 1
    block: int = 1
    observe: Observe = "vector"
    size: int | None = None
    frame_stack: int = 1
    camera: int = 0
    lean: bool = True
    episode_limit: int | None = None
    held: int = 0

    def __post_init__(self) -> None:
        if self.observe not in get_args(Observe):
            choices = " or ".join(get_args(Observe))
            raise ValueError(f"observe is {self.observe!r}: use {choices}")
        least_of = {"action_repeat": 1, "block": 1, "size": 1, "frame_stack": 1}
        bounds = least_of | {"camera": -1, "held": 0}
        for name, least in bounds.items():
            value = getattr(self, name)
            if value is None and name == "size":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is {value!r}: give an integer of at least {least}")
        if not isinstance(self.lean, bool):
            raise ValueError(f"lean is {self.lean!r}: use True or False")
        if self.episode_limit is not None and self.episode_limit < 1:
            raise ValueError(f"episode_limit is {self.episode_limit}: it must be at least 1")

    @property
    def picture_size(self) -> int:
        """Side of rendered pictures in pixels."""
        return 64 if self.size is None else self.size

    @staticmethod
    def names() -> set[str]:
        """The names of the options."""
        return {item.name for item in fields(View)}


def wrapped(simulator: Simulator, view: View) -> Simulator:
    """Put round a simulator what the options ask for; actions end up in [-1, 1].

    Raises:
        ValueError: The action space has no bounds, or the observation cannot be shown like that.
    """
    if view.held:
        simulator = HeldReward(simulator, view.held)
    space = simulator.action_space
    if isinstance(space, spaces.Box) and space != spaces.Box(-1.0, 1.0, space.shape, np.float32):
        simulator = RescaleActions(simulator)
    if view.action_repeat > 1:
        simulator = ActionRepeat(simulator, view.action_repeat)
    if view.block > 1:
        simulator = ActionBlock(simulator, view.block)
    if view.observe != "vector":
        simulator = Rendered(simulator, view.picture_size, beside=view.observe == "both")
    elif view.size is not None and _is_picture(simulator.observation_space):
        simulator = Resize(simulator, view.size)
    if view.frame_stack > 1:
        simulator = FrameStack(simulator, view.frame_stack)
    return simulator


class Wrapper(Simulator):
    """A simulator round a simulator, which it leaves as it is.

    Args:
        inner: The simulator inside.
    """

    def __init__(self, inner: Simulator) -> None:
        self.inner = inner
        self.observation_space = inner.observation_space
        self.action_space = inner.action_space
        self.control_step_seconds = inner.control_step_seconds
        self.episode_limit = inner.episode_limit

    def begin(self, seed: int | None) -> None:
        """See `Simulator`."""
        self.inner.begin(seed)
        self.success = self.inner.success

    def advance(self, action: Array) -> Outcome:
        """See `Simulator`."""
        outcome = self.inner.advance(action)
        self.success = self.inner.success
        return outcome

    def observe(self) -> Observation:
        """See `Simulator`."""
        return self.inner.observe()

    def quantities(self) -> Mapping[str, Array]:
        """See `Simulator`."""
        return self.inner.quantities()

    def goal(self) -> Observation | None:
        """See `Simulator`."""
        return self.inner.goal()

    def picture(self, size: int) -> NDArray[np.uint8]:
        """See `Simulator`."""
        return self.inner.picture(size)

    def frame(self) -> NDArray[np.uint8]:
        """See `Simulator`."""
        return self.inner.frame()

    def close(self) -> None:
        """See `Simulator`."""
        self.inner.close()


class RescaleActions(Wrapper):
    """Actions in [-1, 1] become those between the bounds, -1 and 1 exactly the bounds.

    Raises:
        ValueError: A bound is infinite.
    """

    def __init__(self, inner: Simulator) -> None:
        super().__init__(inner)
        space = inner.action_space
        if not isinstance(space, spaces.Box) or not space.is_bounded():
            raise ValueError(
                f"action space {space} has no bounds: actions must be between finite bounds, "
                "wrap the environment so that they are"
            )
        self._low, self._high = space.low.astype(np.float64), space.high.astype(np.float64)
        self._dtype = space.dtype
        self.action_space = spaces.Box(-1.0, 1.0, space.shape, np.float32)

    def advance(self, action: Array) -> Outcome:
        """See `Simulator`."""
        scaled = 0.5 * (1.0 - action) * self._low + 0.5 * (1.0 + action) * self._high
        return super().advance(scaled.astype(self._dtype))


class HeldReward(Wrapper):
    """Success is that each of the last `count` rewards was above 0."""

    def __init__(self, inner: Simulator, count: int) -> None:
        super().__init__(inner)
        self.count = count

    def begin(self, seed: int | None) -> None:
        """See `Simulator`."""
        super().begin(seed)
        self._run, self.success = 0, False

    def advance(self, action: Array) -> Outcome:
        """See `Simulator`."""
        outcome = super().advance(action)
        self._run = self._run + 1 if outcome[0] > 0 else 0
        self.success = self._run >= self.count
        return outcome


class ActionRepeat(Wrapper):
    """Holds an action for `times` steps and sums the rewards; the end of the episode ends it."""

    def __init__(self, inner: Simulator, times: int) -> None:
        super().__init__(inner)
        self.times = times
        self.control_step_seconds = inner.control_step_seconds * times
        if inner.episode_limit is not None:
            self.episode_limit = -(-inner.episode_limit // times)

    def advance(self, action: Array) -> Outcome:
        """See `Simulator`."""
        total = 0.0
        for _ in range(self.times):
            reward, terminated, truncated = self.inner.advance(action)
            total += reward
            if terminated or truncated:
                break
        self.success = self.inner.success
        return total, terminated, truncated


class ActionBlock(Wrapper):
    """A decision is `count` actions `(count * A,)`, the first one first; only its end is observed.

    Rewards are summed; the end of the episode ends the block.

    Raises:
        ValueError: Actions are not a `Box`.
    """

    def __init__(self, inner: Simulator, count: int) -> None:
        super().__init__(inner)
        self.count = count
        self.action_space = block_space(inner.action_space, count)
        self.control_step_seconds = inner.control_step_seconds * count
        if inner.episode_limit is not None:
            self.episode_limit = -(-inner.episode_limit // count)

    def advance(self, action: Array) -> Outcome:
        """See `Simulator`."""
        total = 0.0
        for part in np.split(action, self.count):
            reward, terminated, truncated = self.inner.advance(part)
            total += reward
            if terminated or truncated:
                break
        self.success = self.inner.success
        return total, terminated, truncated


class Rendered(Wrapper):
    """Observes a rendered picture instead of, or beside the own observation.

    Args:
        inner: The simulator inside.
        size: Side of the picture.
        beside: Keep the own observation: under the name `vector`, or under its own names.

    Raises:
        ValueError: The own observation is a picture already.
    """

    def __init__(self, inner: Simulator, size: int, *, beside: bool) -> None:
        super().__init__(inner)
        self._size, self._beside = size, beside
        picture = spaces.Box(0, 255, (3, size, size), np.uint8)
        own = inner.observation_space
        self.observation_space = picture
        if beside:
            if _is_picture(own):
                raise ValueError("observe is 'both', but the own observation is a picture already")
            parts = dict(own.spaces) if isinstance(own, spaces.Dict) else {"vector": own}
            self.observation_space = spaces.Dict({**parts, "pixels": picture})

    def observe(self) -> Observation:
        """See `Simulator`."""
        picture = self.inner.picture(self._size)
        if not self._beside:
            return picture
        own = self.inner.observe()
        return {**(own if isinstance(own, dict) else {"vector": own}), "pixels": picture}

    def goal(self) -> None:
        """None: no picture shows the goal."""
        return None


class Resize(Wrapper):
    """Scales the pictures `(C, H, W)` that the environment observes, and its goal."""

    def __init__(self, inner: Simulator, size: int) -> None:
        super().__init__(inner)
        self._size = size
        channels = (inner.observation_space.shape or ())[0]
        self.observation_space = spaces.Box(0, 255, (channels, size, size), np.uint8)

    def observe(self) -> Observation:
        """See `Simulator`."""
        return self._scaled(self.inner.observe())

    def goal(self) -> Observation | None:
        """See `Simulator`."""
        goal = self.inner.goal()
        return None if goal is None else self._scaled(goal)

    def _scaled(self, picture: Observation) -> Array:
        return channel_first(resize(np.asarray(picture).transpose(1, 2, 0), self._size))


class FrameStack(Wrapper):
    """Observes the last `count` observations, joined along their first axis, the latest last."""

    def __init__(self, inner: Simulator, count: int) -> None:
        super().__init__(inner)
        own = inner.observation_space
        self._frames: deque[Observation] = deque(maxlen=count)
        if isinstance(own, spaces.Dict):
            parts = [(name, _stacked(part, count)) for name, part in own.spaces.items()]
            self.observation_space = spaces.Dict(parts)
        else:
            self.observation_space = _stacked(own, count)

    def begin(self, seed: int | None) -> None:
        """See `Simulator`."""
        super().begin(seed)
        frame = self.inner.observe()
        self._frames.extend([frame] * (self._frames.maxlen or 1))

    def advance(self, action: Array) -> Outcome:
        """See `Simulator`."""
        outcome = super().advance(action)
        self._frames.append(self.inner.observe())
        return outcome

    def observe(self) -> Observation:
        """See `Simulator`."""
        return _joined(list(self._frames))

    def goal(self) -> Observation | None:
        """See `Simulator`: the goal, seen for as long as the stack is."""
        goal = self.inner.goal()
        return None if goal is None else _joined([goal] * (self._frames.maxlen or 1))


@dataclass(frozen=True)
class Blank:
    """Decisions of an episode at which nothing is seen.

    Attributes:
        start: First decision without sight; 0 is the one at the observation of `reset`.
        length: Decisions without sight, in a row.
        period: Decisions from one such row to the next; None for a single row.

    Raises:
        ValueError: A value is out of range.
    """

    start: int
    length: int
    period: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("start", 0), ("length", 1), ("period", self._least_period())):
            value = getattr(self, name)
            if value is None and name == "period":
                continue
            if not _whole(value) or value < least:
                raise ValueError(
                    f"blank.{name} is {value!r}: choose an integer of at least {least}"
                    + (", more than blank.length" if name == "period" else "")
                )

    @staticmethod
    def of(option: Any) -> Blank:
        """The record from the option `blank` of `make`: 2 or 3 integers.

        Raises:
            ValueError: It is something else, or a value is out of range.
        """
        listed = isinstance(option, Sequence) and not isinstance(option, str)
        if not listed or len(option) not in (2, 3):
            raise ValueError(
                f"blank is {option!r}: choose (start, length) or (start, length, period), in "
                "decisions"
            )
        return Blank(*option)

    def covers(self, decisions: Array) -> NDArray[np.bool_]:
        """Whether nothing is seen at `decisions`, counted from 0 in an episode, any shape."""
        since = decisions - self.start
        within = since if self.period is None else since % self.period
        return np.asarray((since >= 0) & (within < self.length))

    def _least_period(self) -> int:
        return self.length + 1 if _whole(self.length) else 1


class Blanked(VectorWrapper):
    """Observes zeros at the decisions of `blank`; goals, quantities and rewards stay as they are.

    Stacked frames are blank together.

    Args:
        env: An environment of `make`.
        blank: When nothing is seen.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], blank: Blank) -> None:
        super().__init__(env)
        self.blank = blank
        self.single_observation_space = _with_zeros(env.single_observation_space)
        self.observation_space = batch_space(self.single_observation_space, env.num_envs)
        self._elapsed = np.zeros(env.num_envs, np.int64)
        self._over = np.zeros(env.num_envs, np.bool_)

    def reset(
        self,
        *,
        seed: Any = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """See `MaskedResetVectorEnv.reset`."""
        observations, info = self.env.reset(seed=seed, options=options)
        begun = (options or {}).get("reset_mask", np.ones(len(self._over), np.bool_))
        self._elapsed[begun] = 0
        self._over[begun] = False
        return self._blanked(observations), info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """See `MaskedResetVectorEnv.step`."""
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        self._elapsed += ~self._over  # who has ended stays where it is
        self._over = terminated | truncated
        return self._blanked(observations), rewards, terminated, truncated, info

    def _blanked(self, observations: Any) -> Any:
        if isinstance(observations, Mapping):
            return {name: self._blanked(part) for name, part in observations.items()}
        seen = np.array(observations)
        seen[self.blank.covers(self._elapsed)] = 0
        return seen


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _with_zeros(space: Space[Any]) -> Space[Any]:
    """A space of observations that zeros are in as well."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({name: _with_zeros(part) for name, part in space.spaces.items()})
    assert isinstance(space, spaces.Box)
    low, high = np.minimum(space.low, 0), np.maximum(space.high, 0)
    return spaces.Box(low, high, dtype=space.dtype.type)


def _is_picture(space: Any) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) == 3 and space.dtype == np.uint8


def _stacked(space: Any, count: int) -> spaces.Box:
    low, high = (np.concatenate([bound] * count) for bound in (space.low, space.high))
    return spaces.Box(low, high, dtype=space.dtype)


def _joined(frames: list[Observation]) -> Observation:
    if isinstance(frames[0], dict):
        parts: list[Mapping[str, Array]] = [frame for frame in frames if isinstance(frame, dict)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate([np.asarray(frame) for frame in frames])
