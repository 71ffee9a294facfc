"""The actor's Mode-2: the planning problem of an agent (LeCun 2022, fig. 4).

It begins in a state and sees no observation; Mode-1 is in `policy`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from forethought.agent.configurator import Setting
from forethought.agent.cost import Critic, GoalDistance, GoalTerm, IntrinsicCost
from forethought.agent.memory import ShortTermMemory
from forethought.agent.task import Task
from forethought.planners import Problem
from forethought.worldmodel import JEPA, MemoryConfig, Readouts


@dataclass(frozen=True)
class Recall:
    """What the agent remembers of an episode, and what for.

    Args:
        memory: how the memory is addressed, and how large it is.
        proposals: how many of the action sequences that came out best from the nearest states
            remembered are among Mode-2's starts.
        energy: whether the end of a plan has the energy remembered there, where the memory knows
            it, and the critic's word elsewhere.
        support: weight of a term that keeps plans near the states remembered: d / (d + scale), d
            being the squared distance to the nearest ones beyond which a state counts as far.
        scale: that distance, squared, summed over the D dimensions.
        in_mode_1: whether Mode-1 remembers too, and keeps a record of what went on; nothing in it
            reads the memory, and a decision takes several times as long.
    """

    memory: MemoryConfig = MemoryConfig()  # noqa: RUF009 - frozen
    proposals: int = 1
    energy: bool = False
    support: float = 0.0
    scale: float = 4.0
    in_mode_1: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.proposals <= self.memory.slots:
            raise ValueError(
                f"recall.proposals is {self.proposals}: choose 0 to {self.memory.slots}, the slots"
            )
        if not 0 <= self.support < math.inf:
            raise ValueError(f"recall.support is {self.support}: choose 0 or more, finite")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"recall.scale is {self.scale}: choose it above 0, finite")


def problem_of(
    model: JEPA,
    bank: IntrinsicCost,
    setting: Setting,
    state: Tensor,
    *,
    readouts: Readouts | None = None,
    critic: Critic | None = None,
    task: Task | None = None,
    goal_term: GoalTerm | None = None,
    memory: ShortTermMemory | None = None,
    recall: Recall | None = None,
) -> Problem:
    """Mode-2's planning problem (fig. 4) from states `(B, D)`.

    The energy is the discounted sum of u_i IC_i after every step, of the aims that the setting
    passes, of the support term and of the predictor's doubt; what the critic or the memory expects
    beyond the last step, weighted by v; and the goal term reduced over time where there is a goal.

    Args:
        model: the world model.
        bank: the intrinsic cost.
        setting: goal, weights, aims, horizon, discount.
        state: states to plan from.
        readouts: what the bank's terms read; None where they read the action alone.
        critic: expectation beyond the horizon, or None.
        task: where the aims come from, if the setting passes any.
        goal_term: how far a state is from the goal; by default the latent distance.
        memory: what is remembered, B rows, or None.
        recall: what the memory is for.
    """
    aims = {} if task is None else {name: task.aims[name] for name in setting.aims}
    counted = bool(setting.u.any())
    expects = critic is not None and bool(setting.v.any())
    supported = memory is not None and recall is not None and recall.support > 0
    doubted = setting.cost.doubt > 0

    def stage_cost(
        state: Tensor, action: Tensor, next_state: Tensor, context: Mapping[str, Tensor], t: Tensor
    ) -> Tensor:
        quantities = {"state": next_state}
        if readouts is not None and (counted or aims):
            quantities |= readouts(next_state)
        costs = next_state.new_zeros(next_state.shape[:-1])
        if counted:
            costs = costs + (bank.values(quantities, action) * context["u"]).sum(-1)
        for place, (name, aim) in enumerate(aims.items()):
            weight = context["aim_weights"][..., place]
            costs = costs + weight * aim(quantities, context[f"aim.{name}"])
        if supported:
            assert memory is not None
            assert recall is not None
            far = memory.distance(next_state)
            costs = costs + recall.support * far / (far + recall.scale)
        if doubted:
            costs = costs + setting.cost.doubt * model.doubt(state, action, next_state, context)
        return costs

    def terminal_cost(state: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        assert critic is not None
        if memory is not None and recall is not None and recall.energy:
            return memory.energy_of(state, setting.v, critic)
        expected: Tensor = (critic(state) * context["v"]).sum(-1)
        return expected

    bound = None if model.actions.discrete else state.new_ones(model.action_dim)
    return Problem(
        state=state,
        step=lambda s, a, z, context, t: model.predict(s, a, z, context),
        rollout=model.rollout,
        goal_cost=None if setting.goal is None else (goal_term or GoalDistance()),
        stage_cost=stage_cost if counted or aims or supported or doubted else None,
        terminal_cost=terminal_cost if expects else None,
        reduction=setting.cost.reduction,
        softmin_temperature=setting.cost.softmin_temperature,
        discount=setting.discount,
        horizon=setting.cost.horizon,
        low=None if bound is None else -bound,
        high=bound,
        actions=model.action_dim if bound is None else None,
        context=setting.context,
    )
