"""A planner of one's own, in the agent that ships with the package.

    python examples/own_planner.py

A planner sees a `Problem` and nothing of the model behind it. It is a frozen record: its fields are
options of the command line, `forethought act --planner own_planner.HillClimb --planner.size 0.1`.
"""

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from forethought.cli import main
from forethought.planners import Deadline, Incumbent, Plan, Planner, Problem, starts


@dataclass(frozen=True)
class HillClimb(Planner):
    """Tries smooth random changes of the best sequence so far, and takes what is better.

    Attributes:
        candidates: sequences per problem and iteration.
        iterations: rounds of changes.
        size: of the changes, as a share of the distance to a random sequence.
    """

    candidates: int = 64
    iterations: int = 12
    size: float = 0.25

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
        incumbent = Incumbent(problem, deadline)  # keeps the best, and the accounts
        incumbent.evaluate(starts(problem, self.candidates, 4, proposals, generator))
        for _ in range(self.iterations):
            if incumbent.late():
                break
            best = incumbent.plan().actions.unsqueeze(1)  # (B, 1, H, A)
            others = starts(problem, self.candidates, 4, None, generator)
            incumbent.evaluate(best.lerp(others, self.size))  # between two sequences within bounds
        return incumbent.plan()


if __name__ == "__main__":
    sys.exit(main(["act", "two-rooms", "--planner=own_planner.HillClimb", *sys.argv[1:]]))
