"""The best candidate so far, and the accounts of a search: what all planners share."""

import math
import time

import torch
from torch import Tensor

from forethought.planners.deadline import Deadline
from forethought.planners.problem import Plan, Problem, Status
from forethought.planners.proposals import safe_actions
from forethought.planners.rollout import evaluate, losing
from forethought.planners.state import State, apply, flatten, select

__all__ = ["Incumbent"]


class Incumbent:
    """The best candidate so far of each problem; it starts as the safe action, at infinite energy.

    Args:
        problem: B problems.
        deadline: As in `Planner.plan`.
    """

    def __init__(self, problem: Problem, deadline: Deadline | None) -> None:
        self._began = time.perf_counter()
        self._problem = problem
        self._deadline = deadline
        self._stopped = False
        self._rows = torch.arange(problem.batch, device=problem.device)
        self._actions = safe_actions(problem)
        self._energy = torch.full(
            (problem.batch,), math.inf, dtype=problem.float_dtype, device=problem.device
        )
        self._states: State | None = None
        self._trace: list[Tensor] = []
        self._model_steps = 0

    def evaluate(self, actions: Tensor) -> Tensor:
        """Evaluate candidates `(B, S, H, A)` or int64 `(B, S, H)`, then `offer` them."""
        energies, states = evaluate(self._problem, actions)
        return self.offer(actions, energies, states)

    def offer(self, actions: Tensor, energies: Tensor, states: State) -> Tensor:
        """Take over candidates that beat the incumbents of their problems.

        Args:
            actions: `(B, S, H, A)` or int64 `(B, S, H)`; copied where kept.
            energies: As `rollout.evaluate` gives them `(B, S)`.
            states: Predicted states `(B, S, H, ...)`.

        Returns:
            Detached energies `(B, S)`, +infinity where not finite.
        """
        samples = actions.shape[1]
        energies = losing(energies, states)
        lowest, best = energies.min(dim=1)  # (B,)
        better = lowest < self._energy
        rows = self._rows * samples + best
        with torch.no_grad():
            if self._states is None:
                self._states = apply(_unknown, states)
            self._states = apply(
                lambda new, old: _where(better, new, old),
                select(flatten(states), rows),
                self._states,
            )
            self._actions = _where(
                better, actions.flatten(0, 1).index_select(0, rows), self._actions
            )
        self._energy = torch.where(better, lowest, self._energy)
        self._trace.append(self._energy)
        self.count(samples)
        return energies

    def count(self, samples: int) -> None:
        """Enter the roll-outs of `samples` sequences per problem; `offer` enters its own."""
        self._model_steps += self._problem.batch * samples * self._problem.horizon

    def late(self) -> bool:
        """Whether the deadline has come: begin no further iteration."""
        if self._deadline is None:
            return False
        if self._energy.is_cuda:
            torch.cuda.synchronize(self._energy.device)  # queued work takes time too
        self._stopped = self._deadline.passed()
        return self._stopped

    def plan(self) -> Plan:
        """The incumbents, with the accounts. At least one offer must have been made."""
        if self._states is None:
            raise RuntimeError("nothing was offered; offer candidates before asking for the plan")
        ended = Status.DEADLINE if self._stopped else Status.OK
        found = self._energy.isfinite().tolist()
        return Plan(
            actions=self._actions,
            energy=self._energy,
            states=self._states,
            status=tuple(ended if finite else Status.ALL_NON_FINITE for finite in found),
            trace=torch.stack(self._trace),
            model_steps=self._model_steps,
            seconds=time.perf_counter() - self._began,
        )


def _where(better: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Rows of `new` `(B, ...)` where `better` `(B,)`, else of `old`."""
    return torch.where(better.view(-1, *[1] * (new.ndim - 1)), new, old)


def _unknown(states: Tensor) -> Tensor:
    """States `(B, H, ...)` of actions that were never predicted, from `(B, S, H, ...)`."""
    fill = math.nan if states.is_floating_point() else 0
    return torch.full_like(states[:, 0], fill)
