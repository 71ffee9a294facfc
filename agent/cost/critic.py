"""The critic: a trainable prediction of future intrinsic cost (LeCun 2022, eq. 3, section 3.3).

TC(s_t) estimates sum over k >= 1 of gamma^(k-1) IC(s_{t+k}), one output per intrinsic term, so a
new u re-weights it without training. It learns by TD(lambda) on windows of experience. The paper's
simple form, the intrinsic cost at one later time, is there too; so is an ensemble, whose spread
says where the critic guesses.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from forethought.worldmodel import JEPA, LatentData, OnStep, Snapshot, fit, mlp

Form = Literal["td", "simple"]
Source = Literal["episodes", "memory"]


class Critic(nn.Module):
    """TC(s), one output per intrinsic term.

    The network's own outputs are (1 - gamma) TC, averages of future cost, which lie in [0, 1] like
    the terms themselves whatever gamma is; a sigmoid keeps them there, so that a planner finds no
    state that promises more than the best.

    What it means depends on the form it was trained in (`CriticStage.form`):

    - "td": `average` is (1 - gamma) TC, `forward` is TC. It counts once, after a plan's last step.
    - "simple": `average` is IC at one later time, on the scale of IC itself, and may be added to
      IC at every planning step (fig. 4). `forward` is that cost as if it stayed for ever, a rough
      TC for the end of a plan; at every step it would count the future over and over.

    Args:
        state_dim: size D of the state.
        terms: number of intrinsic terms n.
        discount: gamma per decision, below 1.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        members: networks M, each with its own initial weights and its own slow copy, trained on
            all episodes but every M-th (`train_critic`); their mean is the critic.
    """

    def __init__(
        self,
        state_dim: int,
        terms: int,
        discount: float,
        *,
        hidden: int = 128,
        layers: int = 2,
        members: int = 1,
    ) -> None:
        super().__init__()
        if not 0 < discount < 1:
            raise ValueError(f"discount is {discount} per decision: a critic needs it in (0, 1)")
        if members < 1:
            raise ValueError(f"members is {members}: choose 1 or more")
        self.discount, self.members = discount, members
        networks = [mlp(state_dim, [hidden] * layers, terms) for _ in range(members)]
        self.layers = networks[0] if members == 1 else _Beside(*networks)
        # The slow copy that targets are computed with; it is part of the training's state.
        self.slow = copy.deepcopy(self.layers).requires_grad_(False)

    def averages(self, state: Tensor, *, slow: bool = False) -> Tensor:
        """(1 - gamma) TC as each member has it, `(M, ..., n)`; `slow`: by the slow copies."""
        told: Tensor = (self.slow if slow else self.layers)(state)
        return (told if self.members > 1 else told.unsqueeze(0)).sigmoid()

    def average(self, state: Tensor) -> Tensor:
        """(1 - gamma) TC, `(..., n)`, for states `(..., D)`."""
        return self.averages(state).mean(0)

    def forward(self, state: Tensor) -> Tensor:
        """TC of every term, `(..., n)`, for states `(..., D)`."""
        return self.average(state) / (1 - self.discount)

    def spread(self, state: Tensor) -> Tensor:
        """Standard deviation of TC over the members, `(..., n)`; 0 with one member.

        Taken over these M networks, not estimated for more of them (divided by M, not M - 1).
        """
        variance = self.averages(state).var(0, correction=0)
        # A root has no slope at 0, where members agree (one member, or all saturated).
        agreed = variance == 0
        root = torch.where(agreed, 1.0, variance).sqrt()
        return torch.where(agreed, 0.0, root) / (1 - self.discount)


class _Beside(nn.Sequential):
    """Networks side by side: `(..., D)` to `(M, ..., n)`.

    A loop: with stacked weights and one batched product, five members took 1.4 times as long on a
    CPU for 1280 states and more (0.6 times for 64).
    """

    def forward(self, state: Tensor) -> Tensor:
        return torch.stack([network(state) for network in self])


@dataclass(frozen=True)
class CriticStage:
    """The critic, on windows of cached latents; 0 steps leaves the stage out.

    Args:
        steps: number of updates.
        batch: windows per update.
        window: steps per window, over which TD(lambda) looks ahead, and the model predicts.
        trace: lambda, from 0 (one step) to 1 (the whole window).
        target_rate: share of the trained weights that the slow target takes over per update.
        learning_rate: peak learning rate of Adam; decays to zero along a cosine.
        form: "td" learns the discounted sum by TD(lambda); "simple" the intrinsic cost `delay`
            decisions later, ||IC(s_{t+delay}) - TC(s_t)||^2, without `trace` and slow target.
            `Critic` says how their use differs.
        delay: decisions between a state and the cost that the simple form predicts.
        source: where experience comes from: "episodes" as they were recorded, or "memory", what a
            short-term memory keeps of them (`recollection`). `train_critic` is handed either.
    """

    steps: int = 1000
    batch: int = 128
    window: int = 10
    trace: float = 0.9
    target_rate: float = 0.02
    learning_rate: float = 1e-3
    form: Form = "td"
    delay: int = 10
    source: Source = "episodes"

    def __post_init__(self) -> None:
        for name, smallest in (("steps", 0), ("batch", 1), ("window", 1), ("delay", 1)):
            if getattr(self, name) < smallest:
                raise ValueError(
                    f"stages.critic.{name} is {getattr(self, name)}: choose {smallest} or more"
                )
        for name, choices in (("form", get_args(Form)), ("source", get_args(Source))):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"stages.critic.{name} is {getattr(self, name)!r}: choose one of {choices}"
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


def later_costs(data: LatentData, costs: Tensor, end: Tensor, delay: int) -> tuple[Tensor, Tensor]:
    """Targets of the simple form: IC(s_{t+delay}), the end's where the task ended before.

    Args:
        data: cached latents.
        costs: intrinsic terms of the state after each action, `(N, n)`.
        end: e_end per term, `(n,)`.
        delay: decisions ahead.

    Returns:
        Targets `(N, n)`, and `(N,)` bool, where they are known: not where an episode was cut off
        before that time.
    """
    row, left = torch.arange(len(costs), device=costs.device), data.remaining
    ended = data.terminal[(row + left - 1).clamp_min(0)] & (left > 0)
    there = left >= delay
    later = costs[(row + delay - 1).clamp_max(len(costs) - 1)]
    return torch.where(there[:, None], later, end), there | ended


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
    """Train the critic on windows of cached latents; only the critic learns.

    Its inputs are encoded states and, for the same targets, the states that the model predicts
    from the window's first one (section 4.5.2): plans end in predicted states.

    Of M members, member m does not see the episodes m, m + M, m + 2 M and so on, and learns from
    its own targets: where members agree, it is not for having seen the same.

    Args:
        critic: what is trained, in place.
        model: the world model, for the predicted states.
        data: cached latents.
        costs: intrinsic terms of the state after each action, in the order of `data`, `(N, n)`;
            rows at the end of an episode are not read.
        end: e_end per term, `(n,)`.
        stage: lengths, rates and form.
        generator: source of the windows; on the CPU.
        on_step: see `fit`.
        snapshot: see `fit`.
    """
    length = min(stage.window, int(data.remaining.max()))
    # Windows may reach beyond an episode's end, where they are masked: else short episodes, which
    # are the failures, and the last steps of all would hardly be seen.
    starts = data.starts(1)
    later = None
    if stage.form == "simple":
        later = later_costs(data, costs, end, stage.delay)
        starts = starts[later[1][starts]]
        if not len(starts):
            raise ValueError(
                f"stages.critic.delay is {stage.delay}, but the longest episode has "
                f"{int(data.remaining.max())} actions: choose no more than that"
            )
    span = torch.arange(length, device=costs.device)
    rows = len(data.states) - 1
    shown = _shown(data, critic.members)

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            for old, new in zip(critic.slow.parameters(), critic.layers.parameters(), strict=True):
                old.lerp_(new, stage.target_rate)
            index = data.draw(starts, stage.batch, generator)[:, None] + span
            left = data.remaining[index[:, 0], None] - span  # actions left, this one among them
            valid = (left > 0) & shown[:, index[:, 0], None]  # (M, B, T)
            index = index.clamp(max=rows)
            states = data.states[torch.cat((index, (index[:, -1:] + 1).clamp(max=rows)), 1)]
            context = data.context(index[:, 0])
            predicted = model.rollout(states[:, 0], data.actions[index], context=context)[:, :-1]
            if later is None:
                values = critic.averages(states[:, 1:], slow=True)
                told = (costs[index], values, data.terminal[index], end)
                targets = _each_returns(*told, critic.discount, stage.trace, left == 1)
            else:
                targets, valid = later[0][index], valid & later[1][index]
        encoded = _masked_error(critic.averages(states[:, :-1]), targets, valid)
        if length == 1:
            return encoded, {"encoded": encoded}
        imagined = _masked_error(critic.averages(predicted), targets[..., 1:, :], valid[..., 1:])
        return encoded + imagined, {"encoded": encoded, "imagined": imagined}

    fit(
        critic.layers.parameters(),
        loss,
        steps=stage.steps,
        learning_rate=stage.learning_rate,
        on_step=on_step,
        snapshot=snapshot,
    )


def _shown(data: LatentData, members: int) -> Tensor:
    """Which rows a member learns from, `(M, N)` bool.

    Without randomness: a training that goes on, or on with more episodes, leaves out the same ones.
    """
    ends = (data.remaining == 0).long()
    episode = ends.cumsum(0) - ends
    member = torch.arange(members, device=ends.device)[:, None]
    shown = episode % members != member
    return shown | ~shown.any(1, keepdim=True)  # who would see nothing sees all


def _each_returns(
    costs: Tensor,
    values: Tensor,
    terminal: Tensor,
    end: Tensor,
    discount: float,
    trace: float,
    last: Tensor,
) -> Tensor:
    """`lambda_returns` of M members, each from its own `values` `(M, B, T, n)`: `(M, B, T, n)`."""
    members = len(values)
    costs, terminal, last = (
        x.expand(members, *x.shape).flatten(0, 1) for x in (costs, terminal, last)
    )
    targets = lambda_returns(costs, values.flatten(0, 1), terminal, end, discount, trace, last)
    return targets.reshape(values.shape)


def _masked_error(told: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Mean squared error over the steps that are `valid` `(M, B, T)`, of values `(M, B, T, n)`."""
    # Masked before it is squared: what lies beyond an end may be no number, nor may its gradient.
    error = torch.where(valid[..., None], told - targets, 0.0).square().mean(-1)
    return error.sum() / valid.sum().clamp_min(1)
