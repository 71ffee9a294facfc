"""Collection: a behaviour policy acts in many environments at once, whole episodes come out.

Episode k has seed `first_seed + k`, and every episode that is begun is finished and kept, so
that short episodes are not favoured. Seeds from `HELD_OUT_SEED` on belong to evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.random import Generator
from numpy.typing import NDArray

from forethought.envs.dataset import write_shard
from forethought.envs.episode import Episode
from forethought.envs.make import spec_of
from forethought.envs.policies import Policy

Array = NDArray[Any]

HELD_OUT_SEED = 10**6


def collect(
    env: VectorEnv[Any, Any, Any],
    policy: Policy,
    episodes: int,
    *,
    first_seed: int,
    generator: Generator,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[Episode]:
    """Collect episodes, in the order of their seeds.

    Arguments are checked and environments reset at once; they step while the result is iterated
    over. Which seeds come out, and in which order, does not depend on which episode ends first.
    The policy's noise is drawn for the whole batch: the same generator, `num_envs` and versions
    give the same episodes.

    Args:
        env: From `make`, with a `Box` action space in [-1, 1].
        policy: Acts for all environments.
        episodes: Number of episodes.
        first_seed: Seed of the first episode.
        generator: Source of the policy's randomness.
        on_progress: Called with the number of episodes finished so far.

    Returns:
        Iterator over `episodes` episodes.

    Raises:
        ValueError: A number is out of range, a seed would be held out, or the action space is
            another one.
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}: it must be at least 1")
    if first_seed < 0:
        raise ValueError(f"first_seed is {first_seed}: it must be 0 or above")
    if first_seed + episodes > HELD_OUT_SEED:
        raise ValueError(
            f"first_seed is {first_seed} and episodes {episodes}: seeds from {HELD_OUT_SEED} on "
            "are held-out seeds for evaluation, stay below"
        )
    space = env.single_action_space
    if not isinstance(space, spaces.Box) or (space.low != -1).any() or (space.high != 1).any():
        raise ValueError(
            f"action space {space} cannot be collected from: wrap the environment so that it is "
            "a Box in [-1, 1] (gymnasium.wrappers.vector.RescaleAction)"
        )
    batch = _Batch(env, policy, generator, first_seed, first_seed + episodes)
    return _collect(batch, first_seed, episodes, on_progress)


