"""The configurator: turns a task into a `Setting` for the other modules (section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from forethought.agent.cost import IntrinsicCost

Mode = Literal[1, 2]


@dataclass(frozen=True)
class Cost:
    """What an agent minimises: the distance to a goal, and how much it minds effort.

    Args:
        reduction: how the goal distance is reduced over the plan: `sum` over all steps, `softmin`
            for the closest approach, `last` for the last step only.
        softmin_temperature: temperature of `softmin`, in the unit of the goal distance.
        effort: weight u of the intrinsic effort term.
        horizon: planning steps H.
    """

    reduction: Literal["sum", "softmin", "last"] = "sum"
    softmin_temperature: float = 0.1
    effort: float = 0.0
    horizon: int = 16

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"cost.horizon is {self.horizon}: plan at least 1 step")
        if not self.softmin_temperature > 0:
            raise ValueError(
                f"cost.softmin_temperature is {self.softmin_temperature}: choose it above 0"
            )


@dataclass(frozen=True)
class Setting:
    """How the modules are set for the task at hand.

    Args:
        goal: goal states, `(B, D)`.
        u: weights of the intrinsic terms, `(B, n)`.
        cost: reduction over time and horizon.
        mode: 1 acts by the policy, 2 plans.
        replan_every: actions of a plan that are carried out before the next plan is made.
    """

    goal: Tensor
    u: Tensor
    cost: Cost
    mode: Mode = 2
    replan_every: int = 1

    @property
    def context(self) -> dict[str, Tensor]:
        """The tensors that costs and policy read."""
        return {"goal": self.goal, "u": self.u}

    def select(self, index: Tensor) -> Setting:
        """The setting of the problems `index`."""
        return replace(self, goal=self.goal[index], u=self.u[index])


@dataclass(frozen=True)
class Configurator:
    """Makes settings for one kind of task.

    Args:
        cost: what is minimised.
        bank: the agent's intrinsic cost; the weights are checked against its bounds.
        mode: 1 acts by the policy, 2 plans.
        replan_every: actions of a plan that are carried out before the next plan is made.
    """

    cost: Cost
    bank: IntrinsicCost
    mode: Mode = 2
    replan_every: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.replan_every <= self.cost.horizon:
            raise ValueError(
                f"replan_every is {self.replan_every}: choose it between 1 and the horizon "
                f"{self.cost.horizon}"
            )
        self.bank.weights({"effort": self.cost.effort})

    def configure(self, goal: Tensor) -> Setting:
        """The setting that reaches the goal states `(B, D)`."""
        u = self.bank.weights({"effort": self.cost.effort}).to(goal).expand(len(goal), -1)
        return Setting(goal, u, self.cost, self.mode, self.replan_every)
