"""Point mazes: the ball's dynamics, its walls, the task, and the baselines beside every figure."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, ClassVar

import numpy as np
import pytest
from env_contract import RegisteredEnvContract

from forethought.envs import (
    MAZES,
    Greedy,
    PointMaze,
    Scripted,
    collect,
    make,
    maze,
    spec_of,
)
from forethought.envs.point_maze.model import boxes_of, description
from forethought.envs.point_maze.scale import COAST_SECONDS, CONTROL_SECONDS, RADIUS, SUBSTEPS

ID = "forethought/PointMaze-v0"
ROOM = "#######/#.....#/#.....#/#.....#/#.....#/#.....#/#######"
RING = "#####/#...#/#.#.#/#...#/#####"


class TestPointMaze(RegisteredEnvContract):
    id = ID


class TestPointMazeRandom(RegisteredEnvContract):
    id = ID
    options: ClassVar[dict[str, Any]] = {"layout": "random", "size": 3, "min_steps": 10}


class TestPointMazeFixed(RegisteredEnvContract):
    id = ID
    options: ClassVar[dict[str, Any]] = {
        "layout": "random",
        "layout_seed": 0,
        "loops": 0.5,
        "distance": 0.5,
        "max_step": 0.2,
    }


def begun(count: int = 16, **options: Any) -> tuple[Any, dict[str, Any]]:
    """An environment, and its infos at the start."""
    env = make(ID, count, **options)
    return env, env.reset(seed=0)[1]


def put(env: Any, positions: Any, velocities: Any = 0.0) -> None:
    """Place the balls, and their goals far away."""
    for row, data in enumerate(env._data):
        data.qpos[:] = np.broadcast_to(positions, (env.num_envs, 2))[row]
        data.qvel[:] = np.broadcast_to(velocities, (env.num_envs, 2))[row]
        env._position[row], env._velocity[row] = data.qpos, data.qvel
    env._goal_position[:] = -9.0


def played(name: str, count: int = 16, **options: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Success, steps taken, and steps that the oracle counts."""
    env, info = begun(count, **options)
    best = maze.oracle_steps(info["maze"], info["quantities"])
    taken = np.zeros(count, int)
    for _ in range(env.episode_limit):
        taken += ~info["success"]
        info = env.step(getattr(maze, name)(info["maze"], info["quantities"]))[-1]
        if info["success"].all():
            break
    return info["success"], taken, best


# --- Dynamics.


def test_free_motion_is_that_of_a_damped_mass() -> None:
    """Semi-implicit Euler, implicit damping: v' = (v + h F) / (1 + h / coast), x' = x + h v'."""
    env, _ = begun(1, layout=ROOM, max_step=0.1)
    put(env, [3.0, 3.0], [0.4, -0.2])
    actions = np.random.default_rng(0).uniform(-0.7, 0.7, (12, 2))
    position, velocity = np.array([3.0, 3.0]), np.array([0.4, -0.2])
    h, top_speed = CONTROL_SECONDS / SUBSTEPS, 0.1 / CONTROL_SECONDS
    for action in actions:
        info = env.step(action[None])[-1]
        for _ in range(SUBSTEPS):
            force = top_speed / COAST_SECONDS * action
            velocity = (velocity + h * force) / (1 + h / COAST_SECONDS)
            position = position + h * velocity
        np.testing.assert_allclose(info["quantities"]["position"][0], position, rtol=1e-5)
        np.testing.assert_allclose(info["quantities"]["velocity"][0], velocity, rtol=1e-5)
    assert np.linalg.norm(velocity) > 0.05


