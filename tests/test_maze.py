"""Mazes: layouts, contact, the shortest path, pictures, and the baselines beside every figure."""

from __future__ import annotations

import heapq
from typing import Any, ClassVar

import numpy as np
import pytest
from env_contract import RegisteredEnvContract

from forethought.envs import (
    MAZES,
    Episode,
    Greedy,
    Policy,
    Scripted,
    Smooth,
    collect,
    draw_maze,
    make,
    maze,
    spec_of,
)
from forethought.envs.maze.geometry import SKIN, corners, lengths_to, move
from forethought.envs.maze.layouts import block_of, free_blocks, grid_distances, longest_way

ID = "forethought/Maze-v0"
RING = "#####/#...#/#.#.#/#...#/#####"  # a block in the middle of a room


class TestMaze(RegisteredEnvContract):
    id = ID


class TestMazeVector(RegisteredEnvContract):
    id = ID
    options: ClassVar[dict[str, Any]] = {"observe": "vector", "layout": "u", "contact": "stop"}


class TestMazeRandom(RegisteredEnvContract):
    id = ID
    options: ClassVar[dict[str, Any]] = {"layout": "random", "size": 3, "distance": 0.7}


class TestMazeFar(RegisteredEnvContract):
    """One random maze with loops for all episodes, and long ways in it."""

    id = ID
    options: ClassVar[dict[str, Any]] = {
        "layout": "random",
        "layout_seed": 1,
        "loops": 0.3,
        "min_steps": 20,
        "observe": "vector",
    }


def episodes_of(policy: Policy, count: int = 64, **options: Any) -> list[Episode]:
    env = make(ID, 32, observe="vector", **options)
    generator = np.random.default_rng(0)
    return list(collect(env, policy, count, first_seed=0, generator=generator))


def success_rate(episodes: list[Episode]) -> float:
    return float(np.mean([episode.success for episode in episodes]))


def begun(**options: Any) -> tuple[np.ndarray, dict[str, Any], dict[str, Any]]:
    """Observations, quantities and maze of 32 fresh episodes with seeds from 0, as collected."""
    observations, info = make(ID, 32, **options).reset(seed=0)
    return observations, info["quantities"], info["maze"]


# --- Layouts.


def test_layouts_are_what_they_are_drawn_as() -> None:
    walls = maze.drawn(RING)
    expected = np.ones((5, 5), np.uint8)
    expected[1:4, 1:4] = 0
    expected[2, 2] = 1
    np.testing.assert_array_equal(walls, expected)
    np.testing.assert_array_equal(maze.drawn("##### #...#\n#.#.# #...# #####"), expected)
    assert {name: len(maze.drawn(name)) for name in MAZES} == {
        "u": 9,
        "four_rooms": 11,
        "spiral": 11,
        "medium": 9,
    }


def test_grid_distances_count_blocks_through_edges() -> None:
    distances = grid_distances(maze.drawn(RING))
    np.testing.assert_array_equal(distances[0], [0, 1, 2, 1, 3, 2, 3, 4])
    np.testing.assert_array_equal(distances, distances.T)
    # One corridor: every block has its own distance from an end.
    spiral = maze.drawn("spiral")
    ends = np.flatnonzero((grid_distances(spiral) == 1).sum(axis=1) == 1)
    assert len(ends) == 2
    np.testing.assert_array_equal(
        np.sort(grid_distances(spiral)[ends[0]]), np.arange(len(free_blocks(spiral)))
    )


@pytest.mark.parametrize("size", [2, 4, 7])
def test_random_mazes_have_one_way_between_any_two_rooms(size: int) -> None:
    seen = set()
    for seed in range(5):
        walls = maze.random_maze(size, np.random.default_rng(seed))
        assert walls.shape == (2 * size + 1, 2 * size + 1)
        assert (walls[1::2, 1::2] == 0).all()
        assert (walls[::2, ::2] == 1).all()
        # A connected graph without a loop: as many passages as rooms, but one.
        assert (walls == 0).sum() == 2 * size**2 - 1
        distances = grid_distances(walls)
        assert np.isfinite(distances).all()
        assert distances.max() <= longest_way(size)
        np.testing.assert_array_equal(walls, maze.random_maze(size, np.random.default_rng(seed)))
        seen.add(walls.tobytes())
    assert len(seen) > 1


