"""The intrinsic cost: one immutable bank of hard-wired, bounded terms (LeCun 2022, eqs 1 and 2).

IC = sum_i u_i IC_i. A task may only choose the weights u, and those only between a floor and a
ceiling that belong to the bank. The bank holds no parameter and refuses assignment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from forethought.agent.cost.terms import IntrinsicTerm, parse_quantity


@dataclass(frozen=True)
class Weighted:
    """A term of the bank with the interval its weight may be chosen from.

    Args:
        name: name of the term in the bank.
        term: the hard-wired term.
        floor: smallest weight; above zero for a safety term.
        ceiling: largest weight.
    """

    name: str
    term: IntrinsicTerm
    floor: float = 0.0
    ceiling: float = 10.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.floor <= self.ceiling < float("inf"):
            raise ValueError(
                f"term {self.name!r} has floor {self.floor} and ceiling {self.ceiling}: "
                "choose 0 <= floor <= ceiling, both finite"
            )


@dataclass(frozen=True)
class IntrinsicCost:
    """The bank.

    Args:
        terms: the weighted terms, fixed for the life of the agent.
    """

    terms: tuple[Weighted, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.terms, tuple):
            raise TypeError("terms must be a tuple: a list could be changed behind the bank's back")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"terms are called {list(self.names)}: give each its own name")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the terms, in the order of the weights u."""
        return tuple(weighted.name for weighted in self.terms)

    @property
    def reads(self) -> tuple[str, ...]:
        """Quantities that the terms read, without components, each once."""
        named = [parse_quantity(name)[0] for w in self.terms for name in w.term.reads]
        return tuple(dict.fromkeys(named))

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
            value = chosen.get(weighted.name, weighted.floor)
            if not weighted.floor <= value <= weighted.ceiling:
                raise ValueError(
                    f"the weight of cost term {weighted.name!r} is {value}: choose it in "
                    f"[{weighted.floor}, {weighted.ceiling}]"
                )
            u.append(value)
        return torch.tensor(u)

    def values(self, quantities: Mapping[str, Tensor], action: Tensor) -> Tensor:
        """Every term, unweighted, `(..., n)`, of quantities `(..., m)` after actions `(..., A)`."""
        return torch.stack([weighted.term(quantities, action) for weighted in self.terms], dim=-1)

    def fingerprint(self) -> str:
        """SHA-256 over terms, their classes, hyperparameters and bounds; kept with a checkpoint."""
        classes = [f"{type(w.term).__module__}.{type(w.term).__qualname__}" for w in self.terms]
        return hashlib.sha256(repr((self, classes)).encode()).hexdigest()