@pytest.mark.parametrize("max_step", [0.1, 0.4])
def test_full_speed_covers_a_step_and_coasting_what_it_should(max_step: float) -> None:
    env, _ = begun(
        2, layout="#" * 20 + "/#..................#" * 18 + "/" + "#" * 20, max_step=max_step
    )
    diagonal = np.sqrt(0.5)
    direction = np.array([[1.0, 0.0], [diagonal, diagonal]])
    put(env, [2.0, 2.0], direction * max_step / CONTROL_SECONDS)
    # The second action is longer than 1: projected on the disc.
    before, _, _, _, _ = env.step(np.array([[1.0, 0.0], [1.0, 1.0]]))
    after, _, _, _, _ = env.step(np.array([[1.0, 0.0], [1.0, 1.0]]))
    np.testing.assert_allclose(after[:, :2] - before[:, :2], direction * max_step, rtol=1e-4)
    rest = after
    for _ in range(30):
        rest = env.step(np.zeros((2, 2)))[0]
    np.testing.assert_allclose(
        rest[:, :2] - after[:, :2], COAST_SECONDS * after[:, 2:], rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(rest[:, 2:], 0.0, atol=1e-5)


# --- Walls.


@pytest.mark.parametrize("layout", [*MAZES, RING, "random"])
def test_boxes_cover_the_walls_and_nothing_else(layout: str) -> None:
    walls = maze.random_maze(5, np.random.default_rng(0), 1.0)
    walls = walls if layout == "random" else maze.drawn(layout)
    covered = np.zeros_like(walls)
    for x, y, width, height in boxes_of(walls):
        rows = slice(round(y - height), round(y + height))
        columns = slice(round(x - width), round(x + width))
        covered[rows, columns] = 1
        # As long as can be, so that a straight face is one face.
        if width > 0.5:
            assert not columns.start or not walls[rows.start, columns.start - 1]
            assert columns.stop == len(walls) or not walls[rows.start, columns.stop]
    np.testing.assert_array_equal(covered, walls)
    assert description(walls, 0.4).count('type="box"') == len(boxes_of(walls))


@pytest.mark.parametrize("max_step", [0.2, 0.5])
def test_walls_are_never_crossed(max_step: float) -> None:
    """However hard it is pushed, the ball sinks into walls by less than half of its radius."""
    env, info = begun(24, layout="random", loops=0.5, max_step=max_step, episode_limit=500)
    walls, rng = info["maze"]["walls"], np.random.default_rng(0)
    env._goal_position[:] = -9.0
    rows, heading = np.arange(24), rng.normal(size=(24, 2))
    began, touched = env._position.copy(), 0
    around = np.array([(np.cos(t), np.sin(t)) for t in np.linspace(0, 2 * np.pi, 16)])
    for step in range(150):
        if step % 12 == 0:
            heading = rng.normal(size=(24, 2))
        before = env._position.copy()
        env.step(3 * heading)
        for edge in around:
            column, row = np.floor(env._position + 0.5 * RADIUS * edge).astype(int).T
            assert (walls[rows, row, column] == 0).all()
            column, row = np.floor(env._position + 1.02 * RADIUS * edge).astype(int).T
            touched += int((walls[rows, row, column] != 0).sum())
        assert (np.linalg.norm(env._position - before, axis=1) < 1.05 * max_step).all()
        # To the same block, or through an edge, or round a corner by way of a free block.
        (j, i), (column, row) = (
            np.floor(before).astype(int).T,
            np.floor(env._position).astype(int).T,
        )
        assert (np.abs(i - row) + np.abs(j - column) <= 2).all()
        assert ((walls[rows, i, column] == 0) | (walls[rows, row, j] == 0)).all()
    assert touched > 100
    assert np.linalg.norm(env._position - began, axis=1).max() > 2


def test_the_ball_slides_along_a_face_of_many_blocks_without_being_jolted() -> None:
    env, _ = begun(1, layout=ROOM, max_step=0.1)
    for across, along in ((0, 1), (1, 0)):
        start = np.zeros(2)
        start[across], start[along] = 1.0 + RADIUS, 1.5
        put(env, start)
        action = np.full((1, 2), np.sqrt(0.5))
        action[0, across] *= -1
        speeds = []
        for _ in range(45):
            velocity = env.step(action)[-1]["quantities"]["velocity"][0]
            speeds.append(velocity[along])
            assert abs(velocity[across]) < 0.02
        np.testing.assert_allclose(speeds[20:], np.sqrt(0.5), rtol=1e-3)


# --- The task.


def test_an_episode_begins_at_rest_and_its_goal_is_at_rest() -> None:
    env = make(ID, 32, layout="random")
    observations, info = env.reset(seed=0)
    np.testing.assert_array_equal(observations[:, :2], info["quantities"]["position"])
    np.testing.assert_array_equal(observations[:, 2:], 0.0)
    np.testing.assert_array_equal(info["goal"][:, :2], info["quantities"]["goal_position"])
    np.testing.assert_array_equal(info["goal"][:, 2:], 0.0)
    walls, rows = info["maze"]["walls"], np.arange(32)
    for name in ("position", "goal_position"):
        for x in (-RADIUS, RADIUS):
            for y in (-RADIUS, RADIUS):
                column, row = np.floor(info["quantities"][name] + (x, y)).astype(int).T
                assert (walls[rows, row, column] == 0).all()
    assert len(np.unique(walls, axis=0)) == 32


def test_an_episode_has_no_past() -> None:
    """A seed begins the same episode after pushing against walls as in a new environment."""
    env, _ = begun(2, layout="u")
    for _ in range(20):
        env.step(np.ones((2, 2)))
    actions = np.random.default_rng(0).uniform(-1, 1, (10, 2, 2))
    seen = []
    for each in (env, make(ID, 2, layout="u")):
        each.reset(seed=7)
        seen.append(np.stack([each.step(action)[0] for action in actions]))
    np.testing.assert_array_equal(seen[0], seen[1])


def test_touch_ends_the_episode_once_and_pays_once() -> None:
    env, info = begun(12, layout="four_rooms")
    paid, rng = np.zeros(12), np.random.default_rng(0)
    for _ in range(80):
        over, before = info["success"], info["quantities"]["position"]
        actions = maze.scripted(info["maze"], info["quantities"])
        actions[over] = rng.uniform(-1, 1, (int(over.sum()), 2))
        observations, rewards, terminated, _, info = env.step(actions)
        gap = np.linalg.norm(observations[:, :2] - info["goal"][:, :2], axis=1)
        np.testing.assert_array_equal(info["quantities"]["position"][over], before[over])
        np.testing.assert_array_equal(terminated, info["success"])
        np.testing.assert_array_equal(info["success"], gap <= 0.4)
        paid += rewards
    np.testing.assert_array_equal(paid, 1.0)


def test_the_limit_follows_the_longest_way_and_the_step() -> None:
    assert spec_of(make(ID, layout="spiral")).episode_limit == 2 * 120 + 20  # 48 blocks of 0.4
    assert spec_of(make(ID, layout="spiral", max_step=0.5)).episode_limit == 2 * 96 + 20
    assert spec_of(make(ID, layout="spiral", episode_limit=7)).episode_limit == 7
    assert PointMaze(layout="u", episode_limit=9).vector.episode_limit == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "cellar"}, "layout is 'cellar': choose random, u, four_rooms"),
        ({"size": 5}, "size is 5: choose layout='random'"),
        ({"max_step": 0.6}, "max_step is 0.6: choose above 0 and at most 0.5"),
        ({"distance": -0.1}, "distance is -0.1: choose a share"),
        ({"min_steps": 300}, "min_steps is 300: choose less"),
        ({"contact": "slide"}, "unknown options contact"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(ID, 1, **options)


def test_render_gives_one_frame_per_environment() -> None:
    env, _ = begun(2)
    frames = env.render()
    assert [frame.shape for frame in frames] == [(252, 252, 3)] * 2
    assert not np.array_equal(frames[0], frames[1])
    assert PointMaze().render() is None


def test_others_go_without_mujoco() -> None:
    code = (
        "import sys, forethought.envs as e; e.make('forethought/Maze-v0').reset(seed=0); "
        "print('mujoco' in sys.modules); e.make('forethought/PointMaze-v0').reset(seed=0); "
        "print('mujoco' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


# --- Baselines.


@pytest.mark.parametrize("layout", [*MAZES, "random"])
def test_scripted_always_arrives_within_twice_the_oracles_steps(layout: str) -> None:
    success, taken, best = played("scripted", layout=layout, distance=0.5)
    assert success.all()
    assert (taken > best).all()  # nobody at rest is at full speed at once
    assert taken.mean() < 1.8 * best.mean()
    assert (taken < 2 * best + 12).all()


def test_scripted_follows_shorter_steps_and_long_ways() -> None:
    options = {"layout": "random", "layout_seed": 0, "size": 5, "max_step": 0.2, "min_steps": 120}
    success, taken, best = played("scripted", 8, **options)
    assert success.all()
    assert (best >= 120).all()
    assert (taken < 1.4 * best).all()


def test_greedy_arrives_where_it_sees_the_goal_and_fails_far_away() -> None:
    _, info = begun(32)
    ends = info["quantities"]["position"], info["quantities"]["goal_position"]
    seen = maze.visible(info["maze"]["walls"], *ends)
    success, taken, best = played("greedy", 32)
    assert 0.1 < seen.mean() < 0.9
    assert success[seen].all()
    assert (taken[seen] <= best[seen] + 8).all()
    for layout in ("medium", "spiral", "u"):
        assert played("greedy", 16, layout=layout, distance=0.6)[0].mean() < 0.3


def test_policies_of_mazes_collect_here_too() -> None:
    env, rng = make(ID, 4, layout="four_rooms"), np.random.default_rng(0)
    episodes = list(collect(env, Scripted(), 4, first_seed=0, generator=rng))
    assert all(episode.success for episode in episodes)
    assert set(episodes[0].quantities) == {"position", "goal_position", "velocity"}
    observations, info = env.reset(seed=0)
    greedy = Greedy()(observations, info, np.zeros((4, 2)), rng)
    np.testing.assert_array_equal(greedy, maze.greedy(info["maze"], info["quantities"]))


def test_actions_of_controllers_are_in_the_disc_and_brake() -> None:
    env, info = begun(4)
    for controller in (maze.greedy, maze.scripted):
        actions = controller(info["maze"], info["quantities"])
        assert actions.dtype == np.float32
        assert (np.linalg.norm(actions, axis=1) <= 1 + 1e-6).all()
    # Towards a goal on the right, but so fast that the ball would roll past it.
    put(env, [1.5, 1.5], [4.0, 0.0])
    env._goal_position[:] = [2.0, 1.5]
    info = env._info()
    np.testing.assert_allclose(
        maze.greedy(info["maze"], info["quantities"])[:, 0], -0.75, atol=1e-6
    )
