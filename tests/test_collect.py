"""Collection: which episodes come out, in which order, and what the policies promise."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from env_contract import assert_same

import forethought
from forethought.collecting import UNTIL
from forethought.envs import (
    HELD_OUT_SEED,
    Dataset,
    Episode,
    Greedy,
    Policy,
    Random,
    Scripted,
    Smooth,
    collect,
    make,
    resumable,
)


def gather(num_envs: int, episodes: int, policy: Policy, first_seed: int = 100) -> list[Episode]:
    env = make("forethought/TwoRooms-v0", num_envs, layout="random")
    rng = np.random.default_rng(0)
    return list(collect(env, policy, episodes, first_seed=first_seed, generator=rng))


@pytest.mark.parametrize("num_envs", [1, 3, 20])
def test_episodes_come_in_the_order_of_their_seeds_whatever_ends_first(num_envs: int) -> None:
    episodes = gather(num_envs, 11, Scripted())
    assert [item.seed for item in episodes] == list(range(100, 111))
    assert len({item.length for item in episodes}) > 3  # they do not end in order
    # Without noise an episode is a function of its seed, whatever it shared a batch with.
    for one, other in zip(episodes, gather(4, 11, Scripted()), strict=True):
        assert_same(vars(one), vars(other))


def test_an_episode_is_what_stepping_by_hand_gives() -> None:
    item = gather(3, 7, Random())[5]
    env = make("forethought/TwoRooms-v0", 1, layout="random")
    observations, info = env.reset(seed=[105])
    np.testing.assert_array_equal(item.goal, info["goal"][0])
    for t in range(item.length):
        np.testing.assert_array_equal(item.observations[t], observations[0])
        np.testing.assert_array_equal(
            item.quantities["position"][t], info["quantities"]["position"][0]
        )
        observations, rewards, terminated, truncated, info = env.step(item.actions[t][None])
        assert item.rewards[t] == rewards[0]
        assert (terminated | truncated)[0] == (t == item.length - 1)
    np.testing.assert_array_equal(item.observations[-1], observations[0])
    assert (item.terminated, item.truncated) == (bool(terminated[0]), bool(truncated[0]))
    assert item.success == bool(info["success"][0])
    assert (item.env_id, item.policy) == ("forethought/TwoRooms-v0", "random")


def test_same_generator_same_episodes() -> None:
    one, two = gather(4, 6, Smooth()), gather(4, 6, Smooth())
    for first, second in zip(one, two, strict=True):
        assert_same(vars(first), vars(second))


def test_a_policy_hears_its_previous_action_and_none_when_an_episode_begins() -> None:
    """Actions count the steps of the episode, which only previous actions can tell."""

    class Counting(Policy):
        def __call__(
            self, observations: Any, info: Any, previous_actions: Any, generator: Any
        ) -> np.ndarray:
            return (previous_actions + 0.01).astype(np.float32)

    env = make("forethought/TwoRooms-v0", 3, episode_limit=9)
    rng = np.random.default_rng(0)
    for item in collect(env, Counting(), 8, first_seed=0, generator=rng):
        counted = 0.01 * np.arange(1, item.length + 1)
        np.testing.assert_allclose(item.actions[:, 0], counted, rtol=1e-5)


def test_progress_counts_up_to_the_number_asked_for() -> None:
    env = make("forethought/TwoRooms-v0", 3)
    seen: list[int] = []
    rng = np.random.default_rng(0)
    stream = collect(env, Scripted(), 7, first_seed=0, generator=rng, on_progress=seen.append)
    assert len(list(stream)) == 7
    assert seen == sorted(seen)
    assert seen[-1] == 7


def test_other_environments_can_be_collected_from() -> None:
    env = make("Pendulum-v1", 2, episode_limit=5)
    rng = np.random.default_rng(0)
    episodes = list(collect(env, Random(), 5, first_seed=0, generator=rng))
    assert [item.length for item in episodes] == [5] * 5
    assert all(item.success is None and item.goal is None for item in episodes)
    assert all(item.truncated for item in episodes)
    for item in episodes:
        np.testing.assert_array_equal(item.quantities["observation"], item.observations)
    wrapped = gymnasium.wrappers.vector.RescaleAction(env, -2.0, 2.0)
    with pytest.raises(ValueError, match="cannot be collected from"):
        collect(wrapped, Random(), 3, first_seed=0, generator=rng)


@pytest.mark.parametrize("policy", [Random(), Random(hold=0.5), Smooth()])
def test_discrete_actions_are_one_integer_column(policy: Policy) -> None:
    env = make("CartPole-v1", 3)
    rng = np.random.default_rng(0)
    episodes = list(collect(env, policy, 7, first_seed=0, generator=rng))
    assert [item.seed for item in episodes] == list(range(7))
    assert {item.policy for item in episodes} == {policy.name}
    for item in episodes:
        assert item.actions.dtype == np.int64
        assert item.actions.shape == (item.length, 1)
        assert item.terminated
        observations, _ = env.reset(seed=[item.seed] * 3)
        for t in range(item.length):
            np.testing.assert_array_equal(item.observations[t], observations[0])
            observations, *_ = env.step(np.repeat(item.actions[t], 3))
    taken = np.concatenate([item.actions for item in episodes])
    assert set(taken.ravel()) == {0, 1}


def test_dictionaries_of_observations_are_collected() -> None:
    env = make("FrozenLake-v1", 2, frame_stack=2, episode_limit=6)
    arrays, dictionaries = (
        list(collect(item, Random(), 5, first_seed=3, generator=np.random.default_rng(0)))
        for item in (env, DictObservations(env))
    )
    for plain, named in zip(arrays, dictionaries, strict=True):
        assert set(named.observations) == {"one", "other"}
        np.testing.assert_array_equal(named.observations["one"], plain.observations)
        np.testing.assert_array_equal(named.observations["other"], -plain.observations)
        np.testing.assert_array_equal(named.actions, plain.actions)


class DictObservations(gymnasium.vector.VectorObservationWrapper):
    """Two entries instead of an array."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        space = env.single_observation_space
        self.single_observation_space = gymnasium.spaces.Dict({"one": space, "other": space})

    def observations(self, observations: Any) -> dict[str, np.ndarray]:
        return {"one": observations, "other": -observations}


