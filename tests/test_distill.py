"""Distillation: the policy learns what the planner does, and nothing else learns anything."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from test_agent import (
    CALM,
    Plane,
    agent_of,
    critic_of,
    exact,
    points,
    policy_of,
    readouts_of,
    seeded,
    success,
)
from torch import Tensor

from forethought.agent import (
    Agent,
    Cost,
    Distillation,
    Policy,
    Posture,
    Task,
    TaskTerm,
    distill,
    label,
)
from forethought.planners import Gradient, Plan, Planner, Problem, evaluate
from forethought.worldmodel import NonFiniteLossError

QUICK = Distillation(rounds=2, problems=96, batch=48, steps=150, minibatch=128, learning_rate=3e-3)
TINY = Distillation(rounds=3, problems=6, batch=4, steps=3, minibatch=8)
STATES = torch.as_tensor(points(200, 7))


def distilled(how: Distillation, *, seed: int = 0, **options: Any) -> Policy:
    agent = agent_of(Gradient(starts=2, iterations=4), cost=Cost(horizon=4))
    policy = policy_of()
    distill(agent, policy, STATES, how, seeded(seed), **options)
    return policy


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_distilled_policy_reaches_the_goals() -> None:
    agent = agent_of(Gradient(starts=2, iterations=15), cost=Cost(horizon=5))
    agent.model.requires_grad_(False)
    untrained = replace(agent, policy=policy_of(), configurator=replace(agent.configurator, mode=1))
    learned = distill(agent, policy_of(), STATES, QUICK, seeded())
    assert learned.configurator.mode == 2
    reactive = replace(learned, configurator=replace(agent.configurator, mode=1))
    assert Plane(1).episode_limit == 16
    assert success(untrained, 40, 20) < 0.3
    assert success(reactive, 40, 20) > 0.7


def test_a_policy_without_goals_is_distilled() -> None:
    """The posture is the known optimum: from everywhere the policy goes there, and stays."""
    there = torch.tensor([0.4, -0.3])
    task = Task({"there": TaskTerm(Posture("state", tuple(there.tolist()), scale=0.5))})
    agent = agent_of(Gradient(starts=2, iterations=15), cost=Cost(horizon=6), task=task)
    agent.model.requires_grad_(False)
    labels = label(agent, None, STATES[:4], None, seeded())
    assert labels.goals is None
    assert labels.states.shape == labels.actions.shape == (24, 2)
    policy = policy_of(goal=False)
    reached = []
    for learn in (False, True):
        if learn:
            distill(agent, policy, STATES, QUICK, seeded())
        with torch.no_grad():
            states = policy.rollout(agent.model, STATES, {}, 12)[1]
        reached.append(float(((states[:, -1] - there).norm(dim=-1) < 0.15).float().mean()))
    assert reached[0] < 0.3
    assert reached[1] > 0.9


def test_only_the_policy_learns() -> None:
    readouts, critic = readouts_of(), critic_of(4, 0.8)
    agent = agent_of(
        Gradient(starts=2, iterations=4),
        cost=Cost(horizon=4),
        task=replace(CALM, goal=True),
        readouts=readouts,
        critic=critic,
    )
    before, fingerprint = exact(), agent.bank.fingerprint()
    policy = policy_of()
    result = distill(agent, policy, STATES, TINY, seeded())
    assert same(agent.model, before)
    assert same(readouts, readouts_of())
    assert same(critic, critic_of(4, 0.8))
    for module in (agent.model, readouts, critic):
        assert all(parameter.grad is None for parameter in module.parameters())
    assert agent.bank.fingerprint() == fingerprint
    assert not same(policy, policy_of())
    assert result == replace(agent, policy=policy)
    assert agent.policy is None


@dataclass(frozen=True)
class Answering(Planner):
    """Plans the same action everywhere; `broken` problems get a plan of infinite energy."""

    action: float = 0.5
    broken: tuple[int, ...] = ()

    def plan(
        self,
        problem: Problem,
        *,
        proposals: Tensor | None = None,
        generator: torch.Generator,
        deadline: float | None = None,
    ) -> Plan:
        actions = torch.full((problem.batch, problem.horizon, 2), self.action)
        energies, states = evaluate(problem, actions[:, None])
        energy = energies[:, 0].detach().clone()
        energy[list(self.broken)] = float("inf")
        return Plan(
            actions=actions,
            energy=energy,
            states=states[:, 0].detach(),  # type: ignore[index]
            status=(),
            trace=energy[None],
            model_steps=0,
            seconds=0.0,
        )


def answering(**options: Any) -> Agent:
    return agent_of(Answering(**options), cost=Cost(horizon=3, discount=1.0))


def always(action: float) -> Policy:
    """A policy that does the same everywhere."""
    policy = policy_of()
    last: Any = policy.layers[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(action).atanh_()
    return policy


def test_all_imagined_states_are_labelled() -> None:
    start, goal = torch.as_tensor(points(4)), torch.as_tensor(points(4, 1))
    labels = label(answering(), None, start, goal, seeded())
    assert labels.goals is not None
    assert labels.states.shape == labels.goals.shape == labels.actions.shape == (12, 2)
    for problem in range(4):
        for t in range(3):
            row = 3 * problem + t
            at = start[problem] + t * 0.25 * 0.5  # the first state is the start, not its successor
            assert torch.allclose(labels.states[row], at)
            assert torch.equal(labels.goals[row], goal[problem])
    assert bool((labels.actions == 0.5).all())
    assert bool((labels.weights == 1).all())


def test_plans_count_as_far_as_they_beat_the_policy() -> None:
    """Goals ahead, on the spot, and behind: the plan drives ahead, the policy stands still."""
    start = torch.zeros(3, 2)
    goal = torch.tensor([[3.0, 3.0], [0.0, 0.0], [-3.0, -3.0]])
    labels = label(answering(), always(0.0), start, goal, seeded())
    weights = labels.weights.view(3, 3)
    assert bool((weights[0] == 3).all())  # weights average 1, and this one has all of it
    assert bool((weights[1:] == 0).all())
    # The same plan as the policy's own is no gain.
    labels = label(answering(), always(0.5), start, goal, seeded())
    assert float(labels.weights.abs().max()) < 1e-3


def test_weights_follow_the_gain() -> None:
    start, goal = torch.zeros(2, 2), torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    labels = label(answering(), always(0.0), start, goal, seeded())
    at = torch.tensor([0.125, 0.25, 0.375])
    gain = [float((g**2 - (g - at) ** 2).sum()) for g in (1.0, 2.0)]
    expected = [2 * gain[0] / sum(gain)] * 3 + [2 * gain[1] / sum(gain)] * 3
    assert labels.weights.tolist() == pytest.approx(expected, rel=1e-4)


def test_plans_that_are_not_finite_are_dropped() -> None:
    start, goal = torch.as_tensor(points(4)), torch.as_tensor(points(4, 1))
    labels = label(answering(broken=(0, 2)), None, start, goal, seeded())
    assert len(labels.states) == 6
    assert torch.equal(labels.states[[0, 3]], start[[1, 3]])
    assert torch.equal(labels.goals[[0, 3]], goal[[1, 3]])
    labels = label(answering(broken=(0, 2)), always(0.0), start, 9 + goal, seeded())
    assert float(labels.weights.sum()) == pytest.approx(12.0)  # of two plans, as of four
    assert len(labels.weights) == 6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_policy_that_blows_up_in_imagination_is_beaten(value: float) -> None:
    start, goal = torch.zeros(2, 2), torch.full((2, 2), 3.0)
    policy = always(0.0)
    forward = policy.forward

    def broken(state: Tensor, context: Any) -> Tensor:
        action = forward(state, context).clone()
        action[0] = value
        return action

    policy.forward = broken  # type: ignore[method-assign]
    labels = label(answering(), policy, start, goal, seeded())
    assert bool(labels.weights.isfinite().all())
    assert bool((labels.weights > 0).all())


def test_nothing_finite_is_an_error_with_a_remedy() -> None:
    agent = answering(broken=(0, 1, 2, 3))
    with pytest.raises((ValueError, NonFiniteLossError), match="non-finite"):
        distill(agent, policy_of(), STATES, replace(TINY, problems=4), seeded())


def test_labels_come_from_the_policys_own_basin() -> None:
    """A planner that does not search returns the proposal: the policy's own roll-out."""
    agent = agent_of(Gradient(starts=1, iterations=1, learning_rate=1e-9), cost=Cost(horizon=3))
    policy, start, goal = policy_of(), torch.zeros(2, 2), torch.as_tensor(points(2, 1))
    labels = label(agent, policy, start, goal, seeded())
    own = policy.rollout(agent.model, start, {"goal": goal}, 3)[0]
    assert torch.allclose(labels.actions.view(2, 3, 2), own, atol=1e-6)
    first = label(agent, None, start, goal, seeded())
    assert not torch.allclose(first.actions.view(2, 3, 2), own, atol=1e-3)


