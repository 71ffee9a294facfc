"""Environments of Gymnasium and dm_control: the contract, and that they are what they were."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from env_contract import EnvContract, assert_same
from gymnasium import spaces

from forethought.envs import RenderingError, make, spec_of


@pytest.fixture(scope="session")
def rendering() -> None:
    """Skips where MuJoCo cannot render."""
    try:
        make("dm_control/pendulum-swingup", observe="pixels", size=16).reset(seed=0)
    except RenderingError as error:
        pytest.skip(str(error))


class ForeignEnvContract(EnvContract):
    has_goal = False


class TestPendulum(ForeignEnvContract):
    """Bounds of its own: [-2, 2]."""

    id = "Pendulum-v1"


class TestCartPole(ForeignEnvContract):
    """Discrete actions."""

    id = "CartPole-v1"


class TestHalfCheetah(ForeignEnvContract):
    """MuJoCo's, with float64 observations."""

    id = "HalfCheetah-v5"
    options: ClassVar[dict[str, Any]] = {"action_repeat": 2, "frame_stack": 2}


class TestControlVectors(ForeignEnvContract):
    id = "dm_control/reacher-easy"


class TestControlRepeated(ForeignEnvContract):
    """Bounds of its own, action repeat and frame stack."""

    id = "dm_control/ball_in_cup-catch"
    options: ClassVar[dict[str, Any]] = {"action_repeat": 3, "frame_stack": 2}


@pytest.mark.usefixtures("rendering")
class TestControlPixels(ForeignEnvContract):
    id = "dm_control/reacher-easy"
    options: ClassVar[dict[str, Any]] = {"observe": "pixels", "size": 32, "frame_stack": 2}


@pytest.mark.usefixtures("rendering")
class TestControlBoth(ForeignEnvContract):
    id = "dm_control/pendulum-swingup"
    options: ClassVar[dict[str, Any]] = {"observe": "both", "size": 24, "action_repeat": 2}


# --- dm_control.


def control(name: str, seed: int) -> Any:
    """The suite's own environment, seeded as `reset(seed=[seed])` seeds ours."""
    from dm_control import suite

    domain, task = name.split("-")
    return suite.load(domain, task, task_kwargs={"random": np.random.RandomState(seed)})


def flat(observation: Any) -> np.ndarray:
    return np.concatenate([np.ravel(entry) for entry in observation.values()]).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("cartpole-swingup", 1000),
        ("pendulum-swingup", 1000),
        ("reacher-easy", 1000),
        ("cheetah-run", 300),
        ("finger-spin", 300),
        ("quadruped-walk", 30),  # bounds of actions that differ from joint to joint
    ],
)
def test_a_step_is_dm_controls_own_bit_by_bit(name: str, steps: int) -> None:
    env = make(f"dm_control/{name}", 1)
    env.reset(seed=[3])  # a past, which the next seed must make forgotten
    env.step(env.action_space.sample())
    observations, info = env.reset(seed=[7])
    reference = control(name, 7)
    now = reference.reset()
    bounds = reference.action_spec()
    rng = np.random.default_rng(0)
    for _ in range(steps):
        np.testing.assert_array_equal(observations[0], flat(now.observation))
        for key, entry in now.observation.items():
            np.testing.assert_array_equal(info["quantities"][key][0], np.float32(np.ravel(entry)))
        action = rng.uniform(-1, 1, bounds.shape).astype(np.float32).astype(np.float64)
        observations, rewards, terminated, truncated, info = env.step(action[None])
        if (bounds.minimum != -1).any() or (bounds.maximum != 1).any():
            action = 0.5 * (1 - action) * bounds.minimum + 0.5 * (1 + action) * bounds.maximum
        now = reference.step(action)
        assert rewards[0] == now.reward
        assert (terminated | truncated)[0] == now.last()
    assert bool(truncated[0]) == (steps == 1000)
    assert not terminated[0]


def test_action_repeat_counts_steps_of_the_environment() -> None:
    """1,000 steps are 334 decisions of 3, and the return is that of all 1,000."""
    env = make("dm_control/cartpole-balance", 1, action_repeat=3)
    assert spec_of(env).episode_limit == 334
    assert spec_of(env).control_step_seconds == pytest.approx(0.03)
    env.reset(seed=[5])
    reference = control("cartpole-balance", 5)
    reference.reset()
    rewards = []
    for decision in range(334):
        action = np.array([[np.sin(decision)]])
        observations, reward, _, truncated, _ = env.step(action)
        own = [reference.step(action[0]) for _ in range(1 if decision == 333 else 3)]
        assert reward[0] == sum(item.reward for item in own)
        np.testing.assert_array_equal(observations[0], flat(own[-1].observation))
        assert truncated[0] == own[-1].last() == (decision == 333)
        rewards.append(reward[0])
    assert sum(rewards) > 300


