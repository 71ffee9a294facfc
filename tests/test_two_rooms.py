"""Two-Rooms: contact, pictures, the shortest path, and the baselines every figure stands beside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from forethought.envs import (
    ROOMS_32,
    ROOMS_65,
    Episode,
    Geometry,
    Greedy,
    Policy,
    Random,
    Scripted,
    Smooth,
    collect,
    crosses_wall,
    draw_scene,
    greedy,
    make,
    oracle_path_length,
    oracle_steps,
    scripted,
)
from forethought.envs.two_rooms.geometry import blocked, move, shortest_path

EPISODES = 256


def episodes_of(policy: Policy, name: str = "TwoRooms-v0", **options: Any) -> list[Episode]:
    env = make(f"forethought/{name}", 64, **options)
    stream = collect(env, policy, EPISODES, first_seed=0, generator=np.random.default_rng(0))
    return list(stream)


def success_rate(episodes: list[Episode]) -> float:
    return float(np.mean([episode.success for episode in episodes]))


def stacked(episodes: list[Episode], time: int = 0) -> dict[str, np.ndarray]:
    names = episodes[0].quantities
    return {name: np.stack([item.quantities[name][time] for item in episodes]) for name in names}


def place(points: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wall and door of the fixed layout, for points `(N, 2)`."""
    points = np.array(points, np.float64)
    return np.full(len(points), 15.5), np.full(len(points), 9.0), points


# --- Baselines. Tolerances are three standard errors of a rate over 256 episodes, or more.


def test_random_policy_does_not_cross_and_sometimes_meets_the_goal_in_its_room() -> None:
    assert success_rate(episodes_of(Random(), task="between")) <= 0.03
    assert 0.17 <= success_rate(episodes_of(Random(), task="within")) <= 0.34


def test_greedy_slides_through_the_door_in_less_than_half() -> None:
    assert 0.36 <= success_rate(episodes_of(Greedy(), task="between")) <= 0.54
    assert success_rate(episodes_of(Greedy(), task="within")) == 1.0


def test_greedy_seldom_passes_where_contact_stops() -> None:
    assert success_rate(episodes_of(Greedy(), task="between", contact="stop")) <= 0.25


@pytest.mark.parametrize("contact", ["slide", "stop"])
@pytest.mark.parametrize("layout", ["fixed", "random"])
def test_scripted_always_arrives_and_takes_little_more_than_the_shortest_path(
    contact: str, layout: str
) -> None:
    episodes = episodes_of(Scripted(), task="between", contact=contact, layout=layout)
    assert success_rate(episodes) == 1.0
    lengths = np.array([episode.length for episode in episodes])
    best = oracle_steps(ROOMS_32, stacked(episodes))
    assert (lengths >= best).all()
    assert 11.0 < lengths.mean() < 14.5
    assert lengths.mean() < best.mean() + 2.0


def test_scripted_arrives_and_stays_in_the_65_pixel_rooms() -> None:
    options = {"task": "between", "episode_limit": 60}  # of 200, to save time
    assert success_rate(episodes_of(Scripted(), "TwoRooms65-v0", **options)) == 1.0
    assert success_rate(episodes_of(Greedy(), "TwoRooms65-v0", **options)) < 0.3


def test_greedy_within_a_room_takes_exactly_the_oracles_steps() -> None:
    episodes = episodes_of(Greedy(), task="within")
    lengths = np.array([episode.length for episode in episodes])
    np.testing.assert_array_equal(lengths, oracle_steps(ROOMS_32, stacked(episodes)))


def test_smooth_crosses_where_white_noise_stays() -> None:
    def crossing(policy: Policy) -> float:
        episodes = episodes_of(policy, task="between")
        sides = [item.quantities["position"][:, 0] > 15.5 for item in episodes]
        return float(np.mean([side.any() and not side.all() for side in sides]))

    smooth, white = crossing(Smooth()), crossing(Random())
    assert smooth > 0.25
    assert smooth > white + 0.1


