"""Environments of Gymnasium and dm_control: the contract, and that they are what they were."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from env_contract import EnvContract, assert_same
from gymnasium import spaces

from forethought.envs import Random, RenderingError, collect_to, make, options_of, spec_of


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


class TestControlLengthened(ForeignEnvContract):
    """Changed dynamics beside the other options."""

    id = "dm_control/pendulum-swingup"
    options: ClassVar[dict[str, Any]] = {"lengthen": {"pole": 1.3}, "action_repeat": 2}


@pytest.mark.usefixtures("rendering")
class TestControlPixels(ForeignEnvContract):
    id = "dm_control/reacher-easy"
    options: ClassVar[dict[str, Any]] = {"observe": "pixels", "size": 32, "frame_stack": 2}


@pytest.mark.usefixtures("rendering")
class TestControlBoth(ForeignEnvContract):
    id = "dm_control/pendulum-swingup"
    options: ClassVar[dict[str, Any]] = {"observe": "both", "size": 24, "action_repeat": 2}


with_ogbench = pytest.mark.skipif(
    importlib.util.find_spec("ogbench") is None,
    reason="ogbench is not installed: its environments are tested with `pip install ogbench`",
)


@with_ogbench
class TestOGBenchPointMaze(EnvContract):
    """Goals in infos, and draws from NumPy's global generator."""

    id = "ogbench:pointmaze-medium-v0"


@with_ogbench
class TestOGBenchAntMaze(EnvContract):
    id = "ogbench:antmaze-medium-v0"
    options: ClassVar[dict[str, Any]] = {"action_repeat": 2}


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


# --- dm_control, with bodies that are longer.


def model_of(name: str, **options: Any) -> Any:
    """MuJoCo's compiled model of a task."""
    return make(f"dm_control/{name}", 1, **options).simulators[0]._physics.model.ptr


def period_of(factor: float) -> float:
    """Seconds of a small oscillation of the pendulum about its lowest point, simulated finely."""
    physics = make("dm_control/pendulum-swingup", lengthen={"pole": factor}).simulators[0]._physics
    physics.model.opt.timestep = 5e-4
    physics.data.qpos[0] = np.pi + 0.05
    angles = []
    for _ in range(8000):
        physics.step()
        angles.append(float(physics.data.qpos[0]) - np.pi)
    sides = np.sign(angles)
    crossings = 1 + np.flatnonzero(sides[1:] != sides[:-1])
    return 2 * 5e-4 * float(np.diff(crossings).mean())


@pytest.mark.parametrize("factor", [1.0, 1.3, 2.0])
def test_a_longer_pendulum_swings_as_slowly_as_physics_says(factor: float) -> None:
    """A ball of 1 kg and 0.05 m at 0.5 m times the factor, and a hinge with damping of 0.1."""
    length = 0.5 * factor
    inertia = length**2 + 0.4 * 0.05**2
    angular = np.sqrt(9.81 * length / inertia - (0.1 / (2 * inertia)) ** 2)
    assert period_of(factor) == pytest.approx(2 * np.pi / angular, rel=2e-3)


def test_a_longer_pole_keeps_its_density() -> None:
    """A capsule of radius 0.045 and 1 m between its ends: volume and inertia by the book."""

    def of_a_capsule(length: float, density: float) -> tuple[float, float]:
        radius = 0.045
        rod = density * np.pi * radius**2 * length
        ends = density * np.pi * radius**3 * 4 / 3
        across = rod * (length**2 / 12 + radius**2 / 4)
        # Each half ball: 83/320 m r^2 about its own centre of mass, 3/8 r beyond the rod's end.
        across += ends * (83 / 320 * radius**2 + (length / 2 + 3 / 8 * radius) ** 2)
        return rod + ends, across

    density = 0.1 / of_a_capsule(1.0, 1.0)[0]
    for factor in (0.5, 1.3, 2.0):
        model = model_of("cartpole-swingup", lengthen={"pole_1": factor})
        pole, cart = model.body("pole_1"), model.body("cart")
        mass, across = of_a_capsule(factor, density)
        np.testing.assert_allclose(pole.mass, mass, rtol=1e-6)
        np.testing.assert_allclose(pole.inertia[:2], across, rtol=1e-6)
        np.testing.assert_allclose(pole.ipos, [0, 0, factor / 2], atol=1e-6)
        np.testing.assert_allclose(cart.mass, 1.0)