def test_a_task_that_ends_terminates() -> None:
    """A discount of 0 is a termination; no task of the suite with bounded actions has one."""
    env = make("dm_control/pendulum-swingup", 2)
    env.reset(seed=0)
    env.simulators[0]._task.get_termination = lambda physics: 0.0
    terminated, truncated = env.step(np.zeros((2, 1)))[2:4]
    assert terminated.tolist() == [True, False]
    assert not truncated.any()


@pytest.mark.usefixtures("rendering")
def test_pictures_show_the_state_and_the_options_change_them() -> None:
    def pictures(**options: Any) -> np.ndarray:
        env = make("dm_control/cartpole-swingup", 1, observe="pixels", **options)
        observations, info = env.reset(seed=[1])
        for _ in range(20):
            observations, _, _, _, info = env.step(np.ones((1, 1)))
        assert set(info["quantities"]) == {"position", "velocity"}
        env.close()
        return observations[0]

    lean = pictures()
    assert lean.shape == (3, 64, 64)
    assert 10 < lean.mean() < 220
    assert lean.std() > 20
    full, other = pictures(lean=False), pictures(camera=1)
    assert not np.array_equal(lean, full)
    assert not np.array_equal(lean, other)
    # The same scene, though: the orange cart and pole are where they were.
    orange = [(picture[0].astype(int) - picture[2]) > 40 for picture in (lean, full)]
    assert (orange[0] & orange[1]).sum() > 0.7 * (orange[0] | orange[1]).sum() > 20
    assert pictures(size=20).shape == (3, 20, 20)


@pytest.mark.usefixtures("rendering")
def test_frames_for_people_are_larger_and_the_pictures_stay() -> None:
    options = {"observe": "pixels", "size": 32}
    env = make("dm_control/pendulum-swingup", 2, render_mode="rgb_array", **options)
    observations, _ = env.reset(seed=0)
    frames = env.render()
    assert [frame.shape for frame in frames] == [(240, 240, 3)] * 2
    assert_same(observations, env.reset(seed=0)[0])
    assert make("dm_control/pendulum-swingup", 2).render() is None