@pytest.mark.parametrize("name", ["TwoRooms-v0", "TwoRooms65-v0"])
def test_oracles_follow_a_shorter_step(name: str) -> None:
    options = {"task": "between", "success": "touch", "contact": "slide", "episode_limit": 300}
    env = make(f"forethought/{name}", 64, max_step=0.3, **options)
    _, info = env.reset(seed=0)
    geometry: Geometry = env.geometry
    assert geometry.max_step == 0.3
    np.testing.assert_array_equal(info["two_rooms"]["max_step"], np.full(64, 0.3))
    best = oracle_steps(geometry, info["quantities"])
    length = oracle_path_length(geometry, info["quantities"]) - geometry.success_radius
    np.testing.assert_array_equal(best, np.maximum(1, np.ceil(length / 0.3)))
    taken = np.zeros(64, int)
    while not info["success"].all():
        before, over = info["quantities"]["position"], info["success"]
        taken += ~over
        *_, truncated, info = env.step(scripted(geometry, info["quantities"]))
        step = np.linalg.norm(info["quantities"]["position"] - before, axis=1)
        assert (step < 0.3 + 1e-5).all()
        assert not truncated.any()
    assert (taken >= best).all()
    # By way of the middle of the door, not by its edges.
    spare = 2 * geometry.door_half_height / 0.3
    assert (taken <= best + spare + 3).all()
    assert best.max() > 100


def test_greedy_with_a_shorter_step_takes_exactly_the_oracles_steps() -> None:
    env = make("forethought/TwoRooms-v0", 32, task="within", max_step=0.3, episode_limit=150)
    _, info = env.reset(seed=0)
    best = oracle_steps(env.geometry, info["quantities"])
    taken = np.zeros(32, int)
    for _ in range(int(best.max())):
        taken += ~info["success"]
        info = env.step(greedy(env.geometry, info["quantities"]))[-1]
    assert info["success"].all()
    np.testing.assert_array_equal(taken, best)


def test_the_default_step_is_the_geometrys_and_starts_do_not_depend_on_it() -> None:
    plain, told, shorter = (
        make("forethought/TwoRooms-v0", 16, **options)
        for options in ({}, {"max_step": 2.0}, {"max_step": 0.3})
    )
    actions = np.random.default_rng(0).uniform(-1, 1, (16, 2))
    seen = [env.reset(seed=0)[0] for env in (plain, told, shorter)]
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])
    outcomes = [env.step(actions) for env in (plain, told, shorter)]
    np.testing.assert_array_equal(outcomes[0][0], outcomes[1][0])
    assert not np.array_equal(outcomes[0][0], outcomes[2][0])
    assert "two_rooms" not in outcomes[0][-1]
    for step in (0.0, 2.1):
        with pytest.raises(ValueError, match=rf"max_step is {step}: choose above 0 and at most 2"):
            make("forethought/TwoRooms-v0", max_step=step)


# --- The task.


def test_tasks_choose_the_rooms() -> None:
    same = {}
    for task in ("between", "within", "any"):
        _, info = make("forethought/TwoRooms-v0", 200, task=task, layout="random").reset(seed=0)
        quantities = info["quantities"]
        wall, door = quantities["wall"][:, 0], quantities["door"][:, 0]
        left = [quantities[name][:, 0] < wall for name in ("position", "goal_position")]
        same[task] = np.mean(left[0] == left[1])
        for name in ("position", "goal_position"):
            points = quantities[name].astype(np.float64)
            # Off the walls, and not in the door: a start belongs to a room.
            assert (np.abs(points[:, 0] - wall) >= 1.5 - 1e-4).all()
            assert ((points >= 2 - 1e-4) & (points <= 29 + 1e-4)).all()
        assert wall.min() == 10
        assert wall.max() == 21
        assert door.min() == 6
        assert door.max() == 25
    assert same["between"] == 0.0
    assert same["within"] == 1.0
    assert 0.35 < same["any"] < 0.65