@pytest.mark.parametrize("loops", [0.3, 1.0])
def test_loops_open_dead_ends(loops: float) -> None:
    def dead_ends(walls: np.ndarray) -> int:
        rooms = walls[1::2, 1::2] + walls[:-2:2, 1::2] + walls[2::2, 1::2]
        return int((rooms + walls[1::2, :-2:2] + walls[1::2, 2::2] == 3).sum())

    opened, all_of_them = 0, 0
    for seed in range(20):
        perfect = maze.random_maze(5, np.random.default_rng(seed))
        walls = maze.random_maze(5, np.random.default_rng(seed), loops)
        assert (walls <= perfect).all()  # nothing is built, and the border stays
        np.testing.assert_array_equal(walls[[0, -1]], 1)
        np.testing.assert_array_equal(walls[:, [0, -1]], 1)
        np.testing.assert_array_equal(walls[::2, ::2], 1)
        # A drawing of it is a layout: nothing touches at a corner only.
        rows = ["".join("#" if block else "." for block in row) for row in walls]
        np.testing.assert_array_equal(maze.drawn("/".join(rows)), walls)
        opened += dead_ends(perfect) - dead_ends(walls)
        all_of_them += dead_ends(perfect)
    assert opened == all_of_them if loops == 1.0 else 0.2 < opened / all_of_them < 0.6


def test_a_layout_seed_keeps_one_maze_and_starts_change() -> None:
    _, quantities, rules = begun(layout="random", layout_seed=0)
    assert len(np.unique(rules["walls"], axis=0)) == 1
    np.testing.assert_array_equal(rules["walls"][0], maze.random_maze(4, np.random.default_rng(0)))
    assert len(np.unique(quantities["position"], axis=0)) == 32
    other = begun(layout="random", layout_seed=1)[2]["walls"]
    assert not np.array_equal(rules["walls"], other)


