"""Random shooting: evaluate many smooth random sequences once and take the best.

The baseline that every other planner has to beat with the same number of model evaluations.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from forethought.planners.deadline import Deadline
from forethought.planners.incumbent import Incumbent
from forethought.planners.problem import Plan, Planner, Problem
from forethought.planners.proposals import starts

__all__ = ["RandomShooting"]


@dataclass(frozen=True)
class RandomShooting(Planner):
    """One evaluation of smooth random sequences; the deadline therefore never stops it.

    Attributes:
        candidates: Sequences per problem; proposals take the first places, the safe action the
            next, smooth noise the others.
        knots: Knots of the smooth noise over the horizon; H gives white noise. With discrete
            actions the number of actions drawn, each held equally long.
    """

    candidates: int = 256
    knots: int = 4

    def __post_init__(self) -> None:
        for name in ("candidates", "knots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; give at least 1")

    @property
    def room(self) -> int:
        """Most proposals that `plan` takes."""
        return self.candidates

    @torch.no_grad()
    def plan(
        self,
        problem: Problem,
        *,
        proposals: Tensor | None = None,
        generator: torch.Generator,
        deadline: Deadline | None = None,
    ) -> Plan:
        """Plan each problem; see `Planner.plan`."""
        incumbent = Incumbent(problem, deadline)
        incumbent.evaluate(
            starts(problem, self.candidates, self.knots, proposals, generator, "candidates")
        )
        return incumbent.plan()
