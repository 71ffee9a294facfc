"""When the agent thinks: cheap proposals, what a step gains on them, mode `auto`, its price."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_agent import EFFORT, Plane, Repeating, agent_of, begin, points, policy_of, seeded
from test_loop import CELLS, Ring, at, ring_agent, ring_policy
from torch import Tensor

from forethought.agent import Agent, AgentController, Cost, Thinking, Watch, run_episodes
from forethought.agent.agent import AgentState
from forethought.agent.evaluate import price_for
from forethought.agent.thinking import Reached, cheapest
from forethought.planners import Gradient, Plan, Problem, RandomShooting, evaluate

FLOAT = torch.float64
NEVER, ALWAYS = 1e30, -1e30
SMALL = Gradient(starts=2, iterations=3)  # room for the cheap proposal and the policy: no noise


def auto(planner: Any = SMALL, horizon: int = 4, seed: int = 0, **options: Any) -> Agent:
    """In mode `auto`, with an untrained policy."""
    agent = agent_of(planner, cost=Cost(horizon=horizon), mode="auto", policy=policy_of(seed))
    return told(agent, **options)


def told(agent: Agent, **options: Any) -> Agent:
    thinking = Thinking(**{"price": NEVER, "share": 1.0} | options)
    return replace(agent, configurator=replace(agent.configurator, thinking=thinking))


def thought(carried: AgentState) -> list[bool]:
    assert carried.mind is not None
    found: list[bool] = carried.mind.thought.tolist()
    return found


def quadratic(target: Tensor, weight: float = 1.0) -> Problem:
    """E = weight sum |a - target|^2 + |s_H|^2 / 10, s' = s + a, for targets `(B, H, A)`."""
    ones = torch.ones(target.shape[-1], dtype=FLOAT)

    def stage(state: Any, action: Tensor, after: Any, context: Any, t: Tensor) -> Tensor:
        wanted = context["target"].squeeze(2)  # (B, 1, H, A)
        return weight * (action - wanted).square().sum(-1)

    return Problem(
        state=torch.zeros_like(target[:, 0]),
        step=lambda s, a, z, context, t: s + a,
        horizon=target.shape[1],
        low=-ones,
        high=ones,
        stage_cost=stage,
        terminal_cost=lambda s, context: s.square().sum(-1) / 10,
        context={"target": target},
    )


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=FLOAT)


# --- the cheapest proposal, and its gain


def test_the_cheapest_proposal_of_each_problem_is_picked() -> None:
    problem = quadratic(0.5 * normal(6, 3, 2))
    candidates = normal(6, 4, 3, 2, seed=1).clamp(-1, 1)
    actions, energy, gain, states = cheapest(problem, candidates, 0.1)
    energies, paths = evaluate(problem, candidates)
    assert isinstance(paths, Tensor)
    best = energies.argmin(1)
    assert len(set(best.tolist())) > 1
    assert torch.equal(energy, energies.amin(1))
    for row, chosen in enumerate(best.tolist()):
        assert torch.equal(actions[row], candidates[row, chosen])
        assert torch.equal(states[row], paths[row, chosen])
    assert (gain > 0).all()
    assert not actions.requires_grad


def test_what_is_not_a_number_is_never_the_cheapest() -> None:
    problem = quadratic(0.5 * normal(3, 3, 2))
    candidates = normal(3, 2, 3, 2, seed=1).clamp(-1, 1)
    candidates[0, 0, 1] = torch.nan
    candidates[1] = torch.nan
    actions, energy, gain, _ = cheapest(problem, candidates, 0.1)
    assert torch.equal(actions[0], candidates[0, 1])
    assert not actions[1].any()  # the safe action
    assert energy.isfinite().tolist() == gain.isfinite().tolist() == [True, False, True]
    assert float(energy[1]) == float(gain[1]) == math.inf
    alone = cheapest(quadratic(0.5 * normal(3, 3, 2)), candidates.nan_to_num(9.0), 0.1)
    assert torch.equal(actions[2], alone[0][2])
    assert float(gain[2]) == float(alone[2][2])


