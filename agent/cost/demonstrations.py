"""A cost learned from demonstrations (LeCun 2022, section 3.2): part of TC, never of IC.

D(s) tells the demonstrated states from the agent's own: low on the former, high on the latter. A
critic over D, trained as over any other term, looks ahead from states where both sides are rare.

Unusual here: D is trained, so it is no `IntrinsicTerm` and has no place in the bank, whose terms
are hard-wired. What it is worth ends where demonstrations end; the bank's terms guard beyond.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forethought.worldmodel import LatentData, OnStep, Snapshot, fit, mlp


class LearnedCost(nn.Module):
    """D(s) in [0, 1]: the probability that a state is the agent's own, not a demonstrated one.

    Where both are as frequent it is 1/2, and stays there once the agent does as was shown.

    Args:
        state_dim: size D of the state.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
    """

    def __init__(self, state_dim: int, *, hidden: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.layers = mlp(state_dim, [hidden] * layers, 1)

    def logit(self, state: Tensor) -> Tensor:
        """ln(D / (1 - D)), `(..., 1)`, for states `(..., D)`."""
        logit: Tensor = self.layers(state)
        return logit

    def forward(self, state: Tensor) -> Tensor:
        """D, `(..., 1)`, one term as in `Critic`, for states `(..., D)`."""
        return self.logit(state).sigmoid()

    @torch.no_grad()
    def costs(self, data: LatentData) -> Tensor:
        """D of the state after each action, `(N, 1)`, as `train_critic` takes it.

        Rows at the end of an episode belong to no action and are 0.
        """
        told = self(data.states)
        after = torch.cat((told[1:], told[-1:]))
        return torch.where(data.remaining[:, None] > 0, after, 0.0)


@dataclass(frozen=True)
class DemonstrationStage:
    """Learning D by logistic regression; 0 steps leave it as it is.

    Args:
        steps: number of updates.
        batch: demonstrated states per update, and as many of the agent's own.
        penalty: weight of the mean squared slope of D's logit between the two sides. It keeps D
            smooth where the sides can be told apart without error, so that a planner finds a slope
            that leads to what was demonstrated; 0 leaves it out. In squared units of the state: the
            nearer states lie to each other, the smaller.
        learning_rate: peak learning rate of Adam; decays to zero along a cosine.
    """

    steps: int = 1000
    batch: int = 128
    penalty: float = 1.0
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        for name, smallest in (("steps", 0), ("batch", 1)):
            if getattr(self, name) < smallest:
                raise ValueError(
                    f"stages.demonstrations.{name} is {getattr(self, name)}: choose {smallest} or "
                    "more"
                )
        if not 0 <= self.penalty < math.inf:
            raise ValueError(
                f"stages.demonstrations.penalty is {self.penalty}: choose 0 or more, finite"
            )
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"stages.demonstrations.learning_rate is {self.learning_rate}: choose it above 0, "
                "finite"
            )


def learn_cost(
    cost: LearnedCost,
    demonstrated: Tensor,
    own: Tensor,
    stage: DemonstrationStage,
    generator: torch.Generator,
    on_step: OnStep | None = None,
    snapshot: Snapshot | None = None,
) -> None:
    """Teach D to tell demonstrated states from the agent's own; only D learns.

    Both sides have to come from the same source, both encoded or both predicted: D would else learn
    what tells an encoder from a predictor. Goes on from the weights that `cost` has, so that it can
    follow an agent that changes.

    Args:
        cost: what is trained, in place.
        demonstrated: states of demonstrations, `(N, D)`.
        own: states that the agent came to by itself, `(M, D)`.
        stage: lengths and rates.
        generator: source of the batches; on the CPU.
        on_step: see `fit`.
        snapshot: see `fit`.
    """
    for name, states in (("demonstrated", demonstrated), ("own", own)):
        if states.ndim != 2 or not len(states):
            raise ValueError(f"{name} is {tuple(states.shape)}: give states (N, D), at least one")

    def draw(states: Tensor) -> Tensor:
        return states[
            torch.randint(len(states), (stage.batch,), generator=generator).to(states.device)
        ]

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        shown, mine = draw(demonstrated).detach(), draw(own).detach()
        # -ln(1 - D) of the demonstrated, -ln D of the agent's own.
        error = nn.functional.softplus(cost.logit(shown)).mean()
        error = error + nn.functional.softplus(-cost.logit(mine)).mean()
        if not stage.penalty:
            return error, {"error": error}
        share = torch.rand(stage.batch, 1, generator=generator).to(shown)
        between = shown.lerp(mine, share).requires_grad_()
        (slope,) = torch.autograd.grad(cost.logit(between).sum(), between, create_graph=True)
        steepness = slope.square().sum(-1).mean()
        return error + stage.penalty * steepness, {"error": error, "steepness": steepness}

    fit(
        cost.parameters(),
        loss,
        steps=stage.steps,
        learning_rate=stage.learning_rate,
        on_step=on_step,
        snapshot=snapshot,
    )
