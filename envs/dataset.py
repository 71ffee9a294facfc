"""A data set is a folder of immutable shards of whole episodes, and an index.

    folder/index.json               format version, environment spec, list of shards
    folder/shard-00000.safetensors  see `forethought.envs.shard`

Shards are mapped into memory: a data set may be larger than memory, and opening one is instant.
A folder has one writer at a time; readers see the shards that were there when they opened it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from forethought.envs.episode import Episode
from forethought.envs.index import INDEX, ShardRecord, open_shard, read_index, write_index
from forethought.envs.shard import replace_file, sha256_of, shard_bytes
from forethought.envs.spec import EnvSpec
from forethought.envs.windows import WindowSampler

Array = NDArray[Any]

_STATISTICS_SAMPLE = 4096


def write_shard(folder: str | Path, episodes: Sequence[Episode], spec: EnvSpec) -> Path:
    """Append episodes to a data set as one new shard.

    Args:
        folder: Folder of the data set; created if missing.
        episodes: At least one.
        spec: The environment's.

    Returns:
        Path of the shard.

    Raises:
        ValueError: The folder holds another environment, or the episodes do not fit the spec or
            one another.
    """
    folder = Path(folder)
    for episode in episodes:
        _check_fits(episode, spec)
    records: list[ShardRecord] = []
    if (folder / INDEX).exists():
        stored, records = read_index(folder)
        if stored != spec:
            raise ValueError(
                f"data set {folder} holds {stored.id} with options {dict(stored.options)}, the "
                f"episodes are of {spec.id} with {dict(spec.options)}: use another folder"
            )
    content = shard_bytes(episodes)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"shard-{len(records):05d}.safetensors"
    # A shard of that name which the index does not know is the leftover of a kill: replaced.
    replace_file(path, content)
    record = ShardRecord(
        file=path.name,
        episodes=len(episodes),
        steps=sum(episode.length for episode in episodes),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    write_index(folder, spec, [*records, record])
    return path


def _check_fits(episode: Episode, spec: EnvSpec) -> None:
    if episode.env_id != spec.id:
        raise ValueError(f"an episode is of {episode.env_id}, the spec of {spec.id}: give its own")
    space, observations = spec.observation_space, episode.observations
    if not isinstance(space, spaces.Box):
        raise ValueError(f"observation space {space} cannot be stored: use a Box")
    if observations.shape[1:] != space.shape or observations.dtype != space.dtype:
        raise ValueError(
            f"observations are {observations.dtype} {observations.shape[1:]}, the spec says "
            f"{space.dtype} {space.shape}: write them with the spec of their environment"
        )
    if episode.actions.shape[1] != spec.action_dim:
        raise ValueError(
            f"actions have {episode.actions.shape[1]} columns, the spec says {spec.action_dim}"
        )


class Dataset:
    """Read access to a data set; make one with `Dataset.open`.

    Attributes:
        folder: Where it lies.
        spec: The environment's.
        shards: What the index says about each shard.
        observation_offsets: `(E+1,)`: episode e has rows `[e]` to `[e+1]` of the flat arrays
            with an entry per observation.
        step_offsets: `(E+1,)`: likewise for the flat arrays with an entry per step.
    """

    def __init__(
        self,
        folder: Path,
        spec: EnvSpec,
        shards: tuple[ShardRecord, ...],
        contents: list[tuple[dict[str, Array], dict[str, str]]],
    ) -> None:
        self.folder, self.spec, self.shards = folder, spec, shards
        self._arrays = [arrays for arrays, _ in contents]
        self._policies = [json.loads(metadata["policies"]) for _, metadata in contents]
        self.lengths = np.concatenate([arrays["length"] for arrays in self._arrays])
        self.step_offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self.observation_offsets = np.concatenate([[0], np.cumsum(self.lengths + 1)])
        counts = [record.episodes for record in shards]
        self.shard_offsets = np.concatenate([[0], np.cumsum(counts)])  # first episode of each

    @staticmethod
    def open(folder: str | Path, in_memory: bool = False) -> Dataset:
        """Open a data set.

        Args:
            folder: Its folder.
            in_memory: Copy everything to memory instead of mapping the files.

        Raises:
            FileNotFoundError: There is no index, or a shard is missing.
            ValueError: The index is damaged or of another version, or a shard is cut or damaged.
        """
        folder = Path(folder)
        spec, records = read_index(folder)
        if not records:
            raise ValueError(f"data set {folder} has no shards: collect some episodes")
        contents = []
        for record in records:
            arrays, metadata = open_shard(folder, record)
            if in_memory:
                arrays = {name: np.array(array) for name, array in arrays.items()}
            contents.append((arrays, metadata))
        return Dataset(folder, spec, tuple(records), contents)

    @property
    def episodes(self) -> int:
        """Number of episodes `E`."""
        return len(self.lengths)

    @property
    def steps(self) -> int:
        """Number of steps of all episodes."""
        return int(self.step_offsets[-1])

    def verify(self) -> None:
        """Read everything and compare it with the index.

        Raises:
            ValueError: A shard's checksum differs, or it holds a number that is not finite.
        """
        for record, arrays in zip(self.shards, self._arrays, strict=True):
            path = self.folder / record.file
            if sha256_of(path) != record.sha256:
                raise ValueError(f"shard {path} was changed: its SHA-256 is not the index's")
            for name, array in arrays.items():
                if array.dtype.kind == "f" and not np.isfinite(array).all():
                    raise ValueError(f"shard {path} has numbers in {name} that are not finite")

    def episode(self, index: int) -> Episode:
        """Episode `index` (0 to E-1), as a copy.

        Raises:
            ValueError: There is no such episode.
        """
        if not 0 <= index < self.episodes:
            raise ValueError(f"episode {index} is not there: give 0 to {self.episodes - 1}")
        shard = int(np.searchsorted(self.shard_offsets, index, side="right")) - 1
        first = int(self.shard_offsets[shard])
        arrays, row = self._arrays[shard], index - first
        begin = self.observation_offsets[index] - self.observation_offsets[first]
        observed = slice(int(begin), int(begin + self.lengths[index] + 1))
        begin = self.step_offsets[index] - self.step_offsets[first]
        stepped = slice(int(begin), int(begin + self.lengths[index]))
        success = int(arrays["success"][row])
        return Episode(
            observations=np.array(arrays["observations"][observed]),
            actions=np.array(arrays["actions"][stepped]),
            rewards=np.array(arrays["rewards"][stepped]),
            terminated=bool(arrays["terminated"][row]),
            truncated=bool(arrays["truncated"][row]),
            success=None if success < 0 else bool(success),
            quantities={
                name: np.array(arrays[f"quantities.{name}"][observed])
                for name in self.quantity_names
            },
            goal=np.array(arrays["goals"][row]) if "goals" in arrays else None,
            seed=int(arrays["seed"][row]),
            env_id=self.spec.id,
            policy=self._policies[shard][row],
        )

    @property
    def quantity_names(self) -> tuple[str, ...]:
        """Names of the physical quantities, sorted."""
        prefix = "quantities."
        return tuple(
            sorted(name.removeprefix(prefix) for name in self._arrays[0] if name.startswith(prefix))
        )

    def arrays(self, name: str) -> Array:
        """All entries of one flat array, shard after shard.

        Args:
            name: `observations`, `actions`, `rewards`, `quantities.NAME`, `goals`, `seed`,
                `length`, `terminated`, `truncated` or `success`. Rows of an episode stand in
                `observation_offsets` (observations, quantities) and `step_offsets`.

        Returns:
            A read-only view of the file where the data set has one shard, else a copy in memory.

        Raises:
            ValueError: There is no such array.
        """
        if name not in self._arrays[0]:
            raise ValueError(f"array {name!r} is not there: use one of {sorted(self._arrays[0])}")
        parts = [arrays[name] for arrays in self._arrays]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def observations(self) -> Array:
        """All observations, `(sum of T+1, *O)`; see `arrays`."""
        return self.arrays("observations")

    def channel_statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation of each channel `(C,)` of images, each entry of vectors.

        In the units of the observations (0 to 255 for pictures), from at most 4096 observations,
        always the same ones. A channel that never varies has standard deviation 0.
        """
        total = int(self.observation_offsets[-1])
        chosen = np.arange(total)
        if total > _STATISTICS_SAMPLE:
            generator = np.random.default_rng(0)
            chosen = np.sort(generator.choice(total, _STATISTICS_SAMPLE, replace=False))
        edges = self.observation_offsets[self.shard_offsets]
        rows = [
            arrays["observations"][chosen[(chosen >= low) & (chosen < high)] - low]
            for arrays, low, high in zip(self._arrays, edges[:-1], edges[1:], strict=True)
        ]
        sample = np.concatenate(rows)
        axes = (0, 2, 3) if sample.ndim == 4 else (0,)
        mean = sample.mean(axis=axes, dtype=np.float64)
        std = sample.std(axis=axes, dtype=np.float64)
        return mean.astype(np.float32), std.astype(np.float32)

    def windows(self, length: int) -> WindowSampler:
        """Sampler of windows of `length` steps.

        Raises:
            ValueError: No episode is that long, or `length` is below 1.
        """
        return WindowSampler(self._arrays, self.quantity_names, length)
