"""Energy-based predictors: the contract, derivatives, the stop rule, and what they are for."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from predictor_contract import A, D, N, PredictorContract
from torch import Tensor, nn

from forethought.parser import parse, parser_of
from forethought.training import train
from forethought.worldmodel import (
    EnergyMLP,
    EnergyPredictor,
    EnergyTransformer,
    Predictor,
    Refinement,
)

RANDOM: dict[str, Any] = {"start": "noise", "fewest": 1, "rate_spread": 2.0, "langevin": 0.1}
FORMS: dict[str, Callable[..., EnergyPredictor]] = {
    "mlp": lambda **k: EnergyMLP(D, A, hidden=8, **k),
    "scalar mlp": lambda **k: EnergyMLP(D, A, hidden=8, head="scalar", **k),
    "bowl mlp": lambda **k: EnergyMLP(D, A, hidden=8, head="bowl", **k),
    "transformer": lambda **k: EnergyTransformer(D, A, width=8, depth=1, heads=2, **k),
    "bowl transformer": lambda **k: EnergyTransformer(
        D, A, width=8, depth=1, heads=2, head="bowl", **k
    ),
    "scalar transformer": lambda **k: EnergyTransformer(
        D, A, width=8, depth=1, heads=2, head="scalar", **k
    ),
}


def made(form: str = "mlp", *, normalise: bool = False, **options: Any) -> EnergyPredictor:
    torch.manual_seed(0)
    return FORMS[form](refinement=Refinement(**options), normalise=normalise)


def inputs(dtype: torch.dtype = torch.float32, rows: int = N) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    state = torch.randn(rows, D, generator=generator, dtype=dtype)
    return state, torch.randn(rows, A, generator=generator, dtype=dtype)


class Bowl(EnergyPredictor):
    """E = c |y - (s + 0.5 [a, a])|^2 / 2, whose minimum is known; c is told by the first action."""

    def __init__(self, refinement: Refinement, curvature: Tensor | None = None) -> None:
        super().__init__(D, A, refinement, hidden=1, normalise=False)
        self.curvature = curvature

    def given(self, state: Tensor, action: Tensor, context: Any = None) -> tuple[Tensor, ...]:
        c = torch.ones(len(state)) if self.curvature is None else self.curvature
        return state + 0.5 * torch.cat((action, action), -1), c.to(state)

    def judged(self, given: tuple[Tensor, ...], next_state: Tensor) -> tuple[Tensor, Tensor]:
        target, c = given
        return 0.5 * c * (next_state - target).square().sum(-1), next_state


# --- the contract


class TestEnergyMLP(PredictorContract):
    def make(self, state_dim: int, action_dim: int, *, normalise: bool = False) -> Predictor:
        return EnergyMLP(state_dim, action_dim, hidden=16, normalise=normalise)


class TestEnergyMLPInEvaluation(PredictorContract):
    test_learns_a_known_step = None  # type: ignore[assignment]  # training is not done like this

    def make(self, state_dim: int, action_dim: int, *, normalise: bool = False) -> Predictor:
        return EnergyMLP(state_dim, action_dim, hidden=16, normalise=normalise).eval()


class TestScalarEnergyMLP(PredictorContract):
    def make(self, state_dim: int, action_dim: int, *, normalise: bool = False) -> Predictor:
        return EnergyMLP(state_dim, action_dim, hidden=16, head="scalar", normalise=normalise)


class TestBowlEnergyMLPInEvaluation(PredictorContract):
    test_learns_a_known_step = None  # type: ignore[assignment]  # training is not done like this

    def make(self, state_dim: int, action_dim: int, *, normalise: bool = False) -> Predictor:
        return EnergyMLP(state_dim, action_dim, hidden=16, head="bowl", normalise=normalise).eval()


class TestEnergyMLPFromAProposal(PredictorContract):
    def make(self, state_dim: int, action_dim: int, *, normalise: bool = False) -> Predictor:
        refinement = Refinement(start="proposal")
        return EnergyMLP(
            state_dim, action_dim, refinement=refinement, hidden=16, normalise=normalise
        )


class TestEnergyMLPFromNoiseInEvaluation(PredictorContract):
    test_learns_a_known_step = None  # type: ignore[assignment]  # training is not done like this

    def make(self, state_dim: int, action_dim: int, *, normalise: bool = False) -> Predictor:
        refinement = Refinement(start="noise")
        return EnergyMLP(
            state_dim, action_dim, refinement=refinement, hidden=16, normalise=normalise
        ).eval()


class TestEnergyTransformer(PredictorContract):
    def make(self, state_dim: int, action_dim: int, *, normalise: bool = False) -> Predictor:
        return EnergyTransformer(
            state_dim, action_dim, width=16, depth=1, heads=2, normalise=normalise
        )


class TestEnergyTransformerInEvaluation(PredictorContract):
    test_learns_a_known_step = None  # type: ignore[assignment]  # training is not done like this

    def make(self, state_dim: int, action_dim: int, *, normalise: bool = False) -> Predictor:
        return EnergyTransformer(
            state_dim, action_dim, width=16, depth=1, heads=2, normalise=normalise
        ).eval()


# --- derivatives


@pytest.mark.parametrize("form", FORMS)
def test_the_slope_is_that_of_the_energy(form: str) -> None:
    model, (state, action) = made(form).double(), inputs(torch.float64)
    y = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: model.energy(state, action, y), (y,))
    energy, slope = model._slope(model.given(state, action, None), y)
    (expected,) = torch.autograd.grad(model.energy(state, action, y).sum(), y)
    torch.testing.assert_close(slope, expected)
    torch.testing.assert_close(energy, model.energy(state, action, y).detach())


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("start", ["previous", "noise", "proposal"])
@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_of_the_loss_agrees_with_finite_differences(
    form: str, start: str, normalise: bool
) -> None:
    """In every parameter at once, along random directions: through slopes, second derivatives."""
    options = {**RANDOM, "start": start, "steps": 3}
    model = made(form, normalise=normalise, **options).double()
    state, action = inputs(torch.float64)
    target = torch.randn(N, D, dtype=torch.float64)
    parameters = [*model.parameters()]

    def loss() -> Tensor:
        model.draws.zero_()  # the same random numbers at each call
        return (model(state, action) - target).square().mean()

    gradients = torch.autograd.grad(loss(), parameters)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        expected = sum(float((g * v).sum()) for g, v in zip(gradients, along, strict=True))
        ends = []
        for size in (1e-5, -2e-5, 1e-5):  # there, back to the other side, home
            with torch.no_grad():
                for parameter, v in zip(parameters, along, strict=True):
                    parameter += size * v
            ends.append(loss().item())
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(expected, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_a_detached_gradient_is_that_of_the_last_step(form: str) -> None:
    model, (state, action) = made(form, steps=3, unrolled=False).double(), inputs(torch.float64)
    before = made(form, steps=2).double()
    given = model.given(state, action, None)
    start = before(state, action).detach()
    last = start - model.rate * model._slope(given, start)[1]
    torch.testing.assert_close(model(state, action), last)
    chosen = list(model.parameters())
    found = torch.autograd.grad(model(state, action)[:, 0].sum(), chosen)
    expected = torch.autograd.grad(last[:, 0].sum(), chosen)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    whole = made(form).double()
    chosen = list(whole.parameters())
    unrolled = torch.autograd.grad(whole(state, action)[:, 0].sum(), chosen)
    assert not all(map(torch.allclose, found, unrolled))


def test_a_detached_gradient_reaches_the_proposal() -> None:
    model = made(start="proposal", unrolled=False)
    model(*inputs())[:, 0].sum().backward()
    assert model.proposal is not None
    for parameter in model.proposal.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().sum()) > 0


@pytest.mark.parametrize("form", FORMS)
def test_planning_has_its_derivative_through_the_accepted_steps(form: str) -> None:
    """In evaluation, rows with different numbers of steps and with refused ones among them."""
    model = made(form, rate=4.0, most=12, tolerance=1e-3).double().eval()
    state, action = inputs(torch.float64, rows=8)
    thought = model.think(state, action)
    if form != "scalar mlp":  # untrained, its energy falls without end
        assert int(thought.refused.sum()) > 0
    if "mlp" not in form:  # untrained, those are all equally round
        assert len(thought.steps.unique()) > 1
    weights = torch.randn(8, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def energy(state: Tensor, action: Tensor) -> Tensor:
        return (weights * model(state, action)).sum()

    leaves = state.clone().requires_grad_(), action.clone().requires_grad_()
    slopes = torch.autograd.grad(energy(*leaves), leaves)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        along = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in leaves]
        expected = sum(float((g * v).sum()) for g, v in zip(slopes, along, strict=True))
        with torch.no_grad():
            up, down = (
                energy(state + size * along[0], action + size * along[1]).item()
                for size in (1e-6, -1e-6)
            )
        assert (up - down) / 2e-6 == pytest.approx(expected, rel=1e-5)


def test_the_derivative_of_a_minimum_is_known() -> None:
    model = Bowl(Refinement(rate=0.7, tolerance=0.0, most=60), torch.rand(N) + 0.5).eval()
    state, action = (x.requires_grad_() for x in inputs())
    found = model(state, action)
    torch.testing.assert_close(found, state + 0.5 * torch.cat((action, action), -1))
    slopes = torch.autograd.grad(found[:, 1].sum(), (state, action))
    torch.testing.assert_close(slopes[0], torch.eye(D)[1].expand(N, -1))
    torch.testing.assert_close(slopes[1], torch.tensor([0.0, 0.5]).expand(N, -1))


@pytest.mark.parametrize("form", FORMS)
def test_predictions_need_no_gradient_outside(form: str) -> None:
    state, action = inputs()
    for training in (True, False):
        model = made(form).train(training)
        with torch.no_grad():
            found = model(state, action)
        assert not found.requires_grad
        torch.testing.assert_close(found, model(state, action))


# --- the descent


def test_one_step_suffices_in_a_round_bowl() -> None:
    """The second finds no fall any more."""
    thought = Bowl(Refinement()).think(*inputs())
    assert thought.steps.tolist() == [2] * N
    assert thought.refused.tolist() == [0] * N
    torch.testing.assert_close(thought.energy, torch.zeros(N))


def test_a_step_that_raises_the_energy_is_refused_and_halved() -> None:
    """With rate 3 a step multiplies the distance by -2, with 3 / 2 by -1 / 2."""
    model = Bowl(Refinement(rate=3.0, most=4))
    state, action = inputs()
    thought = model.think(state, action)
    assert thought.refused.tolist() == [1] * N
    assert thought.steps.tolist() == [3] * N
    torch.testing.assert_close(thought.trace[1], thought.trace[0])
    for step in (2, 3, 4):
        torch.testing.assert_close(thought.trace[step], thought.trace[step - 1] / 4)
    model = Bowl(Refinement(most=8))
    with torch.no_grad():
        model.log_rate.fill_(10.0)  # not halved often enough: it stays where it is
    thought = model.think(state, action)
    assert thought.steps.tolist() == [0] * N
    assert thought.refused.tolist() == [5] * N  # halved four times
    assert torch.equal(thought.prediction, state)


def test_each_row_stops_by_itself() -> None:
    """The flatter the bowl, the more steps, whoever stands beside."""
    curvature = torch.tensor([1.0, 0.5, 0.2, 0.1, 0.05])
    state, action = (x[:1].expand(N, -1) for x in inputs())
    refinement = Refinement(tolerance=1e-6, most=100)
    steps = Bowl(refinement, curvature).think(state, action).steps
    assert (steps.diff() > 0).all()
    for row in range(N):
        alone = Bowl(refinement, curvature[row : row + 1]).think(state[:1], action[:1])
        assert alone.steps.item() == steps[row]


def test_not_a_number_stays_where_it_is() -> None:
    state, action = inputs()
    expected = Bowl(Refinement()).eval()(state, action)
    curvature = torch.ones(N)
    curvature[2] = torch.nan
    thought = Bowl(Refinement(), curvature).think(state, action)
    assert thought.steps[2] == 0
    assert torch.equal(thought.prediction[2], state[2])
    kept = [0, 1, 3, 4]
    torch.testing.assert_close(thought.prediction[kept], expected[kept])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("normalise", [False, True])
def test_a_thought_tells_how_it_was_come_by(form: str, normalise: bool) -> None:
    model = made(form, normalise=normalise, rate=2.0).eval()
    state, action = inputs()
    thought = model.think(state, action)
    torch.testing.assert_close(thought.prediction, model(state, action))
    torch.testing.assert_close(thought.energy, model.energy(state, action, thought.prediction))
    assert (thought.trace.diff(dim=0) <= 0).all()
    assert torch.equal(thought.trace[-1], thought.energy)
    assert torch.equal(thought.path[-1], thought.prediction)
    for at, energy in zip(thought.path, thought.trace, strict=True):
        torch.testing.assert_close(energy, model.energy(state, action, at))
    moved = (thought.path.diff(dim=0).abs().sum(-1) > 0).sum(0)
    assert torch.equal(moved, thought.steps)
    assert (thought.steps + thought.refused <= model.refinement.most).all()
    other = model.think(state, action, start=state.flip(0))
    assert not torch.allclose(other.path[0], thought.path[0])


# --- options and randomness


OPTIONS: list[dict[str, Any]] = [
    {"start": "noise"},
    {"start": "proposal"},
    {"steps": 4},
    {"fewest": 1},
    {"rate": 0.5},
    {"rate_spread": 2.0},
    {"langevin": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_changes_training(options: dict[str, Any]) -> None:
    plain, other = made(), made(**options)
    found = [model(*inputs()) for model in (plain, other)]
    assert not torch.allclose(*found, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"most": 1}, {"tolerance": 0.5}, {"halvings": 0}, {"start": "noise"}], ids=str
)
def test_every_option_changes_evaluation(options: dict[str, Any]) -> None:
    common = {"rate": 2.5, "tolerance": 1e-6}
    plain, other = made("transformer", **common), made("transformer", **{**common, **options})
    found = [model.eval()(*inputs()) for model in (plain, other)]
    assert not torch.allclose(*found, atol=1e-6)


def test_random_numbers_of_steps_and_sizes_are_what_they_say() -> None:
    """In a bowl of curvature 1 and rate 1/2 each step halves the distance."""
    state, action = inputs(rows=4000)
    far = 0.5 * torch.cat((action, action), -1)
    r = Refinement(rate=0.5, steps=3, fewest=1)
    left = 1 - (Bowl(r)(state, action) - state).norm(dim=1) / far.norm(dim=1)
    counts = [int((left - 0.5**k).abs().lt(1e-3).sum()) for k in (1, 2, 3)]
    assert sum(counts) == 4000
    assert all(abs(count - 4000 / 3) < 150 for count in counts)  # five standard deviations
    r = Refinement(rate=0.5, steps=1, rate_spread=2.0)
    sizes = (Bowl(r)(state, action).detach() - state).norm(dim=1) / far.norm(dim=1)
    assert 0.25 - 1e-3 < float(sizes.min()) < 0.26
    assert 0.99 < float(sizes.max()) < 1 + 1e-3
    assert float(sizes.median()) == pytest.approx(0.5, abs=0.02)
    spread = Bowl(Refinement(steps=1, langevin=0.1))(state, action) - state - far
    assert float(spread.detach().abs().max()) < 1e-5  # a step of rate 1 takes the noise away again
    half = Bowl(Refinement(steps=1, rate=0.5, langevin=0.1))(state, action) - state - 0.5 * far
    assert float(half.std()) == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_twins_draw_the_same_and_a_copy_goes_on_as_the_original(form: str) -> None:
    state, action = inputs()
    one, twin = made(form, **RANDOM), made(form, **RANDOM)
    first = one(state, action)
    torch.manual_seed(99)  # nobody's randomness but its own
    assert torch.equal(first, twin(state, action))
    second = one(state, action)
    assert not torch.allclose(first, second)
    held = io.BytesIO()
    torch.save(twin.state_dict(), held)
    held.seek(0)
    torch.manual_seed(7)
    copy = FORMS[form](refinement=Refinement(**RANDOM))
    assert not torch.equal(copy(state, action), first)
    copy.load_state_dict(torch.load(held))
    assert torch.equal(copy(state, action), second)


def test_evaluation_draws_nothing_and_listens_to_nothing() -> None:
    model = made(**RANDOM).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, other = (model(*inputs()) for _ in range(2))
    assert torch.equal(one, other)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- doubt


def test_doubt_is_the_energy_in_units_of_usual_ones() -> None:
    model, (state, action) = made(steps=1, rate=0.5), inputs(rows=500)
    energies = []
    for _ in range(3):
        y = model(state, action)
        energies.append(model.energy(state, action, y).detach())
    assert int(model.usual.heard) == 3
    torch.testing.assert_close(model.usual.moments[0], energies[0].mean())
    torch.testing.assert_close(model.usual.moments[1], energies[0].var(correction=0))
    model.eval()

    def doubt(y: Tensor) -> Tensor:
        return model.doubt(state[:, None], action[:, None], y[:, None])[:, 0]

    expected = torch.sigmoid((energies[0] - energies[0].mean()) / energies[0].std(correction=0))
    torch.testing.assert_close(doubt(y), expected)
    assert (doubt(y + 10) > 0.99).all()
    y.detach_().requires_grad_()
    (slope,) = torch.autograd.grad(doubt(y).sum(), y)
    assert (slope.abs().sum(1) > 0).all()


# --- the transformer


def transformer(**options: Any) -> EnergyTransformer:
    torch.manual_seed(0)
    return EnergyTransformer(D, A, width=8, depth=2, heads=2, window=3, **options)


def sequences(length: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    states = torch.randn(N, length, D, generator=generator, dtype=dtype)
    return states, torch.randn(N, length, A, generator=generator, dtype=dtype)


@pytest.mark.parametrize("training", [True, False])
def test_a_position_sees_the_real_past_and_itself_alone(training: bool) -> None:
    model, (states, actions) = transformer().double().train(training), sequences(3)
    states.requires_grad_(), actions.requires_grad_()
    found = model.sequence(states, actions)
    for t in range(3):
        for slope in torch.autograd.grad(
            found[:, t, 0].sum(), (states, actions), retain_graph=True
        ):
            assert (slope.abs().sum(-1) > 0).tolist() == [[p <= t for p in range(3)]] * N
    # Nor do predictions see each other: each is the same without those beside it.
    for t in range(3):
        alone = model.sequence(states[:, : t + 1], actions[:, : t + 1])[:, t]
        torch.testing.assert_close(alone, found[:, t])


@pytest.mark.parametrize("training", [True, False])
def test_a_roll_out_takes_its_own_predictions_as_the_past(training: bool) -> None:
    model, (states, actions) = transformer().double().train(training), sequences(6)
    found = model.unroll(states[:, 0], actions)
    torch.testing.assert_close(found[:, 0], model(states[:, 0], actions[:, 0]))
    whole = torch.cat((states[:, :1], found), 1)
    torch.testing.assert_close(model.sequence(whole[:, :3], actions[:, :3]), found[:, :3])
    for t in (3, 4, 5):  # the window has moved on
        seen = slice(t - 2, t + 1)
        torch.testing.assert_close(
            model.sequence(whole[:, seen], actions[:, seen])[:, -1], found[:, t]
        )


@pytest.mark.parametrize("length", [2, 3, 6])
def test_the_energies_of_a_roll_out_are_told_from_the_past_that_it_had(length: int) -> None:
    model, (states, actions) = transformer().double().eval(), sequences(length)
    found = model.unroll(states[:, 0], actions)
    before = torch.cat((states[:, :1], found[:, :-1]), 1)
    energies = model.energies(before, actions, found)
    for t in range(length):
        seen = slice(max(0, t - 2), t + 1)
        past = model._read(before[:, seen], actions[:, seen])
        whole = torch.cat((before[:, seen][:, 1:], found[:, t : t + 1]), 1)
        torch.testing.assert_close(energies[:, t], model.judged(past, whole)[0][:, -1])
    torch.testing.assert_close(model.doubt(before, actions, found), model.usual(energies))
    single = model.energy(before[:, 1], actions[:, 1], found[:, 1])
    assert not torch.allclose(energies[:, 1], single)  # the past counts


def test_the_energy_of_a_sequence_has_the_slope_of_each_position() -> None:
    model, (states, actions) = transformer().double(), sequences(3)
    given = model._read(states, actions)
    y = torch.randn_like(states).requires_grad_()
    energy, slope = model._slope(given, y)
    assert energy.shape == (N, 3)
    (expected,) = torch.autograd.grad(model.judged(given, y)[0][:, 1].sum(), y)
    torch.testing.assert_close(slope[:, 1], expected[:, 1])
    assert not expected[:, [0, 2]].any()


# --- messages


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "zero"}, "refinement.start is 'zero': choose one of previous, noise, proposal"),
        ({"steps": 0}, "refinement.steps is 0: choose 1 or more"),
        ({"most": 0}, "refinement.most is 0: choose 1 or more"),
        ({"fewest": 4}, "refinement.fewest is 4: choose 0 to 3, the steps, or none"),
        ({"halvings": -1}, "refinement.halvings is -1: choose 0 or more"),
        ({"tolerance": -1.0}, "refinement.tolerance is -1.0: choose 0 or more, finite"),
        ({"rate": 0.0}, "refinement.rate is 0.0: choose it above 0, finite"),
        ({"rate_spread": 0.5}, r"refinement.rate_spread is 0.5: choose 1 \(none\) or more, finite"),
        ({"langevin": -1.0}, "refinement.langevin is -1.0: choose 0 or more, finite"),
    ],
)
def test_a_wrong_refinement_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Refinement(**options)


def test_a_wrong_network_is_refused() -> None:
    wrong: Any = "cube"
    for kind in (EnergyMLP, EnergyTransformer):
        with pytest.raises(ValueError, match="head is 'cube': choose one of squares, bowl, scalar"):
            kind(D, A, head=wrong)
    with pytest.raises(ValueError, match="layers is 0: choose 1 or more"):
        EnergyMLP(D, A, layers=0)
    with pytest.raises(ValueError, match=r"modulation is -1: choose 0 \(none\) or more"):
        EnergyMLP(D, A, modulation=-1)
    with pytest.raises(ValueError, match="window is 0: choose 1 or more"):
        EnergyTransformer(D, A, window=0)
    with pytest.raises(ValueError, match="states has 4 positions: give at most 3, window"):
        transformer().double().sequence(*sequences(4))


def test_modulation_changes_the_energy() -> None:
    torch.manual_seed(0)
    model = EnergyMLP(D, A, hidden=8, modulation=3)
    assert model.modulation is not None
    nn.init.normal_(model.modulation.weight)
    state, action = inputs()
    codes = [{"modulation": torch.full((N, 3), x)} for x in (0.0, 1.0)]
    found = [model(state, action, context=code) for code in codes]
    assert not torch.allclose(*found, atol=1e-4)
    with pytest.raises(ValueError, match="context has no 'modulation'"):
        model(state, action)


# --- what they are for, on a world that is learned in a second
#
# A point in a square that an action pushes, sideways by how far right it stands; walls stop it.


def pushed(rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = 2 * torch.rand(rows, 2, generator=generator) - 1
    action = 2 * torch.rand(rows, 1, generator=generator) - 1
    push = torch.cat((action, torch.sin(3 * state[:, :1]) * action), 1)
    return state, action, (state + 0.5 * push).clamp(-1, 1)


@pytest.fixture(scope="module")
def learned() -> dict[str, EnergyMLP]:
    """One that begins at the previous state, and one that begins at noise."""
    found = {}
    for start in ("previous", "noise"):
        torch.manual_seed(0)
        refinement = Refinement(start=start, steps=3, fewest=1, rate_spread=2.0)  # type: ignore[arg-type]
        model = EnergyMLP(2, 1, hidden=32, refinement=refinement)
        optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
        for update in range(150):
            state, action, after = pushed(128, 1000 + update)
            error = (model(state, action) - after).square().mean()
            optimiser.zero_grad()
            error.backward()
            optimiser.step()
        found[start] = model.eval().requires_grad_(False)
    return found


def told_by(features: Tensor, wanted: Tensor) -> float:
    """R^2 on the second half of the rows of a linear map fitted to the first."""
    x = torch.cat((features, torch.ones(len(features), 1)), 1).double()
    half = len(x) // 2
    gram = x[:half].T @ x[:half] + 1e-3 * torch.eye(x.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, x[:half].T @ wanted[:half].double())
    left = (x[half:] @ weights - wanted[half:]).square().mean()
    return float(1 - left / wanted[half:].var(0).mean())


def test_predictions_shape_the_internal_state(learned: dict[str, EnergyMLP]) -> None:
    """What happens is told better from the features at the prediction than at the start.

    Of a predictor that tells s' at once they are the same by construction.
    """
    model, (state, action, after) = learned["noise"], pushed(2000, 9)
    path = model.think(state, action).path
    start, end = (model.internal(state, action, y) for y in (path[0], path[-1]))
    others = model.internal(state, action, path[-1].roll(1, 0))
    assert float((end - start).square().mean() / start.var(0).mean()) > 0.1
    known = [told_by(features, after - state) for features in (start, others, end)]
    assert known[2] > known[0] + 0.005
    assert known[2] > known[1] + 0.005


def test_the_energy_evaluates_predictions(learned: dict[str, EnergyMLP]) -> None:
    """Near the prediction it is higher; among candidates it ranks them nearly as the error does."""
    generator = torch.Generator().manual_seed(2)
    state, action, after = pushed(500, 9)
    for model in learned.values():
        thought = model.think(state, action)
        near = thought.prediction + 0.3 * torch.randn(500, 2, generator=generator)
        assert (model.energy(state, action, near) > thought.energy).float().mean() > 0.97
        energies, errors = [], []
        for size in torch.linspace(0.05, 1.5, 12):
            y = after + size * torch.randn(500, 2, generator=generator)
            energies.append(model.energy(state, action, y))
            errors.append((y - after).square().sum(1))
        ranks = [torch.stack(x).argsort(0).argsort(0).float() - 5.5 for x in (energies, errors)]
        correlation = (ranks[0] * ranks[1]).sum(0) / ranks[0].square().sum(0)
        assert float(correlation.mean()) > 0.85


def test_compute_is_allocated_per_prediction(learned: dict[str, EnergyMLP]) -> None:
    """Who has farther to go takes more steps; from the end of a descent there is none left."""
    model, (state, action, after) = learned["previous"], pushed(1000, 9)
    thought = model.think(state, action)
    assert (thought.trace.diff(dim=0) <= 0).all()
    histogram = torch.bincount(thought.steps)
    assert int((histogram > 20).sum()) > 1
    far = (after - state).norm(dim=1)
    ranks = torch.stack((thought.steps.float(), far))
    assert float(torch.corrcoef(ranks)[0, 1]) > 0.3
    again = model.think(state, action, start=thought.prediction)
    assert float(again.steps.float().mean()) < 0.6 * float(thought.steps.float().mean())


def test_the_energy_is_higher_outside_of_the_data(learned: dict[str, EnergyMLP]) -> None:
    model, (state, action, _) = learned["noise"], pushed(1000, 9)
    usual = model.think(state, action).energy.median()
    assert float((model.think(3 * state, action).energy > usual).float().mean()) > 0.65


class Valleys(Bowl):
    """Two valleys along the first axis, at about -1 and 1, of which the first is deeper."""

    def judged(self, given: tuple[Tensor, ...], next_state: Tensor) -> tuple[Tensor, Tensor]:
        first, others = next_state[:, 0], next_state[:, 1:]
        energy = (first.square() - 1).square() / 4 + 0.1 * first + others.square().sum(1) / 2
        return energy, next_state


def test_of_several_starts_the_lowest_energy_is_right_where_their_mean_is_not() -> None:
    model, (state, action) = (
        Valleys(Refinement(rate=0.3, most=60, tolerance=1e-7)),
        inputs(rows=300),
    )
    generator, told, energies = torch.Generator().manual_seed(6), [], []
    for _ in range(8):
        thought = model.think(state, action, start=torch.randn(300, D, generator=generator))
        told.append(thought.prediction)
        energies.append(thought.energy)
    right = torch.zeros(D)
    right[0] = -1.0467  # the lower root of y^3 - y + 0.1
    every = torch.stack(told)
    best = every[torch.stack(energies).argmin(0), torch.arange(300)]
    one, lowest, mean = ((y - right).abs().amax(1) < 0.02 for y in (every[0], best, every.mean(0)))
    assert float(lowest.float().mean()) > 0.97
    assert 0.3 < float(one.float().mean()) < 0.7
    assert float(mean.float().mean()) < 0.05


def test_the_command_line_builds_one() -> None:
    words = ["--model.predictor=EnergyMLP", "--model.predictor.refinement.start=noise"]
    words += ["--model.predictor.head=bowl", "--model.predictor.refinement.fewest=2"]
    parser = parser_of(train, "train")
    arguments, resolved = parse(parser, ["--env=forethought/TwoRooms-v0", "--run=x", *words])
    again, _ = parse(parser, ["--config", resolved])  # as a run folder keeps it
    for given in (arguments, again):
        model = given["model"].predictor(5, 2)
        assert isinstance(model, EnergyMLP)
        assert model.head == "bowl"
        assert model.refinement == Refinement(start="noise", fewest=2)
