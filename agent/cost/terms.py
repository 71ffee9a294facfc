"""Cost terms: frozen, named, differentiable functions; lower is better.

Two groups. Intrinsic terms read named quantities (what the readouts say of a state, or what the
environment itself says) and the action, so the same term measures an imagined and a real step.
Goal terms take an argument, the goal, and compare latent states.

All of them are called once per evaluation with all planning steps at once: leading axes `(...)`
are `(B, S, H)` in planning, and anything that broadcasts is as good.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Context = Mapping[str, Tensor]
Sigmoid = Literal["gaussian", "long_tail", "linear", "quadratic", "tanh_squared"]


def read(quantities: Mapping[str, Tensor], name: str) -> Tensor:
    """A quantity `(..., n)`, or one component of it, `(..., 1)`, where `name` is `position[1]`.

    Raises:
        ValueError: there is no such quantity or component.
    """
    base, index = parse_quantity(name)
    if base not in quantities:
        raise ValueError(f"quantity {base!r} is not there: use one of {', '.join(quantities)}")
    values = quantities[base]
    if index is None:
        return values
    if index >= values.shape[-1]:
        raise ValueError(
            f"quantity {name!r} is not there: {base!r} has {values.shape[-1]} components, from 0"
        )
    return values[..., index : index + 1]


def parse_quantity(name: str) -> tuple[str, int | None]:
    """Split `position[1]` into `position` and 1; the index is None where there is none.

    Raises:
        ValueError: the name is not of that form.
    """
    match = re.fullmatch(r"([^\[\]]+)(?:\[(\d+)\])?", name)
    if match is None:
        raise ValueError(f"quantity is {name!r}: write NAME or NAME[COMPONENT]")
    return match[1], None if match[2] is None else int(match[2])


class IntrinsicTerm(ABC):
    """One hard-wired term of the intrinsic cost, in [0, 1]. Implementations are frozen records."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Quantities that the term reads, such as `position[1]`."""
        named = getattr(self, "quantity", None)
        return () if named is None else (named,)

    @abstractmethod
    def __call__(self, quantities: Mapping[str, Tensor], action: Tensor) -> Tensor:
        """Cost `(...)` of quantities `(..., n)` after an action `(..., A)`."""


@dataclass(frozen=True)
class Effort(IntrinsicTerm):
    """Mean squared action, in [0, 1] for actions in [-1, 1]."""

    def __call__(self, quantities: Mapping[str, Tensor], action: Tensor) -> Tensor:
        """See `IntrinsicTerm`."""
        if not action.is_floating_point():
            raise ValueError("actions are discrete and have no effort: leave that term out")
        return action.square().mean(-1)


@dataclass(frozen=True)
class Tolerance(IntrinsicTerm):
    """How far a quantity is outside of an interval: 0 inside, towards 1 far away.

    One minus the `tolerance` of dm_control's reward functions (Tassa et al., 1801.00690), averaged
    over the components of the quantity.

    Args:
        quantity: what is read.
        low: lower end of the interval.
        high: upper end of the interval.
        margin: distance beyond the interval at which the cost is 1 - `value_at_margin`.
        value_at_margin: what is left of the tolerance at the margin, in (0, 1); `linear` and
            `quadratic` may have 0.
        sigmoid: shape of the fall; `long_tail` keeps a slope far away, `linear` and `quadratic`
            end in a plateau.
    """

    quantity: str
    low: float = 0.0
    high: float = 0.0
    margin: float = 1.0
    value_at_margin: float = 0.1
    sigmoid: Sigmoid = "gaussian"

    def __post_init__(self) -> None:
        parse_quantity(self.quantity)
        if not self.low <= self.high:
            raise ValueError(f"low is {self.low} and high {self.high}: choose low <= high")
        if not 0 < self.margin < math.inf:
            raise ValueError(f"margin is {self.margin}: choose it above 0, finite")
        if self.sigmoid not in get_args(Sigmoid):
            raise ValueError(f"sigmoid is {self.sigmoid!r}: use one of {get_args(Sigmoid)}")
        least = 0.0 if self.sigmoid in ("linear", "quadratic") else 1e-9
        if not least <= self.value_at_margin < 1:
            raise ValueError(
                f"value_at_margin is {self.value_at_margin}: choose it in (0, 1), or 0 for linear "
                "and quadratic"
            )

    def __call__(self, quantities: Mapping[str, Tensor], action: Tensor) -> Tensor:
        """See `IntrinsicTerm`."""
        x = read(quantities, self.quantity)
        beyond = ((self.low - x).clamp_min(0) + (x - self.high).clamp_min(0)) / self.margin
        return 1 - self._fall(beyond).mean(-1)

    def _fall(self, d: Tensor) -> Tensor:
        """Tolerance at `d` margins beyond the interval: 1 at 0, `value_at_margin` at 1."""
        v = self.value_at_margin
        if self.sigmoid == "gaussian":
            return torch.exp(math.log(v) * d.square())
        if self.sigmoid == "long_tail":
            return 1 / (1 + (1 / v - 1) * d.square())
        if self.sigmoid == "linear":
            return (1 - (1 - v) * d).clamp_min(0)
        if self.sigmoid == "quadratic":
            return (1 - (1 - v) * d.square()).clamp_min(0)
        return 1 - torch.tanh(math.atanh(math.sqrt(1 - v)) * d).square()


