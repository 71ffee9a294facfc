"""Collection: a behaviour policy acts in many environments at once, whole episodes come out.

Episode k has seed `first_seed + k`, and every episode that is begun is finished and kept, so
that short episodes are not favoured. Seeds from `HELD_OUT_SEED` on belong to evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from numpy.random import Generator
from numpy.typing import NDArray

from forethought.envs.episode import Episode, Observation
from forethought.envs.make import spec_of
from forethought.envs.policies import Policy, env_actions, no_actions
from forethought.envs.vector import MaskedResetVectorEnv

Array = NDArray[Any]

HELD_OUT_SEED = 10**6


def collect(
    env: VectorEnv[Any, Any, Any],
    policy: Policy,
    episodes: int,
    *,
    first_seed: int,
    generator: Generator,
    length: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[Episode]:
    """Collect episodes, in the order of their seeds.

    Arguments are checked and environments reset at once; they step while the result is iterated
    over. Which seeds come out, and in which order, does not depend on which episode ends first.
    The policy's noise is drawn for the whole batch: the same generator, `num_envs` and versions
    give the same episodes.

    Args:
        env: From `make`.
        policy: Acts for all environments.
        episodes: Number of episodes.
        first_seed: Seed of the first episode.
        generator: Source of the policy's randomness.
        length: Decisions after which an episode is truncated, if it has not ended by then; None
            leaves that to the environment. Short episodes see more starts in as many steps.
        on_progress: Called with the number of episodes finished so far.

    Returns:
        Iterator over `episodes` episodes.

    Raises:
        ValueError: A number is out of range, a seed would be held out, or the action space is
            neither a `Box` in [-1, 1] nor `Discrete` from 0, or not one of the policy's.
    """
    check_seeds(first_seed, episodes)
    if length is not None and length < 1:
        raise ValueError(f"length is {length}: it must be at least 1")
    batch = _Batch(env, policy, generator, first_seed, first_seed + episodes, length)
    return _collect(batch, first_seed, episodes, on_progress)


def check_seeds(first_seed: int, episodes: int) -> None:
    """Refuse numbers out of range, and seeds that are held out for evaluation.

    Raises:
        ValueError: They are.
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}: it must be at least 1")
    if first_seed < 0:
        raise ValueError(f"first_seed is {first_seed}: it must be 0 or above")
    if first_seed + episodes > HELD_OUT_SEED:
        raise ValueError(
            f"first_seed is {first_seed} and episodes {episodes}: seeds from {HELD_OUT_SEED} on "
            "are held-out seeds for evaluation, stay below"
        )


class _Step(NamedTuple):
    """One step of all rows: what was seen, what was done, and what it paid."""

    observations: Observation
    quantities: Mapping[str, Array]
    actions: Array
    rewards: Array


class _Begun(NamedTuple):
    """An episode in the making, in one row: its seed and goal, and the step it began with."""

    seed: int
    goal: Observation | None
    step: int