def collect_to(
    folder: str | Path,
    env: VectorEnv[Any, Any, Any],
    policy: Policy,
    episodes: int,
    *,
    first_seed: int,
    generator: Generator,
    episodes_per_shard: int = 256,
    on_progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Collect episodes into shards of a data set; arguments as for `collect`.

    A kill loses at most the shard in the making: shards that are written stay readable.

    Args:
        folder: Folder of the data set; created if missing, else appended to.
        env: From `make`.
        policy: Acts for all environments.
        episodes: Number of episodes.
        first_seed: Seed of the first episode.
        generator: Source of the policy's randomness.
        episodes_per_shard: Most episodes in one shard.
        on_progress: Called with the number of episodes finished so far.

    Returns:
        Paths of the new shards.

    Raises:
        ValueError: As `collect` and `write_shard`.
    """
    if episodes_per_shard < 1:
        raise ValueError(f"episodes_per_shard is {episodes_per_shard}: it must be at least 1")
    stream = collect(
        env, policy, episodes, first_seed=first_seed, generator=generator, on_progress=on_progress
    )
    spec = spec_of(env)
    paths: list[Path] = []
    batch: list[Episode] = []
    for episode in stream:
        batch.append(episode)
        if len(batch) == episodes_per_shard:
            paths.append(write_shard(folder, batch, spec))
            batch = []
    if batch:
        paths.append(write_shard(folder, batch, spec))
    return paths


class _Recorder:
    """One episode in the making, in one row of the environments."""

    def __init__(self, seed: int, row: int, observations: Array, info: Mapping[str, Any]) -> None:
        self.seed, self.row = seed, row
        self.goal = np.array(info["goal"][row]) if "goal" in info else None
        self.observations: list[Array] = [observations[row]]
        self.quantities: list[dict[str, Array]] = [_quantities(info, row)]
        self.actions: list[Array] = []
        self.rewards: list[float] = []

    def add(
        self, action: Array, reward: float, observation: Array, info: Mapping[str, Any]
    ) -> None:
        self.actions.append(action)
        self.rewards.append(reward)
        self.observations.append(observation)
        self.quantities.append(_quantities(info, self.row))

    def finish(
        self,
        env_id: str,
        policy: str,
        info: Mapping[str, Any],
        *,
        terminated: bool,
        truncated: bool,
    ) -> Episode:
        return Episode(
            observations=np.stack(self.observations),
            actions=np.stack(self.actions),
            rewards=np.asarray(self.rewards, np.float32),
            terminated=terminated,
            truncated=truncated,
            success=bool(info["success"][self.row]) if "success" in info else None,
            quantities={
                name: np.stack([entry[name] for entry in self.quantities])
                for name in self.quantities[0]
            },
            goal=self.goal,
            seed=self.seed,
            env_id=env_id,
            policy=policy,
        )


class _Batch:
    """All rows of the environments, each with the episode it is in."""

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        policy: Policy,
        generator: Generator,
        first_seed: int,
        end_seed: int,
    ) -> None:
        self.env, self.policy, self.generator = env, policy, generator
        self.env_id = spec_of(env).id
        self.next_seed, self.end_seed = first_seed, end_seed
        self.seeds = [0] * env.num_envs
        self.recorders: list[_Recorder | None] = [None] * env.num_envs
        shape = (env.num_envs, *(env.single_action_space.shape or ()))
        self.actions: Array = np.zeros(shape, np.float32)
        self.observations: Array = np.empty(0)
        self.info: dict[str, Any] = {}
        self._begin(np.ones(env.num_envs, np.bool_))

    def step(self) -> list[Episode]:
        """Advance all rows by one step; episodes that ended are returned and followed by others."""
        self.actions = np.asarray(
            self.policy(self.observations, self.info, self.actions, self.generator), np.float32
        )
        result = self.env.step(self.actions)
        self.observations, rewards, terminated, truncated, self.info = result
        over = np.asarray(terminated | truncated, np.bool_)
        ended = []
        for row, recorder in enumerate(self.recorders):
            if recorder is None:
                continue
            recorder.add(self.actions[row], rewards[row], self.observations[row], self.info)
            if over[row]:
                flags = {"terminated": bool(terminated[row]), "truncated": bool(truncated[row])}
                name = self.policy.name
                ended.append(recorder.finish(self.env_id, name, self.info, **flags))
        if over.any():
            self._begin(over)
        return ended

    def _begin(self, mask: NDArray[np.bool_]) -> None:
        """Begin the next episodes in the rows under `mask` `(N,)`."""
        rows = [int(row) for row in np.flatnonzero(mask)]
        first = self.next_seed
        for offset, row in enumerate(rows):
            # Rows for which no episode is left repeat the last seed; nothing is recorded there.
            self.seeds[row] = min(first + offset, self.end_seed - 1)
        self.next_seed = min(first + len(rows), self.end_seed)
        seeds: Any = list(self.seeds)  # Gymnasium's annotation forgets lists
        self.observations, info = self.env.reset(seed=seeds, options={"reset_mask": mask.copy()})
        self.info = _merge(self.info, info, mask)
        for offset, row in enumerate(rows):
            wanted = first + offset < self.end_seed
            self.recorders[row] = (
                _Recorder(self.seeds[row], row, self.observations, self.info) if wanted else None
            )
        self.actions = np.where(mask[:, None], np.float32(0), self.actions)


def _collect(
    batch: _Batch, first_seed: int, episodes: int, on_progress: Callable[[int], None] | None
) -> Iterator[Episode]:
    waiting: dict[int, Episode] = {}
    done, due = 0, first_seed
    while done < episodes:
        ended = batch.step()
        waiting |= {episode.seed: episode for episode in ended}
        done += len(ended)
        if ended and on_progress is not None:
            on_progress(done)
        while due in waiting:
            yield waiting.pop(due)
            due += 1


def _quantities(info: Mapping[str, Any], row: int) -> dict[str, Array]:
    return {
        name: np.atleast_1d(np.asarray(value[row]))
        for name, value in info.get("quantities", {}).items()
        if not name.startswith("_")  # Gymnasium's marks of the rows that are given
    }


def _merge(old: Mapping[str, Any], new: Mapping[str, Any], mask: NDArray[np.bool_]) -> Any:
    """Infos with the rows under `mask` from `new`: Gymnasium's resets speak of these alone."""
    merged = dict(old)
    for name, value in new.items():
        if isinstance(value, Mapping):
            merged[name] = _merge(old.get(name, {}), value, mask)
        elif name in old and not mask.all():
            merged[name] = np.array(old[name])
            merged[name][mask] = value[mask]
        else:
            merged[name] = value
    return merged
