"""The actor: Mode-1 reacts with a policy, Mode-2 plans (LeCun 2022, figs 3 and 4).

Both map a state and a setting to actions; neither sees an observation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from forethought.agent.configurator import Setting
from forethought.agent.cost import Critic, GoalDistance, IntrinsicCost
from forethought.planners import Problem
from forethought.worldmodel import JEPA, Readouts, mlp


class Policy(nn.Module):
    """Mode-1: a = A(s, goal), a multi-layer perceptron squashed into [-1, 1].

    With discrete actions it gives logits, of which the largest is the action.

    Args:
        state_dim: size D of the state.
        action_dim: size A of the action, or number n of discrete ones.
        goal: whether it reads a goal.
        discrete: whether actions are discrete.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
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
    ) -> None:
        super().__init__()
        self.goal, self.discrete = goal, discrete
        self.layers = mlp(state_dim * (1 + goal), [hidden] * layers, action_dim)

    def scores(self, state: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """Actions `(..., A)` in [-1, 1], or logits `(..., n)`, for states `(..., D)`."""
        if self.goal:
            state = torch.cat((state, context["goal"] - state), dim=-1)
        scores: Tensor = self.layers(state)
        return scores if self.discrete else scores.tanh()

    def forward(self, state: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        """Actions `(..., A)`, or indices `(...)` int64, for states `(..., D)`.

        `context["goal"]` has the shape of the states where the policy reads a goal.
        """
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
            state = model.predict(state, actions[-1], context=context)
        return torch.stack(actions, 1), torch.stack(states, 1)


def problem_of(
    model: JEPA,
    bank: IntrinsicCost,
    setting: Setting,
    state: Tensor,
    *,
    readouts: Readouts | None = None,
    critic: Critic | None = None,
) -> Problem:
    """Mode-2's planning problem (fig. 4) from states `(B, D)`.

    The energy is the discounted sum of u_i IC_i after every step, what the critic expects beyond
    the last one, weighted by v, and the goal distance reduced over time where there is a goal.

    Args:
        model: the world model.
        bank: the intrinsic cost.
        setting: goal, weights, horizon, discount.
        state: states to plan from.
        readouts: what the bank's terms read; None where they read the action alone.
        critic: expectation beyond the horizon, or None.
    """

    def stage_cost(
        state: Tensor, action: Tensor, next_state: Tensor, context: Mapping[str, Tensor], t: Tensor
    ) -> Tensor:
        quantities = {"state": next_state}
        if readouts is not None:
            quantities |= readouts(next_state)
        costs: Tensor = (bank.values(quantities, action) * context["u"]).sum(-1)
        return costs

    def terminal_cost(state: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        assert critic is not None
        expected: Tensor = (critic(state) * context["v"]).sum(-1)
        return expected

    counted = bool(setting.u.any())
    bound = None if model.actions.discrete else state.new_ones(model.action_dim)
    return Problem(
        state=state,
        step=lambda s, a, z, context, t: model.predict(s, a, z, context),
        rollout=model.rollout,
        goal_cost=None if setting.goal is None else GoalDistance(),
        stage_cost=stage_cost if counted else None,
        terminal_cost=terminal_cost if critic is not None and bool(setting.v.any()) else None,
        reduction=setting.cost.reduction,
        softmin_temperature=setting.cost.softmin_temperature,
        discount=setting.discount,
        horizon=setting.cost.horizon,
        low=None if bound is None else -bound,
        high=bound,
        actions=model.action_dim if bound is None else None,
        context=setting.context,
    )
