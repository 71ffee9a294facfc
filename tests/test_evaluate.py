"""Evaluation: intervals against published numbers, one outcome per seed, honest clocks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from forethought import envs
from forethought.agent import (
    Controller,
    Outcome,
    PolicyController,
    bootstrap_mean,
    held_out_seeds,
    run_episodes,
    summarise,
    time_decisions,
    violation_rate,
    wilson,
)
from forethought.agent.loop import select_info

SEEDS = list(range(40, 56))
BOX = spaces.Box(-1, 1, (2,), np.float32)


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [
        # Newcombe (Statistics in Medicine 17, 1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # Brown, Cai and DasGupta (2001) and every textbook since.
        (0, 10, 0.0000, 0.2775),
        (10, 10, 0.7225, 1.0000),
        (50, 100, 0.4038, 0.5962),
    ],
)
def test_wilson_against_published_numbers(
    successes: int, episodes: int, low: float, high: float
) -> None:
    assert wilson(successes, episodes) == pytest.approx((low, high), abs=6e-5)


def test_wilson_solves_its_equation() -> None:
    """Its ends are the p at which the observed rate is z standard errors away."""
    for successes, episodes in ((3, 17), (90, 100), (1, 2)):
        for p in wilson(successes, episodes, z=1.3):
            distance = abs(successes / episodes - p)
            assert distance == pytest.approx(1.3 * math.sqrt(p * (1 - p) / episodes))


def test_intervals_need_episodes() -> None:
    with pytest.raises(ValueError, match="at least one episode"):
        wilson(0, 0)
    with pytest.raises(ValueError, match="at least one episode"):
        bootstrap_mean([])
    with pytest.raises(ValueError, match="at least one episode"):
        bootstrap_mean([[1.0], []])


def test_the_bootstrap_covers_the_mean() -> None:
    rng = np.random.default_rng(0)
    trials = 120
    hits = 0
    for trial in range(trials):
        low, high = bootstrap_mean([rng.normal(3.0, 2.0, 40)], draws=200, seed=trial)
        hits += low <= 3.0 <= high
    assert 0.86 <= hits / trials <= 0.99


def test_the_bootstrap_resamples_groups_first() -> None:
    """Where training seeds differ and episodes do not, episodes alone would say: no doubt."""
    low, high = bootstrap_mean([[0.0] * 50, [1.0] * 50, [0.0] * 50, [1.0] * 50])
    assert (low, high) == (0.0, 1.0)
    narrow = bootstrap_mean([[0.0, 1.0] * 100])
    assert 0.4 < narrow[0] < 0.5 < narrow[1] < 0.6
    assert bootstrap_mean([[2.0, 2.0], [2.0]]) == (2.0, 2.0)


def test_the_bootstrap_repeats_itself() -> None:
    data = [np.random.default_rng(0).normal(size=30), [4.0, 4.0]]
    assert bootstrap_mean(data, seed=3) == bootstrap_mean(data, seed=3)
    assert bootstrap_mean(data, seed=3) != bootstrap_mean(data, seed=4)


def test_held_out_seeds_never_meet_collection_nor_each_other() -> None:
    blocks = [held_out_seeds(10_000, seed) for seed in (0, 1, 2, 999)]
    together = [seed for block in blocks for seed in block]
    assert min(together) >= envs.HELD_OUT_SEED == 10**6
    assert len(set(together)) == len(together) == 40_000
    assert held_out_seeds(3) == [10**6, 10**6 + 1, 10**6 + 2]


@pytest.mark.parametrize("episodes", [0, -1, 10_001])
def test_a_wrong_number_of_episodes_is_refused(episodes: int) -> None:
    with pytest.raises(ValueError, match=f"episodes is {episodes}"):
        held_out_seeds(episodes)


# --- episodes


def rooms(num_envs: int, **options: Any) -> Any:
    return envs.make("forethought/TwoRooms-v0", num_envs, **{"task": "between"} | options)


def scripted(noise: float = 0.0) -> PolicyController:
    return PolicyController(envs.Scripted(noise=noise), BOX, np.random.default_rng(0))


def core(outcomes: list[Outcome]) -> list[tuple[Any, ...]]:
    return [(o.seed, o.success, o.return_, o.decisions) for o in outcomes]


def test_one_outcome_per_seed_in_order_whatever_ran_beside_it() -> None:
    alone = run_episodes(rooms(1), scripted(), SEEDS)
    assert [outcome.seed for outcome in alone] == SEEDS
    assert len({outcome.decisions for outcome in alone}) > 4
    assert all(outcome.success for outcome in alone)
    for num_envs in (7, 16):
        assert core(run_episodes(rooms(num_envs), scripted(), SEEDS)) == core(alone)


def test_the_order_of_the_seeds_is_kept() -> None:
    forwards = core(run_episodes(rooms(4), scripted(), SEEDS))
    assert core(run_episodes(rooms(4), scripted(), SEEDS[::-1])) == forwards[::-1]


class Watching(Controller):
    """Goes by the script; carries which seeds it acts for and counts its decisions for each."""

    def __init__(self) -> None:
        self.decisions: dict[tuple[float, ...], int] = {}

    def start(self, observation: np.ndarray, info: Mapping[str, Any]) -> Any:
        return np.asarray(info["quantities"]["goal_position"]).copy()

    def act(
        self, carried: Any, observation: np.ndarray, info: Mapping[str, Any]
    ) -> tuple[np.ndarray, Any]:
        np.testing.assert_array_equal(carried, info["quantities"]["goal_position"])
        assert len(observation) == len(carried)
        for goal in carried:
            self.decisions[tuple(goal)] = self.decisions.get(tuple(goal), 0) + 1
        rng = np.random.default_rng(0)
        return envs.Scripted()(observation, info, np.zeros((len(carried), 2)), rng), carried

    def select(self, carried: Any, index: np.ndarray) -> Any:
        return carried[index]


def test_finished_episodes_get_no_further_decision() -> None:
    controller = Watching()
    outcomes = run_episodes(rooms(5), controller, SEEDS)
    assert len(controller.decisions) == len(SEEDS)
    assert list(controller.decisions.values()) == [outcome.decisions for outcome in outcomes]
    assert [len(outcome.decision_seconds) for outcome in outcomes] == [
        o.decisions for o in outcomes
    ]


def test_success_is_the_word_of_the_environment() -> None:
    """With `last`, nothing ever terminates; with `touch` and no time, nothing succeeds."""
    outcomes = run_episodes(rooms(8, success="last", episode_limit=40), scripted(), SEEDS[:8])
    assert all(outcome.success for outcome in outcomes)
    assert {outcome.decisions for outcome in outcomes} == {40}
    outcomes = run_episodes(rooms(8, episode_limit=2), scripted(), SEEDS[:8])
    assert not any(outcome.success for outcome in outcomes)
    assert {outcome.decisions for outcome in outcomes} == {2}


def test_termination_without_success_is_no_success() -> None:
    env = rooms(4)
    step = env.step

    def fatal(actions: np.ndarray) -> Any:
        observation, reward, terminated, truncated, info = step(actions)
        return observation, reward - 1.5, np.ones_like(terminated), truncated, info

    env.step = fatal
    outcomes = run_episodes(env, scripted(), SEEDS[:4])
    assert core(outcomes) == [(seed, False, -1.5, 1) for seed in SEEDS[:4]]


def test_without_a_criterion_there_is_no_success() -> None:
    env = envs.make("MountainCarContinuous-v0", 2, max_episode_steps=3)
    policy = PolicyController(envs.Random(), env.single_action_space, np.random.default_rng(0))
    outcomes = run_episodes(env, policy, [0, 1, 2])
    assert [(o.success, o.decisions) for o in outcomes] == [(None, 3)] * 3
    assert all(outcome.return_ < 0 for outcome in outcomes)
    row = summarise(outcomes)
    assert set(row) == {"episodes", "return_mean", "ci95_low", "ci95_high"}
    assert row["return_mean"] == pytest.approx(np.mean([o.return_ for o in outcomes]))


def test_on_step_sees_what_the_decision_was_made_from() -> None:
    seen: list[tuple[int, int]] = []
    finished: list[int] = []

    def on_step(running: np.ndarray, observation: np.ndarray, info: Any, carried: Any) -> None:
        assert len(running) == len(observation) == len(info["quantities"]["position"])
        seen.extend((int(index), len(running)) for index in running)

    outcomes = run_episodes(
        rooms(4), scripted(), SEEDS[:4], on_step=on_step, on_progress=finished.append
    )
    counted = [sum(index == row for index, _ in seen) for row in range(4)]
    assert counted == [outcome.decisions for outcome in outcomes]
    assert sum(finished) == 4


def test_select_info_takes_rows_of_nested_arrays() -> None:
    info = {"a": np.arange(4), "deep": {"b": np.eye(4)}, "name": "x"}
    chosen = select_info(info, np.array([2, 0]))
    assert chosen["a"].tolist() == [2, 0]
    assert chosen["deep"]["b"].tolist() == np.eye(4)[[2, 0]].tolist()
    assert chosen["name"] == "x"


def test_a_summary_counts_successes() -> None:
    outcomes = [Outcome(seed, seed < 3, 0.0, 1) for seed in range(10)]
    low, high = wilson(3, 10)
    expected = {"episodes": 10, "success_rate": 0.3, "ci95_low": low, "ci95_high": high}
    assert summarise(outcomes) == expected


# --- clocks


class Slow(PolicyController):
    def act(self, *arguments: Any) -> Any:
        import time

        time.sleep(0.002)
        return super().act(*arguments)


def test_decisions_are_timed_with_one_environment_only() -> None:
    with pytest.raises(ValueError, match="1 environment, not 2"):
        time_decisions(rooms(2), scripted(), SEEDS, 10)


def test_decisions_are_timed() -> None:
    slow = Slow(envs.Random(), BOX, np.random.default_rng(0))
    timing = time_decisions(rooms(1, episode_limit=5), slow, SEEDS, 12)
    assert 2.0 <= timing.ms_per_decision < 1000.0
    assert timing.p95_ms >= 2.0


def test_timing_stops_when_it_has_enough() -> None:
    controller = Watching()
    time_decisions(rooms(1, episode_limit=5), controller, SEEDS, 12)
    assert len(controller.decisions) == 4  # one to warm up, then 5 + 5 + 5 decisions


# --- walls


def test_violations_on_known_paths() -> None:
    def crosses(start: np.ndarray, end: np.ndarray) -> np.ndarray:
        return np.asarray((start[:, 0] < 0) != (end[:, 0] < 0))

    path = np.zeros((4, 4, 2))
    path[0, :, 0] = [-3, -2, -1, -0.5]  # stays
    path[1, :, 0] = [-1, 1, 2, 3]  # through at the first step
    path[2, :, 0] = [-2, -1, -1, 1]  # through at the last
    path[3, :, 0] = [-1, 1, -1, 1]  # thrice, and still one path
    assert violation_rate(path, crosses) == 0.75
    assert violation_rate(path[:1], crosses) == 0.0


def test_violations_of_the_wall_of_two_rooms() -> None:
    rooms_ = envs.ROOMS_32
    wall = np.full(2, rooms_.fixed_wall)
    door = np.full(2, rooms_.fixed_door)

    def crosses(start: np.ndarray, end: np.ndarray) -> np.ndarray:
        return np.asarray(envs.crosses_wall(rooms_, wall, door, start, end))

    x = np.array([rooms_.fixed_wall - 3.0, rooms_.fixed_wall + 3.0])
    through_door = np.stack([x, np.full(2, rooms_.fixed_door)], -1)
    beside = rooms_.fixed_door + 2 * rooms_.door_half_height + 2
    through_wall = np.stack([x, np.full(2, beside)], -1)
    assert violation_rate(np.stack([through_door, through_wall]), crosses) == 0.5
