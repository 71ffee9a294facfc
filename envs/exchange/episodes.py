"""Episodes from elsewhere become a data set, all of them or none."""

from __future__ import annotations

import logging
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict, Unpack

import gymnasium
from numpy.typing import NDArray

from forethought.envs.collect import HELD_OUT_SEED
from forethought.envs.dataset import Dataset
from forethought.envs.episode import Episode, entries
from forethought.envs.exchange.actions import ActionCode, Bound, code_of, columns
from forethought.envs.exchange.conversion import Conversion, field_of, observations_of, space_of
from forethought.envs.index import write_shard
from forethought.envs.spec import EnvSpec

Array = NDArray[Any]

logger = logging.getLogger(__name__)

_SHARD_BYTES = 2**27  # of observations: pictures fill a shard before the episodes are many


class ImportOptions(TypedDict, total=False):
    """Options that all imports have.

    Floating-point actions are mapped to [-1, 1], from the bounds given or those seen; the bounds
    become `action_low` and `action_high` among the options of the data set's spec, and
    `unscale_actions` undoes it. Whole numbers are discrete actions. Observations of uint8 are
    stored as they are, everything else as float32. Pictures are stored channels first.

    Seeds are kept. But those of 10^6 and above are held out for evaluation, and recordings have no
    evaluation of ours: where one has such a seed and there is no `spec`, all episodes are numbered
    from 0, and their own seeds are forgotten. With a `spec` the seeds are the environment's, and
    training refuses held-out ones: leave the seeds out if they mean something else.

    Attributes:
        env_id: Name of the source, such as `own/arm` (default `own/data`), that no environment of
            Gymnasium has.
        control_step_seconds: Time between two actions, in seconds; default 1, where time has no
            unit.
        spec: In place of these two, the spec of an environment that the episodes fit exactly.
            Actions are then mapped only if both bounds are given, and arrays keep their dtypes.
        action_low: Action that becomes -1, one number or one per column; by default the lowest.
        action_high: Action that becomes 1, likewise; by default the highest.
        discrete_actions: Number of discrete actions; by default the highest plus one.
        channels_last: Whether pictures are `(H, W, C)`; by default decided by the sizes.
        policy: Name of the behaviour policy of episodes that name none; default `unknown`.
        episodes_per_shard: Most episodes in one shard; default 256.
        on_progress: Called with the number of episodes stored so far.
    """

    env_id: str
    control_step_seconds: float
    spec: EnvSpec | None
    action_low: Bound | None
    action_high: Bound | None
    discrete_actions: int | None
    channels_last: bool | None
    policy: str
    episodes_per_shard: int
    on_progress: Callable[[int], None] | None


