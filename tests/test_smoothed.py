"""Planning through contacts: where the plain gradient is zero, the smoothed one is not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from planner_contract import FLOAT, PlannerContract, bound, seeded
from torch import Tensor

from forethought.planners import Gradient, Plan, Problem, evaluate
from forethought.planners.descent import Descent
from forethought.planners.proposals import gaussian_noise
from forethought.planners.smoothed import Smoothed, _covariance, _mean, _mixed


class TestSmoothed(PlannerContract):
    planner = Smoothed(starts=4, pairs=3, iterations=5)
    sharp = Smoothed(starts=4, pairs=4, iterations=80, learning_rate=0.05, trust=10.0)
    sharp_ratio = 0.03
    sharp_steps = 4 * (80 * 9 + 1) * 15
    budget_field = "starts"
    other_values: ClassVar[dict[str, Any]] = {
        "starts": 3,
        "pairs": 2,
        "iterations": 4,
        "learning_rate": 0.2,
        "std": 0.2,
        "last_std": 0.1,
        "correlation": 0.0,
        "trust": 0.0,
        "knots": 2,
    }


def pushing(batch: int = 4, **changes: Any) -> Problem:
    """A finger at 0 pushes a block, 0.6 to 0.9 away, to 0.5 behind that, and comes to rest there.

    The block moves only with the finger behind it: until they touch, no action changes the energy.
    """

    def step(state: Tensor, action: Tensor, latent: Any, context: Any, t: int) -> Tensor:
        finger = state[:, 0] + 0.2 * action[:, 0]
        return torch.stack((finger, torch.maximum(state[:, 1], finger)), 1)

    def terminal(state: Tensor, context: Any) -> Tensor:
        return (state[..., 1] - context["target"]).square()

    block = torch.linspace(0.6, 0.9, batch, dtype=FLOAT)
    options: dict[str, Any] = {
        "state": torch.stack((torch.zeros(batch, dtype=FLOAT), block), 1),
        "step": step,
        "horizon": 12,
        "low": bound(-1.0),
        "high": bound(1.0),
        "terminal_cost": terminal,
        "context": {"target": block + 0.5},
    }
    return Problem(**(options | changes))


def missed(problem: Problem, plan: Plan) -> Tensor:
    """How far from its target the block ends `(B,)`; 0.5 is where it began."""
    assert isinstance(plan.states, Tensor)
    return (plan.states[:, -1, 1] - problem.context["target"]).abs()


def test_a_block_out_of_touch_is_pushed_where_plain_descent_stays() -> None:
    problem = pushing()
    plain = Gradient(starts=1, iterations=200).plan(problem, generator=seeded())
    assert torch.equal(plain.actions, torch.zeros_like(plain.actions))
    for trust in (0.0, 1.0):
        planner = Smoothed(starts=1, pairs=16, iterations=40, trust=trust)
        plan = planner.plan(problem, generator=seeded())
        assert (missed(problem, plan) < 0.05).all(), (trust, missed(problem, plan))


def test_a_staircase_is_descended() -> None:
    """It falls in ten steps towards the end of the finger's reach, and is flat between."""

    def terminal(state: Tensor, context: Any) -> Tensor:
        return (5.0 * (2.0 - state[..., 0]).abs()).floor() + 0.0 * state.sum(-1)

    problem = pushing(terminal_cost=terminal)
    plain = Gradient(starts=1, iterations=200).plan(problem, generator=seeded())
    assert (plain.energy == 10.0).all()
    plan = Smoothed(starts=1, pairs=16, iterations=30).plan(problem, generator=seeded())
    assert (plan.trace[0] > 3.0).all(), "one draw is enough"
    assert (plan.energy == 0.0).all(), plan.energy


def test_without_trust_no_gradient_is_needed() -> None:
    problem = pushing()
    silent = replace(problem, step=lambda *seen: problem.step(*seen).detach())
    silent = replace(silent, terminal_cost=lambda s, c: problem.terminal_cost(s, c).detach())  # type: ignore[misc]
    planner = Smoothed(starts=1, pairs=16, iterations=40, trust=0.0)
    assert (missed(silent, planner.plan(silent, generator=seeded())) < 0.05).all()
    with pytest.raises(ValueError, match="no gradient in the actions; choose trust = 0"):
        replace(planner, trust=1.0).plan(silent, generator=seeded())


class Catch(Smoothed):
    """Hands out the gradients of one iteration."""

    def gradient(self, problem: Problem, actions: Tensor) -> Tensor:
        class Silent:
            def offer(self, asked: Tensor, energies: Tensor, states: Any) -> Tensor:
                return energies.detach()

            def evaluate(self, asked: Tensor) -> Tensor:
                return evaluate(problem, asked)[0]

        with torch.no_grad():
            return self._gradient(problem, actions, self.std, seeded(), Silent())  # type: ignore[arg-type]


def cubic(batch: int) -> Problem:
    """E = sum_t w_t a_t^3 + a_0 a_2 over 3 steps, whose smoothed gradient is known."""
    weights = bound(1.0, -2.0, 0.5)

    def stage(state: Tensor, action: Tensor, after: Tensor, context: Any, t: Tensor) -> Tensor:
        cross = torch.zeros_like(action[..., 0])
        cross[..., 0] = action[..., 0, 0] * action[..., 2, 0]
        return weights * action[..., 0] ** 3 + cross

    return Problem(
        state=torch.zeros(batch, 1, dtype=FLOAT),
        step=lambda state, action, *_: state + action,
        horizon=3,
        low=bound(-40.0),
        high=bound(40.0),
        stage_cost=stage,
    )


