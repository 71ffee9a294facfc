"""To and from Minari, the collection of data sets of the Farama Foundation.

Everything stays on this machine: Minari keeps data sets in the folder `MINARI_DATASETS_PATH`, or
`.minari` in the home directory. What Minari has no place for (the spec, goals, quantities, success,
behaviour policies) travels in the infos and the metadata, so that a data set of ours comes back as
it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Unpack

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from forethought.envs.dataset import Dataset
from forethought.envs.episode import Episode
from forethought.envs.exchange.conversion import each
from forethought.envs.exchange.episodes import EpisodeSource, ImportOptions, new_folder, store
from forethought.envs.spec import EnvSpec

Array = NDArray[Any]

_SPEC = "forethought_spec"


def export_minari(
    folder: str | Path,
    dataset_id: str,
    *,
    description: str | None = None,
    author: str | None = None,
    author_email: str | None = None,
    code_permalink: str | None = None,
) -> Path:
    """Write a data set as one of Minari's, on this machine.

    Actions are those stored, in [-1, 1]. Pictures are stored without loss. No environment is named,
    because Minari would make it without the options and scaling that the data were collected with.

    Args:
        folder: Folder of the data set.
        dataset_id: Minari's id, `NAME-v0` or `NAMESPACE/NAME-v0`.
        description: What Minari's metadata say; likewise the other arguments.
        author: Name.
        author_email: Address.
        code_permalink: Where the code is that made the data.

    Returns:
        Folder of Minari's data set.

    Raises:
        ImportError: Minari is not installed.
        ValueError: The id is malformed or taken, or a name is not one that HDF5 can hold. Nothing
            is left behind.
    """
    minari = _minari()
    from minari.dataset.minari_storage import MinariStorage
    from minari.namespace import create_namespace, list_local_namespaces

    data = Dataset.open(folder)
    for name in (*data.observation_names, *data.quantity_names):
        if not name or "/" in name or name == ".":
            raise ValueError(f"{name!r} is no name in HDF5: name observations and quantities so")
    target = _path_of(dataset_id)
    if target.exists():
        raise ValueError(f"dataset_id is {dataset_id}, which is there already: give a new version")
    namespace = dataset_id.rpartition("/")[0]
    metadata: dict[str, Any] = {
        "dataset_id": dataset_id,
        "minari_version": minari.__version__,
        "algorithm_name": ", ".join(sorted(set(data.policies))),
        _SPEC: json.dumps(data.spec.to_json()),
    }
    given = {"description": description, "code_permalink": code_permalink}
    metadata |= {name: text for name, text in given.items() if text is not None}
    people = {"author": author, "author_email": author_email}
    metadata |= {name: {text} for name, text in people.items() if text is not None}
    with new_folder(target) as temporary:
        storage = MinariStorage.new(
            temporary / "data",
            observation_space=data.spec.observation_space,
            action_space=data.spec.action_space,
            jpeg_encoding=False,
        )
        storage.update_metadata(metadata)
        storage.update_episodes(_buffers(data))
        storage.update_episode_metadata(
            [
                {"policy": policy, "success": int(success)}
                for policy, success in zip(data.policies, data.arrays("success"), strict=True)
            ]
        )
    if namespace and namespace not in list_local_namespaces():
        create_namespace(namespace)
    return target


def import_minari(
    dataset_id: str,
    folder: str | Path,
    *,
    quantities: Sequence[str] = (),
    **options: Unpack[ImportOptions],
) -> Dataset:
    """Make a data set of one of Minari's that is on this machine.

    One that `export_minari` wrote comes back as it was. Of others, actions are mapped to [-1, 1]
    from the bounds of their space, nested observations get names such as `arm.joints`, episodes
    are numbered from 0, whatever their seeds were, and a `success` among the infos is that of the
    last step.

    Args:
        dataset_id: Minari's id.
        folder: Folder of the data set, new or empty.
        quantities: Infos to keep as quantities, `GROUP/NAME` for nested ones.
        **options: See `ImportOptions`; by default `env_id` is `own/DATASET_ID`.

    Returns:
        The data set, opened.

    Raises:
        ImportError: Minari is not installed.
        FileNotFoundError: There is no such data set on this machine.
        ValueError: A space is of a kind that cannot be stored, or as `import_episodes`.
    """
    minari = _minari()
    if not _path_of(dataset_id).exists():
        raise FileNotFoundError(
            f"no Minari data set {dataset_id} in {_path_of(dataset_id)}: download it with "
            f"`minari download {dataset_id}`, or set MINARI_DATASETS_PATH"
        )
    source = minari.load_dataset(dataset_id)
    stored = source.storage.metadata.get(_SPEC)
    if stored is not None:
        options = {"spec": EnvSpec.from_json(json.loads(stored)), **options}
        return store(folder, _Ours(source), **options)
    space = source.action_space
    defaults: ImportOptions = {"env_id": f"own/{dataset_id}"}
    if isinstance(space, spaces.Discrete):
        defaults["discrete_actions"] = int(space.n)
    elif not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"{dataset_id} has the action space {space}: only Box (A,) and Discrete")
    elif np.isfinite([space.low, space.high]).all():
        defaults["action_low"], defaults["action_high"] = space.low.tolist(), space.high.tolist()
    defaults.update(options)
    return store(folder, _Foreign(source, quantities), **defaults)


class _Minari(EpisodeSource):
    """Episodes of a Minari data set."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self._read: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return int(self._source.total_episodes)

    def _episode(self, index: int) -> Any:
        if self._read[0] != index:
            self._read = (index, self._source[index])
        return self._read[1]

    def actions(self, index: int) -> Any:
        return self._episode(index).actions

    def record(self, index: int) -> dict[str, Any]:
        episode = self._episode(index)
        return {
            "observations": episode.observations,
            "actions": self.actions(index),
            "rewards": episode.rewards,
            "terminated": episode.terminations[-1],
            "truncated": episode.truncations[-1],
        }


