"""A file of flat arrays, `.npz` or HDF5, becomes a data set."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, Unpack

import numpy as np

from forethought.envs.dataset import Dataset
from forethought.envs.exchange.arrays import import_arrays
from forethought.envs.exchange.episodes import ImportOptions

Keys: TypeAlias = Mapping[str, str | Mapping[str, str]]

# Argument of `import_arrays`: names that it goes by, the first one found is taken.
KEYS: dict[str, tuple[str, ...]] = {
    "observations": ("observations", "observation", "obs"),
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward"),
    "terminated": ("terminated", "terminals", "terminations"),
    "truncated": ("truncated", "timeouts", "truncations"),
    "next_observations": ("next_observations", "next_observation", "next_obs"),
    "episode_lengths": ("episode_lengths", "length", "lengths", "ep_len"),
    "episode_ends": ("episode_ends",),
    "quantities": ("quantities",),
    "goals": ("goals",),
    "success": ("success",),
    "seeds": ("seeds", "seed"),
}
_MAPPINGS = ("observations", "next_observations", "quantities", "goals")


def import_file(
    path: str | Path,
    folder: str | Path,
    *,
    keys: Keys | None = None,
    **options: Unpack[ImportOptions],
) -> Dataset:
    """Make a data set of a `.npz`, `.h5` or `.hdf5` file that holds flat arrays.

    The arrays are the arguments of `import_arrays`, under their own names, those of Gymnasium or
    those of D4RL. Entries of an observation (and of next observations, goals and quantities) are
    named `observations.NAME` or `observations/NAME`, as in an HDF5 group. Other arrays are
    ignored. HDF5 files are read one episode at a time.

    Args:
        path: The file.
        folder: Folder of the data set, new or empty.
        keys: Names in this file that are others: argument to key, or argument to a mapping from
            names of entries to keys, such as `{"observations": {"camera": "pixels"}}`.
        **options: See `ImportOptions`.

    Returns:
        The data set, opened.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: HDF5 is not installed.
        ValueError: The file is of another kind or damaged, a key is missing, or as
            `import_arrays`. Nothing is left behind.
    """
    path = Path(path)
    openers = {".npz": _npz, ".h5": _hdf5, ".hdf5": _hdf5}
    if path.suffix.lower() not in openers:
        raise ValueError(f"{path} is no file that can be imported: use {', '.join(openers)}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: name a file")
    if unknown := sorted(set(keys or {}) - set(KEYS)):
        raise ValueError(f"keys name {unknown}: use some of {', '.join(KEYS)}")
    with openers[path.suffix.lower()](path) as (names, read):
        found = _chosen(path, names, keys or {})
        arrays: dict[str, Any] = {
            field: {name: read(key) for name, key in chosen.items()}
            if isinstance(chosen, Mapping)
            else read(chosen)
            for field, chosen in found.items()
        }
        return import_arrays(folder, **arrays, **options)


def _chosen(path: Path, names: list[str], keys: Keys) -> dict[str, str | Mapping[str, str]]:
    """The file's key, or keys of entries, for each argument of `import_arrays`."""
    found: dict[str, str | Mapping[str, str]] = {}
    for field, usual in KEYS.items():
        given = keys.get(field)
        candidates = (given,) if isinstance(given, str) else usual
        if isinstance(given, Mapping):
            found[field] = given
            continue
        for candidate in candidates:
            parts = {
                name[len(candidate) + 1 :]: name
                for name in names
                if field in _MAPPINGS and name.startswith((f"{candidate}.", f"{candidate}/"))
            }
            if candidate in names or parts:
                found[field] = candidate if candidate in names else parts
                break
        else:
            if given is not None or field in ("observations", "actions"):
                raise ValueError(
                    f"{path} has no {' or '.join(candidates)}: it has {', '.join(names)}; say "
                    f"which of them are {field} with keys (--names.{field} on the command line)"
                )
    for chosen in found.values():
        for key in chosen.values() if isinstance(chosen, Mapping) else (chosen,):
            if key not in names:
                raise ValueError(f"{path} has no {key}: it has {', '.join(names)}")
    if isinstance(found.get("quantities"), str):
        raise ValueError(f"{path} has quantities without names: name each one quantities.NAME")
    return found


@contextmanager
def _npz(path: Path) -> Iterator[tuple[list[str], Callable[[str], Any]]]:
    try:
        archive = np.load(path, allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}): write it again") from error

    def read(key: str) -> Any:
        try:
            return archive[key]
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{key} of {path} cannot be read ({error}): write it again, as numbers"
            ) from error

    with archive:
        yield list(archive.files), read


@contextmanager
def _hdf5(path: Path) -> Iterator[tuple[list[str], Callable[[str], Any]]]:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            f"{path} needs h5py, which is not installed: pip install 'forethought[data]'"
        ) from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}): write it again") from error
    with file:
        names: list[str] = []
        file.visititems(
            lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
        )
        yield names, file.__getitem__
