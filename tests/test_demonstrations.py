"""A cost learned from demonstrations: what it tells apart, and where it leads.

Ring: six cells, seen as a one-hot state; action 0 steps back, 1 stays, 2 steps on.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from forethought.agent import Critic, CriticStage, IntrinsicTerm, train_critic
from forethought.agent.cost.demonstrations import DemonstrationStage, LearnedCost, learn_cost
from forethought.worldmodel import JEPA, Actions, LatentData, Perception, Predictor

CELLS, GAMMA = 6, 0.8
STAGE = DemonstrationStage(steps=200, batch=64, learning_rate=1e-2)
TINY = replace(STAGE, steps=5)


class Cell(Perception):
    """The state is the observation."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim = CELLS

    def forward(self, observation: Any) -> Tensor:
        return observation  # type: ignore[no-any-return]

    def standardise_by(self, statistics: Any) -> None:
        raise NotImplementedError


class Turning(Predictor):
    """One step round the ring, exact."""

    def __init__(self) -> None:
        super().__init__()
        self.action_dim = 3
        self.moves = torch.stack([torch.eye(CELLS).roll(by, 1) for by in (-1, 0, 1)])

    def forward(
        self, state: Tensor, action: Tensor, latent: Any = None, context: Any = None
    ) -> Tensor:
        return torch.einsum("na,nc,acd->nd", action, state, self.moves)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def cost_of(dim: int = 2, seed: int = 0) -> LearnedCost:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LearnedCost(dim, hidden=32)


def learned(shown: Tensor, own: Tensor, **options: Any) -> LearnedCost:
    stage = replace(STAGE, **options)
    cost = cost_of(shown.shape[1])
    learn_cost(cost, shown, own, stage, seeded())
    return cost


def weights(cost: LearnedCost) -> Tensor:
    return torch.cat([p.detach().flatten() for p in cost.parameters()])


# --- what it tells


def test_it_is_bounded_and_differentiable() -> None:
    cost = cost_of().double()
    state = normal(3, 4, 2).double().requires_grad_()
    assert cost(state).shape == (3, 4, 1)
    torch.testing.assert_close(cost(state), torch.sigmoid(cost.logit(state)))
    assert torch.autograd.gradcheck(cost, (state,))
    far = cost(1e6 * state)
    assert bool(((far >= 0) & (far <= 1)).all())
    assert not isinstance(cost, IntrinsicTerm)


def test_it_is_the_share_of_the_agents_own() -> None:
    """Known optimum: p_own / (p_own + p_demonstrated), here of three one-hot states."""
    shown = torch.eye(3).repeat_interleave(torch.tensor([30, 15, 5]), 0)
    own = torch.eye(3).repeat_interleave(torch.tensor([10, 15, 25]), 0)
    cost = learned(shown, own, penalty=0.0, batch=256)
    torch.testing.assert_close(
        cost(torch.eye(3))[:, 0].detach(), torch.tensor([0.25, 0.5, 5 / 6]), atol=0.05, rtol=0
    )


def test_who_does_as_was_shown_is_charged_a_half_everywhere() -> None:
    cost = learned(normal(400, 2), normal(400, 2, seed=1))
    charged = cost(normal(100, 2, seed=2)).detach()
    assert float((charged - 0.5).abs().max()) < 0.2


def test_the_penalty_makes_it_smooth() -> None:
    """Two sides that are told apart without error: without a penalty the logit grows on."""
    side = torch.tensor([2.0, 0.0])
    shown, own = normal(200, 2) / 4 + side, normal(200, 2, seed=1) / 4 - side
    steepness = []
    for penalty in (0.0, 1.0):
        between = (4 * torch.rand(200, 2, generator=seeded()) - 2).requires_grad_()
        cost = learned(shown, own, penalty=penalty)
        (slope,) = torch.autograd.grad(cost.logit(between).sum(), between)
        steepness.append(float(slope.norm(dim=-1).mean()))
        assert float(cost(shown).mean()) < 0.3
        assert float(cost(own).mean()) > 0.7
    assert steepness[1] < 0.5 * steepness[0]


# --- where it leads


def test_its_slope_leads_to_what_was_demonstrated() -> None:
    """A plan of one free step, taken against the gradient of D, comes nearer from all sides."""
    place = torch.tensor([1.5, 0.5])
    own = 2 * normal(400, 2)
    cost = learned(normal(200, 2, seed=1) / 5 + place, own)
    state = 2 * normal(200, 2, seed=2)
    state = state[(state - place).norm(dim=-1) > 1].requires_grad_()
    (slope,) = torch.autograd.grad(cost(state).sum(), state)
    cosine = torch.cosine_similarity(-slope, place - state, dim=-1)
    assert float(cosine.mean()) > 0.8
    assert float((cosine > 0).float().mean()) > 0.97
    walker = state.detach()
    for _ in range(40):
        walker = walker.requires_grad_()
        (slope,) = torch.autograd.grad(cost(walker).sum(), walker)
        walker = (walker - 0.2 * slope / slope.norm(dim=-1, keepdim=True).clamp_min(1e-9)).detach()
    assert float((walker - place).norm(dim=-1).median()) < 0.5


