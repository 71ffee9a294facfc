"""Cost terms: frozen, named, differentiable functions of states and actions.

A term is called once per evaluation with all planning steps at once: `state`, `action` and
`next_state` have axes `(B, S, H, ...)`, tensors of `context` `(B, 1, 1, ...)`, `t` is `(H,)`; any
other leading axes that broadcast are as good. It returns one value per leading index.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

Context = Mapping[str, Tensor]


class CostTerm(ABC):
    """One term of an energy; lower is better. Implementations are frozen dataclasses."""

    name: str

    @abstractmethod
    def __call__(
        self, state: Tensor, action: Tensor, next_state: Tensor, context: Context, t: Tensor
    ) -> Tensor:
        """Cost of one step, `(...)`, for states `(..., D)` and actions `(..., A)`."""


@dataclass(frozen=True)
class Effort(CostTerm):
    """Mean squared action, in [0, 1] for actions in [-1, 1]; an intrinsic term."""

    name = "effort"

    def __call__(
        self, state: Tensor, action: Tensor, next_state: Tensor, context: Context, t: Tensor
    ) -> Tensor:
        """Cost of one step; see `CostTerm`."""
        return action.square().mean(-1)


@dataclass(frozen=True)
class GoalDistance(CostTerm):
    """Mean squared distance of the next state to `context["goal"]`, in latent space.

    A goal term: the third, argument-taking group of costs (LeCun 2022, fig. 16). Its place in time
    (sum, softmin or last) is the problem's `reduction`.
    """

    name = "goal_distance"

    def __call__(
        self, state: Tensor, action: Tensor, next_state: Tensor, context: Context, t: Tensor
    ) -> Tensor:
        """Cost of one step; see `CostTerm`."""
        return (next_state - context["goal"]).square().mean(-1)
