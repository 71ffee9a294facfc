"""The configurator: adjusted weights, aims with arguments, modulation, goals on the way."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_agent import (
    EFFORT,
    SAFE,
    STEP,
    Plane,
    Seeing,
    agent_of,
    begin,
    exact,
    points,
    seeded,
)
from torch import Tensor, nn

from forethought.agent import (
    REACH,
    Adjustment,
    Agent,
    AgentController,
    Aim,
    Configurator,
    Cost,
    Effort,
    KeepOut,
    Policy,
    Task,
    TaskTerm,
    problem_of,
    run_episodes,
)
from forethought.planners import Gradient, evaluate
from forethought.worldmodel import JEPA, Readouts, ResidualMLP
from forethought.worldmodel.modulation import FiLM

CPU = torch.device("cpu")
FLOAT = torch.float64


def configured(task: Task, adjust: Adjustment, cost: Cost | None = None) -> Configurator:
    return Configurator(cost or Cost(horizon=6, discount=1.0), task, adjust=adjust)


def holding() -> Task:
    """Hold a place, at a little effort; a second aim that counts only if it is asked for."""
    return Task(
        {"effort": TaskTerm(Effort(), weight=1e-3)},
        aims={"place": Aim("position", scale=0.5, weight=1.0), "height": Aim("position[1]")},
    )


def seeing() -> Readouts:
    """Readouts that tell the state as it is."""
    readouts = Readouts(2, {"position": 2})
    readouts.layers = nn.Sequential(nn.Identity())
    return readouts


def holder(adjust: Adjustment, planner: Any = None) -> Agent:
    planner = planner or Gradient(starts=6, iterations=80, learning_rate=0.05)
    return Agent(exact(), configured(holding(), adjust), planner, seeing())


# --- weights


def test_weights_are_adjusted_within_their_bounds() -> None:
    adjust = Adjustment(weights={"effort": 0.25, "danger": 2.0})
    configurator = configured(SAFE, adjust, Cost(critic=3.0))
    assert configurator.weights.tolist() == [0.25, 2.0]
    setting = configurator.configure(torch.zeros(2, 2), 2, CPU)
    assert setting.u.tolist() == [[0.25, 2.0]] * 2
    assert setting.v.tolist() == [[0.75, 6.0]] * 2
    assert configured(SAFE, Adjustment(weights={"danger": 1.5})).weights.tolist() == [0.0, 1.5]
    assert configured(SAFE, Adjustment()).weights.tolist() == [0.0, 0.5]


@pytest.mark.parametrize(
    ("adjust", "message"),
    [
        ({"weights": {"danger": 0.4}}, r"'danger' is 0.4: choose it in \[0.5, 2.0\]"),
        ({"weights": {"danger": 2.5}}, r"'danger' is 2.5: choose it in \[0.5, 2.0\]"),
        ({"weights": {"effort": math.nan}}, r"'effort' is nan: choose it in \[0.0, 10.0\]"),
        ({"weights": {"thirst": 1.0}}, r"cost weights name \['thirst'\], but the bank has"),
        ({"aims": {"moon": (1.0,)}}, r"adjust.aims names \['moon'\], but the task has no aims"),
        ({"aim_weights": {"moon": 1.0}}, r"adjust.aims names \['moon'\]"),
    ],
)
def test_what_a_task_does_not_allow_is_refused_at_once(
    adjust: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        configured(SAFE, Adjustment(**adjust))


@pytest.mark.parametrize(
    ("adjust", "message"),
    [
        ({"aim_weights": {"place": -1.0}}, "adjust.aim_weights.place is -1.0: choose 0 or more"),
        ({"aim_weights": {"place": math.nan}}, "adjust.aim_weights.place is nan"),
        ({"aims": {"place": (math.nan,)}}, r"adjust.aims.place is \(nan,\): give at least one fi"),
        ({"aims": {"place": ()}}, r"adjust.aims.place is \(\): give at least one finite number"),
        ({"modulation": (math.inf,)}, r"adjust.modulation is \(inf,\): choose finite numbers"),
    ],
)
def test_wrong_adjustments_are_refused(adjust: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adjustment(**adjust)


def test_adjustments_cannot_be_changed_behind_the_back() -> None:
    weights = {"danger": 1.0}
    adjust = Adjustment(weights=weights)
    weights["danger"] = 0.0
    assert adjust.weights["danger"] == 1.0
    with pytest.raises(TypeError):
        adjust.weights["danger"] = 0.0  # type: ignore[index]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mode": 3}, "mode is 3: choose 1, 2 or 'auto'"),
        ({"near": -0.1}, "near is -0.1: choose 0 or more, finite"),
        ({"near": math.nan}, "near is nan"),
    ],
)
def test_wrong_configurators_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Configurator(Cost(), REACH, **wrong)


def test_more_weight_on_effort_makes_shorter_ways() -> None:
    efforts = []
    for weight in (0.0, 0.2, 2.0):
        agent = agent_of(Gradient(starts=4, iterations=30), task=EFFORT)
        configurator = replace(agent.configurator, adjust=Adjustment(weights={"effort": weight}))
        _, carried = (agent := replace(agent, configurator=configurator)).act(
            begin(agent, points(4, 1)), points(4)
        )
        assert carried.plan is not None
        efforts.append(float(carried.plan.square().mean()))
    assert efforts[0] > 1.2 * efforts[1] > 1.2 * efforts[2]


# --- aims


@pytest.mark.parametrize("place", [(0.5, -0.25), (-0.4,), None])
def test_the_plan_holds_the_place_that_the_setting_passes(place: Any) -> None:
    """No network learned the place: the argument alone moves the optimum."""
    adjust = Adjustment() if place is None else Adjustment(aims={"place": place})
    wanted = torch.tensor(place or (0.0,)).expand(2)
    agent = holder(adjust)
    carried = agent.start(3, generator=seeded())
    _, carried = agent.act(carried, 0.5 * points(3))
    assert carried.imagined is not None
    assert float((carried.imagined[:, -3:] - wanted).abs().max()) < 0.05


def test_arguments_of_aims_by_hand_and_each_row_has_its_own() -> None:
    adjust = Adjustment(aims={"place": (0.5, -0.5)}, aim_weights={"height": 3.0})
    configurator = configured(holding(), adjust)
    setting = configurator.configure(None, 2, CPU)
    assert set(setting.aims) == {"place", "height"}
    assert setting.aim_weights is not None
    assert setting.aim_weights.tolist() == [[1.0, 3.0]] * 2
    setting = replace(
        setting, aims=dict(setting.aims) | {"place": torch.tensor([[0.5, -0.5], [0.0, 0.25]])}
    )
    state, actions = torch.as_tensor(points(2)), torch.zeros(2, 1, 6, 2)
    problem = problem_of(exact(), holding().bank, setting, state, readouts=seeing(), task=holding())
    energy = evaluate(problem, actions)[0][:, 0].detach()
    for row, at in enumerate(((0.5, -0.5), (0.0, 0.25))):
        x, y = state[row].tolist()
        d = [(x - at[0]) ** 2, (y - at[1]) ** 2]
        place = 0.5 * sum(e / (e + 0.25) for e in d)
        assert float(energy[row]) == pytest.approx(6 * (place + 3 * y * y / (y * y + 1)), rel=1e-5)
    one = setting.select(torch.tensor([1]))
    assert one.aims["place"].tolist() == [[0.0, 0.25]]
    assert one.aim_weights is not None
    assert one.aim_weights.tolist() == [[1.0, 3.0]]


def test_an_aim_counts_where_it_is_given_an_argument_or_a_weight() -> None:
    def counted(**adjust: Any) -> dict[str, float]:
        setting = configured(holding(), Adjustment(**adjust)).configure(None, 1, CPU)
        weights = setting.aim_weights
        return {} if weights is None else dict(zip(setting.aims, weights[0].tolist(), strict=True))

    assert counted() == {"place": 1.0}
    assert counted(aims={"height": (0.3,)}) == {"place": 1.0, "height": 1.0}
    assert counted(aim_weights={"place": 0.0}) == {}
    assert counted(aims={"height": (0.3,)}, aim_weights={"height": 0.5, "place": 0.0}) == {
        "height": 0.5
    }


def test_the_gradient_of_an_aim() -> None:
    x = torch.randn(4, 3, generator=seeded(), dtype=FLOAT).requires_grad_()
    for size in (1, 3):
        at = torch.randn(4, size, generator=seeded(1), dtype=FLOAT).requires_grad_()
        aim = Aim("position", scale=0.7)
        assert torch.autograd.gradcheck(lambda x, at: aim({"position": x}, at), (x, at))  # noqa: B023
    with pytest.raises(ValueError, match="is given 2 numbers, but the quantity has 3: give 1 or"):
        Aim("position")({"position": x}, x[:, :2])


def test_the_gradient_of_the_energy_at_the_arguments_of_aims() -> None:
    model, task = exact().double(), holding()
    state = torch.as_tensor(points(2)).double()
    actions = torch.rand(2, 1, 6, 2, generator=seeded()).double()
    base = configured(task, Adjustment(aims={"place": (0.5, -0.5)})).configure(None, 2, CPU)

    def energy(at: Tensor, weights: Tensor) -> Tensor:
        setting = replace(base, aims={"place": at}, aim_weights=weights)
        problem = problem_of(
            model, task.bank, setting, state, readouts=seeing().double(), task=task
        )
        return evaluate(problem, actions)[0]

    at = torch.tensor([[0.5, -0.5], [0.1, 0.2]], dtype=FLOAT).requires_grad_()
    weights = torch.tensor([[1.0], [0.5]], dtype=FLOAT).requires_grad_()
    assert torch.autograd.gradcheck(energy, (at, weights))


# --- modulation


def modulated(code: tuple[float, ...], mode: Any = 2) -> Agent:
    """Predictor and policy that read a code of 2 numbers, as after training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        predictor = ResidualMLP(2, 2, hidden=16, modulation=2)
        policy = Policy(2, 2, hidden=16, modulation=2)
        for module in (predictor, policy):
            for part in module.modules():
                if isinstance(part, FiLM):
                    nn.init.normal_(part.weight, std=0.5)
    configurator = Configurator(
        Cost(horizon=3), REACH, mode=mode, adjust=Adjustment(modulation=code)
    )
    return Agent(JEPA(Seeing(), predictor), configurator, Gradient(starts=3), policy=policy)


