"""The critic: a trainable prediction of future intrinsic cost (LeCun 2022, eq. 3, section 3.3).

TC(s_t) estimates sum over k >= 1 of gamma^(k-1) IC(s_{t+k}), one output per intrinsic term, so a
new u re-weights it without training. It learns by TD(lambda) on windows of experience.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forethought.worldmodel import JEPA, LatentData, OnStep, Snapshot, fit, mlp


class Critic(nn.Module):
    """TC(s), one output per intrinsic term.

    The network's own outputs are (1 - gamma) TC, averages of future cost, which lie in [0, 1] like
    the terms themselves whatever gamma is; a sigmoid keeps them there, so that a planner finds no
    state that promises more than the best.

    Args:
        state_dim: size D of the state.
        terms: number of intrinsic terms n.
        discount: gamma per decision, below 1.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
    """

    def __init__(
        self, state_dim: int, terms: int, discount: float, *, hidden: int = 128, layers: int = 2
    ) -> None:
        super().__init__()
        if not 0 < discount < 1:
            raise ValueError(f"discount is {discount} per decision: a critic needs it in (0, 1)")
        self.discount = discount
        self.layers = mlp(state_dim, [hidden] * layers, terms)
        # The slow copy that targets are computed with; it is part of the training's state.
        self.slow = copy.deepcopy(self.layers).requires_grad_(False)

    def average(self, state: Tensor) -> Tensor:
        """(1 - gamma) TC, `(..., n)`, for states `(..., D)`."""
        average: Tensor = self.layers(state).sigmoid()
        return average

    def forward(self, state: Tensor) -> Tensor:
        """TC of every term, `(..., n)`, for states `(..., D)`."""
        return self.average(state) / (1 - self.discount)


@dataclass(frozen=True)
class CriticStage:
    """The critic, on windows of cached latents; 0 steps leaves the stage out.

    Args:
        steps: number of updates.
        batch: windows per update.
        window: steps per window, over which TD(lambda) looks ahead.
        trace: lambda, from 0 (one step) to 1 (the whole window).
        target_rate: share of the trained weights that the slow target takes over per update.
        learning_rate: peak learning rate of Adam; decays to zero along a cosine.
    """

    steps: int = 1000
    batch: int = 128
    window: int = 10
    trace: float = 0.9
    target_rate: float = 0.02
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        for name, smallest in (("steps", 0), ("batch", 1), ("window", 1)):
            if getattr(self, name) < smallest:
                raise ValueError(
                    f"stages.critic.{name} is {getattr(self, name)}: choose {smallest} or more"
                )
        if not 0 <= self.trace <= 1:
            raise ValueError(f"stages.critic.trace is {self.trace}: choose it in [0, 1]")
        if not 0 < self.target_rate <= 1:
            raise ValueError(
                f"stages.critic.target_rate is {self.target_rate}: choose it in (0, 1]"
            )
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"stages.critic.learning_rate is {self.learning_rate}: choose it above 0, finite"
            )


def lambda_returns(
    costs: Tensor,
    values: Tensor,
    terminal: Tensor,
    end: Tensor,
    discount: float,
    trace: float,
    last: Tensor | None = None,
) -> Tensor:
    """TD(lambda) targets of (1 - gamma) TC, computed backwards (Sutton and Barto 2018, eq. 12.20).

    G_t = (1 - gamma) IC(s_{t+1}) + gamma ((1 - lambda) V(s_{t+1}) + lambda G_{t+1}); the last
    state bootstraps, and a state that the task ended at stands for e_end ever after, so that to
    end early is never a reward in itself.

    Args:
        costs: intrinsic terms of the states after each step, `(B, T, n)`.
        values: (1 - gamma) TC of the states after each step, `(B, T, n)`.
        terminal: steps that ended their episode by termination, `(B, T)` bool.
        end: e_end, the terms' lasting value after a termination, `(n,)`.
        discount: gamma per decision.
        trace: lambda.
        last: steps that are the last of their episodes, `(B, T)` bool, behind which a window holds
            nothing: they bootstrap, or end. None where windows lie inside of episodes.

    Returns:
        Targets for the states before each step, `(B, T, n)`.
    """
    target = values[:, -1]
    targets: list[Tensor] = []
    for t in reversed(range(costs.shape[1])):
        ahead = (1 - trace) * values[:, t] + trace * target
        if last is not None:
            ahead = torch.where(last[:, t, None], values[:, t], ahead)
        ahead = torch.where(terminal[:, t, None], end, ahead)
        target = (1 - discount) * costs[:, t] + discount * ahead
        targets.append(target)
    return torch.stack(targets[::-1], dim=1)


def train_critic(
    critic: Critic,
    model: JEPA,
    data: LatentData,
    costs: Tensor,
    end: Tensor,
    stage: CriticStage,
    generator: torch.Generator,
    on_step: OnStep | None = None,
    snapshot: Snapshot | None = None,
) -> None:
    """Train the critic by TD(lambda) on windows of cached latents; only the critic learns.

    Its inputs are encoded states and, for the same targets, the states that the model predicts
    from the window's first one (section 4.5.2): plans end in predicted states.

    Args:
        critic: what is trained, in place.
        model: the world model, for the predicted states.
        data: cached latents.
        costs: intrinsic terms of the state after each action, in the order of `data`, `(N, n)`;
            rows at the end of an episode are not read.
        end: e_end per term, `(n,)`.
        stage: lengths and rates.
        generator: source of the windows; on the CPU.
        on_step: see `fit`.
        snapshot: see `fit`.
    """
    length = min(stage.window, int(data.remaining.max()))
    # Windows may reach beyond an episode's end, where they are masked: else short episodes, which
    # are the failures, and the last steps of all would hardly be seen.
    starts = data.starts(1)
    span = torch.arange(length, device=costs.device)
    rows = len(data.states) - 1

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            for old, new in zip(critic.slow.parameters(), critic.layers.parameters(), strict=True):
                old.lerp_(new, stage.target_rate)
            index = data.draw(starts, stage.batch, generator)[:, None] + span
            left = data.remaining[index[:, 0], None] - span  # actions left, this one among them
            index = index.clamp(max=rows)
            states = data.states[torch.cat((index, (index[:, -1:] + 1).clamp(max=rows)), 1)]
            actions = data.actions[index]
            valid = left > 0
            predicted = model.rollout(states[:, 0], actions)[:, :-1]
            targets = lambda_returns(
                costs[index],
                critic.slow(states[:, 1:]).sigmoid(),
                data.terminal[index],
                end,
                critic.discount,
                stage.trace,
                left == 1,
            )
        encoded = _masked_error(critic.average(states[:, :-1]), targets, valid)
        if length == 1:
            return encoded, {"encoded": encoded}
        imagined = _masked_error(critic.average(predicted), targets[:, 1:], valid[:, 1:])
        return encoded + imagined, {"encoded": encoded, "imagined": imagined}

    fit(
        critic.layers.parameters(),
        loss,
        steps=stage.steps,
        learning_rate=stage.learning_rate,
        on_step=on_step,
        snapshot=snapshot,
    )


def _masked_error(told: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error over the steps that are `valid` `(B, T)`, of values `(B, T, n)`."""
    # Masked before it is squared: what lies beyond an end may be no number, nor may its gradient.
    error = torch.where(valid[..., None], told - targets, 0.0).square().mean(-1)
    return error.sum() / valid.sum().clamp_min(1)
