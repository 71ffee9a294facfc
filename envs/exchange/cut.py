"""Where episodes end in flat arrays: from lengths, from marks, or from what follows what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forethought.envs.episode import entries

Bools = NDArray[np.bool_]

_COMPARED_BYTES = 2**24


@dataclass(frozen=True)
class Cut:
    """Where episodes end `(E,)`, counted in actions, and how `(E,)`."""

    ends: NDArray[np.int64]
    terminated: Bools
    truncated: Bools

    @staticmethod
    def of(
        count: int,
        lengths: ArrayLike | None,
        ends: ArrayLike | None,
        terminated: ArrayLike | None,
        truncated: ArrayLike | None,
        breaks: Bools | None,
    ) -> Cut | None:
        """Decide from what is given; None where nothing says it."""
        known = _known_ends(count, lengths, ends)
        terminal = _marks("terminated", terminated, count, known)
        clock = _marks("truncated", truncated, count, known)
        if known is None:
            if terminated is None and truncated is None and breaks is None:
                return None
            over = terminal | clock
            if truncated is None and breaks is not None:
                over |= breaks
            known = np.union1d(np.flatnonzero(over) + 1, [count])
        inside = np.ones(count, np.bool_)
        inside[known - 1] = False
        for name, marks in (("terminated", terminal), ("truncated", clock)):
            if (marks & inside).any():
                raise ValueError(
                    f"{name} is set in row {int(np.argmax(marks & inside))}, which is inside an "
                    "episode: mend the lengths, or leave them out"
                )
        last = known - 1
        return Cut(known, terminal[last], clock[last] | ~terminal[last])

    def check_outside(self, breaks: Bools) -> None:
        """Check that rows `(N,)` after which observations do not continue end their episodes."""
        inside = breaks.copy()
        inside[self.ends - 1] = False
        if inside.any():
            raise ValueError(
                f"next_observations are not the following observations in {inside.sum()} rows "
                f"inside episodes, first in row {int(np.argmax(inside))}: mark episodes that end "
                "there, or leave next_observations out"
            )


def _known_ends(
    count: int, lengths: ArrayLike | None, ends: ArrayLike | None
) -> NDArray[np.int64] | None:
    if lengths is not None and ends is not None:
        raise ValueError("episode_lengths and episode_ends are both given: one is enough")
    given = lengths if ends is None else ends
    if given is None:
        return None
    name = "episode_lengths" if ends is None else "episode_ends"
    array = np.atleast_1d(np.asarray(given))
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{name} are {array.dtype} {array.shape}: give whole numbers (E,)")
    array = array.astype(np.int64)
    known: NDArray[np.int64] = np.cumsum(array) if ends is None else array
    if not len(known) or (np.diff(known, prepend=0) < 1).any() or known[-1] != count:
        raise ValueError(
            f"{name} lead up to {known[-1] if len(known) else 0} with the shortest episode of "
            f"{np.diff(known, prepend=0).min(initial=count)} steps: there are {count} actions, and "
            "an episode has at least 1"
        )
    return known


def _marks(name: str, marks: ArrayLike | None, count: int, ends: NDArray[np.int64] | None) -> Bools:
    """Marks of steps `(N,)`, from those of steps or of episodes."""
    if marks is None:
        return np.zeros(count, np.bool_)
    array = np.asarray(marks)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        raise ValueError(f"{name} hold other values than 0 and 1: give booleans")
    flags = array.astype(np.bool_)
    if flags.shape == (count,):
        return flags
    if ends is not None and flags.shape == ends.shape:
        spread = np.zeros(count, np.bool_)
        spread[ends - 1] = flags
        return spread
    episodes = "" if ends is None else f" or ({len(ends)},)"
    raise ValueError(f"{name} have shape {flags.shape}: give ({count},){episodes}")


def breaks_of(observations: Any, following: Any, count: int) -> Bools:
    """Rows `(N,)` whose next observation is not the following row; the last row is none.

    Raises:
        ValueError: The two differ in entries or shapes, or do not have `count` rows.
    """
    first, second = entries("observations", observations), entries("observations", following)
    if first.keys() != second.keys():
        raise ValueError(
            f"next_observations have the entries {sorted(second)}, observations {sorted(first)}: "
            "give the same"
        )
    for name in first:
        if len(first[name]) != count or first[name].shape != second[name].shape:
            raise ValueError(
                f"{name} have shape {first[name].shape}, the next ones {second[name].shape}: "
                f"with next_observations give {count} rows of both, as many as actions"
            )
    breaks = np.zeros(count, np.bool_)
    for name, array in first.items():
        row_bytes = max(1, array.dtype.itemsize * int(np.prod(array.shape[1:])))
        rows = max(1, _COMPARED_BYTES // row_bytes)
        for begin in range(0, count - 1, rows):
            end = min(begin + rows, count - 1)
            differ = np.asarray(second[name][begin:end]) != np.asarray(array[begin + 1 : end + 1])
            breaks[begin:end] |= differ.reshape(end - begin, -1).any(1)
    return breaks
