"""Second-order planning: known optima, its derivatives, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from planner_contract import (
    FLOAT,
    KNOWN,
    Constrained,
    LinearQuadratic,
    PlannerContract,
    Recorder,
    bound,
    seeded,
)
from torch import Tensor

from forethought.planners import Problem, Reduction, evaluate
from forethought.planners.gauss_newton import (
    GaussNewton,
    _action_gradient,
    _boxed,
    _convex,
    _dynamics,
    _expansion,
)


class Offers(Recorder):
    """Keeps the candidates alone: costs are also asked for derivatives, of actions with a graph."""

    def stage_cost(self, state: Any, action: Tensor, after: Any, context: Any, t: Tensor) -> Tensor:
        cost = super().stage_cost(state, action, after, context, t)
        if action.requires_grad:
            self.asked.pop()
        return cost


class TestGaussNewton(PlannerContract):
    recorder = Offers
    planner = GaussNewton(starts=5, iterations=3, line_search=3, damping=0.1)
    sharp = GaussNewton(starts=1, iterations=1, line_search=1)
    sharp_ratio = 1e-6
    sharp_steps = 4 * 15  # the start, its Jacobians, the step by either law
    budget_field = "starts"
    other_values: ClassVar[dict[str, Any]] = {
        "starts": 4,
        "iterations": 2,
        "line_search": 2,
        "damping": 0.0,
        "knots": 2,
    }

    def test_nested_states_are_planned_like_flat_ones(self) -> None:
        """They are refused instead."""
        problem = Recorder().problem()
        nested = replace(problem, state={"place": problem.state, "clock": torch.zeros(3)})
        with pytest.raises(ValueError, match=r"mapping with the keys \['clock', 'place'\]; give"):
            self.plan(nested)
        for state in (torch.zeros(3, 2, 2), torch.zeros(3, 2, dtype=torch.int64)):
            with pytest.raises(ValueError, match=r"state has the shape .* give a floating"):
                self.plan(replace(problem, state=state))

    def test_a_rollout_replaces_the_steps(self) -> None:
        """Only for the starts: the Jacobians and the feedback law need single steps."""
        recorder, stepped = Recorder(), Recorder()

        def rollout(state: Any, actions: Tensor, latents: Any, context: Any) -> Tensor:
            assert state.shape[0] == actions.shape[0] == context["target"].shape[0]
            return state.unsqueeze(1) + (0.3 * torch.sin(2.0 * actions)).cumsum(1)

        plan = self.plan(recorder.problem())
        rolled = self.plan(stepped.problem(rollout=rollout))
        assert recorder.step_rows - stepped.step_rows == 3 * 5 * 7
        torch.testing.assert_close(rolled.actions, plan.actions)
        torch.testing.assert_close(rolled.states, plan.states)


@pytest.mark.parametrize(
    ("exact", "steps"),
    [
        (LinearQuadratic(axes=3), 1),  # D = 6, A = 3
        (Constrained(limit=1.0), 6),
        (Constrained(limit=0.8, axes=2), 6),
    ],
)
def test_the_exact_answer_in_few_steps(exact: LinearQuadratic, steps: int) -> None:
    plan = GaussNewton(starts=1, iterations=steps).plan(exact.problem, generator=seeded())
    ratio = exact.ratio(plan)
    assert (ratio >= -1e-9).all()
    assert (ratio <= 1e-6).all(), ratio
    torch.testing.assert_close(plan.actions, exact.optimal_actions, rtol=0.0, atol=1e-3)


def test_one_step_solves_it_in_float32_too() -> None:
    exact = LinearQuadratic()
    single = LinearQuadratic()
    for name in ("dynamics", "control", "weight", "last_weight"):
        setattr(single, name, getattr(exact, name).float())
    low, high = exact.problem.bounds
    problem = replace(single.problem, state=exact.start.float(), low=low.float(), high=high.float())
    plan = GaussNewton(starts=1, iterations=1).plan(problem, generator=seeded())
    assert plan.actions.dtype == torch.float32
    torch.testing.assert_close(plan.actions, exact.optimal_actions.float(), rtol=1e-3, atol=1e-4)


def test_both_ways_round_the_obstacle_are_found() -> None:
    exact = KNOWN["two ways"]()
    plan = GaussNewton(starts=8, iterations=12).plan(exact.problem, generator=seeded())
    ratio = exact.ratio(plan)
    assert (ratio >= -1e-6).all(), ratio
    assert (ratio <= 0.01).all(), ratio


def curved(reduction: Reduction = "sum", discount: float = 0.9, **changes: Any) -> Problem:
    """Nonlinear in everything, with every kind of cost, latents and a time-varying model."""

    def step(state: Tensor, action: Tensor, latent: Any, context: Any, t: int) -> Tensor:
        push = torch.stack((action[:, 0], action[:, 1] * state[:, 0], action.prod(1)), 1)
        return torch.tanh(state + 0.4 * push + 0.2 * latent + 0.1 * t * context["wind"])

    def stage(state: Tensor, action: Tensor, after: Tensor, context: Any, t: Tensor) -> Tensor:
        return (after - state).square().sum(-1) * (1.0 + 0.1 * t) + action.prod(-1) ** 2

    def goal(state: Tensor, action: Tensor, after: Tensor, context: Any, t: Tensor) -> Tensor:
        return (after - context["wind"]).square().sum(-1) + action.square().sum(-1)

    def latent_energy(state: Tensor, latents: Tensor, context: Any, t: Tensor) -> Tensor:
        return (latents * state).sum(-1)

    def terminal(state: Tensor, context: Any) -> Tensor:
        return state[..., 0].exp() + state[..., 1] ** 4

    options: dict[str, Any] = {
        "state": torch.randn(2, 3, generator=seeded(3), dtype=FLOAT),
        "step": step,
        "horizon": 4,
        "low": bound(-1.0, -0.5),
        "high": bound(0.5, 1.5),
        "stage_cost": stage,
        "goal_cost": goal,
        "terminal_cost": terminal,
        "latent_energy": latent_energy,
        "latents": torch.randn(1, 4, 3, generator=seeded(4), dtype=FLOAT),
        "reduction": reduction,
        "softmin_temperature": 0.3,
        "discount": discount,
        "context": {"wind": torch.randn(2, 3, generator=seeded(5), dtype=FLOAT)},
    }
    return Problem(**(options | changes))


def some_actions(problem: Problem, samples: int = 3) -> Tensor:
    shape = (problem.batch, samples, problem.horizon, 2)
    return torch.rand(shape, generator=seeded(6), dtype=FLOAT) - 0.5


@pytest.mark.parametrize("reduction", ["sum", "softmin", "last"])
def test_the_expansion_has_the_gradient_of_the_energy(reduction: Reduction) -> None:
    """The adjoint recursion on it against central differences of `evaluate`, in half ranges."""
    problem = curved(reduction)
    actions = some_actions(problem)
    energies, states = evaluate(problem, actions)
    assert isinstance(states, Tensor)
    found = _action_gradient(_expansion(problem, actions, states, energies))
    half_range = bound(0.75, 1.0)
    for t in range(4):
        for i in range(2):
            nudge = torch.zeros(4, 2, dtype=FLOAT)
            nudge[t, i] = 1e-5 * half_range[i]
            up, down = (evaluate(problem, actions + sign * nudge)[0] for sign in (1.0, -1.0))
            torch.testing.assert_close(found[:, :, t, i], (up - down) / 2e-5, rtol=1e-6, atol=1e-8)


def test_the_jacobians_against_finite_differences() -> None:
    problem = curved()
    actions = some_actions(problem)
    before = torch.randn(2, 3, 4, 3, generator=seeded(7), dtype=FLOAT)
    jacobians = _dynamics(problem, before, actions)
    assert jacobians.shape == (2, 3, 4, 3, 5)
    assert problem.latents is not None
    wind = problem.context["wind"].repeat_interleave(3, 0)
    together = torch.cat((before, actions), -1).flatten(0, 1)  # (6, 4, 5)
    for t in range(4):
        latent = problem.latents[:, t].expand(6, -1)
        for i in range(5):
            sides = []
            for sign in (1.0, -1.0):
                moved = together[:, t].clone()
                moved[:, i] += sign * 1e-6
                sides.append(problem.step(moved[:, :3], moved[:, 3:], latent, {"wind": wind}, t))
            slope = ((sides[0] - sides[1]) / 2e-6).unflatten(0, (2, 3))
            torch.testing.assert_close(jacobians[:, :, t, :, i], slope, rtol=1e-6, atol=1e-8)


def test_the_curvature_against_finite_differences() -> None:
    """With a linear model and convex costs the expansion is exact in the last action too."""
    exact = LinearQuadratic(batch=2)
    actions = torch.rand(2, 3, 15, 1, generator=seeded(), dtype=FLOAT)
    energies, states = evaluate(exact.problem, actions)
    assert isinstance(states, Tensor)
    local = _expansion(exact.problem, actions, states, energies)
    nudge = torch.zeros(15, 1, dtype=FLOAT)
    nudge[-1] = 1e-2 * 4.0
    up, down = (evaluate(exact.problem, actions + sign * nudge)[0] for sign in (1.0, -1.0))
    second = (up + down - 2.0 * energies) / 1e-4
    torch.testing.assert_close(local.hessians[:, :, -1, 2, 2], second, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "softmin", "last"])
def test_it_ends_where_the_energy_is_flat(reduction: Reduction) -> None:
    """The projected gradient shrinks by a million, for each way to reduce the goal cost."""
    problem = curved(reduction, low=bound(-2.0, -2.0), high=bound(2.0, 2.0))

    def slope(actions: Tensor) -> Tensor:
        leaf = actions.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(evaluate(problem, leaf)[0].sum(), leaf)
        return ((leaf - gradient).clamp(-2.0, 2.0) - leaf).detach().flatten(1).norm(dim=1)

    safe = torch.zeros(2, 1, 4, 2, dtype=FLOAT)
    plan = GaussNewton(starts=1, iterations=60).plan(problem, generator=seeded())
    assert (slope(plan.actions.unsqueeze(1)) < 1e-6 * slope(safe)).all()


def test_negative_eigenvalues_are_cut_and_others_kept() -> None:
    vectors = torch.linalg.qr(torch.randn(3, 3, generator=seeded(), dtype=FLOAT)).Q
    values = bound(-2.0, 0.5, 3.0)
    indefinite = vectors @ values.diag() @ vectors.T
    convex = vectors @ values.clamp(min=0.0).diag() @ vectors.T
    found = _convex(torch.stack((indefinite, convex, torch.zeros(3, 3, dtype=FLOAT))))
    torch.testing.assert_close(found[0], convex)
    assert torch.equal(found[1], convex)
    assert torch.equal(found[2], torch.zeros(3, 3, dtype=FLOAT))


def test_the_box_problem_meets_its_optimality_conditions() -> None:
    root = torch.randn(400, 1, 4, 4, generator=seeded(), dtype=FLOAT)
    square = root @ root.mT + 0.1 * torch.eye(4, dtype=FLOAT)
    linear = 3.0 * torch.randn(400, 1, 4, generator=seeded(1), dtype=FLOAT)
    lower = -torch.rand(400, 1, 4, generator=seeded(2), dtype=FLOAT)
    upper = torch.rand(400, 1, 4, generator=seeded(3), dtype=FLOAT)
    x, free = _boxed(square, linear, lower, upper)
    assert (x >= lower).all()
    assert (x <= upper).all()
    slope = (square @ x.unsqueeze(-1)).squeeze(-1) + linear
    missed = (x - (x - slope).clamp(lower, upper)).abs().amax(-1)
    # The few that its limited number of steps leaves are descent directions all the same.
    assert (missed < 1e-8).double().mean() > 0.98
    value = ((0.5 * (square @ x.unsqueeze(-1)).squeeze(-1) + linear) * x).sum(-1)
    assert (value < 0.0).all()
    assert 100 < free.sum() < 1500


def test_a_step_that_raises_the_energy_is_not_taken() -> None:
    """Full steps on sqrt(1 + a^2) jump over its valley, higher each time; damping helps."""
    problem = Problem(
        state=torch.zeros(1, 1, dtype=FLOAT),
        step=lambda state, action, *_: state + action,
        horizon=1,
        low=bound(-50.0),
        high=bound(50.0),
        terminal_cost=lambda state, context: (1.0 + state[..., 0].square()).sqrt(),
    )
    first = torch.full((1, 1, 1, 1), 3.0, dtype=FLOAT)
    # Newton's step from 3 leads to -27, where the energy is higher.
    once = GaussNewton(starts=1, iterations=1, line_search=1)
    assert once.plan(problem, proposals=first, generator=seeded()).actions.item() == 3.0
    often = replace(once, iterations=15)
    assert abs(often.plan(problem, proposals=first, generator=seeded()).actions.item()) < 1e-3


def test_a_model_without_a_gradient_is_refused() -> None:
    recorder = Recorder()
    problem = recorder.problem()
    silent = replace(problem, step=lambda *seen: problem.step(*seen).detach())
    with pytest.raises(ValueError, match="state that step returns has no gradient"):
        GaussNewton().plan(silent, generator=seeded())
    flat = replace(problem, stage_cost=lambda *seen: recorder.stage_cost(*seen).detach())
    with pytest.raises(ValueError, match="the energy has no gradient"):
        GaussNewton().plan(flat, generator=seeded())


def test_discrete_actions_are_refused() -> None:
    problem = Recorder().problem(low=None, high=None, actions=3)
    with pytest.raises(ValueError, match="needs continuous ones"):
        GaussNewton().plan(problem, generator=seeded())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"starts": 0}, "starts = 0"),
        ({"iterations": 0}, "iterations = 0"),
        ({"line_search": 0}, "line_search = 0"),
        ({"knots": 0}, "knots = 0"),
        ({"damping": -1.0}, "damping = -1"),
        ({"damping": math.nan}, "damping = nan"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GaussNewton(**options)