def test_the_gain_is_the_slope_towards_the_edge_of_the_box() -> None:
    """Of E along the way from the actions to the projected step, by central differences."""
    problem, radius = quadratic(normal(5, 3, 2)), 0.2
    candidates = (1.5 * normal(5, 1, 3, 2, seed=2)).clamp(-1, 1)  # some are at the bounds
    leaf = candidates.clone().requires_grad_()
    (slope,) = torch.autograd.grad(evaluate(problem, leaf)[0].sum(), leaf)
    way = (candidates - radius * slope.sign()).clamp(-1, 1) - candidates
    assert bool((way.abs() < 0.5 * radius).any())
    assert bool((way.abs() > 0.9 * radius).any())
    h = 1e-5
    up, down = (evaluate(problem, candidates + sign * h * way)[0] for sign in (1, -1))
    gain = cheapest(problem, candidates, radius)[2]
    torch.testing.assert_close(gain, -(up - down).squeeze(1) / (2 * h), rtol=1e-7, atol=1e-9)


def test_at_an_optimum_of_the_box_nothing_is_gained() -> None:
    inside = torch.full((2, 3, 2), 0.3, dtype=FLOAT)
    for target in (inside, inside + 2):
        problem = replace(quadratic(target), terminal_cost=None)
        optimum = target.clamp(-1, 1).unsqueeze(1)
        assert cheapest(problem, optimum, 0.1)[2].tolist() == [0.0, 0.0]
        assert (cheapest(problem, optimum - 0.5, 0.1)[2] > 0.1).all()


def test_the_gain_of_discrete_actions_by_hand() -> None:
    """Costs of a table are linear in probabilities: nothing is lost to first order."""
    table = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]], dtype=FLOAT)

    def stage(state: Any, action: Tensor, after: Any, context: Any, t: Tensor) -> Tensor:
        return (action * table).sum(-1)

    problem = Problem(
        state=torch.zeros(3, 1, dtype=FLOAT),
        step=lambda s, a, z, context, t: s,
        horizon=2,
        actions=3,
        stage_cost=stage,
    )
    candidates = torch.tensor([[[0, 1]], [[1, 2]], [[1, 0]]])
    actions, energy, gain, _ = cheapest(problem, candidates, 0.05)
    assert torch.equal(actions, candidates[:, 0])
    assert energy.tolist() == [8.0, 5.0, 1.0]
    assert gain.tolist() == pytest.approx([0.1 * (2 + 5), 0.1 * 4, 0.0])


# --- what plans reached


def test_expectations_are_a_ridge_regression_of_each_row() -> None:
    state, energy = normal(2, 7, 3), normal(2, 7, seed=1) + 5
    made = torch.ones(2, 7, dtype=torch.bool)
    made[1, 4:] = False
    reached = Reached.nothing(state[:, 0])
    assert reached.expected(state[:, 0], 2.0).tolist() == [-math.inf] * 2
    for t in range(7):
        reached = reached.add(state[:, t], energy[:, t], made[:, t])
    query, ridge = normal(2, 3, seed=2), 2.0
    expected = reached.expected(query, ridge)
    for row, count in ((0, 7), (1, 4)):
        # min over w of sum (E - mean - w f)^2 + ridge |w|^2, as one least-squares problem.
        f = torch.cat((state[row, :count], torch.ones(count, 1, dtype=FLOAT)), 1)
        mean = energy[row, :count].mean()
        system = torch.cat((f, ridge**0.5 * torch.eye(4, dtype=FLOAT)))
        right = torch.cat((energy[row, :count] - mean, torch.zeros(4, dtype=FLOAT)))
        w = torch.linalg.lstsq(system, right[:, None]).solution[:, 0]
        wanted = mean + torch.cat((query[row], torch.ones(1, dtype=FLOAT))) @ w
        assert float(expected[row]) == pytest.approx(float(wanted), rel=1e-9)
        # Towards no prior it is least squares, towards a strong one the mean.
        assert float(reached.expected(query, 1e9)[row]) == pytest.approx(float(mean), abs=1e-6)
    assert reached.count.tolist() == [7, 4]


