"""The configurator: turns a task into a `Setting` for the other modules (section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from forethought.agent.task import Task

Mode = Literal[1, 2]


@dataclass(frozen=True)
class Cost:
    """How energies are summed up over a plan.

    Args:
        reduction: how the goal distance is reduced over the plan: `sum` over all steps, `softmin`
            for the closest approach, `last` for the last step only.
        softmin_temperature: temperature of `softmin`, in the unit of the goal distance.
        horizon: planning steps H.
        discount: gamma per second of the environment's time, in (0, 1].
        critic: weight v of the critic's estimate of what comes after the plan.
        replan_every: actions of a plan that are carried out before the next plan is made, between
            1 and the horizon.
    """

    reduction: Literal["sum", "softmin", "last"] = "sum"
    softmin_temperature: float = 0.1
    horizon: int = 16
    discount: float = 0.8
    critic: float = 1.0
    replan_every: int = 1

    def per_decision(self, seconds: float) -> float:
        """Gamma per decision, where `seconds` pass between two decisions."""
        return float(self.discount**seconds)

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"cost.horizon is {self.horizon}: plan at least 1 step")
        if not self.softmin_temperature > 0:
            raise ValueError(
                f"cost.softmin_temperature is {self.softmin_temperature}: choose it above 0"
            )
        if not 0 < self.discount <= 1:
            raise ValueError(f"cost.discount is {self.discount}: choose it in (0, 1]")
        if not 0 <= self.critic < float("inf"):
            raise ValueError(f"cost.critic is {self.critic}: choose 0 or more, finite")
        if not 1 <= self.replan_every <= self.horizon:
            raise ValueError(
                f"cost.replan_every is {self.replan_every}: choose it between 1 and the horizon "
                f"{self.horizon}"
            )


@dataclass(frozen=True)
class Setting:
    """How the modules are set for the task at hand.

    Args:
        u: weights of the intrinsic terms, `(B, n)`.
        v: weights of the critic's terms, `(B, n)`.
        goal: goal states, `(B, D)`, or None where the task has no goal.
        cost: reduction over time, horizon, discount, and how often a plan is made.
        discount: gamma per decision.
        mode: 1 acts by the policy, 2 plans.
    """

    u: Tensor
    v: Tensor
    goal: Tensor | None
    cost: Cost
    discount: float = 1.0
    mode: Mode = 2

    @property
    def context(self) -> dict[str, Tensor]:
        """The tensors that costs and policy read."""
        context = {"u": self.u, "v": self.v}
        return context if self.goal is None else context | {"goal": self.goal}

    def select(self, index: Tensor) -> Setting:
        """The setting of the problems `index`."""
        goal = None if self.goal is None else self.goal[index]
        return replace(self, goal=goal, u=self.u[index], v=self.v[index])


@dataclass(frozen=True)
class Configurator:
    """Makes settings for one kind of task.

    Args:
        cost: how energies are summed up.
        task: what is minimised; the weights are checked against the bank's bounds.
        decision_seconds: time between two decisions, in seconds.
        mode: 1 acts by the policy, 2 plans.
    """

    cost: Cost
    task: Task
    decision_seconds: float = 1.0
    mode: Mode = 2

    @property
    def discount(self) -> float:
        """Gamma per decision."""
        return self.cost.per_decision(self.decision_seconds)

    def configure(self, goal: Tensor | None, batch: int, device: torch.device) -> Setting:
        """The setting of B problems, with goal states `(B, D)` where the task has a goal.

        Raises:
            ValueError: a goal is missing, or given and not wanted.
        """
        if (goal is not None) != self.task.goal:
            raise ValueError(
                "the task needs a goal and the environment gives none: choose another task"
                if self.task.goal
                else "a goal was given, but the task has none: choose the task `reach`"
            )
        u = self.task.bank.weights(self.task.weights).to(device).expand(batch, -1)
        return Setting(
            u=u,
            v=self.cost.critic * u,
            goal=goal,
            cost=self.cost,
            discount=self.discount,
            mode=self.mode,
        )