def test_what_hangs_on_a_longer_body_moves_along() -> None:
    model = model_of("cartpole-two_poles", lengthen={"pole_1": 1.5})
    np.testing.assert_allclose(model.body("pole_2").pos, [0, 0, 1.5])
    np.testing.assert_allclose(model.geom("pole_2").size[:2], [0.045, 0.5])
    pendulum = model_of("pendulum-swingup", lengthen={"pole": 1.5})
    np.testing.assert_allclose(pendulum.geom("mass").pos, [0, 0, 0.75])
    np.testing.assert_allclose(pendulum.geom("mass").size[0], 0.05)
    # The axle lies across, so that it stays as it is.
    np.testing.assert_allclose(pendulum.geom("base").size[:2], [0.021, 0.03])


def test_geoms_at_an_angle_are_stretched_from_end_to_end() -> None:
    """The cup's parts lie along two axes and between them."""

    def ends(model: Any, name: str) -> np.ndarray:
        geom = model.geom(name)
        rotation = np.zeros(9)
        sys.modules["mujoco"].mju_quat2Mat(rotation, geom.quat)
        half = rotation.reshape(3, 3)[:, 2] * geom.size[1]
        return np.stack([geom.pos + half, geom.pos - half])

    before = model_of("ball_in_cup-catch")
    after = model_of("ball_in_cup-catch", lengthen={"cup": 1.5})
    stretched = {}
    for index in range(5):
        name = f"cup_part_{index}"
        stretched[name] = [np.ptp(ends(model, name), axis=0) for model in (before, after)]
    moved = np.stack([pair[1] - pair[0] for pair in stretched.values()])
    grown = [axis for axis in range(3) if np.abs(moved[:, axis]).max() > 1e-3]
    assert len(grown) == 1  # along one axis of the cup only, though its parts lie at all angles
    for one, other in stretched.values():
        assert other[grown[0]] == pytest.approx(1.5 * one[grown[0]], abs=1e-5)


@pytest.mark.parametrize("name", ["cartpole-swingup", "pendulum-swingup", "humanoid-walk"])
def test_a_factor_of_almost_one_changes_almost_nothing(name: str) -> None:
    """So that nothing but the lengths changes on the way through the description."""
    plain = model_of(name)
    body = {"cartpole-swingup": "pole_1", "pendulum-swingup": "pole"}.get(name, "torso")
    near = model_of(name, lengthen={body: 1 + 1e-9})
    assert near is not plain
    for field in ("body_mass", "body_inertia", "body_pos", "geom_size", "geom_pos", "dof_damping"):
        np.testing.assert_allclose(getattr(near, field), getattr(plain, field), atol=2e-5)
    for field in ("nq", "nv", "nu", "nbody", "ngeom", "nsensor", "ncam"):
        assert getattr(near, field) == getattr(plain, field)


def test_a_factor_of_one_is_the_same_environment() -> None:
    plain = make("dm_control/cartpole-swingup", 2)
    one = make("dm_control/cartpole-swingup", 2, lengthen={"pole_1": 1.0})
    longer = make("dm_control/cartpole-swingup", 2, lengthen={"pole_1": 1.3})
    outcomes = []
    for env in (plain, one, longer):
        env.reset(seed=0)
        for _ in range(30):
            observations = env.step(np.ones((2, 1)))[0]
        outcomes.append(observations)
    assert_same(outcomes[0], outcomes[1])
    assert np.abs(outcomes[0] - outcomes[2]).max() > 0.01


def test_lengthening_is_an_option_like_others(tmp_path: Path) -> None:
    name = "dm_control/cartpole-swingup"
    options = {"lengthen": {"pole_1": 1.3}, "episode_limit": 20}
    assert options_of(name)[0]["lengthen"] is None
    assert spec_of(make(name, **options)).options == options
    collect_to(tmp_path, name, Random(), 2, options=options, workers=1)
    other = {**options, "lengthen": {"pole_1": 1.4}}
    with pytest.raises(ValueError, match=r"'lengthen': \{'pole_1': 1.3\}"):
        collect_to(tmp_path, name, Random(), 3, options=other, workers=1)


