"""Predictors: each keeps the contract and is the formula it says it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from predictor_contract import A, D, N, PredictorContract
from torch import Tensor, nn

from forethought.worldmodel import GRUPredictor, Predictor, ResidualMLP
from forethought.worldmodel.modulation import FiLM

M = 3


class Coded(Predictor):
    """A modulated predictor, its FiLMs stirred as by training, that is given one code."""

    def __init__(self, inner: Predictor) -> None:
        super().__init__()
        self.inner, self.action_dim = inner, inner.action_dim
        generator = torch.Generator().manual_seed(4)
        for part in inner.modules():
            if isinstance(part, FiLM):
                for parameter in part.parameters():
                    nn.init.normal_(parameter, std=0.3, generator=generator)
        self.register_buffer("code", torch.randn(1, M, generator=generator))

    def forward(
        self, state: Tensor, action: Tensor, latent: Tensor | None = None, context: Any = None
    ) -> Tensor:
        next_state: Tensor = self.inner(state, action, latent, {"modulation": self.code})
        return next_state


class TestResidualMLP(PredictorContract):
    def make(self, state_dim: int, action_dim: int, *, normalise: bool = False) -> Predictor:
        return ResidualMLP(state_dim, action_dim, hidden=16, normalise=normalise)

    def test_formula(self) -> None:
        torch.manual_seed(0)
        model = ResidualMLP(D, A, hidden=8, layers=1)
        state, action = self.inputs()
        first, _, last = model.layers
        hidden = (torch.cat((state, action), 1) @ first.weight.T + first.bias).clamp_min(0)
        expected = state + hidden @ last.weight.T + last.bias
        torch.testing.assert_close(model(state, action), expected)

    def test_sizes(self) -> None:
        model = ResidualMLP(D, A, hidden=8, layers=3)
        linear = [layer for layer in model.layers if isinstance(layer, nn.Linear)]
        assert [layer.out_features for layer in linear] == [8, 8, 8, D]


class TestGRUPredictor(PredictorContract):
    def make(self, state_dim: int, action_dim: int, *, normalise: bool = False) -> Predictor:
        return GRUPredictor(state_dim, action_dim, hidden=16, normalise=normalise)

    def test_formula(self) -> None:
        torch.manual_seed(0)
        model = GRUPredictor(D, A, hidden=3)
        state, action = self.inputs()
        cell, hidden = model.cell, state @ model.lift.weight.T + model.lift.bias
        assert (cell.input_size, cell.hidden_size) == (A, 3)
        from_action = (action @ cell.weight_ih.T + cell.bias_ih).chunk(3, 1)
        from_hidden = (hidden @ cell.weight_hh.T + cell.bias_hh).chunk(3, 1)
        reset = torch.sigmoid(from_action[0] + from_hidden[0])
        keep = torch.sigmoid(from_action[1] + from_hidden[1])
        new = torch.tanh(from_action[2] + reset * from_hidden[2])
        change = (1 - keep) * new + keep * hidden - hidden
        expected = state + change @ model.project.weight.T + model.project.bias
        torch.testing.assert_close(model(state, action), expected)

    def test_shut_gates_keep_the_state(self) -> None:
        model = GRUPredictor(D, A, hidden=3)
        with torch.no_grad():
            model.cell.bias_ih[3:6] = 100.0  # the update gate
            model.project.bias.zero_()
        state, action = self.inputs()
        torch.testing.assert_close(model(state, action), state)


# --- modulated


class TestModulatedResidualMLP(PredictorContract):
    def make(self, state_dim: int, action_dim: int, *, normalise: bool = False) -> Predictor:
        return Coded(
            ResidualMLP(state_dim, action_dim, hidden=16, normalise=normalise, modulation=M)
        )

    def test_every_hidden_layer_is_modulated(self) -> None:
        model = ResidualMLP(D, A, hidden=8, layers=3, modulation=M)
        assert [film.bias.shape[0] for film in model.modulation.films] == [16] * 3


class TestModulatedGRUPredictor(PredictorContract):
    def make(self, state_dim: int, action_dim: int, *, normalise: bool = False) -> Predictor:
        return Coded(
            GRUPredictor(state_dim, action_dim, hidden=16, normalise=normalise, modulation=M)
        )

    def test_shut_gates_keep_the_state_whatever_the_code(self) -> None:
        model = Coded(GRUPredictor(D, A, hidden=3, modulation=M)).inner
        assert isinstance(model, GRUPredictor)
        with torch.no_grad():
            model.cell.bias_ih[3:6] = 100.0  # the update gate
            model.project.bias.zero_()
        state, action = self.inputs()
        torch.testing.assert_close(
            model(state, action, context={"modulation": torch.randn(N, M)}), state
        )


KINDS = {
    ResidualMLP: ["layers.0", "layers.2", "layers.4"],
    GRUPredictor: ["lift", "cell", "project"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_without_modulation_nothing_is_added(kind: type[Predictor]) -> None:
    """Old weights keep their names, and a context that others read changes nothing."""
    torch.manual_seed(0)
    model = kind(D, A, hidden=8)
    assert {name.rsplit(".", 1)[0] for name in model.state_dict()} == set(KINDS[kind])
    assert model.modulation_dim == 0
    state, action = torch.randn(N, D), torch.randn(N, A)
    found = model(state, action)
    assert torch.equal(model(state, action, context={"modulation": torch.ones(N, M)}), found)
    if isinstance(model, ResidualMLP):
        assert torch.equal(found, state + model.layers(torch.cat((state, action), -1)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_modulated_predictor_begins_as_a_plain_one(kind: type[Predictor]) -> None:
    found, state, action = [], torch.randn(N, D), torch.randn(N, A)
    for size in (0, M):
        torch.manual_seed(0)
        model = kind(D, A, hidden=8, modulation=size)
        assert model.modulation_dim == size
        found.append(model(state, action, context={"modulation": torch.randn(N, M)}))
    assert torch.equal(*found)


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_has_its_own_code(kind: type[Predictor]) -> None:
    model = Coded(kind(D, A, hidden=8, modulation=M)).inner
    state, action, codes = torch.randn(1, D), torch.randn(1, A), torch.randn(N, M)
    found = model(state.expand(N, -1), action.expand(N, -1), context={"modulation": codes})
    assert float(torch.pdist(found.detach()).min()) > 1e-4
    for row, code in zip(found, codes, strict=True):
        torch.testing.assert_close(row, model(state, action, context={"modulation": code[None]})[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_modulation_is_refused(kind: type[Predictor]) -> None:
    model, state, action = kind(D, A, hidden=8, modulation=M), torch.zeros(N, D), torch.zeros(N, A)
    with pytest.raises(ValueError, match=r"context has no 'modulation'.*\(5, 3\)"):
        model(state, action)
    with pytest.raises(ValueError, match=r"has the shape \(5, 2\): give one of shape \(5, 3\)"):
        model(state, action, context={"modulation": torch.zeros(N, 2)})
    with pytest.raises(ValueError, match=r"modulation is -1: choose 0 \(none\) or more"):
        kind(D, A, hidden=8, modulation=-1)
