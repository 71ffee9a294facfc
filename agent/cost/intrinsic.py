"""The intrinsic cost: one immutable bank of hard-wired, bounded terms (LeCun 2022, eqs 1 and 2).

IC = sum_i u_i IC_i. A task may only choose the weights u, and those only between a floor and a
ceiling that belong to the bank. The bank holds no parameter and refuses assignment, and so must
every term: whatever could be trained or changed in place is refused when the bank is made.

Python cannot forbid everything (`object.__setattr__`, a term that reads a global). What goes past
the refusals shows in the fingerprint, which also covers the weights of the readouts and of the
encoder through which the terms see: a cost that reads them is only as immutable as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forethought.agent.cost.terms import IntrinsicTerm, parse_quantity
from forethought.worldmodel.checkpoint import digest
from forethought.worldmodel.readouts import Readouts

# What a clamp may move without a word: the rounding of float32 in a sum of bounded parts.
ROUNDING = 1e-5

# Modules whose classes hold nothing that could be changed.
_KNOWN = (IntrinsicTerm.__module__, "abc", "builtins")


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
        if not isinstance(self.term, IntrinsicTerm):
            raise TypeError(
                f"term {self.name!r} is {self.term!r}: choose an instance of a subclass of "
                "IntrinsicTerm"
            )
        _refuse_mutable(self.term, f"term {self.name!r}")


@dataclass(frozen=True)
class IntrinsicCost:
    """The bank.

    Every value is clamped to [0, 1], because the critic's bounds and the ends of episodes count on
    it, and a term from outside of this package only promises it. A probe when the bank is made
    could not replace that: the sizes of the quantities are not known there, and no sample of inputs
    proves a bound. A clamp of a term that strays is a plateau, though, on which a planner has no
    slope; `check` therefore holds the terms against recorded data, before work starts.

    Args:
        terms: the weighted terms, fixed for the life of the agent.

    Raises:
        TypeError: `terms` is no tuple of `Weighted`.
        ValueError: two terms share a name. (`Weighted` refuses terms that could be changed.)
    """

    terms: tuple[Weighted, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.terms, tuple):
            raise TypeError("terms must be a tuple: a list could be changed behind the bank's back")
        strange = [item for item in self.terms if not isinstance(item, Weighted)]
        if strange:
            raise TypeError(f"terms hold {strange[0]!r}: choose Weighted(name, term) for each")
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
        """Every term, unweighted, `(..., n)`, of quantities `(..., m)` after actions `(..., A)`.

        All lie in [0, 1]; not-a-number stays what it is, so that a broken roll-out loses.
        """
        values = [weighted.term(quantities, action) for weighted in self.terms]
        return torch.stack(values, dim=-1).clamp(0, 1)

    @torch.no_grad()
    def check(self, quantities: Mapping[str, Tensor], action: Tensor) -> None:
        """Hold every term, unclamped, against real quantities `(..., m)` and actions `(..., A)`.

        Rows in which something that a term reads is not finite are unknown and count nowhere.

        Raises:
            ValueError: a term leaves [0, 1], or is not finite where all that it reads is.
        """
        for weighted in self.terms:
            value = weighted.term(quantities, action)
            known = torch.ones_like(value, dtype=torch.bool)
            for name in weighted.term.reads:
                known &= quantities[parse_quantity(name)[0]].isfinite().all(-1)
            if not bool(known.any()):
                continue
            low, high = (float(end) for end in value[known].aminmax())
            if not (low >= -ROUNDING and high <= 1 + ROUNDING):
                raise ValueError(
                    f"cost term {weighted.name!r} lies in [{low:.4g}, {high:.4g}] on real data: "
                    "scale it into [0, 1], where every intrinsic term has to lie"
                )

    def fingerprint(
        self, *, readouts: Readouts | None = None, perception: nn.Module | None = None
    ) -> str:
        """SHA-256 over what the cost is: 64 hexadecimal digits, kept with a checkpoint.

        Without arguments it covers terms, their classes, hyperparameters and bounds. With networks
        it also covers the weights of those that the bank reads through, and only those: a bank that
        reads the action alone has the same fingerprint with and without them, one that reads the
        latent `state` depends on the encoder, one that reads quantities on readouts and encoder.

        Args:
            readouts: heads that tell the quantities.
            perception: the encoder whose states they read.

        Raises:
            ValueError: networks are given, but not all that the bank reads through.
        """
        classes = [_class(weighted.term) for weighted in self.terms]
        content: tuple[object, ...] = (self, classes)
        # Of this package's own terms the representation says all, and checkpoints hold its hash.
        if any(
            module != IntrinsicTerm.__module__ for w in self.terms for module in _modules(w.term)
        ):
            content = (*content, [_description(weighted.term) for weighted in self.terms])
        bank = hashlib.sha256(repr(content).encode()).hexdigest()
        if not self.reads or (readouts is None and perception is None):
            return bank
        named = [name for name in self.reads if name != "state"]
        lacking = [] if perception is not None else ["perception"]
        if named and readouts is None:
            lacking.append("readouts")
        if lacking:
            raise ValueError(
                f"{' and '.join(lacking)} is None, but the cost reads {', '.join(self.reads)}: "
                "choose the networks that it reads through, or none at all"
            )
        assert perception is not None
        seen: list[object] = [bank, digest(perception)]
        if named and readouts is not None:
            missing = [name for name in named if name not in readouts.sizes]
            if missing:
                raise ValueError(
                    f"the cost reads {', '.join(missing)}, but the readouts tell "
                    f"{', '.join(readouts.sizes) or 'nothing'}: choose the readouts of this task"
                )
            # The same weights under other names would be another cost.
            seen += [digest(readouts), list(readouts.sizes.items())]
        return hashlib.sha256(repr(seen).encode()).hexdigest()

    @contextmanager
    def unchanged(
        self, verb: str, *, readouts: Readouts | None = None, perception: nn.Module | None = None
    ) -> Iterator[None]:
        """Hold the cost fixed while something else is trained: `with bank.unchanged("distill"):`.

        Args:
            verb: what is done inside, for the message.
            readouts: see `fingerprint`.
            perception: see `fingerprint`.

        Raises:
            RuntimeError: the fingerprint is another one at the end.
        """
        before = self.fingerprint(readouts=readouts, perception=perception)
        yield
        after = self.fingerprint(readouts=readouts, perception=perception)
        if after != before:
            raise RuntimeError(
                f"{verb} changed the intrinsic cost, which is immutable (fingerprint "
                f"{before[:12]} before, {after[:12]} after): keep perception and readouts out of "
                "its optimiser, and the terms as they are"
            )


def _class(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _attributes(record: object) -> dict[str, Any]:
    """Fields of a record and whatever else was put into it, by name."""
    names = [field.name for field in fields(record)]  # type: ignore[arg-type]
    held = getattr(record, "__dict__", ())  # a record with slots has none
    return {name: getattr(record, name) for name in dict.fromkeys((*names, *held))}


def _modules(value: object) -> Iterator[str]:
    """Modules of the classes of a record and of the records inside of it."""
    if isinstance(value, tuple):
        for part in value:
            yield from _modules(part)
    elif is_dataclass(value):
        yield type(value).__module__
        for part in _attributes(value).values():
            yield from _modules(part)


def _description(value: object) -> object:
    """A record with its classes' full names and all that it holds, as nested tuples of text."""
    if isinstance(value, tuple):
        return tuple(_description(part) for part in value)
    if is_dataclass(value):
        held = _attributes(value).items()
        return (_class(value), tuple((name, _description(part)) for name, part in held))
    return f"{_class(value)} {value!r}"