def test_plans_that_found_nothing_are_left_out_and_rows_can_be_forgotten() -> None:
    state, every = normal(3, 2), torch.ones(3, dtype=torch.bool)
    energy = torch.tensor([1.0, math.inf, 2.0], dtype=FLOAT)
    state[2, 0] = torch.nan
    reached = Reached.nothing(state).add(state, energy, every)
    assert reached.count.tolist() == [1, 0, 0]
    assert reached.gram.isfinite().all()
    assert reached.moment.isfinite().all()
    kept = reached.select(torch.tensor([1, 0]))
    assert kept.expected(torch.zeros(2, 2, dtype=FLOAT), 1.0).tolist() == [-math.inf, 1.0]
    forgotten = reached.forget(torch.tensor([True, False, False]))
    assert not forgotten.gram.any()
    assert not forgotten.count.any()


# --- mode auto


def planned_before(agent: Agent, batch: int, seed: int = 0) -> tuple[AgentState, np.ndarray]:
    """What is carried after a decision that was thought about, and the next observation."""
    carried = begin(told(agent, price=ALWAYS), points(batch, seed + 1))
    action, carried = agent.act(carried, points(batch, seed))
    assert thought(carried) == [True] * batch
    goals = begin(agent, points(batch, seed + 1)).setting
    # Far away in some rows, where the old plan helps no more.
    moved = points(batch, seed) + 0.25 * action + np.arange(batch)[:, None] % 2 * 0.9
    return replace(carried, setting=goals), moved.astype(np.float32)


def test_at_an_infinite_price_the_cheaper_of_policy_and_last_plan_acts() -> None:
    agent = auto(Gradient(starts=4, iterations=12), price=NEVER)
    carried, seen = planned_before(agent, 24)
    assert carried.plan is not None
    action, after = agent.act(carried, seen)
    assert thought(after) == [False] * 24
    here = torch.as_tensor(seen)
    problem = agent.problem(carried.setting, here)
    assert agent.policy is not None
    rolled = agent.policy.rollout(agent.model, here, carried.setting.context, 4)[0]
    by_policy, by_plan = (evaluate(problem, x[:, None])[0][:, 0] for x in (rolled, carried.plan))
    assert 0 < int((by_policy < by_plan).sum()) < 24
    wanted = torch.where((by_policy < by_plan)[:, None], rolled[:, 0], carried.plan[:, 0])
    np.testing.assert_allclose(action, wanted.detach().numpy(), atol=1e-6)
    assert after.mind is not None
    torch.testing.assert_close(after.mind.energy, torch.minimum(by_policy, by_plan).detach())
    assert after.mind.evaluations.tolist() == [4 * 3] * 24  # the policy's way, and two looked at


@pytest.mark.parametrize("planner", [SMALL, Gradient(starts=6), RandomShooting(candidates=9)])
def test_at_a_price_of_minus_infinity_all_is_thought_about_and_never_worse(planner: Any) -> None:
    agent = auto(planner, price=ALWAYS)
    carried, seen = planned_before(agent, 12)
    cheap = told(agent, price=NEVER)
    _, idle = cheap.act(replace(carried, setting=begin(cheap, points(12, 1)).setting), seen)
    assert idle.mind is not None
    assert idle.imagined is not None
    lazy = replace(carried, belief=torch.as_tensor(seen))
    _, after = agent.act(
        replace(carried, setting=begin(agent, points(12, 1)).setting, generator=seeded(7)), seen
    )
    assert after.mind is not None
    assert thought(after) == [True] * 12
    # Mode-2 from what was cheap, from the same random numbers.
    actions = cheapest(
        agent.problem(carried.setting, torch.as_tensor(seen)),
        torch.stack([agent._rolled(lazy), carried.plan], 1),  # type: ignore[list-item]
        0.1,
    )[0]
    plan = agent.think(replace(lazy, plan=actions, generator=seeded(7)))
    assert (after.mind.energy <= plan.energy + 1e-6).all()
    assert (after.mind.energy <= idle.mind.energy).all()
    if planner == SMALL:
        assert bool((after.mind.energy < idle.mind.energy - 1e-3).any())


