"""The exploitation alarm: numbers by hand, and a planner that finds where a readout lies.

The world is a line: an action moves the position by a fifth of itself, and the height, which is
what costs, rises slowly with the position. The model knows all of that; a lying readout says that
the height is zero beyond position 1, where recorded actions hardly get.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forethought.agent import Effort, IntrinsicCost, Tolerance, Weighted
from forethought.agent.alarm import (
    CostMonitor,
    Gap,
    Gaps,
    imagined_terms,
    planning_gain,
    realised_terms,
    recorded_gaps,
)
from forethought.worldmodel import JEPA, LatentData, Perception, Predictor, Readouts

HEIGHT = Tolerance("height", margin=1.0, value_at_margin=0.0, sigmoid="linear")
BANK = IntrinsicCost((Weighted("height", HEIGHT), Weighted("effort", Effort())))
HORIZON, AHEAD = 12, 4


class Seen(Perception):
    """The state is the observation."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim = 1

    def forward(self, observation: Any) -> Any:
        return observation

    def standardise_by(self, statistics: Any) -> None:
        raise NotImplementedError


class Moving(Predictor):
    """One step along the line, exact."""

    def __init__(self) -> None:
        super().__init__()
        self.action_dim = 1
        self.speed = nn.Parameter(torch.tensor(0.2))

    def forward(
        self, state: Tensor, action: Tensor, latent: Any = None, context: Any = None
    ) -> Tensor:
        return state + self.speed * action


class Heights(Readouts):
    """Reads the height: as it is, but zero beyond `lies_from`, and everywhere `bias` too much."""

    def __init__(self, lies_from: float = math.inf, bias: float = 0.0) -> None:
        super().__init__(1, {"height": 1})
        self.lies_from, self.bias = lies_from, bias

    def forward(self, state: Tensor) -> dict[str, Tensor]:
        return {"height": torch.where(state > self.lies_from, 0.0, height(state)) + self.bias}


MODEL = JEPA(Seen(), Moving())
LIAR, HONEST = Heights(lies_from=1.0), Heights()


