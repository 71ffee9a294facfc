"""The policy: Mode-1's formula, its roll-out, and the code by which the setting changes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forethought.agent.policy import Policy
from forethought.worldmodel import JEPA, Actions, CausalPredictor, ResidualMLP
from forethought.worldmodel.modulation import FiLM
from forethought.worldmodel.perception import Perception

D, A, M, B = 3, 2, 2, 4


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed))


def policy_of(**options: Any) -> Policy:
    """A policy; what FiLMs it has are stirred, as by training."""
    torch.manual_seed(0)
    policy = Policy(D, A, **{"hidden": 8} | options)
    generator = seeded(4)
    for part in policy.modules():
        if isinstance(part, FiLM):
            for parameter in part.parameters():
                nn.init.normal_(parameter, std=0.5, generator=generator)
    return policy


def context_of(*lead: int) -> dict[str, Tensor]:
    return {"goal": normal(*lead, D, seed=1), "modulation": normal(*lead, M, seed=2)}


class Seeing(Perception):
    """The state is the observation."""

    latent_dim = D

    def forward(self, observation: Any, context: Any = None) -> Tensor:
        return observation

    def standardise_by(self, statistics: Any) -> None:
        pass


def model_of(discrete: bool = False, modulation: int = 0) -> JEPA:
    torch.manual_seed(1)
    predictor = ResidualMLP(D, A, hidden=8, modulation=modulation)
    model = JEPA(Seeing(), predictor, Actions(A, discrete=discrete))
    for film in predictor.modulation.films:
        nn.init.normal_(film.weight, std=0.5, generator=seeded(6))
    return model


# --- as it is without a code


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("goal", [False, True])
def test_the_formula(goal: bool, discrete: bool) -> None:
    policy, state, context = policy_of(goal=goal, discrete=discrete), normal(B, D), context_of(B)
    assert set(policy.state_dict()) == {
        f"layers.{index}.{name}" for index in (0, 2, 4) for name in ("weight", "bias")
    }
    x = torch.cat((state, context["goal"] - state), -1) if goal else state
    scores = policy.layers(x)
    assert torch.equal(policy.scores(state, context), scores if discrete else scores.tanh())
    found = policy(state, context)
    assert torch.equal(found, scores.argmax(-1) if discrete else scores.tanh())
    assert found.shape == ((B,) if discrete else (B, A))
    if not goal:
        assert torch.equal(policy(state, {}), found)


def test_actions_stay_in_bounds() -> None:
    policy = policy_of(modulation=M)
    found = policy(1e4 * normal(50, D), context_of(50))
    assert float(found.detach().abs().max()) <= 1.0
    assert float(found.detach().abs().max()) > 0.99


@pytest.mark.parametrize("modulation", [0, M])
@pytest.mark.parametrize("discrete", [False, True])
def test_the_roll_out_is_the_loop(discrete: bool, modulation: int) -> None:
    policy = policy_of(discrete=discrete, modulation=modulation)
    model, state, context = model_of(discrete, modulation), normal(B, D), context_of(B)
    actions, states = policy.rollout(model, state, context, 3)
    assert actions.shape == ((B, 3) if discrete else (B, 3, A))
    assert states.shape == (B, 3, D)
    for t in range(3):
        assert torch.equal(states[:, t], state)
        action = policy(state, context)
        assert torch.equal(actions[:, t], action)
        state = model.predict(state, action, context=context)
    torch.testing.assert_close(
        model.rollout(states[:, 0], actions, context=context)[:, :-1], states[:, 1:]
    )


def test_the_roll_out_sees_what_a_plan_sees() -> None:
    """A predictor with a window is shown the states before."""
    torch.manual_seed(1)
    predictor = CausalPredictor(D, A, window=3, width=8, depth=1, heads=2).eval()
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=seeded(2)))
    model, policy, context = JEPA(Seeing(), predictor), policy_of(), context_of(B)
    actions, states = policy.rollout(model, normal(B, D), context, 5)
    expected = model.rollout(states[:, 0], actions)[:, :-1]
    torch.testing.assert_close(states[:, 1:], expected)
    alone = model.predict(states[:, 1], actions[:, 1])
    assert not torch.allclose(states[:, 2], alone, atol=1e-3)


# --- with a code


@pytest.mark.parametrize("discrete", [False, True])
def test_a_modulated_policy_begins_as_a_plain_one(discrete: bool) -> None:
    found = []
    for size in (0, M):
        torch.manual_seed(0)
        policy = Policy(D, A, discrete=discrete, hidden=8, modulation=size)
        assert policy.modulation_dim == size
        found.append(policy.scores(normal(B, D), context_of(B)))
    assert torch.equal(*found)
    names = set(policy.state_dict()) - set(policy_of().state_dict())
    assert names == {f"modulation.films.{i}.{name}" for i in (0, 1) for name in ("weight", "bias")}


def test_each_row_has_its_own_code() -> None:
    policy, state, context = policy_of(modulation=M), normal(1, D).expand(B, D), context_of(B)
    context["goal"] = context["goal"][:1].expand(B, D)
    found = policy(state, context)
    assert float(torch.pdist(found.detach()).min()) > 1e-3
    for b in range(B):
        alone = {name: tensor[b : b + 1] for name, tensor in context.items()}
        torch.testing.assert_close(policy(state[:1], alone)[0], found[b])


def test_one_code_serves_all_states_of_a_problem() -> None:
    policy, state, context = policy_of(goal=False, modulation=M), normal(B, 5, D), context_of(B)
    found = policy(state, context)
    for t in range(5):
        torch.testing.assert_close(found[:, t], policy(state[:, t], context))
    viewed = {"modulation": context["modulation"][:, None]}  # as costs see a context
    assert torch.equal(policy(state, viewed), found)


@pytest.mark.parametrize("goal", [False, True])
def test_gradients_reach_the_code_through_the_roll_out(goal: bool) -> None:
    policy, model = policy_of(goal=goal, modulation=M).double(), model_of(modulation=M).double()
    state = normal(2, D).double()
    context = {name: tensor.double() for name, tensor in context_of(2).items()}
    code = context.pop("modulation").requires_grad_()

    def rolled(code: Tensor) -> tuple[Tensor, Tensor]:
        return policy.rollout(model, state, context | {"modulation": code}, 3)

    assert torch.autograd.gradcheck(rolled, (code,))
    (gradient,) = torch.autograd.grad(rolled(code)[0][1].sum(), code)
    assert (gradient.abs().sum(1) > 0).tolist() == [False, True]


def test_a_wrong_code_is_refused() -> None:
    policy, state, context = policy_of(modulation=M), normal(B, D), context_of(B)
    with pytest.raises(ValueError, match=r"no 'modulation'.*\(4, 2\).*modulation=0"):
        policy(state, {"goal": context["goal"]})
    with pytest.raises(ValueError, match=r"has the shape \(4, 3\): give one of shape \(4, 2\)"):
        policy(state, context | {"modulation": torch.zeros(B, M + 1)})
    with pytest.raises(ValueError, match=r"modulation is -2: choose 0 \(none\) or more"):
        policy_of(modulation=-2)
    with pytest.raises(ValueError, match=r"modulation is 2, .* layers of 1 or more"):
        policy_of(modulation=M, layers=0)


def labelled(
    count: int, goal: bool, discrete: bool, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """States, contexts, and what a teacher does: by the code it goes one way, or the other."""
    state, target = torch.randn(2, count, D, generator=generator)
    code = 2.0 * torch.randint(2, (count, 1), generator=generator) - 1
    way = code * ((target - state) if goal else state)[:, :A]
    action = (way[:, 0] > way[:, 1]).long() if discrete else way.tanh()
    return state, {"goal": target, "modulation": code}, action


def imitation(policy: Policy, goal: bool, count: int, generator: torch.Generator) -> Tensor:
    state, context, action = labelled(count, goal, policy.discrete, generator)
    scores = policy.scores(state, context)
    if policy.discrete:
        return nn.functional.cross_entropy(scores, action)
    return (scores - action).square().mean()


@pytest.mark.parametrize(("goal", "discrete"), [(False, False), (True, False), (True, True)])
def test_a_policy_learns_what_depends_on_the_code(goal: bool, discrete: bool) -> None:
    """A teacher that reverses with the code: without it, no guess beats doing nothing."""
    found = []
    for size in (0, 1):
        torch.manual_seed(0)
        policy = Policy(D, A, goal=goal, discrete=discrete, hidden=32, modulation=size)
        optimiser, generator = torch.optim.Adam(policy.parameters(), lr=1e-2), seeded(1)
        for _ in range(180):
            optimiser.zero_grad()
            imitation(policy, goal, 128, generator).backward()
            optimiser.step()
        with torch.no_grad():
            found.append(float(imitation(policy, goal, 1000, seeded(2))))
    blind, reading = found
    assert blind > (0.65 if discrete else 0.3), found  # ln 2 = 0.69; the mean square of an action
    assert reading < 0.15 * blind, found
