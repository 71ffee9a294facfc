"""Distillation: compile Mode-2's plans into Mode-1's policy (LeCun 2022, fig. 5).

Minimises sum_t w_t D(a*_t, A(s_t)) over all H imagined states of each plan, then over states that
the policy itself visits (DAgger, 1011.0686). From the second round on, plans start from the
policy's own roll-out among others, so that labels stay in one basin, and count only as far as
they beat that roll-out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from forethought.agent.actor import Policy
from forethought.agent.agent import Agent
from forethought.planners import evaluate
from forethought.worldmodel import fit


@dataclass(frozen=True)
class Distillation:
    """How plans become a policy.

    Args:
        rounds: rounds of labelling and fitting; the first starts from encoded states of the data
            set, the others mostly from states that the policy visits in imagination.
        keep: rounds whose labels are fitted, the latest ones. Labels of the first round, planned
            without the policy's roll-out, serve the first fit alone; they are suspected to mix
            basins. With them the policy of one seed reached 87 % of held-out goals, without them
            97 %, with `keep` 2 and more rounds 99 % (LOG.md).
        problems: planning problems labelled per round.
        batch: problems planned side by side.
        steps: updates of the policy per round.
        minibatch: labelled states per update.
        learning_rate: peak learning rate of Adam.
        decay: factor of a label's weight per imagined step; below 1 the first actions of a plan,
            which the planner has thought through to a far end, count more than the last.
        fresh: share of problems in later rounds that start from the data set again.
    """

    rounds: int = 5
    keep: int = 2
    problems: int = 512
    batch: int = 64
    steps: int = 1000
    minibatch: int = 512
    learning_rate: float = 1e-3
    decay: float = 1.0
    fresh: float = 0.3

    def __post_init__(self) -> None:
        for name in ("rounds", "keep", "problems", "batch", "steps", "minibatch"):
            if getattr(self, name) < 1:
                raise ValueError(f"distillation.{name} is {getattr(self, name)}: choose 1 or more")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(
                f"distillation.learning_rate is {self.learning_rate}: choose it above 0, finite"
            )
        if not 0 < self.decay <= 1:
            raise ValueError(f"distillation.decay is {self.decay}: choose it in (0, 1]")
        if not 0 <= self.fresh <= 1:
            raise ValueError(f"distillation.fresh is {self.fresh}: choose it in [0, 1]")


@dataclass(frozen=True)
class Labels:
    """Labelled states.

    Args:
        states: `(N, D)`.
        goals: `(N, D)`, or None where the task has no goal.
        actions: `(N, A)`, or `(N,)` int64 where they are discrete.
        weights: `(N,)`.
    """

    states: Tensor
    goals: Tensor | None
    actions: Tensor
    weights: Tensor


@torch.no_grad()
def label(
    agent: Agent,
    policy: Policy | None,
    states: Tensor,
    goals: Tensor | None,
    generator: torch.Generator,
    decay: float = 1.0,
) -> Labels:
    """Plan from `states` `(B, D)` and label every imagined state.

    Args:
        agent: plans; its own policy is not used.
        policy: its roll-out is proposed to the planner and has to be beaten; None in round one.
        states: starting states.
        goals: goal states `(B, D)`, or None where the task has no goal.
        generator: source of the planner's randomness.
        decay: factor of a label's weight per imagined step.

    Returns:
        B*H labels. Weights of the first step average 1 where any plan counts.
    """
    setting = agent.configurator.configure(goals, len(states), states.device)
    problem = agent.problem(setting, states)
    proposals, own = None, None
    if policy is not None:
        rolled = policy.rollout(agent.model, states, setting.context, problem.horizon)[0]
        proposals = rolled[:, None]
        own = evaluate(problem, proposals)[0][:, 0]
    plan = agent.planner.plan(problem, proposals=proposals, generator=generator)
    finite = plan.energy.isfinite()
    weight = finite.to(states)
    if own is not None:
        beaten = finite & own.isfinite()
        gain = torch.where(beaten, own - plan.energy, 0.0).clamp_min(0)
        # Where the policy's own roll-out is not a number, a plan counts like an average one.
        weight = torch.where(finite > beaten, 1.0, gain / gain.mean().clamp_min(1e-9))
    if policy is not None and policy.discrete:
        # Where a discrete policy is right, the gain is exactly zero, and without any weight there
        # it forgets: on a ring of 8 cells two rounds reach 40 to 98 % of goals, so 98 to 100 %.
        weight = 0.5 * (1 + weight)
    assert isinstance(plan.states, Tensor)
    visited = torch.cat((states[:, None], plan.states[:, :-1]), dim=1)  # (B, H, D)
    horizon = visited.shape[1]
    keep = finite.repeat_interleave(horizon)
    fade = decay ** torch.arange(horizon, device=states.device)
    return Labels(
        visited.flatten(0, 1)[keep],
        None if goals is None else goals.repeat_interleave(horizon, 0)[keep],
        plan.actions.flatten(0, 1)[keep],
        (weight[:, None] * fade).flatten()[keep],
    )


@torch.no_grad()
def _visited(
    agent: Agent,
    policy: Policy,
    states: Tensor,
    goals: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """One state that the policy visits on its way from each of `states` `(B, D)`."""
    context = agent.configurator.configure(goals, len(states), states.device).context
    horizon = agent.configurator.cost.horizon
    path = policy.rollout(agent.model, states, context, horizon)[1]
    when = torch.randint(horizon, (len(states),), generator=generator).to(states.device)
    return path[torch.arange(len(states), device=states.device), when]


def distill(
    agent: Agent,
    policy: Policy,
    states: Tensor,
    how: Distillation,
    generator: torch.Generator,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Agent:
    """Train `policy` on plans from encoded states; perception, model and cost stay as they are.

    Args:
        agent: the agent that plans.
        policy: what is trained, in place.
        states: encoded states of a data set, `(N, D)`; starts, and goals where the task has one,
            are drawn from them.
        how: rounds, sizes and rates.
        generator: source of randomness; on the CPU.
        on_step: see `forethought.worldmodel.fit`; steps count on over rounds.
        on_progress: called with the number of problems just planned.

    Returns:
        The agent with this policy, still in its own mode.
    """
    kept: list[list[Labels]] = []
    for round_ in range(how.rounds):
        collected: list[Labels] = []
        for first in range(0, how.problems, how.batch):
            count = min(how.batch, how.problems - first)
            draw = torch.randint(len(states), (2, count), generator=generator).to(states.device)
            start = states[draw[0]]
            goal = states[draw[1]] if agent.configurator.task.goal else None
            if round_:
                moved = _visited(agent, policy, start, goal, generator)
                fresh = torch.rand(count, generator=generator).to(states.device) < how.fresh
                start = torch.where(fresh[:, None], start, moved)
            collected.append(
                label(agent, policy if round_ else None, start, goal, generator, how.decay)
            )
            if on_progress is not None:
                on_progress(count)
        kept = [*(kept if round_ > 1 else []), collected][-how.keep :]
        _fit(policy, [labels for one in kept for labels in one], how, generator, round_, on_step)
    return replace(agent, policy=policy)


def _fit(
    policy: Policy,
    collected: list[Labels],
    how: Distillation,
    generator: torch.Generator,
    round_: int,
    on_step: Callable[[int, dict[str, float]], None] | None,
) -> None:
    """Regress the policy on labels; only the policy learns."""
    states = torch.cat([labels.states for labels in collected])
    actions = torch.cat([labels.actions for labels in collected])
    weights = torch.cat([labels.weights for labels in collected])
    held = [labels.goals for labels in collected if labels.goals is not None]
    goals = torch.cat(held) if held else None
    if not len(states):
        raise ValueError("every plan has a non-finite energy: train the world model again")

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        draw = torch.randint(len(states), (how.minibatch,), generator=generator).to(states.device)
        context = {} if goals is None else {"goal": goals[draw]}
        scores = policy.scores(states[draw], context)
        if policy.discrete:
            error = nn.functional.cross_entropy(scores, actions[draw], reduction="none")
        else:
            error = (scores - actions[draw]).square().mean(-1)
        weighted = (weights[draw] * error).mean()
        return weighted, {"imitation": weighted, "error": error.mean()}

    fit(
        policy.parameters(),
        loss,
        steps=how.steps,
        learning_rate=how.learning_rate,
        on_step=(lambda step, terms: on_step(round_ * how.steps + step, terms))
        if on_step
        else None,
    )
