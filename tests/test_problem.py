"""Problems are checked where they are built; energies are the ones written down."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from planner_contract import FLOAT, LinearQuadratic, Recorder, bound, seeded
from torch import Tensor

from forethought.planners import (
    Problem,
    evaluate,
    expand,
    flatten,
    losing,
    project,
    safe_actions,
    select,
    shift,
    smooth_noise,
    starts,
    unflatten,
)
from forethought.planners.proposals import gaussian_noise


def counter(**changes: Any) -> Problem:
    """One number that the action is added to; costs are the number after the action."""
    options: dict[str, Any] = {
        "state": torch.tensor([[1.0], [10.0]], dtype=FLOAT),
        "step": lambda state, action, latent, context, t: state + action,
        "horizon": 3,
        "low": bound(-100.0),
        "high": bound(100.0),
    }
    if not {"stage_cost", "goal_cost", "terminal_cost"} & set(changes):
        options["stage_cost"] = next_state_cost
    return Problem(**(options | changes))


def next_state_cost(state: Any, action: Tensor, after: Any, context: Any, times: Tensor) -> Tensor:
    return after.squeeze(-1)


# Two problems, two candidates: problem 0 goes 1 -> 3, 6, 2 or stays; problem 1 goes 10 -> 9, 9, 9.
ACTIONS = torch.tensor(
    [[[2.0, 3.0, -4.0], [0.0, 0.0, 0.0]], [[-1.0, 0.0, 0.0], [0.0, 0.0, 5.0]]], dtype=FLOAT
).unsqueeze(-1)
STATES = [[[3.0, 6.0, 2.0], [1.0, 1.0, 1.0]], [[9.0, 9.0, 9.0], [10.0, 10.0, 15.0]]]


def energies(**changes: Any) -> list[list[float]]:
    return evaluate(counter(**changes), ACTIONS)[0].tolist()


def test_predicted_states() -> None:
    assert evaluate(counter(), ACTIONS)[1].squeeze(-1).tolist() == STATES  # type: ignore[union-attr]


def test_stage_costs_are_summed_with_discount() -> None:
    assert energies() == [[11.0, 3.0], [27.0, 35.0]]
    # 3 + 6/2 + 2/4, 1 + 1/2 + 1/4, 9 (1 + 1/2 + 1/4), 10 + 5 + 15/4
    assert energies(discount=0.5) == [[6.5, 1.75], [15.75, 18.75]]


def test_goal_costs_are_reduced() -> None:
    assert energies(goal_cost=next_state_cost) == [[11.0, 3.0], [27.0, 35.0]]
    assert energies(goal_cost=next_state_cost, discount=0.5) == [[6.5, 1.75], [15.75, 18.75]]
    last = energies(goal_cost=next_state_cost, reduction="last", discount=0.5)
    assert last == [[2.0, 1.0], [9.0, 15.0]]
    soft = energies(goal_cost=next_state_cost, reduction="softmin", softmin_temperature=2.0)
    by_hand = [
        [-2.0 * math.log(sum(math.exp(-d / 2.0) for d in path) / 3.0) for path in paths]
        for paths in STATES
    ]
    assert soft == [pytest.approx(row) for row in by_hand]
    cold = energies(goal_cost=next_state_cost, reduction="softmin", softmin_temperature=1e-3)
    assert cold == [pytest.approx(row, abs=2e-3) for row in [[2.0, 1.0], [9.0, 10.0]]]
    hot = energies(goal_cost=next_state_cost, reduction="softmin", softmin_temperature=1e6)
    assert hot == [pytest.approx(row, abs=1e-4) for row in [[11 / 3, 1.0], [9.0, 35 / 3]]]


@pytest.mark.parametrize("reduction", ["last", "softmin"])
def test_the_reduction_of_the_goal_does_not_hide_effort(reduction: str) -> None:
    def effort(state: Any, action: Tensor, after: Any, context: Any, t: Tensor) -> Tensor:
        return action.abs().squeeze(-1)

    goal = energies(goal_cost=next_state_cost, reduction=reduction)
    both = energies(goal_cost=next_state_cost, reduction=reduction, stage_cost=effort)
    spent = [[9.0, 0.0], [1.0, 5.0]]
    assert torch.tensor(both) == pytest.approx(torch.tensor(goal) + torch.tensor(spent))


def test_the_terminal_cost_is_weighted_by_the_discount_to_the_horizon() -> None:
    def last(state: Any, context: Any) -> Tensor:
        return state.squeeze(-1)

    assert energies(terminal_cost=last, discount=0.5) == [[0.25, 0.125], [1.125, 1.875]]
    assert energies(terminal_cost=last, stage_cost=next_state_cost) == [[13.0, 4.0], [36.0, 50.0]]


def test_costs_see_every_axis() -> None:
    def cost(state: Any, action: Tensor, after: Any, context: Any, t: Tensor) -> Tensor:
        assert state.shape == action.shape == after.shape == (2, 2, 3, 1)
        assert torch.equal(after, state + action)
        assert t.dtype == torch.int64
        assert t.tolist() == [0, 1, 2]
        assert context["goal"].shape == (2, 1, 1, 1)
        assert context["weight"].shape == (2, 1, 1)
        return context["weight"] * (after - context["goal"]).squeeze(-1)

    def last(state: Any, context: Any) -> Tensor:
        assert context["goal"].shape == (2, 1, 1)
        assert context["weight"].shape == (2, 1)
        return context["weight"] * (state - context["goal"]).squeeze(-1)

    context = {
        "goal": torch.tensor([[1.0], [9.0]], dtype=FLOAT),
        "weight": torch.tensor([1.0, 2.0], dtype=FLOAT),
    }
    assert energies(stage_cost=cost, context=context) == [[8.0, 0.0], [0.0, 16.0]]
    assert energies(terminal_cost=last, context=context) == [[1.0, 0.0], [0.0, 12.0]]


def test_steps_see_context_latents_and_time() -> None:
    def step(state: Any, action: Tensor, latent: Any, context: Any, t: int) -> Tensor:
        return state + action + latent + context["drift"] * t

    def rollout(state: Any, actions: Tensor, latents: Any, context: Any) -> Tensor:
        times = torch.arange(3, dtype=FLOAT).view(1, 3, 1)
        added = actions + latents + context["drift"].unsqueeze(1) * times
        return state.unsqueeze(1) + added.cumsum(1)

    drift = {"drift": torch.tensor([[0.0], [1.0]], dtype=FLOAT)}
    shared = torch.tensor([[[0.0], [0.0], [100.0]]], dtype=FLOAT)
    # Problem 1 drifts by 0, 1, 2: its states grow by 0, 1, 3, so its sums by 4; 100 comes last.
    wanted = [[111.0, 103.0], [131.0, 139.0]]
    for options in ({"step": step}, {"step": step, "rollout": rollout}):
        problem = counter(latents=shared, context=drift, **options)
        assert evaluate(problem, ACTIONS)[0].tolist() == wanted
        own = replace(problem, latents=torch.cat((shared, 0.0 * shared)))
        assert evaluate(own, ACTIONS)[0].tolist() == [[111.0, 103.0], [31.0, 39.0]]
        given = torch.zeros_like(ACTIONS)
        given[1, 1, 0] = 1.0  # one candidate: three states grow by 1
        assert evaluate(problem, ACTIONS, given)[0].tolist() == [[11.0, 3.0], [31.0, 42.0]]


def test_the_latent_energy_is_added() -> None:
    def latent_energy(state: Any, latents: Tensor, context: Any, t: Tensor) -> Tensor:
        return latents.abs().squeeze(-1) * (state.squeeze(-1) > 5.0)  # R may depend on the state

    problem = counter(latent_energy=latent_energy)
    latents = torch.full_like(ACTIONS, -2.0)
    # Above 5 before the action: once in the first candidate (6), always in problem 1.
    assert evaluate(problem, ACTIONS, latents)[0].tolist() == [[13.0, 3.0], [33.0, 41.0]]
    with pytest.raises(ValueError, match="latent_energy without latents"):
        evaluate(problem, ACTIONS)


def test_a_rollout_agrees_with_the_steps() -> None:
    exact = LinearQuadratic()

    def rollout(state: Any, actions: Tensor, latents: Any, context: Any) -> Tensor:
        assert latents is None
        states = []
        for t in range(actions.shape[1]):
            state = exact.step(state, actions[:, t], None, context, t)
            states.append(state)
        return torch.stack(states, 1)

    actions = torch.randn(8, 3, 15, 1, generator=seeded(), dtype=FLOAT)
    stepped = evaluate(exact.problem, actions)
    rolled = evaluate(replace(exact.problem, rollout=rollout), actions)
    assert torch.equal(stepped[0], rolled[0])
    assert torch.equal(stepped[1], rolled[1])  # type: ignore[arg-type]


def test_the_riccati_answer_has_the_energy_it_says() -> None:
    exact = LinearQuadratic()
    found = evaluate(exact.problem, exact.optimal_actions.unsqueeze(1))[0][:, 0]
    torch.testing.assert_close(found, exact.optimum, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reduction", ["sum", "softmin", "last"])
def test_gradients_agree_with_finite_differences(reduction: Any) -> None:
    recorder = Recorder()
    problem = recorder.problem(
        goal_cost=recorder.stage_cost,
        terminal_cost=lambda state, context: state.sin().sum(-1),
        reduction=reduction,
        discount=0.9,
    )
    actions = torch.rand(3, 2, 7, 2, generator=seeded(), dtype=FLOAT, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: evaluate(problem, x)[0], actions)


def test_gradients_reach_everything() -> None:
    weight = torch.ones(1, dtype=FLOAT, requires_grad=True)
    start = torch.ones(2, 1, dtype=FLOAT, requires_grad=True)
    goal = torch.ones(2, 1, dtype=FLOAT, requires_grad=True)
    latents = torch.ones(2, 2, 3, 1, dtype=FLOAT, requires_grad=True)
    problem = counter(
        state=start,
        step=lambda state, action, latent, context, t: state * weight + action + latent,
        stage_cost=lambda s, a, n, context, t: (n * context["goal"]).squeeze(-1),
        context={"goal": goal},
    )
    evaluate(problem, ACTIONS, latents)[0].sum().backward()
    for tensor in (weight, start, goal, latents):
        assert tensor.grad is not None
        assert (tensor.grad != 0.0).all()


def test_what_is_not_finite_loses() -> None:
    found = losing(torch.tensor([[1.0, math.nan, math.inf, -math.inf, 0.5]]))
    assert found.tolist() == [[1.0, math.inf, math.inf, math.inf, 0.5]]
    states = {"a": torch.zeros(1, 3, 2, 4), "b": torch.zeros(1, 3, 2, dtype=torch.int64)}
    states["a"][0, 1, 0, 2] = math.nan
    states["a"][0, 2, 1, 0] = -math.inf
    assert losing(torch.ones(1, 3), states).tolist() == [[1.0, math.inf, math.inf]]


def test_states_are_expanded_problem_major() -> None:
    state = {"a": torch.arange(6).view(2, 3), "b": {"c": torch.tensor([5, 6])}}
    wide: Any = expand(state, 2)
    assert torch.equal(wide["a"], state["a"].repeat_interleave(2, 0))  # type: ignore[union-attr]
    assert wide["b"]["c"].tolist() == [5, 5, 6, 6]
    narrow: Any = select(wide, torch.tensor([3, 0]))
    assert narrow["a"].tolist() == [[3, 4, 5], [0, 1, 2]]
    folded: Any = unflatten(wide, 2, 2)
    assert folded["a"].shape == (2, 2, 3)
    assert torch.equal(flatten(folded)["a"], wide["a"])  # type: ignore[index]


def test_differently_nested_states_are_refused() -> None:
    start = {"place": torch.zeros(2, 1, dtype=FLOAT)}
    problem = counter(state=start, step=lambda state, *_: {"other": state["place"]}, horizon=1)
    with pytest.raises(ValueError, match=r"nested differently.*place.*other"):
        evaluate(problem, ACTIONS[:, :, :1])


def test_shift() -> None:
    plan = torch.tensor([[[1.0], [2.0], [3.0]]])
    assert shift(plan).flatten().tolist() == [2.0, 3.0, 3.0]
    assert shift(plan, 2, repeat_last=False).flatten().tolist() == [3.0, 0.0, 0.0]
    assert shift(plan, 0).flatten().tolist() == [1.0, 2.0, 3.0]
    assert shift(plan, 9).flatten().tolist() == [3.0, 3.0, 3.0]
    with pytest.raises(ValueError, match="steps = -1"):
        shift(plan, -1)


def test_smooth_noise_is_straight_between_knots_and_fills_the_bounds() -> None:
    problem = counter(horizon=9, low=bound(-1.0, 2.0), high=bound(1.0, 6.0))
    noise = smooth_noise(problem, 500, 3, seeded())
    assert noise.shape == (2, 500, 9, 2)
    bend = noise.diff(n=2, dim=2).abs().amax(dim=(0, 1, 3))
    assert (bend[[0, 1, 2, 4, 5, 6]] < 1e-12).all()
    assert bend[3] > 0.1  # at the middle knot
    ends = noise[:, :, [0, 4, 8]].flatten(0, 2)
    assert ends.amin(0).tolist() == pytest.approx([-1.0, 2.0], abs=0.02)
    assert ends.amax(0).tolist() == pytest.approx([1.0, 6.0], abs=0.02)
    assert smooth_noise(problem, 4, 1, seeded()).diff(dim=2).abs().max() < 1e-12
    assert smooth_noise(problem, 4, 99, seeded()).diff(n=2, dim=2).abs().amin() > 0.0


def test_starts_are_proposals_then_safe_then_noise() -> None:
    problem = counter(low=bound(1.0), high=bound(3.0))
    given = torch.full((2, 2, 3, 1), 5.0, dtype=FLOAT)
    given[:, 1] = math.nan
    found = starts(problem, 5, 2, given, seeded())
    assert found.shape == (2, 5, 3, 1)
    assert (found[:, 0] == 3.0).all()  # clamped
    assert (found[:, 1:3] == 1.0).all()  # a broken proposal, and the safe action
    assert found[:, 3:].std() > 0.1
    assert torch.equal(starts(problem, 2, 2, given, seeded()), found[:, :2])
    assert torch.equal(starts(problem, 1, 2, None, seeded())[:, 0], safe_actions(problem))


def test_gaussian_noise_has_the_correlation_it_says() -> None:
    problem = counter(horizon=6)
    noise = gaussian_noise(problem, 20_000, seeded(), correlation=0.7).flatten(0, 1).squeeze(-1)
    lag = (torch.arange(6).unsqueeze(1) - torch.arange(6)).abs()
    torch.testing.assert_close(noise.T.cov(), (0.7**lag).to(FLOAT), atol=0.03, rtol=0.0)
    white = gaussian_noise(problem, 20_000, seeded()).flatten(0, 1).squeeze(-1)
    torch.testing.assert_close(white.T.cov(), torch.eye(6, dtype=FLOAT), atol=0.03, rtol=0.0)


def test_what_a_problem_says_of_itself() -> None:
    problem = counter()
    assert (problem.batch, problem.action_dim) == (2, 1)
    assert (problem.device, problem.dtype) == (torch.device("cpu"), FLOAT)
    discrete = counter(low=None, high=None, actions=4)
    assert discrete.dtype == torch.int64
    with pytest.raises(ValueError, match="actions = 4: the problem has discrete actions"):
        _ = discrete.bounds


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": {}}, "state holds no tensor"),
        ({"state": torch.tensor(1.0)}, "leading axis"),
        ({"state": torch.zeros(0, 2)}, "leading axis"),
        ({"state": {"a": torch.zeros(2, 1), "b": torch.zeros(3, 1)}}, "leading axis"),
        ({"horizon": 0}, "horizon = 0"),
        ({"discount": 0.0}, "discount = 0"),
        ({"discount": 1.1}, "discount = 1.1"),
        ({"discount": math.nan}, "discount = nan"),
        ({"reduction": "mean"}, "reduction = 'mean'"),
        ({"softmin_temperature": 0.0}, "softmin_temperature = 0"),
        ({"stage_cost": None}, "no cost"),
        ({"low": None}, "low or high is missing"),
        ({"actions": 3}, "both given"),
        ({"low": None, "high": None, "actions": 0}, "actions = 0"),
        ({"low": bound(0.0, 0.0)}, "shapes"),
        ({"low": torch.tensor([0]), "high": torch.tensor([1])}, "floating"),
        ({"low": torch.zeros(1)}, "one floating type"),
        ({"low": bound(100.0)}, "low < high"),
        ({"low": bound(-math.inf)}, "finite bounds"),
        ({"high": bound(math.nan)}, "finite bounds"),
        ({"context": {"goal": torch.zeros(3, 1)}}, "'goal'"),
        ({"context": {"goal": torch.tensor(1.0)}}, "'goal'"),
        ({"latents": torch.zeros(2, 4, 1)}, "latents have the shape"),
        ({"latents": torch.zeros(3, 3, 1)}, "latents have the shape"),
    ],
)
def test_a_wrong_problem_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        counter(**changes)


def test_wrong_shapes_are_refused_before_they_broadcast() -> None:
    with pytest.raises(ValueError, match="actions have the shape"):
        evaluate(counter(), ACTIONS[:, :, :2])
    with pytest.raises(ValueError, match="actions have the shape"):
        evaluate(counter(), ACTIONS[:1])
    with pytest.raises(ValueError, match="stage_cost returned the shape"):
        evaluate(counter(stage_cost=lambda s, a, n, c, t: n), ACTIONS)
    with pytest.raises(ValueError, match="goal_cost returned the shape"):
        evaluate(counter(goal_cost=lambda s, a, n, c, t: n.sum((-1, -2))), ACTIONS)
    with pytest.raises(ValueError, match="terminal_cost returned the shape"):
        evaluate(counter(terminal_cost=lambda s, c: s), ACTIONS)


def within(low: Tensor, high: Tensor, max_norm: float | None) -> Problem:
    return counter(low=low, high=high, max_norm=max_norm, state=torch.zeros(2, 1, dtype=low.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("max_norm", [None, 0.04, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_projected_actions_are_the_nearest(
    size: int, max_norm: float | None, dtype: torch.dtype
) -> None:
    """A point is the nearest of a convex set where no member is further along the way to it."""
    low, high = (
        side * (0.05 + torch.rand(size, generator=seeded(i), dtype=dtype))
        for i, side in enumerate((-1.0, 1.0))
    )
    low[-1] = 0.0  # zero may lie on the bound
    problem = within(low, high, max_norm)
    away = 2.0 * torch.randn(500, size, generator=seeded(2), dtype=dtype)
    near = project(problem, away)
    assert ((near >= low) & (near <= high)).all()
    if max_norm is not None:
        assert (near.norm(dim=-1) <= max_norm).all()
    assert torch.equal(project(problem, near), near)
    others = low + (high - low) * torch.rand(2000, size, generator=seeded(3), dtype=dtype)
    corners = torch.where(torch.rand(others.shape, generator=seeded(4)) < 0.5, low, high)
    members = project(problem, torch.cat((others, corners)))
    further = (away - near) @ members.T - ((away - near) * near).sum(-1, keepdim=True)
    assert further.max() < (1e-5 if dtype == torch.float32 else 1e-13)
    inside = project(problem, 0.5 * near)
    assert torch.equal(inside, 0.5 * near)
    assert project(problem, away, out=away) is away
    assert torch.equal(away, near)


def test_projection_against_written_out_numbers() -> None:
    problem = within(bound(-1.0, -1.0), bound(1.0, 0.3), 0.5)
    given = bound(3.0, 4.0, -3.0, -4.0, 0.1, 0.2).view(3, 2)
    # First 0.3 along the second axis, then what is left of 0.5 along the first; the box does not
    # cut the ball below.
    expected = bound(0.4, 0.3, -0.3, -0.4, 0.1, 0.2).view(3, 2)
    torch.testing.assert_close(project(problem, given), expected, rtol=1e-14, atol=0.0)


def test_starts_and_safe_actions_keep_the_norm() -> None:
    problem = within(bound(-1.0, 0.0), bound(1.0, 1.0), 0.5)
    proposals = torch.full((2, 1, 3, 2), math.inf, dtype=FLOAT)
    proposals[:, :, 1] = math.nan
    drawn = starts(problem, 200, 2, proposals, seeded())
    assert (drawn.norm(dim=-1) <= 0.5).all()
    assert drawn.isfinite().all()
    assert (drawn.norm(dim=-1) > 0.49).any()
    assert torch.equal(drawn[:, 0, 1], torch.zeros(2, 2, dtype=FLOAT))
    assert torch.equal(safe_actions(problem), torch.zeros(2, 3, 2, dtype=FLOAT))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_norm": 0.0}, "max_norm = 0.0; choose it finite and above 0"),
        ({"max_norm": math.inf}, "max_norm = inf"),
        ({"max_norm": math.nan}, "max_norm = nan"),
        ({"max_norm": 1.0, "low": bound(0.5)}, "choose low <= 0 <= high"),
        ({"max_norm": 1.0, "low": None, "high": None, "actions": 2}, "indices have no norm"),
    ],
)
def test_wrong_norms_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        counter(**changes)