def test_energies_and_imagined_states_are_those_of_the_plan_that_is_carried_out() -> None:
    agent = auto(Gradient(starts=4), price=0.05)
    carried, seen = planned_before(agent, 12)
    action, after = agent.act(carried, seen)
    assert 0 < sum(thought(after)) < 12
    assert after.mind is not None
    assert after.imagined is not None
    assert after.plan is not None
    whole = torch.cat((torch.as_tensor(action)[:, None], after.plan[:, :-1]), 1)
    energies, states = evaluate(
        agent.problem(carried.setting, torch.as_tensor(seen)), whole[:, None]
    )
    torch.testing.assert_close(energies[:, 0], after.mind.energy)
    assert isinstance(states, Tensor)
    torch.testing.assert_close(states[:, 0], after.imagined)


def test_an_episode_spends_no_more_than_its_share() -> None:
    agent = auto(price=ALWAYS, share=0.25)
    carried, when = begin(agent, points(2, 1)), []
    for step in range(12):
        _, carried = agent.act(carried, points(2, step))
        when.append(thought(carried))
    assert [step for step, both in enumerate(when) if all(both)] == [0, 4, 8]
    assert sum(map(any, when)) == 3
    assert carried.spent is not None
    assert carried.spent.tolist() == [[3, 12]] * 2


def test_random_thinking_keeps_its_share() -> None:
    agent = auto(RandomShooting(candidates=2), signal="random", price=0.7)
    _, carried = agent.act(begin(agent, points(3000, 1)), points(3000))
    assert np.mean(thought(carried)) == pytest.approx(0.3, abs=0.03)
    again = agent.act(begin(agent, points(3000, 1)), points(3000))[1]
    assert thought(again) == thought(carried)


def test_surprises_are_thought_about() -> None:
    """The model is exact: only what was moved by another hand is a surprise."""
    agent = auto(signal="surprise", price=0.01)
    carried = begin(agent, points(3, 1))
    action, carried = agent.act(carried, points(3))
    assert thought(carried) == [True] * 3  # nobody foresaw the first state
    seen = points(3) + 0.25 * action
    seen[1] += 0.5
    _, carried = agent.act(carried, seen)
    assert thought(carried) == [False, True, False]
    assert carried.mind is not None
    assert carried.mind.surprise.tolist() == pytest.approx([0, 0.25, 0], abs=1e-6)


def test_regret_is_what_the_gains_add_up_to_since_the_last_plan() -> None:
    agent = auto(signal="regret", price=0.15)
    cheap = told(agent, signal="gain", price=NEVER)
    carried, owed = begin(agent, points(4, 1)), torch.zeros(4)
    setting = begin(cheap, points(4, 1)).setting
    decided: list[bool] = []
    for step in range(8):
        seen = points(4, step)
        _, idle = cheap.act(replace(carried, setting=setting), seen)
        _, carried = agent.act(carried, seen)
        assert carried.mind is not None
        assert idle.mind is not None
        owed = owed + idle.mind.signal.clamp_min(0)
        torch.testing.assert_close(carried.mind.signal, owed)
        assert thought(carried) == (owed > 0.15).tolist()
        decided += thought(carried)
        owed[carried.mind.thought] = 0
    assert 0 < sum(decided) < 32
    begun = torch.tensor([True, False, False, False])
    after = carried.begin(begin(agent, points(4, 1)), begun)
    assert after.regret is not None
    assert after.regret.tolist() == [0.0, *owed[1:].tolist()]


def test_a_plan_is_followed_no_longer_than_patience_has_it() -> None:
    agent = auto(signal="regret", price=NEVER, patience=3)
    carried, decided = begin(agent, points(2, 1)), list[list[bool]]()
    for step in range(9):
        if step == 5:
            begun = torch.tensor([True, False])
            carried = carried.begin(begin(agent, points(2, 1)), begun)
        _, carried = agent.act(carried, points(2, step))
        decided.append(thought(carried))
    assert [step for step, (_, row) in enumerate(decided) if row] == [3, 6]
    assert [step for step, (row, _) in enumerate(decided) if row] == [3, 8]
    chance = auto(signal="random", price=1.0, patience=3)
    carried = begin(chance, points(2, 1))
    for step in range(6):
        _, carried = chance.act(carried, points(2, step))
        assert not any(thought(carried))


