"""Uniform sampling of windows over all episodes of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from forethought.envs.episode import Windows, from_entries

Array = NDArray[Any]


class WindowSampler:
    """Uniform sampling of windows over all valid starts in all shards.

    A window lies inside one episode; the layout is drawn in `forethought.envs.episode`.
    `len()` is the number of valid starts, which are ranked episode by episode.

    Args:
        shards: Flat arrays of each shard by name, among them `length`.
        quantity_names: Quantities to fetch.
        length: Steps of a window.
        observation_names: Entries of an observation; none where it is one array.

    Raises:
        ValueError: No episode is that long, or `length` is below 1.
    """

    def __init__(
        self,
        shards: Sequence[Mapping[str, Array]],
        quantity_names: Sequence[str],
        length: int,
        observation_names: Sequence[str] = (),
    ) -> None:
        if length < 1:
            raise ValueError(f"length is {length}: a window has at least 1 step")
        lengths = np.concatenate([shard["length"] for shard in shards])
        if length > lengths.max():
            raise ValueError(
                f"length is {length}, the longest episode has {lengths.max()} steps: "
                "use shorter windows or collect longer episodes"
            )
        self.length = length
        self._shards, self._quantity_names = shards, tuple(quantity_names)
        self._observation_names = tuple(observation_names)
        counts = [len(shard["length"]) for shard in shards]
        # Of each episode: its shard, its first step in the shard's flat arrays, and the same
        # among observations, of which each earlier episode has one more than it has steps.
        self._shard = np.repeat(np.arange(len(shards)), counts)
        begins = [np.cumsum(shard["length"]) - shard["length"] for shard in shards]
        self._first_step = np.concatenate(begins)
        self._first_observation = self._first_step + np.concatenate([*map(np.arange, counts)])
        starts = np.maximum(lengths - length + 1, 0)
        self._ranks_end = np.cumsum(starts)
        self._ranks_begin = self._ranks_end - starts
        terminated = np.concatenate([shard["terminated"] for shard in shards])
        # Rank of the window that ends with the episode; -1 where no termination ended it.
        self._terminal_rank = np.where((terminated > 0) & (starts > 0), self._ranks_end - 1, -1)

    def __len__(self) -> int:
        return int(self._ranks_end[-1])

    def sample(self, batch: int, generator: Generator) -> Windows:
        """Draw `batch` windows, with replacement.

        Args:
            batch: Number of windows `B`.
            generator: Source of randomness.

        Returns:
            Windows in new arrays.

        Raises:
            ValueError: `batch` is below 1.
        """
        if batch < 1:
            raise ValueError(f"batch is {batch}: it must be at least 1")
        return self.gather(generator.integers(len(self), size=batch))

    def gather(self, ranks: NDArray[np.int64]) -> Windows:
        """Fetch windows by their ranks `(B,)`, each from 0 to `len() - 1`."""
        if ranks.size and not 0 <= ranks.min() <= ranks.max() < len(self):
            raise ValueError(f"ranks are {ranks.min()} to {ranks.max()}: use 0 to {len(self) - 1}")
        episodes = np.searchsorted(self._ranks_end, ranks, side="right")
        starts = ranks - self._ranks_begin[episodes]
        shards: list[int] = self._shard[episodes].tolist()
        observed: list[int] = (self._first_observation[episodes] + starts).tolist()
        stepped: list[int] = (self._first_step[episodes] + starts).tolist()

        def observations(name: str) -> Array:
            return self._fetch(name, shards, observed, self.length + 1)

        terminal = np.zeros((len(ranks), self.length), np.bool_)
        terminal[:, -1] = ranks == self._terminal_rank[episodes]
        return Windows(
            observations=from_entries("observations", self._observation_names, observations),
            actions=self._fetch("actions", shards, stepped, self.length),
            quantities={name: observations(f"quantities.{name}") for name in self._quantity_names},
            rewards=self._fetch("rewards", shards, stepped, self.length).astype(
                np.float32, copy=False
            ),
            terminal=terminal,
        )

    def _fetch(self, name: str, shards: Sequence[int], begins: Sequence[int], length: int) -> Array:
        """`length` rows of one array for each window, from row `begins[b]` of shard `shards[b]`.

        Rows of a window are neighbours in the file, so that copying them one window at a time
        beats fancy indexing: no index per row, no temporary copy per shard.
        """
        sources = [shard[name] for shard in self._shards]
        fetched = np.empty((len(begins), length, *sources[0].shape[1:]), sources[0].dtype)
        for row, (shard, begin) in enumerate(zip(shards, begins, strict=True)):
            fetched[row] = sources[shard][begin : begin + length]
        return fetched