def test_random_layout_changes_with_the_seed_and_fixed_does_not() -> None:
    assert len(np.unique(begun(layout="random")[2]["walls"], axis=0)) == 32
    walls = begun(layout="u")[2]["walls"]
    assert (walls == maze.drawn("u")).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "cellar"}, "layout is 'cellar': choose random, u, four_rooms, spiral, medium"),
        ({"layout": "###/#.#"}, "choose as many rows as columns"),
        ({"layout": "####/#..#/#..#/##.#"}, "choose # all round"),
        ({"layout": "###/#.#/###"}, "at least two free blocks"),
        ({"layout": "#####/#.#.#/#.#.#/#.#.#/#####"}, "connected by edges"),
        ({"layout": "#####/#..##/#..##/##.##/#####"}, None),
        ({"layout": "######/#....#/#.#..#/#..#.#/#....#/######"}, "touch at a corner only"),
        ({"size": 5}, "size is 5: choose layout='random'"),
        ({"layout": "random", "size": 1}, "size is 1: choose 2 rooms"),
        ({"observe": "sound"}, "observe is 'sound': choose pixels or vector"),
        ({"contact": "bounce"}, "contact is 'bounce': choose slide or stop"),
        ({"distance": 1.5}, "distance is 1.5: choose a share"),
        ({"layout_seed": 0}, "layout_seed is 0: choose layout='random', or leave layout_seed out"),
        ({"layout": "random", "layout_seed": -1}, "layout_seed is -1: choose 0 or above"),
        ({"loops": 0.5}, "loops is 0.5: choose layout='random'"),
        ({"layout": "random", "loops": 2.0}, "loops is 2.0: choose a share from 0 to 1"),
        ({"min_steps": -1}, "min_steps is -1: choose 0 or above"),
        ({"min_steps": 5, "distance": 0.5}, "distance is 0.5 and min_steps is 5: choose one"),
        ({"min_steps": 500}, "min_steps is 500: choose less, .* smaller max_step than 0.4$"),
        ({"layout": "random", "min_steps": 500}, "choose at most 75, a larger size than 4, or a"),
        (
            {"layout": "random", "layout_seed": 0, "min_steps": 75},
            "choose less, .* smaller max_step than 0.4, or a larger size",
        ),
        ({"max_step": 0.6}, "max_step is 0.6: choose above 0 and at most 0.5"),
        ({"max_step": 0.0}, "max_step is 0.0"),
        ({"picture": 8}, "picture is 8: choose at least a pixel a block, 9"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert make(ID, 1, **options).reset(seed=0)[0].shape == (1, 2, 64, 64)
        return
    with pytest.raises(ValueError, match=message):
        make(ID, 1, **options)


# --- The task.


def test_the_limit_follows_the_longest_way_and_the_step() -> None:
    assert spec_of(make(ID, layout="spiral")).episode_limit == 2 * 120  # 48 blocks of 0.4
    assert spec_of(make(ID, layout="spiral", max_step=0.5)).episode_limit == 2 * 96
    assert spec_of(make(ID, layout="random", size=3)).episode_limit == 2 * 40
    assert spec_of(make(ID, layout="spiral", episode_limit=7)).episode_limit == 7


@pytest.mark.parametrize("layout", ["medium", "random"])
def test_starts_and_goals_lie_in_free_blocks_as_far_apart_as_asked(layout: str) -> None:
    means = []
    for share in (0.0, 0.5, 1.0):
        _, quantities, rules = begun(layout=layout, distance=share, observe="vector")
        apart = []
        for row, walls in enumerate(rules["walls"]):
            index = -np.ones(walls.shape, int)
            index[walls == 0] = np.arange((walls == 0).sum())
            blocks = [
                index[block_of(quantities[name][row])] for name in ("position", "goal_position")
            ]
            assert min(blocks) >= 0
            distances = grid_distances(walls)
            apart.append(distances[blocks[0], blocks[1]] / distances.max())
        assert min(apart) >= share - 1e-9
        means.append(np.mean(apart))
    assert means[0] < means[1] < means[2] == 1.0
    assert min(means) < 0.5


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "medium", "min_steps": 25},
        {"layout": "random", "min_steps": 40},
        {"layout": "random", "layout_seed": 0, "loops": 0.5, "min_steps": 25},
    ],
)
def test_min_steps_is_the_least_that_the_oracle_takes(options: dict[str, Any]) -> None:
    asked = options["min_steps"]
    _, quantities, rules = begun(observe="vector", **options)
    steps = maze.oracle_steps(rules, quantities)
    assert steps.min() >= asked
    assert steps.min() <= asked + 4  # not merely the farthest there are
    assert len(np.unique(np.floor(quantities["goal_position"]), axis=0)) > 3
    short = maze.oracle_steps(*begun(observe="vector", **(options | {"min_steps": 0}))[:0:-1])
    assert short.min() < asked


def test_a_maze_that_is_never_large_enough_is_said_at_reset() -> None:
    """Possible as far as blocks are counted, but no maze of this size winds so much."""
    with pytest.raises(ValueError, match=r"min_steps is 19: choose less, .*or a larger size"):
        begun(layout="random", size=2, min_steps=19, max_step=0.25)


