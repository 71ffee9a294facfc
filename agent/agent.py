"""The agent: the perception-action step of Figure 2.

    observation -> perception -> state -> actor (Mode-1 policy or Mode-2 planner) -> action
                        ^                   ^ reads cost, world model, setting
                        |                   |
                     AgentState, passed in and returned: belief, previous plan, previous action

The agent itself never changes while it acts: what it carries from step to step is in `AgentState`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from forethought.agent.actor import Policy, problem_of
from forethought.agent.configurator import Configurator, Setting
from forethought.agent.cost import Critic, IntrinsicCost
from forethought.planners import Plan, Planner, Problem, shift
from forethought.worldmodel import JEPA, Readouts

Observation: TypeAlias = np.ndarray | Mapping[str, np.ndarray]


@dataclass(frozen=True)
class AgentState:
    """Everything the agent carries from one step to the next, for B environments side by side.

    Args:
        setting: how the configurator set the modules for the task.
        generator: source of the planner's randomness.
        belief: state estimated at the last step, `(B, D)`, or None at the start.
        previous_action: action of the last step, `(B, A)` or `(B,)`, or None at the start.
        plan: rest of the previous plan from the next action on, `(B, H, A)` or `(B, H)`, or None.
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
    """Perception, world model, cost, critic, actor and configurator, wired as in Figure 2.

    Args:
        model: perception and world model.
        configurator: turns a task into a setting.
        planner: Mode-2's optimiser.
        readouts: heads that the intrinsic cost reads, or None where it reads the action alone.
        critic: expectation of the cost beyond the horizon, or None.
        policy: Mode-1's policy, or None before distillation.
    """

    model: JEPA
    configurator: Configurator
    planner: Planner
    readouts: Readouts | None = None
    critic: Critic | None = None
    policy: Policy | None = None

    def __post_init__(self) -> None:
        if self.configurator.mode == 1 and self.policy is None:
            raise ValueError("mode 1 needs a policy: run `forethought distill RUN` first")
        read = {} if self.readouts is None else self.readouts.sizes
        missing = [name for name in self.bank.reads if name not in (*read, "state")]
        if missing:
            raise ValueError(
                f"the task reads {', '.join(missing)}, but the readouts tell "
                f"{', '.join(read) or 'nothing'}: choose another task, or train on data that hold "
                "these quantities"
            )

    @property
    def bank(self) -> IntrinsicCost:
        """The immutable intrinsic cost: the task's."""
        return self.configurator.task.bank

    def _tensor(self, observation: Observation) -> Any:
        if isinstance(observation, Mapping):
            return {name: self._tensor(part) for name, part in observation.items()}
        return torch.as_tensor(observation).to(self.model.device)

    @torch.no_grad()
    def encode(self, observation: Observation) -> Tensor:
        """States `(B, D)` of observations `(B, *O)`, or of a mapping of them."""
        return self.model.encode(self._tensor(observation))

    @torch.no_grad()
    def start(
        self, batch: int, *, goal: Observation | None = None, generator: torch.Generator
    ) -> AgentState:
        """Begin B episodes.

        Args:
            batch: number of episodes B.
            goal: goal observations, `(B, *O)`, where the task has a goal; encoded here, once.
            generator: source of the planner's randomness.
        """
        encoded = None if goal is None else self.encode(goal)
        setting = self.configurator.configure(encoded, batch, self.model.device)
        return AgentState(setting, generator)

    @torch.no_grad()
    def act(self, carried: AgentState, observation: Observation) -> tuple[np.ndarray, AgentState]:
        """One perception-action step.

        Args:
            carried: what the last step returned.
            observation: `(B, *O)`, or a mapping of such arrays; encoded once, whatever the mode.

        Returns:
            Actions in [-1, 1], `(B, A)` float32, or indices `(B,)` int64; and what to carry on.
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
                    until_replan=carried.setting.cost.replan_every,
                )
            assert carried.plan is not None
            action = carried.plan[:, 0]
            carried = replace(
                carried, plan=shift(carried.plan), until_replan=carried.until_replan - 1
            )
        taken = action.float() if action.is_floating_point() else action
        return taken.cpu().numpy(), replace(carried, previous_action=action)

    def problem(self, setting: Setting, state: Tensor) -> Problem:
        """Mode-2's planning problem from states `(B, D)`."""
        return problem_of(
            self.model, self.bank, setting, state, readouts=self.readouts, critic=self.critic
        )

    def think(self, carried: AgentState) -> Plan:
        """Mode-2: plan from the current belief.

        The rest of the last plan is among the starts and, where the planner has room for it, what
        the policy would do.
        """
        belief = carried.belief
        if belief is None:
            raise ValueError("nothing was observed yet: call `act`, which calls this")
        problem = self.problem(carried.setting, belief)
        starts = [] if carried.plan is None else [carried.plan]
        if self.policy is not None:
            context = carried.setting.context
            starts.append(self.policy.rollout(self.model, belief, context, problem.horizon)[0])
        proposals = torch.stack(starts[: self.planner.room], dim=1) if starts else None
        return self.planner.plan(problem, proposals=proposals, generator=carried.generator)
