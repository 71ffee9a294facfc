"""The intrinsic cost: one immutable bank of hard-wired, bounded terms (LeCun 2022, eqs 1 and 2).

IC(s, a) = sum_i u_i IC_i(s, a). A task may only choose the weights u, and those only between a
floor and a ceiling that belong to the bank. The bank holds no parameter and refuses assignment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from forethought.agent.cost.terms import Context, CostTerm, Effort


@dataclass(frozen=True)
class Weighted:
    """A term of the bank with the interval its weight may be chosen from.

    Args:
        term: the hard-wired term.
        floor: smallest weight; above zero for a safety term.
        ceiling: largest weight.
    """

    term: CostTerm
    floor: float = 0.0
    ceiling: float = 10.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.floor <= self.ceiling < float("inf"):
            raise ValueError(
                f"term {self.term.name!r} has floor {self.floor} and ceiling {self.ceiling}: "
                "choose 0 <= floor <= ceiling, both finite"
            )


@dataclass(frozen=True)
class IntrinsicCost:
    """The bank. `context["u"]` carries the weights u, last axis in the order of `terms`.

    Args:
        terms: the weighted terms, fixed for the life of the agent.
    """

    terms: tuple[Weighted, ...] = (Weighted(Effort()),)

    def __post_init__(self) -> None:
        if not isinstance(self.terms, tuple):
            raise TypeError("terms must be a tuple: a list could be changed behind the bank's back")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the terms, in the order of the weights u."""
        return tuple(weighted.term.name for weighted in self.terms)

    def weights(self, chosen: Mapping[str, float]) -> Tensor:
        """Weights u `(n,)` from a task's choice by name; a term not named gets its floor.

        Raises:
            ValueError: an unknown term, or a weight outside of its interval.
        """
        unknown = set(chosen) - set(self.names)
        if unknown:
            raise ValueError(
                f"cost weights name {sorted(unknown)}, but the bank has {list(self.names)}"
            )
        u = []
        for weighted in self.terms:
            name = weighted.term.name
            value = chosen.get(name, weighted.floor)
            if not weighted.floor <= value <= weighted.ceiling:
                raise ValueError(
                    f"the weight of cost term {name!r} is {value}: choose it in "
                    f"[{weighted.floor}, {weighted.ceiling}]"
                )
            u.append(value)
        return torch.tensor(u)

    def __call__(
        self, state: Tensor, action: Tensor, next_state: Tensor, context: Context, t: Tensor
    ) -> Tensor:
        """Weighted sum of the terms for one step, `(...)`; see `CostTerm`."""
        u = context["u"]
        cost = torch.zeros(action.shape[:-1], dtype=action.dtype, device=action.device)
        for index, weighted in enumerate(self.terms):
            cost = cost + u[..., index] * weighted.term(state, action, next_state, context, t)
        return cost

    def fingerprint(self) -> str:
        """SHA-256 over terms, their classes, hyperparameters and bounds; kept with a checkpoint."""
        classes = [f"{type(w.term).__module__}.{w.term.name}" for w in self.terms]
        return hashlib.sha256(repr((self, classes)).encode()).hexdigest()
