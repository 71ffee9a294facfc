"""The index of a data set: which environment, which shards, what their files must look like.

A shard belongs to a data set once the index names it: `write_shard` writes the file, then the
index, each whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gymnasium import spaces
from numpy.typing import NDArray

from forethought.envs.episode import Episode, entries
from forethought.envs.shard import differences, map_shard, pack, replace_file, shard_bytes
from forethought.envs.spec import EnvSpec

Array = NDArray[Any]

# Version 2 has mappings as observations. Data without them stay at 1, for older readers.
FORMAT_VERSIONS = (1, 2)
INDEX = "index.json"


@dataclass(frozen=True)
class ShardRecord:
    """What the index says about a shard: file name, counts, size in bytes, SHA-256."""

    file: str
    episodes: int
    steps: int
    bytes: int
    sha256: str


def read_index(folder: Path) -> tuple[EnvSpec, list[ShardRecord]]:
    """Read the index of a data set.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged or of another format version.
    """
    path = folder / INDEX
    if not path.exists():
        raise FileNotFoundError(f"no data set in {folder}: {INDEX} is missing, collect one first")
    try:
        index = json.loads(path.read_text())
        version = index["format_version"]
        if version in FORMAT_VERSIONS:
            records = [ShardRecord(**entry) for entry in index["shards"]]
            return EnvSpec.from_json(index["spec"]), records
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): restore it or collect again") from error
    raise ValueError(
        f"{path} has format version {version}, this version reads "
        f"{' and '.join(map(str, FORMAT_VERSIONS))}: read it with the version that wrote it"
    )


def write_index(folder: Path, spec: EnvSpec, records: Sequence[ShardRecord]) -> None:
    """Replace the index of a data set; a kill leaves the old one or the new one."""
    index = {
        "format_version": 2 if isinstance(spec.observation_space, spaces.Dict) else 1,
        "spec": spec.to_json(),
        "shards": [asdict(record) for record in records],
    }
    replace_file(folder / INDEX, json.dumps(index, indent=1, allow_nan=False).encode())


def open_shard(folder: Path, record: ShardRecord) -> tuple[dict[str, Array], dict[str, str]]:
    """Map a shard, after checking it against the index; see `map_shard` for what is returned.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It is cut, damaged, or holds something else.
    """
    if Path(record.file).name != record.file:
        raise ValueError(f"index names the shard {record.file!r}: shards lie in the folder itself")
    path = folder / record.file
    if not path.exists():
        raise FileNotFoundError(f"shard {path} is missing: restore it or collect again")
    size = path.stat().st_size
    if size != record.bytes:
        raise ValueError(
            f"shard {path} has {size} bytes, the index says {record.bytes}: "
            "the file was cut or changed, restore it or collect again"
        )
    arrays, metadata = map_shard(path)
    if "length" not in arrays or "policies" not in metadata:
        raise ValueError(f"shard {path} is no shard of a data set: restore it or collect again")
    if len(arrays["length"]) != record.episodes or int(arrays["length"].sum()) != record.steps:
        raise ValueError(f"shard {path} does not hold what the index says: collect again")
    return arrays, metadata


def write_shard(folder: str | Path, episodes: Sequence[Episode], spec: EnvSpec) -> Path:
    """Append episodes to a data set as one new shard.

    Args:
        folder: Folder of the data set; created if missing.
        episodes: At least one.
        spec: The environment's.

    Returns:
        Path of the shard.

    Raises:
        ValueError: The folder holds another environment, or the episodes do not fit the spec, one
            another or those in the folder.
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
    arrays, metadata = pack(episodes)
    if records and (odd := differences(arrays, open_shard(folder, records[0])[0])):
        raise ValueError(
            f"episodes differ from those of data set {folder} in {odd}: use another folder"
        )
    content = shard_bytes(arrays, metadata)
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
    spaces_of = boxes(spec)
    observed = entries("observations", episode.observations)
    if observed.keys() != spaces_of.keys():
        raise ValueError(
            f"an episode has {sorted(observed)}, the spec says {sorted(spaces_of)}: "
            "write them with the spec of their environment"
        )
    for name, array in observed.items():
        box = spaces_of[name]
        if array.shape[1:] != box.shape or array.dtype != box.dtype:
            raise ValueError(
                f"{name} are {array.dtype} {array.shape[1:]}, the spec says {box.dtype} "
                f"{box.shape}: write them with the spec of their environment"
            )
    if episode.actions.shape[1] != spec.action_dim:
        raise ValueError(
            f"actions have {episode.actions.shape[1]} columns, the spec says {spec.action_dim}"
        )


def boxes(spec: EnvSpec, field: str = "observations") -> dict[str, spaces.Box]:
    """The space of each observation array, by flat name.

    Raises:
        ValueError: Such observations cannot be stored.
    """
    space = spec.observation_space
    parts = (
        {f"{field}.{name}": part for name, part in space.spaces.items()}
        if isinstance(space, spaces.Dict)
        else {field: space}
    )
    found = {name: part for name, part in parts.items() if isinstance(part, spaces.Box)}
    if len(found) < len(parts) or not found:
        raise ValueError(
            f"observation space {space} cannot be stored: use a Box or a Dict of Boxes"
        )
    return found
