"""What every planner promises: inherit `PlannerContract` and name the planner.

The yardsticks are problems with known answers (`KNOWN`): a double integrator without bounds
(Riccati recursion), with bounds and with a largest norm (a quadratic program), and an obstacle with
two ways round (a fine search of both). All problems here are float64 and take milliseconds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from functools import cache
from itertools import count
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from forethought.planners import Deadline, Plan, Planner, Problem, Status, evaluate

FLOAT = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bound(*values: float) -> Tensor:
    return torch.tensor(values, dtype=FLOAT)


class LinearQuadratic:
    """Position and velocity pushed to zero: dt 0.2, 15 steps, costs x'Qx + R a^2 and x'Q_H x.

    Along one axis, or along two at once, which only `max_norm` ties together. The optimum is that
    of the Riccati recursion; where `limit` or `max_norm` is in the way, use `Constrained`.
    """

    dt, horizon, effort = 0.2, 15, 0.1

    def __init__(
        self, batch: int = 8, limit: float = 4.0, max_norm: float | None = None, axes: int = 1
    ) -> None:
        one = torch.eye(axes, dtype=FLOAT)
        moves = torch.tensor([[1.0, self.dt], [0.0, 1.0]], dtype=FLOAT)
        pushes = torch.tensor([[0.5 * self.dt * self.dt], [self.dt]], dtype=FLOAT)
        self.dynamics = torch.kron(one, moves)
        self.control = torch.kron(one, pushes)
        self.weight = torch.kron(one, torch.diag(torch.tensor([1.0, 0.1], dtype=FLOAT)))
        self.last_weight = 5.0 * self.weight
        self.start = 2.0 * torch.rand(batch, 2 * axes, generator=seeded(), dtype=FLOAT) - 1.0
        self.problem = Problem(
            state=self.start,
            step=self.step,
            horizon=self.horizon,
            low=bound(-limit).repeat(axes),
            high=bound(limit).repeat(axes),
            max_norm=max_norm,
            stage_cost=self.stage_cost,
            terminal_cost=self.terminal_cost,
        )
        self.optimal_actions, self.optimum = self.riccati()  # (B, H, A), (B,)
        still = torch.zeros_like(self.optimal_actions)
        self.energy_at_rest = evaluate(self.problem, still.unsqueeze(1))[0][:, 0]

    def step(self, state: Any, action: Tensor, latent: Any, context: Any, t: int) -> Tensor:
        return state @ self.dynamics.T + action @ self.control.T

    def stage_cost(self, state: Any, action: Tensor, after: Any, context: Any, t: Tensor) -> Tensor:
        return (state @ self.weight * state).sum(-1) + self.effort * action.square().sum(-1)

    def terminal_cost(self, state: Any, context: Any) -> Tensor:
        return (state @ self.last_weight * state).sum(-1)

    def riccati(self) -> tuple[Tensor, Tensor]:
        """Exact actions and cost, by dynamic programming: nothing of the planners' code is used."""
        effort = self.effort * torch.eye(self.control.shape[1], dtype=FLOAT)
        value, gains = self.last_weight, []
        for _ in range(self.horizon):
            curvature = effort + self.control.T @ value @ self.control
            gain = torch.linalg.solve(curvature, self.control.T @ value @ self.dynamics)
            value = self.weight + self.dynamics.T @ value @ (self.dynamics - self.control @ gain)
            gains.append(gain)
        state, actions = self.start, []
        for gain in reversed(gains):
            actions.append(-state @ gain.T)
            state = state @ self.dynamics.T + actions[-1] @ self.control.T
        return torch.stack(actions, 1), (self.start @ value * self.start).sum(-1)

    def ratio(self, plan: Plan) -> Tensor:
        """(J - J*) / (J_0 - J*) per problem: 0 is the optimum, 1 is doing nothing."""
        return (plan.energy - self.optimum) / (self.energy_at_rest - self.optimum)


