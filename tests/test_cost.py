"""The intrinsic cost: numbers by hand, derivatives, and a bank that nobody can change."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from forethought.agent import CostTerm, Effort, GoalDistance, IntrinsicCost, Weighted

T0 = torch.arange(1)


@dataclass(frozen=True)
class Danger(CostTerm):
    """A safety term: how far the state is beyond a limit."""

    limit: float = 1.0
    name = "danger"

    def __call__(
        self, state: Tensor, action: Tensor, next_state: Tensor, context: Any, t: Tensor
    ) -> Tensor:
        return (next_state.abs() - self.limit).clamp_min(0).sum(-1)


SAFE = IntrinsicCost((Weighted(Effort()), Weighted(Danger(), floor=0.5, ceiling=2.0)))


def test_effort_by_hand() -> None:
    actions = torch.tensor([[0.5, -1.0], [0.0, 0.0], [1.0, 1.0]])
    state = torch.zeros(3, 4)
    assert Effort()(state, actions, state, {}, T0).tolist() == [0.625, 0.0, 1.0]


def test_goal_distance_by_hand() -> None:
    after = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    goal = {"goal": torch.tensor([[1.0, 4.0], [3.0, 4.0]])}
    elsewhere = torch.full((2, 2), 9.0)
    assert GoalDistance()(elsewhere, torch.ones(2, 1), after, goal, T0).tolist() == [2.0, 12.5]


@pytest.mark.parametrize("term", [Effort(), GoalDistance(), SAFE])
def test_derivatives(term: Any, generator: torch.Generator) -> None:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    context = {"goal": draw(2, 1, 1, 4), "u": torch.tensor([0.7, 1.3]).double().view(1, 1, 1, 2)}
    state, actions, after = draw(2, 3, 5, 4), draw(2, 3, 5, 2), draw(2, 3, 5, 4)

    def cost(a: Tensor, s: Tensor) -> Tensor:
        value = term(state, a, s, context, torch.arange(5))
        assert value.shape == (2, 3, 5)
        return value

    assert torch.autograd.gradcheck(cost, (actions.requires_grad_(), after.requires_grad_()))


def test_the_bank_weighs_its_terms_and_a_new_u_weighs_them_anew() -> None:
    state = torch.tensor([[0.0, 0.0]])
    action, after = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, -2.0]])
    for u, cost in (((1.0, 1.0), 3.5), ((4.0, 0.5), 3.5), ((0.0, 2.0), 6.0), ((2.0, 0.0), 1.0)):
        weights = {"u": torch.tensor([u])}
        assert SAFE(state, action, after, weights, T0).tolist() == [cost]


def test_each_problem_has_its_own_weights() -> None:
    u = torch.tensor([[1.0], [3.0]]).view(2, 1, 1, 1)
    actions = torch.ones(2, 4, 5, 2)
    costs = IntrinsicCost()(actions, actions, actions, {"u": u}, torch.arange(5))
    assert costs.shape == (2, 4, 5)
    assert costs[0].unique().tolist() == [1.0]
    assert costs[1].unique().tolist() == [3.0]


def test_the_bank_cannot_be_changed() -> None:
    bank = IntrinsicCost()
    with pytest.raises(FrozenInstanceError):
        bank.terms = ()  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        bank.terms[0].floor = 3.0  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        bank.terms[0].term.name = "ease"  # type: ignore[misc]
    with pytest.raises(TypeError, match="tuple"):
        IntrinsicCost([Weighted(Effort())])  # type: ignore[arg-type]
    with pytest.raises(FrozenInstanceError):
        SAFE.terms[1].term.limit = 100.0  # type: ignore[attr-defined]


def test_the_bank_holds_no_parameter() -> None:
    assert not isinstance(SAFE, torch.nn.Module)
    held = [SAFE, *SAFE.terms, *(weighted.term for weighted in SAFE.terms)]
    values = [value for item in held for value in vars(item).values()]
    assert not any(isinstance(value, torch.Tensor | torch.nn.Module) for value in values)


def test_weights_by_name_and_floors_where_none_is_named() -> None:
    assert SAFE.names == ("effort", "danger")
    assert SAFE.weights({"danger": 1.5, "effort": 0.25}).tolist() == [0.25, 1.5]
    assert SAFE.weights({"effort": 3.0}).tolist() == [3.0, 0.5]
    assert SAFE.weights({}).tolist() == [0.0, 0.5]
    assert SAFE.weights({"effort": 10.0, "danger": 2.0}).tolist() == [10.0, 2.0]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"danger": 0.0}, r"'danger' is 0.0: choose it in \[0.5, 2.0\]"),
        ({"danger": 2.1}, r"'danger' is 2.1: choose it in \[0.5, 2.0\]"),
        ({"effort": -0.1}, r"'effort' is -0.1: choose it in \[0.0, 10.0\]"),
        ({"effort": float("nan")}, r"'effort' is nan"),
        ({"comfort": 1.0}, r"\['comfort'\], but the bank has \['effort', 'danger'\]"),
    ],
)
def test_weights_outside_of_their_interval_are_refused(
    chosen: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SAFE.weights(chosen)


@pytest.mark.parametrize(
    "bounds", [(-1.0, 1.0), (2.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)]
)
def test_impossible_intervals_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="0 <= floor <= ceiling"):
        Weighted(Effort(), *bounds)


def test_the_fingerprint_covers_terms_and_bounds() -> None:
    effort, danger = SAFE.terms
    banks = [
        SAFE,
        IntrinsicCost(),
        IntrinsicCost((danger, effort)),
        IntrinsicCost((effort, replace(danger, floor=0.4))),
        IntrinsicCost((effort, replace(danger, ceiling=3.0))),
        IntrinsicCost((effort, replace(danger, term=Danger(limit=2.0)))),
    ]
    assert len({bank.fingerprint() for bank in banks}) == len(banks)
    assert IntrinsicCost(SAFE.terms).fingerprint() == SAFE.fingerprint()


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    code = "from forethought.agent import IntrinsicCost; print(IntrinsicCost().fingerprint())"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert told.stdout.strip() == IntrinsicCost().fingerprint()
