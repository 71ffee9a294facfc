"""iCEM, predictive sampling and polish keep the contract, and what is particular to them."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import count
from typing import Any, ClassVar

import pytest
import torch
from discrete_contract import HiddenPath
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

from forethought.planners import (
    CEM,
    ICEM,
    MPPI,
    Deadline,
    Gradient,
    Plan,
    Planner,
    Polish,
    PredictiveSampling,
    Problem,
    RandomShooting,
    Status,
)
from forethought.planners.proposals import Noise, coloured, fitted, spline


class TestICEM(PlannerContract):
    planner = ICEM(candidates=16, iterations=4, elites=4, kept=0.5)
    sharp = ICEM(256, 15, 16, exponent=0.0, decay=1.0, initial_std=0.5)
    sharp_ratio = 0.01
    sharp_steps = (256 * 15 + 14 * 5) * 15  # and a third of 16 elites in all rounds but the first
    budget_field = "candidates"
    other_values: ClassVar[dict[str, Any]] = {
        "candidates": 15,
        "iterations": 3,
        "elites": 3,
        "kept": 0.0,
        "decay": 2.0,
        "exponent": 0.5,
        "initial_std": 0.6,
        "minimum_std": 0.4,
        "momentum": 0.5,
        "control_points": 3,
    }

    def test_candidates_decay_and_elites_stay(self) -> None:
        recorder = Recorder()
        planner = ICEM(candidates=40, iterations=4, elites=6, kept=0.5, decay=2.0)
        planner.plan(recorder.problem(), generator=seeded())
        # 40, 20, 10 and 5 drawn, but never fewer than 12; 3 elites come back.
        assert [seen.shape[1] for seen in recorder.asked] == [40, 23, 15, 15]
        problem = Recorder().problem()
        for before, after in zip(recorder.asked, recorder.asked[1:], strict=False):
            energies = evaluated(problem, before)
            best = energies.topk(3, dim=1, largest=False).indices
            kept = before.gather(1, best[:, :, None, None].expand(-1, -1, 7, 2))
            assert torch.equal(after[:, -3:], kept)

    def test_the_last_mean_is_a_candidate(self) -> None:
        """The first candidate of the last round is the elites' mean: here of all, without noise."""
        recorder = Recorder()
        planner = ICEM(candidates=8, iterations=2, elites=8, kept=0.0, momentum=0.0, decay=1.0)
        planner.plan(recorder.problem(), generator=seeded())
        first, last = recorder.asked
        torch.testing.assert_close(last[:, 0], first.mean(1))
        assert torch.equal(first[:, 0], torch.zeros(3, 7, 2, dtype=FLOAT))


class TestPredictiveSampling(PlannerContract):
    planner = PredictiveSampling(candidates=16, iterations=3, control_points=4)
    sharp = PredictiveSampling(candidates=256, iterations=15, std=0.1)
    sharp_ratio = 0.04
    sharp_steps = 256 * 15 * 15
    budget_field = "candidates"
    other_values: ClassVar[dict[str, Any]] = {
        "candidates": 15,
        "iterations": 2,
        "std": 0.2,
        "control_points": None,
    }

    def test_one_round_perturbs_each_proposal(self) -> None:
        recorder = Recorder()
        planner = PredictiveSampling(candidates=9, iterations=1, std=1e-6, control_points=None)
        proposals = 0.4 * recorder.proposals()
        planner.plan(recorder.problem(), proposals=proposals, generator=seeded())
        (seen,) = recorder.asked
        assert torch.equal(seen[:, :2], proposals)
        for place in range(2, 9):
            away = (seen[:, place] - proposals[:, place % 2]).abs().amax()
            assert 0.0 < away < 1e-4

    def test_each_round_perturbs_the_best_of_the_last(self) -> None:
        recorder = Recorder()
        planner = PredictiveSampling(candidates=20, iterations=4, control_points=None)
        planner.plan(recorder.problem(), generator=seeded())
        problem = Recorder().problem()
        for before, after in zip(recorder.asked, recorder.asked[1:], strict=False):
            best = evaluated(problem, before).argmin(1)
            assert torch.equal(after[:, 0], before[torch.arange(3), best])


