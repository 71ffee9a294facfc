"""The agent with an exact world model: what it minimises, what it carries along, what it reaches.

The world here is a point in a plane that actions push: s' = s + a / 4, seen as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from test_cost import SAFE
from torch import Tensor

from forethought import envs
from forethought.agent import (
    Agent,
    AgentController,
    AgentState,
    Configurator,
    Cost,
    IntrinsicCost,
    Policy,
    Setting,
    held_out_seeds,
    problem_of,
    run_episodes,
)
from forethought.envs.vector import EpisodicVectorEnv
from forethought.planners import CEM, MPPI, Gradient, Plan, Planner, Problem, evaluate
from forethought.worldmodel import JEPA, Perception, Predictor, Standardise

STEP = 0.25


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
        self.observation_shape, self.latent_dim = (2,), 2
        self.standardise = Standardise(2, trailing=0)
        self.gain = torch.nn.Parameter(torch.ones(2))
        self.calls: list[int] = []

    def encode(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return self.gain * x


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
        deadline: float | None = None,
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
    replan_every: int = 1,
    policy: Policy | None = None,
    bank: IntrinsicCost | None = None,
) -> Agent:
    bank = bank or IntrinsicCost()
    cost = cost or Cost(horizon=6)
    planner = planner or Gradient(starts=4, iterations=12)
    return Agent(exact(), bank, Configurator(cost, bank, mode, replan_every), planner, policy)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 2)).astype(np.float32)


def policy_of(seed: int = 0) -> Policy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Policy(2, 2, hidden=32)


def seen(agent: Agent) -> list[int]:
    perception = agent.model.perception
    assert isinstance(perception, Seeing)
    return perception.calls


# --- the energy


@pytest.mark.parametrize("effort", [0.0, 0.5])
@pytest.mark.parametrize("reduction", ["sum", "softmin", "last"])
def test_the_energy_is_the_loop_written_by_hand(reduction: Any, effort: float) -> None:
    torch.manual_seed(0)
    model = JEPA(Seeing(), Pushing()).double()
    cost = Cost(reduction=reduction, softmin_temperature=0.3, effort=effort, horizon=5)
    state, goal = torch.randn(3, 2).double(), torch.randn(3, 2).double()
    setting = Configurator(cost, IntrinsicCost()).configure(goal)
    actions = (2 * torch.rand(3, 4, 5, 2) - 1).double()
    model.requires_grad_(False)
    energies, _ = evaluate(problem_of(model, IntrinsicCost(), setting, state), actions)
    for b in range(3):
        for s in range(4):
            at, distances, spent = state[b : b + 1], [], 0.0
            for t in range(5):
                action = actions[b, s, t][None]
                at = model.predict(at, action)
                distances.append(float((at - goal[b]).square().mean()))
                spent += effort * float(action.square().mean())
            reduced = {
                "sum": sum(distances),
                "last": distances[-1],
                "softmin": -0.3 * np.log(np.mean(np.exp(-np.array(distances) / 0.3))),
            }[reduction]
            assert float(energies[b, s]) == pytest.approx(reduced + spent, abs=1e-9)


def test_the_gradient_of_the_energy_reaches_actions_predictor_and_encoder() -> None:
    model = exact()
    observation, goal = torch.as_tensor(points(3)), torch.as_tensor(points(3, 1))
    actions = torch.full((3, 1, 6, 2), 0.3, requires_grad=True)
    setting = Configurator(Cost(horizon=6), IntrinsicCost()).configure(model.encode(goal))
    problem = problem_of(model, IntrinsicCost(), setting, model.encode(observation))
    evaluate(problem, actions)[0].sum().backward()
    assert actions.grad is not None
    assert bool((actions.grad != 0).all())
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert bool((parameter.grad != 0).all())


def test_the_gradient_of_the_energy_reaches_the_policy() -> None:
    model, policy = exact(), policy_of()
    state, goal = torch.as_tensor(points(3)), torch.as_tensor(points(3, 1))
    setting = Configurator(Cost(horizon=4), IntrinsicCost()).configure(goal)
    actions, states = policy.rollout(model, state, setting.context, 4)
    assert states.shape == actions.shape == (3, 4, 2)
    assert torch.equal(states[:, 0], state)
    assert torch.equal(states[:, 1], model.predict(state, actions[:, 0]))
    problem = problem_of(model, IntrinsicCost(), setting, state)
    evaluate(problem, actions[:, None])[0].sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in policy.parameters())


def test_a_safety_term_is_minimised_though_effort_is_zero() -> None:
    """The goal lies beyond the limit of the safety term, which no task can switch off."""
    goal, start = torch.tensor([[3.0, 0.0]]), torch.zeros(1, 2)
    actions = torch.ones(1, 1, 12, 2)
    model, energy = exact().requires_grad_(False), {}
    for bank in (IntrinsicCost(), SAFE):
        setting = Configurator(Cost(horizon=12), bank).configure(goal)
        energy[bank] = float(evaluate(problem_of(model, bank, setting, start), actions)[0])
    beyond = sum(2 * max(0.0, STEP * step - 1) for step in range(1, 13))
    assert energy[SAFE] - energy[IntrinsicCost()] == pytest.approx(0.5 * beyond)


def test_a_task_cannot_choose_weights_outside_of_the_bank() -> None:
    with pytest.raises(ValueError, match=r"'effort' is 11.0: choose it in \[0.0, 10.0\]"):
        Configurator(Cost(effort=11.0), IntrinsicCost())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"horizon": 0}, "cost.horizon is 0"),
        ({"softmin_temperature": 0.0}, "cost.softmin_temperature is 0.0"),
        ({"softmin_temperature": float("nan")}, "cost.softmin_temperature is nan"),
    ],
)
def test_wrong_costs_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cost(**wrong)


@pytest.mark.parametrize("replan_every", [0, 7])
def test_a_plan_is_not_carried_out_beyond_its_end(replan_every: int) -> None:
    with pytest.raises(ValueError, match=f"replan_every is {replan_every}"):
        agent_of(replan_every=replan_every)


def test_the_setting_has_one_row_per_goal() -> None:
    setting = Configurator(Cost(effort=0.5), SAFE).configure(torch.ones(3, 2))
    assert isinstance(setting, Setting)
    assert setting.u.tolist() == [[0.5, 0.5]] * 3
    assert setting.select(torch.tensor([2])).u.shape == (1, 2)


# --- the perception-action step


def test_encode_once() -> None:
    agent = agent_of(Gradient(starts=2, iterations=3))
    carried = agent.start(points(3, 1), generator=seeded())
    assert seen(agent) == [3]  # the goals
    for step in range(1, 4):
        _, carried = agent.act(carried, points(3, step))
        assert seen(agent) == [3] * (1 + step)


@pytest.mark.parametrize("mode", [1, 2])
def test_the_state_is_passed_in_and_returned(mode: Any) -> None:
    agent = agent_of(Gradient(starts=2, iterations=2), mode=mode, policy=policy_of())
    first = agent.start(points(3, 1), generator=seeded())
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
    carried = agent.start(points(5, 1), generator=seeded())
    _, carried = agent.act(carried, points(5, 2))
    index = np.array([4, 1])
    whole, after = agent.act(carried, points(5, 3))
    part, after_part = agent.act(carried.select(torch.as_tensor(index)), points(5, 3)[index])
    np.testing.assert_allclose(part, whole[index], rtol=0, atol=1e-6)
    assert after_part.belief is not None
    assert after.belief is not None
    assert torch.equal(after_part.belief, after.belief[index])


def test_select_keeps_the_rows_of_everything_carried() -> None:
    agent = agent_of(Gradient(starts=2, iterations=2), cost=Cost(effort=0.5, horizon=6))
    carried = agent.start(points(5, 1), generator=seeded())
    _, carried = agent.act(carried, points(5))
    index = torch.tensor([3, 0])
    kept = carried.select(index)
    tensors = {k: v for k, v in vars(carried).items() if isinstance(v, Tensor)}
    assert set(tensors) == {"belief", "previous_action", "plan", "imagined"}
    for name, value in tensors.items():
        assert torch.equal(getattr(kept, name), value[index]), name
    assert torch.equal(kept.setting.goal, carried.setting.goal[index])
    assert len(kept.setting.u) == 2
    assert (kept.until_replan, kept.generator) == (carried.until_replan, carried.generator)


def test_the_rest_of_the_last_plan_is_proposed() -> None:
    planner = Repeating()
    agent = agent_of(planner)
    carried = agent.start(points(2, 1), generator=seeded())
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
    agent = agent_of(planner, replan_every=3)
    carried = agent.start(points(2, 1), generator=seeded())
    sent = []
    for step in range(7):
        action, carried = agent.act(carried, points(2, step))
        sent.append(float(action[0, 0]))
    assert sent == pytest.approx([0.1, 0.11, 0.12, 0.2, 0.21, 0.22, 0.3])
    assert len(planner.proposals) == 3
    assert planner.proposals[1] is not None
    ahead = [0.13, 0.14, 0.15, 0.15, 0.15, 0.15]
    assert planner.proposals[1][0, 0, :, 0].tolist() == pytest.approx(ahead)


def test_plans_are_made_for_the_goal_and_the_belief() -> None:
    agent = agent_of(Repeating())
    _, carried = agent.act(agent.start(points(2, 1), generator=seeded()), points(2))
    assert carried.imagined is not None
    first = torch.as_tensor(points(2)) + STEP * 0.1
    assert torch.allclose(carried.imagined[:, 0], first)
    assert carried.setting.goal.tolist() == points(2, 1).tolist()


def test_thinking_needs_an_observation() -> None:
    agent = agent_of()
    with pytest.raises(ValueError, match="nothing was observed yet"):
        agent.think(agent.start(points(1), generator=seeded()))


def test_mode_1_without_a_policy_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="forethought distill"):
        agent_of(mode=1)


def test_mode_1_does_not_plan() -> None:
    planner, policy = Repeating(), policy_of()
    agent = agent_of(planner, mode=1, policy=policy)
    action, _ = agent.act(agent.start(points(4, 1), generator=seeded()), points(4))
    assert planner.proposals == []
    here, goal = torch.as_tensor(points(4)), torch.as_tensor(points(4, 1))
    assert torch.allclose(torch.as_tensor(action), policy(here, {"goal": goal}))


@pytest.mark.parametrize("mode", [1, 2])
def test_actions_stay_in_their_bounds(mode: Any) -> None:
    policy = policy_of()
    with torch.no_grad():
        policy.layers[-1].weight.mul_(1e4)  # type: ignore[union-attr, operator]
    agent = agent_of(mode=mode, policy=policy)
    action, _ = agent.act(agent.start(100 * points(9, 1), generator=seeded()), points(9))
    assert abs(action).max() <= 1
    assert abs(action).max() > 0.9


@pytest.mark.parametrize("planner", [Gradient(starts=3, iterations=2), CEM(), MPPI()])
def test_twins_do_the_same(planner: Planner) -> None:
    agent = agent_of(planner)
    paths = []
    for seed in (0, 0, 1):
        carried, path = agent.start(points(2, 1), generator=seeded(seed)), []
        for step in range(3):
            action, carried = agent.act(carried, points(2, step))
            path.append(action)
        paths.append(np.stack(path))
    np.testing.assert_array_equal(paths[0], paths[1])
    assert (paths[0] != paths[2]).any()


def test_acting_leaves_the_model_as_it_is() -> None:
    agent = agent_of()
    before = {name: value.clone() for name, value in agent.model.state_dict().items()}
    agent.act(agent.start(points(2, 1), generator=seeded()), points(2))
    for name, value in agent.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in agent.model.parameters())


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
    carried: AgentState = agent.start(points(1), generator=seeded())
    for record, name in ((agent, "bank"), (carried, "plan"), (carried.setting, "u")):
        with pytest.raises(AttributeError):
            setattr(record, name, None)
    assert replace(agent, planner=CEM()).planner == CEM()
