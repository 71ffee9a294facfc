"""The improved cross-entropy method: coloured noise, kept elites, fewer candidates as it narrows.

Unusual here: the mean is a candidate of the first iteration as well as of the last, so that a plan
is never worse than the first proposal, or the safe action; and the noise's colour is one product
with a small matrix, not a Fourier transform per draw.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from forethought.planners.cem import fit_gaussian
from forethought.planners.deadline import Deadline
from forethought.planners.incumbent import Incumbent
from forethought.planners.problem import Plan, Planner, Problem
from forethought.planners.proposals import (
    Noise,
    checked,
    coloured,
    fitted,
    project,
    safe_actions,
    spline,
)

__all__ = ["ICEM"]


@dataclass(frozen=True)
class ICEM(Planner):
    """iCEM (Pinneri et al. 2020, 2008.06389) with a diagonal Gaussian per problem.

    The mean starts at the first proposal, or at the safe action; the other proposals are candidates
    of the first iteration. The paper's shifted elites are what proposals bring: the previous plan,
    shifted. Candidates are projected onto the bounds. Continuous actions only.

    Attributes:
        candidates: Sequences per problem in the first iteration, the mean and proposals among them.
        iterations: Rounds of sampling and fitting.
        elites: Best candidates that the distribution is fitted to.
        kept: Share of the elites that are candidates of the next iteration again, in [0, 1].
        decay: Each iteration draws that many times fewer candidates, 1 or more; never fewer than
            twice the elites, or than `candidates`. Kept elites come on top.
        exponent: Of the noise's power spectrum over the horizon, 0 or more: 0 is white, 2 red. The
            paper takes 2 to 4 where actions have to push on, 0.25 where they balance.
        initial_std: Standard deviation at first, as a fraction of half of each action's range.
        minimum_std: Standard deviation below which it never falls, in the same unit. The paper has
            none (0).
        momentum: Share of the previous mean and standard deviation that is kept, in [0, 1).
        control_points: Points over the horizon that the distribution is over, as in `CEM`; the
            noise's spectrum is then that of the points.
    """

    candidates: int = 64
    iterations: int = 6
    elites: int = 8
    kept: float = 0.3
    decay: float = 1.25
    exponent: float = 3.0
    initial_std: float = 1.0
    minimum_std: float = 0.0
    momentum: float = 0.1
    control_points: int | None = None

    def __post_init__(self) -> None:
        for name in ("iterations", "elites"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; choose at least 1")
        if self.candidates < max(2, self.elites):
            raise ValueError(
                f"candidates = {self.candidates}; choose at least 2, and at least elites = "
                f"{self.elites}"
            )
        if not 0.0 <= self.kept <= 1.0:
            raise ValueError(f"kept = {self.kept}; choose it in [0, 1]")
        if not 1.0 <= self.decay < math.inf:
            raise ValueError(f"decay = {self.decay}; choose it finite and at least 1")
        if not 0.0 <= self.exponent < math.inf:
            raise ValueError(f"exponent = {self.exponent}; choose it finite and at least 0")
        if not 0.0 <= self.minimum_std <= self.initial_std < math.inf or self.initial_std == 0:
            raise ValueError(
                f"initial_std = {self.initial_std}, minimum_std = {self.minimum_std}; choose "
                "0 <= minimum_std <= initial_std, and initial_std finite and above 0"
            )
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum = {self.momentum}; choose it in [0, 1)")
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
        half_range = 0.5 * (high - low)
        incumbent = Incumbent(problem, deadline)
        given = checked(problem, proposals, self.candidates, "candidates")
        weights = spline(problem, self.control_points)
        near = fitted(problem, weights, given)  # (B, P, K, A)
        points = problem.horizon if weights is None else weights.shape[1]
        mean = near[:, 0] if near.shape[1] else safe_actions(problem)[:, :points]
        std = (self.initial_std * half_range).expand_as(mean)
        mixing = coloured(points, self.exponent)
        noise = Noise(problem, self.candidates, points=points, mixing=mixing)
        kept = near[:, :0]
        for iteration in range(self.iterations):
            if iteration and incumbent.late():
                break
            drawn = noise.draw(generator, self._population(iteration))
            if iteration in (0, self.iterations - 1):
                drawn[:, 0] = 0.0  # the mean itself
            drawn.mul_(std.unsqueeze(1)).add_(mean.unsqueeze(1))
            drawn = project(problem, drawn, out=drawn)
            if iteration == 0:
                drawn[:, : near.shape[1]] = near
            drawn = torch.cat((drawn, kept), dim=1)
            actions = drawn if weights is None else project(problem, weights @ drawn)
            if iteration == 0:
                actions[:, : given.shape[1]] = given
            energies = incumbent.evaluate(actions)
            kept = self._kept(drawn, energies)
            mean, std = fit_gaussian(
                drawn, energies, mean, std, elites=self.elites, momentum=self.momentum
            )
            std = torch.maximum(std, self.minimum_std * half_range)
        return incumbent.plan()

    def _population(self, iteration: int) -> int:
        """Candidates drawn in `iteration`."""
        least = min(self.candidates, 2 * self.elites)
        return max(least, round(self.candidates * self.decay**-iteration))

    def _kept(self, points: Tensor, energies: Tensor) -> Tensor:
        """The best share of the elites `(B, E', K, A)`; where not finite, they lose again."""
        best = energies.topk(round(self.kept * self.elites), dim=1, largest=False).indices
        return points.gather(1, best[:, :, None, None].expand(-1, -1, *points.shape[2:]))
