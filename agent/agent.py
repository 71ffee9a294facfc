"""The agent: the perception-action step of Figure 2.

    observation -> perception -> state -> actor (Mode-1 policy or Mode-2 planner) -> action
                        ^                   ^ reads cost, world model, setting
                        |                   |
                     AgentState, passed in and returned: belief, previous plan, previous action

The agent itself never changes while it acts: what it carries from step to step is in `AgentState`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from forethought.agent.actor import Policy, problem_of
from forethought.agent.configurator import Configurator, Setting
from forethought.agent.cost import IntrinsicCost
from forethought.planners import Plan, Planner, shift
from forethought.worldmodel import JEPA


@dataclass(frozen=True)
class AgentState:
    """Everything the agent carries from one step to the next, for B environments side by side.

    Args:
        setting: how the configurator set the modules for the task.
        generator: source of the planner's randomness.
        belief: state estimated at the last step, `(B, D)`, or None at the start.
        previous_action: action of the last step, `(B, A)`, or None at the start.
        plan: rest of the previous plan, `(B, H, A)`, starting with the next action, or None.
        imagined: states that the latest plan predicted, `(B, H, D)`, or None.
        until_replan: actions of `plan` to carry out before the next plan is made.
    """

    setting: Setting
    generator: torch.Generator
    belief: Tensor | None = None
    previous_action: Tensor | None = None
    plan: Tensor | None = None
    imagined: Tensor | None = None
    until_replan: int = 0

    def select(self, index: Tensor) -> AgentState:
        """The state of the environments `index`; the others are dropped."""
        return replace(
            self,
            setting=self.setting.select(index),
            belief=None if self.belief is None else self.belief[index],
            previous_action=None if self.previous_action is None else self.previous_action[index],
            plan=None if self.plan is None else self.plan[index],
            imagined=None if self.imagined is None else self.imagined[index],
        )


@dataclass(frozen=True)
class Agent:
    """Perception, world model, cost, actor and configurator, wired as in Figure 2.

    Args:
        model: perception and world model.
        bank: the immutable intrinsic cost.
        configurator: turns a goal into a setting.
        planner: Mode-2's optimiser.
        policy: Mode-1's policy, or None before distillation.
    """

    model: JEPA
    bank: IntrinsicCost
    configurator: Configurator
    planner: Planner
    policy: Policy | None = None

    def __post_init__(self) -> None:
        if self.configurator.mode == 1 and self.policy is None:
            raise ValueError("mode 1 needs a policy: run `forethought distill RUN` first")

    def _tensor(self, observation: np.ndarray) -> Tensor:
        return torch.as_tensor(observation).to(self.model.device)

    @torch.no_grad()
    def start(self, goal: np.ndarray, *, generator: torch.Generator) -> AgentState:
        """Begin B episodes.

        Args:
            goal: goal observations, `(B, *O)`; encoded here, once.
            generator: source of the planner's randomness.
        """
        return AgentState(
            self.configurator.configure(self.model.encode(self._tensor(goal))), generator
        )

    @torch.no_grad()
    def act(self, carried: AgentState, observation: np.ndarray) -> tuple[np.ndarray, AgentState]:
        """One perception-action step.

        Args:
            carried: what the last step returned.
            observation: `(B, *O)`; encoded once, whatever the mode.

        Returns:
            Actions in [-1, 1], `(B, A)` float32, and what to carry on.
        """
        x = self._tensor(observation)
        belief = self.model.observe(carried.belief, carried.previous_action, x)
        carried = replace(carried, belief=belief)
        if carried.setting.mode == 1:
            assert self.policy is not None
            action = self.policy(belief, carried.setting.context)
        else:
            if carried.plan is None or carried.until_replan < 1:
                plan = self.think(carried)
                assert isinstance(plan.states, Tensor)
                carried = replace(
                    carried,
                    plan=plan.actions,
                    imagined=plan.states,
                    until_replan=carried.setting.replan_every,
                )
            assert carried.plan is not None
            action = carried.plan[:, 0]
            carried = replace(
                carried, plan=shift(carried.plan), until_replan=carried.until_replan - 1
            )
        return action.float().cpu().numpy(), replace(carried, previous_action=action)

    def think(self, carried: AgentState) -> Plan:
        """Mode-2: plan from the current belief, with the rest of the last plan as a start."""
        belief = carried.belief
        if belief is None:
            raise ValueError("nothing was observed yet: call `act`, which calls this")
        problem = problem_of(self.model, self.bank, carried.setting, belief)
        proposals = None if carried.plan is None else carried.plan.unsqueeze(1)
        return self.planner.plan(problem, proposals=proposals, generator=carried.generator)
