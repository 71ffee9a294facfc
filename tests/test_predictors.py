"""Predictors: each keeps the contract and is the formula it says it is."""

from __future__ import annotations

import torch
from predictor_contract import A, D, PredictorContract
from torch import nn

from forethought.worldmodel import GRUPredictor, Predictor, ResidualMLP


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
