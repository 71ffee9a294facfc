"""The contract of an environment, as tests that every environment's test class inherits."""

from __future__ import annotations

import json
import warnings
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from forethought.envs import EnvSpec, make, spec_of

N = 3


class EnvContract:
    """Inherit, and set `id`; `options` are passed to `make`.

    Attributes:
        id: Id for `make`.
        options: Options of the environment under test.
        has_goal: Whether infos must hold goal and success.
    """

    id: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    has_goal: ClassVar[bool] = True
    kept: ClassVar[dict[Any, Any]] = {}

    def make(self, num_envs: int = N, **more: Any) -> Any:
        """New environments."""
        return make(self.id, num_envs, **{**self.options, **more})

    def env(self) -> Any:
        """`N` environments that tests share: making some takes long, and every test resets."""
        if type(self) not in self.kept:
            self.kept[type(self)] = self.make()
        return self.kept[type(self)]

    def play(self, env: Any, seeds: list[int], steps: int = 6) -> list[Any]:
        """Everything that comes out; actions of a row depend on its seed alone."""
        rows = [np.random.default_rng([7, seed]) for seed in seeds]
        observations, info = env.reset(seed=list(seeds))
        seen = [(observations, info)]
        for _ in range(steps):
            actions = np.stack([self.action(env, row) for row in rows])
            observations, rewards, terminated, truncated, info = env.step(actions)
            seen.append((observations, rewards, terminated, truncated, info))
        return seen

    def action(self, env: Any, generator: np.random.Generator) -> np.ndarray:
        space = env.single_action_space
        if isinstance(space, spaces.Discrete):
            return generator.integers(space.n)
        return generator.uniform(space.low, space.high).astype(space.dtype)

    def test_spaces_shapes_and_dtypes(self) -> None:
        env = self.env()
        assert env.num_envs == N
        assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
        assert env.action_space.shape[0] == N
        action_space = env.single_action_space
        if isinstance(action_space, spaces.Discrete):
            assert action_space.start == 0
        else:
            assert action_space == spaces.Box(-1.0, 1.0, action_space.shape, np.float32)
        seen = self.play(env, [1, 2, 3])
        for observations in [item[0] for item in seen]:
            self.check_observation(env, observations)
        for _, rewards, terminated, truncated, info in seen[1:]:
            assert rewards.shape == terminated.shape == truncated.shape == (N,)
            assert rewards.dtype.kind == "f"
            assert terminated.dtype == truncated.dtype == np.bool_
            assert np.isfinite(rewards).all()
            self.check_info(env, info)

    def check_observation(self, env: Any, observations: Any) -> None:
        assert env.observation_space.contains(observations)
        single = env.single_observation_space
        if not isinstance(single, spaces.Dict):
            single, observations = {"": single}, {"": observations}
        assert list(observations) == list(single)
        for name, space in single.items():
            assert observations[name].shape == (N, *space.shape)
            assert observations[name].dtype == space.dtype

    def check_info(self, env: Any, info: dict[str, Any]) -> None:
        if self.has_goal:
            self.check_observation(env, info["goal"])
            assert info["success"].shape == (N,)
            assert info["success"].dtype == np.bool_
        assert info["quantities"]
        for quantity in info["quantities"].values():
            assert quantity.dtype.kind == "f"
            assert quantity.ndim == 2
            assert len(quantity) == N

    def test_same_seed_same_episode(self) -> None:
        env = self.env()
        first = self.play(env, [5, 6, 7])
        assert_same(first, self.play(env, [5, 6, 7]))
        assert_same(first, self.play(self.make(), [5, 6, 7]))

    def test_other_seed_other_episode(self) -> None:
        env = self.env()
        first, other = self.play(env, [5, 6, 7], 0), self.play(env, [8, 9, 10], 0)
        assert not same(first[0][0], other[0][0])

    def test_an_int_seed_counts_up(self) -> None:
        env = self.env()
        counted, _ = env.reset(seed=20)
        listed, _ = env.reset(seed=[20, 21, 22])
        assert_same(counted, listed)

    def test_rows_do_not_depend_on_the_batch(self) -> None:
        together = self.play(self.env(), [11, 12, 13])
        alone = self.play(self.make(1), [12])
        assert_same(rows_of(together, [1]), alone)

    def test_what_was_returned_is_not_written_to_again(self) -> None:
        env = self.env()
        observations, info = env.reset(seed=[1, 2, 3])
        kept = copied((observations, info))
        env.step(np.stack([self.action(env, np.random.default_rng(0))] * N))
        env.reset(seed=[4, 5, 6])
        assert_same(kept, (observations, info))

    def test_reset_mask_resets_only_the_masked(self) -> None:
        env, other = self.env(), self.make()
        before = self.play(env, [1, 2, 3])[-1]
        self.play(other, [1, 2, 3])
        mask = np.array([False, True, False])
        observations, info = env.reset(seed=[90, 91, 92], options={"reset_mask": mask})
        fresh, fresh_info = self.make(1).reset(seed=[91])
        assert_same(rows_of(observations, [1]), fresh)
        assert_same(rows_of(observations, [0, 2]), rows_of(before[0], [0, 2]))
        assert_same(rows_of(info["quantities"], [1]), fresh_info["quantities"])
        # The rows that were left alone go on as if nothing had happened.
        actions = np.stack([self.action(env, np.random.default_rng(row)) for row in range(N)])
        ours, theirs = env.step(actions)[0], other.step(actions)[0]
        assert_same(rows_of(ours, [0, 2]), rows_of(theirs, [0, 2]))

    def test_time_limit_truncates(self) -> None:
        env = self.make(episode_limit=4 * spec_of(self.env()).action_repeat)
        assert spec_of(env).episode_limit == 4
        env.reset(seed=[1, 2, 3])
        still = np.zeros(env.action_space.shape, env.action_space.dtype)
        ends = [env.step(still)[2:4] for _ in range(4)]
        terminated = np.stack([end[0] for end in ends])
        truncated = np.stack([end[1] for end in ends])
        assert not truncated[:3].any()
        np.testing.assert_array_equal(truncated[3], ~terminated[3])
        assert truncated[3].any()
        # Who has ended stays there and is paid nothing.
        after = [env.step(still) for _ in range(2)]
        assert not after[0][1].any()
        assert_same(after[0], after[1])

    def test_spec_survives_json(self) -> None:
        env = self.env()
        spec = spec_of(env)
        text = json.dumps(spec.to_json(), allow_nan=False)
        assert EnvSpec.from_json(json.loads(text)) == spec
        assert spec.id == self.id
        assert spec.options == self.options
        assert spec.observation_space == env.single_observation_space
        assert spec.action_space == env.single_action_space

    def test_unknown_option_is_refused(self) -> None:
        with pytest.raises(ValueError, match="nonsense"):
            self.make(nonsense=1)


