"""Flat arrays from elsewhere, episodes behind one another, become a data set.

Of `N` actions in `E` episodes there are either

    N + E observations     one more than actions in each episode, as this project has them, or
    N observations         one for each action, as D4RL and most other collections have them

and in the second case the observation after an episode's last action stands in `next_observations`.
Without these that action is dropped, since nobody knows where it led: the episode then has one step
less, was cut by the clock, and did not terminate.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forethought.envs.dataset import Dataset
from forethought.envs.episode import entries
from forethought.envs.exchange.conversion import each
from forethought.envs.exchange.cut import Cut, breaks_of
from forethought.envs.exchange.episodes import EpisodeSource, ImportOptions, store

Array = NDArray[Any]

logger = logging.getLogger(__name__)


def import_arrays(
    folder: str | Path,
    *,
    observations: Any,
    actions: ArrayLike,
    rewards: ArrayLike | None = None,
    terminated: ArrayLike | None = None,
    truncated: ArrayLike | None = None,
    next_observations: Any = None,
    episode_lengths: ArrayLike | None = None,
    episode_ends: ArrayLike | None = None,
    quantities: Mapping[str, Any] | None = None,
    goals: Any = None,
    success: ArrayLike | None = None,
    seeds: ArrayLike | None = None,
    **options: Unpack[ImportOptions],
) -> Dataset:
    """Make a data set of flat arrays; see the top of this module for the two layouts.

    Where episodes end is said by `episode_lengths` or `episode_ends`; else by `terminated` and
    `truncated` (D4RL's `terminals` and `timeouts`); else, and where only `terminated` is given, by
    each row of `next_observations` that is not the following row of `observations`. What ends
    without having terminated is truncated.

    Arrays of an entry per observation may be anything that has a shape and slices, such as a
    memory map or a data set of h5py: they are read one episode at a time.

    Args:
        folder: Folder of the data set, new or empty.
        observations: `(N+E, *O)` or `(N, *O)`, or a mapping from names to such arrays.
        actions: `(N, A)` or `(N,)`.
        rewards: `(N,)`; else 0.
        terminated: `(N,)`, the task ended the episode at this step; with lengths or ends also
            `(E,)`.
        truncated: `(N,)`, the clock did; likewise.
        next_observations: Like `observations`, `(N, *O)`, one step later.
        episode_lengths: `(E,)`, actions of each episode.
        episode_ends: `(E,)`, actions up to the end of each episode, the last one `N`.
        quantities: Named physical quantities, each with as many rows as there are observations
            to keep: `(N+E, n)`, or `(N, n)` beside `N` observations without `next_observations`.
        goals: `(E, *O)`, or a mapping from names to such arrays.
        success: `(E,)`.
        seeds: `(E,)`; else the episode's number. See `ImportOptions` on those of 10^6 and above.
        **options: As for `import_episodes`.

    Returns:
        The data set, opened.

    Raises:
        ValueError: Lengths disagree, nothing says where episodes end, or as `import_episodes`.
    """
    taken = np.asarray(actions)
    count = len(taken) if taken.ndim else 0
    if not count:
        raise ValueError("actions are empty: give at least one")
    observations = each("observations", observations, _sliceable)
    breaks = None
    if next_observations is not None:
        next_observations = each("next_observations", next_observations, _sliceable)
        breaks = breaks_of(observations, next_observations, count)
    cut = Cut.of(count, episode_lengths, episode_ends, terminated, truncated, breaks)
    if cut is None:
        if _rows("observations", observations) != count + 1:
            raise ValueError(
                "nothing says where episodes end: give terminated and truncated, episode_lengths "
                "or episode_ends"
            )
        cut = Cut(np.array([count]), np.zeros(1, np.bool_), np.ones(1, np.bool_))
    if breaks is not None:
        cut.check_outside(breaks)
    number, rows = len(cut.ends), _rows("observations", observations)
    if rows not in (count, count + number):
        raise ValueError(
            f"observations have {rows} rows: {count} actions in {number} episodes need "
            f"{count + number}, one more in each episode, or {count}"
        )
    one_more = rows == count + number
    drop = not one_more and next_observations is None
    _check_rows("rewards", rewards, count, "one for each action")
    _check_rows("goals", goals, number, "one for each episode")
    _check_rows("success", success, number, "one for each episode")
    _check_rows("seeds", seeds, number, "one for each episode")
    needed = count if drop else count + number
    for name, values in (quantities or {}).items():
        _check_rows(f"quantities.{name}", values, needed, "one for each observation, the last too")
    flat = _FlatEpisodes(
        cut=cut,
        one_more=one_more,
        drop=drop,
        observations=observations,
        next_observations=next_observations,
        taken=taken,
        rewards=rewards if rewards is None else np.asarray(rewards).reshape(count),
        quantities={name: _sliceable(name, value) for name, value in (quantities or {}).items()},
        goals=goals if goals is None else each("goals", goals, _sliceable),
        success=success if success is None else np.asarray(success),
        seeds=seeds if seeds is None else np.asarray(seeds),
    )
    if drop:
        logger.warning(
            "no next_observations: the last action of each of %d episodes is dropped, and with it "
            "%d episodes that have no other; %d of %d actions are left",
            number,
            number - len(flat),
            sum(end - begin for _, begin, end in flat.spans),
            count,
        )
    if not len(flat):
        raise ValueError("each episode has one action, which is dropped: give next_observations")
    return store(folder, flat, **options)


@dataclass(frozen=True)
class _FlatEpisodes(EpisodeSource):
    """Episodes, cut from flat arrays when they are asked for."""

    cut: Cut
    one_more: bool  # observation than actions in each episode
    drop: bool  # the last action
    observations: Any
    next_observations: Any
    taken: Array
    rewards: Array | None
    quantities: Mapping[str, Any]
    goals: Any
    success: Array | None
    seeds: Array | None
    # Of each episode that is left: its number, and where its actions begin and end.
    spans: list[tuple[int, int, int]] = field(init=False)

    def __post_init__(self) -> None:
        ends: list[int] = self.cut.ends.tolist()
        begins = [0, *ends[:-1]]
        spans = [
            (number, begin, end - self.drop)
            for number, (begin, end) in enumerate(zip(begins, ends, strict=True))
            if end - self.drop > begin
        ]
        object.__setattr__(self, "spans", spans)

    def __len__(self) -> int:
        return len(self.spans)

    def actions(self, index: int) -> Array:
        _, begin, end = self.spans[index]
        return self.taken[begin:end]

    def seed(self, index: int) -> Any:
        return None if self.seeds is None else self.seeds[self.spans[index][0]]

    def where(self, index: int) -> str:
        number, begin, end = self.spans[index]
        return f"episode {number} (actions {begin} to {end - 1})"

    def record(self, index: int) -> dict[str, Any]:
        number, begin, end = self.spans[index]
        # Each earlier episode has an observation more than actions, or as many.
        wide, narrow = slice(begin + number, end + number + 1), slice(begin, end + 1)
        rows = wide if self.one_more else narrow
        if self.next_observations is not None:
            rows = slice(begin, end)
        observations = each("observations", self.observations, lambda _, array: array[rows])
        if self.next_observations is not None:
            final = entries("observations", self.next_observations)
            observations = each(
                "observations",
                observations,
                lambda name, array: np.concatenate([array, final[name][end - 1 : end]]),
            )
        rows_of_quantities = narrow if self.drop else wide
        record: dict[str, Any] = {
            "observations": observations,
            "actions": self.taken[begin:end],
            "terminated": bool(self.cut.terminated[number]) and not self.drop,
            "truncated": bool(self.cut.truncated[number]) or self.drop,
            "quantities": {
                name: array[rows_of_quantities] for name, array in self.quantities.items()
            },
            "seed": number,
        }
        if self.rewards is not None:
            record["rewards"] = self.rewards[begin:end]
        if self.goals is not None:
            record["goal"] = each("goals", self.goals, lambda _, array: array[number])
        if self.success is not None:
            record["success"] = self.success[number]
        if self.seeds is not None:
            record["seed"] = self.seeds[number]
        return record


def _rows(name: str, value: Any) -> int:
    """Rows that an array has, or all arrays of a mapping."""
    counts = {key: len(array) for key, array in entries(name, value).items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"{name} have different numbers of rows, {counts}: give as many of each")
    return next(iter(counts.values()))


def _sliceable(_: str, value: Any) -> Any:
    """Arrays, memory maps and the like as they are, lists as arrays."""
    return value if hasattr(value, "shape") and hasattr(value, "dtype") else np.asarray(value)


def _check_rows(name: str, value: Any, needed: int, which: str) -> None:
    if value is not None and _rows(name, value) != needed:
        raise ValueError(f"{name} have {_rows(name, value)} rows: {needed} are needed, {which}")