def test_excess_is_how_far_the_cheap_proposal_lies_above_what_plans_reached() -> None:
    agent = auto(signal="excess", price=0.1, ridge=3.0)
    carried = begin(agent, points(4, 1))
    _, carried = agent.act(carried, points(4))
    assert thought(carried) == [True] * 4  # nothing is expected yet
    assert carried.reached is not None
    assert carried.reached.count.tolist() == [1] * 4
    expected = carried.reached.expected(torch.as_tensor(points(4, 5)), 3.0)
    cheap = told(agent, signal="excess", price=NEVER, ridge=3.0)
    setting = begin(cheap, points(4, 1)).setting
    _, idle = cheap.act(replace(carried, setting=setting), points(4, 5))
    assert idle.mind is not None
    torch.testing.assert_close(idle.mind.signal, idle.mind.energy - expected)
    _, after = agent.act(carried, points(4, 5))
    assert thought(after) == (idle.mind.signal > 0.1).tolist()
    assert 0 < sum(thought(after)) < 4
    assert after.reached is not None
    assert after.reached.count.tolist() == [1 + both for both in thought(after)]


@pytest.mark.parametrize("signal", ["gain", "regret", "excess", "surprise"])
def test_what_a_row_does_depends_on_no_other_row(signal: Any) -> None:
    price = {"gain": 0.08, "regret": 0.2, "excess": 0.05, "surprise": 0.1}[signal]
    agent = auto(signal=signal, price=price, share=0.6)
    goals, beside = points(4, 9), points(4, 10)
    beside[1] = goals[1]

    def path(rows: list[int], goals: np.ndarray) -> list[list[Any]]:
        carried, found = begin(agent, goals[rows]), []
        for step in range(6):
            action, carried = agent.act(carried, points(4, step)[rows])
            found.append([action[rows.index(1)].tolist(), thought(carried)[rows.index(1)]])
        return found

    alone = path([1], goals)
    assert len({bool(said) for _, said in alone}) == 2
    for other in (path([0, 1, 2, 3], goals), path([3, 1], beside)):
        for (action, said), (own, own_said) in zip(other, alone, strict=True):
            assert action == pytest.approx(own, abs=1e-5)
            assert said == own_said


@pytest.mark.parametrize("mode", [1, "auto"])
@pytest.mark.parametrize("price", [NEVER, ALWAYS])
def test_a_broken_row_gets_the_safe_action_and_leaves_the_others_alone(
    mode: Any, price: float
) -> None:
    agent = auto(price=price)
    agent = replace(agent, configurator=replace(agent.configurator, mode=mode))
    whole, _ = agent.act(begin(agent, points(3, 1)), points(3))
    broken = points(3)
    broken[1] = np.nan
    action, carried = agent.act(begin(agent, points(3, 1)), broken)
    np.testing.assert_allclose(action[[0, 2]], whole[[0, 2]], atol=1e-6)
    assert action[1].tolist() == [0.0, 0.0]
    again, carried = agent.act(carried, points(3))
    assert np.isfinite(again).all()
    assert again[1].any()
    assert mode == 1 or (carried.mind is not None and carried.mind.energy.isfinite().all())


def test_leaving_rows_take_what_is_theirs_along() -> None:
    agent = auto(signal="excess", price=0.05)
    carried = begin(agent, points(5, 1))
    for step in range(3):
        _, carried = agent.act(carried, points(5, step))
    index = np.array([4, 1])
    whole, after = agent.act(carried, points(5, 3))
    part, kept = agent.act(carried.select(torch.as_tensor(index)), points(5, 3)[index])
    np.testing.assert_allclose(part, whole[index], atol=1e-5)
    assert thought(kept) == [thought(after)[row] for row in index]
    assert kept.reached is not None
    assert after.reached is not None
    assert kept.reached.count.tolist() == after.reached.count[index].tolist()
    assert kept.spent is not None
    assert after.spent is not None
    assert kept.spent.tolist() == after.spent[index].tolist()


