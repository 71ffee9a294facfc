"""Distillation: the policy learns what the planner does, and nothing else learns anything."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from test_agent import (
    CALM,
    EFFORT,
    STEP,
    Plane,
    Pushing,
    agent_of,
    critic_of,
    exact,
    points,
    policy_of,
    readouts_of,
    seeded,
    success,
)
from test_loop import FROM, PAIRS, TO, at, ring_agent, ring_policy, way
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
from forethought.agent.distill import JUDGED, Support, imagine
from forethought.envs.linear import LinearQuadratic, optimal_cost
from forethought.planners import Gradient, Plan, Planner, Problem, evaluate
from forethought.worldmodel import NonFiniteLossError

QUICK = Distillation(rounds=2, problems=96, batch=48, steps=150, minibatch=128, learning_rate=3e-3)
TINY = Distillation(rounds=3, problems=6, batch=4, steps=3, minibatch=8)
DESCENT = replace(QUICK, arm="gradient", batch=64, steps=200)
BRIEF = replace(TINY, arm="gradient")
ARMS = pytest.mark.parametrize("how", [TINY, BRIEF], ids=lambda how: how.arm)
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


@ARMS
def test_only_the_policy_learns(how: Distillation) -> None:
    readouts, critic = readouts_of(), critic_of(4, 0.8)
    agent = agent_of(
        Gradient(starts=2, iterations=4),
        cost=Cost(horizon=4),
        task=replace(CALM, goal=True),
        readouts=readouts,
        critic=critic,
    )
    before, fingerprint = exact(), agent.bank.fingerprint()
    agent.model.predictor.requires_grad_(False)
    policy = policy_of()
    result = distill(agent, policy, STATES, how, seeded())
    assert same(agent.model, before)
    assert same(readouts, readouts_of())
    assert same(critic, critic_of(4, 0.8))
    for module in (agent.model, readouts, critic):
        assert all(parameter.grad is None for parameter in module.parameters())
    # Who may learn afterwards is who might before.
    assert all(parameter.requires_grad for parameter in readouts.parameters())
    assert all(parameter.requires_grad for parameter in agent.model.perception.parameters())
    assert not any(parameter.requires_grad for parameter in agent.model.predictor.parameters())
    assert not any(parameter.requires_grad for parameter in critic.slow.parameters())
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
        deadline: Any = None,
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


@ARMS
def test_twins(how: Distillation) -> None:
    assert same(distilled(how), distilled(how))
    assert not same(distilled(how), distilled(how, seed=1))


def test_the_arm_of_labels_is_what_it_was() -> None:
    """Numbers of the version that knew no other arm."""
    logged: list[float] = []
    distilled(TINY, on_step=lambda _, values: logged.append(values["imitation"]))
    assert logged == pytest.approx([0.108146, 0.159028, 0.176903], rel=1e-4)


# --- the gradient of the imagined energy


def test_the_gradient_arm_finds_the_linear_quadratic_optimum() -> None:
    """Distance to the goal and effort in a linear world: the lowest energy is known."""
    agent = agent_of(cost=Cost(horizon=6, discount=1.0), task=EFFORT)
    one, goals = 0.4 * STATES[:100], 0.4 * torch.as_tensor(points(100, 8))
    squares = torch.eye(2).numpy() / 2  # means over two components
    world = LinearQuadratic(2 * squares, 2 * STEP * squares, squares, 0.5 * squares, squares)
    error = (one - goals).double().numpy()
    # The energy counts no distance at the start, which no action changes.
    best = float((optimal_cost(world, error, 6) - (error**2).sum(1) / 2).mean())
    policy, reached = policy_of(), []
    for learn in (False, True):
        if learn:
            distill(agent, policy, 0.4 * STATES, replace(DESCENT, support=0.0), seeded())
        with torch.no_grad():
            reached.append(float(imagine(agent, policy, one, goals)[0].mean()))
    assert reached[0] > 1.5 * best
    assert best * (1 - 1e-6) < reached[1] < 1.02 * best


def test_the_gradient_of_the_imagined_energy_is_that_of_finite_differences() -> None:
    """Through every action, and through the states in which later actions are taken."""
    task = replace(CALM, goal=True)
    parts = {"readouts": readouts_of().double(), "critic": critic_of(4, 0.8).double()}
    agent = agent_of(cost=Cost(horizon=5), task=task, **parts)  # type: ignore[arg-type]
    agent.model.double()
    policy = policy_of().double()
    states, goals = STATES[:6].double(), STATES[6:12].double()
    energy = imagine(agent, policy, states, goals)[0].mean()
    slopes = torch.autograd.grad(energy, list(policy.parameters()))
    step = 1e-5
    for parameter, slope in zip(policy.parameters(), slopes, strict=True):
        where = int(slope.abs().argmax())
        flat = parameter.data.view(-1)
        sides = []
        for sign in (1, -1):
            flat[where] += sign * step
            with torch.no_grad():
                sides.append(float(imagine(agent, policy, states, goals)[0].mean()))
            flat[where] -= sign * step
        measured = (sides[0] - sides[1]) / (2 * step)
        assert float(slope.view(-1)[where]) == pytest.approx(measured, rel=1e-5)


def test_the_imagined_energy_is_that_of_the_plan() -> None:
    agent = agent_of(cost=Cost(horizon=4), task=EFFORT)
    policy, states, goals = policy_of(), STATES[:5], STATES[5:10]
    energy, path = imagine(agent, policy, states, goals)
    setting = agent.configurator.configure(goals, 5, states.device)
    actions = policy.rollout(agent.model, states, setting.context, 4)[0]
    expected, after = evaluate(agent.problem(setting, states), actions[:, None])
    torch.testing.assert_close(energy, expected[:, 0])
    torch.testing.assert_close(path, after[:, 0])  # type: ignore[index]


def test_a_discrete_policy_is_imagined_by_its_probabilities() -> None:
    agent, policy = ring_agent(), ring_policy()
    start, goal = at([0, 1, 2]), at([3, 3, 3])
    energy, path = imagine(agent, policy, start, goal)
    setting = agent.configurator.configure(goal, 3, start.device)
    soft, state = [], start
    for _ in range(4):
        soft.append(policy.scores(state, setting.context).softmax(-1))
        state = agent.model.predict(state, soft[-1])
    expected, after = evaluate(agent.problem(setting, start), torch.stack(soft, 1)[:, None])
    torch.testing.assert_close(energy, expected[:, 0])
    torch.testing.assert_close(path, after[:, 0])  # type: ignore[index]


def test_a_discrete_policy_learns_from_the_gradient() -> None:
    """Left and right are worth the same from the opposite cell, where a mixture can be stuck."""
    agent, states, policy = ring_agent(), at(list(range(8))), ring_policy()
    how = Distillation("gradient", rounds=1, problems=64, batch=64, steps=200, learning_rate=1e-2)
    right = []
    for learn in (False, True):
        if learn:
            distill(agent, policy, states, how, seeded())
        chosen = policy(at(FROM), {"goal": at(TO)})
        right.append(
            sum(
                int(action) in {path[0] for path in way(*pair)}
                for action, pair in zip(chosen, PAIRS, strict=True)
            )
        )
    assert len(PAIRS) == 16
    assert right[0] <= 10
    assert right[1] >= 14


WALLED = Task({"there": TaskTerm(Posture("state", (2.0, 0.0), scale=0.5))})
"""Go right. The data end at x = 1, where the world has a wall that the model has never seen."""


@pytest.mark.parametrize(("support", "least", "most"), [(0.0, 1.6, 2.4), (10.0, 0.7, 1.2)])
def test_support_keeps_the_policy_where_the_data_are(
    support: float, least: float, most: float
) -> None:
    agent = agent_of(cost=Cost(horizon=12, discount=1.0), task=WALLED)
    policy = policy_of(goal=False)
    how = replace(DESCENT, rounds=1, support=support)
    distill(agent, policy, STATES, how, seeded())
    with torch.no_grad():
        reached = imagine(agent, policy, STATES[:100], None)[1][:, -1, 0]
    assert least < float(reached.quantile(0.1))
    assert float(reached.quantile(0.9)) < most


def test_support_by_hand() -> None:
    """A row of states one apart: everyone has a neighbour at distance 1."""
    row = torch.stack((torch.arange(5.0), torch.zeros(5)), dim=1)
    support = Support.of(row, seeded())
    assert sorted(support.anchors[:, 0].tolist()) == [0, 1, 2, 3, 4]
    assert (support.slack, support.scale) == (1.0, 2.0)
    states = torch.tensor([[[2.0, 0.0], [2.5, 0.5], [2.0, 0.9]], [[2.0, 3.0], [7.0, 0.0], [0, -2]]])
    expected = torch.tensor([[0.0, 0.0, 0.0], [4.0, 4.0, 1.5]])
    torch.testing.assert_close(support.penalty(states), expected)
    moved = states.clone().requires_grad_()
    torch.autograd.backward(support.penalty(moved).sum())
    assert moved.grad is not None
    assert torch.equal(moved.grad[0], torch.zeros(3, 2))
    torch.testing.assert_close(moved.grad[1], torch.tensor([[0.0, 3.0], [3.0, 0.0], [0.0, -2.0]]))


def test_support_needs_two_states() -> None:
    with pytest.raises(ValueError, match="states has 1 rows: give 2 or more, or set support to 0"):
        distilled_from(STATES[:1], BRIEF)
    distilled_from(STATES[:1], replace(BRIEF, support=0.0))


class Cracked(Pushing):
    """Not a number, with derivatives to match, where x is beyond `edge`."""

    edge = 0.5

    def forward(
        self, state: Tensor, action: Tensor, latent: Any = None, context: Any = None
    ) -> Any:
        return super().forward(state, action) + 0 * (self.edge - state[:, :1]).sqrt()


def distilled_from(states: Tensor, how: Distillation, edge: float = 9.0, **options: Any) -> Policy:
    agent, policy = agent_of(cost=Cost(horizon=4)), policy_of()
    agent.model.predictor = Cracked()
    agent.model.predictor.edge = edge
    distill(agent, policy, states, how, seeded(), **options)
    return policy


def test_roll_outs_that_are_not_finite_are_left_out() -> None:
    logged: list[dict[str, float]] = []
    how = replace(BRIEF, rounds=1, problems=64, batch=64)
    policy = distilled_from(STATES, how, 0.5, on_step=lambda _, values: logged.append(values))
    assert all(bool(parameter.isfinite().all()) for parameter in policy.parameters())
    assert not same(policy, policy_of())
    assert 0.2 < logged[-1]["lost"] < 0.8
    for name in ("imagined", "support", "energy"):
        assert 0 <= logged[-1][name] < 100


def test_no_finite_roll_out_is_an_error_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="every roll-out of the policy has a non-finite energy"):
        distilled_from(STATES, BRIEF, -9.0)


# --- what is logged


def test_both_arms_are_measured_on_the_same_starts() -> None:
    """A planner that always plans the same, and a policy that always does that: the same energy."""
    logged: dict[str, list[dict[str, float]]] = {"labels": [], "gradient": []}
    for arm, values in logged.items():
        how = replace(TINY, arm=arm, rounds=2, learning_rate=1e-9)  # type: ignore[arg-type]
        distill(
            answering(action=0.5),
            always(0.5),
            STATES,
            how,
            seeded(),
            on_step=lambda _, found, values=values: values.append(found),  # type: ignore[misc]
        )
    steady = [found for values in logged.values() for found in values]
    assert len(steady) == 4
    planned = steady[0]["planner_energy"]
    for found in steady:
        assert found["planner_energy"] == planned
        assert found["energy"] == pytest.approx(planned, rel=1e-4)
        assert found["lost"] == 0.0
    assert {"imagined", "support"} <= set(logged["gradient"][0])


def test_energy_falls_towards_the_planners() -> None:
    logged: list[dict[str, float]] = []
    agent = agent_of(Gradient(starts=2, iterations=15), cost=Cost(horizon=4))
    how = replace(DESCENT, rounds=1)
    distill(agent, policy_of(), STATES, how, seeded(), lambda _, found: logged.append(found))
    assert len(logged) == 4
    first, last = logged[0]["energy"], logged[-1]["energy"]
    planned = logged[-1]["planner_energy"]
    assert last - planned < 0.25 * (first - planned)


def test_plans_that_are_not_finite_are_in_no_mean() -> None:
    found: list[dict[str, float]] = []
    for broken in (0, JUDGED // 2, JUDGED):
        agent = answering(broken=tuple(range(broken)))
        how = replace(BRIEF, rounds=1, steps=1)
        distill(agent, always(0.5), STATES, how, seeded(), lambda _, values: found.append(values))
    assert 0 < found[0]["planner_energy"] < 10
    assert 0 < found[1]["planner_energy"] < 10
    assert found[1]["planner_energy"] != found[0]["planner_energy"]
    assert "planner_energy" not in found[2]


@ARMS
def test_looking_changes_nothing(how: Distillation) -> None:
    assert same(distilled(how), distilled(how, on_step=lambda step, values: None))


def test_reports_of_the_gradient_arm() -> None:
    logged: list[int] = []
    planned: list[int] = []
    distilled(BRIEF, on_step=lambda step, _: logged.append(step), on_progress=planned.append)
    assert planned == [4, 2, 4, 2, 4, 2]
    assert logged == [3, 6, 9]


OTHER = {
    "arm": "gradient",
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
"""Another value of every option that `labels` knows."""

OF_GRADIENT = {
    name: OTHER[name] for name in ("rounds", "problems", "batch", "steps", "learning_rate", "fresh")
} | {"support": 500.0}
"""And of those of `gradient`."""


ELSEWHERE = {"settings"}
"""Wants another policy: `test_modulated_training`."""


def test_every_option_is_tried_below() -> None:
    names = {field.name for field in fields(Distillation)}
    assert set(OTHER) | set(OF_GRADIENT) == names - ELSEWHERE


@pytest.mark.parametrize("name", OTHER)
def test_every_option_changes_behaviour(name: str) -> None:
    how = replace(TINY, **{name: OTHER[name]})  # type: ignore[arg-type]
    assert not same(distilled(TINY), distilled(how))


@pytest.mark.parametrize("name", OF_GRADIENT)
def test_every_option_changes_the_gradient_arm(name: str) -> None:
    how = replace(BRIEF, **{name: OF_GRADIENT[name]})  # type: ignore[arg-type]
    assert not same(distilled(BRIEF), distilled(how))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("rounds", "keep", "problems", "batch", "steps", "minibatch")),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("fresh", -0.1),
        ("fresh", 1.1),
        ("fresh", float("nan")),
        ("settings", 1.5),
        ("support", -1.0),
        ("support", float("nan")),
        ("support", float("inf")),
    ],
)
def test_wrong_options_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"distillation.{name} is {value}"):
        Distillation(**{name: value})  # type: ignore[arg-type]


def test_an_unknown_arm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"distillation.arm is 'both': choose labels or gradient"):
        Distillation("both")  # type: ignore[arg-type]
