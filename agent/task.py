"""Tasks: what an agent minimises, as data.

A task is a small frozen record of named, weighted intrinsic terms over readouts, latent states and
actions, with or without a goal to reach. Tasks ship as YAML under `configs/tasks/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import numpy as np

from forethought.agent.cost import Effort, IntrinsicCost, IntrinsicTerm, Shortfall, Weighted


@dataclass(frozen=True)
class TaskTerm:
    """One intrinsic term of a task.

    Args:
        term: the term.
        weight: its weight u.
        floor: smallest weight a setting may choose; above zero for a safety term.
        ceiling: largest weight a setting may choose.
    """

    term: IntrinsicTerm
    weight: float = 1.0
    floor: float = 0.0
    ceiling: float = 10.0


@dataclass(frozen=True)
class Task:
    """What is minimised, and what the end of an episode means for it.

    Args:
        terms: intrinsic terms by name.
        goal: whether the environment gives a goal, whose latent distance is minimised too.
        end: what termination means to the critic: after a `failure` every term stays at its upper
            bound, after a `success` at zero, so that ending early is never a reward in itself.
            (Inside of a plan an end is seen only by a term that reads `terminated`.)
        env: environment that the task is written for; where it is given, `train` with that
            environment takes the task by itself.
    """

    terms: Mapping[str, TaskTerm] = field(default_factory=dict)
    goal: bool = False
    end: Literal["failure", "success"] = "failure"
    env: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", MappingProxyType(dict(self.terms)))
        _ = self.bank.weights(self.weights)
        if not self.has_cost and not self.goal:
            raise ValueError(
                "the task has neither a term with a weight above 0 nor a goal: give it one of them"
            )

    @property
    def bank(self) -> IntrinsicCost:
        """The immutable bank of the task's terms."""
        return IntrinsicCost(
            tuple(
                Weighted(name, item.term, item.floor, item.ceiling)
                for name, item in self.terms.items()
            )
        )

    @property
    def weights(self) -> dict[str, float]:
        """The weights u by name."""
        return {name: item.weight for name, item in self.terms.items()}

    @property
    def has_cost(self) -> bool:
        """Whether any intrinsic term has a weight: only then there is something for a critic."""
        return any(item.weight > 0 for item in self.terms.values())


REACH = Task(terms={"effort": TaskTerm(Effort(), weight=0.0)}, goal=True)
"""Reach the goal that the environment gives; effort may be minded, and is not by default."""


def task_from_reward(rewards: np.ndarray, terminal: np.ndarray) -> Task:
    """A task for an environment whose reward is all that is known of it.

    The reward is read from states by a trained readout, so this cost is not hard-wired: whoever
    uses it is told so. The best reward imaginable lies as far above the highest reward seen as
    that lies above the lowest. An environment that terminates pays nothing after the end, so zero
    is always among the rewards that count.

    What an end means is read from the rewards too. Where ends are paid more than other steps (a
    goal reached), or every step is charged (the sooner the better), they are a success; else a
    failure.

    Args:
        rewards: reward of every step, `(N,)`.
        terminal: which steps ended their episode by termination, `(N,)` bool.

    Raises:
        ValueError: rewards and ends tell nothing.
    """
    lowest, highest = float(rewards.min()), float(rewards.max())
    terminates = bool(terminal.any())
    low, high = lowest, highest + (highest - lowest)
    if terminates:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        raise ValueError(
            f"every reward in the data is {low} and no episode ends on a different one: there is "
            "nothing to learn a cost from, give a task (--task) or other data"
        )
    terms = {"reward": TaskTerm(Shortfall("reward", worst=low, best=high))}
    if not terminates:
        return Task(terms)
    going, ending = rewards[~terminal], rewards[terminal]
    paid = len(going) > 0 and ending.mean() > going.mean() + 0.5 * max(float(going.std()), 1e-6)
    if paid or highest <= 0:
        return Task(terms, end="success")
    terms["ended"] = TaskTerm(Shortfall("terminated", worst=1.0, best=0.0))
    return Task(terms, end="failure")
