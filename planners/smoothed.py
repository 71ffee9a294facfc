"""Gradient descent on a smoothed energy, for contacts: where the plain gradient is zero or wild.

A block that moves only while it is touched leaves the energy flat around a plan that does not reach
it. The mean of the energy over perturbed plans is smooth, and its gradient points to the contact.

Two estimates of that gradient from the same perturbations are mixed (Suh et al. 2022, "Do
differentiable simulators give better policy gradients?", 2202.00817): of order zero, from energies
alone, and of order one, the mean of the gradients, which has less variance but misses steps.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from forethought.planners.deadline import Deadline
from forethought.planners.descent import Descent
from forethought.planners.incumbent import Incumbent
from forethought.planners.problem import Plan, Planner, Problem
from forethought.planners.proposals import gaussian_noise, project, starts
from forethought.planners.rollout import evaluate

__all__ = ["Smoothed"]


@dataclass(frozen=True)
class Smoothed(Planner):
    """Projected Adam on E[energy(project(actions + std n))], n normal, from many starts.

    With pairs i = 1 .. P of perturbations n_i and -n_i, of covariance C over time, both estimate C
    times the gradient of the smoothed energy, which correlated noise makes smooth over time too:

        order 0: mean_i n_i (E(a + std n_i) - E(a - std n_i)) / (2 std)
        order 1: C mean_i (E'(a + std n_i) + E'(a - std n_i)) / 2

    A pair with a non-finite energy counts for neither; fewer than two pairs move nothing.
    Order 1 gets the share min(v0 / (v0 + v1), trust * sqrt(v0) / |order 1 - order 0|), where v0 and
    v1 are the variances of the means: the least variance, unless they differ by more than chance.

    Perturbed plans are candidates as well. Model evaluations: `iterations` (2 `pairs` + 1) and one
    for the last actions, per start.

    Attributes:
        starts: Starting sequences per problem; proposals take the first places, the safe action
            the next, smooth noise the others.
        pairs: P, pairs of perturbations per start and iteration.
        iterations: Adam steps.
        learning_rate: Size of an Adam step, as a fraction of half of each action's range.
        std: Of the perturbations of the first iteration, in halves of each action's range.
        last_std: Likewise of the last iteration; in between it falls geometrically.
        correlation: Of the perturbations of consecutive steps, in [0, 1). White noise cancels
            itself over a plan and reaches little.
        trust: Largest share of order 1 where the two orders differ by one standard error of order
            0, and less the more they differ. 0 uses energies alone, and model and costs then need
            no gradient.
        knots: Knots of the smooth random starts over the horizon; H gives white noise.
    """

    starts: int = 4
    pairs: int = 8
    iterations: int = 15
    learning_rate: float = 0.1
    std: float = 0.3
    last_std: float = 0.05
    correlation: float = 0.8
    trust: float = 1.0
    knots: int = 4

    def __post_init__(self) -> None:
        for name in ("starts", "iterations", "knots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; give at least 1")
        if self.pairs < 2:
            raise ValueError(f"pairs = {self.pairs}; give at least 2, one has no variance")
        for name in ("learning_rate", "std", "last_std"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)}; give a finite one above 0")
        if not 0.0 <= self.correlation < 1.0:
            raise ValueError(f"correlation = {self.correlation}; choose it in [0, 1)")
        if not 0.0 <= self.trust < math.inf:
            raise ValueError(f"trust = {self.trust}; give a finite one, 0 or more")

    @property
    def room(self) -> int:
        """Most proposals that `plan` takes."""
        return self.starts

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
        low, high = problem.bounds
        incumbent = Incumbent(problem, deadline)
        actions = starts(problem, self.starts, self.knots, proposals, generator)
        rate = 0.5 * self.learning_rate * (high - low)  # (A,)
        descent = Descent()
        for iteration in range(self.iterations):
            if iteration and incumbent.late():
                return incumbent.plan()
            std = self.std * (self.last_std / self.std) ** (iteration / max(1, self.iterations - 1))
            gradient = self._gradient(problem, actions, std, generator, incumbent)
            actions = project(problem, actions - rate * descent.step(gradient))
        if not incumbent.late():
            incumbent.evaluate(actions)
        return incumbent.plan()

    def _gradient(
        self,
        problem: Problem,
        actions: Tensor,
        std: float,
        generator: torch.Generator,
        incumbent: Incumbent,
    ) -> Tensor:
        """Offer the starts and their perturbations; C dF/da of the smoothed energy F, as `actions`.

        Everything is in half ranges, of the actions `(B, S, H, A)` and of the gradient.
        """
        low, high = problem.bounds
        half_range = 0.5 * (high - low)
        shape = (*actions.shape[:2], self.pairs, *actions.shape[2:])  # (B, S, P, H, A)
        count = actions.shape[1] * self.pairs
        noise = gaussian_noise(problem, count, generator, self.correlation).view(shape)
        centre = actions.unsqueeze(2)
        moved = centre + torch.cat((std * noise, -std * noise), 2) * half_range
        energies, slopes = self._offered(problem, torch.cat((centre, moved), 2), incumbent)
        plus, minus = energies[:, :, 1:].chunk(2, 2)  # (B, S, P)
        valid = (plus - minus).isfinite() & (plus + minus).isfinite()
        rise = torch.where(valid, plus - minus, 0.0)
        zeroth = noise * (0.5 * rise / std)[..., None, None]
        if slopes is None:
            return _mean(zeroth, valid)[0]
        up, down = (slopes[:, :, 1:] * half_range).chunk(2, 2)
        first = _covariance(problem.horizon, self.correlation, actions) @ (0.5 * (up + down))
        valid = valid & first.flatten(3).square().sum(-1).isfinite()
        first = torch.where(valid[..., None, None], first, 0.0)
        return _mixed(_mean(zeroth, valid), _mean(first, valid), self.trust)

    def _offered(
        self, problem: Problem, actions: Tensor, incumbent: Incumbent
    ) -> tuple[Tensor, Tensor | None]:
        """Energies `(B, S, 2P+1)` of `(B, S, 2P+1, H, A)`, projected, and their gradients.

        The gradient is that of the energy after the projection, as order 0 sees it.
        """
        shape = actions.shape
        if not self.trust:
            found = incumbent.evaluate(project(problem, actions.flatten(1, 2)))
            return found.view(shape[:3]), None
        with torch.enable_grad():
            leaf = actions.flatten(1, 2).detach().requires_grad_()
            within = project(problem, leaf)
            energies, states = evaluate(problem, within)
            if not energies.requires_grad:
                raise ValueError(
                    "the energy has no gradient in the actions; choose trust = 0, which needs none"
                )
            (slopes,) = torch.autograd.grad(energies.sum(), leaf)
        found = incumbent.offer(within.detach(), energies, states)
        return found.view(shape[:3]), slopes.view(shape)


def _covariance(horizon: int, correlation: float, like: Tensor) -> Tensor:
    """C `(H, H)` of `gaussian_noise`: correlation^|i - j|."""
    steps = torch.arange(horizon, device=like.device)
    lag = (steps.unsqueeze(1) - steps).abs()
    return torch.where(lag == 0, 1.0, correlation ** lag.to(like))


def _mean(samples: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(B, S, H, A)` of valid samples `(B, S, P, H, A)`, and its total variance `(B, S)`.

    Samples that are not valid are zero. With fewer than two that are, both results are zero.
    """
    weight = valid.to(samples)[..., None, None]  # (B, S, P, 1, 1)
    count = weight.sum(2)  # (B, S, 1, 1)
    enough = count >= 2.0
    mean = torch.where(enough, samples.sum(2) / count.clamp(min=1.0), 0.0)
    spread = ((samples - mean.unsqueeze(2)) * weight).square().sum(dim=(2, 3, 4))
    count = count.flatten(1)
    variance = spread / (count * (count - 1.0)).clamp(min=1.0)
    return mean, torch.where(count >= 2.0, variance, 0.0)


def _mixed(zeroth: tuple[Tensor, Tensor], first: tuple[Tensor, Tensor], trust: float) -> Tensor:
    """Both estimates in the shares that `Smoothed` states; each a mean and its variance."""
    (mean, variance), (other, other_variance) = zeroth, first
    tiny = torch.finfo(mean.dtype).tiny
    least = variance / (variance + other_variance).clamp(min=tiny)
    apart = (other - mean).flatten(2).norm(dim=-1)
    limit = trust * variance.sqrt() / apart.clamp(min=tiny)
    share = torch.minimum(least, limit)[..., None, None]
    return mean + share * (other - mean)
