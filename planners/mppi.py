"""Model-predictive path integral control: move the mean to the Boltzmann average of the samples.

Unusual here: energies are divided by their standard deviation per problem, so that one temperature
serves costs of any unit, and the final mean competes with the best sample.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from forethought.planners.deadline import Deadline
from forethought.planners.discrete import first_guess, one_hot, sample
from forethought.planners.incumbent import Incumbent
from forethought.planners.problem import Plan, Planner, Problem
from forethought.planners.proposals import Noise, checked, project, safe_actions

__all__ = ["MPPI"]


@dataclass(frozen=True)
class MPPI(Planner):
    """MPPI (Williams et al., 1509.01149), iterated, with weights exp(-(E - min E) / (T std E)).

    The mean starts at the first proposal, or at the safe action; the other proposals are
    candidates of the first iteration. The mean is a candidate of every iteration; the last mean is
    evaluated on its own. Samples are projected onto the bounds, and so is their average.

    With discrete actions the average of the samples is a categorical distribution per step, which
    starts around the first proposal, or uniform; its mode takes the place of the mean.

    Attributes:
        candidates: Sequences per problem and iteration, the mean and proposals among them.
        iterations: Rounds of sampling and averaging.
        temperature: T, in standard deviations of the finite energies of a problem's candidates:
            towards 0 only the best sample counts, towards infinity all count alike.
        std: Standard deviation of the noise, as a fraction of half of each action's range.
            Discrete: the share of uniform probability in every sample, above 1 counts as 1.
        correlation: Of the noise at consecutive steps, in [0, 1); 0 is white noise. Discrete: as
            in `CEM`.
    """

    candidates: int = 64
    iterations: int = 6
    temperature: float = 0.1
    std: float = 0.4
    correlation: float = 0.9

    def __post_init__(self) -> None:
        for name, least in (("candidates", 2), ("iterations", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}; give at least {least}")
        for name in ("temperature", "std"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} = {getattr(self, name)}; give a finite one above 0")
        if not 0.0 <= self.correlation < 1.0:
            raise ValueError(f"correlation = {self.correlation}; choose it in [0, 1)")

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
        std = 0.5 * self.std * (high - low)
        noise = Noise(problem, self.candidates, correlation=self.correlation)
        for iteration in range(self.iterations):
            actions = noise.draw(generator)
            actions[:, 0] = 0.0  # the mean itself
            actions.mul_(std).add_(mean.unsqueeze(1))
            actions = project(problem, actions, out=actions)
            if iteration == 0:
                actions[:, : given.shape[1]] = given
            energies = incumbent.evaluate(actions)
            if incumbent.late():
                return
            mean = project(problem, self._average(actions, energies, mean))
        incumbent.evaluate(mean.unsqueeze(1))

    def _search_discrete(
        self, problem: Problem, given: Tensor, generator: torch.Generator, incumbent: Incumbent
    ) -> None:
        probabilities = first_guess(problem, given, 0.0)  # (B, H, n)
        for iteration in range(self.iterations):
            actions = sample(
                problem,
                probabilities,
                self.candidates,
                generator,
                spread=self.std,
                correlation=self.correlation,
            )
            if iteration == 0:
                actions[:, : given.shape[1]] = given
            energies = incumbent.evaluate(actions)
            if incumbent.late():
                return
            probabilities = self._average(one_hot(problem, actions), energies, probabilities)
        incumbent.evaluate(probabilities.argmax(-1).unsqueeze(1))

    def _average(self, actions: Tensor, energies: Tensor, mean: Tensor) -> Tensor:
        """Boltzmann average `(B, H, A)` of finite candidates; the old mean without any."""
        finite = energies.isfinite()  # (B, S)
        count = finite.sum(1, keepdim=True).clamp(min=1)
        lowest = energies.amin(1, keepdim=True)
        # Halved, so that the difference of two finite energies cannot overflow; scaled to [0, 1].
        above = torch.where(finite, 0.5 * energies - 0.5 * lowest, torch.zeros_like(energies))
        above = above / above.amax(1, keepdim=True).clamp(min=torch.finfo(above.dtype).tiny)
        centre = above.sum(1, keepdim=True) / count
        var = ((above - centre).square() * finite).sum(1, keepdim=True) / count
        scale = self.temperature * var.sqrt() + torch.finfo(var.dtype).tiny
        weights = torch.exp(-above / scale) * finite
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1.0)
        average = torch.einsum("bs,bsha->bha", weights, actions)
        return torch.where(finite.any(1)[:, None, None], average, mean)
