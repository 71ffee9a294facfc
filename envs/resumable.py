"""Collection into a data set, shard by shard: in several processes, and resumed after a kill.

A shard is collected by itself, with a generator of its own, so that its bytes depend neither on
the other shards nor on who collects it. What is being collected stands in `collecting.json` beside
the shards until all of them are there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector import VectorEnv

from forethought.envs.collect import check_seeds, collect
from forethought.envs.dataset import Dataset, write_shard
from forethought.envs.episode import Episode
from forethought.envs.index import INDEX
from forethought.envs.make import make, spec_of
from forethought.envs.policies import Policy
from forethought.envs.shard import replace_file
from forethought.envs.spec import EnvSpec
from forethought.envs.workers import in_workers

logger = logging.getLogger(__name__)

Maker = Callable[[int], VectorEnv[Any, Any, Any]]

COLLECTING = "collecting.json"
_MOST_STEPS = 16_384
_MOST_BYTES = 48 * 2**20


def collect_to(
    folder: str | Path,
    env: str | Maker,
    policy: Policy,
    episodes: int,
    *,
    options: Mapping[str, Any] | None = None,
    first_seed: int | None = None,
    seed: int = 0,
    num_envs: int = 8,
    workers: int = 1,
    length: int | None = None,
    episodes_per_shard: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Collect episodes into shards of a data set.

    The episodes of a shard are collected together, with the generator
    `np.random.default_rng([seed, first seed of the shard])`: the files do not depend on `workers`,
    nor on whether the collection was interrupted. After a kill, the same call goes on with the
    first shard that is missing.

    Args:
        folder: Folder of the data set; created if missing, else appended to.
        env: Id of the environment, or a function of `num_envs` that makes it.
        policy: Acts for all environments.
        episodes: Number of episodes.
        options: Options of the environment, where `env` is an id.
        first_seed: Seed of the first episode. None for the one after those in the folder, or for
            that of the collection that was interrupted there.
        seed: Of the policy's randomness.
        num_envs: Environments side by side in each process.
        workers: Processes that collect; 1 for this one alone. More need an `env` and a `policy`
            that can be sent to other processes, and `if __name__ == "__main__":` in a script.
        length: Decisions after which an episode is truncated; see `collect`.
        episodes_per_shard: Episodes of one shard; None for `default_shard`.
        on_progress: Called with the number of episodes finished so far; with workers, and for
            what an interrupted call has left, shard by shard.

    Returns:
        Paths of the new shards.

    Raises:
        ValueError: A number is out of range, a seed is held out or in the folder already, the
            folder holds another environment, or an unfinished collection that was another one.
        ChildProcessError: A worker was killed or failed; what is written is kept.
    """
    for name, value in (("num_envs", num_envs), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} is {value}: it must be at least 1")
    if episodes_per_shard is not None and episodes_per_shard < 1:
        raise ValueError(f"episodes_per_shard is {episodes_per_shard}: it must be at least 1")
    check_seeds(first_seed or 0, episodes)
    folder = Path(folder)
    if not isinstance(env, str) and options:
        raise ValueError(
            "options are given with a function that makes environments: put them there"
        )
    collector = _Collector(env, dict(options or {}), policy, num_envs, seed, length)
    try:
        spec = collector.spec()
        request = _Request(
            first_seed=0 if first_seed is None else first_seed,
            episodes=episodes,
            seed=seed,
            num_envs=num_envs,
            length=length,
            episodes_per_shard=episodes_per_shard or default_shard(spec, length),
            policy=_described(policy),
        )
        missing = _plan(folder, spec, request, first_seed)
        done = episodes - sum(len(shard) for shard in missing)
        if done and on_progress is not None:
            on_progress(done)
        paths = []
        stream = _collected(collector, missing, workers, done, on_progress)
        with closing(stream):
            for batch in stream:
                paths.append(write_shard(folder, batch, spec))
        (folder / COLLECTING).unlink(missing_ok=True)
        return paths
    finally:
        collector.close()


def unfinished_episodes(folder: str | Path) -> int | None:
    """Number of episodes of the collection that was interrupted in a folder; None without one.

    One of which no shard was written is none: another may take its place.

    Raises:
        ValueError: What was noted of it is damaged.
    """
    begun = _read(Path(folder) / COLLECTING)
    if begun is None or not (Path(folder) / INDEX).exists():
        return None
    return begun.episodes if begun.first_seed in Dataset.open(folder).arrays("seed") else None


