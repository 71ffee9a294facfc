"""TC(s, g), the goal-conditioned critic: how many decisions until a goal is reached.

The cost is 1 per decision until the goal is reached and 0 after; TC(s, g) is its discounted sum.
It is learned from reward-free data. A value that follows the behaviour in the data would tell a
random walk's distance. Here it is a quasi-metric d(s, g), as in quasimetric reinforcement learning
(Wang et al., 2304.01203): hindsight says that what came after one decision is at most one decision
away, and every other distance is pushed up as far as the triangle inequality then allows, which is
the length of the shortest path. No reward, no target network and no bootstrapping.

That holds where an action decides what follows. Where chance decides, d counts the luckiest case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forethought.agent.cost.terms import Context, GoalTerm
from forethought.worldmodel import JEPA, LatentData, OnStep, Snapshot, fit, mlp


class TemporalDistance(nn.Module):
    """TC(s, g) = sum over k < d of gamma^k = (1 - gamma^d) / (1 - gamma), d(s, g) in decisions.

    d(s, g) = mean over groups of max over i in the group of max(0, h_i(s) - h_i(g)). It is zero at
    s = g and keeps the triangle inequality whatever the parameters are; it need not be symmetric.
    One group can tell every quasi-metric if it is large enough (h_i = distance to landmark i); the
    mean of several has a denser gradient.

    Args:
        state_dim: size D of the state.
        discount: gamma per decision, below 1; distances far above 1 / (1 - gamma) look alike.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        groups: number of groups.
        width: components in each group.
    """

    def __init__(
        self,
        state_dim: int,
        discount: float,
        *,
        hidden: int = 128,
        layers: int = 2,
        groups: int = 4,
        width: int = 32,
    ) -> None:
        super().__init__()
        if not 0 < discount < 1:
            raise ValueError(f"discount is {discount} per decision: choose it in (0, 1)")
        for name, value in (("groups", groups), ("width", width)):
            if value < 1:
                raise ValueError(f"{name} is {value}: choose 1 or more")
        self.discount, self.groups = discount, groups
        self.layers = mlp(state_dim, [hidden] * layers, groups * width)

    def embed(self, state: Tensor) -> Tensor:
        """h(s) in decisions, `(..., groups, width)`, for states `(..., D)`."""
        # In units of the effective horizon, so that far distances need no large weights.
        h: Tensor = self.layers(state) / (1 - self.discount)
        return h.reshape(*h.shape[:-1], self.groups, -1)

    def steps(self, state: Tensor, goal: Tensor) -> Tensor:
        """d(s, g), the number of decisions, `(...)`, for `(..., D)` each, which broadcast."""
        # Each side is embedded before it is broadcast: one goal serves all states of a plan.
        return between(self.embed(state), self.embed(goal))

    def average(self, state: Tensor, goal: Tensor) -> Tensor:
        """(1 - gamma) TC = 1 - gamma^d in [0, 1], `(...)`; see `steps`."""
        return -torch.expm1(self.steps(state, goal) * math.log(self.discount))

    def excess(self, state: Tensor, next_state: Tensor) -> Tensor:
        """1 - gamma^max(0, d(s, s') - 1) in [0, 1], `(...)`: 0 for what is one decision away.

        Of a predicted step it tells that the world has no such step: a way through a wall is short
        for a model that is a little wrong, and long by the steps of the data.
        """
        beyond = (self.steps(state, next_state) - 1).clamp_min(0)
        return -torch.expm1(beyond * math.log(self.discount))

    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        """TC(s, g) in [0, 1 / (1 - gamma)], `(...)`; see `steps`."""
        return self.average(state, goal) / (1 - self.discount)


def between(here: Tensor, there: Tensor) -> Tensor:
    """D `(...)` between embeddings `(..., groups, width)`; see `TemporalDistance`."""
    return (here - there).clamp_min(0).amax(-1).mean(-1)


@dataclass(frozen=True)
class TemporalStage:
    """The temporal distance, on windows of cached latents; 0 steps leaves the stage out.

    Args:
        steps: number of updates.
        horizon: effective horizon 1 / (1 - gamma), in decisions; of farther goals it tells little,
            and nearer ones it learns the worse, the longer it is. 0 is that of planning.
        batch: windows per update.
        window: decisions per window, which is also how far the model predicts.
        actions: random actions tried in the model at as many states as there are windows, whose
            outcomes are at most one decision away too; 0 trusts what was done in the data alone.
        weight: of a decision that seems longer than one, against pushing distances up. The
            distances come out too long by a share that falls with it.
        learning_rate: peak learning rate of Adam; decays to zero along a cosine.
    """

    steps: int = 2000
    horizon: int = 0
    batch: int = 64
    window: int = 8
    actions: int = 0
    weight: float = 30.0
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        least = {"steps": 0, "horizon": 0, "batch": 2, "window": 1, "actions": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(
                    f"stages.temporal.{name} is {getattr(self, name)}: choose {smallest} or more"
                )
        for name in ("weight", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"stages.temporal.{name} is {getattr(self, name)}: choose it above 0, finite"
                )


def train_temporal(
    module: TemporalDistance,
    model: JEPA,
    data: LatentData,
    stage: TemporalStage,
    generator: torch.Generator,
    on_step: OnStep | None = None,
    snapshot: Snapshot | None = None,
) -> None:
    """Train the temporal distance on windows of cached latents; only `module` learns.

    Minimises weight * mean max(0, d(s_t, s_{t+1}) - 1)^2 - mean (1 - gamma^d(s, g)), the second
    over states and goals drawn apart. Encoded states and those that the model predicts from the
    window's first one (section 4.5.2) take either place in a step: what follows a predicted state
    is one decision away whether it was seen or predicted. (Asking that a prediction be at
    distance zero from what was seen instead shrank all distances of Two-Rooms to a seventh: its
    error cannot be folded away.) Windows lie inside of episodes: an end, truncated or not,
    reaches nothing.

    Args:
        module: what is trained, in place.
        model: the world model, for the predicted states.
        data: cached latents.
        stage: lengths and rates.
        generator: source of windows, goals and actions; on the CPU.
        on_step: see `fit`.
        snapshot: see `fit`.
    """
    # Windows shorter than asked for where the episodes are, and cut at an episode's end, so that
    # its last states are seen as often as others.
    length = min(stage.window, int(data.remaining.max()))
    starts = data.starts(1)
    span = torch.arange(length + 1, device=data.states.device)

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        index = data.draw(starts, stage.batch, generator)[:, None]
        inside = span <= data.remaining[index]  # (B, T+1)
        index = index + span.minimum(data.remaining[index])  # the last state stands for what is cut
        with torch.no_grad():
            states = data.states[index]
            actions, context = data.actions[index[:, :-1]], data.context(index[:, 0])
            predicted = model.rollout(states[:, 0], actions, context=context)
            predicted = torch.cat((states[:, :1], predicted), 1)
        # What is cut off is replaced, not only masked: an action there was never taken.
        predicted = torch.where(inside[..., None], predicted, states)
        here = module.embed(torch.stack((states, predicted)))  # (2, B, T+1, groups, width)
        away = between(here[:, None, :, :-1], here[None, :, :, 1:])  # (2, 2, B, T), all four ways
        valid = inside[:, 1:].expand_as(away)
        too_long = torch.where(valid, away - 1, 0.0).clamp_min(0).square().sum() / valid.sum()
        terms = {"too_long": too_long}
        if stage.actions:
            terms["too_long_imagined"] = imagined(index)
        # Goals are the states of another window, met at another time.
        goals = here[0].roll(1, 0)[:, torch.randperm(length + 1, generator=generator)]
        far = between(here, goals)
        gain = -torch.expm1(far * math.log(module.discount)).mean()
        total = stage.weight * torch.stack(list(terms.values())).mean() - gain
        return total, terms | {"average": gain}

    def imagined(index: Tensor) -> Tensor:
        """How much longer than one decision random actions seem, from B states of the windows."""
        chosen = data.draw(index.flatten(), len(index), generator)
        state = data.states[chosen]  # (B, D)
        context = data.context(chosen.repeat_interleave(stage.actions))
        tried = _random_actions(model, len(state) * stage.actions, generator).to(state.device)
        with torch.no_grad():
            before = state.repeat_interleave(stage.actions, 0)
            after = model.predict(before, tried, context=context)
        after = after.view(len(state), stage.actions, -1)  # (B, K, D)
        return (module.steps(state[:, None], after) - 1).clamp_min(0).square().mean()

    fit(
        module.layers.parameters(),
        loss,
        steps=stage.steps,
        learning_rate=stage.learning_rate,
        on_step=on_step,
        snapshot=snapshot,
    )


def _random_actions(model: JEPA, count: int, generator: torch.Generator) -> Tensor:
    """Actions `(count, A)` over all of [-1, 1], or indices `(count,)` int64."""
    if model.actions.discrete:
        return torch.randint(model.action_dim, (count,), generator=generator)
    return 2 * torch.rand(count, model.action_dim, generator=generator) - 1


@dataclass(frozen=True)
class TemporalCost(GoalTerm):
    """(1 - gamma) TC of the next state and `context["goal"]`, in [0, 1].

    Args:
        module: the temporal distance.
    """

    module: TemporalDistance
    name = "temporal_distance"

    def __call__(
        self, state: Tensor, action: Tensor, next_state: Tensor, context: Context, t: Tensor
    ) -> Tensor:
        """Cost of one step; see `GoalTerm`."""
        return self.module.average(next_state, context["goal"])
