"""Action repeat, frame stack, pictures and rescaling, on a simulator that counts."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from env_contract import EnvContract
from gymnasium import spaces

from forethought.envs import make, options_of, spec_of
from forethought.envs.pictures import resize
from forethought.envs.simulator import Simulator, SimulatorVectorEnv
from forethought.envs.wrappers import Blank, Blanked, RescaleActions, View, wrapped


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


# ---- blank observations -------------------------------------------------------------------------

ROOMS, POLE = "forethought/TwoRooms-v0", "dm_control/cartpole-swingup"


class TestBlankedRooms(EnvContract):
    id = ROOMS
    options = {"blank": [2, 2, 5]}  # noqa: RUF012 - as in the contract


class TestBlankedPendulum(EnvContract):
    id = "Pendulum-v1"
    options = {"blank": [1, 3]}  # noqa: RUF012
    has_goal = False


@pytest.mark.parametrize(
    ("blank", "blind"),
    [
        (Blank(2, 3), {2, 3, 4}),
        (Blank(0, 1), {0}),
        (Blank(1, 2, 4), {1, 2, 5, 6, 9}),
        (Blank(3, 1, 2), {3, 5, 7, 9}),
        (Blank(20, 5), set()),
    ],
)
def test_when_nothing_is_seen(blank: Blank, blind: set[int]) -> None:
    assert set(np.flatnonzero(blank.covers(np.arange(10))).tolist()) == blind


def test_zeros_are_counted_for_each_episode_by_itself() -> None:
    env = Blanked(env_of(Counter(), Counter(ends=3)), Blank(1, 2, 4))
    observations, info = env.reset(seed=[7, 8])
    seen = [observations[:, 1].tolist()]
    for _ in range(5):
        observations, _, terminated, _, info = env.step(zeros(env))
        seen.append(observations[:, 1].tolist())
    # The second ended at time 3 and stays there: its count stands still.
    assert seen == [[7, 8], [0, 0], [0, 0], [7, 8], [7, 8], [0, 8]]
    assert terminated.tolist() == [False, True]
    assert info["quantities"]["time"].tolist() == [[5], [3]]
    mask = np.array([False, True])
    observations, _ = env.reset(seed=[9, 9], options={"reset_mask": mask})
    assert observations[:, 1].tolist() == [0, 9]
    assert env.step(zeros(env))[0][:, 1].tolist() == [0, 0]
    assert env.step(zeros(env))[0][:, 1].tolist() == [7, 0]


def test_mappings_pictures_and_stacks_are_blank_as_a_whole() -> None:
    inner = env_of(Counter(), observe="both", frame_stack=2, size=5)
    env = Blanked(inner, Blank(2, 1))
    env.reset(seed=[7])
    before = env.step(zeros(env))[0]
    blank = env.step(zeros(env))[0]
    after = env.step(zeros(env))[0]
    assert before["vector"].tolist() == [[0, 7, 1, 7]]
    assert {name: part.any() for name, part in blank.items()} == {"vector": False, "pixels": False}
    assert blank["pixels"].dtype == np.uint8
    assert blank["pixels"].shape == (1, 6, 5, 5)
    assert after["vector"].tolist() == [[2, 7, 3, 7]]
    assert env.observation_space.contains(blank)


def test_zeros_are_in_the_space() -> None:
    counter = Counter()
    counter.observation_space = spaces.Box(3.0, 9.0, (2,), np.float32)
    env = Blanked(SimulatorVectorEnv([counter]), Blank(0, 1))
    assert env.single_observation_space == spaces.Box(0.0, 9.0, (2,), np.float32)
    assert env.observation_space.contains(env.reset(seed=[1])[0])


@pytest.mark.parametrize(
    ("id", "options"),
    [
        (ROOMS, {}),
        ("forethought/DoubleIntegrator-v0", {}),
        ("Pendulum-v1", {}),
        ("CartPole-v1", {}),
        (POLE, {"action_repeat": 2}),
    ],
)
def test_every_environment_can_be_blank_and_is_the_same_otherwise(
    id: str, options: dict[str, Any]
) -> None:
    plain = make(id, 2, **options)
    env = make(id, 2, blank=(1, 2), **options)
    assert options_of(id)[0]["blank"] is None
    for one in (plain, env):
        one.action_space.seed(3)
    seen, blanked = plain.reset(seed=[3, 4]), env.reset(seed=[3, 4])
    for decision in range(5):
        hidden = decision in (1, 2)
        expected = np.zeros_like(seen[0]) if hidden else seen[0]
        np.testing.assert_array_equal(blanked[0], expected)
        assert seen[0].any()
        for told, other in zip(seen[1:-1], blanked[1:-1], strict=True):  # rewards and ends
            np.testing.assert_array_equal(told, other)
        assert set(seen[-1]) == set(blanked[-1])
        for name, value in seen[-1]["quantities"].items():
            np.testing.assert_array_equal(value, blanked[-1]["quantities"][name])
        if "goal" in seen[-1]:
            np.testing.assert_array_equal(seen[-1]["goal"], blanked[-1]["goal"])
            assert seen[-1]["goal"].any() or id != ROOMS
        actions = plain.action_space.sample()
        seen, blanked = plain.step(actions), env.step(actions)
    plain.close()
    env.close()


def test_a_blanked_environment_is_described_by_its_options() -> None:
    env = make(ROOMS, 2, blank=(4, 10, 20), contact="stop")
    spec = spec_of(env)
    assert spec.options == {"blank": [4, 10, 20], "contact": "stop"}
    again = make(spec.id, 2, **spec.options)  # from lists, as JSON gives them
    assert isinstance(again, Blanked)
    assert again.blank == Blank(4, 10, 20)
    assert spec_of(again) == spec
    frames = again.reset(seed=[0, 1])[0], again.render()
    assert frames[1] is not None
    assert len(frames[1]) == 2
    assert not isinstance(make(ROOMS, blank=None), gymnasium.vector.VectorWrapper)


@pytest.mark.parametrize("id", [ROOMS, "Pendulum-v1"])
@pytest.mark.parametrize(
    ("blank", "message"),
    [
        (5, r"blank is 5: choose \(start, length\) or \(start, length, period\)"),
        ("510", r"blank is '510': choose"),
        ((5,), r"blank is \(5,\): choose"),
        ((1, 2, 3, 4), "blank is"),
        ((-1, 2), "blank.start is -1: choose an integer of at least 0"),
        ((1.5, 2), "blank.start is 1.5: choose"),
        ((1, 0), "blank.length is 0: choose an integer of at least 1"),
        ((1, True), "blank.length is True: choose"),
        ((1, 3, 3), "blank.period is 3: choose an integer of at least 4, more than blank.length"),
    ],
)
def test_wrong_blanks_are_refused(id: str, blank: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(id, blank=blank)


def test_the_option_is_named_where_another_is_unknown() -> None:
    for id in (ROOMS, "Pendulum-v1", POLE):
        with pytest.raises(ValueError, match=r"unknown options blnk.*accepts .*\bblank\b"):
            make(id, blnk=(1, 2))


class Paying(Counter):
    """Pays 1 from the second step on, but not in the fifth."""

    def advance(self, action: Any) -> tuple[float, bool, bool]:
        _, terminated, truncated = super().advance(action)
        return float(self.time >= 2 and self.time != 5), terminated, truncated


def test_success_is_a_reward_that_is_held() -> None:
    env = env_of(Paying(), held=3)
    _, info = env.reset(seed=[0])
    found = [bool(info["success"][0])]
    for _ in range(9):
        *_, info = env.step(np.zeros((1, 1), np.float32))
        found.append(bool(info["success"][0]))
    assert [time for time, success in enumerate(found) if success] == [4, 8, 9]
    _, info = env.reset(seed=[1])
    assert not info["success"][0]  # what was held before counts no more


def test_a_held_reward_counts_control_steps() -> None:
    env = env_of(Paying(), held=3, action_repeat=2)
    env.reset(seed=[0])
    found = [bool(env.step(np.zeros((1, 1), np.float32))[4]["success"][0]) for _ in range(4)]
    assert found == [False, True, False, True]  # at times 2, 4, 6, 8
    with pytest.raises(ValueError, match="held is -1: give an integer of at least 0"):
        View(held=-1)


def test_a_finger_that_stays_in_the_target() -> None:
    pytest.importorskip("dm_control")
    env = make("dm_control/reacher-easy", 1, held=2)
    _, info = env.reset(seed=[6])  # the finger passes through its target
    assert not info["success"][0]
    run = held = 0
    for _ in range(60):
        _, reward, *_, info = env.step(np.ones((1, 2), np.float32))
        run = run + 1 if reward[0] > 0 else 0
        assert bool(info["success"][0]) == (run >= 2)
        held += run >= 2
    assert held