def test_fixed_layouts() -> None:
    for name, wall, door in (("TwoRooms-v0", 15.5, 9.0), ("TwoRooms65-v0", 32.0, 32.0)):
        _, info = make(f"forethought/{name}", 5, layout="fixed").reset(seed=0)
        np.testing.assert_array_equal(info["quantities"]["wall"], wall)
        np.testing.assert_array_equal(info["quantities"]["door"], door)


def test_touch_ends_the_episode_once_and_stays_a_success() -> None:
    env = make("forethought/TwoRooms-v0", 8, task="within")
    observations, info = env.reset(seed=0)
    policy, rng = Greedy(), np.random.default_rng(0)
    paid = np.zeros(8)
    for _ in range(30):
        before = observations
        over = info["success"]
        actions = policy(observations, info, np.zeros((8, 2)), rng)
        # Those that are finished stay in place whatever they are told.
        actions[over] = rng.uniform(-1, 1, (int(over.sum()), 2))
        observations, rewards, terminated, truncated, info = env.step(actions)
        np.testing.assert_array_equal(observations[over], before[over])
        np.testing.assert_array_equal(terminated, info["success"])
        assert (info["success"] | ~over).all()
        paid += rewards
    assert not truncated.any()
    np.testing.assert_array_equal(paid, 1.0)


def test_the_65_pixel_rooms_judge_the_last_step_alone() -> None:
    env = make("forethought/TwoRooms65-v0", 4, task="within", episode_limit=30)
    observations, info = env.reset(seed=0)
    policy, rng = Greedy(), np.random.default_rng(0)
    previous, touched = np.zeros((4, 2)), np.zeros(4, bool)
    for step in range(30):
        actions = policy(observations, info, previous, rng)
        actions[:2] *= 1 if step < 22 else -1  # two of them leave again before the end
        actions[:2] += 0 if step < 22 else np.array([0.0, 1.0])
        position = info["quantities"]["position"]
        observations, rewards, terminated, truncated, info = env.step(actions)
        distance = np.linalg.norm(
            info["quantities"]["position"] - info["quantities"]["goal_position"], axis=1
        )
        np.testing.assert_array_equal(info["success"], distance <= 4.5)
        touched |= info["success"]
        assert not terminated.any()
        assert (np.linalg.norm(info["quantities"]["position"] - position, axis=1) < 2.4501).all()
        if step < 29:
            np.testing.assert_array_equal(rewards, 0.0)
    assert touched.all()
    assert truncated.all()
    np.testing.assert_array_equal(rewards, info["success"])
    assert info["success"][2:].all()
    assert not info["success"][:2].any()


# --- Contact.


def test_free_moves_are_projected_on_the_disc() -> None:
    wall, door, start = place([[8, 20], [8, 20], [8, 20]])
    actions = np.array([[0.3, -0.4], [1.0, 1.0], [0.0, -1.0]])
    moved = move(ROOMS_32, wall, door, start, actions, slide=True) - start
    diagonal = 2 / np.sqrt(2)
    np.testing.assert_allclose(moved, [[0.6, -0.8], [diagonal, diagonal], [0, -2]], atol=1e-12)


def test_slide_loses_only_the_blocked_axis_and_stop_loses_the_rest() -> None:
    """From x = 13.2, substeps of (0.3, 0.4): two to x = 13.8, the third would be in the wall."""
    wall, door, start = place([[13.2, 20.0]])
    action = np.array([[0.6, 0.8]])
    slid = move(ROOMS_32, wall, door, start, action, slide=True)
    stopped = move(ROOMS_32, wall, door, start, action, slide=False)
    np.testing.assert_allclose(slid, [[13.8, 21.6]])
    np.testing.assert_allclose(stopped, [[13.8, 20.8]])


def test_door_lets_through_and_its_edge_does_not() -> None:
    wall, door, start = place([[13.9, 11.4], [13.9, 11.6], [13.9, 6.6], [13.9, 6.4]])
    for slide in (True, False):
        moved = move(ROOMS_32, wall, door, start, np.tile([1.0, 0.0], (4, 1)), slide=slide)
        np.testing.assert_allclose(moved[:, 0], [15.9, 13.9, 15.9, 13.9])