class _Batch:
    """All rows of the environments, each with the episode it is in.

    Steps are kept for all rows together, which is cheaper than row by row; an episode's own are
    picked out when it ends, and steps of which no running episode is a part are dropped.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        policy: Policy,
        generator: Generator,
        first_seed: int,
        end_seed: int,
        length: int | None,
    ) -> None:
        self.length = length
        self.space = env.single_action_space
        _check_actions(self.space)
        self.env, self.policy, self.generator = env, policy.for_space(self.space), generator
        self.env_id = spec_of(env).id
        self.next_seed, self.end_seed = first_seed, end_seed
        self.seeds = [end_seed - 1] * env.num_envs
        self.running: dict[int, _Begun] = {}  # by row
        self.steps: list[_Step] = []
        self.dropped = 0  # steps before the first one in `steps`
        self.nothing = no_actions(self.space, env.num_envs)
        self.actions = self.nothing
        self.observations: Any = None
        self.info: dict[str, Any] = {}
        self._begin(np.ones(env.num_envs, np.bool_))

    def step(self) -> list[Episode]:
        """Advance all rows by one step; episodes that ended are returned and followed by others."""
        chosen = self.policy(self.observations, self.info, self.actions, self.generator)
        self.actions = np.asarray(chosen, self.nothing.dtype)
        seen, measured = self.observations, _quantities(self.info)
        result = self.env.step(env_actions(self.space, self.actions))
        self.observations, rewards, terminated, truncated, self.info = result
        self.steps.append(_Step(seen, measured, self.actions, rewards))
        over = np.asarray(terminated | truncated, np.bool_)
        if self.length is not None:
            now = self.dropped + len(self.steps)
            for row, begun in self.running.items():
                over[row] |= now - begun.step >= self.length
        if not over.any():
            return []
        ended = [
            self._finish(row, terminated=bool(terminated[row]), truncated=not terminated[row])
            for row in sorted(self.running)
            if over[row]
        ]
        self._begin(over)
        now = self.dropped + len(self.steps)
        oldest = min((begun.step for begun in self.running.values()), default=now)
        del self.steps[: oldest - self.dropped]
        self.dropped = oldest
        return ended

    def _finish(self, row: int, *, terminated: bool, truncated: bool) -> Episode:
        begun = self.running.pop(row)
        steps = self.steps[begun.step - self.dropped :]
        measured = _quantities(self.info)
        success = bool(self.info["success"][row]) if "success" in self.info else None
        return Episode(
            observations=_of_row([step.observations for step in steps] + [self.observations], row),
            actions=np.stack([step.actions[row] for step in steps]),
            rewards=np.array([step.rewards[row] for step in steps], np.float32),
            terminated=terminated,
            truncated=truncated,
            success=success,
            quantities={
                name: np.stack([step.quantities[name][row] for step in steps] + [last[row]])
                for name, last in measured.items()
            },
            goal=begun.goal,
            seed=begun.seed,
            env_id=self.env_id,
            policy=self.policy.name,
        )

    def _begin(self, mask: NDArray[np.bool_]) -> None:
        """Begin the next episodes in the rows under `mask` `(N,)`, as long as there are any."""
        begun = [int(row) for row in np.flatnonzero(mask)][: self.end_seed - self.next_seed]
        for row in begun:
            self.seeds[row] = self.next_seed
            self.next_seed += 1
        first = self.observations is None  # all rows begin then, episode or not
        if not first and isinstance(self.env.unwrapped, MaskedResetVectorEnv):
            # A row without an episode stays where it is, which costs nothing. Other environments
            # refuse to be stepped on, so there it repeats an episode and nothing is recorded.
            mask = np.isin(np.arange(len(mask)), begun)
            if not begun:
                return
        seeds: Any = list(self.seeds)  # Gymnasium's annotation forgets lists
        self.observations, info = self.env.reset(seed=seeds, options={"reset_mask": mask.copy()})
        self.info = _merge(self.info, info, mask)
        for row in begun:
            step = self.dropped + len(self.steps)
            self.running[row] = _Begun(self.seeds[row], _goal(self.info, row), step)
        self.actions = np.where(mask[:, None], self.nothing, self.actions)


def _collect(
    batch: _Batch, first_seed: int, episodes: int, on_progress: Callable[[int], None] | None
) -> Iterator[Episode]:
    waiting: dict[int, Episode] = {}
    done, due = 0, first_seed
    while done < episodes:
        ended = batch.step()
        waiting |= {episode.seed: episode for episode in ended}
        done += len(ended)
        if ended and on_progress is not None:
            on_progress(done)
        while due in waiting:
            yield waiting.pop(due)
            due += 1


def _check_actions(space: spaces.Space[Any]) -> None:
    if isinstance(space, spaces.Discrete):
        fits = bool(space.start == 0)
    else:
        fits = isinstance(space, spaces.Box) and bool(
            (space.low == -1).all() and (space.high == 1).all()
        )
    if not fits:
        raise ValueError(
            f"action space {space} cannot be collected from: use an environment of make, whose "
            "actions are a Box in [-1, 1] or Discrete from 0"
        )


def _of_row(batches: Sequence[Any], row: int) -> Observation:
    """One row's observations `(T, *O)`, from those of all rows `(N, *O)` at `T` times."""
    if isinstance(batches[0], Mapping):
        return {name: np.stack([batch[name][row] for batch in batches]) for name in batches[0]}
    return np.stack([batch[row] for batch in batches])


def _goal(info: Mapping[str, Any], row: int) -> Observation | None:
    if "goal" not in info:
        return None
    goal = info["goal"]
    if isinstance(goal, Mapping):
        return {name: np.array(array[row]) for name, array in goal.items()}
    return np.array(goal[row])


def _quantities(info: Mapping[str, Any]) -> dict[str, Array]:
    """Quantities of all rows, each `(N, n)`."""
    return {
        name: value if value.ndim == 2 else value[:, None]
        for name, value in info.get("quantities", {}).items()
        if not name.startswith("_")  # Gymnasium's marks of the rows that are given
    }


def _merge(old: Mapping[str, Any], new: Mapping[str, Any], mask: NDArray[np.bool_]) -> Any:
    """Infos with the rows under `mask` from `new`: Gymnasium's resets speak of these alone."""
    merged = dict(old)
    for name, value in new.items():
        if isinstance(value, Mapping):
            merged[name] = _merge(old.get(name, {}), value, mask)
        elif name in old and not mask.all():
            merged[name] = np.array(old[name])
            merged[name][mask] = value[mask]
        else:
            merged[name] = value
    return merged
