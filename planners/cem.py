"""The cross-entropy method: sample, keep the elites, fit a distribution to them, sample again.

Unusual here: the mean (or mode) is itself a candidate of every iteration, and the fit divides by
the number of elites with a finite energy, so that a not-a-number roll-out never enters it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from forethought.planners.deadline import Deadline
from forethought.planners.discrete import (
    first_guess,
    first_held,
    held_index,
    one_hot,
    sample,
)
from forethought.planners.incumbent import Incumbent
from forethought.planners.problem import Plan, Planner, Problem
from forethought.planners.proposals import (
    Noise,
    checked,
    fitted,
    project,
    safe_actions,
    spline,
)

__all__ = ["CEM", "fit_gaussian"]


@dataclass(frozen=True)
class CEM(Planner):
    """Cross-entropy method (Rubinstein and Kroese, 2004) with a diagonal Gaussian per problem.

    The mean starts at the first proposal, or at the safe action; the other proposals are
    candidates of the first iteration. Samples are projected onto the bounds.

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
        control_points: Points over the horizon that the distribution is over, with actions linear
            in between (discrete: each held equally long); None is one per step. Proposals are
            evaluated as they are, and the fit takes them for the nearest such sequence.
    """

    candidates: int = 64
    iterations: int = 6
    elites: int = 8
    initial_std: float = 0.5
    minimum_std: float = 0.05
    momentum: float = 0.1
    correlation: float = 0.8
    control_points: int | None = None

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
        half_range = 0.5 * (high - low)
        weights = spline(problem, self.control_points)
        near = fitted(problem, weights, given)  # (B, P, K, A)
        points = problem.horizon if weights is None else weights.shape[1]
        mean = near[:, 0] if near.shape[1] else safe_actions(problem)[:, :points]
        std = (self.initial_std * half_range).expand_as(mean)
        noise = Noise(problem, self.candidates, points=points, correlation=self.correlation)
        for iteration in range(self.iterations):
            if iteration and incumbent.late():
                break
            drawn = noise.draw(generator)
            drawn[:, 0] = 0.0  # the mean itself
            drawn.mul_(std.unsqueeze(1)).add_(mean.unsqueeze(1))
            drawn = project(problem, drawn, out=drawn)
            if iteration == 0:
                drawn[:, : near.shape[1]] = near
            actions = drawn if weights is None else project(problem, weights @ drawn)
            if iteration == 0:
                actions[:, : given.shape[1]] = given
            energies = incumbent.evaluate(actions)
            mean, std = self._fit(drawn, energies, mean, std)
            std = torch.maximum(std, self.minimum_std * half_range)

    def _search_discrete(
        self, problem: Problem, given: Tensor, generator: torch.Generator, incumbent: Incumbent
    ) -> None:
        held = held_index(problem, self.control_points)
        near = given.index_select(2, first_held(problem, self.control_points))
        probabilities = first_guess(problem, near, self.initial_std)  # (B, K, n)
        for iteration in range(self.iterations):
            if iteration and incumbent.late():
                break
            drawn = sample(
                problem,
                probabilities,
                self.candidates,
                generator,
                spread=self.minimum_std,
                correlation=self.correlation,
            )
            if iteration == 0:
                drawn[:, : near.shape[1]] = near
            actions = drawn.index_select(2, held)
            if iteration == 0:
                actions[:, : given.shape[1]] = given
            energies = incumbent.evaluate(actions)
            chosen = one_hot(problem, drawn)
            probabilities = self._fit_discrete(chosen, energies, probabilities)

    def _fit(
        self, points: Tensor, energies: Tensor, mean: Tensor, std: Tensor
    ) -> tuple[Tensor, Tensor]:
        return fit_gaussian(points, energies, mean, std, elites=self.elites, momentum=self.momentum)

    def _fit_discrete(self, chosen: Tensor, energies: Tensor, probabilities: Tensor) -> Tensor:
        """Frequencies `(B, H, n)` in the finite elites of `chosen` `(B, S, H, n)`, smoothed."""
        elites, weights = _elites(chosen, energies, self.elites)
        frequencies = (weights * elites).sum(1).lerp(probabilities, self.momentum)
        return torch.where(weights.sum(1) > 0, frequencies, probabilities)


def fit_gaussian(
    points: Tensor,
    energies: Tensor,
    mean: Tensor,
    std: Tensor,
    *,
    elites: int,
    momentum: float,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `(B, K, A)` of the finite elites; unchanged without any.

    Args:
        points: What is fitted `(B, S, K, A)`: actions, or their control points.
        energies: `(B, S)`, +infinity where not finite.
        mean: Before the fit `(B, K, A)`.
        std: Before the fit `(B, K, A)`.
        elites: How many of the best count, at most S.
        momentum: Share of `mean` and `std` that is kept.
    """
    best, weights = _elites(points, energies, elites)
    elite_mean = (weights * best).sum(1)
    variance = (weights * (best - elite_mean.unsqueeze(1)).square()).sum(1)
    found = weights.sum(1) > 0
    mean = torch.where(found, elite_mean.lerp(mean, momentum), mean)
    std = torch.where(found, variance.sqrt().lerp(std, momentum), std)
    return mean, std


def _elites(values: Tensor, energies: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best candidates `(B, E, K, A)`, and weights `(B, E, 1, 1)` for the finite among them.

    The weights are equal and sum to 1 over E; all are 0 where no energy is finite.
    """
    lowest, index = energies.topk(count, dim=1, largest=False)  # (B, E)
    index = index[:, :, None, None].expand(-1, -1, *values.shape[2:])
    best = values.gather(1, index)
    finite = lowest.isfinite().to(best)
    weights = finite / finite.sum(1, keepdim=True).clamp(min=1.0)
    return best, weights[:, :, None, None]