@pytest.mark.parametrize("geometry", [ROOMS_32, ROOMS_65])
@pytest.mark.parametrize("slide", [True, False])
def test_nobody_is_ever_inside_a_wall(geometry: Geometry, slide: bool) -> None:
    rng = np.random.default_rng(0)
    count = 400
    wall = rng.integers(*geometry.wall_range, endpoint=True, size=count).astype(float)
    door = rng.integers(*geometry.door_range, endpoint=True, size=count).astype(float)
    points = rng.uniform(geometry.low, geometry.high, (count, 2))
    points[blocked(geometry, wall, door, points)] = geometry.low
    heading = rng.uniform(-1, 1, (count, 2))
    for _ in range(60):
        heading = np.clip(heading + 0.4 * rng.normal(size=heading.shape), -1, 1)
        moved = move(geometry, wall, door, points, heading, slide=slide)
        assert not blocked(geometry, wall, door, moved).any()
        assert not crosses_wall(geometry, wall, door, points, moved).any()
        points = moved
    assert len(np.unique(np.sign(points[:, 0] - wall))) > 1


def test_crosses_wall_sees_what_passes_beside_the_door() -> None:
    start = [[10, 9], [10, 20], [20, 20], [10, 20], [10, 9], [15.5, 20], [10, 0], [10, 20]]
    end = [[20, 9], [20, 20], [10, 20], [12, 25], [20, 20], [15.5, 25], [20, 18], [13.9, 3]]
    expected = [False, True, True, False, True, True, False, False]
    seen = crosses_wall(ROOMS_32, 15.5, 9.0, start, end)
    np.testing.assert_array_equal(seen, expected)
    columns = np.full((8, 1), 15.5), np.full((8, 1), 9.0)
    np.testing.assert_array_equal(crosses_wall(ROOMS_32, *columns, start, end), expected)


# --- The shortest path.


def test_shortest_path_agrees_with_a_search_over_crossing_heights() -> None:
    rng = np.random.default_rng(1)
    wall, door = np.full(40, 15.5), rng.uniform(6, 25, 40)
    start = np.stack([rng.uniform(2, 14, 40), rng.uniform(2, 29, 40)], axis=1)
    end = np.stack([rng.uniform(17, 29, 40), rng.uniform(2, 29, 40)], axis=1)
    heights = door[:, None] + np.linspace(-2.5, 2.5, 201)  # (N, G)
    enter, leave = heights[:, :, None], heights[:, None, :]
    length = np.hypot(14 - start[:, 0, None, None], enter - start[:, 1, None, None])
    length = length + np.hypot(3, leave - enter)
    length = length + np.hypot(end[:, 0, None, None] - 17, end[:, 1, None, None] - leave)
    searched = length.min(axis=(1, 2))
    found = shortest_path(ROOMS_32, wall, door, start, end)
    assert (found <= searched + 1e-9).all()
    np.testing.assert_allclose(found, searched, atol=2e-3)
    np.testing.assert_allclose(shortest_path(ROOMS_32, wall, door, end, start), found)
    # Not merely straight: the door is a detour for most.
    assert np.mean(found > np.linalg.norm(end - start, axis=1) + 0.1) > 0.5


def test_oracle_of_a_straight_path() -> None:
    quantities = {
        "position": np.array([[4.0, 20.0], [10.0, 9.0], [5.0, 5.0]]),
        "goal_position": np.array([[7.0, 24.0], [21.0, 9.0], [5.0, 6.0]]),
        "wall": np.full((3, 1), 15.5),
        "door": np.full((3, 1), 9.0),
    }
    np.testing.assert_allclose(oracle_path_length(ROOMS_32, quantities), [5.0, 11.0, 1.0])
    np.testing.assert_array_equal(oracle_steps(ROOMS_32, quantities), [2, 5, 1])


# --- Pictures.


