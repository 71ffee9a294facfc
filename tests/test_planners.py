"""Each planner keeps the contract, and what is particular to it."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from planner_contract import (
    FLOAT,
    KNOWN,
    LinearQuadratic,
    PlannerContract,
    Recorder,
    TwoWays,
    bound,
    seeded,
)
from torch import Tensor

from forethought import planners
from forethought.planners import (
    CEM,
    ICEM,
    MPPI,
    GaussNewton,
    Gradient,
    Lifted,
    Planner,
    Polish,
    PredictiveSampling,
    RandomShooting,
    Smoothed,
    evaluate,
)


class TestGradient(PlannerContract):
    planner = Gradient(starts=5, iterations=6)
    sharp = Gradient(starts=16, iterations=100, learning_rate=0.05)
    sharp_ratio = 0.001
    sharp_steps = 16 * 101 * 15
    budget_field = "starts"
    other_values: ClassVar[dict[str, Any]] = {
        "starts": 4,
        "iterations": 5,
        "learning_rate": 0.2,
        "knots": 2,
        "betas": (0.8, 0.999),
        "control_points": 3,
    }

    def test_both_betas_count(self) -> None:
        problem = Recorder().problem()
        plan = self.plan(problem)
        other = Gradient(starts=5, iterations=6, betas=(0.9, 0.9)).plan(problem, generator=seeded())
        assert not torch.equal(plan.trace, other.trace)

    def test_it_takes_the_steps_of_torch_adam(self) -> None:
        """Without bounds in the way, the candidates are those of `torch.optim.Adam`."""
        recorder = Recorder()
        wide = {"low": bound(-9.0, -18.0), "high": bound(9.0, 18.0)}
        problem = recorder.problem(**wide)
        first = torch.rand(3, 4, 7, 2, generator=seeded(), dtype=FLOAT)
        planner = Gradient(starts=4, iterations=5, learning_rate=0.01, betas=(0.8, 0.95))
        planner.plan(problem, proposals=first, generator=seeded())
        x, y = (first[..., i].clone().requires_grad_() for i in (0, 1))
        groups = [{"params": [x], "lr": 0.09}, {"params": [y], "lr": 0.18}]
        adam = torch.optim.Adam(groups, betas=(0.8, 0.95), eps=0.0)
        for seen in recorder.asked[:6]:
            torch.testing.assert_close(seen, torch.stack((x, y), -1).detach())
            adam.zero_grad()
            evaluate(Recorder().problem(**wide), torch.stack((x, y), -1))[0].sum().backward()
            adam.step()

    def test_a_flat_candidate_stays_where_it_is(self) -> None:
        recorder = Recorder()
        problem = recorder.problem(stage_cost=lambda s, a, n, c, t: 0.0 * a.sum(-1))
        plan = self.plan(problem)
        assert torch.equal(plan.actions, torch.zeros(3, 7, 2, dtype=FLOAT))

    def test_a_not_a_number_gradient_moves_nothing(self) -> None:
        """sqrt has an infinite slope at 0: one start sits there, the others must still move."""
        recorder = Recorder()

        def cost(state: Any, action: Tensor, after: Any, context: Any, t: Tensor) -> Tensor:
            return (
                recorder.stage_cost(state, action, after, context, t) + action[..., 0].abs().sqrt()
            )

        self.plan(recorder.problem(stage_cost=cost), proposals=torch.zeros(3, 1, 7, 2, dtype=FLOAT))
        moved = (recorder.asked[1] - recorder.asked[0]).abs().amax(dim=(2, 3))
        assert (moved[:, 0] == 0.0).all()
        assert (moved[:, 2:] > 0.0).all()


class TestCEM(PlannerContract):
    planner = CEM(candidates=16, iterations=4, elites=4)
    sharp = CEM(candidates=256, iterations=15, elites=16, minimum_std=0.01, correlation=0.0)
    sharp_ratio = 0.01
    sharp_steps = 256 * 15 * 15
    budget_field = "candidates"
    other_values: ClassVar[dict[str, Any]] = {
        "candidates": 15,
        "iterations": 3,
        "elites": 3,
        "initial_std": 0.6,
        "minimum_std": 0.4,
        "momentum": 0.5,
        "correlation": 0.3,
        "control_points": 3,
    }

    def test_the_fit_against_written_out_numbers(self) -> None:
        planner = CEM(candidates=4, elites=3, momentum=0.25)
        actions = torch.tensor([0.0, 1.0, 3.0, 9.0], dtype=FLOAT).view(1, 4, 1, 1)
        energies = torch.tensor([[5.0, 1.0, 2.0, math.inf]], dtype=FLOAT)
        mean, std = (torch.full((1, 1, 1), x, dtype=FLOAT) for x in (8.0, 4.0))
        fitted = planner._fit(actions, energies, mean, std)
        # Elites 0, 1, 3: mean 4/3, variance (16 + 1 + 25) / 27 = 14/9.
        assert fitted[0].item() == pytest.approx(0.75 * 4 / 3 + 0.25 * 8.0)
        assert fitted[1].item() == pytest.approx(0.75 * math.sqrt(14 / 9) + 0.25 * 4.0)
        only_two = torch.tensor([[math.inf, 1.0, 2.0, math.inf]], dtype=FLOAT)
        fitted = planner._fit(actions, only_two, mean, std)
        assert fitted[0].item() == pytest.approx(0.75 * 2.0 + 0.25 * 8.0)
        assert fitted[1].item() == pytest.approx(0.75 * 1.0 + 0.25 * 4.0)
        none = planner._fit(actions, torch.full((1, 4), math.inf, dtype=FLOAT), mean, std)
        assert (none[0].item(), none[1].item()) == (8.0, 4.0)


class TestMPPI(PlannerContract):
    planner = MPPI(candidates=16, iterations=4)
    sharp = MPPI(candidates=256, iterations=10, std=0.2, correlation=0.5)
    sharp_ratio = 0.05
    sharp_steps = (256 * 10 + 1) * 15
    budget_field = "candidates"
    other_values: ClassVar[dict[str, Any]] = {
        "candidates": 15,
        "iterations": 3,
        "temperature": 0.3,
        "std": 0.3,
        "correlation": 0.0,
    }

    def test_the_average_against_written_out_numbers(self) -> None:
        planner = MPPI(temperature=2.0)
        actions = torch.tensor([0.0, 1.0, 3.0], dtype=FLOAT).view(1, 3, 1, 1)
        energies = torch.tensor([[1.0, 5.0, math.inf]], dtype=FLOAT)
        average = planner._average(actions, energies, torch.zeros(1, 1, 1, dtype=FLOAT))
        # The finite energies have the standard deviation 2: weights 1 and exp(-4 / (2 * 2)).
        assert average.item() == pytest.approx(math.exp(-1.0) / (1.0 + math.exp(-1.0)))
        none = torch.full((1, 3), math.inf, dtype=FLOAT)
        old = torch.full((1, 1, 1), 7.0, dtype=FLOAT)
        assert planner._average(actions, none, old).item() == 7.0

    def test_the_average_survives_energies_near_the_largest_number(self) -> None:
        actions = torch.rand(1, 3, 1, 1, generator=seeded())
        energies = torch.tensor([[3e38, -3e38, 0.0]])
        average = MPPI(temperature=1e-6)._average(actions, energies, torch.zeros(1, 1, 1))
        assert average.item() == pytest.approx(actions[0, 1].item())


class TestRandomShooting(PlannerContract):
    planner = RandomShooting(candidates=200)
    sharp = RandomShooting(candidates=4096, knots=2)
    sharp_ratio = 0.35
    sharp_steps = 4096 * 15
    budget_field = "candidates"
    stops_early = False
    other_values: ClassVar[dict[str, Any]] = {"candidates": 20, "knots": 3}

    def test_energy_falls_as_candidates_grow(self) -> None:
        exact = LinearQuadratic(batch=32)
        ratios = [
            exact.ratio(RandomShooting(count).plan(exact.problem, generator=seeded())).mean()
            for count in (16, 128, 1024)
        ]
        assert ratios[0] > ratios[1] + 0.02 > ratios[2] + 0.04, ratios


# Every planner on every problem with a known answer: the largest excess energy allowed, where 0 is
# the optimum and 1 is doing nothing (two ways: the worse way round). A row per planner; a column
# per problem of `planner_contract.KNOWN`. Limits are about twice what was measured.
TABLE: dict[str, tuple[Planner, tuple[float, ...]]] = {
    #                                                   free  box  norm  two ways
    "gradient": (Gradient(iterations=60, learning_rate=0.05), (0.001, 0.001, 0.01, 0.15)),
    "gradient, splines": (
        Gradient(iterations=60, learning_rate=0.05, control_points=6),
        (0.003, 0.002, 0.016, 0.18),
    ),
    "cem": (CEM(256, 15, 16, minimum_std=0.01, correlation=0.5), (0.03, 0.003, 0.016, 0.1)),
    "cem, splines": (
        CEM(256, 15, 16, minimum_std=0.01, correlation=0.0, control_points=6),
        (0.005, 0.002, 0.03, 0.05),
    ),
    "icem": (ICEM(256, 15, 16, exponent=2.0, initial_std=0.5), (0.09, 0.007, 0.05, 0.16)),
    "icem, splines": (
        ICEM(256, 15, 16, exponent=1.0, initial_std=0.5, control_points=6),
        (0.02, 0.005, 0.04, 0.1),
    ),
    "mppi": (MPPI(256, 15), (0.1, 0.013, 0.03, 0.1)),
    "predictive": (PredictiveSampling(256, 15, std=0.3), (0.2, 0.005, 0.04, 0.05)),
    "polish": (
        Polish(
            ICEM(128, 6, exponent=2.0, initial_std=0.5),
            Gradient(starts=4, iterations=60, learning_rate=0.02),
        ),
        (0.001, 0.001, 0.002, 0.1),
    ),
    "gauss-newton": (GaussNewton(starts=8, iterations=12), (1e-6, 1e-6, 0.001, 0.001)),
    "lifted": (
        Lifted(cycles=3, iterations=10, descents=10, learning_rate=0.05),
        (0.15, 0.006, 0.025, 0.3),
    ),
    "smoothed": (Smoothed(4, 4, 80, 0.05, trust=10.0), (0.03, 0.03, 0.08, 0.08)),
    "shooting": (RandomShooting(4096), (0.9, 0.04, 0.14, 1.5)),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("row", TABLE)
def test_known_answers_are_found(row: str, name: str) -> None:
    planner, limits = TABLE[row]
    known, limit = KNOWN[name](), limits[list(KNOWN).index(name)]
    ratio = known.ratio(planner.plan(known.problem, generator=seeded()))
    assert (ratio >= -1e-6).all(), f"better than the optimum: {ratio}"
    assert (ratio <= limit).all(), f"{ratio} > {limit}"


def test_every_planner_has_a_row() -> None:
    public = {getattr(planners, name) for name in planners.__all__}
    classes = {one for one in public if isinstance(one, type) and issubclass(one, Planner)}
    assert classes - {Planner} == {type(planner) for planner, _ in TABLE.values()}
    assert all(len(limits) == len(KNOWN) for _, limits in TABLE.values())


def test_descent_from_the_straight_line_takes_the_worse_of_two_ways() -> None:
    known = KNOWN["two ways"]()
    assert isinstance(known, TwoWays)
    planner = Gradient(starts=1, iterations=100)
    straight = known.straight.unsqueeze(1)
    plan = planner.plan(known.problem, proposals=straight, generator=seeded())
    assert (known.ratio(plan) > 0.9).all(), known.ratio(plan)


@pytest.mark.parametrize("planner", [CEM(candidates=256, iterations=4), MPPI(candidates=256)])
def test_searching_beats_guessing_at_the_same_budget(planner: Planner) -> None:
    exact = LinearQuadratic()
    searched = planner.plan(exact.problem, generator=seeded())
    guesses = searched.model_steps // (8 * 15)
    guessed = RandomShooting(guesses).plan(exact.problem, generator=seeded())
    assert exact.ratio(searched).mean() < 0.5 * exact.ratio(guessed).mean()


@pytest.mark.parametrize(
    ("planner", "options", "message"),
    [
        (Gradient, {"starts": 0}, "starts = 0"),
        (Gradient, {"iterations": 0}, "iterations = 0"),
        (Gradient, {"knots": 0}, "knots = 0"),
        (Gradient, {"learning_rate": 0.0}, "learning_rate = 0"),
        (Gradient, {"learning_rate": math.nan}, "learning_rate = nan"),
        (Gradient, {"betas": (0.9, 1.0)}, "betas = "),
        (CEM, {"candidates": 7}, "candidates = 7"),
        (CEM, {"candidates": 1, "elites": 1}, "candidates = 1"),
        (CEM, {"iterations": 0}, "iterations = 0"),
        (CEM, {"elites": 0}, "elites = 0"),
        (CEM, {"initial_std": 0.0, "minimum_std": 0.0}, "initial_std = 0"),
        (CEM, {"minimum_std": 0.7}, "minimum_std = 0.7"),
        (CEM, {"momentum": 1.0}, "momentum = 1"),
        (CEM, {"control_points": 0}, "control_points = 0"),
        (Gradient, {"control_points": 0}, "control_points = 0"),
        (MPPI, {"candidates": 1}, "candidates = 1"),
        (MPPI, {"iterations": 0}, "iterations = 0"),
        (MPPI, {"temperature": 0.0}, "temperature = 0"),
        (MPPI, {"std": -1.0}, "std = -1"),
        (MPPI, {"correlation": 1.0}, "correlation = 1"),
        (RandomShooting, {"candidates": 0}, "candidates = 0"),
        (RandomShooting, {"knots": 0}, "knots = 0"),
    ],
)
def test_wrong_options_are_refused_by_name(
    planner: type[Planner], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        planner(**options)