@pytest.mark.parametrize("mode", [1, 2])
def test_the_code_reaches_predictor_and_policy(mode: Any) -> None:
    actions, states = [], []
    for code in ((1.0, 0.0), (0.0, 1.0), (1.0, 0.0)):
        agent = modulated(code, mode)
        carried = begin(agent, points(3, 1))
        assert carried.setting.modulation is not None
        assert carried.setting.modulation.tolist() == [list(code)] * 3
        assert carried.setting.select(torch.tensor([2])).context["modulation"].shape == (1, 2)
        action, carried = agent.act(carried, points(3))
        actions.append(action)
        # The same actions are predicted otherwise.
        problem = agent.problem(carried.setting, torch.as_tensor(points(3)))
        path = evaluate(problem, torch.full((3, 1, 3, 2), 0.5))[1]
        assert isinstance(path, Tensor)
        states.append(path.detach())
    np.testing.assert_array_equal(actions[0], actions[2])
    assert abs(actions[0] - actions[1]).max() > 1e-3
    assert torch.equal(states[0], states[2])
    assert float((states[0] - states[1]).abs().max()) > 1e-3


def test_a_missing_or_wrong_code_is_refused() -> None:
    for code, message in (((), "context has no 'modulation'"), ((1.0,), r"has the shape \(3, 1\)")):
        agent = modulated(code)
        with pytest.raises(ValueError, match=message):
            agent.act(begin(agent, points(3, 1)), points(3))