@pytest.mark.parametrize("radius", [0.0, 0.2])
def test_lengths_to_a_goal_are_those_of_the_shortest_paths(radius: float) -> None:
    rng = np.random.default_rng(0)
    for walls in (maze.drawn("medium"), maze.random_maze(4, rng, 0.5)):
        blocks = free_blocks(walls)
        goal = blocks[3, ::-1] + rng.uniform(0.25, 0.75, 2)
        paths = [
            maze.shortest_path(walls, block[::-1] + 0.5, goal, radius=radius) for block in blocks
        ]
        expected = [maze.path_length(path) for path in paths]
        np.testing.assert_allclose(lengths_to(walls, goal, radius), expected, atol=1e-9)


def test_touch_ends_the_episode_once_and_pays_once() -> None:
    env = make(ID, 16, observe="vector", layout="four_rooms")
    observations, info = env.reset(seed=0)
    paid, rng = np.zeros(16), np.random.default_rng(0)
    for _ in range(60):
        over, before = info["success"], observations
        actions = Scripted()(observations, info, np.zeros((16, 2)), rng)
        actions[over] = rng.uniform(-1, 1, (int(over.sum()), 2))
        observations, rewards, terminated, truncated, info = env.step(actions)
        gap = np.linalg.norm(observations - info["goal"], axis=1)
        np.testing.assert_array_equal(observations[over], before[over])
        np.testing.assert_array_equal(terminated, info["success"])
        np.testing.assert_array_equal(info["success"], gap <= 0.4)
        paid += rewards
    assert not truncated.any()
    np.testing.assert_array_equal(paid, 1.0)


def test_actions_are_projected_on_the_disc() -> None:
    env = make(ID, 3, layout=RING, observe="vector", max_step=0.2)
    env.reset(seed=0)
    env._position[:] = [1.5, 1.5]
    moved = env.step(np.array([[1.0, 1.0], [0.3, -0.4], [0.0, 1.0]]))[0] - 1.5
    diagonal = 0.2 / np.sqrt(2)
    np.testing.assert_allclose(moved, [[diagonal] * 2, [0.06, -0.08], [0, 0.2]], atol=1e-6)


# --- Contact.


def moved(start: Any, step: Any, slide: bool) -> np.ndarray:
    """Where a step in the ring with a block at [2, 3] x [2, 3] leads."""
    walls = maze.drawn(RING)[None]
    return move(walls, np.array([start], float), np.array([step], float), slide=slide)[0]


@pytest.mark.parametrize("slide", [True, False])
def test_a_step_ends_at_the_face_that_it_meets(slide: bool) -> None:
    """From (1.8, 2.2) by (0.4, 0.3): the face x = 2 is met half way, at y = 2.35."""
    y = 2.5 if slide else 2.35
    np.testing.assert_allclose(moved([1.8, 2.2], [0.4, 0.3], slide), [2 - SKIN, y])
    np.testing.assert_allclose(moved([3.2, 2.2], [-0.4, 0.3], slide), [3 + SKIN, y])
    np.testing.assert_allclose(moved([2.2, 1.8], [0.3, 0.4], slide), [y, 2 - SKIN])
    np.testing.assert_allclose(moved([1.2, 1.5], [-0.4, 0.0], slide), [1 + SKIN, 1.5])
    np.testing.assert_allclose(moved([1.5, 1.5], [0.3, 0.4], slide), [1.8, 1.9])
    # Short of the face, but not by enough to stay in the room once rounded to float32.
    np.testing.assert_allclose(moved([1.6, 2.5], [0.4 - 1e-12, 0.0], slide), [2 - SKIN, 2.5])


def test_a_step_passes_a_corner_on_the_side_on_which_it_crosses_the_lines() -> None:
    """Past the corner (2, 2): over y = 2 first leads to the block's left face, else along it."""
    np.testing.assert_allclose(moved([1.9, 1.95], [0.2, 0.3], True), [2 - SKIN, 2.25])
    np.testing.assert_allclose(moved([1.95, 1.9], [0.3, 0.2], True), [2.25, 2 - SKIN])
    np.testing.assert_allclose(moved([1.9, 1.95], [0.2, 0.3], False), [2 - SKIN, 2.10])
    np.testing.assert_allclose(moved([1.95, 1.9], [0.3, 0.2], False), [2.10, 2 - SKIN])
    # Round it: in over x = 2 below the top, no; above it, yes.
    np.testing.assert_allclose(moved([1.9, 2.1], [0.2, -0.3], True), [2.1, 1.8])
    # Into a corner of the room, along neither wall.
    for slide in (True, False):
        end = moved([1.2, 1.2], [-0.3, -0.3], slide)
        assert (end >= 1).all()
        assert (end < 1.2).all()