def test_agent_is_a_gaussian_at_its_sub_pixel_position() -> None:
    env = make("forethought/TwoRooms-v0", 16, layout="random")
    observations, info = env.reset(seed=0)
    agent = observations[:, 0].astype(np.float64)
    rows, columns = np.mgrid[0:32, 0:32]
    x, y = info["quantities"]["position"].T
    distance = (columns - x[:, None, None]) ** 2 + (rows - y[:, None, None]) ** 2
    np.testing.assert_allclose(agent, 255 * np.exp(-distance / 2), atol=0.51)
    mass = agent.sum(axis=(1, 2))
    np.testing.assert_allclose((agent * columns).sum(axis=(1, 2)) / mass, x, atol=0.05)
    np.testing.assert_allclose((agent * rows).sum(axis=(1, 2)) / mass, y, atol=0.05)


def test_goal_shows_the_agent_at_the_goal_in_the_same_layout() -> None:
    env = make("forethought/TwoRooms-v0", 8, layout="random")
    observations, info = env.reset(seed=0)
    np.testing.assert_array_equal(info["goal"][:, 1], observations[:, 1])
    peak = info["goal"][:, 0].reshape(8, -1).argmax(axis=1)
    x, y = info["quantities"]["goal_position"].T
    assert (np.abs(peak % 32 - x) <= 0.51).all()
    assert (np.abs(peak // 32 - y) <= 0.51).all()


def test_walls_as_drawn_row_by_row() -> None:
    """65 pixels: border 5, wall 3 wide at x = 32, door 4 above and below y = 32."""
    observations, _ = make("forethought/TwoRooms65-v0", 1, layout="fixed").reset(seed=0)
    expected = np.full((65, 65), 255, np.uint8)
    expected[5:60, 5:60] = 0
    expected[5:60, 31:34] = 255
    expected[29:36, 31:34] = 0
    expected[[28, 36], 31:34] = 128  # the door ends in the middle of these pixels
    np.testing.assert_array_equal(observations[0, 1], expected)


def test_fixed_wall_covers_three_pixels_in_all() -> None:
    observations, _ = make("forethought/TwoRooms-v0", 1).reset(seed=0)
    walls = observations[0, 1]
    np.testing.assert_array_equal(walls[20, 13:19], [0, 128, 255, 255, 128, 0])
    assert (walls[7:12, 14:18] == 0).all()
    assert (walls[[6, 12], 15] == 255).all()
    assert (walls[[0, 1, 30, 31]] == 255).all()
    assert (walls[:, [0, 1, 30, 31]] == 255).all()


def test_frames_show_agent_goal_walls_and_paths() -> None:
    red = (220, 30, 30)
    path = np.array([[5.0, 20.0], [10.0, 20.0]])
    frame = draw_scene(ROOMS_32, 15.5, 9.0, (6, 6), (24, 24), 8, [(path, red)])
    assert frame.shape == (256, 256, 3)
    assert frame.dtype == np.uint8

    def colour(x: float, y: float) -> tuple[int, ...]:
        row, column = int((y + 0.5) * 8), int((x + 0.5) * 8)
        return tuple(int(value) for value in frame[row, column])

    assert colour(6, 6) == (38, 98, 217)
    assert colour(24, 24) == (34, 160, 90)
    assert colour(15.5, 20) == colour(0, 5) == (58, 62, 74)
    assert colour(15.5, 9) == colour(10, 10) == (246, 244, 239)
    assert colour(7.5, 20) == red
    empty = draw_scene(ROOMS_32, 15.5, 9.0, None, None, 8)
    assert (frame != empty).any(axis=2).sum() > 200
    with pytest.raises(ValueError, match="scale is 0"):
        draw_scene(ROOMS_32, 15.5, 9.0, None, None, 0)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        draw_scene(ROOMS_32, 15.5, 9.0, None, None, 8, [(np.zeros(3), red)])


def test_render_gives_one_frame_per_environment() -> None:
    env = make("forethought/TwoRooms-v0", 3)
    env.reset(seed=0)
    frames = env.render()
    assert frames is not None
    assert [frame.shape for frame in frames] == [(256, 256, 3)] * 3
    assert not np.array_equal(frames[0], frames[1])
