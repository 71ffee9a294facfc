"""Readouts: they learn what a state holds, in its own unit, and never touch the encoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from forethought.worldmodel import Readouts
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


@pytest.fixture(scope="module")
def fitted() -> Readouts:
    torch.manual_seed(0)
    readouts = Readouts(D, SIZES)
    readouts.fit(*sample(4000, 0), seeded(), steps=800)
    return readouts


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
    readouts.fit(states, {"half": half}, seeded(), steps=1)
    assert readouts.varies("half")
    assert readouts.std[0] == 0


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.3, 1234.567, 1e5 / 3])
def test_rounding_does_not_make_a_constant_vary(constant: float) -> None:
    readouts = Readouts(D, {"it": 1})
    states = sample(999, 0)[0]
    readouts.fit(states, {"it": torch.full((999, 1), constant)}, seeded(), steps=1)
    assert not readouts.varies("it")
    torch.testing.assert_close(readouts(states)["it"], torch.full((999, 1), constant))
    assert r_squared(readouts(states)["it"], torch.full((999, 1), constant)) is None


def test_fitting_sends_no_gradient_to_the_encoder() -> None:
    torch.manual_seed(0)
    encoder, x = nn.Linear(3, D), torch.randn(100, 3)
    readouts = Readouts(D, {"it": 1}, hidden=8)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    readouts.fit(encoder(x), {"it": x[:, :1]}, seeded(), steps=5)
    for name, parameter in encoder.named_parameters():
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
        readouts.fit(*sample(200, 0), seeded(seed), steps=5, batch=16)
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