@pytest.mark.parametrize("slide", [True, False])
def test_nobody_is_ever_in_a_wall_or_beyond_one(slide: bool) -> None:
    rng = np.random.default_rng(0)
    mazes = [maze.drawn(name) for name in ("u", "medium")]
    mazes += [maze.random_maze(4, rng) for _ in range(20)]
    walls = np.stack([mazes[row % len(mazes)] for row in range(440)])
    blocks = [free_blocks(item) for item in walls]
    points = np.stack(
        [rng.permutation(item)[0, ::-1] + rng.uniform(0.01, 0.99, 2) for item in blocks]
    )
    rows, heading, began = np.arange(len(walls)), rng.normal(size=points.shape), points
    for _ in range(150):
        heading = 0.9 * heading + 0.5 * rng.normal(size=heading.shape)
        # Diagonals and axes too, on which ties are decided.
        steps = np.where(rng.uniform(size=(len(walls), 1)) < 0.2, np.rint(heading), heading)
        steps = 0.5 * steps / np.maximum(np.linalg.norm(steps, axis=1, keepdims=True), 1.0)
        ends = move(walls, points, steps, slide=slide)
        row, column = block_of(ends.astype(np.float32))
        assert (walls[rows, row, column] == 0).all()
        # To the same block or through an edge, or round a corner by way of a free block.
        old_row, old_column = block_of(points)
        apart = np.abs(row - old_row) + np.abs(column - old_column)
        assert apart.max() <= 2
        way = (walls[rows, old_row, column] == 0) | (walls[rows, row, old_column] == 0)
        assert way.all()
        if not slide:  # the straight line is free, but for its end, which the skin holds back
            almost = points + 0.99 * (ends - points)
            far = np.linalg.norm(ends - points, axis=1) > 10 * SKIN
            bent = ~maze.visible(walls[far], points[far], almost[far])
            assert bent.mean() < 0.005
        points = ends
    assert np.linalg.norm(points - began, axis=1).max() > 4


# --- The shortest path.


def test_shortest_path_round_a_block_by_hand() -> None:
    walls = maze.drawn(RING)
    path = maze.shortest_path(walls, np.array([1.5, 2.5]), np.array([3.5, 2.5]))
    assert maze.path_length(path) == pytest.approx(2 * np.hypot(0.5, 0.5) + 1, abs=1e-5)
    assert path.shape == (4, 2)
    np.testing.assert_allclose(path[[1, 2], 0], [2, 3], atol=1e-5)
    straight = maze.shortest_path(walls, np.array([1.2, 1.2]), np.array([3.7, 1.9]))
    np.testing.assert_allclose(straight, [[1.2, 1.2], [3.7, 1.9]])
    with_clearance = maze.shortest_path(walls, np.array([1.5, 2.6]), np.array([3.5, 2.6]), 0.1)
    np.testing.assert_allclose(with_clearance[1:3], [[1.9, 3.1], [3.1, 3.1]])


