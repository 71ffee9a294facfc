"""Lifted states: what the loss feels, that candidates are real, and what it finds."""

from __future__ import annotations

import math
import time
from typing import Any, ClassVar

import pytest
import torch
from planner_contract import (
    FLOAT,
    KNOWN,
    LinearQuadratic,
    PlannerContract,
    Recorder,
    bound,
    seeded,
)
from torch import Tensor

from forethought.planners import Gradient, Problem, evaluate
from forethought.planners.incumbent import Incumbent
from forethought.planners.lifted import Lifted, _energies_along, _predicted, _scales


class TestLifted(PlannerContract):
    planner = Lifted(starts=5, cycles=2, iterations=3, descents=2)
    sharp = Lifted(cycles=3, iterations=10, descents=30, learning_rate=0.05)
    sharp_ratio = 0.02
    sharp_steps = 8 * (1 + 3 * (10 + 30 + 1)) * 15
    budget_field = "starts"
    other_values: ClassVar[dict[str, Any]] = {
        "starts": 4,
        "cycles": 1,
        "iterations": 2,
        "descents": 1,
        "learning_rate": 0.2,
        "state_rate": 0.2,
        "residual": 1.0,
        "noise": 0.0,
        "lift": False,
        "stop": False,
        "knots": 2,
    }

    def test_every_option_changes_behaviour(self) -> None:
        """`shaping` needs a goal, which the common problem has not."""
        recorder = Recorder()
        problem = recorder.problem(goal_cost=recorder.stage_cost, stage_cost=None)
        plan = self.plan(problem)
        other = Lifted(starts=5, cycles=2, iterations=3, descents=2, shaping=1.0)
        assert not torch.equal(plan.energy, other.plan(problem, generator=seeded()).energy)
        values = type(self).other_values
        try:
            type(self).other_values = values | {"shaping": 0.5}
            with pytest.raises(AssertionError, match=r"shaping = 0\.5 changed nothing"):
                super().test_every_option_changes_behaviour()
        finally:
            type(self).other_values = values

    def test_a_rollout_replaces_the_steps(self) -> None:
        """Only in the roll-outs: lifted states are taken by single steps."""
        recorder, stepped = Recorder(), Recorder()

        def rollout(state: Any, actions: Tensor, latents: Any, context: Any) -> Tensor:
            assert state.shape[0] == actions.shape[0] == context["target"].shape[0]
            return state.unsqueeze(1) + (0.3 * torch.sin(2.0 * actions)).cumsum(1)

        plan = self.plan(recorder.problem())
        rolled = self.plan(stepped.problem(rollout=rollout))
        assert stepped.step_rows == 2 * 3 * (3 * 5 * 7)
        assert recorder.step_rows == stepped.step_rows + (1 + 2 * 3) * (3 * 5 * 7)
        torch.testing.assert_close(rolled.actions, plan.actions)
        torch.testing.assert_close(rolled.states, plan.states)

    def test_the_accounts_are_right(self) -> None:
        """Costs are asked for lifted states too: candidates are those that match a roll-out."""

        class Real(Recorder):
            def stage_cost(
                self, state: Any, action: Tensor, after: Any, context: Any, t: Tensor
            ) -> Tensor:
                real = state + 0.3 * torch.sin(2.0 * action)
                if not torch.equal(real, after):
                    return Recorder().stage_cost(state, action, after, context, t)
                return super().stage_cost(state, action, after, context, t)

        recorder = Real()
        began = time.perf_counter()
        plan = self.plan(recorder.problem())
        assert 0.0 < plan.seconds <= time.perf_counter() - began
        assert plan.model_steps == recorder.step_rows
        assert plan.trace.shape[0] == 1 + 2 * 3
        assert (plan.trace.diff(dim=0) <= 0).all()
        assert torch.equal(plan.trace[-1], plan.energy)
        lowest = [evaluate(Recorder().problem(), a)[0].amin(1) for a in recorder.asked]
        torch.testing.assert_close(torch.stack(lowest).amin(0), plan.energy)