def test_a_row_that_begins_among_others_begins_from_nothing() -> None:
    """It does what it would at the start, and the others what they would without it."""
    agent = auto(signal="excess", price=0.05, share=0.6)
    goals, carried = points(3, 1), begin(agent, points(3, 1))
    for step in range(3):
        _, carried = agent.act(carried, points(3, step))
    other = goals.copy()
    other[1] = points(1, 8)
    begun = torch.tensor([False, True, False])
    action, after = agent.act(carried.begin(begin(agent, other), begun), points(3, 3))
    on, went_on = agent.act(carried, points(3, 3))
    first, fresh = agent.act(begin(agent, other), points(3, 3))
    np.testing.assert_allclose(action[[0, 2]], on[[0, 2]], atol=1e-5)
    np.testing.assert_allclose(action[1], first[1], atol=1e-5)
    assert abs(on[1] - first[1]).max() > 1e-3
    told = [thought(state) for state in (went_on, fresh)]
    assert thought(after) == [told[0][0], told[1][1], told[0][2]]
    for name in ("energy", "signal"):
        found, kept, new = (getattr(x.mind, name) for x in (after, went_on, fresh))
        torch.testing.assert_close(found, torch.where(begun, new, kept))
    assert after.spent is not None
    assert after.spent[:, 1].tolist() == [4, 1, 4]
    assert after.mind is not None
    assert after.mind.surprise.isnan().tolist() == [False, True, False]


def test_the_zeros_of_a_row_without_a_plan_are_no_proposal() -> None:
    """Even where to stay would be best: the row that begins does what its policy says."""
    agent, goals = auto(price=NEVER), points(3, 1)
    _, carried = agent.act(begin(agent, goals), points(3))
    goals[1], here = points(3, 5)[1], points(3, 5)
    carried = carried.begin(begin(agent, goals), torch.tensor([False, True, False]))
    action, _ = agent.act(carried, here)
    first, _ = agent.act(begin(agent, goals), here)
    assert abs(first[1]).max() > 0.01
    np.testing.assert_allclose(action[1], first[1], atol=1e-6)


def test_only_rows_whose_plan_is_better_take_it_over() -> None:
    """The planner looks at no proposal; its plans, another in each row, help some."""

    class Stubborn(Repeating):
        def plan(self, problem: Problem, **rest: Any) -> Plan:
            plan = super().plan(problem, **rest)
            row = torch.arange(problem.batch)[:, None, None]
            actions = plan.actions + 0.01 * row
            energies, states = evaluate(problem, actions[:, None])
            assert isinstance(states, Tensor)
            return replace(plan, actions=actions, energy=energies[:, 0], states=states[:, 0])

    agent = auto(Stubborn(), price=ALWAYS)
    goals = np.array([[-0.9, -0.9], [0.9, 0.9], [-0.9, 0.9], [0.9, 0.9]], np.float32)
    here = np.zeros((4, 2), np.float32)
    idle = told(agent, price=NEVER)
    cheap, lazy = idle.act(begin(idle, goals), here)
    action, after = agent.act(begin(agent, goals), here)
    assert lazy.mind is not None
    assert after.mind is not None
    better = after.mind.energy < lazy.mind.energy
    assert better.tolist() == [False, True, bool(better[2]), True]
    for row, taken in enumerate(better.tolist()):
        own = [0.1 + 0.01 * row] * 2
        assert action[row].tolist() == pytest.approx(own if taken else cheap[row].tolist())
    assert thought(after) == [True] * 4


def test_a_row_that_begins_does_not_wait_for_the_others_plans() -> None:
    """Nor is it sent the zeros that stand for its missing plan."""
    cost = Cost(horizon=6, replan_every=5)
    agent = agent_of(Gradient(starts=2, iterations=12), cost=cost)
    goals = np.full((2, 2), 0.9, np.float32)
    _, carried = agent.act(begin(agent, goals), points(2))
    assert carried.until_replan == 4
    fresh = begin(agent, goals)
    _, carried = agent.act(carried.begin(fresh, torch.tensor([False, True])), -goals)
    assert thought(carried) == [True, True]
    assert carried.previous_action is not None
    assert float(carried.previous_action[1].abs().min()) > 0.3


