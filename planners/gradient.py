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

from forethought.planners.deadline import Deadline
from forethought.planners.descent import Descent
from forethought.planners.discrete import first_held, held_index, one_hot
from forethought.planners.incumbent import Incumbent
from forethought.planners.problem import Plan, Planner, Problem
from forethought.planners.proposals import fitted, project, spline, starts
from forethought.planners.rollout import evaluate

__all__ = ["Gradient"]

_LOGIT_RANGE = 20.0  # what `learning_rate` is a fraction of: 1 per step by default
_PEAK = 0.9  # probability of a start's own actions
_OFFER_EVERY = 3  # iterations; 1 solves 57 instead of 56 % of the problems in a third more time


@dataclass(frozen=True)
class Gradient(Planner):
    """Projected Adam (Kingma and Ba, 1412.6980) on the actions of all starts in parallel.

    Model evaluations: `iterations` forward and backward, and one forward for the last actions. It
    works under `torch.no_grad`, not under `torch.inference_mode`. Parameters collect no gradient.

    Discrete actions are relaxed: Adam moves logits, and the model is asked with their softmax (see
    `Problem`). The energy of such a mixture is nobody's plan, so the most probable sequences are
    evaluated as well: at first, after every third iteration and at the end. A deadline may lose
    the last steps before such an evaluation.

    Attributes:
        starts: Starting sequences per problem; proposals take the first places, the safe action
            the next, smooth noise the others.
        iterations: Adam steps.
        learning_rate: Size of an Adam step, as a fraction of half of each action's range. That of
            logits counts as 20.
        knots: Knots of the smooth random starts over the horizon; H gives white noise. With
            discrete actions the number of actions drawn, each held equally long.
        betas: Adam's decay rates of the mean and the mean square of the gradient. Discrete actions
            like short memories: (0.5, 0.9) solved 64 % of small problems, the default 56 %
            (LOG.md).
        control_points: Points over the horizon that Adam moves, with actions linear in between
            (discrete: each held equally long); None moves every action. Proposals are evaluated
            as they are, and the descent goes on from the nearest such sequences.
    """

    starts: int = 16
    iterations: int = 12
    learning_rate: float = 0.1
    knots: int = 4
    betas: tuple[float, float] = (0.9, 0.999)
    control_points: int | None = None

    def __post_init__(self) -> None:
        for name in ("starts", "iterations", "knots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; give at least 1")
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate = {self.learning_rate}; give a finite one above 0")
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ValueError(f"betas = {self.betas}; give two in [0, 1)")
        if self.control_points is not None and self.control_points < 1:
            raise ValueError(
                f"control_points = {self.control_points}; choose at least 1, or None for one a step"
            )

    @property
    def room(self) -> int:
        """Most proposals that `plan` takes."""
        return self.starts

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
        first = starts(problem, self.starts, self.knots, proposals, generator)
        search = self._search if problem.actions is None else self._search_discrete
        if self.control_points is not None:
            self._hold(problem, first, 0 if proposals is None else proposals.shape[1])
        search(problem, first, incumbent)
        return incumbent.plan()

    def _hold(self, problem: Problem, first: Tensor, proposed: int) -> None:
        """Bend the starts behind the `proposed` ones to the control points, in place."""
        own = first[:, proposed:]
        if problem.actions is not None:
            near = own.index_select(2, first_held(problem, self.control_points))
            own.copy_(near.index_select(2, held_index(problem, self.control_points)))
            return
        weights = spline(problem, self.control_points)
        if weights is not None:
            own.copy_(project(problem, weights @ fitted(problem, weights, own)))

    def _search(self, problem: Problem, actions: Tensor, incumbent: Incumbent) -> None:
        """Descend from the starts `actions` `(B, S, H, A)`, in place."""
        low, high = problem.bounds
        weights = spline(problem, self.control_points)
        points = fitted(problem, weights, actions)  # (B, S, K, A)
        descent = Descent(self.betas)
        rate = 0.5 * self.learning_rate * (high - low)  # (A,)
        for _ in range(self.iterations):
            gradient = _offer_with_gradient(problem, actions, incumbent)
            if incumbent.late():
                return
            if weights is not None:
                gradient = weights.mT @ gradient
            points.addcmul_(descent.step(gradient), rate, value=-1.0)
            project(problem, points, out=points)
            if weights is not None:
                torch.matmul(weights, points, out=actions)
                project(problem, actions, out=actions)
        with torch.no_grad():
            incumbent.evaluate(actions)

    def _search_discrete(self, problem: Problem, first: Tensor, incumbent: Incumbent) -> None:
        """Descend from the starts `first` `(B, S, H)`, in logits `(B, S, K, n)`."""
        # The relaxation, and not a straight-through estimate of it (one-hot forward, softmax
        # backward): at the same cost 56 against 48 % of small problems were solved (LOG.md).
        held = held_index(problem, self.control_points)
        near = first.index_select(2, first_held(problem, self.control_points))
        logits = _peaked(one_hot(problem, near))
        descent = Descent(self.betas)
        rate = logits.new_tensor(0.5 * self.learning_rate * _LOGIT_RANGE)
        for iteration in range(1, self.iterations + 1):
            if (iteration - 1) % _OFFER_EVERY == 0:
                with torch.no_grad():
                    best = first if iteration == 1 else logits.argmax(-1).index_select(2, held)
                    incumbent.evaluate(best)
            if incumbent.late():
                return
            gradient = _relaxed_gradient(problem, logits, held, incumbent)
            logits.addcmul_(descent.step(gradient), rate, value=-1.0)
        with torch.no_grad():
            incumbent.evaluate(logits.argmax(-1).index_select(2, held))


def _offer_with_gradient(problem: Problem, actions: Tensor, incumbent: Incumbent) -> Tensor:
    """Offer candidates; dE/da `(B, S, H, A)`, zero for a candidate where its square overflows."""
    with torch.enable_grad():
        leaf = actions.detach().requires_grad_()
        energies, states = evaluate(problem, leaf)
        gradient = _gradient(energies, leaf)
    incumbent.offer(actions, energies, states)
    return gradient


def _relaxed_gradient(
    problem: Problem, logits: Tensor, held: Tensor, incumbent: Incumbent
) -> Tensor:
    """Gradient `(B, S, K, n)` of the energy of softmax(logits), zero as above; offers nothing.

    `held` `(H,)` says which of the K is taken at each step.
    """
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        energies, _ = evaluate(problem, leaf.softmax(-1).index_select(2, held))
        gradient = _gradient(energies, leaf)
    incumbent.count(logits.shape[1])
    return gradient


def _peaked(chosen: Tensor) -> Tensor:
    """Logits that give a share `_PEAK` of the probability to the ones of `chosen` `(..., n)`."""
    others = max(1, chosen.shape[-1] - 1)
    return chosen * math.log(others * _PEAK / (1.0 - _PEAK))


def _gradient(energies: Tensor, leaf: Tensor) -> Tensor:
    if not energies.requires_grad:
        raise ValueError(
            "the energy has no gradient in the actions; let step, rollout and costs keep it "
            "(discrete actions come as probabilities, see Problem) and leave torch.inference_mode, "
            "or plan with CEM"
        )
    # The sum only sends a one into each candidate: no candidate sees another's gradient.
    (gradient,) = torch.autograd.grad(energies.sum(), leaf)
    finite = gradient.square().sum(dim=(2, 3), keepdim=True) < math.inf  # and a number
    return torch.where(finite, gradient, 0.0)
