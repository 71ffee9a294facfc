"""Calibration: what came, written out; numbers of known agreement; heads under other weights."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from forethought.agent import Critic, CriticStage, train_critic
from forethought.agent.cost.calibration import calibration, realised, reweighting, weighted
from forethought.worldmodel import JEPA, Actions, LatentData, Perception, Predictor

CELLS, GAMMA = 5, 0.8


class Cell(Perception):
    """The state is the observation."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim = CELLS

    def forward(self, observation: Any) -> Tensor:
        return observation  # type: ignore[no-any-return]

    def standardise_by(self, statistics: Any) -> None:
        raise NotImplementedError


class Turning(Predictor):
    """One step round the ring of cells, exact: back, stay, or on."""

    def __init__(self) -> None:
        super().__init__()
        self.action_dim = 3
        self.moves = torch.stack([torch.eye(CELLS).roll(by, 1) for by in (-1, 0, 1)])

    def forward(
        self, state: Tensor, action: Tensor, latent: Any = None, context: Any = None
    ) -> Tensor:
        return torch.einsum("na,nc,acd->nd", action, state, self.moves)


class Told(Critic):
    """A critic whose averages are the state itself."""

    def __init__(self, terms: int = 1) -> None:
        super().__init__(terms, terms, GAMMA, hidden=4, layers=1)

    def average(self, state: Tensor) -> Tensor:
        return state


def critic_of(terms: int, seed: int = 0) -> Critic:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Critic(CELLS, terms, GAMMA, hidden=32, layers=1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def walks(episodes: int = 20, length: int = 30, *, terminated: bool = False) -> LatentData:
    """Random walks round the ring, from all cells."""
    actions = torch.randint(3, (episodes, length + 1), generator=seeded())
    steps = torch.cat((torch.arange(episodes)[:, None], actions[:, :-1] - 1), 1)
    left = torch.arange(length, -1, -1).repeat(episodes)
    states = torch.eye(CELLS)[(steps.cumsum(1) % CELLS).flatten()]
    return LatentData(states, actions.flatten(), left, (left == 1) & terminated)


def costs_of(data: LatentData, table: Tensor) -> Tensor:
    after = torch.cat((data.states[1:], data.states[-1:])) @ table
    return torch.where(data.remaining[:, None] > 0, after, torch.nan)


def trained(critic: Critic, data: LatentData, costs: Tensor) -> Critic:
    stage = CriticStage(steps=300, batch=64, window=6, learning_rate=1e-2, target_rate=0.1)
    model = JEPA(Cell(), Turning(), Actions(3, discrete=True))
    train_critic(critic, model, data, costs, torch.zeros(costs.shape[1]), stage, seeded())
    return critic


# --- what came


@pytest.mark.parametrize("terminated", [False, True])
def test_realised_sums_by_hand(terminated: bool) -> None:
    """Two episodes of 3 actions that cost 0.1, 0.2 and 0.4; gamma 1/2, e_end 1."""
    left = torch.tensor([3, 2, 1, 0] * 2)
    last = (left == 1) & terminated
    data = LatentData(torch.zeros(8, 2), torch.zeros(8, 1), left, last)
    costs = torch.tensor([[0.1], [0.2], [0.4], [torch.nan]] * 2)
    came, counts = realised(data, costs, torch.ones(1), 0.5, tail=0.2)
    rest = 1.0 if terminated else 0.0
    third = 0.2 + rest / 2
    second = 0.1 + third / 2
    wanted = [0.05 + second / 2, second, third]
    assert came[:3, 0].tolist() == pytest.approx(wanted)
    assert came[4:7, 0].tolist() == pytest.approx(wanted)
    # 1/2^3 of the weights are missing at the first state, 1/2^2 at the second.
    assert counts.tolist() == ([True] * 3 + [False] if terminated else [True] + [False] * 3) * 2
    assert realised(data, costs, torch.ones(1), 0.5, tail=0.125)[1].any() == terminated
    _, all_of_them = realised(data, costs, torch.ones(1), 0.5, tail=1.0)
    assert all_of_them.tolist() == [True, True, True, False] * 2


def test_a_constant_cost_is_its_own_average_up_to_the_tail() -> None:
    data = walks(2, 30)
    came, counts = realised(data, torch.full((62, 1), 0.3), torch.zeros(1), GAMMA)
    torch.testing.assert_close(came[:, 0], 0.3 * (1 - GAMMA ** data.remaining.float()))
    assert bool((came[counts] > 0.27).all())
    assert int(counts.sum()) == 2 * 20  # 0.8^11 is below 0.1, 0.8^10 is not


def test_an_episode_without_an_action_counts_nowhere() -> None:
    left = torch.tensor([0, 1, 0, 0])
    data = LatentData(torch.zeros(4, 2), torch.zeros(4, 1), left, left == 1)
    came, counts = realised(data, torch.full((4, 1), 0.5), torch.ones(1), 0.5)
    assert counts.tolist() == [False, True, False, False]
    assert came[:, 0].tolist() == [0.0, 0.75, 1.0, 0.0]


# --- numbers


def test_perfect_predictions_are_calibrated() -> None:
    states = torch.rand(100, 2, generator=seeded())
    found = calibration(Told(2), states, states, names=["far", "fast"], bins=4)
    assert found["count"] == 100
    assert list(found["terms"]) == ["far", "fast"]
    for term in found["terms"].values():
        assert term["slope"] == pytest.approx(1)
        assert term["correlation"] == pytest.approx(1)
        assert term["mean_absolute_error"] == term["bias"] == 0
        assert [b["count"] for b in term["bins"]] == [25] * 4
        told = [b["predicted"] for b in term["bins"]]
        assert told == sorted(told) == [b["realised"] for b in term["bins"]]


def test_numbers_of_known_agreement() -> None:
    """Realised is half of what was predicted, plus 0.1; then its opposite."""
    states = torch.tensor([[0.0], [0.8], [0.4]])
    (term,) = calibration(Told(), states, states / 2 + 0.1, bins=3)["terms"].values()
    assert term["slope"] == pytest.approx(0.5)
    assert term["correlation"] == pytest.approx(1)
    assert term["mean_absolute_error"] == pytest.approx((0.1 + 0.3 + 0.1) / 3)
    assert term["bias"] == pytest.approx((-0.1 + 0.3 + 0.1) / 3)
    realised_ = [b["realised"] for b in term["bins"]]
    assert realised_ == pytest.approx([0.1, 0.3, 0.5])
    (term,) = calibration(Told(), states, 1 - states, bins=1)["terms"].values()
    assert (term["slope"], term["correlation"]) == (pytest.approx(-1), pytest.approx(-1))


def test_what_does_not_vary_has_no_slope_and_is_still_json() -> None:
    same, states = torch.full((5, 1), 0.5), torch.linspace(0, 1, 5)[:, None]
    (flat,) = calibration(Told(), same, states, bins=2)["terms"].values()
    assert flat["slope"] is flat["correlation"] is None
    found = calibration(Told(), states, same, bins=2)
    assert found["terms"]["0"]["slope"] == 0
    assert found["terms"]["0"]["correlation"] is None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_trained_critic_is_calibrated_and_a_fresh_one_is_not() -> None:
    data, table = walks(60, 40), torch.stack((torch.eye(CELLS)[1], torch.linspace(0, 1, CELLS)), 1)
    costs = costs_of(data, table)
    came, counts = realised(data, costs, torch.zeros(2), GAMMA, tail=0.01)
    states = data.states[counts]
    fresh, learned = (
        calibration(critic, states, came[counts])["terms"]
        for critic in (critic_of(2), trained(critic_of(2), data, costs))
    )
    for term in ("0", "1"):
        assert learned[term]["slope"] == pytest.approx(1, abs=0.2)
        assert abs(learned[term]["bias"]) < 0.03
        assert learned[term]["correlation"] > 0.3  # the walk's own chance is in what came
        assert learned[term]["mean_absolute_error"] < fresh[term]["mean_absolute_error"]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 0), {}, "there are 0 states to calibrate with: give longer episodes"),
        ((4, 4), {"bins": 5}, "bins is 5: choose 1 to 4, the number of states"),
        ((4, 3), {"bins": 2}, r"returns are \(3, 1\): give \(4, 1\), one for each"),
        ((4, 4), {"bins": 2, "names": ["a", "b"]}, r"names are \['a', 'b'\]: give 1, one for each"),
    ],
)
def test_what_does_not_fit_is_refused(
    arguments: tuple[int, int], options: dict[str, Any], message: str
) -> None:
    states, returns = (torch.rand(count, 1, generator=seeded()) for count in arguments)
    with pytest.raises(ValueError, match=message):
        calibration(Told(), states, returns, **options)


