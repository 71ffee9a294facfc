"""The agent: the perception-action step of Figure 2.

    observation -> perception -> belief -> actor (Mode-1 policy or Mode-2 planner) -> action
                        ^                    ^ reads cost, world model, memory, setting
                        |                    |                       |
                     AgentState, passed in and returned     <- short-term memory

The agent itself never changes while it acts: what it carries from step to step is in `AgentState`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from forethought.agent.actor import Recall, problem_of
from forethought.agent.configurator import Configurator, Setting
from forethought.agent.cost import Critic, GoalDistance, GoalTerm, IntrinsicCost
from forethought.agent.hierarchy import Hierarchy, Intentions
from forethought.agent.memory import ShortTermMemory
from forethought.agent.policy import Policy
from forethought.agent.setting_code import setting_code
from forethought.agent.thinking import Reached, cheapest
from forethought.planners import Clock, Deadline, Plan, Planner, Problem, shift
from forethought.worldmodel import JEPA, Readouts
from forethought.worldmodel.latents import code_size

Observation: TypeAlias = np.ndarray | Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Mind:
    """What went on in one decision, for logs and pictures; not-a-number where nothing did.

    Args:
        energy: of what was decided for, `(B,)`; known where a plan was made, or looked at.
        signal: what mode `auto` compared with the price of thinking, `(B,)`.
        thought: whether a plan was made, `(B,)` bool.
        evaluations: steps of the world model that the decision took, `(B,)`.
        costs: intrinsic terms of the state and the action that led to it, as the readouts tell,
            `(B, n)`.
        imagined_costs: intrinsic terms of the plan's steps, `(B, H, n)`, or None without a plan.
        coverage: how well the memory knows the state, `(B,)`.
        surprise: mean squared distance of the state from the one predicted, `(B,)`.
    """

    energy: Tensor
    signal: Tensor
    thought: Tensor
    evaluations: Tensor
    costs: Tensor
    imagined_costs: Tensor | None
    coverage: Tensor
    surprise: Tensor

    def select(self, index: Tensor) -> Mind:
        """The rows `index`."""
        selected: Mind = _selected(self, index)
        return selected


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
        planned: which rows of `plan` were planned, or proposed by the policy, `(B,)` bool; the
            others are zeros. None: all of them.
        memory: what is remembered of the episodes, or None.
        time: decisions since the start.
        begun: rows whose episode begins with the next observation, `(B,)` bool, among others that
            go on; None: none.
        leg: number of the present goal on the way, `(B,)` int64, where there are several.
        reached: what plans reached in each row, for mode `auto`.
        spent: decisions that mode `auto` thought about, and all, `(B, 2)` int64.
        regret: gains that mode `auto` let pass since its last plan, `(B,)`.
        age: decisions since that plan, `(B,)` int64.
        wanted: what the levels above the world model want, or None.
        mind: what went on in the last decision; None in Mode-1, unless the memory is wanted there.
    """

    setting: Setting
    generator: torch.Generator
    belief: Tensor | None = None
    previous_action: Tensor | None = None
    plan: Tensor | None = None
    imagined: Tensor | None = None
    until_replan: int = 0
    planned: Tensor | None = None
    memory: ShortTermMemory | None = None
    time: int = 0
    begun: Tensor | None = None
    leg: Tensor | None = None
    reached: Reached | None = None
    spent: Tensor | None = None
    regret: Tensor | None = None
    age: Tensor | None = None
    wanted: Intentions | None = None
    mind: Mind | None = None

    def select(self, index: Tensor) -> AgentState:
        """The state of the environments `index`; the others are dropped."""
        selected: AgentState = _selected(self, index)
        return selected

    def begin(self, fresh: AgentState, begun: Tensor) -> AgentState:
        """Begin the episodes under the mask `begun` `(B,)` as in `fresh`; the others go on.

        The clock goes on for all: times in the memory have to rise.
        """
        kept = ~begun
        # A row without a plan of its own must not wait for the others' to run out.
        rows: dict[str, Any] = {"until_replan": 0, "wanted": None}
        if self.plan is not None:
            # A plan of zeros is the safe action: nothing of the episode before is proposed.
            rows["plan"] = torch.where(_wide(kept, self.plan), self.plan, 0)
            rows["planned"] = kept if self.planned is None else self.planned & kept
        setting = fresh.setting
        if self.leg is not None:
            rows["leg"] = self.leg * kept
            setting = setting.at_leg(rows["leg"])
        if self.reached is not None:
            rows["reached"] = self.reached.forget(begun)
        if self.spent is not None:
            rows["spent"] = self.spent * kept.unsqueeze(1)
        if self.regret is not None:
            rows["regret"] = self.regret.masked_fill(begun, 0.0)
        if self.age is not None:
            rows["age"] = self.age.masked_fill(begun, -1)  # the first decision makes it 0
        if self.memory is not None:
            rows["memory"] = self.memory.forget(begun)
        return replace(self, setting=setting, begun=begun, **rows)


