"""Blocks of actions: the same world, decided about less often."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from env_contract import EnvContract
from gymnasium import spaces
from test_wrappers import Counter, env_of

from forethought.envs import EnvSpec, InBlocks, Random, Smooth, collect, make, options_of, spec_of

ROOMS = "forethought/TwoRooms-v0"


class TestRoomsInBlocks(EnvContract):
    id = ROOMS
    options = {"block": 3}  # noqa: RUF012 - as in the contract


class TestPendulumInBlocks(EnvContract):
    id = "Pendulum-v1"
    options = {"block": 2, "action_repeat": 2}  # noqa: RUF012
    has_goal = False


@pytest.mark.parametrize("id", [ROOMS, "Pendulum-v1"])
def test_a_block_is_its_actions_one_after_the_other(id: str) -> None:
    block, envs = 4, 3
    plain, blocks = make(id, envs, episode_limit=14), make(id, envs, episode_limit=14, block=block)
    assert options_of(id)[0]["block"] == 1
    size = plain.single_action_space.shape[0]
    assert blocks.single_action_space == spaces.Box(-1.0, 1.0, (block * size,), np.float32)
    one, many = spec_of(plain), spec_of(blocks)
    assert many.control_step_seconds == pytest.approx(block * one.control_step_seconds)
    assert (many.episode_limit, many.action_repeat, many.action_dim) == (4, block, block * size)
    assert EnvSpec.from_json(many.to_json()) == many
    rng = np.random.default_rng(0)
    seen, expected = blocks.reset(seed=[0, 1, 2])[0], plain.reset(seed=[0, 1, 2])[0]
    np.testing.assert_array_equal(seen, expected)
    for decision in range(4):
        actions = rng.uniform(-1, 1, (envs, block * size)).astype(np.float32)
        paid = np.zeros(envs)
        for part in np.split(actions, block, axis=1):
            *rest, info = plain.step(part)
            paid += rest[1]
        found = blocks.step(actions)
        np.testing.assert_array_equal(found[0], rest[0])
        np.testing.assert_allclose(found[1], paid)
        np.testing.assert_array_equal(found[2], rest[2])
        np.testing.assert_array_equal(found[3], rest[3])
        assert set(found[4]) == set(info)
        for name, value in info["quantities"].items():
            np.testing.assert_array_equal(found[4]["quantities"][name], value)
        assert (found[2] | found[3]).all() == (decision == 3)


@pytest.mark.parametrize("ends", [2, 99])
def test_an_end_ends_the_block_and_success_is_kept(ends: int) -> None:
    counter = Counter(ends=ends)
    env = env_of(counter, block=3, action_repeat=2)
    assert (env.control_step_seconds, env.episode_limit) == (3.0, 2)
    env.reset(seed=[0])
    looks = counter.looks
    actions = np.array([[0.1, 0.2, 0.3]], np.float32)
    _, rewards, terminated, _, info = env.step(actions)
    taken = [0.1, 0.1, 0.2, 0.2, 0.3, 0.3][: min(ends, 6)]
    assert np.concatenate(counter.taken) == pytest.approx(taken)
    assert rewards[0] == pytest.approx(sum(10.0**-t for t in range(1, len(taken) + 1)))
    assert terminated[0] == (ends == 2)
    assert info["success"][0] == (len(taken) > 4)
    assert counter.looks == looks + 1  # what is between is not looked at


def test_success_inside_of_a_block_pays_once_and_stays() -> None:
    """Straight at a goal in the same room: reached before the block is over."""
    env, plain = make(ROOMS, 20, task="within", block=30), make(ROOMS, 20, task="within")
    _, info = env.reset(seed=list(range(20)))
    plain.reset(seed=list(range(20)))
    way = info["quantities"]["goal_position"] - info["quantities"]["position"]
    action = way / np.linalg.norm(way, axis=1, keepdims=True)
    _, rewards, terminated, truncated, info = env.step(np.tile(action, 30).astype(np.float32))
    paid = sum(plain.step(action.astype(np.float32))[1] for _ in range(30))
    assert rewards.sum() > 15
    np.testing.assert_array_equal(rewards, paid)
    np.testing.assert_array_equal(info["success"], rewards > 0)
    np.testing.assert_array_equal(terminated, rewards > 0)
    assert not truncated.any()


def test_smooth_actions_go_on_from_block_to_block() -> None:
    """One control step after the other as without blocks, from the same draws."""
    plain, blocks = Smooth(), InBlocks(5, Smooth())
    rng, other = np.random.default_rng(3), np.random.default_rng(3)
    previous, block = np.zeros((4, 2), np.float32), np.zeros((4, 10), np.float32)
    steps, decisions = [], []
    for _ in range(20):
        previous = plain(None, {}, previous, rng)
        steps.append(previous)
    for _ in range(4):
        block = blocks(None, {}, block, other)
        decisions.append(block)
    np.testing.assert_array_equal(
        np.concatenate(decisions, 1), np.concatenate(steps, 1).astype(np.float32)
    )
    assert blocks.name == "smooth"


def test_episodes_are_collected_in_blocks() -> None:
    env = make(ROOMS, 2, block=5)
    (episode, *_) = collect(env, InBlocks(5), 2, first_seed=0, generator=np.random.default_rng(0))
    assert episode.actions.shape[1] == 10
    assert episode.length == 12
    step = np.linalg.norm(np.diff(episode.quantities["position"], axis=0), axis=1)
    assert step.max() > 2.5  # further than one action goes


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: make(ROOMS, block=0), "block is 0: give an integer of at least 1"),
        (lambda: make("Pendulum-v1", block=True), "block is True: give an integer"),
        (lambda: make("CartPole-v1", block=2), "block is 2, but actions are Discrete(2)"),
        (lambda: InBlocks(0), "block is 0"),
        (
            lambda: InBlocks(3).for_space(spaces.Box(-1, 1, (4,))),
            "policy smooth acts in blocks of 3, but actions are",
        ),
        (
            lambda: InBlocks(3, Random()).for_space(spaces.Discrete(3)),
            "policy random acts in blocks of 3",
        ),
    ],
)
def test_refused(act: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        act()


def test_a_wrong_block_is_refused_before_any_of_it_is_carried_out() -> None:
    env = make(ROOMS, 2, block=2)
    env.reset(seed=[0, 1])
    before = env.step(np.zeros((2, 4)))[4]["quantities"]["position"]
    with pytest.raises(ValueError, match=r"of shape \(2, 2\) .* give finite numbers \(2, 4\)"):
        env.step(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="are not finite"):
        env.step(np.array([[1, 1, np.nan, 0], [0, 0, 0, 0]]))
    after = env.step(np.zeros((2, 4)))[4]["quantities"]["position"]
    np.testing.assert_array_equal(before, after)