def test_the_intrinsic_cost_of_a_first_state_knows_no_action() -> None:
    agent = agent_of(task=EFFORT, cost=Cost(horizon=3))
    _, carried = agent.act(begin(agent, points(2, 1)), points(2))
    assert carried.previous_action is not None
    effort = carried.previous_action.square().mean(-1)
    fresh = begin(agent, points(2, 3))
    _, after = agent.act(carried.begin(fresh, torch.tensor([True, False])), points(2, 4))
    assert after.mind is not None
    assert after.mind.costs[:, 0].tolist() == pytest.approx([0.0, float(effort[1])])
    assert float(effort[0]) > 0.01


@pytest.mark.parametrize("price", [NEVER, ALWAYS, 0.1])
def test_discrete_actions(price: float) -> None:
    agent = told(ring_agent(mode="auto", policy=ring_policy()), price=price)
    start, goal = np.arange(CELLS), (np.arange(CELLS) + 3) % CELLS
    carried = agent.start(CELLS, goal=at(goal).numpy(), generator=seeded())
    for step in range(3):
        action, carried = agent.act(carried, at(start + step).numpy())
        assert action.dtype == np.int64
        assert carried.mind is not None
        assert carried.mind.energy.isfinite().all()
    if price == ALWAYS:  # two steps on from the start, one is left
        assert action.tolist() == [2] * CELLS


# --- refusals


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"signal": "whim"}, "thinking.signal is 'whim': choose one of gain, regret, excess, su"),
        ({"price": math.inf}, "thinking.price is inf: choose a finite one, or none"),
        ({"price": math.nan}, "thinking.price is nan"),
        ({"share": 1.5}, r"thinking.share is 1.5: choose it in \[0, 1\]"),
        ({"share": math.nan}, "thinking.share is nan"),
        ({"radius": 0.0}, "thinking.radius is 0.0: choose it above 0, finite"),
        ({"ridge": -1.0}, "thinking.ridge is -1.0: choose it above 0, finite"),
        ({"patience": -1}, r"thinking.patience is -1: choose 0 \(none\) or more"),
    ],
)
def test_wrong_numbers_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Thinking(**wrong)


def test_without_a_price_or_a_policy_there_is_no_mode_auto() -> None:
    agent = auto(price=None)
    with pytest.raises(ValueError, match=r"thinking\.price is not given: choose one, or let"):
        agent.act(begin(agent, points(1)), points(1))
    with pytest.raises(ValueError, match="mode auto needs a policy: run `forethought distill RUN`"):
        agent_of(mode="auto")


# --- the price of thinking


def share_at(agent: Agent, env: Any, price: float, seeds: list[int]) -> float:
    agent = told(agent, signal=agent.configurator.thinking.signal, price=price)
    watch = Watch(agent)
    run_episodes(env, AgentController(agent, seeded(5)), seeds, on_step=watch)
    return watch.summary()["thinking_share"]


@pytest.mark.parametrize("signal", ["gain", "regret", "excess"])
@pytest.mark.parametrize("share", [0.4, 0.7])
def test_the_price_keeps_the_share_on_other_episodes(signal: Any, share: float) -> None:
    agent = auto(Gradient(starts=3, iterations=4), signal=signal, price=None, share=share)
    price = price_for(agent, Plane(64), list(range(64)), seeded())
    found = share_at(agent, Plane(64), price, list(range(500, 564)))
    assert found == pytest.approx(share, abs=0.1)


def test_the_price_with_discrete_actions() -> None:
    policy = ring_policy()
    agent = told(ring_agent(mode="auto", policy=policy), price=None, share=0.5)
    price = price_for(agent, Ring(16), list(range(32)), seeded())
    assert 0 <= price < 1e3
    assert share_at(agent, Ring(16), price, list(range(100, 132))) == pytest.approx(0.5, abs=0.2)


def test_the_price_of_random_thinking_is_known() -> None:
    agent = auto(signal="random", price=None, share=0.3)
    assert price_for(agent, Plane(1), [0], seeded()) == pytest.approx(0.7)


def test_a_price_needs_episodes_and_passes() -> None:
    agent = auto(price=None)
    with pytest.raises(ValueError, match="passes is 1: choose 2 or more"):
        price_for(agent, Plane(1), [0], seeded(), passes=1)
    with pytest.raises(ValueError, match="seeds are none: give at least one episode"):
        price_for(agent, Plane(1), [], seeded())
