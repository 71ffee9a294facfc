"""The agent with an exact world model: what it minimises, what it carries along, what it reaches.

The world here is a point in a plane that actions push: s' = s + a / 4, seen as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from test_cost import Danger
from torch import Tensor

from forethought import envs
from forethought.agent import (
    REACH,
    Agent,
    AgentController,
    AgentState,
    Configurator,
    Cost,
    Critic,
    Effort,
    Policy,
    Posture,
    Setting,
    Speed,
    Task,
    TaskTerm,
    held_out_seeds,
    problem_of,
    run_episodes,
)
from forethought.envs.vector import EpisodicVectorEnv
from forethought.planners import CEM, MPPI, Gradient, Plan, Planner, Problem, Status, evaluate
from forethought.worldmodel import JEPA, Perception, Predictor, Readouts

STEP = 0.25
CPU = torch.device("cpu")

EFFORT = Task({"effort": TaskTerm(Effort(), weight=0.5)}, goal=True)
"""Reach the goal, and mind the effort."""

SAFE = Task(
    {
        "effort": TaskTerm(Effort(), weight=0.0),
        "danger": TaskTerm(Danger(), weight=0.5, floor=0.5, ceiling=2.0),
    },
    goal=True,
)
"""Reach the goal, and stay within the limits whatever it costs."""

CALM = Task(
    {
        "still": TaskTerm(Speed("velocity", typical=0.5), weight=1.5),
        "there": TaskTerm(Posture("position[1]", (0.4,)), weight=0.75),
        "near": TaskTerm(Posture("state", (0.2,)), weight=0.25),
        "effort": TaskTerm(Effort(), weight=0.5),
    }
)
"""No goal: quantities that readouts tell, the state itself, and actions."""


class Plane(EpisodicVectorEnv):
    """A point in [-1, 1]^2 that actions push; the goal is another point."""

    def __init__(self, num_envs: int = 1, *, episode_limit: int = 16) -> None:
        super().__init__(
            num_envs,
            observation_space=spaces.Box(-np.inf, np.inf, (2,), np.float32),
            action_dim=2,
            control_step_seconds=1.0,
            episode_limit=episode_limit,
            render_mode=None,
        )
        self._points = np.zeros((num_envs, 2))
        self._targets = np.zeros((num_envs, 2))

    def _begin(self, row: int, generator: np.random.Generator) -> None:
        self._points[row] = generator.uniform(-1, 1, 2)
        self._targets[row] = generator.uniform(-1, 1, 2)

    def _advance(self, actions: Any, active: Any) -> Any:
        assert (abs(actions) <= 1).all()
        self._points = np.where(active[:, None], self._points + STEP * actions, self._points)
        reached = np.linalg.norm(self._points - self._targets, axis=1) < 0.05
        self._success |= reached & active
        self._terminated |= reached & active
        return np.where(reached & active, 1.0, 0.0)

    def _observe(self) -> Any:
        return self._points.astype(np.float32)

    def _goals(self) -> Any:
        return self._targets.astype(np.float32)

    def _quantities(self) -> Any:
        return {"position": self._points.astype(np.float32)}


class Seeing(Perception):
    """s = gain * x, with gain 1; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim = 2
        self.gain = torch.nn.Parameter(torch.ones(2))
        self.calls: list[int] = []

    def forward(self, observation: Any) -> Tensor:
        x: Tensor = observation["point"] if isinstance(observation, dict) else observation
        self.calls.append(len(x))
        return self.gain * x

    def standardise_by(self, statistics: Any) -> None:
        raise NotImplementedError


class Pushing(Predictor):
    """s' = s + push * a, with push = STEP."""

    def __init__(self) -> None:
        super().__init__()
        self.action_dim = 2
        self.push = torch.nn.Parameter(torch.tensor(STEP))

    def forward(
        self, state: Tensor, action: Tensor, latent: Any = None, context: Any = None
    ) -> Any:
        return state + self.push * action


@dataclass(frozen=True)
class Repeating(Planner):
    """Writes down what it is given; its plan is a ramp whose level is the number of the call."""

    proposals: list[Tensor | None] = field(default_factory=list)

    def plan(
        self,
        problem: Problem,
        *,
        proposals: Tensor | None = None,
        generator: torch.Generator,
        deadline: Any = None,
    ) -> Plan:
        self.proposals.append(proposals)
        ramp = torch.arange(problem.horizon) / 100 + len(self.proposals) / 10
        actions = ramp[None, :, None].expand(problem.batch, -1, 2).clone()
        energies, states = evaluate(problem, actions[:, None])
        return Plan(
            actions=actions,
            energy=energies[:, 0],
            states=states[:, 0],  # type: ignore[index]
            status=(),
            trace=energies.T,
            model_steps=0,
            seconds=0.0,
        )