def height(position: Tensor) -> Tensor:
    return (0.5 + 0.1 * position).clamp(0.1, 1.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def recorded(episodes: int = 40, length: int = 20, seed: int = 0) -> LatentData:
    """Random walks from near zero."""
    generator = seeded(seed)
    start = torch.rand(episodes, 1, 1, generator=generator) - 0.5
    actions = 2 * torch.rand(episodes, length, 1, generator=generator) - 1
    states = torch.cat((start, start + 0.2 * actions.cumsum(1)), 1)
    actions = torch.cat((actions, torch.zeros(episodes, 1, 1)), 1)
    remaining = torch.arange(length, -1, -1).repeat(episodes)
    none = torch.zeros(len(remaining), dtype=torch.bool)
    return LatentData(states.flatten(0, 1), actions.flatten(0, 1), remaining, none)


def baseline_of(readouts: Readouts, **options: Any) -> Gaps:
    data = recorded()
    told = {"height": height(data.states)}
    options = {"ahead": AHEAD} | options
    return recorded_gaps(MODEL, BANK, readouts, data, told, seeded(1), **options)


def lived(monitor: CostMonitor, readouts: Readouts, steps: int = 40, rows: int = 8) -> CostMonitor:
    """Plan anew at every step, by the lowest imagined height, and go on in the true world."""
    candidates = torch.linspace(-1, 1, 5).view(5, 1, 1).expand(5, HORIZON, 1)
    position = torch.rand(rows, 1, generator=seeded(2)) - 0.5
    action, begins = torch.zeros(rows, 1), torch.ones(rows, dtype=torch.bool)
    for _ in range(steps):
        told = {"height": height(position), "state": position}
        realised = realised_terms(BANK, told, action)
        starts = position.repeat_interleave(5, 0)
        plans = candidates.repeat(rows, 1, 1)
        with torch.no_grad():
            states = MODEL.rollout(starts, plans)
        terms = imagined_terms(BANK, readouts, states, plans).view(rows, 5, HORIZON, 2)
        best = terms[..., 0].mean(-1).argmin(1)
        own = torch.arange(rows)
        monitor = monitor.observe(realised, terms[own, best], begins=begins)
        action = candidates[best, 0]
        position, begins = position + 0.2 * action, torch.zeros(rows, dtype=torch.bool)
    return monitor


def watching(**options: Any) -> CostMonitor:
    """A monitor of one term, two steps ahead, that needs a single comparison."""
    return CostMonitor.watching(("it",), **{"ahead": 2, "samples": 1} | options)


def rows(*numbers: float) -> Tensor:
    """Realised cost of one term in each environment, `(B, 1)`."""
    return torch.tensor(numbers)[:, None]


def plans(*each: tuple[float, ...]) -> Tensor:
    """Imagined cost of one term in each environment, `(B, H, 1)`."""
    return torch.tensor(each)[:, :, None]


NO, BEGIN = torch.tensor([False]), torch.tensor([True])


def counts(monitor: CostMonitor) -> tuple[float, float]:
    return float(monitor.found.next.count.sum()), float(monitor.found.ahead.count.sum())


# --- a planner that exploits a readout


def test_a_planner_that_exploits_a_readout_raises_the_alarm() -> None:
    baseline = baseline_of(LIAR)
    monitor = lived(CostMonitor.watching(BANK.names, ahead=AHEAD, baseline=baseline), LIAR)
    assert set(monitor.alarms) == {("next", "height"), ("ahead", "height")}
    found = monitor.summary()
    assert found["imagined_height"] < 0.2
    assert found["realised_height"] > 0.55
    assert abs(found["recorded_gap_height"]) < 0.05
    assert found["cost_alarms"] == 2.0
    # Effort is not read from the model: what is imagined is what is done.
    assert found["gap_effort"] == pytest.approx(0.0, abs=1e-6)
    said = monitor.sentence()
    assert said is not None
    assert "cost term 'height'" in said
    assert "--rounds" in said


def test_an_honest_model_raises_none() -> None:
    baseline = baseline_of(HONEST)
    monitor = lived(CostMonitor.watching(BANK.names, ahead=AHEAD, baseline=baseline), HONEST)
    assert counts(monitor)[0] == 2 * 8 * 39
    assert counts(monitor)[1] == 2 * 8 * (40 - AHEAD)
    assert monitor.alarms == ()
    assert monitor.sentence() is None
    assert abs(monitor.summary()["gap_height"]) < 1e-3


def test_what_the_readout_does_without_a_planner_is_no_alarm() -> None:
    """A readout that is off everywhere has the gap along recorded actions too."""
    off = Heights(bias=-0.3)
    told = CostMonitor.watching(BANK.names, ahead=AHEAD, baseline=baseline_of(off))
    assert float(told.baseline.next.mean[0]) == pytest.approx(0.3, abs=0.01)  # type: ignore[union-attr]
    assert lived(told, off).alarms == ()
    assert lived(replace(told, baseline=None), off).alarms != ()


# --- what is compared with what


def test_the_comparisons_by_hand() -> None:
    told = watching()
    told = told.observe(rows(0.9), plans((0.1, 0.2, 7.0)), begins=BEGIN)
    assert counts(told) == (0, 0)
    told = told.observe(rows(0.5), plans((0.3, 0.5, 7.0)), begins=NO)
    assert counts(told) == (1, 0)
    assert float(told.found.next.mean) == pytest.approx(0.5 - 0.1)
    told = told.observe(rows(0.8), plans((0.4, 0.4, 7.0)), begins=NO)
    assert counts(told) == (2, 1)
    assert float(told.found.next.mean) == pytest.approx((0.4 + 0.5) / 2)
    assert float(told.found.ahead.mean) == pytest.approx((0.5 + 0.8) / 2 - 0.15)
    told = told.observe(rows(0.0), None, begins=NO)
    assert counts(told) == (3, 2)
    assert float(told.found.ahead.mean) == pytest.approx((0.5 + 0.4 - 0.4) / 2 - 0.0, abs=1e-6)
    found = told.summary()
    assert found["imagined_it"] == pytest.approx((0.1 + 0.3 + 0.4) / 3)
    assert found["realised_it"] == pytest.approx((0.5 + 0.8 + 0.0) / 3)
    assert found["gap_it"] == pytest.approx(found["realised_it"] - found["imagined_it"])
    assert "recorded_gap_it" not in found


def test_a_beginning_is_not_compared_with_what_was_before() -> None:
    told = watching()
    told = told.observe(rows(0.0, 0.0), plans((0.1, 0.1), (0.1, 0.1)), begins=BEGIN.expand(2))
    ended = torch.tensor([True, False])
    told = told.observe(rows(9.0, 0.3), plans((0.2, 0.2), (0.1, 0.1)), begins=ended)
    assert counts(told) == (1, 0)
    assert float(told.found.next.realised) == pytest.approx(0.3)
    told = told.observe(rows(0.2, 0.3), None, begins=NO.expand(2))
    # The plan of row 0 that was two steps old is gone; that of the new episode counts.
    assert counts(told) == (3, 1)
    assert float(told.found.next.realised) == pytest.approx(0.3 + 0.2 + 0.3)
    assert float(told.found.ahead.realised) == pytest.approx(0.3)
    told = told.observe(rows(0.2, 0.3), None, begins=NO.expand(2))
    assert counts(told)[1] == 3


def test_a_plan_that_is_carried_out_is_compared_step_by_step() -> None:
    told = watching(ahead=3)
    told = told.observe(rows(0.0), plans((0.1, 0.2, 0.4)), begins=BEGIN)
    for step in range(3):
        told = told.observe(rows(0.5), None, begins=NO)
        assert counts(told)[0] == step + 1
    assert float(told.found.next.imagined) == pytest.approx(0.7)
    assert told.plans == ()
    assert counts(told.observe(rows(0.5), None, begins=NO)) == (3, 1)


def test_a_new_plan_ends_the_steps_of_the_old_one() -> None:
    told = watching(ahead=3)
    told = told.observe(rows(0.0), plans((0.1, 5.0, 5.0)), begins=BEGIN)
    told = told.observe(rows(0.5), plans((0.3, 5.0, 5.0)), begins=NO)
    told = told.observe(rows(0.5), None, begins=NO)
    assert counts(told)[0] == 2
    assert float(told.found.next.imagined) == pytest.approx(0.4)


def test_an_action_that_was_not_the_plans_own_counts_only_ahead() -> None:
    told = watching()
    told = told.observe(rows(0.0, 0.0), plans((0.1, 0.1), (0.1, 0.1)), begins=BEGIN.expand(2))
    followed = torch.tensor([False, True])
    told = told.observe(rows(0.5, 0.3), None, begins=NO.expand(2), followed=followed)
    assert float(told.found.next.realised) == pytest.approx(0.3)
    # One noisy action, and the steps after it begin elsewhere than the plan says.
    told = told.observe(rows(0.5, 0.3), None, begins=NO.expand(2))
    assert float(told.found.next.realised) == pytest.approx(0.6)
    assert counts(told) == (2, 2)


def test_what_is_not_a_number_is_not_compared() -> None:
    told = CostMonitor.watching(("a", "b"), ahead=2, samples=1)
    imagined = torch.tensor([[[0.1, math.nan], [0.1, 0.1]]])
    told = told.observe(torch.zeros(1, 2), imagined, begins=BEGIN)
    told = told.observe(torch.tensor([[0.5, 0.5]]), None, begins=NO)
    told = told.observe(torch.tensor([[math.nan, 0.5]]), None, begins=NO)
    assert told.found.next.count.tolist() == [1.0, 1.0]
    assert told.found.next.realised.tolist() == [0.5, 0.5]
    assert told.found.ahead.count.tolist() == [0.0, 0.0]
    assert all(math.isfinite(value) for value in told.summary().values())
    assert "gap_a_ahead" not in told.summary()


def test_environments_that_leave_take_their_plans_along() -> None:
    told = watching()
    imagined = plans((0.1, 0.1), (0.2, 0.2), (0.3, 0.3))
    told = told.observe(rows(0.0, 0.0, 0.0), imagined, begins=BEGIN.expand(3))
    told = told.select(torch.tensor([2, 0]))
    told = told.observe(rows(0.6, 0.7), None, begins=torch.tensor([False, True]))
    assert float(told.found.next.imagined) == pytest.approx(0.3)
    assert float(told.found.next.realised) == pytest.approx(0.6)


def test_a_monitor_is_a_value() -> None:
    first = watching().observe(rows(0.0), plans((0.1, 0.1)), begins=BEGIN)
    second = first.observe(rows(0.5), None, begins=NO)
    third = second.observe(rows(0.5), None, begins=NO)
    assert [counts(told) for told in (first, second, third)] == [(0, 0), (1, 0), (2, 1)]
    again = first.observe(rows(0.9), None, begins=NO)
    assert float(again.found.next.realised) == pytest.approx(0.9)
    assert float(second.found.next.realised) == pytest.approx(0.5)


# --- the alarm


def compared(gap: float, count: int, kind: str = "next", **options: Any) -> CostMonitor:
    """A monitor that compared so often, and found such a gap."""
    number = torch.tensor([float(count)], dtype=torch.float64)
    found = Gap(0.2 * number, (0.2 + gap) * number, number)
    return replace(
        CostMonitor.watching(("it",), **options),
        found=replace(watching().found, **{kind: found}),
    )


def test_when_there_is_an_alarm() -> None:
    for kind in ("next", "ahead"):
        assert compared(0.15, 100, kind).alarms == ((kind, "it"),)
        assert compared(0.15, 99, kind).alarms == ()
        assert compared(0.15, 99, kind, samples=99).alarms == ((kind, "it"),)
        assert compared(0.09, 100, kind).alarms == ()
        assert compared(0.09, 100, kind, tolerance=0.05).alarms == ((kind, "it"),)
        # A world that is cheaper than imagined is no exploitation.
        assert compared(-0.5, 100, kind).alarms == ()


def test_the_recorded_gap_is_taken_off() -> None:
    recorded = Gaps(compared(0.1, 10).found.next, compared(0.0, 10).found.next)
    assert compared(0.15, 100, baseline=recorded).alarms == ()
    assert compared(0.25, 100, baseline=recorded).alarms == (("next", "it"),)
    assert compared(0.15, 100, "ahead", baseline=recorded).alarms == (("ahead", "it"),)
    assert compared(0.15, 100, baseline=watching().found).alarms == (("next", "it"),)


def test_the_sentence() -> None:
    assert watching().sentence() is None
    said = compared(0.3, 120, "ahead", ahead=5).sentence()
    assert said == (
        "the planner exploits the model in cost term 'it': for the next 5 steps its plans imagine "
        "0.20 and 0.50 is what follows, a gap of 0.30 in 120 comparisons, where no gap along "
        "recorded actions was measured: collect more data with the planner (--rounds), or train "
        "the predictor with stages.predictor.perturbation"
    )
    gaps = Gaps(compared(0.05, 10).found.next, Gap.none(1))
    said = compared(0.3, 120, baseline=gaps).sentence()
    assert said is not None
    assert "for the next step its plans" in said
    assert "where recorded actions leave a gap of 0.05:" in said


def test_the_worst_term_is_named() -> None:
    told = CostMonitor.watching(("a", "b", "c"), ahead=2, samples=1)
    told = told.observe(torch.zeros(1, 3), torch.zeros(1, 2, 3), begins=BEGIN)
    told = told.observe(torch.tensor([[0.3, 0.6, 0.05]]), None, begins=NO)
    assert told.alarms == (("next", "b"), ("next", "a"))
    assert "'b'" in str(told.sentence())


# --- the gaps along recorded actions, and the gain of planning


def test_recorded_gaps_of_a_readout_that_is_off() -> None:
    found = baseline_of(Heights(bias=0.2))
    for gap in (found.next, found.ahead):
        assert gap.mean.tolist() == pytest.approx([-0.2, 0.0], abs=1e-5)
        assert gap.count.tolist() == [1000.0, 1000.0]
    exact = baseline_of(HONEST, windows=7)
    assert exact.next.mean.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert exact.ahead.count.tolist() == [7.0, 7.0]


def test_recorded_gaps_stay_inside_of_episodes_and_of_what_is_known() -> None:
    """The first state of every episode is one that no model reaches from the one before."""
    data = recorded(episodes=30, length=2)
    data.states[data.remaining == 2] += 50.0
    data.states[data.remaining < 2] += 50.0
    told = {"height": height(data.states)}
    told["height"][::3] = math.nan  # nothing is known of a first state
    gaps = recorded_gaps(MODEL, BANK, HONEST, data, told, seeded(), ahead=9, windows=50)
    assert gaps.ahead.count.tolist() == [50.0, 50.0]
    assert gaps.ahead.mean.tolist() == pytest.approx([0.0, 0.0], abs=1e-5)
    told["height"][2::3] = math.nan
    gaps = recorded_gaps(MODEL, BANK, HONEST, data, told, seeded(), ahead=9, windows=50)
    assert gaps.next.count.tolist() == [50.0, 50.0]
    assert gaps.ahead.count.tolist() == [0.0, 50.0]


def test_a_term_that_reads_what_is_not_told_is_unknown() -> None:
    found = realised_terms(BANK, {"speed": torch.zeros(3, 1)}, torch.full((3, 1), 0.5))
    assert found[:, 0].isnan().all()
    assert found[:, 1].tolist() == [0.25] * 3
    quantities = {"height": torch.full((3, 1), 0.4)}
    assert realised_terms(BANK, quantities, torch.zeros(3, 1))[:, 0].tolist() == pytest.approx(
        [0.4] * 3
    )
    alone = IntrinsicCost((Weighted("height", HEIGHT),))
    discrete = torch.zeros(3, 5, dtype=torch.int64)
    assert realised_terms(alone, {}, discrete).shape == (3, 5, 1)


def test_imagined_terms_are_those_of_the_bank() -> None:
    states, actions = torch.tensor([[[0.0], [2.0]]]), torch.tensor([[[1.0], [0.0]]])
    assert imagined_terms(BANK, LIAR, states, actions).tolist() == [[[0.5, 1.0], [0.0, 0.0]]]
    calm = IntrinsicCost((Weighted("effort", Effort()),))
    assert imagined_terms(calm, None, states, actions).tolist() == [[[1.0], [0.0]]]


def test_the_gain_of_planning_by_hand() -> None:
    def cost(*per_row: float) -> Tensor:
        return torch.tensor(per_row).view(-1, 1, 1).expand(-1, 3, 1)

    found = planning_gain(
        ("it",), (cost(0.8, 0.6), cost(0.2, 0.2)), (cost(0.8, 0.6), cost(0.7, 0.6))
    )
    assert found == pytest.approx(
        {"imagined_gain_it": 0.5, "realised_gain_it": 0.05, "realised_share_it": 0.1}
    )
    found = planning_gain(
        ("it",), (cost(0.8, 0.6), cost(0.2, math.nan)), (cost(0.8, 0.6), cost(0.2, 0.6))
    )
    assert found["realised_share_it"] == pytest.approx(1.0)
    same = planning_gain(("it",), (cost(0.5), cost(0.5)), (cost(0.5), cost(0.4)))
    assert same == pytest.approx({"imagined_gain_it": 0.0, "realised_gain_it": 0.1})
    unknown = cost(math.nan)
    assert planning_gain(("it",), (unknown, unknown), (unknown, unknown)) == {}


def test_planning_gains_nothing_real_where_the_readout_lies() -> None:
    position = torch.full((4, 1), 0.5)
    before, after = torch.zeros(4, HORIZON, 1), torch.ones(4, HORIZON, 1)
    with torch.no_grad():
        states = [MODEL.rollout(position, actions) for actions in (before, after)]
    real = [
        realised_terms(BANK, {"height": height(states_)}, actions)
        for states_, actions in zip(states, (before, after), strict=True)
    ]
    lied = [
        imagined_terms(BANK, LIAR, states_, actions)
        for states_, actions in zip(states, (before, after), strict=True)
    ]
    found = planning_gain(BANK.names, (lied[0], lied[1]), (real[0], real[1]))
    assert found["imagined_gain_height"] > 0.3
    assert found["realised_share_height"] < 0.0


# --- errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ()}, r"names is \(\): choose a bank with at least one term"),
        ({"ahead": 0}, "ahead is 0: choose 1 or more steps"),
        ({"tolerance": -0.1}, "tolerance is -0.1: choose 0 or more, finite"),
        ({"tolerance": math.nan}, "tolerance is nan"),
        ({"tolerance": math.inf}, "tolerance is inf"),
        ({"samples": 0}, "samples is 0: choose 1 or more"),
        (
            {"baseline": Gaps(Gap.none(2), Gap.none(2))},
            "baseline has 2 terms, but there are 1: choose the one of this bank",
        ),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CostMonitor.watching(**{"names": ("it",)} | options)


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"realised": rows(0.0, 0.0)}, r"realised has shape \(2, 1\), but \(1, 1\) is watched: "),
        ({"realised": torch.zeros(1, 2)}, r"realised has shape \(1, 2\), but \(1, 1\)"),
        ({"begins": torch.zeros(1)}, "begins has shape .* and type torch.float32: choose a bool"),
        ({"begins": NO.expand(2)}, r"begins has shape \(2,\)"),
        ({"followed": NO.expand(2)}, r"followed has shape \(2,\)"),
        ({"imagined": torch.zeros(1, 2)}, r"imagined has shape \(1, 2\): choose \(1, H, 1\)"),
        ({"imagined": torch.zeros(1, 2, 2)}, r"imagined has shape \(1, 2, 2\)"),
        ({"imagined": torch.zeros(1, 1, 1)}, "ahead is 2, but the plans have 1 steps: choose"),
    ],
)
def test_wrong_shapes_are_refused(told: dict[str, Any], message: str) -> None:
    monitor = watching().observe(rows(0.0), plans((0.1, 0.1)), begins=BEGIN)
    given = {"realised": rows(0.0), "imagined": None, "begins": NO} | told
    with pytest.raises(ValueError, match=message):
        monitor.observe(**given)


def test_wrong_arguments_of_the_functions_are_refused() -> None:
    with pytest.raises(ValueError, match="ahead is 0: choose 1 or more"):
        baseline_of(HONEST, ahead=0)
    with pytest.raises(ValueError, match="windows is 0: choose 1 or more"):
        baseline_of(HONEST, windows=0)
    one, two = torch.zeros(1, 3, 1), torch.zeros(1, 3, 2)
    with pytest.raises(ValueError, match=r"costs have shapes .*: choose four of one shape"):
        planning_gain(("it",), (one, one), (one, two))
    with pytest.raises(ValueError, match=r"choose four of one shape \(B, H, 1\)"):
        planning_gain(("it",), (two, two), (two, two))