def test_rows_without_an_episode_are_left_alone() -> None:
    """What is not recorded is not simulated: 5 episodes in 4 rows are 5 x 9 steps."""
    env = make("Pendulum-v1", 4, episode_limit=9)
    steps = 0
    for simulator in env.simulators:
        advance = simulator.advance

        def counted(action: Any, advance: Any = advance) -> Any:
            nonlocal steps
            steps += 1
            return advance(action)

        simulator.advance = counted
    rng = np.random.default_rng(0)
    assert len(list(collect(env, Random(), 5, first_seed=0, generator=rng))) == 5
    assert steps == 5 * 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_seed": HELD_OUT_SEED - 4}, "held-out seeds"),
        ({"first_seed": HELD_OUT_SEED}, "held-out seeds"),
        ({"first_seed": -1}, "first_seed is -1"),
        ({"episodes": 0}, "episodes is 0"),
    ],
)
def test_collect_refuses_before_work_starts(changes: dict[str, Any], message: str) -> None:
    env = make("forethought/TwoRooms-v0", 2)
    fields = {"episodes": 5, "first_seed": 0, "generator": np.random.default_rng(0)}
    with pytest.raises(ValueError, match=message):
        collect(env, Random(), **{**fields, **changes})


def test_last_seed_that_is_not_held_out_is_allowed() -> None:
    last = gather(2, 2, Scripted(), first_seed=HELD_OUT_SEED - 2)[-1]
    assert last.seed == HELD_OUT_SEED - 1


# --- Policies.


def run(policy: Policy, steps: int = 400, rows: int = 50) -> np.ndarray:
    """Actions `(T, N, 2)` without an environment."""
    rng, actions = np.random.default_rng(0), np.zeros((rows, 2), np.float32)
    taken = []
    for _ in range(steps):
        actions = policy(np.zeros((rows, 1)), {}, actions, rng)
        taken.append(actions)
    return np.stack(taken)