def test_importing_envs_imports_no_simulator() -> None:
    code = (
        "import sys, forethought.envs;"
        "assert not {'mujoco', 'dm_control', 'torch'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_renderer_the_error_says_what_to_do() -> None:
    code = (
        "import forethought.envs as e\n"
        "env = e.make('dm_control/pendulum-swingup')\n"
        "env.reset(seed=0)\n"
        "try: e.make('dm_control/pendulum-swingup', observe='pixels').reset(seed=0)\n"
        "except e.RenderingError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"MUJOCO_GL": "disable", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "libegl1" in done.stdout
    assert "observe='vector'" in done.stdout


# --- Gymnasium.


def test_actions_are_rescaled_and_nothing_else_is_changed() -> None:
    env, reference = make("Pendulum-v1", 1), gymnasium.make("Pendulum-v1")
    observations, _ = env.reset(seed=[3])
    np.testing.assert_array_equal(observations[0], reference.reset(seed=3)[0])
    for action in (-1.0, 1.0, 0.25):
        ours = env.step(np.array([[action]], np.float32))
        theirs = reference.step(np.array([2 * action], np.float32))
        np.testing.assert_array_equal(ours[0][0], theirs[0])
        assert ours[1][0] == theirs[1]


def test_discrete_actions_end_episodes_as_in_gymnasium() -> None:
    env, reference = make("CartPole-v1", 1), gymnasium.make("CartPole-v1")
    env.reset(seed=[3])
    reference.reset(seed=3)
    for _ in range(50):
        ours, theirs = env.step(np.array([1])), reference.step(1)
        np.testing.assert_array_equal(ours[0][0], theirs[0])
        assert (ours[2][0], ours[3][0]) == theirs[2:4]
        if theirs[2]:
            break
    assert theirs[2]
    env.reset(seed=[3])
    with pytest.raises(ValueError, match=r"not in Discrete\(2\)"):
        env.step(np.array([2]))
    with pytest.raises(ValueError, match="takes integers"):
        env.step(np.array([1.0]))


class Odd(gymnasium.Env[Any, Any]):
    """Nested observations, actions that begin at 3, a verdict, a picture with unequal sides."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(self, render_mode: str | None = None, actions: str = "discrete") -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Dict(
            {
                "inner": spaces.Dict({"x": spaces.Box(-9, 9, (2,), np.float64)}),
                "room": spaces.Discrete(3, start=1),
                "camera": spaces.Box(0, 255, (4, 6, 3), np.uint8),
            }
        )
        self.action_space = {
            "discrete": spaces.Discrete(2, start=3),
            "unbounded": spaces.Box(-np.inf, np.inf, (1,), np.float32),
            "binary": spaces.MultiBinary(2),
        }[actions]

    def look(self) -> dict[str, Any]:
        picture = np.zeros((4, 6, 3), np.uint8)
        picture[0, :, 1] = self.time
        return {"inner": {"x": np.array([self.time, 2.0])}, "room": 2, "camera": picture}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self.look(), {}

    def step(self, action: Any) -> Any:
        assert action in (3, 4)
        self.time += int(action)
        return self.look(), 1.0, False, False, {"is_success": self.time > 6}

    def render(self) -> Any:
        return np.repeat(np.repeat(self.look()["camera"], 2, axis=0), 2, axis=1)


@pytest.fixture
def odd() -> Any:
    gymnasium.register("Odd-v0", Odd)
    yield "Odd-v0"
    gymnasium.registry.pop("Odd-v0")


def test_dictionaries_are_flattened_and_numbers_become_float32(odd: str) -> None:
    env = make(odd, 2, episode_limit=5)
    assert spec_of(env).control_step_seconds == 0.25
    assert env.single_action_space == spaces.Discrete(2)
    observations, info = env.reset(seed=0)
    assert "success" not in info
    assert {name: array.dtype.name for name, array in observations.items()} == {
        "camera": "uint8",
        "inner.x": "float32",
        "room": "float32",
    }
    assert observations["camera"].shape == (2, 3, 4, 6)
    assert observations["room"].tolist() == [[0, 1, 0]] * 2
    assert set(info["quantities"]) == {"inner.x", "room"}
    observations, _, _, _, info = env.step(np.array([0, 1]))
    assert observations["inner.x"].tolist() == [[3, 2], [4, 2]]
    assert observations["camera"][:, 1, 0, 0].tolist() == [3, 4]
    assert info["success"].tolist() == [False, False]
    assert env.step(np.array([0, 1]))[4]["success"].tolist() == [False, True]


def test_rendered_pictures_are_resized(odd: str) -> None:
    env = make(odd, 1, episode_limit=5, observe="both", size=4)
    assert set(env.single_observation_space.spaces) == {"camera", "inner.x", "pixels", "room"}
    env.reset(seed=0)
    pixels = env.step(np.array([1]))[0]["pixels"][0]
    assert pixels.shape == (3, 4, 4)
    assert pixels[1].tolist() == [[4] * 4] + [[0] * 4] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"observe": "sound"}, "observe is 'sound': use vector or pixels or both"),
        ({"action_repeat": 0}, "action_repeat is 0"),
        ({"frame_stack": 1.5}, "frame_stack is 1.5"),
        ({"size": 0}, "size is 0"),
        ({"lean": "yes"}, "lean is 'yes'"),
        ({"episode_limit": 0}, "episode_limit is 0"),
        ({"camera": 1}, "one view only"),
        ({"render_mode": "ansi"}, "render_mode is 'ansi'"),
        ({"episode_limit": 3, "max_episode_steps": 3}, "are the same"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("Pendulum-v1", **options)


def test_wrong_cameras_and_spaces_are_refused(odd: str) -> None:
    with pytest.raises(ValueError, match="cameras 0 to 1"):
        make("dm_control/cartpole-swingup", camera=2)
    with pytest.raises(ValueError, match="has no bounds"):
        make(odd, actions="unbounded")
    with pytest.raises(ValueError, match=r"MultiBinary.*use Box or Discrete"):
        make(odd, actions="binary")
    with pytest.raises(ValueError, match="has no bounds"):
        make("dm_control/lqr-lqr_2_1")
    with pytest.raises(ValueError, match="pass episode_limit"):
        spec_of(make(odd))


def test_options_of_the_task_itself_are_known() -> None:
    env = make("dm_control/cartpole-three_poles", num_poles=4)
    assert env.single_observation_space.shape == (14,)
    with pytest.raises(ValueError, match=r"poles.*accepts num_poles, sparse, action_repeat"):
        make("dm_control/cartpole-three_poles", poles=4)


def test_gymnasiums_name_of_the_limit_is_known() -> None:
    assert spec_of(make("Pendulum-v1", max_episode_steps=7)).episode_limit == 7
    assert spec_of(make("MountainCarContinuous-v0")).episode_limit == 999
