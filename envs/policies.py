"""Behaviour policies: what acts while data are collected.

A policy is stateless. All it may remember is the previous action, which the collector passes
in; all its randomness comes from the generator it is handed. Action spaces are `Box` in [-1, 1].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from forethought.envs.two_rooms import ROOMS_32, ROOMS_65, Geometry, greedy, scripted

Array = NDArray[Any]


class Policy(ABC):
    """Abstract: observations in, actions out, for `N` environments at once."""

    @property
    def name(self) -> str:
        """Name under which episodes record this policy."""
        return type(self).__name__.lower()

    @abstractmethod
    def __call__(
        self,
        observations: Array,
        info: Mapping[str, Any],
        previous_actions: Array,
        generator: Generator,
    ) -> Array:
        """Choose actions.

        Args:
            observations: `(N, *O)`.
            info: The environment's infos.
            previous_actions: `(N, A)`; all zero in a row whose episode has just begun.
            generator: Source of all randomness.

        Returns:
            Actions `(N, A)` float32 in [-1, 1].
        """


@dataclass(frozen=True)
class Random(Policy):
    """Uniform actions.

    Attributes:
        hold: Probability of repeating the previous action instead of drawing a new one.
    """

    hold: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.hold < 1:
            raise ValueError(f"hold is {self.hold}: it must be in [0, 1)")

    def __call__(
        self,
        observations: Array,
        info: Mapping[str, Any],
        previous_actions: Array,
        generator: Generator,
    ) -> Array:
        """See `Policy`."""
        fresh = generator.uniform(-1.0, 1.0, previous_actions.shape)
        held = generator.uniform(size=len(previous_actions)) < self.hold
        held &= ~_begun(previous_actions)
        return np.where(held[:, None], previous_actions, fresh).astype(np.float32)


@dataclass(frozen=True)
class Smooth(Policy):
    """Random walks with inertia: each action is a mix of the previous one and fresh noise.

    a_t = correlation * a_{t-1} + sqrt(1 - correlation^2) * scale * noise, clipped to [-1, 1]:
    a first-order autoregression whose spread stays at `scale` (less what clipping cuts).

    Attributes:
        correlation: Of successive actions, in [0, 1). 0.9 remembers for about ten steps.
        scale: Standard deviation of one action component before clipping.
    """

    correlation: float = 0.9
    scale: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.correlation < 1:
            raise ValueError(f"correlation is {self.correlation}: it must be in [0, 1)")
        if not self.scale > 0:
            raise ValueError(f"scale is {self.scale}: it must be above 0")

    def __call__(
        self,
        observations: Array,
        info: Mapping[str, Any],
        previous_actions: Array,
        generator: Generator,
    ) -> Array:
        """See `Policy`."""
        noise = self.scale * generator.standard_normal(previous_actions.shape)
        fresh_part = np.sqrt(1.0 - self.correlation**2)
        mixed = self.correlation * previous_actions + fresh_part * noise
        # An episode begins at the stationary spread, not at rest.
        actions = np.where(_begun(previous_actions)[:, None], noise, mixed)
        return np.clip(actions, -1.0, 1.0).astype(np.float32)


@dataclass(frozen=True)
class Greedy(Policy):
    """Two-Rooms: straight for the goal by the true position, walls or not.

    Attributes:
        noise: Standard deviation of Gaussian noise on each action component.
    """

    noise: float = 0.0

    def __post_init__(self) -> None:
        _check_noise(self.noise)

    def __call__(
        self,
        observations: Array,
        info: Mapping[str, Any],
        previous_actions: Array,
        generator: Generator,
    ) -> Array:
        """See `Policy`."""
        actions = greedy(_geometry(observations, self.name), info["quantities"])
        return _with_noise(actions, self.noise, generator)


@dataclass(frozen=True)
class Scripted(Policy):
    """Two-Rooms: to the goal by way of the door, by the true position.

    Attributes:
        noise: Standard deviation of Gaussian noise on each action component.
    """

    noise: float = 0.0

    def __post_init__(self) -> None:
        _check_noise(self.noise)

    def __call__(
        self,
        observations: Array,
        info: Mapping[str, Any],
        previous_actions: Array,
        generator: Generator,
    ) -> Array:
        """See `Policy`."""
        actions = scripted(_geometry(observations, self.name), info["quantities"])
        return _with_noise(actions, self.noise, generator)


def _begun(previous_actions: Array) -> NDArray[np.bool_]:
    """Rows `(N,)` whose episode has just begun."""
    return np.asarray((previous_actions == 0).all(axis=1), np.bool_)


def _check_noise(noise: float) -> None:
    if not noise >= 0:
        raise ValueError(f"noise is {noise}: it must be 0 or above")


def _with_noise(actions: Array, noise: float, generator: Generator) -> Array:
    noisy = actions + noise * generator.standard_normal(actions.shape)
    return np.clip(noisy, -1.0, 1.0).astype(np.float32)


def _geometry(observations: Array, policy: str) -> Geometry:
    """The Two-Rooms geometry with pictures of this size."""
    for geometry in (ROOMS_32, ROOMS_65):
        if observations.shape[1:] == (2, geometry.size, geometry.size):
            return geometry
    raise ValueError(
        f"policy {policy} got observations of shape {observations.shape[1:]}: "
        "it knows the pictures of Two-Rooms only"
    )
