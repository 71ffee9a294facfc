"""The cross-entropy method: sample, keep the elites, fit a distribution to them, sample again.

Unusual here: the mean (or mode) is itself a candidate of every iteration, and the fit divides by
the number of elites with a finite energy, so that a not-a-number roll-out never enters it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from forethought.planners.deadline import Deadline
from forethought.planners.discrete import first_guess, one_hot, sample
from forethought.planners.incumbent import Incumbent
from forethought.planners.problem import Plan, Planner, Problem
from forethought.planners.proposals import checked, gaussian_noise, safe_actions

__all__ = ["CEM"]


@dataclass(frozen=True)
class CEM(Planner):
    """Cross-entropy method (Rubinstein and Kroese, 2004) with a diagonal Gaussian per problem.

    The mean starts at the first proposal, or at the safe action; the other proposals are
    candidates of the first iteration. Samples are clamped to the bounds.

    With discrete actions the distribution is a categorical one per step, fitted by the elites'
    frequencies; it starts around the first proposal, or uniform, and its mode serves as the mean.

    Attributes:
        candidates: Sequences per problem and iteration, the mean and proposals among them.
        iterations: Rounds of sampling and fitting.
        elites: Best candidates that the distribution is fitted to.
        initial_std: Standard deviation at first, as a fraction of half of each action's range.
            Discrete: the share of uniform probability around the first proposal.
        minimum_std: Standard deviation below which it never falls, in the same unit. Discrete: the
            share of uniform probability in every sample. Above 1, either share is 1.
        momentum: Share of the previous mean and standard deviation that is kept, in [0, 1).
        correlation: Of the noise of consecutive steps, in [0, 1). White noise cancels itself over
            a plan and hardly leaves the start (LOG.md has its success on Two-Rooms). Discrete: how
            often a step uses the random number of the step before, at most; see `discrete.sample`.
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
        """Plan each problem; see `Planner.plan`."""
        incumbent = Incumbent(problem, deadline)
        given = checked(problem, proposals, self.candidates, "candidates")
        search = self._search if problem.actions is None else self._search_discrete
        search(problem, given, generator, incumbent)
        return incumbent.plan()

    def _search(
        self, problem: Problem, given: Tensor, generator: torch.Generator, incumbent: Incumbent
    ) -> None:
        low, high = problem.bounds
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

    def _search_discrete(
        self, problem: Problem, given: Tensor, generator: torch.Generator, incumbent: Incumbent
    ) -> None:
        probabilities = first_guess(problem, given, self.initial_std)  # (B, H, n)
        for iteration in range(self.iterations):
            if iteration and incumbent.late():
                break
            actions = sample(
                problem,
                probabilities,
                self.candidates,
                generator,
                spread=self.minimum_std,
                correlation=self.correlation,
            )
            if iteration == 0:
                actions[:, : given.shape[1]] = given
            energies = incumbent.evaluate(actions)
            chosen = one_hot(problem, actions)
            probabilities = self._fit_discrete(chosen, energies, probabilities)

    def _fit(
        self, actions: Tensor, energies: Tensor, mean: Tensor, std: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean and std `(B, H, A)` of the finite elites, smoothed; unchanged without any."""
        elites, weights = self._elites(actions, energies)
        elite_mean = _average(elites, weights)
        variance = _average((elites - elite_mean.unsqueeze(1)).square(), weights)
        found = weights.sum(1) > 0
        mean = torch.where(found, elite_mean.lerp(mean, self.momentum), mean)
        std = torch.where(found, variance.sqrt().lerp(std, self.momentum), std)
        return mean, std

    def _fit_discrete(self, chosen: Tensor, energies: Tensor, probabilities: Tensor) -> Tensor:
        """Frequencies `(B, H, n)` in the finite elites of `chosen` `(B, S, H, n)`, smoothed."""
        elites, weights = self._elites(chosen, energies)
        frequencies = _average(elites, weights).lerp(probabilities, self.momentum)
        return torch.where(weights.sum(1) > 0, frequencies, probabilities)

    def _elites(self, actions: Tensor, energies: Tensor) -> tuple[Tensor, Tensor]:
        """The best candidates `(B, E, H, A)`, and `(B, E, 1, 1)`: 1 if their energy is finite."""
        lowest, index = energies.topk(self.elites, dim=1, largest=False)  # (B, E)
        index = index[:, :, None, None].expand(-1, -1, *actions.shape[2:])
        elites = actions.gather(1, index)
        return elites, lowest.isfinite().to(elites)[:, :, None, None]


def _average(values: Tensor, weights: Tensor) -> Tensor:
    """Average of `(B, E, H, A)` over E with weights `(B, E, 1, 1)` of 0 or 1; zero without any."""
    return (weights * values).sum(1) / weights.sum(1).clamp(min=1.0)
