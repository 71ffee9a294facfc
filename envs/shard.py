"""One shard of a data set: a safetensors file of flat arrays, read without copying.

Whole episodes stand behind one another:

    observations    (sum of T+1, *O)      quantities.NAME  (sum of T+1, n)
    actions         (sum of T, A)         rewards          (sum of T,)
    goals           (E, *O), or absent    length, seed     (E,) int64
    terminated, truncated  (E,) uint8     success          (E,) int8, -1 where there is no verdict

Where observations are mappings, `observations.NAME` and `goals.NAME` stand for `observations` and
`goals`.

The header's metadata holds the episodes' behaviour policies. A file is
written under a temporary name, flushed to the disk and renamed: under its own name it is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from forethought.envs.episode import Episode, Observation, entries

Array = NDArray[Any]

_DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "U16": np.uint16,
    "I32": np.int32,
    "U32": np.uint32,
    "I64": np.int64,
    "U64": np.uint64,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
}
_LONGEST_HEADER = 100_000_000  # the format's own limit


def pack(episodes: Sequence[Episode]) -> tuple[dict[str, Array], dict[str, str]]:
    """Arrays and metadata of a shard of these episodes.

    Raises:
        ValueError: There are no episodes, or they are not alike in the names, shapes
            and dtypes of their arrays.
    """
    if not episodes:
        raise ValueError("episodes are empty: a shard holds at least one")
    first = episodes[0]
    for episode in episodes:
        _check_alike(first, episode)
    arrays: dict[str, Array] = {
        **_joined("observations", [episode.observations for episode in episodes], np.concatenate),
        "actions": np.concatenate([episode.actions for episode in episodes]),
        "rewards": np.concatenate([episode.rewards for episode in episodes]),
        "length": np.array([episode.length for episode in episodes], np.int64),
        "seed": np.array([episode.seed for episode in episodes], np.int64),
        "terminated": np.array([episode.terminated for episode in episodes], np.uint8),
        "truncated": np.array([episode.truncated for episode in episodes], np.uint8),
        "success": np.array(
            [-1 if episode.success is None else episode.success for episode in episodes], np.int8
        ),
    }
    for name in first.quantities:
        arrays[f"quantities.{name}"] = np.concatenate(
            [episode.quantities[name] for episode in episodes]
        )
    if first.goal is not None:
        goals = [episode.goal for episode in episodes if episode.goal is not None]
        arrays |= _joined("goals", goals, np.stack)
    # One entry alone: safetensors writes several in no order, and equal data are to be equal bytes.
    metadata = {"policies": json.dumps([episode.policy for episode in episodes])}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}, metadata


def shard_bytes(arrays: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """Content of the file that holds what `pack` returned."""
    return save(dict(arrays), dict(metadata))


def differences(one: Mapping[str, Array], other: Mapping[str, Array]) -> list[str]:
    """Names of the arrays that only one shard has, or whose dtypes or rows' shapes differ."""
    layouts = (
        {name: (array.dtype, array.shape[1:]) for name, array in arrays.items()}
        for arrays in (one, other)
    )
    return sorted({name for name, _ in next(layouts).items() ^ next(layouts).items()})


def _joined(
    field: str, values: Sequence[Observation], join: Callable[[list[Array]], Array]
) -> dict[str, Array]:
    """Observations of all episodes, joined entry by entry."""
    parts = [entries(field, value) for value in values]
    return {name: join([part[name] for part in parts]) for name in parts[0]}


def _check_alike(first: Episode, episode: Episode) -> None:
    one, other = _rows(first), _rows(episode)
    if one.keys() != other.keys():
        raise ValueError(
            f"episode of seed {episode.seed} has {sorted(other)}, the first has {sorted(one)}: "
            "write them to different data sets"
        )
    for name, (dtype, shape) in one.items():
        if other[name] != (dtype, shape):
            raise ValueError(
                f"{name} of the episode of seed {episode.seed} are {other[name][0]} "
                f"{other[name][1]}, of the first {dtype} {shape}: make them alike"
            )


def _rows(episode: Episode) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Dtype and shape of one row of each array of an episode."""
    arrays = entries("observations", episode.observations)
    arrays |= {"actions": episode.actions, "rewards": episode.rewards}
    arrays |= {f"quantities.{name}": array for name, array in episode.quantities.items()}
    rows = {name: (array.dtype, array.shape[1:]) for name, array in arrays.items()}
    if episode.goal is None:
        return rows
    goals = entries("goals", episode.goal)
    return rows | {name: (goal.dtype, goal.shape) for name, goal in goals.items()}


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # a directory cannot be opened elsewhere
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def map_shard(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Map a shard's arrays into memory, read-only.

    Returns:
        Arrays by name, and the header's metadata.

    Raises:
        ValueError: The header is damaged.
    """
    content = np.memmap(path, np.uint8, mode="r")
    try:
        header_bytes = int.from_bytes(content[:8].tobytes(), "little")
        if len(content) < 8 or header_bytes > min(_LONGEST_HEADER, len(content) - 8):
            raise ValueError("the header is longer than the file")
        header = json.loads(content[8 : 8 + header_bytes].tobytes())
        metadata = dict(header.pop("__metadata__", {}))
        data = np.asarray(content[8 + header_bytes :])  # still the mapped file
        return {name: _view(data, entry) for name, entry in header.items()}, metadata
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"shard {path} has a damaged header ({error}): restore the file or collect it again"
        ) from error


def _view(data: Array, entry: Mapping[str, Any]) -> Array:
    start, end = entry["data_offsets"]
    if not 0 <= start <= end <= len(data):
        raise ValueError("an array reaches beyond the file")
    return data[start:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
