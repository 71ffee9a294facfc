"""What is in a data set, as a dictionary that JSON can hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from forethought.envs.collect import HELD_OUT_SEED
from forethought.envs.dataset import Dataset
from forethought.envs.index import boxes

Array = NDArray[Any]

_ROWS, _PICTURES = 4096, 256  # looked at together
_AT_BOUND = 1e-6


def describe(folder: str | Path, sample: int = 4096) -> dict[str, Any]:
    """Describe a data set.

    Args:
        folder: Its folder.
        sample: Pictures that are looked at, evenly spread; other arrays are read as a whole.

    Returns:
        `environment` (id, options, spaces, seconds per decision, longest episode), `episodes`,
        `decisions`, `environment_steps` (several to a decision where the environment repeats
        actions), `length` and `return` of an episode (min, mean, max), `success` (the share and
        `of` how many episodes with a verdict; None without any), `terminated`, `truncated`
        (episodes), `policies` (episodes of each), `seeds` (min, max, and `held_out`, how many are
        held out for evaluation), `shards`, `bytes`, and of each number, or channel of a picture,
        `observations` by flat name (`observations`, or `observations.NAME`), `quantities` by name
        and `rewards`: min, mean, std, max, and `rows`, how many were looked at. `actions` have the
        same with `at_bounds`, the share at -1 or 1 of each column, or `counts` where they are
        discrete.

    Raises:
        FileNotFoundError: There is no data set, or a shard is missing.
        ValueError: It is damaged, or `sample` is below 1.
    """
    if sample < 1:
        raise ValueError(f"sample is {sample}: look at 1 picture or more")
    data = Dataset.open(folder)
    spec = data.spec
    verdicts = data.arrays("success")
    verdicts = verdicts[verdicts >= 0]
    seeds = data.arrays("seed")
    rewards = data.arrays("rewards").astype(np.float64)
    return {
        "environment": spec.to_json(),
        "episodes": data.episodes,
        "decisions": data.steps,
        "environment_steps": data.steps * spec.action_repeat,
        "length": _range(data.lengths),
        "return": _range(np.add.reduceat(rewards, data.step_offsets[:-1])),
        "success": {"share": float(verdicts.mean()), "of": len(verdicts)}
        if len(verdicts)
        else None,
        "terminated": int(data.arrays("terminated").sum()),
        "truncated": int(data.arrays("truncated").sum()),
        "policies": dict(sorted(Counter(data.policies).items())),
        "seeds": {
            "min": int(seeds.min()),
            "max": int(seeds.max()),
            "held_out": int((seeds >= HELD_OUT_SEED).sum()),
        },
        "shards": len(data.shards),
        "bytes": sum(shard.bytes for shard in data.shards),
        "observations": _observations(data, sample),
        "quantities": {
            name: _statistics(_chunks(data.arrays(f"quantities.{name}")))
            for name in data.quantity_names
        },
        "rewards": _statistics(_chunks(rewards[:, None])),
        "actions": _actions(data),
    }


def _range(values: Array) -> dict[str, float]:
    return {"min": float(values.min()), "mean": float(values.mean()), "max": float(values.max())}


def _chunks(array: Array) -> Iterator[Array]:
    return (array[begin : begin + _ROWS] for begin in range(0, len(array), _ROWS))


def _observations(data: Dataset, sample: int) -> dict[str, dict[str, Any]]:
    total = int(data.observation_offsets[-1])
    spread = np.unique(np.linspace(0, total - 1, min(sample, total)).astype(np.int64))
    described = {}
    for name, box in boxes(data.spec).items():
        picture = len(box.shape) == 3
        chosen = spread if picture else np.arange(total)
        step = _PICTURES if picture else _ROWS
        parts = (
            data.rows(name, chosen[begin : begin + step]) for begin in range(0, len(chosen), step)
        )
        described[name] = _statistics(parts)
    return described


def _actions(data: Dataset) -> dict[str, Any]:
    actions, space = data.arrays("actions"), data.spec.action_space
    if isinstance(space, spaces.Discrete):
        counts = np.bincount(actions[:, 0] - space.start, minlength=int(space.n))
        return {"counts": counts.tolist()}
    at_bounds = (np.abs(actions) >= 1 - _AT_BOUND).mean(0)
    return {**_statistics(_chunks(actions)), "at_bounds": at_bounds.tolist()}


def _statistics(parts: Iterable[Array]) -> dict[str, Any]:
    """Min, mean, std and max of each number of rows `(N, ...)`, of each channel of pictures.

    Means and squares are merged part by part (Chan, Golub and LeVeque 1979), so that a large mean
    does not swallow a small spread.
    """
    low, high, mean, squares = (np.zeros(()) for _ in range(4))
    rows = weight = 0
    for part in parts:
        picture = part.ndim == 4
        flat = part if picture else part.reshape(len(part), -1)
        axes = (0, 2, 3) if picture else (0,)
        count = flat.size // flat.shape[1]
        own_mean = flat.mean(axes, dtype=np.float64)
        own_squares = flat.var(axes, dtype=np.float64) * count
        shift, total = own_mean - mean, weight + count
        squares = squares + own_squares + shift**2 * (weight * count / total)
        mean = mean + shift * (count / total)
        low = np.minimum(low, flat.min(axes)) if rows else flat.min(axes)
        high = np.maximum(high, flat.max(axes)) if rows else flat.max(axes)
        rows, weight = rows + len(part), total
    return {
        "min": low.astype(np.float64).tolist(),
        "mean": mean.tolist(),
        "std": np.sqrt(squares / weight).tolist(),
        "max": high.astype(np.float64).tolist(),
        "rows": rows,
    }