ARMS = [(lift, stop) for lift in (False, True) for stop in (False, True)]


@pytest.mark.parametrize(("lift", "stop"), ARMS)
def test_each_arm_keeps_its_accounts(lift: bool, stop: bool) -> None:
    recorder = Recorder()
    planner = Lifted(starts=3, cycles=2, iterations=3, descents=1, lift=lift, stop=stop)
    plan = planner.plan(recorder.problem(), generator=seeded())
    more = 3 if stop and not lift else 0
    assert plan.model_steps == recorder.step_rows == (1 + 2 * (3 + more + 2)) * 3 * 3 * 7
    energies, _ = evaluate(Recorder().problem(), plan.actions.unsqueeze(1))
    torch.testing.assert_close(plan.energy, energies[:, 0], rtol=1e-12, atol=1e-12)
    assert (plan.energy < plan.trace[0]).all()


def chain() -> tuple[Problem, Tensor]:
    """s' = s^2 / 2 + a with a cost on every state; and actions `(1, 1, 3, 1)`."""
    problem = Problem(
        state=bound(0.5).view(1, 1),
        step=lambda state, action, *_: 0.5 * state.square() + action,
        horizon=3,
        low=bound(-2.0),
        high=bound(2.0),
        stage_cost=lambda state, action, after, context, t: after[..., 0].square(),
        terminal_cost=lambda state, context: 3.0 * state[..., 0],
    )
    return problem, bound(0.3, -0.7, 1.1).view(1, 1, 3, 1)


def rolled(problem: Problem, actions: Tensor) -> tuple[Tensor, Any]:
    energies, states = evaluate(problem, actions)
    assert isinstance(states, Tensor)
    return states, _scales(problem, actions, states, energies)


def test_the_stop_alone_lets_an_action_feel_its_successor_and_nothing_later() -> None:
    problem, actions = chain()
    states, scales = rolled(problem, actions)
    planner = Lifted(lift=False, stop=True, shaping=0.0)
    (slope,) = planner._unlifted(problem, actions, scales, Incumbent(problem, None))
    wanted = 2.0 * states.flatten() + bound(0.0, 0.0, 3.0)
    torch.testing.assert_close(slope.flatten() * scales.energy.item(), wanted)


def test_neither_is_the_gradient_of_the_roll_out() -> None:
    problem, actions = chain()
    _, scales = rolled(problem, actions)
    planner = Lifted(lift=False, stop=False, shaping=0.0)
    (slope,) = planner._unlifted(problem, actions, scales, Incumbent(problem, None))
    for t in range(3):
        nudge = torch.zeros(3, 1, dtype=FLOAT)
        nudge[t] = 1e-5
        up, down = (evaluate(problem, actions + sign * nudge)[0].item() for sign in (1.0, -1.0))
        assert slope[0, 0, t, 0].item() * scales.energy.item() == pytest.approx(
            (up - down) / 2e-5, rel=1e-6
        )


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("shaping", [0.0, 0.5])
def test_the_lifted_gradient_against_finite_differences(stop: bool, shaping: float) -> None:
    """Of the loss as the class states it; with `stop`, the model's own input is held still."""
    problem, actions = chain()
    states, scales = rolled(problem, actions)
    states = states + bound(0.2, -0.1, 0.3).view(3, 1)
    planner = Lifted(residual=7.0, shaping=shaping, stop=stop)
    found = planner._lifted(problem, actions, states, scales)
    unit, distance = scales.energy.item(), scales.distances[0].item()

    def loss(a: Tensor, s: Tensor, seen: Tensor) -> float:
        before = torch.cat((bound(0.5), seen[:-1]))
        predicted = 0.5 * before.square() + a
        energy = s.square().sum() + 3.0 * s[-1]
        total = energy / unit + 7.0 * (s - predicted).square().sum() / distance**2
        return (total + shaping * 3.0 * predicted.mean() / unit).item()

    a, s = actions.flatten(), states.flatten()
    for t in range(3):
        nudge = torch.zeros(3, dtype=FLOAT)
        nudge[t] = 1e-5
        by_action = [loss(a + sign * nudge, s, s) for sign in (1.0, -1.0)]
        by_state = [
            loss(a, s + sign * nudge, s if stop else s + sign * nudge) for sign in (1.0, -1.0)
        ]
        for slope, (up, down) in zip(found, (by_action, by_state), strict=True):
            assert slope.flatten()[t].item() == pytest.approx(
                (up - down) / 2e-5, rel=1e-6, abs=1e-8
            )


