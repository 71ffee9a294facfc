"""The cross-entropy method: sample, keep the elites, fit a Gaussian to them, sample again.

Unusual here: the mean is itself a candidate of every iteration, and the fit divides by the number
of elites with a finite energy, so that a not-a-number roll-out never enters mean or std.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from forethought.planners.incumbent import Incumbent
from forethought.planners.problem import Plan, Planner, Problem
from forethought.planners.proposals import checked, gaussian_noise, safe_actions

__all__ = ["CEM"]


@dataclass(frozen=True)
class CEM(Planner):
    """Cross-entropy method (Rubinstein and Kroese, 2004) with a diagonal Gaussian per problem.

    The mean starts at the first proposal, or at the safe action; the other proposals are
    candidates of the first iteration. Samples are clamped to the bounds.

    Attributes:
        candidates: Sequences per problem and iteration, the mean and proposals among them.
        iterations: Rounds of sampling and fitting.
        elites: Best candidates that the Gaussian is fitted to.
        initial_std: Standard deviation at first, as a fraction of half of each action's range.
        minimum_std: Standard deviation below which it never falls, in the same unit.
        momentum: Share of the previous mean and standard deviation that is kept, in [0, 1).
        correlation: Of the noise of consecutive steps, in [0, 1). White noise cancels itself over
            a plan and hardly leaves the start (LOG.md has its success on Two-Rooms).
    """

    candidates: int = 64
    iterations: int = 6
    elites: int = 8
    initial_std: float = 0.5
    minimum_std: float = 0.05
    momentum: float = 0.1
    correlation: float = 0.8

    def __post_init__(self) -> None:
        for name in ("iterations", "elites"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; give at least 1")
        if self.candidates < max(2, self.elites):
            raise ValueError(
                f"candidates = {self.candidates}; give at least 2, and at least elites = "
                f"{self.elites}"
            )
        if not 0.0 <= self.minimum_std <= self.initial_std < float("inf") or self.initial_std == 0:
            raise ValueError(
                f"initial_std = {self.initial_std}, minimum_std = {self.minimum_std}; give "
                "0 <= minimum_std <= initial_std, and initial_std finite and above 0"
            )
        if not 0.0 <= self.correlation < 1.0:
            raise ValueError(f"correlation = {self.correlation}; choose it in [0, 1)")
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum = {self.momentum}; choose it in [0, 1)")

    @torch.no_grad()
    def plan(
        self,
        problem: Problem,
        *,
        proposals: Tensor | None = None,
        generator: torch.Generator,
        deadline: float | None = None,
    ) -> Plan:
        """Plan each problem; see `Planner.plan`."""
        incumbent = Incumbent(problem, deadline)
        low, high = problem.bounds
        given = checked(problem, proposals, self.candidates, "candidates")
        mean = given[:, 0] if given.shape[1] else safe_actions(problem)  # (B, H, A)
        half_range = 0.5 * (high - low)
        std = (self.initial_std * half_range).expand_as(mean)
        for iteration in range(self.iterations):
            if iteration and incumbent.late():
                break
            noise = gaussian_noise(problem, self.candidates, generator, self.correlation)
            noise[:, 0] = 0.0  # the mean itself
            actions = (mean.unsqueeze(1) + std.unsqueeze(1) * noise).clamp(low, high)
            if iteration == 0:
                actions[:, : given.shape[1]] = given
            energies = incumbent.evaluate(actions)
            mean, std = self._fit(actions, energies, mean, std)
            std = torch.maximum(std, self.minimum_std * half_range)
        return incumbent.plan()

    def _fit(
        self, actions: Tensor, energies: Tensor, mean: Tensor, std: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and std `(B, H, A)` of the finite elites, smoothed; unchanged without any."""
        lowest, index = energies.topk(self.elites, dim=1, largest=False)  # (B, E)
        index = index[:, :, None, None].expand(-1, -1, *actions.shape[2:])
        elites = actions.gather(1, index)  # (B, E, H, A)
        weights = lowest.isfinite().to(elites)[:, :, None, None]
        count = weights.sum(1)  # (B, 1, 1)
        elite_mean = (weights * elites).sum(1) / count.clamp(min=1.0)
        deviations = elites - elite_mean.unsqueeze(1)
        elite_std = ((weights * deviations.square()).sum(1) / count.clamp(min=1.0)).sqrt()
        found = count > 0
        mean = torch.where(found, elite_mean.lerp(mean, self.momentum), mean)
        std = torch.where(found, elite_std.lerp(std, self.momentum), std)
        return mean, std
