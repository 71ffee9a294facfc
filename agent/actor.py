"""The actor: Mode-1 reacts with a policy, Mode-2 plans (LeCun 2022, figs 3 and 4).

Both map a state and a setting to actions in [-1, 1]; neither sees an observation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from forethought.agent.configurator import Setting
from forethought.agent.cost import GoalDistance, IntrinsicCost
from forethought.planners import Problem
from forethought.worldmodel import JEPA, mlp


class Policy(nn.Module):
    """Mode-1: a = A(s, goal), a multi-layer perceptron squashed into [-1, 1].

    Args:
        state_dim: size D of the state.
        action_dim: size A of the action.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
    """

    def __init__(
        self, state_dim: int, action_dim: int, *, hidden: int = 256, layers: int = 2
    ) -> None:
        super().__init__()
        self.layers = mlp(2 * state_dim, [hidden] * layers, action_dim)

    def forward(self, state: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """Actions `(..., A)` for states `(..., D)` and `context["goal"]` of the same shape."""
        goal = context["goal"]
        action: Tensor = self.layers(torch.cat((state, goal - state), dim=-1)).tanh()
        return action

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
            Actions `(B, H, A)` and the states `(B, H, D)` in which they are taken.
        """
        actions, states = [], []
        for _ in range(horizon):
            states.append(state)
            actions.append(self(state, context))
            state = model.predict(state, actions[-1], context=context)
        return torch.stack(actions, 1), torch.stack(states, 1)


def problem_of(model: JEPA, bank: IntrinsicCost, setting: Setting, state: Tensor) -> Problem:
    """Mode-2's planning problem (fig. 4): reach the setting's goal from states `(B, D)`.

    The energy is the goal distance reduced over time, plus the intrinsic cost of every step.
    """
    bound = state.new_ones(model.action_dim)
    return Problem(
        state=state,
        step=lambda s, a, z, context, t: model.predict(s, a, z, context),
        rollout=model.rollout,
        goal_cost=GoalDistance(),
        stage_cost=bank if bool(setting.u.any()) else None,
        reduction=setting.cost.reduction,
        softmin_temperature=setting.cost.softmin_temperature,
        horizon=setting.cost.horizon,
        low=-bound,
        high=bound,
        context=setting.context,
    )