class EpisodeSource(ABC):
    """Episodes that are read one at a time, and their actions before everything else."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def actions(self, index: int) -> Any:
        """Actions of an episode, `(T, A)` or `(T,)`."""

    @abstractmethod
    def record(self, index: int) -> Mapping[str, Any]:
        """An episode, with the fields of `import_episodes`."""

    def seed(self, index: int) -> Any:
        """Seed of an episode, None where it has none; those of our own exports do not matter."""
        return None

    def where(self, index: int) -> str:
        """Which episode it is, in the words of messages."""
        return f"episode {index}"


class _Listed(EpisodeSource):
    def __init__(self, episodes: Sequence[Mapping[str, Any]]) -> None:
        self._episodes = episodes

    def __len__(self) -> int:
        return len(self._episodes)

    def actions(self, index: int) -> Any:
        return field_of(self._episodes[index], "actions")

    def record(self, index: int) -> Mapping[str, Any]:
        return self._episodes[index]

    def seed(self, index: int) -> Any:
        return self._episodes[index].get("seed")


def import_episodes(
    folder: str | Path,
    episodes: Sequence[Mapping[str, Any]],
    **options: Unpack[ImportOptions],
) -> Dataset:
    """Make a data set of a list of episodes.

    An episode is a mapping with `observations` `(T+1, *O)` (or a mapping to such arrays) and
    `actions` `(T, A)` or `(T,)`, and as far as they are known `rewards` `(T,)` (else 0),
    `terminated` (else False), `truncated` (else where not terminated), `success`, `quantities`
    (each `(T+1, n)` or `(T+1,)`), `goal` (one observation), `seed` (else its number) and `policy`.

    Args:
        folder: Folder of the data set, new or empty. It appears when everything is in it.
        episodes: At least one.
        **options: See `ImportOptions`.

    Returns:
        The data set, opened.

    Raises:
        ValueError: These are no whole, finite, consistent episodes, an option is out of range, or
            the folder is not empty. Nothing is left behind.
    """
    return store(folder, _Listed(episodes), **options)


def store(folder: str | Path, source: EpisodeSource, **options: Unpack[ImportOptions]) -> Dataset:
    """Make a data set of the episodes of a source, in the way of `import_episodes`."""
    if unknown := sorted(options.keys() - ImportOptions.__annotations__.keys()):
        raise TypeError(f"options {unknown} are unknown: see ImportOptions")
    if not len(source):
        raise ValueError("episodes are empty: give at least one")
    per_shard = options.get("episodes_per_shard", 256)
    if per_shard < 1:
        raise ValueError(f"episodes_per_shard is {per_shard}: it must be at least 1")
    conversion = _conversion(source, options)
    renumbered = options.get("spec") is None and _has_held_out_seeds(source)
    if renumbered:
        logger.warning(
            "some seeds are %d or above, which means held out here: episodes are numbered from 0",
            HELD_OUT_SEED,
        )
    on_progress = options.get("on_progress")
    with new_folder(Path(folder)) as target:
        batch: list[Episode] = []
        size = 0
        for index in range(len(source)):
            with _named(source, index):
                record = source.record(index)
                if renumbered:
                    record = {**record, "seed": index}
                episode = conversion.episode(record, index)
            batch.append(episode)
            size += sum(array.nbytes for array in entries("", episode.observations).values())
            if len(batch) == per_shard or size >= _SHARD_BYTES or index == len(source) - 1:
                write_shard(target, batch, conversion.spec)
                batch, size = [], 0
            if on_progress is not None:
                on_progress(index + 1)
    return Dataset.open(folder)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder that takes the name `folder` in the end, or vanishes on an error.

    Raises:
        ValueError: `folder` is there and not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there and not an empty folder: name a new one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            folder.rmdir()
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _conversion(source: EpisodeSource, options: ImportOptions) -> Conversion:
    """Decide what is done to the episodes, and what they then fit."""
    low, high = options.get("action_low"), options.get("action_high")
    channels_last, policy = options.get("channels_last"), options.get("policy", "unknown")
    spec = options.get("spec")
    if spec is not None:
        code = ActionCode(spec.action_space)
        if (low is None) != (high is None):
            raise ValueError(f"action_low is {low} and action_high {high}: give both beside a spec")
        if low is not None:
            code = code_of(_actions(source), low, high, None)
        return Conversion(spec, code, channels_last, policy, exact=True)
    env_id = options.get("env_id", "own/data")
    if env_id in gymnasium.registry:
        raise ValueError(
            f"env_id is {env_id!r}, which is an environment: give spec=spec_of(make(...)) if the "
            "data fit it exactly, else a name of your own such as 'own/data'"
        )
    code = code_of(_actions(source), low, high, options.get("discrete_actions"))
    with _named(source, 0):
        first = field_of(source.record(0), "observations")
        space = space_of(observations_of("observations", first, channels_last))
    spec = EnvSpec(
        id=env_id,
        observation_space=space,
        action_space=code.space,
        control_step_seconds=options.get("control_step_seconds", 1.0),
        episode_limit=max(len(actions) for actions in _actions(source)),
        options=code.options,
    )
    return Conversion(spec, code, channels_last, policy, exact=False)


def _has_held_out_seeds(source: EpisodeSource) -> bool:
    for index in range(len(source)):
        with _named(source, index):
            seed = source.seed(index)
            if seed is not None and int(seed) >= HELD_OUT_SEED:
                return True
    return False


def _actions(source: EpisodeSource) -> Iterator[Array]:
    for index in range(len(source)):
        with _named(source, index):
            yield columns(source.actions(index))


@contextmanager
def _named(source: EpisodeSource, index: int) -> Iterator[None]:
    """Errors say which episode they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source.where(index)}: {error}") from error