@dataclass(frozen=True)
class Speed(IntrinsicTerm):
    """Squared speed against a typical one, saturating: mean of v^2 / (v^2 + typical^2).

    Args:
        quantity: a velocity.
        typical: speed at which the cost is a half, in the unit of the quantity.
    """

    quantity: str
    typical: float = 1.0

    def __post_init__(self) -> None:
        parse_quantity(self.quantity)
        if not 0 < self.typical < math.inf:
            raise ValueError(f"typical is {self.typical}: choose it above 0, finite")

    def __call__(self, quantities: Mapping[str, Tensor], action: Tensor) -> Tensor:
        """See `IntrinsicTerm`."""
        squared = read(quantities, self.quantity).square()
        return (squared / (squared + self.typical**2)).mean(-1)


@dataclass(frozen=True)
class Posture(IntrinsicTerm):
    """Distance from a posture, saturating: mean of d^2 / (d^2 + scale^2).

    Args:
        quantity: what is read.
        target: its value in the posture, one number for all components or one for each.
        scale: distance at which the cost is a half, in the unit of the quantity.
    """

    quantity: str
    target: tuple[float, ...] = (0.0,)
    scale: float = 1.0

    def __post_init__(self) -> None:
        parse_quantity(self.quantity)
        object.__setattr__(self, "target", tuple(self.target))
        if not self.target or not all(math.isfinite(x) for x in self.target):
            raise ValueError(f"target is {self.target}: give at least one finite number")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale is {self.scale}: choose it above 0, finite")

    def __call__(self, quantities: Mapping[str, Tensor], action: Tensor) -> Tensor:
        """See `IntrinsicTerm`."""
        x = read(quantities, self.quantity)
        if len(self.target) not in (1, x.shape[-1]):
            raise ValueError(
                f"target has {len(self.target)} numbers, but {self.quantity!r} has "
                f"{x.shape[-1]} components: give 1 or as many"
            )
        squared = (x - x.new_tensor(self.target)).square()
        return (squared / (squared + self.scale**2)).mean(-1)