def walks(episodes: int = 30, length: int = 20) -> LatentData:
    """An agent that knows nothing yet: random walks round the ring."""
    actions = torch.randint(3, (episodes, length + 1), generator=seeded())
    steps = torch.cat((torch.arange(episodes)[:, None], actions[:, :-1] - 1), 1)
    left = torch.arange(length, -1, -1).repeat(episodes)
    states = torch.eye(CELLS)[(steps.cumsum(1) % CELLS).flatten()]
    return LatentData(states, actions.flatten(), left, torch.zeros(len(left), dtype=torch.bool))


def test_the_critic_over_it_improves_the_policy_towards_the_demonstrations() -> None:
    """Demonstrated: cell 2, and nothing else. The best action goes there by the shorter way.

    Also from cells where D alone tells no difference between the neighbours.
    """
    data = walks()
    cost = learned(torch.eye(CELLS)[[2] * 20], data.states, penalty=0.1)
    alone = cost(torch.eye(CELLS))[:, 0].detach()
    assert alone.argmin() == 2
    assert float(alone[2]) < float(alone[[0, 1, 3, 4, 5]].min()) - 0.2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        critic = Critic(CELLS, 1, GAMMA, hidden=32, layers=1)
    train_critic(
        critic,
        JEPA(Cell(), Turning(), Actions(3, discrete=True)),
        data,
        cost.costs(data),
        torch.ones(1),
        CriticStage(steps=300, batch=64, window=6, learning_rate=1e-2, target_rate=0.1),
        seeded(),
    )
    with torch.no_grad():
        energy = (cost(torch.eye(CELLS)) + GAMMA * critic(torch.eye(CELLS)))[:, 0]
    best = [energy[[(c - 1) % CELLS, c, (c + 1) % CELLS]].argmin().item() for c in range(CELLS)]
    assert best[:5] == [2, 2, 1, 0, 0]  # 0 -> 1 -> 2 <- 3 <- 4; from 5 both ways are as long
    assert best[5] != 1


def test_costs_are_of_the_state_after_each_action() -> None:
    data, cost = walks(3, 4), cost_of(CELLS)
    found = cost.costs(data)
    assert not found.requires_grad
    assert found.shape == (15, 1)
    for row in range(15):
        wanted = 0.0 if row % 5 == 4 else float(cost(data.states[row + 1]).detach())
        assert float(found[row]) == pytest.approx(wanted)


# --- how it learns


def test_only_the_cost_learns() -> None:
    shown = normal(20, 2).requires_grad_()
    own = normal(20, 2, seed=1).requires_grad_()
    cost = cost_of()
    before = weights(cost)
    learn_cost(cost, shown, own, TINY, seeded())
    assert not torch.equal(weights(cost), before)
    assert shown.grad is own.grad is None


def test_twins() -> None:
    found = []
    for seed in (0, 0, 1):
        cost = cost_of()
        learn_cost(cost, normal(20, 2), normal(20, 2, seed=1), TINY, seeded(seed))
        found.append(weights(cost))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


OTHER: dict[str, Any] = {"steps": 6, "batch": 63, "penalty": 0.5, "learning_rate": 2e-2}


def test_every_option_is_tried_below() -> None:
    assert set(OTHER) == {field.name for field in fields(DemonstrationStage)}


@pytest.mark.parametrize("name", OTHER)
def test_every_option_changes_behaviour(name: str) -> None:
    sides = (normal(20, 2), normal(20, 2, seed=1))
    one, other = (
        weights(learned(*sides, **{"steps": 5} | changed)) for changed in ({}, {name: OTHER[name]})
    )
    assert not torch.equal(one, other)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_its_terms_are_logged(penalty: float) -> None:
    seen: list[dict[str, float]] = []
    stage = replace(TINY, penalty=penalty)
    sides = (normal(20, 2), normal(20, 2, seed=1))
    learn_cost(cost_of(), *sides, stage, seeded(), lambda _, values: seen.append(values))
    assert ("steepness" in seen[-1]) == bool(penalty)
    parts = seen[-1]["error"] + penalty * seen[-1].get("steepness", 0.0)
    assert seen[-1]["loss"] == pytest.approx(parts)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": -1}, "stages.demonstrations.steps is -1: choose 0 or more"),
        ({"batch": 0}, "stages.demonstrations.batch is 0: choose 1 or more"),
        ({"penalty": -1.0}, "stages.demonstrations.penalty is -1.0: choose 0 or more, finite"),
        ({"penalty": math.nan}, "stages.demonstrations.penalty is nan"),
        ({"learning_rate": 0.0}, "stages.demonstrations.learning_rate is 0.0: choose it above 0"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DemonstrationStage(**wrong)


@pytest.mark.parametrize("side", ["demonstrated", "own"])
def test_both_sides_need_states(side: str) -> None:
    sides = {"demonstrated": normal(3, 2), "own": normal(3, 2), side: normal(0, 2)}
    with pytest.raises(ValueError, match=rf"{side} is \(0, 2\): give states \(N, D\), at least"):
        learn_cost(cost_of(), stage=TINY, generator=seeded(), **sides)
