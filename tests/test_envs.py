"""Every environment against the contract, and `make`, `EnvSpec` and the vector base."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from env_contract import RegisteredEnvContract
from gymnasium import spaces

from forethought.envs import EnvSpec, make, register, spec_of


class TestTwoRooms(RegisteredEnvContract):
    id = "forethought/TwoRooms-v0"


class TestTwoRoomsRandomStop(RegisteredEnvContract):
    id = "forethought/TwoRooms-v0"
    options: ClassVar[dict[str, Any]] = {"layout": "random", "contact": "stop", "task": "between"}


class TestTwoRooms65(RegisteredEnvContract):
    id = "forethought/TwoRooms65-v0"


class TestDoubleIntegrator(RegisteredEnvContract):
    id = "forethought/DoubleIntegrator-v0"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("forethought/TwoRoom-v0", "did you mean forethought/TwoRooms-v0"),
        ("Nothing/AtAll-v7", "forethought/DoubleIntegrator-v0"),
        ("dm_control/cartpole-swingdown", "did you mean dm_control/cartpole-swingup"),
        ("dm_control/ball-in-cup", "dm_control/ball_in_cup-catch"),
        ("no_such_module_here:Thing-v0", "no_such_module_here"),
    ],
)
def test_unknown_id_is_refused_with_ours(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(name)


def test_unknown_option_lists_what_is_accepted() -> None:
    with pytest.raises(ValueError, match=r"doors.*accepts contact, episode_limit, layout"):
        make("forethought/TwoRooms-v0", doors=2)
    with pytest.raises(ValueError, match=r"gravity.*accepts g,"):
        make("Pendulum-v1", gravity=1.0)


@pytest.mark.parametrize("option", ["layout", "task", "contact", "success"])
def test_unknown_value_of_an_option_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} is 'odd'"):
        make("forethought/TwoRooms-v0", **{option: "odd"})


def test_numbers_of_environments_and_steps_are_checked() -> None:
    with pytest.raises(ValueError, match="num_envs is 0"):
        make("forethought/TwoRooms-v0", 0)
    with pytest.raises(ValueError, match="episode_limit is 0"):
        make("forethought/TwoRooms-v0", episode_limit=0)
    with pytest.raises(ValueError, match="render_mode is 'human'"):
        make("forethought/TwoRooms-v0", render_mode="human")


def test_gymnasium_makes_ours_too() -> None:
    register()  # a second time changes nothing
    env = gymnasium.make_vec("forethought/TwoRooms65-v0", num_envs=2)
    assert env.reset(seed=0)[0].shape == (2, 2, 65, 65)
    assert spec_of(env) == spec_of(make("forethought/TwoRooms65-v0", 5))


def test_each_environment_keeps_its_own_options() -> None:
    one = make("forethought/TwoRooms-v0", layout="random")
    other = make("forethought/TwoRooms-v0", task="between")
    assert spec_of(one).options == {"layout": "random"}
    assert spec_of(other).options == {"task": "between"}
    assert gymnasium.spec("forethought/TwoRooms-v0").kwargs == {}


def test_step_and_reset_say_what_is_wrong() -> None:
    env = make("forethought/TwoRooms-v0", 2)
    with pytest.raises(ValueError, match="before reset"):
        env.step(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="environment 1"):
        env.reset(seed=0, options={"reset_mask": np.array([True, False])})
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        env.step(np.zeros(2))
    with pytest.raises(ValueError, match=r"environments \[1\] are not finite"):
        env.step(np.array([[0.0, 0.0], [np.nan, 0.0]]))
    with pytest.raises(ValueError, match="seed has 3 entries"):
        env.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="0 or above"):
        env.reset(seed=[1, -2])
    with pytest.raises(ValueError, match="reset_mask"):
        env.reset(seed=0, options={"reset_mask": np.ones(3, bool)})
    with pytest.raises(ValueError, match="unknown reset options"):
        env.reset(seed=0, options={"mask": np.ones(2, bool)})


def test_reset_without_a_seed_goes_on_with_the_generator() -> None:
    """No seed means another episode, but the same one after the same past."""

    def two_episodes() -> np.ndarray:
        env = make("forethought/TwoRooms-v0", 2)
        first, _ = env.reset(seed=4)
        second, _ = env.reset()
        assert not np.array_equal(first, second)
        return second

    np.testing.assert_array_equal(two_episodes(), two_episodes())


SPACES = {
    "uniform": spaces.Box(0, 255, (2, 3, 3), np.uint8),
    "unbounded": spaces.Box(-np.inf, np.inf, (4,), np.float64),
    "mixed": spaces.Box(
        np.array([-1.0, -np.inf, 0.1], np.float32), np.array([0.3, np.inf, 7], np.float32)
    ),
    "discrete": spaces.Discrete(3, start=2),
    "dict": spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(-1, 1, (2, 2), np.float32)}),
}


@pytest.mark.parametrize("name", SPACES)
def test_spec_round_trip_of_spaces(name: str) -> None:
    action_space = spaces.Box(-1, 1, (3,), np.float32)
    spec = EnvSpec("a/b-v0", SPACES[name], action_space, 0.02, 10, {"x": (1, 2), "y": None})
    back = EnvSpec.from_json(json.loads(json.dumps(spec.to_json(), allow_nan=False)))
    assert back == spec
    assert back.observation_space.dtype == spec.observation_space.dtype
    assert back.action_dim == 3


def test_specs_differ_when_a_field_does() -> None:
    space = SPACES["uniform"]
    spec = EnvSpec("a/b-v0", space, spaces.Discrete(4), 0.02, 10, {"x": 1})
    assert spec.action_dim == 1
    assert spec != EnvSpec("a/b-v0", space, spaces.Discrete(4), 0.02, 10, {"x": 2})
    assert spec != EnvSpec("a/b-v0", space, spaces.Discrete(4), 0.02, 11, {"x": 1})
    assert spec != EnvSpec("a/b-v0", space, spaces.Discrete(5), 0.02, 10, {"x": 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "id is empty"),
        ({"control_step_seconds": 0.0}, "control_step_seconds is 0"),
        ({"episode_limit": 0}, "episode_limit is 0"),
        ({"options": {"f": print}}, "JSON"),
        ({"action_space": spaces.MultiBinary(2)}, "use Box or Discrete"),
        ({"action_space": spaces.Box(-1, 1, (2, 2))}, "flatten"),
    ],
)
def test_spec_refuses(changes: dict[str, Any], message: str) -> None:
    fields = {
        "id": "a/b-v0",
        "observation_space": SPACES["uniform"],
        "action_space": spaces.Discrete(2),
        "control_step_seconds": 0.1,
        "episode_limit": 5,
        "options": {},
    }
    with pytest.raises(ValueError, match=message):
        EnvSpec(**{**fields, **changes})


def test_stored_spec_with_a_missing_field_is_refused() -> None:
    record = spec_of(make("forethought/DoubleIntegrator-v0")).to_json()
    del record["episode_limit"]
    with pytest.raises(ValueError, match="episode_limit"):
        EnvSpec.from_json(record)


def test_environment_steps_are_decisions_times_action_repeat() -> None:
    space = SPACES["uniform"]
    assert EnvSpec("a/b-v0", space, spaces.Discrete(4), 0.02, 10).action_repeat == 1
    spec = EnvSpec("a/b-v0", space, spaces.Discrete(4), 0.02, 10, {"action_repeat": 3})
    assert spec.action_repeat == 3


def test_control_step_is_the_simulators() -> None:
    assert spec_of(make("Pendulum-v1")).control_step_seconds == 0.05
    assert spec_of(make("forethought/DoubleIntegrator-v0")).control_step_seconds == 0.1