@dataclass(frozen=True)
class KeepOut(IntrinsicTerm):
    """A ball that is not to be entered: 1/2 on its surface, towards 1 inside, towards 0 outside.

    Args:
        quantity: a position.
        centre: centre of the ball, one number for each component.
        radius: radius of the ball, in the unit of the quantity.
        softness: width of the transition, in the same unit.
    """

    quantity: str
    centre: tuple[float, ...] = (0.0,)
    radius: float = 1.0
    softness: float = 0.1

    def __post_init__(self) -> None:
        parse_quantity(self.quantity)
        object.__setattr__(self, "centre", tuple(self.centre))
        if not self.centre or not all(math.isfinite(x) for x in self.centre):
            raise ValueError(f"centre is {self.centre}: give at least one finite number")
        for name in ("radius", "softness"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: choose it above 0, finite")

    def __call__(self, quantities: Mapping[str, Tensor], action: Tensor) -> Tensor:
        """See `IntrinsicTerm`."""
        x = read(quantities, self.quantity)
        if len(self.centre) != x.shape[-1]:
            raise ValueError(
                f"centre has {len(self.centre)} numbers, but {self.quantity!r} has "
                f"{x.shape[-1]} components: give as many"
            )
        # The small constant keeps the derivative at the centre finite.
        distance = ((x - x.new_tensor(self.centre)).square().sum(-1) + 1e-12).sqrt()
        return torch.sigmoid((self.radius - distance) / self.softness)


@dataclass(frozen=True)
class Shortfall(IntrinsicTerm):
    """How far a quantity, such as the reward, stays below the best value it can have.

    Linear between `worst` and `best`; beyond them a slope of a hundredth remains, so that a
    gradient finds its way back.

    Args:
        quantity: what is read.
        worst: value at which the cost is 0.99; it may lie below or above `best`.
        best: value at which the cost is 0.01.
    """

    quantity: str = "reward"
    worst: float = 0.0
    best: float = 1.0

    def __post_init__(self) -> None:
        parse_quantity(self.quantity)
        ends = (self.worst, self.best)
        if not all(math.isfinite(end) for end in ends) or self.worst == self.best:
            raise ValueError(
                f"worst is {self.worst} and best {self.best}: choose two that differ, both finite"
            )

    def __call__(self, quantities: Mapping[str, Tensor], action: Tensor) -> Tensor:
        """See `IntrinsicTerm`."""
        x = read(quantities, self.quantity).mean(-1)
        cost = (self.best - x) / (self.best - self.worst)
        inside = cost.clamp(0, 1)
        return 0.01 + 0.98 * inside + 0.01 * torch.tanh(cost - inside)


@dataclass(frozen=True)
class Jointly(IntrinsicTerm):
    """Several terms that all have to be low at once: 1 - product over i of (1 - share_i cost_i).

    The reward functions of dm_control's suite have this form. A sum would ask a hanging pendulum
    to be calm, and so never to swing up; jointly, calm counts where the pendulum is upright.

    Args:
        terms: the terms.
        shares: how much of each term counts, in [0, 1], one for each.
    """

    terms: tuple[IntrinsicTerm, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("terms", "shares"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.terms or len(self.shares) != len(self.terms):
            raise ValueError(
                f"{len(self.shares)} shares are given for {len(self.terms)} terms: give one for "
                "each, and at least one"
            )
        if not all(0 <= share <= 1 for share in self.shares):
            raise ValueError(f"shares are {self.shares}: choose them in [0, 1]")

    @property
    def reads(self) -> tuple[str, ...]:
        """See `IntrinsicTerm`."""
        return tuple(name for term in self.terms for name in term.reads)

    def __call__(self, quantities: Mapping[str, Tensor], action: Tensor) -> Tensor:
        """See `IntrinsicTerm`."""
        costs = [term(quantities, action) for term in self.terms]
        left = torch.ones_like(costs[0])
        for share, cost in zip(self.shares, costs, strict=True):
            left = left * (1 - share * cost)
        return 1 - left


@dataclass(frozen=True)
class Aim:
    """A cost that takes an argument: how far a quantity is from where it shall be.

    Mean of d^2 / (d^2 + scale^2), in [0, 1). Where it shall be is no part of the intrinsic cost,
    and no network is trained for it: a setting passes it (LeCun 2022, section 3.1 and fig. 16).

    Args:
        quantity: what is read.
        scale: distance at which the cost is a half, in the unit of the quantity.
        at: where the quantity shall be if the setting does not say, one number for all components
            or one for each.
        weight: how much it counts if the setting does not say; 0 or more.
    """

    quantity: str
    scale: float = 1.0
    at: tuple[float, ...] = (0.0,)
    weight: float = 0.0

    def __post_init__(self) -> None:
        parse_quantity(self.quantity)
        object.__setattr__(self, "at", tuple(self.at))
        if not self.at or not all(math.isfinite(x) for x in self.at):
            raise ValueError(f"at is {self.at}: give at least one finite number")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale is {self.scale}: choose it above 0, finite")
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight is {self.weight}: choose 0 or more, finite")

    def __call__(self, quantities: Mapping[str, Tensor], at: Tensor) -> Tensor:
        """Cost `(...)` of quantities `(..., n)` that shall be `at` `(..., n)` or `(..., 1)`."""
        x = read(quantities, self.quantity)
        if at.shape[-1] not in (1, x.shape[-1]):
            raise ValueError(
                f"the aim at {self.quantity!r} is given {at.shape[-1]} numbers, but the quantity "
                f"has {x.shape[-1]}: give 1 or as many"
            )
        squared = (x - at).square()
        return (squared / (squared + self.scale**2)).mean(-1)


class GoalTerm(ABC):
    """A cost that takes an argument, `context["goal"]` (LeCun 2022, fig. 16).

    Its place in time (sum, softmin or last) is the problem's `reduction`.
    """

    name: str

    @abstractmethod
    def __call__(
        self, state: Tensor, action: Tensor, next_state: Tensor, context: Context, t: Tensor
    ) -> Tensor:
        """Cost of one step, `(...)`, for states `(..., D)` and actions `(..., A)`."""


@dataclass(frozen=True)
class GoalDistance(GoalTerm):
    """Mean squared distance of the next state to `context["goal"]`, in latent space."""

    name = "goal_distance"

    def __call__(
        self, state: Tensor, action: Tensor, next_state: Tensor, context: Context, t: Tensor
    ) -> Tensor:
        """Cost of one step; see `GoalTerm`."""
        goal = context["goal"].expand_as(next_state)
        return F.mse_loss(next_state, goal, reduction="none").mean(-1)  # one pass less each way
