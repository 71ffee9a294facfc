"""Diagnostics: known ranks and spreads, and alarms that go off when they should."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from test_jepa import model_with
from torch import Tensor

from forethought.worldmodel import (
    JEPA,
    LatentData,
    Predictor,
    Readouts,
    diagnose,
    effective_rank,
    latent_std,
)
from forethought.worldmodel.diagnostics import open_loop, probe_scores, warnings
from forethought.worldmodel.predictors import Context

D, A = 4, 2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Step(Predictor):
    """s' = s + gain * [a, 0, 0], the true step for a gain of 1; 0 ignores the action."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.action_dim, self.gain = A, gain

    def forward(
        self,
        state: Tensor,
        action: Tensor,
        latent: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        return state + self.gain * torch.cat((action, torch.zeros_like(action)), -1)


def world(gain: float) -> JEPA:
    return model_with(Step(gain))


def walks(episodes: int = 200, length: int = 12) -> LatentData:
    """Random walks: the first two dimensions add the actions up, the others stay."""
    actions = 0.5 * torch.randn(episodes, length + 1, A, generator=seeded())
    actions[:, -1] = 0
    first = torch.randn(episodes, 1, D, generator=seeded(1))
    moves = torch.cat((torch.zeros(episodes, 1, A), actions[:, :-1].cumsum(1)), 1)
    states = first + torch.cat((moves, torch.zeros_like(moves)), -1)
    remaining = torch.arange(length, -1, -1).repeat(episodes)
    never = torch.zeros(len(remaining), dtype=torch.bool)
    return LatentData(states.flatten(0, 1), actions.flatten(0, 1), remaining, never)


def test_effective_rank_of_known_matrices() -> None:
    line = torch.randn(200, 1, generator=seeded()) @ torch.randn(1, 6, generator=seeded(1))
    assert effective_rank(line + 5) == pytest.approx(1, abs=1e-3)  # centred first
    corners = torch.cat((torch.eye(6), -torch.eye(6)))
    assert effective_rank(corners) == pytest.approx(6)
    assert effective_rank(1e-4 * corners) == pytest.approx(6)  # of the shape, not size
    assert effective_rank(torch.randn(4000, 6, generator=seeded())) == pytest.approx(6, abs=0.05)
    # Variances 9 : 1, so p = 0.9 and 0.1.
    uneven = torch.tensor([[3.0, 0, 0], [-3.0, 0, 0], [0, 1.0, 0], [0, -1.0, 0]])
    entropy = -(0.9 * torch.tensor(0.9).log() + 0.1 * torch.tensor(0.1).log())
    assert effective_rank(uneven) == pytest.approx(float(entropy.exp()))
    assert effective_rank(torch.ones(5, 3)) == pytest.approx(1)


def test_latent_std() -> None:
    states = torch.tensor([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
    assert latent_std(states) == pytest.approx(1.0)  # (2 + 0) / 2
    assert latent_std(states + 100) == pytest.approx(1.0)
    assert latent_std(torch.randn(5000, 8, generator=seeded()) * 3) == pytest.approx(3, rel=0.03)


def test_a_true_model_is_without_error_and_uses_its_actions() -> None:
    report = open_loop(world(1.0), walks(), 8, seeded())
    assert report["open_loop_ratio"] < 1e-10
    # The error of somebody else's walk is twice the change: two independent sums.
    assert report["action_sensitivity"] == pytest.approx(2, abs=0.3)


def test_a_model_that_ignores_actions_is_found() -> None:
    report = open_loop(world(0.0), walks(), 8, seeded())
    assert report["action_sensitivity"] == 0
    assert report["open_loop_ratio"] == pytest.approx(1)  # it copies
    healthy = {"latent_std": 1.0, "effective_rank": 4.0}
    (sentence,) = warnings(healthy | report)
    assert "predictions ignore the actions" in sentence
    assert "losses.inverse_dynamics" in sentence


def test_a_wrong_model_is_worse_by_its_factor() -> None:
    # An error of (gain - 1) per step, squared, over the change of copying.
    assert open_loop(world(3.0), walks(), 8, seeded())["open_loop_ratio"] == pytest.approx(4)
    assert open_loop(world(0.5), walks(), 8, seeded())["open_loop_ratio"] == pytest.approx(0.25)


def test_open_loop_depends_on_its_generator_alone() -> None:
    model, data = world(0.5), walks()
    first = open_loop(model, data, 3, seeded(), samples=16)
    assert first == open_loop(model, data, 3, seeded(), samples=16)
    assert first != open_loop(model, data, 3, seeded(1), samples=16)
    assert first != open_loop(model, data, 4, seeded(), samples=16)


def reader() -> Readouts:
    """Reads the first two components as `position`, and a constant as `floor`."""
    readouts = Readouts(D, {"position": 2, "floor": 1}, hidden=2 * D)
    with torch.no_grad():
        for parameter in readouts.parameters():
            parameter.zero_()
        first, _, last = readouts.layers
        for d in range(2):  # relu(x) - relu(-x) = x
            first.weight[2 * d, d], first.weight[2 * d + 1, d] = 1, -1
            last.weight[d, 2 * d], last.weight[d, 2 * d + 1] = 1, -1
    readouts.std[2] = 0
    readouts.mean[2] = 7
    return readouts


def test_errors_are_reported_in_units() -> None:
    data = walks()
    report = open_loop(world(0.0), data, 1, seeded(), readouts=reader(), samples=4000)
    assert set(report) == {"open_loop_ratio", "action_sensitivity", "open_loop_position"}
    mean_step = data.actions[data.remaining > 0].norm(dim=-1).mean().item()
    assert report["open_loop_position"] == pytest.approx(mean_step, rel=0.03)


def test_probe_scores() -> None:
    data = walks()
    truth = {"position": data.states[:, :2], "floor": torch.full((len(data.states), 1), 7.0)}
    scores = probe_scores(reader(), data.states, truth)
    assert scores == {"r2_position": pytest.approx(1, abs=1e-5)}
    mean = truth["position"].mean(0).expand_as(truth["position"])
    assert probe_scores(reader(), torch.cat((mean, mean), 1), truth)["r2_position"] == (
        pytest.approx(0, abs=1e-2)
    )


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("latent_std", 0.049, "collapsed .std 0.0490"),
        ("effective_rank", 2.9, "collapsed to 2.9 dimensions"),
        ("action_sensitivity", 0.09, "ignore the actions"),
    ],
)
def test_each_alarm_goes_off_alone(name: str, value: float, words: str) -> None:
    healthy = {"latent_std": 0.051, "effective_rank": 3.1, "action_sensitivity": 0.11}
    assert warnings(healthy) == []
    (sentence,) = warnings(healthy | {name: value})
    assert words.replace(".std", "(std") in sentence
    assert "raise losses." in sentence


def test_diagnose_puts_it_together_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    data = walks()
    truth = {"position": data.states[:, :2], "floor": torch.full((len(data.states), 1), 7.0)}
    with caplog.at_level(logging.WARNING):
        report = diagnose(world(1.0), data, reader(), truth, 8, seeded())
    assert not caplog.records
    assert report["latent_std"] == latent_std(data.states)
    assert report["effective_rank"] == effective_rank(data.states)
    expected = open_loop(world(1.0), data, 8, seeded(), readouts=reader())
    assert {name: report[name] for name in expected} == expected
    assert report["r2_position"] == pytest.approx(1, abs=1e-5)
    assert all(type(value) is float for value in report.values())
    with caplog.at_level(logging.WARNING):
        diagnose(world(0.0), data, reader(), truth, 8, seeded())
    assert [record.getMessage() for record in caplog.records] == warnings(
        report | {"action_sensitivity": 0.0}
    )


def test_a_collapsed_latent_is_reported_without_dividing_by_zero() -> None:
    still = walks()
    data = replace(still, states=torch.ones_like(still.states))
    report = {"latent_std": latent_std(data.states), "effective_rank": effective_rank(data.states)}
    report |= open_loop(world(0.0), data, 8, seeded())
    assert report["open_loop_ratio"] == 0  # it predicts itself perfectly
    assert len(warnings(report)) == 3
