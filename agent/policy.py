"""The policy: Mode-1 acts at once from the state and the setting (LeCun 2022, fig. 3).

It sees no observation. Distillation trains it; its roll-out proposes plans to Mode-2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from forethought.worldmodel import JEPA, mlp
from forethought.worldmodel.modulation import Modulation, condition_of


class Policy(nn.Module):
    """Mode-1: a = A(s, setting), a multi-layer perceptron squashed into [-1, 1].

    With discrete actions it gives logits, of which the largest is the action.

    Args:
        state_dim: size D of the state.
        action_dim: size A of the action, or number n of discrete ones.
        goal: whether it reads a goal.
        discrete: whether actions are discrete.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        modulation: size M of a code `context["modulation"]` that modulates every hidden layer; 0
            reads none.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        *,
        goal: bool = True,
        discrete: bool = False,
        hidden: int = 256,
        layers: int = 2,
        modulation: int = 0,
    ) -> None:
        super().__init__()
        self.goal, self.discrete, self.modulation_dim = goal, discrete, modulation
        self.layers = mlp(state_dim * (1 + goal), [hidden] * layers, action_dim)
        self.modulation = Modulation(self.layers, modulation)

    def scores(self, state: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """Actions `(..., A)` in [-1, 1], or logits `(..., n)`, for states `(..., D)`.

        Args:
            state: states.
            context: `goal` `(..., D)` like the states, where the policy reads a goal; `modulation`
                `(..., M)` where it is modulated, whose leading axes are the first ones of the
                states, or 1.

        Raises:
            ValueError: the code is missing or has a wrong shape.
        """
        if self.goal:
            state = torch.cat((state, context["goal"] - state), dim=-1)
        condition = condition_of(context, self.modulation_dim, state.shape[:-1])
        scores: Tensor = self.modulation(self.layers, state, condition)
        return scores if self.discrete else scores.tanh()

    def forward(self, state: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """Actions `(..., A)`, or indices `(...)` int64, for states `(..., D)`; see `scores`."""
        scores = self.scores(state, context)
        return scores.argmax(-1) if self.discrete else scores

    def rollout(
        self, model: JEPA, state: Tensor, context: Mapping[str, Tensor], horizon: int
    ) -> tuple[Tensor, Tensor]:
        """What the policy would do in the model's imagination, with gradient.

        Args:
            model: the world model.
            state: starting states, `(B, D)`.
            context: conditioning with leading axis B.
            horizon: number of steps H.

        Returns:
            Actions `(B, H, A)` or `(B, H)`, and the states `(B, H, D)` in which they are taken.
        """
        actions, states = [], []
        for _ in range(horizon):
            states.append(state)
            actions.append(self(state, context))
            if model.predictor.window > 1:  # a step sees those before it, as in a plan
                state = model.rollout(states[0], torch.stack(actions, 1), context=context)[:, -1]
            else:
                state = model.predict(state, actions[-1], context=context)
        return torch.stack(actions, 1), torch.stack(states, 1)