@pytest.mark.parametrize("policy", [Random(), Random(hold=0.8), Smooth(), Smooth(0.5, 3.0)])
def test_actions_are_bounded_float32(policy: Policy) -> None:
    actions = run(policy, 30)
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 1.0


def test_random_is_uniform_and_holds_as_often_as_it_says() -> None:
    free, held = run(Random()), run(Random(hold=0.8))
    np.testing.assert_allclose(free.std(), 1 / np.sqrt(3), rtol=0.02)
    repeats = (held[1:] == held[:-1]).all(axis=2).mean()
    np.testing.assert_allclose(repeats, 0.8, atol=0.02)
    assert not (free[1:] == free[:-1]).any()
    assert (held[0] != 0).all()  # at the beginning there is nothing to hold


@pytest.mark.parametrize(("policy", "hold"), [(Random(), 0.0), (Random(0.6), 0.6), (Smooth(), 0.8)])
def test_discrete_policies_are_uniform_and_hold(policy: Policy, hold: float) -> None:
    acting, rng = policy.for_space(gymnasium.spaces.Discrete(4)), np.random.default_rng(0)
    actions, taken = np.full((50, 1), -1), []
    for _ in range(400):
        actions = acting(np.zeros((50, 1)), {}, actions, rng)
        taken.append(actions)
    assert taken[0].dtype == np.int64
    counts = np.bincount(np.concatenate(taken).ravel(), minlength=4)
    np.testing.assert_allclose(counts / counts.sum(), 0.25, atol=0.02)
    repeats = np.mean([(one == other).mean() for one, other in itertools.pairwise(taken)])
    np.testing.assert_allclose(repeats, hold + (1 - hold) / 4, atol=0.02)
    assert acting.name == policy.name


def test_policies_of_two_rooms_have_no_discrete_actions() -> None:
    with pytest.raises(ValueError, match="use Random"):
        Scripted().for_space(gymnasium.spaces.Discrete(4))
    box = gymnasium.spaces.Box(-1, 1, (2,))
    assert all(policy.for_space(box) is policy for policy in (Random(), Smooth(), Scripted()))


def test_smooth_keeps_its_spread_and_correlation() -> None:
    actions = run(Smooth(correlation=0.9, scale=0.3))  # too small a scale to be clipped often
    np.testing.assert_allclose(actions[0].std(), 0.3, rtol=0.25)
    np.testing.assert_allclose(actions[200:].std(), 0.3, rtol=0.05)
    centred = actions[50:] / actions[50:].std()
    np.testing.assert_allclose((centred[1:] * centred[:-1]).mean(), 0.9, atol=0.02)


@pytest.mark.parametrize("kind", [Scripted, Greedy])
def test_noise_changes_the_controllers(kind: Any) -> None:
    env = make("forethought/TwoRooms-v0", 5)
    observations, info = env.reset(seed=0)
    previous = np.zeros((5, 2))
    rng = np.random.default_rng(0)
    exact = kind()(observations, info, previous, rng)
    noisy = kind(noise=0.3)(observations, info, previous, rng)
    assert not np.array_equal(exact, noisy)
    assert np.abs(noisy).max() <= 1.0
    with pytest.raises(ValueError, match="Two-Rooms only"):
        kind()(np.zeros((5, 4)), info, previous, rng)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (Random, {"hold": 1.0}, "hold is 1.0"),
        (Smooth, {"correlation": 1.0}, "correlation is 1.0"),
        (Smooth, {"scale": 0.0}, "scale is 0.0"),
        (Scripted, {"noise": -0.1}, "noise is -0.1"),
        (Greedy, {"noise": float("nan")}, "noise is nan"),
    ],
)
def test_policies_refuse(kind: Any, fields: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**fields)


def test_policies_are_named_and_interchangeable() -> None:
    names = [policy.name for policy in (Random(), Smooth(), Scripted(), Greedy())]
    assert names == ["random", "smooth", "scripted", "greedy"]
    assert all(issubclass(kind, Policy) for kind in (Random, Smooth, Scripted, Greedy))


