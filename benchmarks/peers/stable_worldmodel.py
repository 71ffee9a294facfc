"""stable-worldmodel 0.1: its solvers ask a model for costs of candidates, problem by problem.

By default CEM, iCEM and MPPI plan one problem at a time (`batch_size=1`), the gradient solver all.
The solvers but iCEM know no bounds. Their model here clamps the actions, as the environment would,
so that they search in what counts; but not for the gradient solver, which a clamp would stop:
there only the plan is clamped.

The model comes in two ways: one call of the network per step, as the library's own models are
rolled out, and by our whole roll-out with its analytic way back (`on our roll-out`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from .task import Budget, Task

# Raises ImportError where the library is missing; `planning.py` says so.
from stable_worldmodel import solver as solvers  # isort: skip


class Costs(nn.Module):
    """A task as their solvers see it."""

    def __init__(self, task: Task, *, clamp: bool, whole: bool) -> None:
        super().__init__()
        self.jepa, self.clamp = task.model.jepa, clamp
        self.roll_out = task.model.rollout if whole else task.model.steps

    def get_cost(self, info: Mapping[str, Tensor], candidates: Tensor) -> Tensor:
        """Costs `(B, S)` of candidates `(B, S, H, A)`."""
        batch, samples = candidates.shape[:2]
        actions = candidates.clamp(-1, 1) if self.clamp else candidates
        states = self.roll_out(info["state"].flatten(0, 1), actions.flatten(0, 1))
        far = states.unflatten(0, (batch, samples)) - info["goal"].unsqueeze(2)
        return far.square().mean(-1).sum(-1)


@dataclass(frozen=True)
class Theirs:
    """See `Contender`."""

    family: str
    make: Callable[..., Any]
    options: dict[str, Any]
    batch_size: int | None
    model: str
    variant: dict[str, Any] = field(default_factory=dict)

    @property
    def library(self) -> str:
        """Name and version, and how the model is rolled out."""
        name = f"stable-worldmodel {version('stable-worldmodel')}"
        return f"{name} on our roll-out" if self.model == "roll-out" else name

    @property
    def setting(self) -> str:
        """How it is configured."""
        words = (f"{k}={getattr(v, '__name__', v)}" for k, v in self.variant.items())
        return ", ".join(words) or "defaults"

    def plans(self, task: Task, seed: int) -> Callable[[], Tensor]:
        """See `Contender`."""
        solver = self.make(
            Costs(task, clamp=self.family != "gradient", whole=self.model == "roll-out"),
            batch_size=self.batch_size,
            seed=seed,
            device=str(task.state.device),
            **self.options,
            **self.variant,
        )
        box = Box(-1.0, 1.0, (task.batch, task.action_dim), np.float32)
        config = SimpleNamespace(horizon=task.horizon, action_block=1)
        solver.configure(action_space=box, n_envs=task.batch, config=config)
        info = {"state": task.state, "goal": task.goal}
        silence = open(os.devnull, "w")  # noqa: SIM115 - open as long as the process

        def plan() -> Tensor:
            with contextlib.redirect_stdout(silence):  # each solve prints a line
                found: Tensor = solver.solve(info)["actions"]
            return found

        return plan


def contenders(budget: Budget, batch: int) -> list[list[Theirs]]:
    """For each solver and batch size, the configurations to choose from; the default is first."""
    sampling = {
        "num_samples": budget.candidates,
        "n_steps": budget.iterations,
        "topk": budget.elites,
    }
    gradient = {"num_samples": budget.starts, "n_steps": budget.descents}
    scales = [{}, {"var_scale": 0.5}]
    adam = [
        {"optimizer_cls": torch.optim.Adam, "optimizer_kwargs": {"lr": rate}} for rate in (0.1, 0.3)
    ]
    kinds: list[tuple[str, Callable[..., Any], dict[str, Any], list[list[dict[str, Any]]]]] = [
        ("CEM", solvers.CEMSolver, sampling, [scales]),
        ("iCEM", solvers.ICEMSolver, sampling, [scales, [{}, {"noise_beta": 3.0}]]),
        (
            "MPPI",
            solvers.MPPISolver,
            sampling,
            [scales, [{}, {"temperature": 0.1}, {"temperature": 0.02}]],
        ),
        ("gradient", solvers.GradientSolver, gradient, [scales, [{}, *adam]]),
    ]
    found = []
    for family, make, options, axes in kinds:
        variants = [{k: v for part in parts for k, v in part.items()} for parts in product(*axes)]
        for size, model in product(sorted({1, min(8, batch), batch}), ("steps", "roll-out")):
            found.append(
                [Theirs(family, make, options, size, model, variant) for variant in variants]
            )
    return found