def exact() -> JEPA:
    return JEPA(Seeing(), Pushing())


def agent_of(
    planner: Planner | None = None,
    *,
    cost: Cost | None = None,
    mode: Any = 2,
    policy: Policy | None = None,
    task: Task = REACH,
    readouts: Readouts | None = None,
    critic: Critic | None = None,
) -> Agent:
    cost = cost or Cost(horizon=6)
    planner = planner or Gradient(starts=4, iterations=12)
    configurator = Configurator(cost, task, 1.0, mode)
    return Agent(exact(), configurator, planner, readouts, critic, policy)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 2)).astype(np.float32)


def policy_of(seed: int = 0, **options: Any) -> Policy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Policy(2, 2, **{"hidden": 32} | options)


def readouts_of(seed: int = 0) -> Readouts:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Readouts(2, {"position": 2, "velocity": 1}, hidden=8)


def critic_of(terms: int, discount: float, seed: int = 0) -> Critic:
    """A critic as it comes, whose slow copy is as good as none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Critic(2, terms, discount, hidden=8)


def begin(agent: Agent, goals: np.ndarray, seed: int = 0) -> AgentState:
    return agent.start(len(goals), goal=goals, generator=seeded(seed))


def setting_of(task: Task, cost: Cost, goal: Tensor | None, batch: int = 3) -> Setting:
    return Configurator(cost, task).configure(goal, batch, CPU)


def seen(agent: Agent) -> list[int]:
    perception = agent.model.perception
    assert isinstance(perception, Seeing)
    return perception.calls


# --- the energy


@pytest.mark.parametrize("effort", [0.0, 0.5])
@pytest.mark.parametrize("reduction", ["sum", "softmin", "last"])
@pytest.mark.parametrize("gamma", [1.0, 0.7])
def test_the_energy_is_the_loop_written_by_hand(
    reduction: Any, effort: float, gamma: float
) -> None:
    torch.manual_seed(0)
    model = JEPA(Seeing(), Pushing()).double()
    task = Task({"effort": TaskTerm(Effort(), weight=effort)}, goal=True)
    cost = Cost(reduction=reduction, softmin_temperature=0.3, horizon=5, discount=gamma)
    state, goal = torch.randn(3, 2).double(), torch.randn(3, 2).double()
    actions = (2 * torch.rand(3, 4, 5, 2) - 1).double()
    model.requires_grad_(False)
    problem = problem_of(model, task.bank, setting_of(task, cost, goal), state)
    energies, _ = evaluate(problem, actions)
    for b in range(3):
        for s in range(4):
            at, distances, spent = state[b : b + 1], [], 0.0
            for t in range(5):
                action = actions[b, s, t][None]
                at = model.predict(at, action)
                distances.append(float((at - goal[b]).square().mean()))
                spent += gamma**t * effort * float(action.square().mean())
            reduced = {
                "sum": sum(gamma**t * distance for t, distance in enumerate(distances)),
                "last": distances[-1],
                "softmin": -0.3 * np.log(np.mean(np.exp(-np.array(distances) / 0.3))),
            }[reduction]
            assert float(energies[b, s]) == pytest.approx(reduced + spent, abs=1e-9)


@pytest.mark.parametrize("goal", [False, True])
@pytest.mark.parametrize("weight", [0.0, 1.0, 0.5])
def test_the_energy_with_readouts_and_a_critic_written_by_hand(goal: bool, weight: float) -> None:
    """sum_t gamma^t u.IC(s_{t+1}, a_t) + gamma^H v.TC(s_H), and the distance where there is a goal.

    A critic of the same gamma continues the sum: gamma^H TC(s_H) stands for all terms from H on.
    """
    torch.manual_seed(0)
    task, gamma = replace(CALM, goal=goal), 0.8
    model, readouts = exact().double(), readouts_of().double()
    critic = critic_of(4, gamma).double()
    cost = Cost(horizon=5, discount=gamma, critic=weight)
    state, to = torch.randn(3, 2).double(), torch.randn(3, 2).double()
    actions = (2 * torch.rand(3, 4, 5, 2) - 1).double()
    setting = setting_of(task, cost, to if goal else None)
    problem = problem_of(model, task.bank, setting, state, readouts=readouts, critic=critic)
    with torch.no_grad():
        energies, _ = evaluate(problem, actions)
        for b in range(3):
            for s in range(4):
                at, energy = state[b], 0.0
                for t in range(5):
                    action = actions[b, s, t]
                    at = at + STEP * action
                    read = readouts(at)
                    speed = float(read["velocity"][0])
                    lift = float(read["position"][1]) - 0.4
                    away = (at - 0.2).square()
                    ic = (
                        1.5 * speed**2 / (speed**2 + 0.25)
                        + 0.75 * lift**2 / (lift**2 + 1)
                        + 0.25 * float((away / (away + 1)).mean())
                        + 0.5 * float(action.square().mean())
                    )
                    energy += gamma**t * ic
                    energy += gamma**t * float((at - to[b]).square().mean()) * goal
                average = torch.sigmoid(critic.layers(at))
                tc = average / (1 - gamma)
                weighed = weight * sum(
                    u * float(c) for u, c in zip((1.5, 0.75, 0.25, 0.5), tc, strict=True)
                )
                energy += gamma**5 * weighed
                assert float(energies[b, s]) == pytest.approx(energy, abs=1e-9)


def test_the_energy_is_linear_in_the_weights() -> None:
    """A new u, and a new v, re-weigh what is there: nothing is trained for them."""
    torch.manual_seed(0)
    model, readouts, critic = exact(), readouts_of(), critic_of(4, 0.8)
    for module in (model, readouts, critic):
        module.double().requires_grad_(False)
    base = setting_of(CALM, Cost(horizon=5), None)
    state, actions = torch.randn(3, 2).double(), torch.rand(3, 4, 5, 2).double()
    zero = torch.zeros(3, 4)

    def energy(u: Tensor, v: Tensor) -> Tensor:
        setting = replace(base, u=u, v=v)
        problem = problem_of(model, CALM.bank, setting, state, readouts=readouts, critic=critic)
        return evaluate(problem, actions)[0]

    one, two = torch.rand(3, 4), torch.rand(3, 4)
    for terms in (lambda u: energy(u, zero), lambda v: energy(zero, v), lambda u: energy(u, 2 * u)):
        assert torch.allclose(terms(one + 3 * two), terms(one) + 3 * terms(two), atol=1e-5)
        assert not torch.allclose(terms(one), terms(two))
        own = torch.stack([one[0], two[1], one[2]])  # each problem has its own weights
        mixed = torch.stack([terms(one)[0], terms(two)[1], terms(one)[2]])
        assert torch.equal(terms(own), mixed)
    assert torch.allclose(energy(one, two), energy(one, zero) + energy(zero, two), atol=1e-5)


def test_what_has_no_weight_is_not_computed() -> None:
    """No readout and no critic is asked for a term whose weight is zero in every problem."""
    state, goal = torch.zeros(3, 2), torch.ones(3, 2)
    idle = replace(SAFE, terms={"effort": TaskTerm(Effort(), weight=0.0)})
    for task, critic, stage, terminal in (
        (idle, critic_of(1, 0.8), False, False),
        (SAFE, None, True, False),
        (SAFE, critic_of(2, 0.8), True, True),
    ):
        setting = setting_of(task, Cost(), goal)
        problem = problem_of(exact(), task.bank, setting, state, critic=critic)
        assert (problem.stage_cost is not None) == stage
        assert (problem.terminal_cost is not None) == terminal
    setting = setting_of(SAFE, Cost(critic=0.0), goal)
    problem = problem_of(exact(), SAFE.bank, setting, state, critic=critic_of(2, 0.8))
    assert problem.terminal_cost is None


def test_the_gradient_of_the_energy_reaches_actions_predictor_and_encoder() -> None:
    model = exact()
    observation, goal = torch.as_tensor(points(3)), torch.as_tensor(points(3, 1))
    actions = torch.full((3, 1, 6, 2), 0.3, requires_grad=True)
    setting = setting_of(REACH, Cost(horizon=6), model.encode(goal))
    problem = problem_of(model, REACH.bank, setting, model.encode(observation))
    evaluate(problem, actions)[0].sum().backward()
    assert actions.grad is not None
    assert bool((actions.grad != 0).all())
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert bool((parameter.grad != 0).all())


def test_the_gradient_of_the_energy_reaches_readouts_and_critic() -> None:
    model, readouts, critic = exact(), readouts_of(), critic_of(4, 0.8)
    actions = torch.full((3, 1, 6, 2), 0.3, requires_grad=True)
    state = model.encode(torch.as_tensor(points(3)))
    problem = problem_of(
        model,
        CALM.bank,
        setting_of(CALM, Cost(horizon=6), None),
        state,
        readouts=readouts,
        critic=critic,
    )
    evaluate(problem, actions)[0].sum().backward()
    assert actions.grad is not None
    assert bool((actions.grad != 0).all())
    for module in (model, readouts, critic.layers):
        for parameter in module.parameters():
            assert parameter.grad is not None
            assert bool(parameter.grad.any())
    assert all(parameter.grad is None for parameter in critic.slow.parameters())


def test_the_gradient_of_the_energy_agrees_with_finite_differences() -> None:
    model, readouts, critic = exact(), readouts_of(1), critic_of(4, 0.8, 2)
    for module in (model, readouts, critic):
        module.double()
    task = replace(CALM, goal=True)
    state, goal = (torch.as_tensor(points(2, seed)).double() for seed in (0, 1))
    setting = setting_of(task, Cost(horizon=4), goal, 2)
    problem = problem_of(model, task.bank, setting, state, readouts=readouts, critic=critic)
    actions = torch.rand(2, 3, 4, 2, generator=seeded()).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: evaluate(problem, x)[0], actions)


def test_the_gradient_of_the_energy_reaches_the_policy() -> None:
    model, policy = exact(), policy_of()
    state, goal = torch.as_tensor(points(3)), torch.as_tensor(points(3, 1))
    setting = setting_of(REACH, Cost(horizon=4), goal)
    actions, states = policy.rollout(model, state, setting.context, 4)
    assert states.shape == actions.shape == (3, 4, 2)
    assert torch.equal(states[:, 0], state)
    assert torch.equal(states[:, 1], model.predict(state, actions[:, 0]))
    problem = problem_of(model, REACH.bank, setting, state)
    evaluate(problem, actions[:, None])[0].sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in policy.parameters())


def test_a_policy_without_a_goal_reads_none() -> None:
    policy = policy_of(goal=False)
    state = torch.as_tensor(points(3))
    action = policy(state, {})
    assert action.shape == (3, 2)
    assert torch.equal(policy(state, {"goal": torch.ones(3, 2)}), action)
    wanting = policy_of()
    near, far = (wanting(state, {"goal": value * torch.ones(3, 2)}) for value in (0.0, 9.0))
    assert not torch.allclose(near, far)


def test_a_safety_term_is_minimised_though_effort_is_zero() -> None:
    """The goal lies beyond the limit of the safety term, which no task can switch off."""
    goal, start = torch.tensor([[3.0, 0.0]]), torch.zeros(1, 2)
    actions = torch.ones(1, 1, 12, 2)
    model, energy = exact().requires_grad_(False), []
    for task in (REACH, SAFE):
        setting = setting_of(task, Cost(horizon=12, discount=1.0), goal, 1)
        energy.append(float(evaluate(problem_of(model, task.bank, setting, start), actions)[0]))
    beyond = sum(2 * max(0.0, STEP * step - 1) / 4 for step in range(1, 13))
    assert energy[1] - energy[0] == pytest.approx(0.5 * beyond)
    with pytest.raises(ValueError, match=r"'danger' is 0.0: choose it in \[0.5, 2.0\]"):
        replace(SAFE, terms=SAFE.terms | {"danger": replace(SAFE.terms["danger"], weight=0.0)})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"horizon": 0}, "cost.horizon is 0"),
        ({"softmin_temperature": 0.0}, "cost.softmin_temperature is 0.0"),
        ({"softmin_temperature": float("nan")}, "cost.softmin_temperature is nan"),
        ({"discount": 0.0}, r"cost.discount is 0.0: choose it in \(0, 1\]"),
        ({"discount": 1.1}, "cost.discount is 1.1"),
        ({"discount": float("nan")}, "cost.discount is nan"),
        ({"critic": -0.1}, "cost.critic is -0.1: choose 0 or more, finite"),
        ({"critic": float("inf")}, "cost.critic is inf"),
        ({"critic": float("nan")}, "cost.critic is nan"),
    ],
)
def test_wrong_costs_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cost(**wrong)


@pytest.mark.parametrize("replan_every", [0, 7])
def test_a_plan_is_not_carried_out_beyond_its_end(replan_every: int) -> None:
    with pytest.raises(ValueError, match=f"cost.replan_every is {replan_every}"):
        Cost(horizon=6, replan_every=replan_every)
    assert Cost(horizon=6, replan_every=6).replan_every == 6


def test_the_setting_has_one_row_per_problem() -> None:
    task = replace(SAFE, terms=SAFE.terms | {"effort": TaskTerm(Effort(), weight=0.25)})
    setting = setting_of(task, Cost(critic=2.0), torch.arange(6.0).view(3, 2))
    assert setting.u.tolist() == [[0.25, 0.5]] * 3
    assert setting.v.tolist() == [[0.5, 1.0]] * 3
    assert set(setting.context) == {"u", "v", "goal"}
    chosen = setting.select(torch.tensor([2, 0]))
    assert chosen.u.shape == chosen.v.shape == (2, 2)
    assert chosen.goal is not None
    assert chosen.goal.tolist() == [[4.0, 5.0], [0.0, 1.0]]
    free = setting_of(CALM, Cost(), None)
    assert free.goal is None
    assert set(free.context) == {"u", "v"}
    assert free.select(torch.tensor([1])).goal is None


def test_the_discount_is_per_second() -> None:
    """However often decisions are made, a second discounts as much."""
    for seconds in (0.02, 0.5, 3.0):
        configurator = Configurator(Cost(discount=0.6), REACH, seconds)
        setting = configurator.configure(torch.zeros(1, 2), 1, CPU)
        assert setting.discount == pytest.approx(0.6**seconds)
        assert setting.discount ** (1 / seconds) == pytest.approx(0.6)
        problem = problem_of(exact(), REACH.bank, setting, torch.zeros(1, 2))
        assert problem.discount == setting.discount
    assert Configurator(Cost(discount=1.0), REACH, 0.02).discount == 1.0


def test_a_goal_is_given_where_the_task_has_one_and_only_there() -> None:
    with pytest.raises(ValueError, match=r"needs a goal .* choose another task"):
        setting_of(REACH, Cost(), None)
    with pytest.raises(ValueError, match="a goal was given, but the task has none"):
        setting_of(CALM, Cost(), torch.zeros(3, 2))


# --- the perception-action step


@pytest.mark.parametrize("mode", [1, 2])
def test_encode_once(mode: Any) -> None:
    """The goal at the start, and one observation per decision, whatever the mode or the cost."""
    task, readouts, critic = replace(CALM, goal=True), readouts_of(), critic_of(4, 0.8)
    agent = agent_of(
        Gradient(starts=2, iterations=3),
        mode=mode,
        policy=policy_of(),
        task=task,
        readouts=readouts,
        critic=critic,
    )
    carried = begin(agent, points(3, 1))
    assert seen(agent) == [3]  # the goals
    for step in range(1, 4):
        _, carried = agent.act(carried, points(3, step))
        assert seen(agent) == [3] * (1 + step)


@pytest.mark.parametrize("mode", [1, 2])
def test_the_state_is_passed_in_and_returned(mode: Any) -> None:
    agent = agent_of(Gradient(starts=2, iterations=2), mode=mode, policy=policy_of())
    first = begin(agent, points(3, 1))
    before = vars(first).copy()
    action, second = agent.act(first, points(3))
    assert vars(first) == before
    assert second is not first
    assert first.belief is first.previous_action is first.plan is None
    assert second.belief is not None
    assert second.belief.tolist() == points(3).tolist()
    assert second.previous_action is not None
    assert second.previous_action.tolist() == action.tolist()
    assert action.dtype == np.float32
    assert (second.plan is None) == (second.imagined is None) == (mode == 1)
    kept = None if second.plan is None else second.plan.clone()
    agent.act(second, points(3, 5))
    assert kept is None or torch.equal(kept, second.plan)  # type: ignore[arg-type]


def test_acting_with_a_subset_is_the_subset_of_acting() -> None:
    agent = agent_of(mode=1, policy=policy_of())
    carried = begin(agent, points(5, 1))
    _, carried = agent.act(carried, points(5, 2))
    index = np.array([4, 1])
    whole, after = agent.act(carried, points(5, 3))
    part, after_part = agent.act(carried.select(torch.as_tensor(index)), points(5, 3)[index])
    np.testing.assert_allclose(part, whole[index], rtol=0, atol=1e-6)
    assert after_part.belief is not None
    assert after.belief is not None
    assert torch.equal(after_part.belief, after.belief[index])


def test_select_keeps_the_rows_of_everything_carried() -> None:
    agent = agent_of(Gradient(starts=2, iterations=2), task=EFFORT)
    carried = begin(agent, points(5, 1))
    _, carried = agent.act(carried, points(5))
    index = torch.tensor([3, 0])
    kept = carried.select(index)
    tensors = {k: v for k, v in vars(carried).items() if isinstance(v, Tensor)}
    assert set(tensors) == {"belief", "previous_action", "plan", "imagined"}
    for name, value in tensors.items():
        assert torch.equal(getattr(kept, name), value[index]), name
    assert torch.equal(kept.setting.goal, carried.setting.goal[index])
    assert len(kept.setting.u) == len(kept.setting.v) == 2
    assert (kept.until_replan, kept.generator) == (carried.until_replan, carried.generator)


def test_the_rest_of_the_last_plan_is_proposed() -> None:
    planner = Repeating()
    agent = agent_of(planner)
    carried = begin(agent, points(2, 1))
    sent = []
    for step in range(3):
        action, carried = agent.act(carried, points(2, step))
        sent.append(float(action[0, 0]))
    assert sent == pytest.approx([0.1, 0.2, 0.3])
    assert planner.proposals[0] is None
    for number, proposal in enumerate(planner.proposals[1:], start=1):
        assert proposal is not None
        assert proposal.shape == (2, 1, 6, 2)
        shifted = [number / 10 + t / 100 for t in (1, 2, 3, 4, 5, 5)]
        assert proposal[1, 0, :, 1].tolist() == pytest.approx(shifted)


def test_replan_every() -> None:
    planner = Repeating()
    agent = agent_of(planner, cost=Cost(horizon=6, replan_every=3))
    carried = begin(agent, points(2, 1))
    sent = []
    for step in range(7):
        action, carried = agent.act(carried, points(2, step))
        sent.append(float(action[0, 0]))
    assert sent == pytest.approx([0.1, 0.11, 0.12, 0.2, 0.21, 0.22, 0.3])
    assert len(planner.proposals) == 3
    assert planner.proposals[1] is not None
    ahead = [0.13, 0.14, 0.15, 0.15, 0.15, 0.15]
    assert planner.proposals[1][0, 0, :, 0].tolist() == pytest.approx(ahead)


def test_a_plan_ends_by_the_agents_clock() -> None:
    """The clock goes on by a second whenever it is asked: at first, then after each iteration."""
    told = agent_of(Gradient(starts=4, iterations=12), cost=Cost(horizon=6, seconds=2.5))
    clock = count()
    agent = replace(told, clock=lambda: float(next(clock)))
    carried = begin(agent, points(2, 1))
    _, carried = agent.act(carried, points(2))
    plan = agent.think(carried)
    assert plan.status == (Status.DEADLINE,) * 2
    assert len(plan.trace) == 3
    free = replace(agent, configurator=replace(told.configurator, cost=Cost(horizon=6)))
    carried = begin(free, points(2, 1))
    _, carried = free.act(carried, points(2))
    assert free.think(carried).status == (Status.OK,) * 2


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_a_plan_takes_some_time(seconds: float) -> None:
    with pytest.raises(ValueError, match=f"cost.seconds is {seconds}: choose it above 0, finite"):
        Cost(seconds=seconds)


def test_plans_are_made_for_the_goal_and_the_belief() -> None:
    agent = agent_of(Repeating())
    _, carried = agent.act(begin(agent, points(2, 1)), points(2))
    assert carried.imagined is not None
    first = torch.as_tensor(points(2)) + STEP * 0.1
    assert torch.allclose(carried.imagined[:, 0], first)
    assert carried.setting.goal.tolist() == points(2, 1).tolist()


def test_an_agent_without_a_goal_acts() -> None:
    """It goes where its readouts say that the cost is low, in either mode."""
    for mode, policy in ((2, None), (1, policy_of(goal=False))):
        agent = agent_of(mode=mode, policy=policy, task=CALM, readouts=readouts_of())  # type: ignore[arg-type]
        carried = agent.start(4, generator=seeded())
        assert seen(agent) == []
        action, carried = agent.act(carried, points(4))
        assert action.shape == (4, 2)
        assert carried.setting.goal is None
        kept = carried.select(torch.tensor([1, 3]))
        assert agent.act(kept, points(2))[0].shape == (2, 2)


def test_an_agent_plans_towards_what_its_readouts_call_cheap() -> None:
    """Readouts that tell the state as it is: the plan leads to the posture, as far as it can."""
    readouts = Readouts(2, {"position": 2})
    readouts.layers = torch.nn.Sequential(torch.nn.Identity())
    task = Task({"there": TaskTerm(Posture("position", (0.5, -0.5), scale=0.5))})
    agent = agent_of(
        Gradient(starts=8, iterations=60),
        cost=Cost(horizon=8, discount=1.0),
        task=task,
        readouts=readouts,
    )
    _, carried = agent.act(agent.start(3, generator=seeded()), points(3))
    assert carried.imagined is not None
    away = (carried.imagined[:, -1] - torch.tensor([0.5, -0.5])).abs()
    assert float(away.max()) < 0.05


def test_a_critic_sees_beyond_the_horizon() -> None:
    """One step of planning: the plan is where the critic's slope balances that of the effort.

    Effort is |a|^2 / 2, gamma TC 0.8 * 10 sigmoid(w s'): that is a = -8 sigmoid'(w s') w / 4.
    """
    task = Task({"effort": TaskTerm(Effort(), weight=1.0)})
    critic, w = critic_of(1, 0.9), torch.tensor([-1.0, 2.0])
    critic.layers = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        critic.layers[0].weight.copy_(w[None])  # type: ignore[union-attr, operator]
    for weight in (1.0, 0.0):
        agent = agent_of(
            Gradient(starts=8, iterations=100, learning_rate=0.02),
            cost=Cost(horizon=1, critic=weight),
            task=task,
            critic=critic,
        )
        action, _ = agent.act(agent.start(3, generator=seeded()), points(3))
        after = torch.as_tensor(points(3) + STEP * action)
        value = torch.sigmoid(after @ w)[:, None]
        balance = -weight * 8 * value * (1 - value) * w * STEP
        np.testing.assert_allclose(action, balance, atol=0.01)
        assert (abs(action).max() > 0.3) == bool(weight)


def test_observations_may_be_mappings() -> None:
    agent = agent_of(mode=1, policy=policy_of())
    plain, _ = agent.act(begin(agent, points(3, 1)), points(3))
    goals = {"point": points(3, 1), "else": np.zeros((3, 7), np.uint8)}
    carried = agent.start(3, goal=goals, generator=seeded())
    named, _ = agent.act(carried, {"point": points(3), "else": np.ones((3, 7), np.uint8)})
    np.testing.assert_array_equal(named, plain)


def test_quantities_that_no_readout_tells_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the task reads velocity, .* the readouts tell position"):
        agent_of(task=CALM, readouts=Readouts(2, {"position": 2}))
    with pytest.raises(ValueError, match=r"reads velocity, position, .* tell nothing"):
        agent_of(task=CALM)
    assert agent_of(task=SAFE).bank == SAFE.bank  # it reads states, which need no readout


def test_thinking_needs_an_observation() -> None:
    agent = agent_of()
    with pytest.raises(ValueError, match="nothing was observed yet"):
        agent.think(begin(agent, points(1)))


def test_mode_1_without_a_policy_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="forethought distill"):
        agent_of(mode=1)


def test_mode_1_does_not_plan() -> None:
    planner, policy = Repeating(), policy_of()
    agent = agent_of(planner, mode=1, policy=policy)
    action, _ = agent.act(begin(agent, points(4, 1)), points(4))
    assert planner.proposals == []
    here, goal = torch.as_tensor(points(4)), torch.as_tensor(points(4, 1))
    assert torch.allclose(torch.as_tensor(action), policy(here, {"goal": goal}))


@pytest.mark.parametrize("mode", [1, 2])
def test_actions_stay_in_their_bounds(mode: Any) -> None:
    policy = policy_of()
    with torch.no_grad():
        policy.layers[-1].weight.mul_(1e4)  # type: ignore[union-attr, operator]
    agent = agent_of(mode=mode, policy=policy)
    action, _ = agent.act(begin(agent, 100 * points(9, 1)), points(9))
    assert abs(action).max() <= 1
    assert abs(action).max() > 0.9


@pytest.mark.parametrize("planner", [Gradient(starts=3, iterations=2), CEM(), MPPI()])
def test_twins_do_the_same(planner: Planner) -> None:
    agent = agent_of(planner)
    paths = []
    for seed in (0, 0, 1):
        carried, path = begin(agent, points(2, 1), seed), []
        for step in range(3):
            action, carried = agent.act(carried, points(2, step))
            path.append(action)
        paths.append(np.stack(path))
    np.testing.assert_array_equal(paths[0], paths[1])
    assert (paths[0] != paths[2]).any()


def test_acting_leaves_the_modules_as_they_are() -> None:
    agent = agent_of(
        task=replace(CALM, goal=True), readouts=readouts_of(), critic=critic_of(4, 0.8)
    )
    modules = torch.nn.ModuleList([agent.model, agent.readouts, agent.critic])  # type: ignore[list-item]
    before = {name: value.clone() for name, value in modules.state_dict().items()}
    agent.act(begin(agent, points(2, 1)), points(2))
    for name, value in modules.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in modules.parameters())


# --- an exact model solves the task


def success(agent: Agent, episodes: int = 24, num_envs: int = 8) -> float:
    outcomes = run_episodes(
        Plane(num_envs), AgentController(agent, seeded()), held_out_seeds(episodes)
    )
    return float(np.mean([bool(outcome.success) for outcome in outcomes]))


@pytest.mark.parametrize("reduction", ["sum", "softmin"])
@pytest.mark.parametrize(
    "planner",
    [Gradient(starts=4, iterations=20), CEM(), MPPI(candidates=128, iterations=4)],
    ids=lambda planner: type(planner).__name__,
)
def test_an_agent_with_an_exact_model_reaches_its_goals(planner: Planner, reduction: Any) -> None:
    cost = Cost(horizon=5, reduction=reduction, softmin_temperature=0.01)
    assert success(agent_of(planner, cost=cost)) == 1.0


def test_a_broken_problem_does_not_leak_into_those_beside_it() -> None:
    """Not-a-number in one environment: it gets the safe action, the others their own plans."""
    task = replace(CALM, goal=True)
    for planner in (Gradient(starts=3, iterations=3), CEM(), MPPI()):
        agent = agent_of(planner, task=task, readouts=readouts_of(), critic=critic_of(4, 0.8))
        whole, _ = agent.act(begin(agent, points(3, 1)), points(3))
        broken = points(3)
        broken[1] = np.nan
        action, carried = agent.act(begin(agent, points(3, 1)), broken)
        np.testing.assert_array_equal(action[[0, 2]], whole[[0, 2]])
        assert action[1].tolist() == [0.0, 0.0]
        again, _ = agent.act(carried, points(3))
        assert np.isfinite(again).all()


def test_an_agent_with_a_wrong_model_does_not() -> None:
    agent = agent_of()
    with torch.no_grad():
        agent.model.predictor.push.neg_()  # type: ignore[union-attr, operator]
    assert success(agent) < 0.2


def test_an_agent_needs_a_goal() -> None:
    env = envs.make("MountainCarContinuous-v0", 1)
    assert isinstance(env, gymnasium.vector.VectorEnv)
    with pytest.raises(ValueError, match=r"info\['goal'\]"):
        run_episodes(env, AgentController(agent_of(), seeded()), [0])


def test_the_agent_is_frozen() -> None:
    agent = agent_of()
    carried: AgentState = begin(agent, points(1))
    for record, name in (
        (agent, "bank"),
        (agent, "critic"),
        (carried, "plan"),
        (carried.setting, "u"),
    ):
        with pytest.raises(AttributeError):
            setattr(record, name, None)
    assert replace(agent, planner=CEM()).planner == CEM()


@pytest.mark.parametrize(("starts", "given"), [(1, 1), (2, 2), (5, 2)])
def test_the_policys_roll_out_is_among_the_starts_where_there_is_room(
    starts: int, given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the rest of the last plan, then what the policy would do."""
    seen: list[Tensor | None] = []
    plan = Gradient.plan

    def watched(self: Gradient, problem: Any, *, proposals: Tensor | None, **more: Any) -> Any:
        seen.append(proposals)
        return plan(self, problem, proposals=proposals, **more)

    monkeypatch.setattr(Gradient, "plan", watched)
    agent = agent_of(Gradient(starts=starts, iterations=1), cost=Cost(horizon=3))
    agent = replace(agent, policy=Policy(agent.model.latent_dim, agent.model.action_dim))
    env = np.zeros((2, 2), np.float32)
    carried = agent.start(2, goal=env + 1, generator=torch.Generator().manual_seed(0))
    _, carried = agent.act(carried, env)
    _, after = agent.act(carried, env)
    assert seen[0] is not None
    assert seen[0].shape[1] == 1  # no plan yet, so the policy's alone
    assert seen[1] is not None
    assert seen[1].shape[1] == given
    assert carried.plan is not None
    assert torch.equal(seen[1][:, 0], carried.plan)
    if given == 2:
        assert agent.policy is not None
        assert after.belief is not None
        rolled, _ = agent.policy.rollout(agent.model, after.belief, after.setting.context, 3)
        assert torch.equal(seen[1][:, 1], rolled.detach())
