"""Predictors: s' = Pred(s, a, z), one step of the world model in latent space.

All of them share one signature, `predict(state, action, latent=None, context=None)`, so that
recurrent, latent-variable and energy-based predictors can take each other's place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from forethought.worldmodel.perception import mlp

Context = Mapping[str, Tensor]


class Predictor(nn.Module, ABC):
    """One step of the world model in latent space. Sub-classes set `action_dim`."""

    action_dim: int

    @abstractmethod
    def forward(
        self,
        state: Tensor,
        action: Tensor,
        latent: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """Predict the next state.

        Args:
            state: `(N, D)`.
            action: `(N, A)`.
            latent: `(N, Z)` or None; what the action does not explain.
            context: conditioning, tensors with leading axis N, or None.

        Returns:
            The next state, `(N, D)`.
        """


class ResidualMLP(Predictor):
    """s' = s + MLP([s, a]).

    Args:
        state_dim: size D of the state.
        action_dim: size A of the action.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        normalise: apply the LayerNorm of a normalised encoder to s', which keeps long unrolls
            in range.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        *,
        hidden: int = 128,
        layers: int = 2,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.layers = mlp(state_dim + action_dim, [hidden] * layers, state_dim)
        self.norm = nn.LayerNorm(state_dim, elementwise_affine=False) if normalise else None

    def forward(
        self,
        state: Tensor,
        action: Tensor,
        latent: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """Predict the next state; see `Predictor.forward`. Uses neither latent nor context."""
        change: Tensor = self.layers(torch.cat((state, action), dim=-1))
        next_state = state + change
        return next_state if self.norm is None else self.norm(next_state)


class GRUPredictor(Predictor):
    """Gated recurrent unit driven by the action, memoryless between steps.

    h = W_in s; h' = GRU(a, h); s' = s + W_out (h' - h). The gates let the model keep parts of the
    state untouched, which a residual MLP has to learn as an exact zero.

    Args:
        state_dim: size D of the state.
        action_dim: size A of the action.
        hidden: size of the recurrent state.
        normalise: apply the LayerNorm of a normalised encoder to s'.
    """

    def __init__(
        self, state_dim: int, action_dim: int, *, hidden: int = 256, normalise: bool = False
    ) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.lift = nn.Linear(state_dim, hidden)
        self.cell = nn.GRUCell(action_dim, hidden)
        self.project = nn.Linear(hidden, state_dim)
        self.norm = nn.LayerNorm(state_dim, elementwise_affine=False) if normalise else None

    def forward(
        self,
        state: Tensor,
        action: Tensor,
        latent: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """Predict the next state; see `Predictor.forward`. Uses neither latent nor context."""
        hidden = self.lift(state)
        next_state: Tensor = state + self.project(self.cell(action, hidden) - hidden)
        return next_state if self.norm is None else self.norm(next_state)
