"""Action repeat, frame stack, pictures and rescaling, on a simulator that counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from forethought.envs.pictures import resize
from forethought.envs.simulator import Simulator, SimulatorVectorEnv
from forethought.envs.wrappers import RescaleActions, View, wrapped


class Counter(Simulator):
    """Observes the time and its seed; terminates at `ends`; remembers what it was asked for."""

    def __init__(self, low: Any = -1.0, high: Any = 1.0, ends: int = 99) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        shape = np.broadcast(low, high).shape or (1,)
        self.action_space = spaces.Box(
            np.broadcast_to(low, shape).astype(np.float32),
            np.broadcast_to(high, shape).astype(np.float32),
        )
        self.control_step_seconds = 0.5
        self.episode_limit = 10
        self.ends = ends
        self.taken: list[Any] = []
        self.looks = 0

    def begin(self, seed: int | None) -> None:
        self.time, self.seed, self.success = 0, seed or 0, False

    def advance(self, action: Any) -> tuple[float, bool, bool]:
        self.time += 1
        self.taken.append(action)
        self.success = self.time > 4
        return 10.0**-self.time, self.time >= self.ends, self.time >= 10

    def observe(self) -> np.ndarray:
        self.looks += 1
        return np.array([self.time, self.seed], np.float32)

    def quantities(self) -> dict[str, np.ndarray]:
        return {"time": np.array([self.time], np.float32)}

    def picture(self, size: int) -> np.ndarray:
        return np.full((3, size, size), self.time, np.uint8)

    def frame(self) -> np.ndarray:
        return np.zeros((9, 9, 3), np.uint8)

    def close(self) -> None:
        self.closed = True


def env_of(*counters: Counter, **options: Any) -> SimulatorVectorEnv:
    return SimulatorVectorEnv([wrapped(counter, View(**options)) for counter in counters])


def zeros(env: SimulatorVectorEnv) -> np.ndarray:
    return np.zeros(env.action_space.shape or (), np.float32)


def test_action_repeat_sums_rewards_and_looks_once() -> None:
    counter = Counter()
    env = env_of(counter, action_repeat=4)
    assert (env.control_step_seconds, env.episode_limit) == (2.0, 3)
    env.reset(seed=[0])
    looks = counter.looks
    observations, rewards, _, _, info = env.step(zeros(env))
    assert observations.tolist() == [[4, 0]]
    assert rewards[0] == pytest.approx(0.1111)
    assert not info["success"][0]
    assert counter.looks == looks + 1
    env.step(zeros(env))
    rewards, terminated, truncated, info = env.step(zeros(env))[1:]
    assert counter.time == 10  # two steps were left
    assert (terminated[0], truncated[0], info["success"][0]) == (False, True, True)


def test_the_end_of_the_episode_ends_the_repetition() -> None:
    counters = Counter(ends=2), Counter()
    env = env_of(*counters, action_repeat=3)
    env.reset(seed=[0, 1])
    _, rewards, terminated, truncated, _ = env.step(zeros(env))
    assert [counter.time for counter in counters] == [2, 3]
    assert terminated.tolist() == [True, False]
    assert not truncated.any()
    assert rewards.tolist() == pytest.approx([0.11, 0.111])
    observations, rewards, terminated, _, _ = env.step(zeros(env))
    assert observations[:, 0].tolist() == [2, 6]  # who has ended stays, and is paid nothing
    assert rewards[0] == 0
    assert terminated.tolist() == [True, False]


def test_frames_are_stacked_latest_last_and_begin_equal() -> None:
    env = env_of(Counter(), Counter(), frame_stack=3)
    assert env.single_observation_space.shape == (6,)
    observations, _ = env.reset(seed=[7, 8])
    assert observations.tolist() == [[0, 7] * 3, [0, 8] * 3]
    env.step(zeros(env))
    assert env.step(zeros(env))[0][0].tolist() == [0, 7, 1, 7, 2, 7]
    mask = np.array([True, False])
    observations, _ = env.reset(seed=[9, 9], options={"reset_mask": mask})
    assert observations.tolist() == [[0, 9] * 3, [0, 8, 1, 8, 2, 8]]


def test_pictures_are_stacked_along_channels_and_beside_vectors() -> None:
    env = env_of(Counter(), observe="both", frame_stack=2, size=5)
    env.reset(seed=[7])
    observations = env.step(zeros(env))[0]
    assert observations["vector"].tolist() == [[0, 7, 1, 7]]
    assert observations["pixels"].shape == (1, 6, 5, 5)
    assert observations["pixels"][0, :, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert env.observation_space.contains(observations)
    only = env_of(Counter(), observe="pixels")
    assert only.reset(seed=[7])[0].shape == (1, 3, 64, 64)


def test_rescaling_is_exact_at_the_bounds_and_linear_between() -> None:
    low, high = np.float32([-2.0, 0.1, -0.3]), np.float32([3.0, 0.7, 1.1])
    counter = Counter(low, high)
    env = env_of(counter)
    assert env.single_action_space == spaces.Box(-1.0, 1.0, (3,), np.float32)
    env.reset(seed=[0])
    for action in (-1.0, 1.0, 0.0, 2.0):
        env.step(np.full((1, 3), action, np.float32))
    for taken, expected in zip(counter.taken, (low, high, (low + high) / 2, high), strict=True):
        np.testing.assert_array_equal(taken, expected)  # and what is outside is clipped
        assert taken.dtype == np.float32


def test_actions_in_the_unit_box_are_left_alone() -> None:
    counter = Counter()
    assert wrapped(counter, View()) is counter
    with pytest.raises(ValueError, match="has no bounds"):
        RescaleActions(Counter(high=np.inf))


def test_closing_closes_every_simulator() -> None:
    counters = Counter(), Counter()
    env_of(*counters, action_repeat=2).close()
    assert all(counter.closed for counter in counters)


def test_resizing_averages_areas() -> None:
    picture = np.arange(4 * 6 * 2, dtype=np.uint8).reshape(4, 6, 2)
    halved = resize(picture, 2)
    np.testing.assert_array_equal(halved[0, 0], np.rint(picture[:2, :3].mean(axis=(0, 1))))
    np.testing.assert_array_equal(halved[1, 1], np.rint(picture[2:, 3:].mean(axis=(0, 1))))
    flat = np.full((7, 5, 3), 201, np.uint8)
    for size in (1, 3, 5, 16):
        np.testing.assert_array_equal(resize(flat, size), np.full((size, size, 3), 201))
    square = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert resize(square, 2) is square
    np.testing.assert_array_equal(resize(square, 4)[::2, ::2], square)
