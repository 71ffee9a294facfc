"""The index of a data set: which environment, which shards, and what their files must look like."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from forethought.envs.shard import map_shard, replace_file
from forethought.envs.spec import EnvSpec

Array = NDArray[Any]

FORMAT_VERSION = 1
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
        if version == FORMAT_VERSION:
            records = [ShardRecord(**entry) for entry in index["shards"]]
            return EnvSpec.from_json(index["spec"]), records
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): restore it or collect again") from error
    raise ValueError(
        f"{path} has format version {version}, this version reads {FORMAT_VERSION}: "
        "read it with the version that wrote it"
    )


def write_index(folder: Path, spec: EnvSpec, records: Sequence[ShardRecord]) -> None:
    """Replace the index of a data set; a kill leaves the old one or the new one."""
    index = {
        "format_version": FORMAT_VERSION,
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
    if len(arrays["length"]) != record.episodes or int(arrays["length"].sum()) != record.steps:
        raise ValueError(f"shard {path} does not hold what the index says: collect again")
    return arrays, metadata