def test_the_units_are_distance_and_change_of_energy() -> None:
    problem, actions = chain()
    states, scales = rolled(problem, actions)
    away = states.flatten() - 0.5
    distance = away.square().mean().sqrt()
    slope = (2.0 * states.flatten() + bound(0.0, 0.0, 3.0)).norm()
    torch.testing.assert_close(scales.distances[0], distance.view(1))
    torch.testing.assert_close(scales.energy, (slope * distance).view(1, 1))


def test_at_a_roll_out_predictions_agree_and_energies_too() -> None:
    exact = LinearQuadratic()
    actions = torch.rand(8, 3, 15, 1, generator=seeded(), dtype=FLOAT)
    energies, states = evaluate(exact.problem, actions)
    predicted = _predicted(exact.problem, actions, states, True)
    torch.testing.assert_close(predicted, states)
    torch.testing.assert_close(_energies_along(exact.problem, actions, states), energies)


def test_the_stopped_lift_needs_no_slope_of_the_model_in_states() -> None:
    """A model whose slope in the state is not a number: the stop plans, plain descent stays."""

    def step(state: Tensor, action: Tensor, latent: Any, context: Any, t: int) -> Tensor:
        wild = (state - state.detach()).abs().sqrt()  # 0, with an infinite slope
        return state + 0.3 * action + wild

    recorder = Recorder()
    problem = recorder.problem(step=step, goal_cost=recorder.stage_cost, stage_cost=None)
    plain = Gradient(starts=1).plan(problem, generator=seeded())
    for lift in (False, True):
        planner = Lifted(starts=1, descents=0, lift=lift, learning_rate=0.05)
        plan = planner.plan(problem, generator=seeded())
        assert (plan.energy < 0.9 * plain.energy).all(), lift


# The largest excess energy per arm, about twice what was measured: 0 is the optimum, 1 is doing
# nothing (two ways: the worse way round). The stop alone is greedy and never plans a detour.
LIMITS = {
    # lift, stop: box, two ways
    (False, False): (0.004, 0.015),
    (False, True): (0.09, 4.5),
    (True, False): (0.017, 0.2),
    (True, True): (0.006, 0.3),
}


@pytest.mark.parametrize(("lift", "stop"), ARMS)
@pytest.mark.parametrize("name", ["box", "two ways"])
def test_known_answers_are_found(name: str, lift: bool, stop: bool) -> None:
    known = KNOWN[name]()
    planner = Lifted(cycles=3, iterations=10, descents=10, learning_rate=0.05, lift=lift, stop=stop)
    ratio = known.ratio(planner.plan(known.problem, generator=seeded()))
    assert (ratio >= -1e-6).all()
    assert (ratio <= LIMITS[lift, stop][name == "two ways"]).all(), ratio


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"starts": 0}, "starts = 0"),
        ({"cycles": 0}, "cycles = 0"),
        ({"iterations": 0}, "iterations = 0"),
        ({"descents": -1}, "descents = -1"),
        ({"learning_rate": 0.0}, "learning_rate = 0"),
        ({"state_rate": math.nan}, "state_rate = nan"),
        ({"residual": 0.0}, "residual = 0"),
        ({"shaping": -1.0}, "shaping = -1"),
        ({"noise": -1.0}, "noise = -1"),
        ({"knots": 0}, "knots = 0"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lifted(**options)