class _Ours(_Minari):
    def record(self, index: int) -> dict[str, Any]:
        infos: Mapping[str, Any] = self._episode(index).infos or {}
        storage = self._source.storage
        (metadata,) = storage.get_episode_metadata([self._source.episode_indices[index]])
        record = super().record(index)
        record |= {
            "success": None if metadata["success"] < 0 else bool(metadata["success"]),
            "quantities": infos.get("quantities", {}),
            "seed": metadata["seed"],
            "policy": metadata["policy"],
        }
        if "goal" in infos:
            record["goal"] = each("goal", infos["goal"], lambda _, array: array[0])
        return record


class _Foreign(_Minari):
    def __init__(self, source: Any, quantities: Sequence[str]) -> None:
        super().__init__(source)
        self._quantities = quantities
        self._first = int(getattr(source.action_space, "start", 0))

    def actions(self, index: int) -> Any:
        actions = super().actions(index)
        return actions - self._first if self._first else actions

    def record(self, index: int) -> dict[str, Any]:
        infos: Mapping[str, Any] = self._episode(index).infos or {}
        record = super().record(index)
        record["observations"] = _flattened(record["observations"])
        if "success" in infos:
            record["success"] = bool(np.asarray(infos["success"])[-1])
        record["quantities"] = {name: _info(infos, name) for name in self._quantities}
        return record


def _buffers(data: Dataset) -> Iterator[Any]:
    """Episodes in Minari's words, one at a time."""
    discrete = isinstance(data.spec.action_space, spaces.Discrete)
    return (_buffer(data.episode(index), discrete) for index in range(data.episodes))


def _buffer(episode: Episode, discrete: bool) -> Any:
    from minari.data_collector import EpisodeBuffer

    infos: dict[str, Any] = {}
    if episode.quantities:
        infos["quantities"] = dict(episode.quantities)
    if episode.goal is not None:
        # Infos have a row for each observation.
        rows = episode.length + 1
        infos["goal"] = each(
            "goal", episode.goal, lambda _, goal: np.broadcast_to(goal, (rows, *goal.shape))
        )
    last = np.arange(episode.length) == episode.length - 1
    return EpisodeBuffer(
        seed=episode.seed,
        observations=episode.observations,
        actions=episode.actions[:, 0] if discrete else episode.actions,
        rewards=episode.rewards,
        terminations=last & episode.terminated,
        truncations=last & episode.truncated,
        infos=infos or None,
    )


def _flattened(value: Any, prefix: str = "") -> Any:
    """Nested mappings as one, with names joined by dots; tuples count from 0."""
    if isinstance(value, tuple):
        value = {str(number): part for number, part in enumerate(value)}
    if not isinstance(value, Mapping):
        return value
    flat: dict[str, Any] = {}
    for name, part in value.items():
        inner = _flattened(part, f"{prefix}{name}.")
        flat |= inner if isinstance(inner, Mapping) else {f"{prefix}{name}": inner}
    return flat


def _info(infos: Mapping[str, Any], name: str) -> Any:
    value: Any = infos
    for part in name.split("/"):
        if not isinstance(value, Mapping) or part not in value:
            raise ValueError(f"quantity {name!r} is not among the infos: they are {sorted(infos)}")
        value = value[part]
    return value


def _minari() -> ModuleType:
    try:
        import minari
    except ImportError as error:
        raise ImportError("Minari is not installed: pip install 'forethought[data]'") from error
    module: ModuleType = minari
    return module


def _path_of(dataset_id: str) -> Path:
    """Folder of a Minari data set, whether it is there or not."""
    from minari.dataset.minari_dataset import DATASET_ID_RE
    from minari.storage import get_dataset_path

    match = DATASET_ID_RE.fullmatch(dataset_id)
    if match is None or match.group("version") is None or ".." in dataset_id:
        raise ValueError(f"dataset_id is {dataset_id!r}: give NAME-v0 or NAMESPACE/NAME-v0")
    path: Path = get_dataset_path(dataset_id)
    return path
