"""Planning by gradient descent through the world model, from many starts at once.

The paper's action optimisation (LeCun 2022, figure 4): the energy's gradient flows back through the
unrolled model into the actions. It needs many starts: 1, 8 and 16 reach 31, 99 and 99.7 % on
Two-Rooms (LOG.md). Random starts are smooth, actions are projected onto the bounds after each step,
and the best plan is kept.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from forethought.planners.incumbent import Incumbent
from forethought.planners.problem import Plan, Planner, Problem
from forethought.planners.proposals import starts
from forethought.planners.rollout import evaluate

__all__ = ["Gradient"]


@dataclass(frozen=True)
class Gradient(Planner):
    """Projected Adam (Kingma and Ba, 1412.6980) on the actions of all starts in parallel.

    Model evaluations: `iterations` forward and backward, and one forward for the last actions. It
    works under `torch.no_grad`, not under `torch.inference_mode`. Parameters collect no gradient.

    Attributes:
        starts: Starting sequences per problem; proposals take the first places, the safe action
            the next, smooth noise the others.
        iterations: Adam steps.
        learning_rate: Size of an Adam step, as a fraction of half of each action's range.
        knots: Knots of the smooth random starts over the horizon; H gives white noise.
        betas: Adam's decay rates of the mean and the mean square of the gradient.
    """

    starts: int = 16
    iterations: int = 12
    learning_rate: float = 0.1
    knots: int = 4
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        for name in ("starts", "iterations", "knots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; give at least 1")
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate = {self.learning_rate}; give a finite one above 0")
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas = {self.betas}; give two in [0, 1)")

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
        actions = starts(problem, self.starts, self.knots, proposals, generator)
        mean, square = torch.zeros_like(actions), torch.zeros_like(actions)
        rate = 0.5 * self.learning_rate * (high - low)  # (A,)
        for iteration in range(1, self.iterations + 1):
            gradient = _offer_with_gradient(problem, actions, incumbent)
            if incumbent.late():
                return incumbent.plan()
            self._descend(actions, gradient, mean, square, rate, iteration)
            torch.clamp(actions, low, high, out=actions)
        with torch.no_grad():
            incumbent.evaluate(actions)
        return incumbent.plan()

    def _descend(
        self,
        actions: Tensor,
        gradient: Tensor,
        mean: Tensor,
        square: Tensor,
        rate: Tensor,
        iteration: int,
    ) -> None:
        """One Adam step, in place in `actions`, `mean` and `square` `(B, S, H, A)`.

        Written out because `torch.optim.Adam` costs more than it computes at these sizes.
        """
        beta, beta_square = self.betas
        mean.lerp_(gradient, 1.0 - beta)
        square.mul_(beta_square).addcmul_(gradient, gradient, value=1.0 - beta_square)
        scale = (1.0 - beta_square**iteration) ** 0.5 / (1.0 - beta**iteration)
        # Energies come in any unit, so this only keeps a zero gradient from dividing by zero.
        step = mean / square.sqrt().add_(torch.finfo(square.dtype).tiny ** 0.5)
        actions.addcmul_(step, rate, value=-scale)


def _offer_with_gradient(problem: Problem, actions: Tensor, incumbent: Incumbent) -> Tensor:
    """Offer candidates; dE/da `(B, S, H, A)`, zero for a candidate where its square overflows."""
    with torch.enable_grad():
        leaf = actions.detach().requires_grad_()
        energies, states = evaluate(problem, leaf)
        # The sum only sends a one into each candidate: no candidate sees another's gradient.
        (gradient,) = torch.autograd.grad(energies.sum(), leaf)
    incumbent.offer(actions, energies, states)
    finite = gradient.square().sum(dim=(2, 3), keepdim=True) < math.inf  # and a number
    return torch.where(finite, gradient, 0.0)
