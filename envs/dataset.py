"""A data set is a folder of immutable shards of whole episodes, and an index.

    folder/index.json               format version, environment spec, list of shards
    folder/shard-00000.safetensors  see `forethought.envs.shard`

Shards are mapped into memory: a data set may be larger than memory, and opening one is instant.
A folder has one writer at a time; readers see the shards that were there when they opened it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from forethought.envs.episode import Episode, Observation, from_entries
from forethought.envs.index import ShardRecord, open_shard, read_index
from forethought.envs.index import write_shard as write_shard
from forethought.envs.shard import differences, sha256_of
from forethought.envs.spec import EnvSpec
from forethought.envs.windows import WindowSampler

Array = NDArray[Any]

Statistics = tuple[NDArray[np.float32], NDArray[np.float32]]

_STATISTICS_SAMPLE = 4096


class Dataset:
    """Read access to a data set; make one with `Dataset.open`.

    Attributes:
        folder: Where it lies.
        spec: The environment's.
        shards: What the index says about each shard.
        observation_offsets: `(E+1,)`: episode e has rows `[e]` to `[e+1]` of the flat arrays
            with an entry per observation.
        step_offsets: `(E+1,)`: likewise for the flat arrays with an entry per step.
        lengths: `(E,)`, steps of each episode.
        policies: Behaviour policy of each episode.
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
        self.policies: list[str] = [
            policy for _, metadata in contents for policy in json.loads(metadata["policies"])
        ]
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
        return _opened(folder, spec, records, in_memory)

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
        names = self.observation_names
        goal = None
        if any(name.partition(".")[0] == "goals" for name in arrays):
            goal = from_entries("goals", names, lambda name: np.array(arrays[name][row]))
        return Episode(
            observations=from_entries(
                "observations", names, lambda name: np.array(arrays[name][observed])
            ),
            actions=np.array(arrays["actions"][stepped]),
            rewards=np.array(arrays["rewards"][stepped]),
            terminated=bool(arrays["terminated"][row]),
            truncated=bool(arrays["truncated"][row]),
            success=None if success < 0 else bool(success),
            quantities={
                name: np.array(arrays[f"quantities.{name}"][observed])
                for name in self.quantity_names
            },
            goal=goal,
            seed=int(arrays["seed"][row]),
            env_id=self.spec.id,
            policy=self.policies[index],
        )

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Entries of an observation; none where an observation is one array."""
        space = self.spec.observation_space
        return tuple(space.spaces) if isinstance(space, spaces.Dict) else ()

    @property
    def has_goals(self) -> bool:
        """Whether episodes have goals."""
        return any(name.partition(".")[0] == "goals" for name in self._arrays[0])

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
                `length`, `terminated`, `truncated` or `success`; `observations.NAME` and
                `goals.NAME` where observations are mappings. Rows of an episode stand in
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

    def observation_chunks(self, rows: int) -> Iterator[Observation]:
        """All observations in the order of the flat arrays, `rows` at a time, the last chunk fewer.

        Chunk sizes do not depend on how the data set was cut into shards.

        Args:
            rows: Observations in a chunk.

        Returns:
            Iterator over chunks `(rows, *O)`, or mappings to such arrays: read-only views of the
            files, copies where a chunk spans shards.

        Raises:
            ValueError: `rows` is below 1.
        """
        if rows < 1:
            raise ValueError(f"rows is {rows}: a chunk has at least 1 observation")
        total = int(self.observation_offsets[-1])
        spans = ((begin, min(begin + rows, total)) for begin in range(0, total, rows))
        return (
            from_entries(
                "observations", self.observation_names, partial(self._observed, begin, end)
            )
            for begin, end in spans
        )

    def _observed(self, begin: int, end: int, name: str) -> Array:
        """Rows `begin` to `end` of a flat array with an entry per observation."""
        edges = self.observation_offsets[self.shard_offsets]
        first = int(np.searchsorted(edges, begin, side="right")) - 1
        last = int(np.searchsorted(edges, end, side="left"))
        parts = [
            self._arrays[shard][name][max(begin - int(edges[shard]), 0) : end - int(edges[shard])]
            for shard in range(first, last)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def rows(self, name: str, chosen: NDArray[np.int64]) -> Array:
        """Rows of a flat array with an entry per observation, as a copy.

        Args:
            name: As for `arrays`.
            chosen: Their numbers `(M,)`, ascending.
        """
        edges = self.observation_offsets[self.shard_offsets]
        spans = zip(self._arrays, pairwise(edges), strict=True)
        return np.concatenate(
            [
                arrays[name][chosen[(chosen >= begin) & (chosen < end)] - begin]
                for arrays, (begin, end) in spans
            ]
        )

    def terminal(self) -> NDArray[np.bool_]:
        """Steps that ended their episode by termination, `(sum of T,)`; see `step_offsets`."""
        marks = np.zeros(self.steps, np.bool_)
        marks[self.step_offsets[1:] - 1] = self.arrays("terminated")
        return marks

    def channel_statistics(self) -> Statistics | dict[str, Statistics]:
        """Mean and standard deviation of each channel `(C,)` of images, each number of vectors.

        In the units of the observations (0 to 255 for pictures), from at most 4096 observations,
        always the same ones. A channel that never varies has standard deviation 0.

        Returns:
            Mean and standard deviation; a mapping from names to these where observations are
            mappings.
        """
        total = int(self.observation_offsets[-1])
        chosen = np.arange(total)
        if total > _STATISTICS_SAMPLE:
            generator = np.random.default_rng(0)
            chosen = np.sort(generator.choice(total, _STATISTICS_SAMPLE, replace=False))

        def statistics(name: str) -> Statistics:
            sample = self.rows(name, chosen)
            axes = (0, 2, 3) if sample.ndim == 4 else (0,)
            mean = sample.mean(axis=axes, dtype=np.float64)
            std = sample.std(axis=axes, dtype=np.float64)
            return mean.astype(np.float32), std.astype(np.float32)

        return from_entries("observations", self.observation_names, statistics)

    def windows(self, length: int, quantities: Sequence[str] | None = None) -> WindowSampler:
        """Sampler of windows of `length` steps.

        Args:
            length: Steps of a window.
            quantities: Names of the quantities to fetch; all by default, `()` for none.

        Raises:
            ValueError: No episode is that long, `length` is below 1, or a quantity is not there.
        """
        names = self.quantity_names if quantities is None else tuple(quantities)
        for name in names:
            if name not in self.quantity_names:
                raise ValueError(
                    f"quantity {name!r} is not there: use some of {list(self.quantity_names)}"
                )
        return WindowSampler(self._arrays, names, length, self.observation_names)


def _opened(
    folder: Path, spec: EnvSpec, records: Sequence[ShardRecord], in_memory: bool = False
) -> Dataset:
    """Open the shards of `records`, and check that they are alike."""
    contents = []
    for record in records:
        arrays, metadata = open_shard(folder, record)
        if in_memory:
            arrays = {name: np.array(array) for name, array in arrays.items()}
        contents.append((arrays, metadata))
    for record, (arrays, _) in zip(records, contents, strict=True):
        if odd := differences(arrays, contents[0][0]):
            raise ValueError(
                f"shard {folder / record.file} differs from {records[0].file} in {odd}: "
                "restore it, or collect into different folders"
            )
    return Dataset(folder, spec, tuple(records), contents)