class TestPolish(PlannerContract):
    planner = Polish(
        CEM(candidates=16, iterations=3, elites=4), Gradient(starts=3, iterations=3), 0.1
    )
    sharp = Polish(
        CEM(candidates=64, iterations=6), Gradient(starts=4, iterations=80, learning_rate=0.02)
    )
    sharp_ratio = 0.0005
    sharp_steps = (64 * 6 + 4 * 81) * 15
    budget_field = "candidates"
    other_values: ClassVar[dict[str, Any]] = {
        "planner": MPPI(candidates=16, iterations=2),
        "gradient": Gradient(starts=3, iterations=3, learning_rate=0.2),
        "spread": 0.3,
    }

    @pytest.mark.parametrize("name", KNOWN)
    def test_it_is_never_worse_than_its_planner(self, name: str) -> None:
        problem = KNOWN[name]().problem
        search = CEM(candidates=64, iterations=4)
        found = search.plan(problem, generator=seeded())
        # Steps so long that the descent, left to itself, makes most plans worse.
        wild = Polish(search, Gradient(starts=2, iterations=3, learning_rate=1.5)).plan(
            problem, generator=seeded()
        )
        tame = Polish(search).plan(problem, generator=seeded())
        assert (wild.energy <= found.energy).all()
        assert (tame.energy < found.energy).double().mean() > 0.5
        assert torch.equal(tame.trace[:4], found.trace)

    def test_a_deadline_between_the_two_leaves_the_plan_unpolished(self) -> None:
        """The search asks the clock three times for four rounds; the fourth comes before polish."""
        problem = Recorder().problem()
        search = CEM(candidates=16, iterations=4, elites=4)
        found = search.plan(problem, generator=seeded())
        planner = Polish(search)
        plan = planner.plan(problem, generator=seeded(), deadline=Deadline(4.0, count(1).__next__))
        assert torch.equal(plan.trace, found.trace)
        assert plan.model_steps == found.model_steps
        assert plan.status == (Status.DEADLINE,) * 3
        later = planner.plan(problem, generator=seeded(), deadline=Deadline(6.0, count(1).__next__))
        assert len(found.trace) < len(later.trace) < len(found.trace) + 11
        assert later.status == (Status.DEADLINE,) * 3

    def test_discrete_plans_are_polished_too(self) -> None:
        hidden = HiddenPath()
        search = CEM(candidates=16, iterations=3)
        found = search.plan(hidden.problem, generator=seeded())
        plan = Polish(search, Gradient(starts=4, iterations=12)).plan(
            hidden.problem, generator=seeded()
        )
        assert plan.actions.dtype == torch.int64
        assert (plan.energy <= found.energy).all()
        assert plan.energy.mean() < 0.6 * found.energy.mean()


def evaluated(problem: Problem, actions: Tensor) -> Tensor:
    """Energies `(B, S)`, by a planner that does nothing but evaluate."""
    one = RandomShooting(1)
    plans = [
        one.plan(problem, proposals=actions[:, [i]], generator=seeded())
        for i in range(actions.shape[1])
    ]
    return torch.stack([plan.energy for plan in plans], 1)


def straightness(plan: Plan, points: int, horizon: int) -> float:
    """How far the plan is from linear between control points at the given places."""
    weights = interpolation(points, horizon)
    fit = weights @ torch.linalg.pinv(weights) @ plan.actions
    return (plan.actions - fit).abs().max().item()


def interpolation(points: int, horizon: int) -> Tensor:
    identity = torch.eye(points, dtype=FLOAT).unsqueeze(0)
    size = {"size": horizon, "mode": "linear", "align_corners": True}
    return torch.nn.functional.interpolate(identity, **size)[0].T  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "planner",
    [
        Gradient(starts=4, iterations=30, knots=4),
        CEM(candidates=64, iterations=6),
        ICEM(candidates=64, iterations=6),
        PredictiveSampling(candidates=64, iterations=6),
    ],
    ids=lambda planner: type(planner).__name__,
)
@pytest.mark.parametrize("points", [1, 4])
def test_control_points_make_plans_linear_in_between(planner: Planner, points: int) -> None:
    known = LinearQuadratic(limit=1.0)
    held = replace(planner, control_points=points)  # type: ignore[type-var]
    plan = held.plan(known.problem, generator=seeded())
    free = replace(planner, control_points=None)  # type: ignore[type-var]
    assert straightness(plan, points, 15) < 1e-9
    assert straightness(free.plan(known.problem, generator=seeded()), points, 15) > 1e-3
    assert (plan.energy < known.energy_at_rest).all()


@pytest.mark.parametrize("points", [15, 99])
def test_as_many_control_points_as_steps_are_none(points: int) -> None:
    problem = LinearQuadratic().problem
    for planner in (Gradient(2, 3), CEM(16, 2), ICEM(16, 2), PredictiveSampling(16, 2)):
        free, held = (
            replace(planner, control_points=one).plan(problem, generator=seeded())  # type: ignore[type-var]
            for one in (None, points)
        )
        assert torch.equal(free.actions, held.actions)