def test_later_rounds_start_where_the_policy_goes() -> None:
    """With a still world and no fresh starts, round two begins in states off the data set."""
    starts: list[Tensor] = []

    class Watching(Gradient):
        def plan(self, problem: Problem, **options: Any) -> Plan:
            starts.append(problem.state)  # type: ignore[arg-type]
            return super().plan(problem, **options)

    def known(state: Tensor) -> Tensor:
        return (state[:, None] == STATES[None]).all(-1).any(1)

    for fresh in (0.0, 1.0):
        starts.clear()
        agent = agent_of(Watching(starts=2, iterations=1), cost=Cost(horizon=8))
        how = Distillation(rounds=2, problems=40, batch=40, steps=1, minibatch=4, fresh=fresh)
        distill(agent, policy_of(), STATES, how, seeded())
        assert bool(known(starts[0]).all())
        share = float(known(starts[1]).float().mean())
        assert share == 1.0 if fresh else 0.0 <= share < 0.5  # a roll-out begins in its start


def test_reports() -> None:
    logged: list[tuple[int, set[str]]] = []
    planned: list[int] = []
    distilled(
        TINY,
        on_step=lambda step, values: logged.append((step, set(values))),
        on_progress=planned.append,
    )
    assert planned == [4, 2, 4, 2, 4, 2]
    assert [step for step, _ in logged] == [3, 6, 9]
    assert all({"imitation", "error", "learning_rate"} <= names for _, names in logged)


def test_twins() -> None:
    assert same(distilled(TINY), distilled(TINY))
    assert not same(distilled(TINY), distilled(TINY, seed=1))


OTHER = {
    "rounds": 2,
    "keep": 1,
    "problems": 7,
    "batch": 3,
    "steps": 4,
    "minibatch": 9,
    "learning_rate": 2e-3,
    "decay": 0.5,
    "fresh": 0.9,
}


def test_every_option_is_tried_below() -> None:
    assert set(OTHER) == {field.name for field in fields(Distillation)}


@pytest.mark.parametrize("name", OTHER)
def test_every_option_changes_behaviour(name: str) -> None:
    how = replace(TINY, **{name: OTHER[name]})  # type: ignore[arg-type]
    assert not same(distilled(TINY), distilled(how))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("rounds", "keep", "problems", "batch", "steps", "minibatch")),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("fresh", -0.1),
        ("fresh", 1.1),
        ("fresh", float("nan")),
    ],
)
def test_wrong_options_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"distillation.{name} is {value}"):
        Distillation(**{name: value})  # type: ignore[arg-type]