# --- goals on the way


def test_goals_are_passed_in_their_order_and_never_beyond_the_last() -> None:
    configurator = Configurator(Cost(), REACH, near=0.1)
    route = [torch.full((4, 2), float(leg)) for leg in range(3)]
    setting = configurator.configure(route, 4, CPU)
    assert setting.route is not None
    assert setting.route.shape == (4, 3, 2)
    assert setting.goal is not None
    assert setting.goal.tolist() == [[0.0, 0.0]] * 4
    leg = torch.tensor([0, 1, 2, 0])
    far = torch.tensor([0.05, 0.05, 0.0, 0.1])  # the last one is not below `near`
    setting, leg = configurator.advance(setting, leg, far)
    assert leg.tolist() == [1, 2, 2, 0]
    assert setting.goal is not None
    assert setting.goal[:, 0].tolist() == [1.0, 2.0, 2.0, 0.0]
    setting, leg = configurator.advance(setting, leg, torch.zeros(4))
    setting, leg = configurator.advance(setting, leg, torch.full((4,), math.nan))
    assert leg.tolist() == [2, 2, 2, 1]
    chosen = setting.select(torch.tensor([3]))
    assert chosen.route is not None
    assert chosen.goal is not None
    assert chosen.goal.tolist() == [[1.0, 1.0]]
    alone = configurator.configure(route[0], 4, CPU)
    same, there = configurator.advance(alone, leg, torch.zeros(4))
    assert same is alone
    assert torch.equal(there, leg)


