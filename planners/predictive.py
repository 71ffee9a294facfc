"""Predictive sampling: perturb the best plan so far, take the best; nothing is fitted.

The simplest search that works (Howell et al. 2022, 2212.00541): one iteration per decision, and the
plan improves from decision to decision, as last time's plan comes back among the proposals.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from forethought.planners.deadline import Deadline
from forethought.planners.incumbent import Incumbent
from forethought.planners.problem import Plan, Planner, Problem
from forethought.planners.proposals import Noise, checked, fitted, project, safe_actions, spline

__all__ = ["PredictiveSampling"]


@dataclass(frozen=True)
class PredictiveSampling(Planner):
    """Gaussian perturbations of the control points of the best sequence so far.

    The first iteration does not know yet which proposal is best: proposals (or the safe action) are
    candidates as they are, and the perturbations are shared out among them. Continuous actions
    only; candidates are projected onto the bounds.

    Attributes:
        candidates: Sequences per problem and iteration, the unperturbed ones among them.
        iterations: Rounds of perturbing the best; the original has 1.
        std: Standard deviation of the perturbations of each point, as a fraction of half of each
            action's range.
        control_points: Points over the horizon that are perturbed, with actions linear in between;
            None perturbs every action for itself. Proposals are evaluated as they are, and
            perturbed as the nearest such sequences.
    """

    candidates: int = 64
    iterations: int = 4
    std: float = 0.5
    control_points: int | None = 5

    def __post_init__(self) -> None:
        for name, least in (("candidates", 2), ("iterations", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}; choose at least {least}")
        if not 0.0 < self.std < math.inf:
            raise ValueError(f"std = {self.std}; choose it finite and above 0")
        if self.control_points is not None and self.control_points < 1:
            raise ValueError(
                f"control_points = {self.control_points}; choose at least 1, or None for one a step"
            )

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
        """Plan each problem; see `Planner.plan`.

        Raises:
            ValueError: discrete actions, or proposals as in `Planner.plan`.
        """
        low, high = problem.bounds
        std = 0.5 * self.std * (high - low)
        incumbent = Incumbent(problem, deadline)
        given = checked(problem, proposals, self.candidates, "candidates")
        if not given.shape[1]:
            given = safe_actions(problem).unsqueeze(1)
        weights = spline(problem, self.control_points)
        near = fitted(problem, weights, given)  # (B, P, K, A)
        noise = Noise(problem, self.candidates, points=near.shape[2])
        turns = torch.arange(self.candidates, device=problem.device) % near.shape[1]
        centre = near.index_select(1, turns)  # (B, S, K, A)
        for iteration in range(self.iterations):
            if iteration and incumbent.late():
                break
            points = noise.draw(generator)
            points[:, : given.shape[1] if iteration == 0 else 1] = 0.0  # the centres themselves
            points.mul_(std).add_(centre)
            points = project(problem, points, out=points)
            actions = points if weights is None else project(problem, weights @ points)
            if iteration == 0:
                actions[:, : given.shape[1]] = given
            # The centre is among the candidates, so the best of each iteration is no worse than it.
            best = incumbent.evaluate(actions).argmin(1)[:, None, None, None]
            centre = points.gather(1, best.expand(-1, 1, *points.shape[2:]))
        return incumbent.plan()