@pytest.mark.parametrize("trust", [0.0, 1e9])
def test_both_orders_estimate_the_smoothed_gradient(trust: float) -> None:
    """E[(a + s n)^3] = a^3 + 3 a s^2, so its gradient is 3 a^2 + 3 s^2; C goes in front."""
    planner = Catch(pairs=40000, std=0.05, correlation=0.5, trust=trust)
    problem = cubic(1)
    actions = bound(1.0, 2.0, -1.5).view(1, 1, 3, 1)
    slope = bound(1.0, -2.0, 0.5) * 3.0 * (actions.flatten().square() + (0.05 * 40.0) ** 2)
    slope = slope + bound(-1.5, 0.0, 1.0)
    correlations = torch.tensor([[1.0, 0.5, 0.25], [0.5, 1.0, 0.5], [0.25, 0.5, 1.0]], dtype=FLOAT)
    wanted = 40.0 * correlations @ slope
    found = planner.gradient(problem, actions).flatten()
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.02 * wanted.abs().amax().item())


def test_order_one_has_less_noise_where_the_energy_is_smooth() -> None:
    """The mean over problems is the same, the spread is not: trust lowers it."""
    problem = cubic(400)
    actions = bound(1.0, 2.0, -1.5).view(1, 1, 3, 1).expand(400, -1, -1, -1)
    spread = [
        Catch(pairs=4, std=0.01, trust=trust).gradient(problem, actions).std(0).norm().item()
        for trust in (0.0, 1.0)
    ]
    assert spread[1] < 0.5 * spread[0]


def test_the_covariance_is_that_of_the_noise() -> None:
    problem = cubic(1)
    noise = gaussian_noise(problem, 40000, seeded(), 0.7)[0, :, :, 0]  # (N, H)
    found = noise.T @ noise / 40000
    torch.testing.assert_close(found, _covariance(3, 0.7, noise), rtol=0.0, atol=0.03)
    assert torch.equal(_covariance(3, 0.0, noise), torch.eye(3, dtype=FLOAT))


def test_the_shares_against_written_out_numbers() -> None:
    def estimate(value: float, variance: float) -> tuple[Tensor, Tensor]:
        return torch.full((1, 1, 1, 1), value, dtype=FLOAT), bound(variance).view(1, 1)

    # By variance alone order 1 gets 4 / (4 + 1); apart by 1, which is half a standard error.
    assert _mixed(estimate(1.0, 4.0), estimate(2.0, 1.0), 1.0).item() == pytest.approx(1.8)
    # Apart by 8, four standard errors of order 0: a share of 1/4, with half the trust 1/8.
    assert _mixed(estimate(1.0, 4.0), estimate(9.0, 0.0), 1.0).item() == pytest.approx(3.0)
    assert _mixed(estimate(1.0, 4.0), estimate(9.0, 0.0), 0.5).item() == pytest.approx(2.0)
    # Nothing known of either: order 0.
    assert _mixed(estimate(0.0, 0.0), estimate(0.0, 0.0), 1.0).item() == 0.0


def test_the_mean_against_written_out_numbers() -> None:
    samples = bound(1.0, 3.0, 0.0, 8.0).view(1, 1, 4, 1, 1)
    valid = torch.tensor([True, True, False, True]).view(1, 1, 4)
    mean, variance = _mean(samples, valid)
    assert mean.item() == pytest.approx(4.0)
    assert variance.item() == pytest.approx((9.0 + 1.0 + 16.0) / (3 * 2))
    lonely = torch.tensor([True, False, False, False]).view(1, 1, 4)
    mean, variance = _mean(torch.where(lonely[..., None, None], samples, 0.0), lonely)
    assert (mean.item(), variance.item()) == (0.0, 0.0)


def test_descent_takes_the_steps_of_torch_adam() -> None:
    target = torch.randn(5, generator=seeded(), dtype=FLOAT)
    theirs = torch.zeros(5, dtype=FLOAT, requires_grad=True)
    adam = torch.optim.Adam([theirs], lr=0.1, betas=(0.8, 0.95), eps=0.0)
    ours, descent = torch.zeros(5, dtype=FLOAT), Descent((0.8, 0.95))
    for _ in range(6):
        adam.zero_grad()
        (theirs - target).pow(4).sum().backward()
        adam.step()
        ours = ours - 0.1 * descent.step(4.0 * (ours - target) ** 3)
        torch.testing.assert_close(ours, theirs.detach())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"starts": 0}, "starts = 0"),
        ({"pairs": 1}, "pairs = 1"),
        ({"iterations": 0}, "iterations = 0"),
        ({"knots": 0}, "knots = 0"),
        ({"learning_rate": 0.0}, "learning_rate = 0"),
        ({"std": 0.0}, "std = 0"),
        ({"last_std": math.inf}, "last_std = inf"),
        ({"correlation": 1.0}, "correlation = 1"),
        ({"trust": -1.0}, "trust = -1"),
    ],
)
def test_wrong_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Smoothed(**options)
