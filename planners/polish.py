"""Polish: a search finds the valley, gradient descent its floor.

Sampling gets past bumps and flat stretches but its last digits are dear; descent gives these and
gets past nothing. This runs one planner, then `Gradient` from its plan and from places around it.
"""

import math
import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from forethought.planners.deadline import Deadline
from forethought.planners.gradient import Gradient
from forethought.planners.problem import Plan, Planner, Problem, Status
from forethought.planners.proposals import Noise, project
from forethought.planners.state import apply

__all__ = ["Polish"]

_CORRELATION = 0.8  # of the spread at consecutive steps: independent steps cancel each other


@dataclass(frozen=True)
class Polish(Planner):
    """Any planner, then projected Adam from its plan: the energy is never above the planner's.

    The descent's first start is the plan as it is, its others are the plan with Gaussian noise, so
    that the neighbourhood is tried as well; with discrete actions the others are `Gradient`'s own.
    A deadline that has come when the planner returns ends the search there: a planner that always
    uses up its time is never polished, so let its iterations, not the deadline, end it.

    Attributes:
        planner: Searches first, with the proposals.
        gradient: Descends from `gradient.starts` sequences.
        spread: Standard deviation of the noise, as a fraction of half of each action's range.
    """

    planner: Planner
    gradient: Gradient = field(
        default_factory=lambda: Gradient(starts=4, iterations=10, learning_rate=0.05)
    )
    spread: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.spread < math.inf:
            raise ValueError(f"spread = {self.spread}; choose it finite and at least 0")

    @property
    def room(self) -> int | None:
        """Most proposals that `plan` takes: those that its planner takes."""
        return self.planner.room

    def plan(
        self,
        problem: Problem,
        *,
        proposals: Tensor | None = None,
        generator: torch.Generator,
        deadline: Deadline | None = None,
    ) -> Plan:
        """Plan each problem; see `Planner.plan`."""
        began = time.perf_counter()
        found = self.planner.plan(
            problem, proposals=proposals, generator=generator, deadline=deadline
        )
        if Status.DEADLINE in found.status:
            return found
        if deadline is not None:
            if found.energy.is_cuda:
                torch.cuda.synchronize(found.energy.device)  # queued work takes time too
            if deadline.passed():
                return replace(found, status=_late(found.status))
        near = self._around(problem, found.actions, generator)
        polished = self.gradient.plan(
            problem, proposals=near, generator=generator, deadline=deadline
        )
        return _better(found, polished, time.perf_counter() - began)

    def _around(self, problem: Problem, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Where to descend from `(B, S, H, A)`, the plan first; discrete: the plan `(B, 1, H)`."""
        if problem.actions is not None:
            return actions.unsqueeze(1)
        low, high = problem.bounds
        noise = Noise(problem, self.gradient.starts, correlation=_CORRELATION).draw(generator)
        noise[:, 0] = 0.0
        noise.mul_(0.5 * self.spread * (high - low)).add_(actions.unsqueeze(1))
        return project(problem, noise, out=noise)


def _late(status: tuple[Status, ...]) -> tuple[Status, ...]:
    """As `status`, but for the deadline, which came after the search and before its polish."""
    return tuple(Status.DEADLINE if one is Status.OK else one for one in status)


def _better(found: Plan, polished: Plan, seconds: float) -> Plan:
    """The better plan per problem, with the accounts of both."""
    pairs = zip(found.status, polished.status, strict=True)
    better = polished.energy < found.energy  # (B,)

    def chosen(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(better.view(-1, *[1] * (new.ndim - 1)), new, old)

    return Plan(
        actions=chosen(polished.actions, found.actions),
        energy=chosen(polished.energy, found.energy),
        states=apply(chosen, polished.states, found.states),
        status=tuple(a if b is Status.ALL_NON_FINITE else b for a, b in pairs),
        trace=torch.cat((found.trace, torch.minimum(polished.trace, found.energy))),
        model_steps=found.model_steps + polished.model_steps,
        seconds=seconds,
    )