def test_a_body_goes_round_a_block_at_its_radius() -> None:
    """The block is [2, 3] x [2, 3]: the centre keeps 0.2 off it in x and y."""
    walls = maze.drawn(RING)
    path = maze.shortest_path(walls, np.array([1.5, 2.5]), np.array([3.5, 2.5]), radius=0.2)
    assert maze.path_length(path) == pytest.approx(2 * np.hypot(0.3, 0.7) + 1.4, abs=1e-5)
    np.testing.assert_allclose(path[[1, 2], 0], [1.8, 3.2], atol=1e-5)
    # A centre that is nearer to a corner than the square ones allow is moved out first.
    path = maze.shortest_path(walls, np.array([1.9, 1.85]), np.array([3.5, 1.5]), radius=0.2)
    np.testing.assert_allclose(path[0], [1.9, 1.8], atol=1e-3)
    with pytest.raises(ValueError, match=r"radius is 0.3: choose 1/3, 1/4"):
        maze.shortest_path(walls, np.array([1.5, 2.5]), np.array([3.5, 2.5]), radius=0.3)
    with pytest.raises(ValueError, match=r"radius is 0.5: choose 1/3, 1/4"):
        maze.shortest_path(walls, np.array([1.5, 2.5]), np.array([3.5, 2.5]), radius=0.5)


def test_corners_are_where_walls_turn_outwards() -> None:
    found = corners(maze.drawn(RING), 0.0)
    assert sorted(found.tolist()) == [[2, 2], [2, 3], [3, 2], [3, 3]]
    assert len(corners(maze.drawn("####/#..#/#..#/####"), 0.0)) == 0


def fine_distance(walls: np.ndarray, start: np.ndarray, goal: np.ndarray, cut: int) -> float:
    """Dijkstra over the centres of `cut` x `cut` parts of blocks, in eight directions."""
    fine = walls.repeat(cut, axis=0).repeat(cut, axis=1)
    goal_at = tuple(np.floor(goal[::-1] * cut).astype(int))
    begin = tuple(np.floor(start[::-1] * cut).astype(int))
    best, queue = {begin: 0.0}, [(0.0, begin)]
    while queue:
        length, (i, j) = heapq.heappop(queue)
        if (i, j) == goal_at:
            return length / cut
        if length > best[i, j]:
            continue
        for di, dj in ((a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b):
            at = (i + di, j + dj)
            if fine[at] or fine[i + di, j] or fine[i, j + dj]:
                continue
            longer = length + np.hypot(di, dj)
            if longer < best.get(at, np.inf):
                best[at] = longer
                heapq.heappush(queue, (longer, at))
    return np.inf


@pytest.mark.parametrize("layout", ["u", "four_rooms", "medium", "random"])
def test_shortest_path_agrees_with_a_search_on_a_fine_grid(layout: str) -> None:
    """Eight directions are at most 8.3 % longer than straight lines, and never shorter."""
    cut, rng = 9, np.random.default_rng(0)
    walls = maze.random_maze(4, rng) if layout == "random" else maze.drawn(layout)
    blocks = free_blocks(walls)
    ratios = []
    for _ in range(12):
        pair = blocks[rng.integers(len(blocks), size=2)][:, ::-1]
        start, goal = (pair + (rng.integers(cut, size=(2, 2)) + 0.5) / cut).astype(float)
        path = maze.shortest_path(walls, start, goal)
        assert maze.visible(walls, path[:-1], path[1:]).all()
        np.testing.assert_array_equal(path[[0, -1]], [start, goal])
        length, searched = maze.path_length(path), fine_distance(walls, start, goal, cut)
        back = maze.path_length(maze.shortest_path(walls, goal, start))
        assert back == pytest.approx(length, abs=1e-5)
        # Cells pass a corner at half a cell: two thirds of a cell for each bend, generously.
        assert length - 1e-4 <= searched <= 1.083 * length + (len(path) - 2) / cut
        ratios.append(length / max(1e-9, np.linalg.norm(goal - start)))
    assert max(ratios) > 1.1  # not merely straight


def test_no_way_is_said() -> None:
    walls = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1]] + [[1] * 5] * 2, np.uint8)
    with pytest.raises(ValueError, match=r"start is \[1.5, 1.5\]: choose points in connected"):
        maze.shortest_path(walls, np.array([1.5, 1.5]), np.array([3.5, 1.5]))


