"""Blocks of actions: one decision is several actions, carried out one after the other.

A model of blocks predicts, and a planner decides, once in `block` control steps, with as many
different actions; an action repeat would hold one. Observations in between are not seen.

    decision     0                 1
    actions      a_0 a_1 ... a_k-1 a_k ...
    observed     x_0               x_k

`ActionBlocks` goes round a vector environment of ours. Simulators of others have the like inside,
which does not render what nobody sees (`forethought.envs.wrappers.ActionBlock`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from numpy.random import Generator
from numpy.typing import NDArray

from forethought.envs.policies import Policy, Smooth

Array = NDArray[Any]


def check_block(block: Any) -> int:
    """The option `block`, if it is a number of actions.

    Raises:
        ValueError: It is not an integer of at least 1.
    """
    if not isinstance(block, int) or isinstance(block, bool) or block < 1:
        raise ValueError(f"block is {block!r}: give an integer of at least 1")
    return block


def block_space(space: Space[Any], block: int) -> spaces.Box:
    """The space of blocks `(block * A,)` of actions in `space`.

    Raises:
        ValueError: It is not a `Box`.
    """
    if not isinstance(space, spaces.Box):
        raise ValueError(f"block is {block}, but actions are {space}: choose 1, or a Box")
    low, high = (np.tile(bound, block) for bound in (space.low, space.high))
    return spaces.Box(low, high, dtype=space.dtype.type)


class ActionBlocks(VectorWrapper):
    """A decision is `block` actions of the environment inside, whose rewards are summed.

    An episode that ends inside of a block stays where it is: later actions change and pay nothing.

    Args:
        env: An environment of `make`, with actions in a `Box` of rank 1.
        block: Actions in a decision.

    Raises:
        ValueError: `block` is below 1, or actions are not a `Box`.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], block: int) -> None:
        super().__init__(env)
        self.block = check_block(block)
        self.single_action_space = block_space(env.single_action_space, block)
        self.action_space = batch_space(self.single_action_space, env.num_envs)
        self.control_step_seconds = env.control_step_seconds * block  # type: ignore[attr-defined]
        limit = env.episode_limit  # type: ignore[attr-defined]
        self.episode_limit = None if limit is None else -(-limit // block)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One decision of all episodes; see `MaskedResetVectorEnv.step`.

        Args:
            actions: `(N, block * A)` in [-1, 1], the first action first.

        Raises:
            ValueError: They have the wrong shape or are not finite.
        """
        actions = np.asarray(actions)
        shape = self.action_space.shape
        # All of a block is looked at before any of it is carried out.
        if actions.shape != shape or not np.isfinite(actions).all():
            raise ValueError(
                f"actions of shape {actions.shape} are not finite or do not fit: give finite "
                f"numbers {shape}"
            )
        paid: Any = 0.0
        for part in np.split(actions, self.block, axis=1):
            observations, rewards, terminated, truncated, info = self.env.step(part)
            paid = paid + rewards
            if (terminated | truncated).all():
                break
        return observations, paid, terminated, truncated, info


@dataclass(frozen=True)
class InBlocks(Policy):
    """A policy that acts in blocks: each action follows from the one before it, as without blocks.

    For policies that look at previous actions alone, such as `Smooth` and `Random`: all actions of
    a block are given the observation at its beginning.

    Attributes:
        block: Actions in a decision.
        policy: What chooses them.
    """

    block: int = 5
    policy: Policy = field(default_factory=Smooth)

    def __post_init__(self) -> None:
        check_block(self.block)

    @property
    def name(self) -> str:
        """The name of the policy inside."""
        return self.policy.name

    def for_space(self, action_space: Space[Any]) -> Policy:
        """See `Policy`."""
        if not isinstance(action_space, spaces.Box) or action_space.shape[0] % self.block:
            raise ValueError(
                f"policy {self.name} acts in blocks of {self.block}, but actions are "
                f"{action_space}: choose the environment's option block={self.block}"
            )
        size = action_space.shape[0] // self.block
        inner = self.policy.for_space(spaces.Box(-1.0, 1.0, (size,), np.float32))
        return InBlocks(self.block, inner)

    def __call__(
        self,
        observations: Any,
        info: Mapping[str, Any],
        previous_actions: Array,
        generator: Generator,
    ) -> Array:
        """See `Policy`."""
        last = np.split(previous_actions, self.block, axis=1)[-1]
        parts = []
        for _ in range(self.block):
            last = self.policy(observations, info, last, generator)
            parts.append(last)
        return np.concatenate(parts, axis=1)
