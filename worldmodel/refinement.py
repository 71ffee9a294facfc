"""How an energy-based predictor descends on its energy, and the record of one descent.

Axes: `N` rows, `D` state, `K` steps of the descent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

Start = Literal["previous", "noise", "proposal"]


@dataclass(frozen=True)
class Refinement:
    """How a prediction is found by descent on the energy.

    Args:
        start: where it begins: at the `previous` state, at Gaussian `noise`, or at a `proposal`,
            what a residual MLP of its own says. In evaluation the noise is the same for all rows,
            drawn when the predictor was made.
        steps: steps in training.
        fewest: in training each row makes a random number of steps from here to `steps`; None
            makes all of them.
        most: largest number of steps in evaluation, refused ones among them.
        tolerance: in evaluation a row stops when a step lowers its energy by no more than this.
            With a rate near 1, where training leaves it, that is about the squared length of the
            step.
        halvings: how often a row's step size is halved before it stops: so many refused steps,
            and one more.
        rate: step size at first; it is learned and stays positive.
        rate_spread: in training the step size of each row is multiplied by a number between
            1 / spread and spread, uniform in its logarithm; 1 leaves it as it is.
        langevin: standard deviation of noise added before each step in training.
        unrolled: in training the gradient goes through all steps; else through the last alone,
            and passes the steps before as if they were constants.
    """

    start: Start = "previous"
    steps: int = 3
    fewest: int | None = None
    most: int = 16
    tolerance: float = 1e-3
    halvings: int = 4
    rate: float = 1.0
    rate_spread: float = 1.0
    langevin: float = 0.0
    unrolled: bool = True

    def __post_init__(self) -> None:
        if self.start not in get_args(Start):
            raise ValueError(
                f"refinement.start is {self.start!r}: choose one of {', '.join(get_args(Start))}"
            )
        for name in ("steps", "most"):
            if getattr(self, name) < 1:
                raise ValueError(f"refinement.{name} is {getattr(self, name)}: choose 1 or more")
        if self.fewest is not None and not 0 <= self.fewest <= self.steps:
            raise ValueError(
                f"refinement.fewest is {self.fewest}: choose 0 to {self.steps}, the steps, or none"
            )
        if self.halvings < 0:
            raise ValueError(f"refinement.halvings is {self.halvings}: choose 0 or more")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"refinement.rate is {self.rate}: choose it above 0, finite")
        if not 1 <= self.rate_spread < math.inf:
            raise ValueError(
                f"refinement.rate_spread is {self.rate_spread}: choose 1 (none) or more, finite"
            )
        for name in ("tolerance", "langevin"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"refinement.{name} is {getattr(self, name)}: choose 0 or more, finite"
                )

    @property
    def random(self) -> bool:
        """Whether training draws random numbers."""
        return self.start == "noise" or self.langevin > 0 or self.rate_spread > 1 or self.varied

    @property
    def varied(self) -> bool:
        """Whether rows make different numbers of steps in training."""
        return self.fewest is not None and self.fewest < self.steps


@dataclass(frozen=True, eq=False)
class Thought:
    """One prediction and how it was come by.

    Args:
        prediction: the next state, `(N, D)`.
        energy: E of it, `(N,)`.
        steps: gradient steps that were taken, refused ones left out, `(N,)` int64.
        refused: steps that would have raised the energy, `(N,)` int64.
        trace: energy at the start and after every step, `(K+1, N)`; a row that has stopped keeps
            its energy.
        path: predictions at the same moments, `(K+1, N, D)`.
    """

    prediction: Tensor
    energy: Tensor
    steps: Tensor
    refused: Tensor
    trace: Tensor
    path: Tensor