def test_wrong_discounts_and_tails_are_refused() -> None:
    data = walks(1, 3)
    with pytest.raises(ValueError, match=r"discount is 1.0: choose it in \(0, 1\), the critic's"):
        realised(data, torch.zeros(4, 1), torch.zeros(1), 1.0)
    with pytest.raises(ValueError, match=r"tail is 0.0: choose it in \(0, 1\]"):
        realised(data, torch.zeros(4, 1), torch.zeros(1), 0.5, tail=0.0)


# --- other weights


def test_reweighted_heads_agree_with_a_critic_of_the_sum() -> None:
    """A new u needs no training: sum_i u_i TC_i is the TC of sum_i u_i IC_i."""
    data = walks(60, 40)
    table = torch.stack((torch.eye(CELLS)[1], torch.linspace(0, 1, CELLS)), 1)
    costs, u = costs_of(data, table), torch.tensor([3.0, 1.0])
    heads = trained(critic_of(2), data, costs)
    retrained = trained(critic_of(1, seed=1), data, weighted(costs, u))
    found = reweighting(heads, retrained, torch.eye(CELLS), u)
    assert found["mean_absolute_error"] < 0.01
    assert found["correlation"] > 0.97
    assert len(found["reweighted"]) == len(found["retrained"]) == CELLS
    assert max(found["retrained"]) - min(found["retrained"]) > 0.05  # something to agree on
    other = reweighting(heads, retrained, torch.eye(CELLS), u.flip(0))
    assert other["mean_absolute_error"] > 3 * found["mean_absolute_error"]
    json.dumps(found, allow_nan=False)


def test_weighted_costs_are_means_and_wrong_weights_are_refused() -> None:
    costs = torch.tensor([[0.2, 1.0]])
    assert weighted(costs, torch.tensor([3.0, 1.0])).tolist() == [[pytest.approx(0.4)]]
    for u in ([0.0, 0.0], [1.0, -0.5]):
        with pytest.raises(ValueError, match="choose weights of 0 or more, one of them above 0"):
            weighted(costs, torch.tensor(u))
    with pytest.raises(ValueError, match="retrained has 2 terms: give a critic of their sum"):
        reweighting(Told(2), Told(2), costs, torch.ones(2))
