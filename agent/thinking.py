"""When to think: what mode `auto` decides by (LeCun 2022, section 3.1; DESIGN "Mode choice").

Every decision begins with what costs little: the policy rolled out in the model and, where there
is one, the rest of the last plan. A plan is made where one of these signals exceeds the price of
thinking:

    gain      how far the energy of that cheap proposal can fall, to first order, by one projected
              gradient step: sum over actions of |dE/da| times the way to the edge of a small box
    excess    how far its energy lies above what past plans reached from such states, as a linear
              regression on states tells
    regret    the gains, where they are gains, added up over the decisions since the last plan: what
              acting without a plan has cost so far. To buy when the rent paid reaches the price
              is the rule of ski rental (Karlin et al. 1988): at most twice what the best
              moments, known beforehand, would have cost
    surprise  how far the state observed is from the one predicted, mean squared per dimension
    doubt     how unsure the predictor is along the cheap proposal: the mean over its steps of a
              number in (0, 1), from an energy or the disagreement of an ensemble
    random    a number drawn from [0, 1): the control that the others are compared with

The price is in the unit of the signal. `price_for` finds the one at which a wanted share of
decisions is thought about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from forethought.planners import Problem, evaluate, losing, safe_actions

Signal = Literal["gain", "regret", "excess", "surprise", "doubt", "random"]


@dataclass(frozen=True)
class Thinking:
    """When mode `auto` plans.

    Args:
        signal: what is compared with the price.
        price: above it a plan is made. None: found so that the share below is kept, on episodes
            that are neither trained nor tested on.
        share: share of decisions to think about that the price is found for; where the price is
            given, the most that an episode may spend.
        radius: half the edge of the box of `gain` and `regret`, in units of actions.
        ridge: weight of the regression's prior of `excess`, in observations.
        patience: decisions that a plan is followed at most, whatever the signal; 0: any number.
            Where the model is wrong, the rest of an old plan is worth less than the same model
            believes, so no signal that is imagined tells. Chance (`random`) knows no patience.
    """

    signal: Signal = "gain"
    price: float | None = None
    share: float = 0.25
    radius: float = 0.1
    ridge: float = 10.0
    patience: int = 0

    def __post_init__(self) -> None:
        if self.signal not in get_args(Signal):
            raise ValueError(
                f"thinking.signal is {self.signal!r}: choose one of {', '.join(get_args(Signal))}"
            )
        if self.price is not None and not -float("inf") < self.price < float("inf"):
            raise ValueError(f"thinking.price is {self.price}: choose a finite one, or none")
        if self.patience < 0:
            raise ValueError(f"thinking.patience is {self.patience}: choose 0 (none) or more")
        if not 0 <= self.share <= 1:
            raise ValueError(f"thinking.share is {self.share}: choose it in [0, 1]")
        for name in ("radius", "ridge"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(
                    f"thinking.{name} is {getattr(self, name)}: choose it above 0, finite"
                )


@dataclass(frozen=True, eq=False)
class Reached:
    """Energies that plans reached, as a linear function of the state they began in.

    Ridge regression, updated with every plan (Sherman-Morrison is not worth it at these sizes).
    Each of the B rows has its own, from the plans of its own episode: goals differ between rows,
    and what one does must not depend on who acts beside it.

    Args:
        gram: sum of f f^T over plans with features f = (s, 1), `(B, D+1, D+1)`.
        moment: sum of f E, `(B, D+1)`.
        count: number of plans, `(B,)` int64.
    """

    gram: Tensor
    moment: Tensor
    count: Tensor

    @staticmethod
    def nothing(state: Tensor) -> Reached:
        """No plan was made yet; for states like `state` `(B, D)`."""
        batch, size = len(state), state.shape[1] + 1
        gram, moment = state.new_zeros(batch, size, size), state.new_zeros(batch, size)
        return Reached(gram, moment, torch.zeros_like(gram[:, 0, 0], dtype=torch.int64))

    def add(self, state: Tensor, energy: Tensor, made: Tensor) -> Reached:
        """With plans from `state` `(B, D)` of `energy` `(B,)`, in the rows where one was `made`.

        What is not finite is left out.

        Args:
            state: where the plans began.
            energy: what they reached.
            made: `(B,)` bool.
        """
        counts = made & energy.isfinite() & state.isfinite().all(1)
        f = torch.where(counts.unsqueeze(1), _features(state), 0)
        reached = torch.where(counts, energy, 0).to(f)
        return Reached(
            self.gram + f.unsqueeze(2) * f.unsqueeze(1),
            self.moment + f * reached.unsqueeze(1),
            self.count + counts,
        )

    def expected(self, state: Tensor, ridge: float) -> Tensor:
        """Energy `(B,)` that a plan from `state` `(B, D)` would reach; -infinity before any plan.

        The prior is a constant, the mean of a row's plans, with the weight of `ridge` plans.
        """
        mean = self.moment[:, -1] / self.count.clamp_min(1)
        # The targets minus their mean, so that the ridge draws towards the mean and not to zero.
        moment = self.moment - mean.unsqueeze(1) * self.gram[:, :, -1]
        prior = ridge * torch.eye(moment.shape[1], dtype=moment.dtype, device=moment.device)
        slope = torch.linalg.solve(self.gram + prior, moment)
        expected = mean + (_features(state) * slope).sum(1)
        return torch.where(self.count > 0, expected, -torch.inf)

    def select(self, index: Tensor) -> Reached:
        """The rows `index`; the others are dropped."""
        return Reached(self.gram[index], self.moment[index], self.count[index])

    def forget(self, rows: Tensor) -> Reached:
        """Without the plans of the rows under the mask `rows` `(B,)`."""
        kept = ~rows
        return Reached(
            self.gram * kept[:, None, None], self.moment * kept[:, None], self.count * kept
        )


def _features(state: Tensor) -> Tensor:
    return torch.cat((state, state.new_ones(len(state), 1)), dim=1)


def cheapest(
    problem: Problem, candidates: Tensor, radius: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best of some cheap proposals, and what a gradient step could gain on it.

    Args:
        problem: B problems.
        candidates: `(B, S, H, A)`, or discrete `(B, S, H)`; ones whose energy is not finite lose.
        radius: half the edge of the box.

    Returns:
        Actions `(B, H, A)` or `(B, H)`, their energies `(B,)`, the first-order gain `(B,)`, and
        the predicted states `(B, H, D)`. With discrete actions the gain is the largest fall of
        the energy, to first order, from moving a probability of 2 `radius` at every step to
        another action. Where no candidate is finite: the safe actions, at infinite energy, and an
        infinite gain, for any plan is better.
    """
    leaf = candidates
    if problem.actions is not None:
        leaf = torch.nn.functional.one_hot(candidates, problem.actions).to(problem.float_dtype)
    with torch.enable_grad():
        leaf = leaf.detach().requires_grad_()
        energies, states = evaluate(problem, leaf)
        (slope,) = torch.autograd.grad(energies.sum(), leaf)
    energies = losing(energies, states)
    rows = torch.arange(len(energies), device=energies.device)
    best = energies.argmin(1)
    slope, chosen = slope[rows, best].nan_to_num(0.0, 0.0, 0.0), leaf.detach()[rows, best]
    if problem.actions is not None:
        falls = (slope * chosen).sum(-1) - slope.amin(-1)
        gain = 2 * radius * falls.sum(-1)
    else:
        low, high = problem.bounds
        moved = torch.clamp(chosen - radius * slope.sign(), low, high)
        gain = (slope * (chosen - moved)).sum((-1, -2))
    assert isinstance(states, Tensor)
    energy, finite = energies[rows, best], energies[rows, best].isfinite()
    wide = finite.reshape(-1, *[1] * (candidates.ndim - 2))
    actions = torch.where(wide, candidates[rows, best], safe_actions(problem).to(candidates))
    return actions, energy, torch.where(finite, gain, torch.inf), states.detach()[rows, best]
