"""Tasks: what an agent minimises, as data.

A task is a small frozen record of named, weighted intrinsic terms over readouts, latent states and
actions, with or without a goal to reach. Tasks ship as YAML under `configs/tasks/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from forethought.agent.cost import (
    Aim,
    Effort,
    IntrinsicCost,
    IntrinsicTerm,
    Shortfall,
    Weighted,
)
from forethought.agent.cost.terms import parse_quantity

End = Literal["failure", "success", "stop"]


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
        aims: costs by name whose argument, and weight, a setting may pass.
        goal: whether the environment gives a goal, whose latent distance is minimised too.
        end: what termination means to the critic: after a `failure` every term stays at its upper
            bound, after a `success` at zero, so that ending early is never a reward in itself.
            A `stop` is neither: every term stays at what it costs to be paid nothing and to do
            nothing, for tasks whose episodes end well or badly and whose reward says which.
            (Inside of a plan an end is seen only by a term that reads `terminated`.)
        env: environment that the task is written for; where it is given, `train` with that
            environment takes the task by itself.
    """

    terms: Mapping[str, TaskTerm] = field(default_factory=dict)
    aims: Mapping[str, Aim] = field(default_factory=dict)
    goal: bool = False
    end: End = "failure"
    env: str | None = None

    def __post_init__(self) -> None:
        for name in ("terms", "aims"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        _ = self.bank.weights(self.weights)
        if not self.has_cost and not self.goal:
            raise ValueError(
                "the task has neither a term with a weight above 0 nor a goal: give it one of them"
            )
        if self.end not in get_args(End):
            raise ValueError(f"end is {self.end!r}: choose one of {', '.join(get_args(End))}")
        others = sorted(set(self.bank.reads) - {"reward"})
        if self.end == "stop" and others:
            raise ValueError(
                f"end is 'stop', but terms read {', '.join(others)}, which nobody knows after the "
                "end: choose 'failure' or 'success', or only terms that read the reward"
            )

    @cached_property
    def bank(self) -> IntrinsicCost:
        """The immutable bank of the task's terms."""
        return IntrinsicCost(
            tuple(
                Weighted(name, item.term, item.floor, item.ceiling)
                for name, item in self.terms.items()
            )
        )

    @property
    def reads(self) -> tuple[str, ...]:
        """Quantities that terms and aims read, without components, each once."""
        named = [parse_quantity(aim.quantity)[0] for aim in self.aims.values()]
        return tuple(dict.fromkeys((*self.bank.reads, *named)))

    @property
    def weights(self) -> dict[str, float]:
        """The weights u by name."""
        return {name: item.weight for name, item in self.terms.items()}

    @property
    def has_cost(self) -> bool:
        """Whether any intrinsic term has a weight: only then there is something for a critic."""
        return any(item.weight > 0 for item in self.terms.values())

    @property
    def lasting(self) -> Tensor:
        """e_end of every term, `(n,)`: its value at every step after a termination."""
        if self.end == "stop":
            return self.bank.values({"reward": torch.zeros(1)}, torch.zeros(1))
        return torch.full((len(self.terms),), float(self.end == "failure"))


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
    failure. Where only some ends are paid more than any other step (FrozenLake: a goal, or a hole),
    or some cost more although ends are welcome (a charge for every step, a larger one for a fall),
    an end as such says nothing. It is then a stop, and the reward alone decides.

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
    welcome = paid or highest <= 0
    good, bad = _beyond(ending, going)
    if (good.any() and not good.all()) or (welcome and bad.any()):
        return Task(terms, end="stop")
    if welcome:
        return Task(terms, end="success")
    terms["ended"] = TaskTerm(Shortfall("terminated", worst=1.0, best=0.0))
    return Task(terms, end="failure")


def _beyond(ending: np.ndarray, going: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which ends are paid far more, and far less, than every other step, `(E,)` bool each.

    Far is half the range of the other rewards: where rewards vary at every step and an end's is
    drawn like any other, some end holds the highest of all by chance, but not by that much.
    """
    if not len(going):
        return np.zeros(len(ending), bool), np.zeros(len(ending), bool)
    lowest, highest = float(going.min()), float(going.max())
    margin = max(0.5 * (highest - lowest), 1e-6)
    return ending > highest + margin, ending < lowest - margin
