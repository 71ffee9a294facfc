"""Our own planners as contenders, as a user has them: their defaults, with everybody's budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from forethought import planners

from .task import Budget, Task


@dataclass(frozen=True)
class Ours:
    """See `Contender`."""

    family: str
    planner: Any
    library: str = f"forethought {version('forethought')}"
    setting: str = "defaults"
    model: str = "roll-out"
    batch_size: int | None = None

    def plans(self, task: Task, seed: int) -> Callable[[], Tensor]:
        """See `Contender`."""
        generator = torch.Generator().manual_seed(seed)

        def plan() -> Tensor:
            # The problem is made anew for each decision, as an agent makes it.
            found: Tensor = self.planner.plan(task.problem, generator=generator).actions
            return found

        return plan


def contenders(budget: Budget) -> list[Ours]:
    """Our planners of all families."""
    sampling = {"candidates": budget.candidates, "iterations": budget.iterations}
    found = [
        Ours("CEM", planners.CEM(**sampling, elites=budget.elites)),
        Ours("MPPI", planners.MPPI(**sampling)),
        Ours("gradient", planners.Gradient(starts=budget.starts, iterations=budget.descents)),
    ]
    if hasattr(planners, "ICEM"):
        # As many candidates in every iteration as the peers have; by default ours become fewer.
        planner = planners.ICEM(**sampling, elites=budget.elites, decay=1.0)
        found.append(Ours("iCEM", planner, setting="decay=1.0"))
    return found