@dataclass(frozen=True)
class Agent:
    """Perception, world model, cost, critic, memory, actor and configurator, as in Figure 2.

    Args:
        model: perception and world model.
        configurator: turns a task into a setting.
        planner: Mode-2's optimiser.
        readouts: heads that the intrinsic cost reads, or None where it reads the action alone.
        critic: expectation of the cost beyond the horizon, or None.
        policy: Mode-1's policy, or None before distillation.
        recall: what is remembered, and what for; None: no memory.
        goal_term: how far a state is from the goal.
        clock: tells the time to plans that may take only so long (`Cost.seconds`).
        hierarchy: levels above the world model, which choose its goals on the way; None: none.
    """

    model: JEPA
    configurator: Configurator
    planner: Planner
    readouts: Readouts | None = None
    critic: Critic | None = None
    policy: Policy | None = None
    recall: Recall | None = None
    goal_term: GoalTerm = field(default_factory=GoalDistance)
    clock: Clock = time.perf_counter
    hierarchy: Hierarchy | None = None

    def __post_init__(self) -> None:
        if self.configurator.mode != 2 and self.policy is None:
            raise ValueError(
                f"mode {self.configurator.mode} needs a policy: run `forethought distill RUN` first"
            )
        cost, signal = self.configurator.cost, self.configurator.thinking.signal
        asking = [f"cost.doubt is {cost.doubt}"] if cost.doubt else []
        asking += ["thinking.signal is doubt"] if signal == "doubt" else []
        if asking:
            self.model.predictor.check_doubts(*asking)
        if self.hierarchy is not None and not self.configurator.task.goal:
            raise ValueError(
                "model.levels are given, but the task has no goal: choose no levels, or a task "
                "with a goal"
            )
        read = {} if self.readouts is None else self.readouts.sizes
        missing = [name for name in self.configurator.task.reads if name not in (*read, "state")]
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
    def encode(
        self, observation: Observation, context: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """States `(B, D)` of observations `(B, *O)`, or of a mapping of them.

        `context` is the setting's, for a modulated encoder.
        """
        return self.model.encode(self._tensor(observation), context)

    @torch.no_grad()
    def start(
        self,
        batch: int,
        *,
        goal: Observation | Sequence[Observation] | None = None,
        generator: torch.Generator,
        code: Tensor | None = None,
    ) -> AgentState:
        """Begin B episodes.

        Args:
            batch: number of episodes B.
            goal: goal observations, `(B, *O)`, where the task has a goal; encoded here, once. A
                list or tuple of them: goals on the way, to be passed in their order.
            generator: source of the planner's randomness.
            code: what is known of the episodes' conditions, `(B, M)`, for a modulated model; by
                default what the configurator is adjusted to.
        """
        several = isinstance(goal, (list, tuple))
        encoded: Any = None
        device = self.model.device
        own = self.configurator.modulation(batch, device)
        if own is not None or not code_size(self.model):
            code = own
        if goal is not None:
            context = None if code is None else {"modulation": code}
            goals: Any = goal if several else (goal,)
            encoded = [self.encode(one, context) for one in goals]
            encoded = encoded if several else encoded[0]
        setting = self.configurator.configure(encoded, batch, device)
        setting = replace(setting, modulation=code)
        if self.policy is not None and self.policy.modulation_dim and not code_size(self.model):
            told = setting_code(self.configurator.task, setting)
            setting = replace(setting, modulation=told)
        legs = torch.zeros(batch, dtype=torch.int64, device=device) if several else None
        return AgentState(setting, generator, leg=legs)

    @torch.no_grad()
    def act(self, carried: AgentState, observation: Observation) -> tuple[np.ndarray, AgentState]:
        """One perception-action step.

        Args:
            carried: what the last step returned.
            observation: `(B, *O)`, or a mapping of such arrays; encoded once, whatever the mode.

        Returns:
            Actions in [-1, 1], `(B, A)` float32, or indices `(B,)` int64; and what to carry on.
        """
        carried = self._perceive(carried, self._tensor(observation))
        mode = carried.setting.mode
        if mode == 1:
            assert self.policy is not None
            assert carried.belief is not None
            action = self.policy(carried.belief, carried.setting.context)
            if action.is_floating_point():
                action = action.nan_to_num(0.0)  # of a state that is not a number: the safe action
        else:
            if mode == "auto":
                carried = self._weigh(carried)
            elif carried.plan is None or carried.until_replan < 1:
                carried = self._planned(carried)
            assert carried.plan is not None
            action = carried.plan[:, 0]
            carried = replace(
                carried, plan=shift(carried.plan), until_replan=carried.until_replan - 1
            )
        if self._reflex(carried):
            carried = replace(carried, previous_action=action, time=carried.time + 1)
        else:
            carried = self._remember(carried, action)
        taken = action.float() if action.is_floating_point() else action
        return taken.cpu().numpy(), carried

    @torch.no_grad()
    def instead(self, decided: AgentState, before: AgentState, action: Tensor) -> AgentState:
        """What to carry on if another action was done than decided, such as one with noise.

        Args:
            decided: what `act` returned.
            before: what it was given.
            action: what was done, as `act` gives it.
        """
        if self._reflex(decided):
            return replace(decided, previous_action=action)
        rest = replace(decided, memory=before.memory, time=before.time)
        return self._remember(rest, action)

    def problem(
        self, setting: Setting, state: Tensor, memory: ShortTermMemory | None = None
    ) -> Problem:
        """Mode-2's planning problem from states `(B, D)`."""
        return problem_of(
            self.model,
            self.bank,
            setting,
            state,
            readouts=self.readouts,
            critic=self.critic,
            task=self.configurator.task,
            goal_term=self.goal_term,
            memory=memory,
            recall=self.recall,
        )

    def think(self, carried: AgentState, deadline: Deadline | None = None) -> Plan:
        """Mode-2: plan from the current belief.

        Among the starts are, as far as the planner has room for them, the rest of the last plan,
        what the policy would do, and what was done from the nearest states remembered. Where the
        setting says how long a plan may take, the search ends by then; this counts from here, but
        for a `deadline` that was set before.
        """
        deadline = deadline or self._deadline(carried)
        belief = carried.belief
        if belief is None:
            raise ValueError("nothing was observed yet: call `act`, which calls this")
        problem = self._problem_now(carried)
        starts = [] if carried.plan is None else [carried.plan]
        if self.policy is not None:
            starts.append(self._rolled(carried))
        recall, memory = self.recall, carried.memory
        if recall is not None and recall.proposals and memory is not None:
            count = recall.proposals
            found = memory.proposals(belief, carried.setting, count=count, neighbours=max(8, count))
            starts += [*found.unbind(1)]
        proposals = torch.stack(starts[: self.planner.room], dim=1) if starts else None
        return self.planner.plan(
            problem, proposals=proposals, generator=carried.generator, deadline=deadline
        )

    def costs_of(self, states: Tensor, actions: Tensor) -> Tensor:
        """Intrinsic terms `(..., n)` of states `(..., D)` and the actions that led to them."""
        quantities = {"state": states}
        if self.readouts is not None and set(self.bank.reads) - {"state"}:
            quantities |= self.readouts(states)
        return self.bank.values(quantities, actions)

    def _perceive(self, carried: AgentState, x: Any) -> AgentState:
        """Estimate the state, begin the decision's record, and look where the goal is."""
        previous, action = carried.belief, carried.previous_action
        context = carried.setting.context
        encoded = self.model.encode(x, context)
        belief = self.model.update(previous, action, encoded, context)
        if previous is not None:
            # An episode's first state was predicted by nobody; and a belief that once was not a
            # number would remain so in a recurrent model.
            alone = ~belief.isfinite().all(1)
            alone = alone if carried.begun is None else alone | carried.begun
            belief = torch.where(alone.unsqueeze(1), encoded, belief)
        carried = replace(carried, belief=belief)
        if self._reflex(carried):
            return self._on_the_way(replace(carried, begun=None))
        nothing = belief.new_full((len(belief),), torch.nan)
        surprise, costs = nothing, None
        if previous is not None and action is not None:
            predicted = self.model.predict(previous, action, context=context)
            surprise = (belief - predicted).square().mean(-1)
            if carried.begun is not None:
                surprise = surprise.masked_fill(carried.begun, torch.nan)
        if self._counts(carried):
            costs = self.costs_of(belief, self._led_by(belief, action, carried.begun))
        mind = Mind(
            energy=nothing,
            signal=nothing,
            thought=torch.zeros_like(nothing, dtype=torch.bool),
            evaluations=torch.zeros_like(nothing),
            costs=belief.new_zeros(len(belief), len(self.bank.names)) if costs is None else costs,
            imagined_costs=None,
            coverage=nothing,
            surprise=surprise,
        )
        if carried.memory is not None:
            mind = replace(mind, coverage=carried.memory.recall(belief, None)[1])
        return self._on_the_way(replace(carried, mind=mind, begun=None))

    def _on_the_way(self, carried: AgentState) -> AgentState:
        """Look where the goal is, and whether it is the next one's turn."""
        belief = carried.belief
        assert belief is not None
        if carried.leg is not None and carried.setting.goal is not None:
            far = self.goal_term(belief, belief, belief, carried.setting.context, carried.leg)
            setting, leg = self.configurator.advance(carried.setting, carried.leg, far)
            carried = replace(carried, setting=setting, leg=leg)
        return carried

    def _planned(self, carried: AgentState) -> AgentState:
        """Mode-2 for all rows."""
        deadline = self._deadline(carried)
        carried = self._directed(carried, deadline)
        plan, more = self.think(carried, deadline), 0
        if self.hierarchy is not None and self.hierarchy.top_down.refine:
            assert carried.belief is not None
            assert carried.wanted is not None
            actions, energy, states, wanted = self.hierarchy.refine(
                self.problem(carried.setting, carried.belief, carried.memory),
                plan.actions,
                carried.wanted,
                time=carried.time,
                deadline=deadline,
            )
            plan = replace(plan, actions=actions, energy=energy, states=states)
            carried = replace(carried, wanted=wanted)
            # Each step forward and backward, the last plans forward, and the best ones.
            more = (2 * self.hierarchy.top_down.refine + 2) * plan.actions.shape[1]
        assert isinstance(plan.states, Tensor)
        assert carried.mind is not None
        mind = replace(
            carried.mind,
            energy=plan.energy,
            thought=torch.ones_like(carried.mind.thought),
            evaluations=_steps_of(plan) + more,
            imagined_costs=(
                self.costs_of(plan.states, plan.actions) if self._counts(carried) else None
            ),
        )
        return replace(
            carried,
            plan=plan.actions,
            imagined=plan.states,
            planned=None,
            until_replan=carried.setting.cost.replan_every,
            mind=mind,
        )

    def _deadline(self, carried: AgentState) -> Deadline | None:
        """When a plan that is begun now has to be there."""
        seconds = carried.setting.cost.seconds
        return None if seconds is None else Deadline.after(seconds, self.clock)

    def _directed(self, carried: AgentState, deadline: Deadline | None) -> AgentState:
        """With what the levels above want by now."""
        if self.hierarchy is None:
            return carried
        setting, belief = carried.setting, carried.belief
        assert belief is not None
        wanted = self.hierarchy.direct(
            belief,
            setting.context["goal"],
            carried.wanted,
            time=carried.time,
            generator=carried.generator,
            deadline=deadline,
        )
        return replace(carried, wanted=wanted)

    def _problem_now(self, carried: AgentState) -> Problem:
        """The problem from the belief on, towards what the levels above want."""
        assert carried.belief is not None
        problem = self.problem(carried.setting, carried.belief, carried.memory)
        if self.hierarchy is None or carried.wanted is None:
            return problem
        return self.hierarchy.towards(problem, carried.wanted)

    def _weigh(self, carried: AgentState) -> AgentState:
        """Mode `auto`: the better of policy and last plan, or a new plan where it is worth it."""
        belief, mind, setting = carried.belief, carried.mind, carried.setting
        assert belief is not None
        assert mind is not None
        thinking = setting.thinking
        deadline = self._deadline(carried)
        carried = self._directed(carried, deadline)
        problem = self._problem_now(carried)
        candidates = [self._rolled(carried)]
        if carried.plan is not None:
            # Rows without a plan propose the policy's actions once more.
            there = torch.ones_like(mind.thought) if carried.planned is None else carried.planned
            candidates.append(torch.where(_wide(there, carried.plan), carried.plan, candidates[0]))
        actions, energy, gain, states = cheapest(
            problem, torch.stack(candidates, 1), thinking.radius
        )
        reached = carried.reached or Reached.nothing(belief)
        regret = gain.clamp_min(0) + (0 if carried.regret is None else carried.regret)
        match thinking.signal:
            case "gain":
                signal = gain
            case "regret":
                signal = regret
            case "excess":
                signal = energy - reached.expected(belief, thinking.ridge)
            case "surprise":
                signal = mind.surprise.nan_to_num(torch.inf)
            case "doubt":
                signal = self._doubted(belief, actions, states, setting)
            case "random":
                signal = torch.rand(len(belief), generator=carried.generator).to(belief)
        price, share = thinking.price, thinking.share
        spent = carried.spent
        if spent is None:
            spent = torch.zeros(len(belief), 2, dtype=torch.int64, device=belief.device)
        if price is None:
            raise ValueError(
                "thinking.price is not given: choose one, or let `forethought evaluate` find the "
                f"one that keeps a share of {share}"
            )
        # The first decision of an episode may always be thought about.
        affordable = spent[:, 0] <= share * spent[:, 1]
        age = torch.zeros_like(spent[:, 0]) if carried.age is None else carried.age + 1
        stale = torch.zeros_like(affordable)
        if thinking.patience and thinking.signal != "random":
            stale = age >= thinking.patience
        worth = ((signal > price) | stale) & affordable
        evaluations = torch.full_like(energy, float(problem.horizon * (1 + len(candidates))))
        rows = worth.nonzero().squeeze(1)
        if len(rows):
            # What is cheap and best goes in as the last plan does: a plan is never worse.
            chosen = replace(carried, plan=actions, planned=None).select(rows)
            plan = self.think(chosen, deadline)
            assert isinstance(plan.states, Tensor)
            kept = plan.energy <= energy[rows]
            won = rows[kept]
            actions = actions.index_put((won,), plan.actions[kept])
            states = states.index_put((won,), plan.states[kept].to(states))
            energy = energy.index_put((won,), plan.energy[kept])
            evaluations[rows] += _steps_of(plan)
            reached = reached.add(belief, energy, worth)
        mind = replace(
            mind,
            energy=energy,
            signal=signal,
            thought=worth,
            evaluations=evaluations,
            imagined_costs=self.costs_of(states, actions) if self._counts(carried) else None,
        )
        return replace(
            carried,
            plan=actions,
            imagined=states,
            planned=None,
            reached=reached,
            spent=spent + torch.stack((worth.long(), torch.ones_like(worth).long()), 1),
            regret=regret.masked_fill(worth, 0.0),
            age=age.masked_fill(worth, 0),
            mind=mind,
        )

    def _doubted(self, belief: Tensor, actions: Tensor, states: Tensor, setting: Setting) -> Tensor:
        """The predictor's doubt, `(B,)`, averaged along actions `(B, H, A)` or `(B, H)`."""
        before = torch.cat((belief.unsqueeze(1), states[:, :-1]), 1)
        context = {name: x.unsqueeze(1) for name, x in setting.context.items()}
        return self.model.doubt(before, actions, states, context).mean(1)

    def _remember(self, carried: AgentState, action: Tensor) -> AgentState:
        """Store the moment, and count on."""
        belief, memory = carried.belief, carried.memory
        assert belief is not None
        assert carried.mind is not None
        if self.recall is not None:
            if memory is None:
                memory = ShortTermMemory.empty(
                    self.recall.memory,
                    belief,
                    terms=len(self.bank.names),
                    action_dim=self.model.action_dim,
                    critic=self.critic is not None,
                    discrete=self.model.actions.discrete,
                )
            expected = None if self.critic is None else self.critic(belief)
            memory = memory.remember(
                belief, action, carried.mind.costs, expected, time=carried.time
            )
        return replace(carried, previous_action=action, memory=memory, time=carried.time + 1)

    def _reflex(self, carried: AgentState) -> bool:
        """Whether the policy acts alone, with no record and nothing remembered."""
        return carried.setting.mode == 1 and (self.recall is None or not self.recall.in_mode_1)

    def _counts(self, carried: AgentState) -> bool:
        """Whether any intrinsic term has a weight; else none is looked at."""
        return bool(carried.setting.u.any())

    def _rolled(self, carried: AgentState) -> Tensor:
        """What the policy would do from the belief on, `(B, H, A)` or `(B, H)`."""
        assert self.policy is not None
        assert carried.belief is not None
        setting = carried.setting
        return self.policy.rollout(
            self.model, carried.belief, setting.context, setting.cost.horizon
        )[0]

    def _led_by(self, belief: Tensor, action: Tensor | None, begun: Tensor | None) -> Tensor:
        """The actions that led to states; nobody's where an episode begins: zeros, even chances."""
        size, discrete = self.model.action_dim, self.model.actions.discrete
        nothing = belief.new_full((len(belief), size), 1 / size if discrete else 0.0)
        if action is None:
            return nothing
        if begun is None:
            return action
        if not action.is_floating_point():
            action = torch.nn.functional.one_hot(action, size)
        return torch.where(begun.unsqueeze(1), nothing, action.to(belief))


def _steps_of(plan: Plan) -> Tensor:
    """Forward steps of the world model that each of the plans took, `(B,)`."""
    return torch.full_like(plan.energy, plan.model_steps / len(plan.energy))


def _selected(held: Any, index: Tensor) -> Any:
    """A record with the rows `index` of its tensors, and of its records that know rows."""
    rows: dict[str, Any] = {}
    for part in fields(held):
        value = getattr(held, part.name)
        if isinstance(value, Tensor):
            rows[part.name] = value[index]
        elif hasattr(value, "select"):
            rows[part.name] = value.select(index)
    return replace(held, **rows)


def _wide(mask: Tensor, like: Tensor) -> Tensor:
    """A mask `(B,)` with axes for those of `like` `(B, ...)`."""
    return mask.reshape(-1, *[1] * (like.ndim - 1))