def walked(agent: Agent, route: Any, start: Any, steps: int) -> tuple[np.ndarray, list[list[int]]]:
    """Path `(steps + 1, B, 2)` in the plane, and the numbers of the goals."""
    carried = agent.start(len(start), goal=route, generator=seeded())
    path, legs = [np.asarray(start, np.float32)], []
    for _ in range(steps):
        action, carried = agent.act(carried, path[-1])
        path.append(path[-1] + STEP * action)
        assert carried.leg is not None
        legs.append(carried.leg.tolist())
    return np.stack(path), legs


def test_a_route_leads_over_its_points() -> None:
    agent = agent_of(Gradient(starts=4, iterations=20), cost=Cost(horizon=4))
    agent = replace(agent, configurator=replace(agent.configurator, near=0.005))
    via = np.array([[0.0, 1.0], [0.0, -1.0]], np.float32)
    goal = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    path, legs = walked(agent, [via, goal], [[-1.0, 0.0]] * 2, 16)
    for row in range(2):
        assert np.linalg.norm(path[:, row] - via[row], axis=1).min() < 0.15
        assert np.linalg.norm(path[-1, row] - goal[row]) < 0.1
        seen = [leg[row] for leg in legs]
        assert seen == sorted(seen)
        assert set(seen) == {0, 1}
    assert path[8, 0, 1] > 0 > path[8, 1, 1]


def test_a_route_leads_round_an_obstacle_that_holds_a_short_horizon() -> None:
    """Straight ahead a ball is in the way; what is imagined does not reach round it."""
    task = Task(
        {"ball": TaskTerm(KeepOut("state", (0.0, 0.0), radius=0.5, softness=0.05), weight=10.0)},
        goal=True,
    )
    agent = agent_of(Gradient(starts=1, iterations=20), cost=Cost(horizon=2), task=task)
    goal, start = np.array([[1.0, 0.0]], np.float32), [[-1.0, 0.0]]
    stuck = walked(agent, [goal], start, 24)[0]
    over = [np.array([p], np.float32) for p in ((-0.8, 0.8), (0.8, 0.8))]
    round_it, legs = walked(agent, [*over, goal], start, 24)
    assert np.linalg.norm(stuck[-1, 0] - goal[0]) > 1
    assert np.linalg.norm(round_it[-1, 0] - goal[0]) < 0.15
    assert np.linalg.norm(round_it[:, 0], axis=1).min() > 0.45
    assert legs[-1] == [2]


def test_a_row_that_begins_begins_its_route_and_the_others_keep_their_place() -> None:
    """Also where the goal that another row has passed lies near: it is not looked at again."""
    agent = agent_of(Gradient(starts=2, iterations=2), cost=Cost(horizon=2))
    agent = replace(agent, configurator=replace(agent.configurator, near=0.01))
    route = [np.full((2, 2), x, np.float32) for x in (0.0, 0.5, 1.0)]
    carried = agent.start(2, goal=route, generator=seeded())
    _, carried = agent.act(carried, route[0])
    assert carried.leg is not None
    assert carried.leg.tolist() == [1, 1]
    fresh = agent.start(2, goal=route, generator=seeded())
    carried = carried.begin(fresh, torch.tensor([True, False]))
    assert carried.leg is not None
    assert carried.leg.tolist() == [0, 1]
    assert carried.setting.goal is not None
    assert carried.setting.goal[:, 0].tolist() == [0.0, 0.5]
    # Both are at the first goal, which only the row that begins still has to pass.
    _, carried = agent.act(carried, route[0])
    assert carried.leg is not None
    assert carried.leg.tolist() == [1, 1]
    assert carried.setting.goal is not None
    assert carried.setting.goal[:, 0].tolist() == [0.5, 0.5]


def test_a_single_goal_has_no_legs() -> None:
    agent = agent_of(Gradient(starts=2, iterations=2))
    carried = begin(agent, points(3))
    assert carried.leg is None
    assert carried.setting.route is None
    _, carried = agent.act(carried, points(3))
    assert carried.leg is None


def test_adjusted_agents_still_reach_their_goals() -> None:
    agent = agent_of(Gradient(starts=4, iterations=20), task=EFFORT, cost=Cost(horizon=5))
    adjust = Adjustment(weights={"effort": 0.01})
    agent = replace(agent, configurator=replace(agent.configurator, adjust=adjust))
    outcomes = run_episodes(Plane(8), AgentController(agent, seeded()), list(range(16)))
    assert all(outcome.success for outcome in outcomes)


def test_aims_need_readouts_that_tell_what_they_read() -> None:
    with pytest.raises(ValueError, match=r"the task reads position, but the readouts tell nothing"):
        Agent(exact(), configured(holding(), Adjustment()), Gradient())
