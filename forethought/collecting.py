"""The verb `collect`, and a run's first collection: from an environment to a data set.

A collection that was cut by a kill goes on where it stopped. How far it was to go stands beside the
data until it has come to its end: in `collecting_until.json` for the verb, in a run's configuration
for a run.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from forethought import envs
from forethought.build import Collection, device_of
from forethought.course import environment_steps, progress_bar
from forethought.envs import Dataset, EnvSpec
from forethought.envs.resumable import COLLECTING
from forethought.envs.shard import replace_file
from forethought.threads import set_threads

UNTIL = "collecting_until.json"


def collect(
    data: Path,
    *,
    env: str = "forethought/TwoRooms-v0",
    env_options: dict[str, Any] | None = None,
    collection: Collection = Collection(),  # noqa: B008 - frozen
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
) -> int:
    """Collect episodes into a data set; an existing one is appended to.

    After a kill, the same call goes on to where the first one was to end.

    Args:
        data: folder of the data set.
        env: environment id, of Gymnasium or `dm_control/DOMAIN-TASK`.
        env_options: options of the environment.
        collection: how much, how wide, by which behaviour policy.
        seed: seed of the behaviour policy; episodes have the seeds that follow those stored.
        device: as for the other verbs; behaviour policies and environments run on the CPU.
        threads: as for the other verbs.

    Returns:
        Number of environment steps in the data set.
    """
    set_threads(threads)
    device_of(device)
    begun = _begun(data, collection, seed)
    if collection.episodes is not None:
        _collect_episodes(data, env, env_options, collection, collection.episodes, seed)
    else:
        begin = _decisions(data) if begun is None else begun
        note = {"begin": begin, **_described(collection, seed)}
        there = data.exists()
        data.mkdir(parents=True, exist_ok=True)
        replace_file(data / UNTIL, json.dumps(note, indent=1).encode())
        total = begin + collection.decisions
        try:
            _collect_decisions(data, env, env_options, collection, total, seed)
        except ValueError:  # what does not fit leaves nothing behind
            if begun is None and _decisions(data) == begin:
                (data / UNTIL).unlink()
                if not there:
                    with suppress(OSError):
                        data.rmdir()
            raise
    for name in (COLLECTING, UNTIL):
        (data / name).unlink(missing_ok=True)
    return environment_steps(Dataset.open(data))


def _described(collection: Collection, seed: int) -> dict[str, Any]:
    """What decides which data are collected, besides the environment."""
    asked = asdict(replace(collection, workers=1)) | {"policy": repr(collection.policy)}
    return {**asked, "seed": seed}


def _begun(data: Path, collection: Collection, seed: int) -> int | None:
    """Decisions that were there when this collection began, if a kill has cut it; else None.

    Raises:
        ValueError: the one that was cut is another one, or its note is damaged.
    """
    remedy = f"delete {UNTIL} and {COLLECTING} in {data} to leave it unfinished"
    try:
        note = json.loads((data / UNTIL).read_text())
        begin = int(note.pop("begin"))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{data / UNTIL} is damaged ({error}): {remedy}") from error
    asked = _described(collection, seed)
    if note == asked:
        return begin
    if _decisions(data) == begin:  # nothing of it is there
        return None
    changed = [f"{k} was {note.get(k)}, is {asked[k]}" for k in asked if note.get(k) != asked[k]]
    raise ValueError(
        f"a collection in {data} was interrupted, and this is another one ({'; '.join(changed)}): "
        f"repeat the one that was begun, or {remedy}"
    )


def collect_for(
    data: Path,
    env: str,
    env_options: dict[str, Any] | None,
    collection: Collection,
    seed: int,
) -> None:
    """A run's first collection, or what is missing of it."""
    if collection.episodes is not None:
        _collect_episodes(data, env, env_options, collection, collection.episodes, seed)
    else:
        _collect_decisions(data, env, env_options, collection, collection.decisions, seed)


def collected(data: Path, collection: Collection) -> bool:
    """Whether the run's first collection has come to its end."""
    if not (data / "index.json").exists():
        return False
    held = Dataset.open(data)
    if collection.episodes is None:
        if held.steps < collection.decisions:
            return False
    elif held.episodes < collection.episodes:
        return False
    # A kill can leave the note of a collection behind: one that had all its shards, or a round's,
    # which the round begins again.
    (data / COLLECTING).unlink(missing_ok=True)
    return True


def _collect_decisions(
    data: Path,
    env: str,
    env_options: dict[str, Any] | None,
    collection: Collection,
    total: int,
    seed: int,
) -> None:
    """Collect episodes until the data set holds `total` decisions."""
    while (missing := total - _decisions(data)) > 0:
        begun = envs.unfinished_episodes(data)
        length = _episode_length(data, env, env_options, collection)
        episodes = begun or max(1, round(missing / length))
        _collect_episodes(data, env, env_options, collection, episodes, seed)


def _collect_episodes(
    data: Path,
    env: str,
    env_options: dict[str, Any] | None,
    collection: Collection,
    episodes: int,
    seed: int,
) -> None:
    with progress_bar("collect episodes", episodes) as bar:
        envs.collect_to(
            data,
            env,
            collection.policy,
            episodes,
            options=env_options,
            seed=seed,
            num_envs=collection.num_envs,
            workers=collection.workers,
            length=collection.length,
            on_progress=bar.to,
        )


def _decisions(data: Path) -> int:
    """Decisions that a data set holds, 0 where there is none yet."""
    return Dataset.open(data).steps if (data / "index.json").exists() else 0


def _episode_length(
    data: Path, env: str, env_options: dict[str, Any] | None, collection: Collection
) -> float:
    """Decisions of an episode: those seen on average, or at most."""
    if (data / "index.json").exists():
        held = Dataset.open(data)
        return held.steps / held.episodes
    limit = spec_by_id(env, env_options).episode_limit
    return min(limit, collection.length or limit)


def spec_by_id(env: str, env_options: dict[str, Any] | None) -> EnvSpec:
    """The description of an environment that is not made yet."""
    made = envs.make(env, **(env_options or {}))
    spec = envs.spec_of(made)
    made.close()
    return spec