class Constrained(LinearQuadratic):
    """The same where its constraints bind, solved as the quadratic program that it is.

    a'Ga + 2h'a + c over all actions at once, by projected gradient with momentum (Nesterov 1983,
    restarted where it rises), until a projected step moves nothing. No planner's code is used.
    """

    def __init__(self, limit: float, max_norm: float | None = None, axes: int = 1) -> None:
        super().__init__(limit=limit, max_norm=max_norm, axes=axes)
        self.limit, self.max_norm = limit, max_norm
        unbounded = self.optimal_actions
        self.optimal_actions, self.optimum = self.quadratic_program()
        assert (self.nearest(unbounded) - unbounded).abs().amax() > 0.1, "no constraint binds"

    def condensed(self) -> tuple[Tensor, Tensor, Tensor]:
        """G `(HA, HA)`, h `(B, HA)` and c `(B,)`."""
        size, width = self.control.shape
        columns, reach = self.horizon * width, torch.eye(size, dtype=FLOAT)
        response = torch.zeros(size, columns, dtype=FLOAT)  # state by actions
        curvature = self.effort * torch.eye(columns, dtype=FLOAT)
        slope, level = torch.zeros(columns, size, dtype=FLOAT), self.weight
        for t in range(self.horizon):
            response = self.dynamics @ response
            response[:, t * width : (t + 1) * width] = self.control
            reach = self.dynamics @ reach
            weight = self.weight if t < self.horizon - 1 else self.last_weight
            curvature = curvature + response.T @ weight @ response
            slope = slope + response.T @ weight @ reach
            level = level + reach.T @ weight @ reach
        return curvature, self.start @ slope.T, (self.start @ level * self.start).sum(-1)

    def nearest(self, actions: Tensor) -> Tensor:
        """Nearest actions `(B, H, A)` within box and ball, by bisection for the multiplier."""
        if self.max_norm is None:
            return actions.clamp(-self.limit, self.limit)
        below = torch.zeros_like(actions[..., :1])
        above = torch.ones_like(below)
        for _ in range(50):
            middle = 0.5 * (below + above)
            norm = (middle * actions).clamp(-self.limit, self.limit).norm(dim=-1, keepdim=True)
            below = torch.where(norm <= self.max_norm, middle, below)
            above = torch.where(norm <= self.max_norm, above, middle)
        return (below * actions).clamp(-self.limit, self.limit)

    def quadratic_program(self) -> tuple[Tensor, Tensor]:
        """Optimal actions `(B, H, A)` and their cost `(B,)`."""
        curvature, slope, level = self.condensed()
        shape = self.optimal_actions.shape
        rate = 1.0 / torch.linalg.eigvalsh(curvature)[-1]
        actions = ahead = torch.zeros(shape, dtype=FLOAT).flatten(1)
        momentum = torch.ones(shape[0], 1, dtype=FLOAT)
        for _ in range(3000):
            moved = ahead - rate * (ahead @ curvature + slope)
            moved = self.nearest(moved.view(shape)).flatten(1)
            uphill = ((ahead - moved) * (moved - actions)).sum(1, keepdim=True) > 0.0
            faster = torch.where(uphill, 1.0, 0.5 + (0.25 + momentum.square()).sqrt())
            weight = torch.where(uphill, 0.0, (momentum - 1.0) / faster)
            ahead, last, momentum = moved + weight * (moved - actions), actions, faster
            actions = moved
            if (actions - last).abs().amax() < 1e-13:
                break
        step = self.nearest((actions - rate * (actions @ curvature + slope)).view(shape)).flatten(1)
        assert (step - actions).abs().amax() < 1e-10, "the quadratic program is not solved"
        energy = (actions @ curvature * actions).sum(-1) + 2.0 * (slope * actions).sum(-1) + level
        return actions.view(shape), energy