class RegisteredEnvContract(EnvContract):
    """Of environments that are registered with Gymnasium as they are: ours.

    Attributes:
        advice: Warnings of Gymnasium's checker that do not apply.
    """

    advice: ClassVar[tuple[str, ...]] = ("infinity",)  # a state may be without bounds

    def test_gymnasium_finds_nothing_wrong_with_the_single_environment(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for advice in self.advice:
                warnings.filterwarnings("ignore", message=f"(?s).*{advice}")
            env = gymnasium.make(self.id, disable_env_checker=True, **self.options)
            check_env(env.unwrapped, skip_render_check=True)

    def test_the_single_environment_is_a_row_of_the_vector_environment(self) -> None:
        single = gymnasium.make(self.id, **self.options)
        vector = self.make(1)
        observation, _ = single.reset(seed=3)
        observations, _ = vector.reset(seed=[3])
        np.testing.assert_array_equal(observation, observations[0])
        action = self.action(vector, np.random.default_rng(0))
        ours, theirs = single.step(action), vector.step(np.asarray(action)[None])
        for mine, batched in zip(ours[:4], theirs[:4], strict=True):
            np.testing.assert_array_equal(mine, batched[0])


def same(first: Any, second: Any) -> bool:
    """Whether every array in nested records is the same."""
    try:
        assert_same(first, second)
    except AssertionError:
        return False
    return True


def rows_of(value: Any, rows: list[int]) -> Any:
    """The rows of every array in nested records."""
    if isinstance(value, dict):
        return {name: rows_of(item, rows) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(rows_of(item, rows) for item in value)
    return value[rows]


def copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: copied(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(item) for item in value)
    return np.array(value)


def assert_same(first: Any, second: Any) -> None:
    """Compare every array in nested records, bit by bit."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            assert_same(first[name], second[name])
    elif isinstance(first, list | tuple):
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        np.testing.assert_array_equal(first, second)
        assert np.asarray(first).dtype == np.asarray(second).dtype