@pytest.mark.parametrize(
    ("lengthen", "message"),
    [
        ({"pole": 1.3}, "lengthen names pole: the bodies of .* are cart, pole_1"),
        ({"pole_1": 0}, "lengthen.pole_1 is 0: choose a number above 0"),
        ({"pole_1": float("nan")}, "lengthen.pole_1 is nan"),
        ({"pole_1": "long"}, "lengthen.pole_1 is 'long'"),
        ({"pole": 1.0}, "lengthen names pole: "),
        (1.3, "lengthen is 1.3: give factors by body"),
    ],
)
def test_wrong_lengths_are_refused(lengthen: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("dm_control/cartpole-swingup", lengthen=lengthen)


def test_bodies_that_cannot_be_stretched_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lengthen.pointmass is 1.2: the body has no capsule"):
        make("dm_control/point_mass-easy", lengthen={"pointmass": 1.2})
    with pytest.raises(ValueError, match=r"lengthen.torso is 1.2: its inertia is not"):
        make("dm_control/cheetah-run", lengthen={"torso": 1.2})
    with pytest.raises(ValueError, match=r"lengthen.torso is 1.2: .* lies at an angle"):
        make("dm_control/fish-swim", lengthen={"torso": 1.2})


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


class Careless(gymnasium.Env[Any, Any]):
    """Draws from NumPy's global generator and from its action space, as OGBench does."""

    observation_space = spaces.Box(-9, 9, (3,), np.float64)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        drawn = np.random.normal(), self.np_random.uniform(), self.action_space.sample()[0]
        return np.array(drawn), {"goal": np.array([1.0, np.random.uniform(), 0.0])}

    def step(self, action: Any) -> Any:
        drawn = np.random.normal()
        return np.array([drawn, 0.0, 0.0]), 0.0, False, False, {"success": drawn > 0}


@pytest.fixture
def careless() -> Any:
    gymnasium.register("Careless-v0", Careless, max_episode_steps=20)
    yield "Careless-v0"
    gymnasium.registry.pop("Careless-v0")


def test_a_seed_decides_what_is_drawn_from_the_global_generator(careless: str) -> None:
    def played(rows: list[int], between: Any) -> Any:
        env = make(careless, len(rows))
        between()
        seen = [env.reset(seed=rows)]
        for _ in range(5):
            between()
            seen.append(env.step(np.zeros((len(rows), 1))))
        seen.append(env.reset())  # goes on with the same draws
        return [(step[0], step[-1]["goal"]) for step in seen]

    first = played([3, 4], lambda: None)
    assert_same(first, played([3, 4], np.random.normal))
    alone = played([4], lambda: np.random.seed(0))
    assert_same([(o[1:], g[1:]) for o, g in first], alone)
    observations = np.stack([o for o, _ in first])
    assert len(np.unique(observations[:, :, 0])) == observations[:, :, 0].size


def test_the_global_generator_of_others_is_left_alone(careless: str) -> None:
    env = make(careless, 2)
    np.random.seed(0)
    expected = np.random.normal(size=9)  # an odd number: half of a pair of normals is kept back
    np.random.seed(0)
    found = [np.random.normal(size=3)]
    env.reset(seed=0)
    found.append(np.random.normal(size=3))
    env.step(np.zeros((2, 1)))
    found.append(np.random.normal(size=3))
    np.testing.assert_array_equal(np.concatenate(found), expected)


@with_ogbench
def test_goal_and_success_are_ogbenchs_own() -> None:
    env = make("ogbench:pointmaze-medium-v0", 3)
    assert spec_of(env).control_step_seconds == 0.1
    assert spec_of(env).episode_limit == 1000
    observations, info = env.reset(seed=0)
    inner = [simulator.env.unwrapped for simulator in env.simulators]
    goals = np.stack([each.cur_goal_xy for each in inner])
    np.testing.assert_allclose(info["goal"], goals, rtol=1e-6)
    assert (np.linalg.norm(observations - info["goal"], axis=1) > 1.0).all()
    inner[1].set_xy(goals[1] + [0.5, 0.5])
    _, rewards, terminated, _, info = env.step(np.zeros((3, 2)))
    assert info["success"].tolist() == terminated.tolist() == [False, True, False]
    assert rewards.tolist() == [0.0, 1.0, 0.0]
    np.testing.assert_allclose(info["goal"], goals, rtol=1e-6)


@with_ogbench
def test_the_registered_mazes_of_ogbench_are_known() -> None:
    for size in ("medium", "large", "giant", "teleport"):
        assert options_of(f"ogbench:pointmaze-{size}-v0")[0]["maze_env_type"] == "maze"
    with pytest.raises(ValueError, match="pointmaze-tiny-v0' is unknown: did you mean"):
        make("ogbench:pointmaze-tiny-v0")


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
    with pytest.raises(ValueError, match=r"poles.*accepts lengthen, num_poles, sparse, act"):
        make("dm_control/cartpole-three_poles", poles=4)


def test_gymnasiums_name_of_the_limit_is_known() -> None:
    assert spec_of(make("Pendulum-v1", max_episode_steps=7)).episode_limit == 7
    assert spec_of(make("MountainCarContinuous-v0")).episode_limit == 999