def default_shard(spec: EnvSpec, length: int | None = None) -> int:
    """Episodes of a shard: at most 16,384 environment steps and 48 MiB of observations, or one.

    For pictures of 64 x 64 pixels these are 4,096 decisions.
    """
    decisions = min(
        _MOST_STEPS // spec.action_repeat, _MOST_BYTES // _bytes(spec.observation_space)
    )
    return max(1, decisions // min(spec.episode_limit, length or spec.episode_limit))


@dataclass(frozen=True)
class _Request:
    """What decides the bytes of the shards, besides the environment."""

    first_seed: int
    episodes: int
    seed: int
    num_envs: int
    length: int | None
    episodes_per_shard: int
    policy: str

    def shards(self) -> list[range]:
        """Seeds of each shard."""
        end, size = self.first_seed + self.episodes, self.episodes_per_shard
        return [range(at, min(at + size, end)) for at in range(self.first_seed, end, size)]


class _Collector:
    """Collects the episodes of a range of seeds; can be sent to another process before it does."""

    def __init__(
        self,
        env: str | Maker,
        options: dict[str, Any],
        policy: Policy,
        num_envs: int,
        seed: int,
        length: int | None,
    ) -> None:
        self.env, self.options, self.policy = env, options, policy
        self.num_envs, self.seed, self.length = num_envs, seed, length
        self._made: VectorEnv[Any, Any, Any] | None = None
        self.on_progress: Callable[[int], None] | None = None

    def __call__(self, seeds: range) -> list[Episode]:
        """Episodes of all `seeds`."""
        env = self._environment(min(self.num_envs, len(seeds)))
        generator = np.random.default_rng([self.seed, seeds[0]])
        stream = collect(
            env,
            self.policy,
            len(seeds),
            first_seed=seeds[0],
            generator=generator,
            length=self.length,
            on_progress=self.on_progress,
        )
        return list(stream)

    def spec(self) -> EnvSpec:
        """The environment's, after a check that the policy can act in it."""
        spec = spec_of(self._environment(1))
        self.policy.for_space(spec.action_space)
        return spec

    def close(self) -> None:
        """Close the environments, which cannot be sent to another process."""
        if self._made is not None:
            self._made.close()
            self._made = None

    def _environment(self, num_envs: int) -> VectorEnv[Any, Any, Any]:
        """So many environments; those of the last call where the number is the same."""
        if self._made is None or self._made.num_envs != num_envs:
            self.close()
            if isinstance(self.env, str):
                self._made = make(self.env, num_envs, **self.options)
            else:
                self._made = self.env(num_envs)
        return self._made


def _collected(
    collector: _Collector,
    shards: list[range],
    workers: int,
    done: int,
    on_progress: Callable[[int], None] | None,
) -> Generator[list[Episode], None, None]:
    """The episodes of each shard, here or in other processes."""
    if workers == 1:
        for seeds in shards:
            collector.on_progress = None if on_progress is None else _Shifted(on_progress, done)
            yield collector(seeds)
            done += len(seeds)
        return
    collector.close()
    stream = in_workers(collector, shards, workers)
    with closing(stream):
        for episodes in stream:
            yield episodes
            done += len(episodes)
            if on_progress is not None:
                on_progress(done)


@dataclass(frozen=True)
class _Shifted:
    """Tells how much is done in all, when told how much of one shard is."""

    tell: Callable[[int], None]
    before: int

    def __call__(self, done: int) -> None:
        self.tell(self.before + done)


def _plan(folder: Path, spec: EnvSpec, request: _Request, first_seed: int | None) -> list[range]:
    """Seeds of the shards that are missing; leaves a note of the request in the folder."""
    stored: set[int] = set()
    if (folder / INDEX).exists():
        data = Dataset.open(folder)
        if data.spec != spec:
            raise ValueError(
                f"data set {folder} holds {data.spec.id} with options {dict(data.spec.options)}, "
                f"this is {spec.id} with {dict(spec.options)}: use another folder"
            )
        stored = {int(item) for item in data.arrays("seed")}
    note = folder / COLLECTING
    begun = _read(note)
    if begun is not None and begun.first_seed in stored:
        first = begun.first_seed if first_seed is None else first_seed
        request = _Request(**{**asdict(request), "first_seed": first})
        _check_same(note, begun, request)
        missing = [seeds for seeds in request.shards() if seeds[0] not in stored]
        logger.info("%s: going on with %d shards that are missing", folder, len(missing))
        return missing
    if first_seed is None:
        request = _Request(**{**asdict(request), "first_seed": max(stored, default=-1) + 1})
        check_seeds(request.first_seed, request.episodes)
    there = stored & set(range(request.first_seed, request.first_seed + request.episodes))
    if there:
        raise ValueError(
            f"first_seed is {request.first_seed}: episodes of seeds {min(there)} to {max(there)} "
            f"are in {folder} already, begin with first_seed {max(stored) + 1}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(note, json.dumps(asdict(request), indent=1).encode())
    return request.shards()


def _read(note: Path) -> _Request | None:
    """The collection that was interrupted here, if there was one."""
    try:
        return _Request(**json.loads(note.read_text()))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(
            f"{note} is damaged ({error}): delete it, and what was being collected stays unfinished"
        ) from error


def _check_same(note: Path, begun: _Request, request: _Request) -> None:
    old, new = asdict(begun), asdict(request)
    changed = [f"{name} was {old[name]}, is {new[name]}" for name in old if old[name] != new[name]]
    if changed:
        raise ValueError(
            f"a collection in {note.parent} was interrupted, and this is another one "
            f"({'; '.join(changed)}): repeat the one that was begun, or delete {note.name} there "
            "to leave it unfinished"
        )


def _described(policy: Policy) -> str:
    """A policy with its fields, where it is a record of them."""
    if is_dataclass(type(policy)):
        return repr(policy)
    return f"{type(policy).__module__}.{type(policy).__qualname__}"


def _bytes(space: Space[Any]) -> int:
    """Bytes of one observation."""
    if isinstance(space, spaces.Dict):
        return sum(_bytes(part) for part in space.spaces.values())
    shape = space.shape or ()
    return max(1, int(np.prod(shape)) * np.dtype(space.dtype).itemsize)
