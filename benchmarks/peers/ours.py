"""Our own planners as contenders, with everybody's budget."""

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


def contenders(budget: Budget) -> list[list[Ours]]:
    """For each planner, the configurations to choose from; the default is first.

    As many of them as the other libraries have of their noise's width. iCEM draws as many
    candidates in every iteration as the others; by default ours become fewer.
    """
    sampling = {"candidates": budget.candidates, "iterations": budget.iterations}
    fitting = {**sampling, "elites": budget.elites}
    descent = {"starts": budget.starts, "iterations": budget.descents}
    kinds: list[tuple[str, type[planners.Planner], dict[str, Any], dict[str, float]]] = [
        ("CEM", planners.CEM, fitting, {"initial_std": 1.0}),
        ("iCEM", planners.ICEM, {**fitting, "decay": 1.0}, {"initial_std": 1.5}),
        ("MPPI", planners.MPPI, sampling, {"std": 0.6}),
        ("gradient", planners.Gradient, descent, {"learning_rate": 0.3}),
    ]
    return [
        [
            Ours(family, make(**options)),
            Ours(
                family,
                make(**options, **other),
                setting=", ".join(f"{name}={value}" for name, value in other.items()),
            ),
        ]
        for family, make, options, other in kinds
    ]