def test_visible_sees_past_walls_and_not_through_them() -> None:
    start = [[1.5, 1.5], [1.5, 1.5], [1.5, 2.5], [1.2, 2.5], [1.5, 1.5]]
    end = [[3.5, 1.5], [3.5, 3.5], [3.5, 2.5], [2.8, 1.1], [1.5, 1.5]]
    expected = [True, False, False, True, True]
    walls = maze.drawn(RING)
    np.testing.assert_array_equal(maze.visible(walls, np.array(start), np.array(end)), expected)
    many = np.tile(walls, (5, 1, 1))
    np.testing.assert_array_equal(maze.visible(many, np.array(start), np.array(end)), expected)


# --- Baselines.


@pytest.mark.parametrize("contact", ["slide", "stop"])
@pytest.mark.parametrize("layout", [*MAZES, "random"])
def test_scripted_always_arrives_and_takes_little_more_than_the_shortest_path(
    layout: str, contact: str
) -> None:
    options = {"layout": layout, "contact": contact, "distance": 0.5}
    episodes = episodes_of(Scripted(), 32, **options)
    assert success_rate(episodes) == 1.0
    _, quantities, rules = begun(observe="vector", **options)
    np.testing.assert_array_equal(
        quantities["position"], [episode.quantities["position"][0] for episode in episodes]
    )
    best = maze.oracle_steps(rules, quantities)
    lengths = np.array([episode.length for episode in episodes])
    assert (lengths >= best).all()
    # Each bend costs at most a step, which it cuts short.
    paths = zip(rules["walls"], quantities["position"], quantities["goal_position"], strict=True)
    bends = np.array([len(maze.shortest_path(*path)) - 2 for path in paths])
    assert (lengths <= best + bends + 1).all()


def test_scripted_arrives_in_large_random_mazes() -> None:
    assert success_rate(episodes_of(Scripted(), 8, layout="random", size=7, distance=0.8)) == 1.0


def test_two_hundred_steps_and_more() -> None:
    """The scripted policy takes what the oracle counts, and a step at most for each bend."""
    options = {"layout": "random", "size": 6, "layout_seed": 0, "max_step": 0.2, "min_steps": 200}
    env = make(ID, 8, observe="vector", **options)
    _, info = env.reset(seed=0)
    rules, quantities = info["maze"], info["quantities"]
    best = maze.oracle_steps(rules, quantities)
    assert (best >= 200).all()
    paths = zip(rules["walls"], quantities["position"], quantities["goal_position"], strict=True)
    bends = np.array([len(maze.shortest_path(*path)) - 2 for path in paths])
    taken = np.zeros(8, int)
    while not info["success"].all():
        taken += ~info["success"]
        *_, truncated, info = env.step(maze.scripted(info["maze"], info["quantities"]))
        assert not truncated.any()
    assert (taken >= best).all()
    assert (taken <= best + bends + 1).all()


def test_greedy_takes_the_oracles_steps_where_it_sees_the_goal_and_fails_far_away() -> None:
    episodes = episodes_of(Greedy(), 32)
    _, quantities, rules = begun(observe="vector")
    seen = maze.visible(rules["walls"], quantities["position"], quantities["goal_position"])
    assert 0.1 < seen.mean() < 0.9
    lengths = np.array([episode.length for episode in episodes])
    best = maze.oracle_steps(rules, quantities)
    np.testing.assert_array_equal(lengths[seen], best[seen])
    assert success_rate(episodes) < 0.8
    for layout in ("medium", "spiral", "u"):
        assert success_rate(episodes_of(Greedy(), 32, layout=layout, distance=0.6)) < 0.3


def test_random_walks_seldom_arrive_far_away() -> None:
    assert success_rate(episodes_of(Smooth(), 64, distance=0.6)) < 0.1