def _refuse_mutable(value: object, where: str) -> None:
    """Refuse what could be trained or changed in place, however deep it lies in a term.

    Raises:
        ValueError: says where it lies and what to choose instead.
    """
    if value is None or isinstance(value, bool | int | float | str | Enum):
        return
    if isinstance(value, tuple):
        for index, part in enumerate(value):
            _refuse_mutable(part, f"{where}[{index}]")
        return
    _refuse_learned(value, where)
    # A class that only inherits from a frozen one takes new attributes.
    settings = vars(type(value)).get("__dataclass_params__")
    if settings is None:
        raise ValueError(
            f"{where} is {_kind(value)}, which could be changed behind the bank's back: choose "
            "numbers, strings, or tuples and frozen dataclasses of them"
        )
    if not settings.frozen:
        raise ValueError(
            f"{where} is of the class {type(value).__name__}, which is not frozen: choose "
            "@dataclass(frozen=True) for it"
        )
    for name, part in _attributes(value).items():
        _refuse_mutable(part, f"{where}.{name}")
    # This package's own classes hold none, and a bank is made for every decision.
    strange = (k for k in type(value).__mro__ if k.__module__ not in _KNOWN)
    for kind in strange:
        for name, part in vars(kind).items():
            if not name.startswith("__") and isinstance(
                part, nn.Module | Tensor | np.ndarray | list | dict | set
            ):
                _refuse_mutable(part, f"{where}.{name}")


def _refuse_learned(value: object, where: str) -> None:
    if isinstance(value, nn.Module):
        raise ValueError(
            f"{where} is the module {type(value).__name__}: the intrinsic cost is hard-wired and "
            "learns nothing; choose a term that reads a quantity of `Readouts`, or a critic"
        )
    if isinstance(value, Tensor) and value.requires_grad:
        raise ValueError(
            f"{where} is a tensor that requires grad: the intrinsic cost is hard-wired and learns "
            "nothing; choose a tuple of numbers"
        )


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"a{'n' if name[0] in 'aeiouAEIOU' else ''} {name}"