class TwoWays:
    """A point goes 2 to the right; a hill is in the way, with a ridge on the way that is nearer.

    The straight line runs a little to one side of the hill's top, and descent goes on to that side:
    up the ridge. The better way round is the other. Four problems, two and their reflections.
    """

    horizon, speed = 20, 0.15

    def __init__(self) -> None:
        side = bound(1.0, 1.0, -1.0, -1.0)
        start = torch.stack((torch.full_like(side, -1.0), side * bound(0.1, 0.13, 0.1, 0.13)), -1)
        self.problem = Problem(
            state=start,
            step=lambda state, action, *_: state + self.speed * action,
            rollout=lambda state, actions, *_: state.unsqueeze(1) + self.speed * actions.cumsum(1),
            horizon=self.horizon,
            low=bound(-1.0, -1.0),
            high=bound(1.0, 1.0),
            stage_cost=self.stage_cost,
            terminal_cost=lambda state, context: 10.0 * (state - context["goal"]).square().sum(-1),
            context={"side": side, "goal": start * bound(-1.0, 1.0)},
        )
        self.straight = torch.zeros(4, self.horizon, 2, dtype=FLOAT)
        self.straight[..., 0] = 2.0 / (self.speed * self.horizon)
        self.ways = torch.stack([self.best_way(sign * side) for sign in (1.0, -1.0)], 1)  # (B, 2)
        self.optimum = self.ways.amin(1)

    def stage_cost(self, state: Any, action: Tensor, after: Any, context: Any, t: Tensor) -> Tensor:
        x, y = after[..., 0], context["side"] * after[..., 1]
        hill = torch.exp(-0.5 * ((x / 0.25).square() + (y / 0.3).square()))
        ridge = torch.exp(-0.5 * ((x / 0.25).square() + ((y - 0.9) / 0.4).square()))
        return 0.02 * action.square().sum(-1) + 2.0 * (hill + ridge)

    def best_way(self, side: Tensor) -> Tensor:
        """Lowest energy `(B,)` found from detours of many widths to `side` `(B,)`."""
        widths = torch.linspace(0.2, 2.0, 19, dtype=FLOAT).view(1, -1, 1)
        bow = torch.sin(math.pi * torch.linspace(0.0, 1.0, self.horizon + 1, dtype=FLOAT)).diff()
        actions = self.straight.unsqueeze(1).repeat(1, widths.shape[1], 1, 1)
        actions[..., 1] = side.view(-1, 1, 1) * widths * bow / self.speed
        actions.clamp_(-1.0, 1.0).requires_grad_()
        adam = torch.optim.Adam([actions])
        for rate in torch.linspace(0.05, 0.0, 600).tolist():
            adam.param_groups[0]["lr"] = rate
            adam.zero_grad()
            evaluate(self.problem, actions)[0].sum().backward()
            adam.step()
            with torch.no_grad():
                actions.clamp_(-1.0, 1.0)
        with torch.no_grad():
            energies, states = evaluate(self.problem, actions)
        assert isinstance(states, Tensor)
        sides = states[:, :, self.horizon // 2, 1] * side.unsqueeze(1)
        return energies.where(sides > 0.0, math.inf).amin(1)

    def ratio(self, plan: Plan) -> Tensor:
        """(J - J*) / (J' - J*) per problem, J' of the worse way: 0 is the optimum, 1 the worse."""
        return (plan.energy - self.optimum) / (self.ways.amax(1) - self.optimum)


# Problems with continuous actions and a known answer; made when first asked for, then kept.
KNOWN: dict[str, Callable[[], LinearQuadratic | TwoWays]] = {
    "free": cache(LinearQuadratic),
    "box": cache(lambda: Constrained(limit=0.5)),
    "norm": cache(lambda: Constrained(limit=0.6, max_norm=0.7, axes=2)),
    "two ways": cache(TwoWays),
}


class Recorder:
    """A two-action point with targets in its context, which counts and keeps what it is asked."""

    def __init__(self) -> None:
        self.step_rows = 0
        self.asked: list[Tensor] = []

    def push(self, action: Tensor) -> Tensor:
        """What an action does, `(..., 2)`: here the action itself."""
        return action

    def step(self, state: Any, action: Tensor, latent: Any, context: Any, t: int) -> Tensor:
        self.step_rows += len(action)
        return state + 0.3 * torch.sin(2.0 * self.push(action))

    def stage_cost(self, state: Any, action: Tensor, after: Any, context: Any, t: Tensor) -> Tensor:
        self.asked.append(action.detach().clone())
        effort = 0.01 * self.push(action).square().sum(-1)
        return (after - context["target"]).square().sum(-1) + effort

    def problem(self, batch: int = 3, **changes: Any) -> Problem:
        options: dict[str, Any] = {
            "state": torch.randn(batch, 2, generator=seeded(1), dtype=FLOAT),
            "step": self.step,
            "horizon": 7,
            "low": bound(-1.0, -0.5),
            "high": bound(0.5, 1.0),
            "stage_cost": self.stage_cost,
            "context": {"target": 1.5 * torch.randn(batch, 2, generator=seeded(2), dtype=FLOAT)},
        }
        return Problem(**(options | changes))

    def proposals(self) -> Tensor:
        """Two random proposals for each of `problem`'s three."""
        return torch.rand(3, 2, 7, 2, generator=seeded(5), dtype=FLOAT)


def same(one: Plan, other: Plan, problem: int | None = None) -> bool:
    """Whether two plans agree bit for bit, in all problems or in one."""
    at = slice(None) if problem is None else slice(problem, problem + 1)
    pairs = [
        (one.actions[at], other.actions[at]),
        (one.energy[at], other.energy[at]),
        (one.trace[:, at], other.trace[:, at]),
    ]
    return all(torch.equal(a, b) for a, b in pairs)


class CommonContract:
    """What holds for all actions; `PlannerContract` and `DiscreteContract` add the rest."""

    recorder: ClassVar[type[Recorder]] = Recorder
    planner: ClassVar[Planner]  # quick
    other_values: ClassVar[dict[str, Any]]  # of every field
    budget_field: ClassVar[str]  # the field that limits the number of proposals, for messages
    stops_early: ClassVar[bool] = True

    def plan(self, problem: Problem, seed: int = 0, **options: Any) -> Plan:
        return self.planner.plan(problem, generator=seeded(seed), **options)

    def test_members_of_a_batch_do_not_leak(self) -> None:
        problem = self.recorder().problem()
        state, target = problem.state, problem.context["target"]
        assert isinstance(state, Tensor)
        one = torch.tensor([1])
        proposals = self.recorder().proposals()
        changed = replace(
            problem,
            state=state.index_fill(0, one, 7.0),
            context={"target": target.index_fill(0, one, -1e6)},
        )
        plan = self.plan(problem, proposals=proposals)
        other = self.plan(changed, proposals=proposals.index_fill(0, one, 0))
        assert same(plan, other, 0)
        assert same(plan, other, 2)
        assert not same(plan, other, 1)

    def test_the_same_seed_gives_the_same_plan(self) -> None:
        problem = self.recorder().problem()
        assert same(self.plan(problem, seed=3), self.plan(problem, seed=3))
        assert not same(self.plan(problem, seed=3), self.plan(problem, seed=4))

    def test_options_are_frozen(self) -> None:
        name = fields(self.planner)[0].name  # type: ignore[arg-type]
        with pytest.raises(FrozenInstanceError):
            setattr(self.planner, name, 1)

    def test_no_gradient_is_left_behind(self) -> None:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 2, dtype=FLOAT)
        recorder = self.recorder()
        problem = recorder.problem(
            step=lambda state, action, *_: model(torch.cat((state, recorder.push(action)), -1))
        )
        plan = self.plan(problem)
        with torch.no_grad():
            silent = self.plan(problem)
        assert same(plan, silent), "the plan differs under no_grad"
        assert all(parameter.grad is None for parameter in model.parameters())
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert isinstance(plan.states, Tensor)
        for tensor in (plan.actions, plan.energy, plan.states, plan.trace):
            assert not tensor.requires_grad

    def test_nested_states_are_planned_like_flat_ones(self) -> None:
        recorder = self.recorder()
        problem = recorder.problem()

        def step(state: Any, action: Tensor, latent: Any, context: Any, t: int) -> Any:
            moved = recorder.step(state["body"]["place"], action, latent, context, t)
            return {"body": {"place": moved}, "clock": state["clock"] + 1}

        def cost(state: Any, action: Tensor, after: Any, context: Any, t: Tensor) -> Tensor:
            assert torch.equal(after["clock"], (t + 1).expand(after["clock"].shape))
            places = state["body"]["place"], action, after["body"]["place"]
            return recorder.stage_cost(*places, context, t)

        assert isinstance(problem.state, Tensor)
        start = {"body": {"place": problem.state}, "clock": torch.zeros(3, dtype=torch.int64)}
        plan, nested = (
            self.plan(problem),
            self.plan(replace(problem, state=start, step=step, stage_cost=cost)),
        )
        assert same(plan, nested)
        assert isinstance(nested.states, dict)
        assert torch.equal(nested.states["body"]["place"], plan.states)
        assert nested.states["clock"].shape == (3, 7)

    def test_a_rollout_replaces_the_steps(self) -> None:
        recorder, unused = self.recorder(), self.recorder()

        def rollout(state: Any, actions: Tensor, latents: Any, context: Any) -> Tensor:
            assert state.shape[0] == actions.shape[0] == context["target"].shape[0]
            pushes = torch.sin(2.0 * recorder.push(actions))
            return state.unsqueeze(1) + (0.3 * pushes).cumsum(1)

        plan = self.plan(recorder.problem())
        rolled = self.plan(unused.problem(rollout=rollout))
        assert unused.step_rows == 0
        torch.testing.assert_close(rolled.actions, plan.actions)
        torch.testing.assert_close(rolled.states, plan.states)

    def test_a_deadline_in_the_past_still_gives_a_plan(self) -> None:
        problem = self.recorder().problem()
        plan = self.plan(problem, deadline=Deadline.after(-1.0))
        full = self.plan(problem, deadline=Deadline.after(1e6))
        assert plan.trace.shape == (1, 3)
        assert plan.energy.isfinite().all()
        assert plan.status == (Status.DEADLINE if self.stops_early else Status.OK,) * 3
        assert full.status == (Status.OK,) * 3
        assert same(full, self.plan(problem))
        assert torch.equal(full.trace[0], plan.energy)

    def test_a_deadline_goes_by_the_clock_that_it_carries(self) -> None:
        """The clock here counts how often it is asked: once after each iteration."""
        problem = self.recorder().problem()
        full = self.plan(problem)
        stopped = self.plan(problem, deadline=Deadline(2.0, count(1).__next__))
        late = self.stops_early and len(full.trace) > 2
        assert stopped.status == (Status.DEADLINE if late else Status.OK,) * 3
        length = len(stopped.trace)
        assert length < len(full.trace) if late else length == len(full.trace)
        assert torch.equal(stopped.trace, full.trace[:length])

    def test_the_plan_says_what_it_is_worth(self) -> None:
        problem = self.recorder().problem()
        plan = self.plan(problem)
        energies, states = evaluate(problem, plan.actions.unsqueeze(1))
        assert isinstance(states, Tensor)
        torch.testing.assert_close(plan.energy, energies[:, 0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(plan.states, states[:, 0], rtol=1e-12, atol=1e-12)

    def test_the_accounts_are_right(self) -> None:
        recorder = self.recorder()
        began = time.perf_counter()
        plan = self.plan(recorder.problem())
        assert 0.0 < plan.seconds <= time.perf_counter() - began
        assert plan.model_steps == recorder.step_rows
        assert plan.trace.shape[0] == len(recorder.asked)
        assert (plan.trace.diff(dim=0) <= 0).all()
        assert torch.equal(plan.trace[-1], plan.energy)
        lowest = []
        for actions in recorder.asked:
            lowest.append(evaluate(self.recorder().problem(), actions)[0].amin(1))
        best = torch.stack(lowest).cummin(0).values
        torch.testing.assert_close(plan.trace, best, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("unit", [2.0**-40, 2.0**40])
    def test_the_unit_of_energy_does_not_matter(self, unit: float) -> None:
        recorder = self.recorder()
        plan = self.plan(recorder.problem())
        scaled = self.plan(
            recorder.problem(stage_cost=lambda *seen: unit * recorder.stage_cost(*seen))
        )
        torch.testing.assert_close(scaled.actions, plan.actions, rtol=1e-6, atol=1e-6)


class PlannerContract(CommonContract):
    """Inherit this. `sharp` has the budget for the linear-quadratic problem."""

    sharp: ClassVar[Planner]
    sharp_ratio: ClassVar[float]
    sharp_steps: ClassVar[int]  # one-step predictions per problem, stated so that budgets are seen

    def test_it_solves_the_linear_quadratic_problem(self) -> None:
        exact = LinearQuadratic()
        plan = self.sharp.plan(exact.problem, generator=seeded())
        low, high = exact.problem.bounds
        assert (exact.optimal_actions > low).all()
        assert (exact.optimal_actions < high).all()
        ratio = exact.ratio(plan)
        assert (ratio >= -1e-9).all(), f"better than the optimum: {ratio}"
        assert (ratio <= self.sharp_ratio).all(), f"{ratio} > {self.sharp_ratio}"
        assert plan.model_steps == self.sharp_steps * 8
        assert plan.status == (Status.OK,) * 8

    def test_bounds_hold_for_every_candidate(self) -> None:
        recorder = Recorder()
        far = torch.full((3, 2), 50.0, dtype=FLOAT)  # pushes against the upper bounds
        problem = recorder.problem(context={"target": far})
        out = torch.full((3, 1, 7, 2), -9.0, dtype=FLOAT)
        plan = self.plan(problem, proposals=out)
        low, high = problem.bounds
        for actions in [plan.actions, *recorder.asked]:
            assert (actions >= low).all()
            assert (actions <= high).all()
        proposed = evaluate(problem, out.clamp(low, high))[0][:, 0]
        assert (plan.energy < proposed).all()

    def test_the_largest_norm_holds_for_every_candidate(self) -> None:
        """The box ends at 1 along one axis and at 0.5 along the other, and cuts the ball."""
        recorder = Recorder()
        far = torch.full((3, 2), 50.0, dtype=FLOAT)
        problem = recorder.problem(context={"target": far}, max_norm=0.8)
        out = torch.full((3, 1, 7, 2), 9.0, dtype=FLOAT)
        plan = self.plan(problem, proposals=out)
        low, high = problem.bounds
        for actions in [plan.actions, *recorder.asked]:
            assert (actions.norm(dim=-1) <= 0.8).all()
            assert (actions >= low).all()
            assert (actions <= high).all()
        assert any((seen.norm(dim=-1) > 0.79).any() for seen in recorder.asked), "never at the norm"
        without = self.plan(replace(problem, max_norm=None), proposals=out)
        assert (without.actions.norm(dim=-1) > 0.8).any(), "the norm was not in the way"

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("place", ["cost", "state"])
    def test_not_a_number_loses(self, place: str, value: float) -> None:
        """The cost falls with the action; above 0.6, where it would fall further, all is broken."""

        def step(state: Any, action: Tensor, latent: Any, context: Any, t: int) -> Tensor:
            if place == "cost":
                return state + action
            return torch.where(action > 0.6, value, state + action)

        def cost(state: Any, action: Tensor, after: Any, context: Any, t: Tensor) -> Tensor:
            asked.append(action.detach().clone())
            if place == "state":  # a bounded cost does not notice a broken state
                return -action.sum(-1)
            return torch.where(action > 0.6, value, -action).sum(-1)

        asked: list[Tensor] = []
        problem = Recorder().problem(
            state=torch.zeros(3, 1, dtype=FLOAT),
            step=step,
            stage_cost=cost,
            horizon=4,
            low=bound(-1.0),
            high=bound(1.0),
        )
        plan = self.plan(problem)
        assert plan.status == (Status.OK,) * 3
        assert (plan.actions <= 0.6).all()
        assert (plan.energy < -0.1).all(), "nothing was found though much is finite"
        assert plan.energy.isfinite().all()
        assert plan.trace.isneginf().sum() == 0
        assert any((actions > 0.6).any() for actions in asked), "the trap was never met"
        assert all(actions.isfinite().all() for actions in asked), "a candidate was poisoned"

    def test_where_nothing_is_finite_the_action_is_safe(self) -> None:
        recorder = Recorder()
        problem = recorder.problem(low=bound(0.2, -0.5))
        state = problem.state
        assert isinstance(state, Tensor)
        broken = replace(problem, state=state.index_fill(0, torch.tensor([1]), math.nan))
        plan, whole = self.plan(broken), self.plan(problem)
        assert plan.status == (Status.OK, Status.ALL_NON_FINITE, Status.OK)
        assert torch.equal(plan.actions[1], bound(0.2, 0.0).expand(7, 2))
        assert plan.energy[1] == math.inf
        assert same(plan, whole, 0), "a broken problem leaked into its neighbour"
        assert same(plan, whole, 2), "a broken problem leaked into its neighbour"

    def test_every_option_changes_behaviour(self) -> None:
        problem = Recorder().problem()
        names = {field.name for field in fields(self.planner)}  # type: ignore[arg-type]
        assert set(self.other_values) == names, "give every field another value"
        plan = self.plan(problem)
        for name, value in self.other_values.items():
            assert getattr(self.planner, name) != value
            changed: Planner = replace(self.planner, **{name: value})  # type: ignore[type-var]
            other = changed.plan(problem, generator=seeded())
            differs = plan.trace.shape != other.trace.shape or not same(plan, other)
            assert differs, f"{name} = {value} changed nothing"

    def test_proposals_are_used(self) -> None:
        exact = LinearQuadratic()
        for place in (0, 1):  # first, and behind a useless one
            proposals = torch.full((8, 2, 15, 1), 4.0, dtype=FLOAT)
            proposals[:, place] = exact.optimal_actions
            plan = self.plan(exact.problem, proposals=proposals)
            assert (plan.energy <= exact.optimum + 1e-9).all()
            assert (plan.trace[0] <= exact.optimum + 1e-9).all(), "not from the start"

    def test_a_broken_proposal_is_survived(self) -> None:
        problem = Recorder().problem()
        plan = self.plan(problem, proposals=torch.full((3, 1, 7, 2), math.nan, dtype=FLOAT))
        assert plan.status == (Status.OK,) * 3
        assert plan.actions.isfinite().all()

    def test_wrong_proposals_are_refused(self) -> None:
        problem = Recorder().problem()
        with pytest.raises(ValueError, match=r"proposals have the shape \(3, 7, 2\)"):
            self.plan(problem, proposals=torch.zeros(3, 7, 2, dtype=FLOAT))
        assert self.planner.room is not None
        many = torch.zeros(3, self.planner.room + 1, 7, 2, dtype=FLOAT)
        with pytest.raises(ValueError, match=f"proposals exceed {self.budget_field}"):
            self.plan(problem, proposals=many)

    def test_float32_stays_float32(self) -> None:
        recorder = Recorder()
        problem = recorder.problem()
        single = recorder.problem(
            state=problem.state.float(),  # type: ignore[union-attr]
            low=problem.bounds[0].float(),
            high=problem.bounds[1].float(),
            context={"target": problem.context["target"].float()},
        )
        plan = self.plan(single)
        assert plan.actions.dtype == plan.energy.dtype == plan.trace.dtype == torch.float32
