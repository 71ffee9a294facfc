"""What all environments share: many episodes side by side, each decided by its seed alone.

Ours are written once, vectorised in NumPy; those of others are stepped row by row
(`forethought.envs.simulator`). They never reset by themselves (Gymnasium's autoreset mode
`DISABLED`): whoever steps them says which episodes to begin, with

    env.reset(seed=[...], options={"reset_mask": mask})

An environment that is finished and stepped all the same stays where it is and is paid nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import Env, Space, spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[Any]
Bools = NDArray[np.bool_]


class MaskedResetVectorEnv(VectorEnv[Any, Array, Array]):
    """Abstract: `N = num_envs` episodes side by side that begin under a mask, never by themselves.

    What every environment of `make` is. A subclass implements `_start`, `_advance`, `_observe`
    and `_info`. It may set `_terminated`, `_truncated` and `_success` (all `(N,)`) in `_advance`.

    Args:
        num_envs: Number of episodes side by side, `N`.
        observation_space: Space of one observation.
        action_space: Space of one action: `Box` or `Discrete` from 0.
        control_step_seconds: Seconds between two actions.
        episode_limit: Steps after which an episode is truncated; None where nothing says.
        render_mode: `rgb_array` or None.

    Raises:
        ValueError: `num_envs` or `episode_limit` is below 1, or the render mode is unknown.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        observation_space: Space[Any],
        action_space: spaces.Box | spaces.Discrete,
        control_step_seconds: float,
        episode_limit: int | None,
        render_mode: str | None,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}: it must be at least 1")
        if episode_limit is not None and episode_limit < 1:
            raise ValueError(f"episode_limit is {episode_limit}: it must be at least 1")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}: use 'rgb_array' or None")
        self.metadata = metadata(control_step_seconds)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.control_step_seconds = control_step_seconds
        self.episode_limit = episode_limit
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self._ever_begun = np.zeros(num_envs, np.bool_)
        self._elapsed = np.zeros(num_envs, np.int64)
        self._terminated = np.zeros(num_envs, np.bool_)
        self._truncated = np.zeros(num_envs, np.bool_)
        self._success = np.zeros(num_envs, np.bool_)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes, all or those under a mask.

        Args:
            seed: One seed per environment; an int stands for `seed + i`. None goes on with the
                environment's own generator.
            options: `reset_mask`, bool `(N,)`: the environments that begin anew.

        Returns:
            Observations `(N, *O)` (a dictionary of them where the space is one) and infos of all
            environments, begun anew or not.

        Raises:
            ValueError: The number of seeds, the mask or an option is wrong, or an environment
                that has never begun is left out of the mask.
        """
        mask = self._read_mask(options)
        for row, row_seed in zip(np.flatnonzero(mask), self._read_seeds(seed, mask), strict=True):
            self._start(int(row), row_seed)
        self._ever_begun |= mask
        for array in (self._elapsed, self._terminated, self._truncated, self._success):
            array[mask] = 0
        self._begun(mask)
        return self._observe(), self._info()

    def step(self, actions: Array) -> tuple[Any, Array, Bools, Bools, dict[str, Any]]:
        """Advance all episodes that are not finished by one step.

        Args:
            actions: `(N, A)` in [-1, 1], or `(N,)` integers where actions are `Discrete`.

        Returns:
            Observations `(N, *O)`, rewards `(N,)`, terminated `(N,)`, truncated `(N,)`, infos.

        Raises:
            ValueError: An action has the wrong shape or is not finite or not in the space, or
                `reset` was not called.
        """
        actions = self._read_actions(actions)
        active = ~(self._terminated | self._truncated)
        self._elapsed += active
        rewards = np.where(active, self._advance(actions, active), 0.0)
        if self.episode_limit is not None:
            self._truncated |= active & (self._elapsed >= self.episode_limit) & ~self._terminated
        terminated, truncated = self._terminated.copy(), self._truncated.copy()
        return self._observe(), rewards, terminated, truncated, self._info()

    @abstractmethod
    def _start(self, row: int, seed: int | None) -> None:
        """Begin an episode in one row; `seed` alone decides it, None goes on from the last one."""

    def _begun(self, mask: Bools) -> None:
        """After all rows under `mask` `(N,)` began: refresh what is kept per episode."""

    @abstractmethod
    def _advance(self, actions: Array, active: Bools) -> Array:
        """Move the rows under `active` `(N,)` by `actions` (float64 or int64); rewards `(N,)`."""

    @abstractmethod
    def _observe(self) -> Any:
        """Fresh array of observations `(N, *O)`, or a dictionary of them."""

    @abstractmethod
    def _info(self) -> dict[str, Any]:
        """Fresh infos of all rows."""

    def _read_mask(self, options: dict[str, Any] | None) -> Bools:
        options = dict(options or {})
        mask = np.asarray(options.pop("reset_mask", np.ones(self.num_envs, np.bool_)))
        if options:
            raise ValueError(f"unknown reset options {sorted(options)}: only reset_mask is known")
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_:
            raise ValueError(
                f"reset_mask is {mask.dtype} of shape {mask.shape}: give bool ({self.num_envs},)"
            )
        for row in np.flatnonzero(~mask & ~self._ever_begun):
            raise ValueError(f"reset_mask leaves out environment {row}: reset all of them once")
        return mask

    def _read_seeds(self, seed: int | Sequence[int | None] | None, mask: Bools) -> list[int | None]:
        """Seeds of the rows under the mask, in order."""
        if seed is None:
            return [None] * int(mask.sum())
        seeds: list[int | None]
        if isinstance(seed, int | np.integer):
            seeds = [int(seed) + row for row in range(self.num_envs)]
        else:
            seeds = [None if item is None else int(item) for item in seed]
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed has {len(seeds)} entries: give one for each of {self.num_envs}")
        chosen = [seeds[row] for row in np.flatnonzero(mask)]
        if any(item is not None and item < 0 for item in chosen):
            raise ValueError(f"seed is {seed}: seeds must be 0 or above")
        return chosen

    def _read_actions(self, actions: Array) -> Array:
        if not self._ever_begun.all():
            raise ValueError("step was called before reset: call reset first")
        space = self.single_action_space
        actions = np.asarray(actions)
        if isinstance(space, spaces.Discrete):
            if actions.dtype.kind not in "iu":
                raise ValueError(f"actions are {actions.dtype}: a Discrete space takes integers")
            fit = (actions >= 0) & (actions < space.n)
        else:
            actions = np.asarray(actions, np.float64)
            fit = np.isfinite(actions)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions have shape {actions.shape}: give {self.action_space.shape}")
        if not fit.all():
            rows = np.flatnonzero(~fit.reshape(self.num_envs, -1).all(axis=1)).tolist()
            wrong = f"not in {space}" if isinstance(space, spaces.Discrete) else "not finite"
            raise ValueError(f"actions of environments {rows} are {wrong}: check the policy")
        return actions


class EpisodicVectorEnv(MaskedResetVectorEnv):
    """Abstract: `N = num_envs` independent episodes in arrays with a leading axis `N`.

    A subclass holds the state, and implements `_begin`, `_advance`, `_observe`, `_goals` and
    `_quantities`. It may set `_terminated` and `_success` (both `(N,)`) in `_advance`.

    Args:
        num_envs: Number of episodes side by side, `N`.
        observation_space: Space of one observation.
        action_dim: `A`; actions are in [-1, 1].
        control_step_seconds: Seconds between two actions.
        episode_limit: Steps after which an episode is truncated.
        render_mode: `rgb_array` or None.

    Raises:
        ValueError: `num_envs` or `episode_limit` is below 1, or the render mode is unknown.
    """

    episode_limit: int

    def __init__(
        self,
        num_envs: int,
        *,
        observation_space: Space[Any],
        action_dim: int,
        control_step_seconds: float,
        episode_limit: int,
        render_mode: str | None,
    ) -> None:
        super().__init__(
            num_envs,
            observation_space=observation_space,
            action_space=spaces.Box(-1.0, 1.0, (action_dim,), np.float32),
            control_step_seconds=control_step_seconds,
            episode_limit=episode_limit,
            render_mode=render_mode,
        )
        self._generators: list[Generator | None] = [None] * num_envs

    def _start(self, row: int, seed: int | None) -> None:
        generator = self._generators[row]
        if seed is not None or generator is None:
            generator = np.random.default_rng(seed)
            self._generators[row] = generator
        self._begin(row, generator)

    @abstractmethod
    def _begin(self, row: int, generator: Generator) -> None:
        """Draw the state of one new episode; all its randomness comes from `generator`."""

    @abstractmethod
    def _goals(self) -> Array:
        """Goals `(N, *O)`."""

    @abstractmethod
    def _quantities(self) -> dict[str, Array]:
        """Fresh named physical quantities, each float32 `(N, n)`."""

    def _info(self) -> dict[str, Any]:
        return {
            "goal": self._goals().copy(),
            "quantities": self._quantities(),
            "success": self._success.copy(),
        }


class SingleEnv(Env[Array, Array]):
    """One episode of an `EpisodicVectorEnv` as an ordinary `gymnasium.Env`."""

    def __init__(self, vector: EpisodicVectorEnv, render_mode: str | None) -> None:
        self.vector = vector
        self.metadata = metadata(vector.control_step_seconds)
        self.render_mode = render_mode
        self.observation_space = vector.single_observation_space
        self.action_space = vector.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Begin an episode; see `EpisodicVectorEnv.reset`, without the leading axis."""
        super().reset(seed=seed)
        if options:
            raise ValueError(f"unknown reset options {sorted(options)}: none are known")
        observations, info = self.vector.reset(seed=[seed])
        return observations[0], _first(info)

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Advance by one control step; see `EpisodicVectorEnv.step`, without the leading axis."""
        observations, rewards, terminated, truncated, info = self.vector.step(
            np.asarray(action)[None]
        )
        return (
            observations[0],
            float(rewards[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            _first(info),
        )

    def render(self) -> Array | None:
        """Frame `(H, W, 3)` uint8, or None without a render mode."""
        frames = self.vector.render() if self.render_mode == "rgb_array" else None
        return None if frames is None else np.asarray(frames[0])


def metadata(control_step_seconds: float) -> dict[str, Any]:
    """Gymnasium's metadata of our environments, in which pictures run in real time."""
    return {
        "render_modes": ["rgb_array"],
        "render_fps": max(1, round(1 / control_step_seconds)),
        "autoreset_mode": AutoresetMode.DISABLED,
    }


def _first(info: dict[str, Any]) -> dict[str, Any]:
    """Infos of environment 0, without the leading axis."""
    first: dict[str, Any] = {}
    for name, value in info.items():
        if isinstance(value, dict):
            first[name] = _first(value)
        else:
            first[name] = bool(value[0]) if value[0].dtype == np.bool_ else value[0]
    return first