# --- The verb: a number of decisions, and a kill in between.


class KilledError(BaseException):
    """As a SIGKILL, nobody catches it."""


ROOMS = ["--env=forethought/TwoRooms-v0", "--env-options.episode-limit=6"]
WANTED = ["--collection.decisions=60", "--collection.num-envs=2"]


def collect_by_verb(folder: Path, *words: str) -> int:
    steps: int = forethought.call("collect", [str(folder), *ROOMS, *words])
    return steps


def killed_at_shard(monkeypatch: pytest.MonkeyPatch, number: int, folder: Path) -> None:
    """Collect until a shard is to be written, and is not."""
    write, times = resumable.write_shard, itertools.count(1)

    def killed(*given: Any) -> Any:
        if next(times) == number:
            raise KilledError
        return write(*given)

    with monkeypatch.context() as patch:
        patch.setattr(resumable, "write_shard", killed)
        with pytest.raises(KilledError):
            collect_by_verb(folder, *WANTED)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumable, "default_shard", lambda *_: 2)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("shard", [1, 2, 4])
@pytest.mark.parametrize("before", [False, True])
def test_decisions_after_a_kill_end_where_they_were_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: int, before: bool
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut) if before else ():
        collect_by_verb(folder, "--collection.episodes=4")
    wanted = collect_by_verb(whole, *WANTED)
    killed_at_shard(monkeypatch, shard, cut)
    assert collect_by_verb(cut, *WANTED) == wanted
    one, other = Dataset.open(whole), Dataset.open(cut)
    for name in ("seed", "actions", "observations"):
        np.testing.assert_array_equal(one.arrays(name), other.arrays(name))
    assert {path.name for path in whole.iterdir()} == {path.name for path in cut.iterdir()}
    assert collect_by_verb(cut, *WANTED) >= wanted + 60  # not cut: as many again


@pytest.mark.usefixtures("small_shards")
def test_decisions_that_were_all_there_at_the_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    with monkeypatch.context() as patch:
        unlink = Path.unlink

        def noted(path: Path, missing_ok: bool = False) -> None:
            if path.name == UNTIL:
                kept.append(path.read_text())
                raise KilledError
            unlink(path, missing_ok)

        patch.setattr(Path, "unlink", noted)
        with pytest.raises(KilledError):
            collect_by_verb(tmp_path, *WANTED)
    steps = Dataset.open(tmp_path).steps
    assert json.loads(kept[0])["begin"] == 0
    assert collect_by_verb(tmp_path, *WANTED) == steps
    assert not (tmp_path / UNTIL).exists()


@pytest.mark.usefixtures("small_shards")
def test_another_collection_than_the_one_that_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at_shard(monkeypatch, 1, tmp_path)  # nothing of it is there: no trace
    assert collect_by_verb(tmp_path, "--collection.decisions=12", "--seed=5") >= 12
    before = Dataset.open(tmp_path).episodes
    killed_at_shard(monkeypatch, 3, tmp_path)
    for words in (["--collection.decisions=61"], ["--seed=1"], ["--collection.episodes=3"]):
        with pytest.raises(ValueError, match=rf"interrupted.* was .*, is .*delete {UNTIL} and"):
            collect_by_verb(tmp_path, *WANTED, *words)
    assert Dataset.open(tmp_path).episodes == before + 4
    (tmp_path / UNTIL).write_text("{")
    with pytest.raises(ValueError, match=f"{UNTIL} is damaged"):
        collect_by_verb(tmp_path, *WANTED)


def test_a_collection_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with pytest.raises(ValueError, match="unknown"):
        collect_by_verb(folder, *WANTED, "--env-options.no-such=1")
    assert not folder.exists()
    collect_by_verb(folder, *WANTED)
    with pytest.raises(ValueError, match="use another folder"):
        collect_by_verb(folder, *WANTED, "--env-options.episode-limit=7")
    assert not (folder / UNTIL).exists()
