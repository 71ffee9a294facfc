"""pytorch-mppi: MPPI for one problem at a time, one step of the model at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product

import torch
from torch import Tensor

from .task import Budget, Task

# Raises ImportError where the library is missing; `planning.py` says so.
from pytorch_mppi import MPPI  # isort: skip


@dataclass(frozen=True)
class Theirs:
    """See `Contender`. Randomness is PyTorch's own."""

    candidates: int
    iterations: int
    temperature: float = 1.0
    std: float = 1.0
    family: str = "MPPI"
    batch_size: int | None = 1
    model: str = "steps"
    library: str = f"pytorch-mppi {version('pytorch-mppi')}"

    @property
    def setting(self) -> str:
        """How it is configured."""
        return f"lambda_={self.temperature}, noise std={self.std}"

    def plans(self, task: Task, seed: int) -> Callable[[], Tensor]:
        """See `Contender`."""
        torch.manual_seed(seed)
        goal = task.goal[0]
        bound = task.state.new_ones(task.action_dim)
        still = task.state.new_zeros(task.horizon, task.action_dim)

        def cost(state: Tensor, action: Tensor) -> Tensor:
            return (state - goal).square().mean(-1)

        controller = MPPI(
            task.model.predict,
            cost,
            nx=task.state.shape[1],
            noise_sigma=self.std**2 * torch.eye(task.action_dim, device=task.state.device),
            num_samples=self.candidates,
            horizon=task.horizon,
            device=str(task.state.device),
            lambda_=self.temperature,
            u_min=-bound,
            u_max=bound,
        )

        @torch.no_grad()
        def plan() -> Tensor:
            nonlocal goal
            plans = []
            for state, goal in zip(task.state, task.goal, strict=True):  # noqa: B007 - cost reads it
                controller.U = still.clone()
                for _ in range(self.iterations):
                    controller.command(state, shift_nominal_trajectory=False)
                plans.append(controller.U)
            return torch.stack(plans)

        return plan


def contenders(budget: Budget) -> list[list[Theirs]]:
    """The configurations to choose from; the default is first."""
    grid = product((1.0, 0.1, 0.02), (1.0, 0.5))
    return [[Theirs(budget.candidates, budget.iterations, t, std) for t, std in grid]]
