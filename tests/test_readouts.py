"""Readouts: they learn what a state holds, in its own unit, and never touch the encoder."""

from __future__ import annotations

import pytest
import torch
from test_jepa import model_with
from torch import Tensor

from forethought.worldmodel import JEPA, LatentData, Predictor, Readouts, ResidualMLP
from forethought.worldmodel.predictors import Context
from forethought.worldmodel.readouts import r_squared

D = 4
SIZES = {"position": 2, "wind": 1, "angle": 1}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sample(n: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """States and what they hold: a curved map far from zero, a constant, and one more."""
    states = torch.randn(n, D, generator=seeded(seed))
    a, b, c, _ = states.unbind(1)
    position = torch.stack((500 + 100 * torch.sin(a), 1e-2 * (b * b - c)), 1)
    return states, {
        "position": position,
        "wind": torch.full((n, 1), 1234.567),
        "angle": torch.tanh(a + b).unsqueeze(1),
    }


class Moves(Predictor):
    """s' = s + a + bias: the truth of `steps_between`, or off by the bias."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.action_dim, self.bias = D, bias

    def forward(
        self,
        state: Tensor,
        action: Tensor,
        latent: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        return state + action + self.bias


def world(bias: float = 0.0) -> JEPA:
    return model_with(Moves(bias))


def steps_between(states: Tensor) -> LatentData:
    """Episodes of one step, from every second state to the one after it."""
    remaining = (torch.arange(len(states)) + 1) % 2
    remaining[-1] = 0
    after = torch.cat((states[1:], states[-1:]))
    actions = (after - states) * remaining[:, None]
    return LatentData(states, actions, remaining, torch.zeros(len(states), dtype=torch.bool))


def fit_to(
    readouts: Readouts, states: Tensor, values: dict[str, Tensor], bias: float = 0.0, **how: int
) -> Readouts:
    """Standardised by the values and fitted to them, as a training does it."""
    seed = how.pop("seed", 0)
    readouts.standardise_by(values)
    readouts.fit(world(bias), steps_between(states), values, seeded(seed), **how)
    return readouts


@pytest.fixture(scope="module")
def fitted() -> Readouts:
    torch.manual_seed(0)
    return fit_to(Readouts(D, SIZES), *sample(4000, 0), steps=800, batch=256)


def test_shapes() -> None:
    read = Readouts(D, SIZES)(torch.zeros(3, 5, D))
    assert {name: value.shape for name, value in read.items()} == {
        "position": (3, 5, 2),
        "wind": (3, 5, 1),
        "angle": (3, 5, 1),
    }


def test_a_curved_map_is_learnt_in_its_own_unit(fitted: Readouts) -> None:
    states, truth = sample(1000, 1)  # not those it was fitted to
    with torch.no_grad():
        read = fitted(states)
    for name in ("position", "angle"):
        score = r_squared(read[name], truth[name])
        assert score is not None
        assert score > 0.95, name


def test_a_constant_is_read_as_its_constant(fitted: Readouts) -> None:
    states, _ = sample(100, 2)
    torch.testing.assert_close(fitted(10 * states)["wind"], torch.full((100, 1), 1234.567))
    assert [name for name in SIZES if fitted.varies(name)] == ["position", "angle"]


def test_a_quantity_varies_if_one_component_does() -> None:
    torch.manual_seed(0)
    readouts = Readouts(D, {"half": 2})
    assert readouts.varies("half")
    states, _ = sample(50, 0)
    half = torch.stack((torch.zeros(50), states[:, 0]), 1)
    fit_to(readouts, states, {"half": half}, steps=1)
    assert readouts.varies("half")
    assert readouts.std[0] == 0


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.3, 1234.567, 1e5 / 3])
def test_rounding_does_not_make_a_constant_vary(constant: float) -> None:
    readouts = Readouts(D, {"it": 1})
    states = sample(999, 0)[0]
    fit_to(readouts, states, {"it": torch.full((999, 1), constant)}, steps=1)
    assert not readouts.varies("it")
    torch.testing.assert_close(readouts(states)["it"], torch.full((999, 1), constant))
    assert r_squared(readouts(states)["it"], torch.full((999, 1), constant)) is None


def test_fitting_sends_no_gradient_to_the_encoder() -> None:
    torch.manual_seed(0)
    model, x = model_with(ResidualMLP(D, D, hidden=8)), torch.randn(100, 6)
    readouts = Readouts(D, {"it": 1}, hidden=8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = model.encode(x)
    assert states.requires_grad
    data, first = steps_between(states), readouts(states)["it"]
    readouts.fit(model, data, {"it": x[:, :1]}, seeded(), steps=5)
    assert not torch.equal(readouts(states)["it"], first)
    for name, parameter in model.named_parameters():
        assert parameter.grad is None, name
        assert torch.equal(parameter, before[name])


def test_reading_sends_gradient_to_the_state(fitted: Readouts) -> None:
    """Costs read quantities, and planners follow their gradient."""
    states = sample(5, 3)[0].requires_grad_()
    fitted(states)["position"].sum().backward()
    assert states.grad is not None
    assert (states.grad.abs().sum(1) > 0).all()


def test_the_derivative_of_a_reading() -> None:
    torch.manual_seed(0)
    readouts = Readouts(D, {"it": 2}, hidden=8).double()
    readouts.std.fill_(3.0)
    states = torch.randn(3, D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: readouts(s)["it"], (states,))


def test_twin_fits_are_equal() -> None:
    def run(seed: int) -> Tensor:
        torch.manual_seed(0)
        readouts = Readouts(D, SIZES, hidden=8)
        fit_to(readouts, *sample(200, 0), seed=seed, steps=5, batch=16)
        return readouts(sample(10, 1)[0])["position"]

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_r_squared_by_hand() -> None:
    true = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])  # variance 1, and a constant
    assert r_squared(true, true) == 1
    read = true + torch.tensor([[0.3, 9.0], [0.0, 9.0], [0.0, 9.0]])
    assert r_squared(read, true) == pytest.approx(1 - 0.09 / 3)
    assert r_squared(torch.zeros(3, 2), torch.zeros(3, 2)) is None
    both = torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])  # variances 1 and 4
    expected = ((1 - 3 * 0.25 / 3) + (1 - 3 * 0.25 / 3 / 4)) / 2
    assert r_squared(both + 0.5, both) == pytest.approx(expected)


# ---- what they are fitted to --------------------------------------------------------------------


def test_predicted_states_are_read_right_even_where_the_model_is_biased() -> None:
    """The model is always off by -3: in its imagination a state means something else."""
    bias, states = -3.0, sample(4000, 0)[0].clamp(-1.4, 1.4)  # the two clouds do not overlap
    values = {"first": states[:, :1].clone()}
    torch.manual_seed(0)
    readouts = fit_to(Readouts(D, {"first": 1}), states, values, bias, steps=700, batch=128)
    truth = sample(500, 1)[0].clamp(-1.4, 1.4)
    imagined = world(bias).rollout(truth, torch.zeros(500, 1, D))[:, 0]
    torch.testing.assert_close(imagined, truth + bias)
    with torch.no_grad():
        for seen in (truth, imagined):
            score = r_squared(readouts(seen)["first"], truth[:, :1])
            assert score is not None
            assert score > 0.9
    # Fitted to a true model it would take the imagined states at their word.
    torch.manual_seed(0)
    naive = fit_to(Readouts(D, {"first": 1}), states, values, steps=400, batch=128)
    score = r_squared(naive(imagined)["first"].detach(), truth[:, :1])
    assert score is not None
    assert score < -1


def test_the_loss_is_that_of_encoded_and_of_predicted_states() -> None:
    states, _ = sample(40, 0)
    values = {"it": states[:, :1]}
    torch.manual_seed(0)
    readouts = Readouts(D, {"it": 1}, hidden=8)
    readouts.standardise_by(values)
    with torch.no_grad():
        data = steps_between(states)
        starts = data.starts(1)
        drawn = data.draw(starts, 16, seeded(5))
        pairs = torch.stack((drawn, drawn + 1), 1)
        read = (readouts(states[pairs])["it"] - values["it"][pairs]) / readouts.std
        ahead = states[drawn] + data.actions[drawn] + 0.7
        dreamt = (readouts(ahead)["it"] - values["it"][drawn + 1]) / readouts.std
    log: list[dict[str, float]] = []
    readouts.fit(
        world(0.7), data, values, seeded(5), steps=1, batch=16, on_step=lambda _, r: log.append(r)
    )
    assert log[0]["encoded"] == pytest.approx(read.square().mean().item(), rel=1e-5)
    assert log[0]["imagined"] == pytest.approx(dreamt.square().mean().item(), rel=1e-5)
    assert log[0]["loss"] == pytest.approx(log[0]["encoded"] + log[0]["imagined"], rel=1e-6)


def test_windows_are_as_long_as_the_longest_episode_allows() -> None:
    states, values = sample(40, 0)
    readouts = Readouts(D, SIZES, hidden=8)
    fit_to(readouts, states, values, steps=1, unroll=50)  # of episodes of one step
    with pytest.raises(ValueError, match="the longest episode has 1 actions"):
        steps_between(states).starts(2)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_nothing_to_read_is_nothing_to_fit() -> None:
    readouts = Readouts(D, {})
    readouts = Readouts(D, {})
    readouts.standardise_by({})
    readouts.fit(world(), steps_between(sample(10, 0)[0]), {}, seeded(), steps=3)
    assert readouts(torch.zeros(3, D)) == {}


# ---- unknown values -----------------------------------------------------------------------------


def test_unknown_values_count_nowhere() -> None:
    values = torch.tensor([[1.0, 5.0], [float("nan"), 5.0], [3.0, 5.0], [float("nan"), 5.0]])
    torch.manual_seed(0)
    readouts = Readouts(D, {"it": 2}, hidden=8)
    readouts.standardise_by({"it": values})
    assert readouts.mean.tolist() == [2.0, 5.0]
    assert readouts.std.tolist() == [1.0, 0.0]
    states = torch.randn(4, D, requires_grad=True)
    error = readouts.error(states, {"it": values})
    read = readouts.layers(states)[:, 0]
    torch.testing.assert_close(error, ((read[0] + 1) ** 2 + (read[2] - 1) ** 2) / 2)
    (gradient,) = torch.autograd.grad(error, states)
    assert (gradient.abs().sum(1) > 0).tolist() == [True, False, True, False]
    # Nothing known at all is no error, and its gradient is zero and not not-a-number.
    nothing = readouts.error(states, {"it": torch.full((4, 2), float("nan"))})
    assert nothing == 0
    assert torch.autograd.grad(nothing, states)[0].abs().max() == 0


def test_the_derivative_of_the_error() -> None:
    torch.manual_seed(0)
    readouts = Readouts(D, {"it": 2}, hidden=8).double()
    states = torch.randn(3, D, dtype=torch.float64, requires_grad=True)
    values = torch.randn(3, 2, dtype=torch.float64)
    values[1, 0] = float("nan")
    readouts.standardise_by({"it": torch.randn(9, 2, dtype=torch.float64)})
    assert torch.autograd.gradcheck(lambda s: readouts.error(s, {"it": values}), (states,))


def test_a_quantity_that_is_often_unknown_is_learnt_from_what_is_known() -> None:
    states, values = sample(4000, 0)
    partly = values["angle"].clone()
    partly[torch.rand(4000, generator=seeded(9)) < 0.7] = float("nan")
    torch.manual_seed(0)
    readouts = fit_to(Readouts(D, {"angle": 1}), states, {"angle": partly}, steps=400)
    assert all(parameter.isfinite().all() for parameter in readouts.parameters())
    unseen, truth = sample(1000, 1)
    with torch.no_grad():
        score = r_squared(readouts(unseen)["angle"], truth["angle"])
    assert score is not None
    assert score > 0.9


def test_r_squared_leaves_unknown_rows_out() -> None:
    true = torch.tensor([[1.0], [float("nan")], [2.0], [3.0]])
    read = torch.tensor([[1.3], [99.0], [2.0], [3.0]])
    assert r_squared(read, true) == pytest.approx(1 - 0.09 / 3)
    assert r_squared(read, torch.full((4, 1), float("nan"))) is None
