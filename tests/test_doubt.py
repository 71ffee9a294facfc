"""Doubt: what a predictor says of its own predictions, in plans and in when to think."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from predictor_contract import A, D, N, PredictorContract
from test_agent import (
    Pushing,
    Seeing,
    agent_of,
    begin,
    points,
    policy_of,
    seeded,
    setting_of,
)
from torch import Tensor

from forethought.agent import REACH, Agent, Cost, Thinking, problem_of
from forethought.planners import Gradient, evaluate
from forethought.worldmodel import (
    JEPA,
    Actions,
    EnergyMLP,
    Ensemble,
    Predictor,
    ResidualMLP,
)
from forethought.worldmodel.predictors import Usual


class Unsure(Pushing):
    """Sure on the left and unsure on the right: 1 / (1 + exp(-8 x)) of the next state."""

    doubts = True

    def doubt(
        self, states: Tensor, actions: Tensor, next_states: Tensor, context: Any = None
    ) -> Tensor:
        assert states.shape == next_states.shape == (*actions.shape[:2], 2)
        torch.testing.assert_close(next_states, self(states, actions))  # what led where
        torch.testing.assert_close(states[:, 1:], next_states[:, :-1])  # in their order
        return torch.sigmoid(8 * next_states[..., 0])


def unsure(agent: Agent, cost: Cost) -> Agent:
    model = JEPA(Seeing(), Unsure())
    return replace(agent, model=model, configurator=replace(agent.configurator, cost=cost))


# --- the unit


def test_usual_ones_are_a_half_whatever_their_unit() -> None:
    for scale, shift in ((1.0, 0.0), (50.0, -7.0)):
        usual = Usual()
        generator = seeded(1)
        for _ in range(300):
            usual.listen(shift + scale * torch.randn(64, generator=generator))
        found = usual(shift + scale * torch.tensor([0.0, 2.0, -2.0]))
        expected = torch.sigmoid(torch.tensor([0.0, 2.0, -2.0]))
        torch.testing.assert_close(found, expected, atol=0.03, rtol=0)


def test_what_is_not_a_number_is_not_listened_to() -> None:
    usual = Usual()
    usual.listen(torch.tensor([1.0, math.nan]))
    assert usual.moments.tolist() == [0.0, 1.0]
    usual.listen(torch.tensor([1.0, 3.0]))
    assert usual.moments.tolist() == [2.0, 1.0]


# --- the ensemble


class TestEnsemble(PredictorContract):
    def make(self, state_dim: int, action_dim: int, *, normalise: bool = False) -> Predictor:
        return Ensemble(state_dim, action_dim, hidden=16, normalise=normalise).eval()


def test_members_learn_from_different_rows() -> None:
    torch.manual_seed(0)
    model, state, action = Ensemble(D, A, hidden=8, members=2), torch.randn(N, D), torch.randn(N, A)
    found = model(state, action)
    for row in range(N):
        own = model.members[row % 2](state[row : row + 1], action[row : row + 1])
        torch.testing.assert_close(found[row : row + 1], own)
    assert torch.equal(found, model(state, action))
    mean = torch.stack([member(state, action) for member in model.members]).mean(0)
    torch.testing.assert_close(model.eval()(state, action), mean)


def test_an_ensemble_doubts_what_it_has_not_seen() -> None:
    torch.manual_seed(0)
    model = Ensemble(1, 1, hidden=16, members=3)
    optimiser, generator = torch.optim.Adam(model.parameters(), lr=5e-3), seeded(2)
    for _ in range(200):
        state, action = (2 * torch.rand(64, 1, generator=generator) - 1 for _ in range(2))
        error = (model(state, action) - state - torch.sin(3 * state) * action).square().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
    model.eval()
    inside, outside = (torch.linspace(*ends, 50)[:, None] for ends in ((-0.8, 0.8), (4, 6)))
    action = torch.ones(50, 1)
    with torch.no_grad():
        known, new = (
            model.doubt(s[:, None], action[:, None], model(s, action)[:, None])
            for s in (inside, outside)
        )
    assert float(known.mean()) < 0.6
    assert float(new.min()) > 0.9


def test_one_member_is_refused() -> None:
    with pytest.raises(ValueError, match="members is 1: choose 2 or more, one cannot disagree"):
        Ensemble(D, A, members=1)


# --- the model


@pytest.mark.parametrize("discrete", [False, True])
def test_the_model_doubts_steps_of_any_shape(discrete: bool) -> None:
    torch.manual_seed(0)
    predictor = EnergyMLP(2, 3, hidden=8, modulation=2).eval()
    assert predictor.modulation is not None
    torch.nn.init.normal_(predictor.modulation.weight)
    model = JEPA(Seeing(), predictor, Actions(3, discrete=discrete))
    state, after = torch.randn(4, 5, 6, 2), torch.randn(4, 5, 6, 2)
    action = torch.randint(3, (4, 5, 6)) if discrete else torch.randn(4, 5, 6, 3)
    codes = torch.randn(4, 1, 1, 2)
    found = model.doubt(state, action, after, {"modulation": codes})
    assert found.shape == (4, 5, 6)
    row = model.predictor.doubt(
        state[1, 2, None, 3:4],
        model.actions(action[1, 2, None, 3:4]),
        after[1, 2, None, 3:4],
        {"modulation": codes[1, 0]},
    )
    torch.testing.assert_close(found[1, 2, 3], row[0, 0])


def test_others_say_that_they_cannot_tell() -> None:
    with pytest.raises(ValueError, match=r"^ResidualMLP does not tell how sure it is: choose"):
        ResidualMLP(2, 2).doubt(*torch.zeros(3, 1, 1, 2))


# --- the agent


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_doubt_is_a_term_of_every_step(weight: float) -> None:
    cost = Cost(horizon=3, doubt=weight, reduction="last", discount=0.9)
    model, state = JEPA(Seeing(), Unsure()), torch.as_tensor(points(3))
    setting = setting_of(REACH, cost, torch.zeros(3, 2))
    actions = 2 * torch.rand(3, 4, 3, 2, generator=seeded()) - 1
    energies, states = evaluate(problem_of(model, REACH.bank, setting, state), actions)
    assert isinstance(states, Tensor)
    far = states[:, :, -1].square().mean(-1)
    powers = torch.tensor([1.0, 0.9, 0.81])
    expected = weight * (torch.sigmoid(8 * states[..., 0]) * powers).sum(-1)
    without = evaluate(
        problem_of(
            model, REACH.bank, setting_of(REACH, replace(cost, doubt=0.0), torch.zeros(3, 2)), state
        ),
        actions,
    )[0]
    torch.testing.assert_close(energies - without, expected)
    assert float(far.detach().min()) > 0


def test_plans_keep_to_where_the_model_is_sure() -> None:
    """The goal lies straight up; the way there leads past where doubts begin."""
    start, goal = points(1) * 0 + [[0.0, -0.7]], [[0.0, 0.7]]
    found = []
    for weight in (0.0, 1.0):
        planner = Gradient(starts=4, iterations=20)
        agent = unsure(agent_of(planner), Cost(horizon=6, doubt=weight))
        goals = torch.tensor(goal).float().numpy()
        _, carried = agent.act(begin(agent, goals), start.astype("float32"))
        assert carried.imagined is not None
        found.append(float(torch.sigmoid(8 * carried.imagined[..., 0]).mean()))
    assert found[0] == pytest.approx(0.5, abs=0.05)
    assert found[1] < 0.3


def test_what_is_doubted_is_thought_about() -> None:
    planner, cost = Gradient(starts=2, iterations=3), Cost(horizon=3)
    agent = unsure(agent_of(planner, mode="auto", policy=policy_of()), cost)
    thinking = Thinking(signal="doubt", price=0.5, share=1.0)
    agent = replace(agent, configurator=replace(agent.configurator, thinking=thinking))
    seen = points(8)
    seen[:4, 0], seen[4:, 0] = -0.9, 0.9
    _, carried = agent.act(begin(agent, points(8, 1)), seen)
    assert carried.mind is not None
    assert carried.mind.thought.tolist() == [False] * 4 + [True] * 4
    assert agent.policy is not None
    belief = torch.as_tensor(seen)
    rolled = agent.policy.rollout(agent.model, belief, carried.setting.context, 3)[0]
    states = agent.model.rollout(belief, rolled)
    torch.testing.assert_close(carried.mind.signal, torch.sigmoid(8 * states[..., 0]).mean(1))


def test_doubt_is_refused_where_nobody_tells_it() -> None:
    said = r"Pushing does not tell how sure it is: choose .* or Ensemble, or leave it out"
    with pytest.raises(ValueError, match=f"cost.doubt is 0.1, but {said}"):
        agent_of(cost=Cost(doubt=0.1))
    agent, thinking = agent_of(), Thinking(signal="doubt")
    with pytest.raises(ValueError, match=f"thinking.signal is doubt, but {said}"):
        replace(agent, configurator=replace(agent.configurator, thinking=thinking))
    with pytest.raises(ValueError, match=r"cost.doubt is -1: choose 0 or more, finite"):
        Cost(doubt=-1)