def test_the_gradient_of_control_points_is_that_of_the_energy() -> None:
    """Adam's first step goes by the sign of the gradient: compared with autograd's own."""
    recorder = Recorder()
    problem = recorder.problem(low=bound(-9.0, -9.0), high=bound(9.0, 9.0))
    first = torch.rand(3, 4, 3, 2, generator=seeded(), dtype=FLOAT)
    weights = interpolation(3, 7)
    planner = Gradient(starts=4, iterations=1, learning_rate=0.01, control_points=3)
    planner.plan(problem, proposals=weights @ first, generator=seeded())
    leaf = first.clone().requires_grad_()
    state, target = problem.state, problem.context["target"]
    assert isinstance(state, Tensor)
    actions = weights @ leaf
    after = state[:, None, None] + (0.3 * torch.sin(2.0 * actions)).cumsum(2)
    energy = (after - target[:, None, None]).square().sum() + 0.01 * actions.square().sum()
    (gradient,) = torch.autograd.grad(energy, leaf)
    expected = weights @ (first - 0.09 * gradient.sign())
    torch.testing.assert_close(recorder.asked[1], expected)


def test_a_spline_is_linear_between_its_points_and_fits_itself() -> None:
    problem = LinearQuadratic().problem
    weights = spline(problem, 4)
    assert weights is not None
    torch.testing.assert_close(weights, interpolation(4, 15))
    points = 8.0 * torch.rand(8, 5, 4, 1, generator=seeded(), dtype=FLOAT) - 4.0
    torch.testing.assert_close(fitted(problem, weights, weights @ points), points)
    far = weights @ (points + 100.0)
    assert torch.equal(fitted(problem, weights, far), torch.full_like(points, 4.0))
    assert fitted(problem, weights, far[:, :0]).shape == (8, 0, 4, 1)
    one = spline(problem, 1)
    assert one is not None
    assert torch.equal(one, torch.ones(15, 1, dtype=FLOAT))


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("points", [24, 25])
def test_coloured_noise_has_the_spectrum_it_says(exponent: float, points: int) -> None:
    problem = Recorder().problem(horizon=points)
    noise = Noise(problem, 8000, mixing=coloured(points, exponent)).draw(seeded())
    sequences = noise.transpose(2, 3).flatten(0, 2)  # 48,000 of them
    assert sequences.std(0, correction=0).sub(1.0).abs().max() < 0.02
    power = torch.fft.rfft(sequences, dim=-1).abs().square().mean(0)
    order = torch.arange(1, (points - 1) // 2 + 1)
    torch.testing.assert_close(
        power[order] / power[1], order.to(FLOAT) ** -exponent, rtol=0.04, atol=1e-9
    )
    assert power[0] / power[1] == pytest.approx(1.0, rel=0.04)


@pytest.mark.parametrize("points", [1, 2, 3])
def test_coloured_noise_may_be_short(points: int) -> None:
    mixing = coloured(points, 2.0)
    assert mixing.shape == (points, points)
    torch.testing.assert_close(mixing.square().sum(1), torch.ones(points, dtype=FLOAT))


@pytest.mark.parametrize("planner", [ICEM(), PredictiveSampling()])
def test_discrete_actions_are_refused(planner: Planner) -> None:
    with pytest.raises(ValueError, match="actions = 4: the problem has discrete actions"):
        planner.plan(HiddenPath().problem, generator=seeded())


@pytest.mark.parametrize(
    ("planner", "options", "message"),
    [
        (ICEM, {"candidates": 7}, "candidates = 7"),
        (ICEM, {"iterations": 0}, "iterations = 0"),
        (ICEM, {"elites": 0}, "elites = 0"),
        (ICEM, {"kept": 1.1}, "kept = 1.1"),
        (ICEM, {"decay": 0.9}, "decay = 0.9"),
        (ICEM, {"exponent": -1.0}, "exponent = -1"),
        (ICEM, {"exponent": math.nan}, "exponent = nan"),
        (ICEM, {"initial_std": 0.0}, "initial_std = 0"),
        (ICEM, {"minimum_std": 1.7}, "minimum_std = 1.7"),
        (ICEM, {"momentum": 1.0}, "momentum = 1"),
        (ICEM, {"control_points": 0}, "control_points = 0"),
        (PredictiveSampling, {"candidates": 1}, "candidates = 1"),
        (PredictiveSampling, {"iterations": 0}, "iterations = 0"),
        (PredictiveSampling, {"std": 0.0}, "std = 0"),
        (PredictiveSampling, {"control_points": 0}, "control_points = 0"),
        (Polish, {"planner": CEM(), "spread": -0.1}, "spread = -0.1"),
    ],
)
def test_wrong_options_are_refused_by_name(
    planner: type[Planner], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        planner(**options)