@pytest.mark.parametrize("kind", [Scripted, Greedy])
def test_controllers_work_on_pictures_and_take_noise(kind: Any) -> None:
    env = make(ID, 4, layout="random")
    observations, info = env.reset(seed=0)
    rng, previous = np.random.default_rng(0), np.zeros((4, 2))
    exact = kind()(observations, info, previous, rng)
    noisy = kind(noise=0.3)(observations, info, previous, rng)
    assert exact.dtype == noisy.dtype == np.float32
    assert (np.linalg.norm(exact, axis=1) <= 1 + 1e-6).all()
    assert not np.array_equal(exact, noisy)


# --- Pictures.


def test_agent_and_walls_are_where_they_are() -> None:
    observations, quantities, rules = begun(layout="random", size=4, picture=36)
    # Four pixels to a block: the walls are the blocks themselves.
    blocks = rules["walls"].repeat(4, axis=1).repeat(4, axis=2) * 255
    np.testing.assert_array_equal(observations[:, 1], blocks)
    agent = observations[:, 0].astype(float)
    at = np.arange(36) + 0.5
    mass = agent.sum(axis=(1, 2))
    for axis, weights in enumerate((at[None, :], at[:, None])):
        centre = (agent * weights).sum(axis=(1, 2)) / mass / 4
        np.testing.assert_allclose(centre, quantities["position"][:, axis], atol=0.05)
    assert (agent.max(axis=(1, 2)) > 200).all()


def test_pixels_that_walls_cover_in_part_are_grey() -> None:
    """Five blocks on eight pixels: a pixel is 0.625 of a block."""
    observations, _, _ = begun(layout=RING, picture=8)
    edge = round(255 * (1 - 0.625) / 0.625)  # the second pixel: from 0.625 to 1.25
    np.testing.assert_array_equal(observations[0, 1][2], [255, edge, 0, 0, 0, 0, edge, 255])
    assert observations[0, 1][3, 3] == round(255 * (0.5 / 0.625) ** 2)


def test_goal_is_the_observation_at_the_goal() -> None:
    env = make(ID, 6, layout="random")
    observations, info = env.reset(seed=0)
    goal = info["goal"]
    np.testing.assert_array_equal(goal[:, 1], observations[:, 1])
    env._position[:] = env._goal_position
    np.testing.assert_array_equal(env._observe(), goal)
    vector, quantities, _ = begun(observe="vector")
    np.testing.assert_array_equal(vector, quantities["position"])


def test_frames_show_agent_goal_walls_and_paths() -> None:
    red = (220, 30, 30)
    path = np.array([[1.5, 3.5], [3.5, 3.5]])
    frame = draw_maze(maze.drawn(RING), (1.5, 1.5), (3.5, 1.5), 20, [(path, red)])
    assert frame.shape == (100, 100, 3)
    assert frame.dtype == np.uint8

    def colour(x: float, y: float) -> tuple[int, ...]:
        return tuple(int(value) for value in frame[int(y * 20), int(x * 20)])

    assert colour(1.5, 1.5) == (38, 98, 217)
    assert colour(3.5, 1.5) == (34, 160, 90)
    assert colour(2.5, 2.5) == colour(0.5, 3) == (58, 62, 74)
    assert colour(2.5, 1.5) == (246, 244, 239)
    assert colour(2.5, 3.5) == red
    with pytest.raises(ValueError, match="scale is 0"):
        draw_maze(maze.drawn(RING), None, None, 0)
    with pytest.raises(ValueError, match=r"walls have shape \(2, 3\): choose"):
        draw_maze(np.zeros((2, 3)), None, None)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        draw_maze(maze.drawn(RING), None, None, 8, [(np.zeros(3), red)])


def test_render_gives_one_frame_per_environment() -> None:
    env = make(ID, 3)
    env.reset(seed=0)
    frames = env.render()
    assert frames is not None
    assert [frame.shape for frame in frames] == [(252, 252, 3)] * 3
    assert not np.array_equal(frames[0], frames[1])
