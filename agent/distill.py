"""Distillation: compile Mode-2's plans into Mode-1's policy (LeCun 2022, fig. 5).

Arm `labels` minimises sum_t w_t D(a*_t, A(s_t)) over all H imagined states of each plan, then over
states that the policy itself visits (DAgger, 1011.0686). From the second round on, plans start
from the policy's own roll-out among others, so that labels stay in one basin, and count only as
far as they beat that roll-out.

Arm `gradient` plans nothing: it sends the gradient of the energy of the policy's own roll-out
straight into the policy, through the frozen model (DESIGN.md, section 4). A support term keeps
the roll-out near encoded states of the data, where the model has been trained.

Both log the energy of the policy's roll-out from the same starts, in the unit of the planner's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from forethought.agent.agent import Agent
from forethought.agent.policy import Policy
from forethought.planners import evaluate, losing
from forethought.worldmodel import fit

Arm: TypeAlias = Literal["labels", "gradient"]
Loss: TypeAlias = Callable[[], tuple[Tensor, dict[str, Tensor]]]
OnStep: TypeAlias = Callable[[int, dict[str, float]], None]

JUDGED = 64  # starts on which the energy of the policy is logged
ANCHORS = 1024  # encoded states that stand for the data in the support term
COVERED = 0.95  # share of them that lie within the slack of the others


@dataclass(frozen=True)
class Distillation:
    """How plans become a policy.

    Args:
        arm: `labels` regresses the policy on plans; `gradient` minimises the imagined energy of
            the policy's own roll-out.
        rounds: rounds of labelling and fitting; the first starts from encoded states of the data
            set, the others mostly from states that the policy visits in imagination.
        keep: rounds whose labels are fitted, the latest ones; `labels` only. Labels of the first
            round, planned without the policy's roll-out, serve the first fit alone; they are
            suspected to mix basins. With them the policy of one seed reached 87 % of held-out
            goals, without them 97 %, with `keep` 2 and more rounds 99 % (LOG.md).
        problems: planning problems labelled per round; starts per round with `gradient`.
        batch: problems planned side by side; roll-outs per update with `gradient`.
        steps: updates of the policy per round.
        minibatch: labelled states per update; `labels` only.
        learning_rate: peak learning rate of Adam.
        decay: factor of a label's weight per imagined step, `labels` only; below 1 the first
            actions of a plan, which the planner has thought through to a far end, count more than
            the last.
        fresh: share of problems in later rounds that start from the data set again.
        support: weight of the support term; `gradient` only.
    """

    arm: Arm = "labels"
    rounds: int = 5
    keep: int = 2
    problems: int = 512
    batch: int = 64
    steps: int = 1000
    minibatch: int = 512
    learning_rate: float = 1e-3
    decay: float = 1.0
    fresh: float = 0.3
    support: float = 10.0

    def __post_init__(self) -> None:
        if self.arm not in get_args(Arm):
            raise ValueError(
                f"distillation.arm is {self.arm!r}: choose {' or '.join(get_args(Arm))}"
            )
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
        if not 0 <= self.support < float("inf"):
            raise ValueError(f"distillation.support is {self.support}: choose 0 or more, finite")


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


def imagine(
    agent: Agent, policy: Policy, states: Tensor, goals: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The planning energy of what `policy` would do, differentiable in the policy.

    Every action depends on the predicted state in which it is taken, so the gradient reaches the
    policy at every step, directly and through all later states. A discrete policy acts by its
    probabilities.

    Args:
        agent: its model, costs and critic make the energy; its own policy is not used.
        policy: acts.
        states: starting states `(B, D)`.
        goals: goal states `(B, D)`, or None where the task has no goal.

    Returns:
        Energies `(B,)`, non-finite ones included, and the states after each action `(B, H, D)`.
    """
    setting = agent.configurator.configure(goals, len(states), states.device)
    problem = agent.problem(setting, states)
    actions, path, state = [], [], states
    for t in range(problem.horizon):
        scores = policy.scores(state, problem.context)
        actions.append(scores.softmax(-1) if policy.discrete else scores)
        state = problem.step(state, actions[-1], None, problem.context, t)
        path.append(state)
    predicted = torch.stack(path, 1)
    # The states are known: rolling the actions out again would double the work.
    known = replace(problem, rollout=lambda *_: predicted)
    energies, _ = evaluate(known, torch.stack(actions, 1)[:, None])
    return energies[:, 0], predicted


@dataclass(frozen=True, eq=False)
class Support:
    """Where the model may be trusted: near encoded states of the data.

    Args:
        anchors: encoded states that stand for the data, `(K, D)`.
        slack: squared distance to the nearest anchor that costs nothing.
        scale: mean squared distance of the anchors to their mean; the unit of the penalty.
    """

    anchors: Tensor
    slack: float
    scale: float

    @staticmethod
    @torch.no_grad()
    def of(states: Tensor, generator: torch.Generator) -> Support:
        """The support of encoded states `(N, D)`, by a random subset of them.

        The slack is such that most anchors lie within it of another anchor.

        Raises:
            ValueError: fewer than two states.
        """
        if len(states) < 2:
            raise ValueError(f"states has {len(states)} rows: give 2 or more, or set support to 0")
        chosen = torch.randperm(len(states), generator=generator)[:ANCHORS].to(states.device)
        anchors = states[chosen].detach()
        apart = torch.cdist(anchors, anchors).fill_diagonal_(float("inf")).amin(1).square()
        spread = (anchors - anchors.mean(0)).square().sum(-1).mean()
        return Support(anchors, float(apart.quantile(COVERED)), max(float(spread), 1e-9))

    def penalty(self, states: Tensor) -> Tensor:
        """How far states `(..., D)` are beyond the slack, as `(...)`; 0 within it."""
        with torch.no_grad():
            nearest = torch.cdist(states.flatten(0, -2), self.anchors).argmin(-1)
        away = (states - self.anchors[nearest].view_as(states)).square().sum(-1)
        return (away - self.slack).relu() / self.scale


@dataclass(frozen=True)
class _Yardstick:
    """Fixed starts and goals on which policies of all rounds and arms are compared."""

    agent: Agent
    states: Tensor  # (B, D)
    goals: Tensor | None  # (B, D)
    planned: dict[str, float]

    @staticmethod
    @torch.no_grad()
    def of(agent: Agent, states: Tensor, seed: int) -> _Yardstick:
        """Draw starts, and plan once from them; randomness of its own, so that looking is free."""
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randint(len(states), (2, JUDGED), generator=generator).to(states.device)
        start = states[draw[0]]
        goals = states[draw[1]] if agent.configurator.task.goal else None
        setting = agent.configurator.configure(goals, JUDGED, states.device)
        plan = agent.planner.plan(agent.problem(setting, start), generator=generator)
        finite = plan.energy[plan.energy.isfinite()]
        planned = {"planner_energy": float(finite.mean())} if len(finite) else {}
        return _Yardstick(agent, start, goals, planned)

    @torch.no_grad()
    def measure(self, policy: Policy) -> dict[str, float]:
        """Mean `energy` of the policy's roll-outs, the planner's, and the share that is `lost`.

        Lost is what has a non-finite energy; it is in no mean. Discrete policies act by indices.
        """
        setting = self.agent.configurator.configure(self.goals, JUDGED, self.states.device)
        problem = self.agent.problem(setting, self.states)
        rolled = policy.rollout(self.agent.model, self.states, setting.context, problem.horizon)[0]
        energy = losing(*evaluate(problem, rolled[:, None]))[:, 0]
        finite = energy[energy.isfinite()]
        own = {"energy": float(finite.mean())} if len(finite) else {}
        return own | self.planned | {"lost": 1 - len(finite) / JUDGED}


def distill(
    agent: Agent,
    policy: Policy,
    states: Tensor,
    how: Distillation,
    generator: torch.Generator,
    on_step: OnStep | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Agent:
    """Train `policy` from encoded states; perception, model and cost stay as they are.

    Args:
        agent: the agent that plans.
        policy: what is trained, in place; what it knows already is kept by arm `gradient`.
        states: encoded states of a data set, `(N, D)`; starts, and goals where the task has one,
            are drawn from them.
        how: arm, rounds, sizes and rates.
        generator: source of randomness; on the CPU.
        on_step: see `forethought.worldmodel.fit`; steps count on over rounds. Also told the mean
            `energy` of the policy's roll-outs from fixed starts, the same for every arm, the share
            of them that is `lost` to non-finite energies, and `planner_energy` on these starts.
        on_progress: called with the number of problems just planned, or chosen as starts.

    Returns:
        The agent with this policy, still in its own mode.

    Raises:
        ValueError: every plan, or every roll-out of an update, has a non-finite energy.
    """
    yardstick = None if on_step is None else _Yardstick.of(agent, states, _apart(generator))
    support = None
    if how.arm == "gradient" and how.support:
        support = Support.of(states, generator)
    told = on_progress or (lambda count: None)
    kept: list[list[Labels]] = []
    for round_ in range(how.rounds):
        starts = _starts(agent, policy, states, how, generator, round_)
        if how.arm == "labels":
            collected: list[Labels] = []
            for start, goal in starts:
                before = policy if round_ else None
                collected.append(label(agent, before, start, goal, generator, how.decay))
                told(len(start))
            kept = [*(kept if round_ > 1 else []), collected][-how.keep :]
            loss = _imitation(policy, [labels for one in kept for labels in one], how, generator)
        else:
            chosen: list[tuple[Tensor, Tensor | None]] = []
            for start, goal in starts:
                chosen.append((start, goal))
                told(len(start))
            loss = _imagination(agent, policy, chosen, support, how, generator)
        with _frozen(agent):
            fit(
                policy.parameters(),
                loss,
                steps=how.steps,
                learning_rate=how.learning_rate,
                on_step=_reporting(on_step, yardstick, policy, round_ * how.steps),
            )
    return replace(agent, policy=policy)


def _apart(generator: torch.Generator) -> int:
    """A seed for another stream, from that of `generator`, of which nothing is drawn."""
    return (generator.initial_seed() + 1) % 2**63


def _starts(
    agent: Agent,
    policy: Policy,
    states: Tensor,
    how: Distillation,
    generator: torch.Generator,
    round_: int,
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Starts and goals `(B, D)` of one round, batch by batch.

    They are drawn from `states` `(N, D)`; after the first round most starts are moved on to where
    the policy goes.
    """
    for first in range(0, how.problems, how.batch):
        count = min(how.batch, how.problems - first)
        draw = torch.randint(len(states), (2, count), generator=generator).to(states.device)
        start = states[draw[0]]
        goal = states[draw[1]] if agent.configurator.task.goal else None
        if round_:
            moved = _visited(agent, policy, start, goal, generator)
            fresh = torch.rand(count, generator=generator).to(states.device) < how.fresh
            start = torch.where(fresh[:, None], start, moved)
        yield start, goal


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


def _imitation(
    policy: Policy, collected: list[Labels], how: Distillation, generator: torch.Generator
) -> Loss:
    """The weighted error of the policy on labels."""
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

    return loss


def _imagination(
    agent: Agent,
    policy: Policy,
    chosen: list[tuple[Tensor, Tensor | None]],
    support: Support | None,
    how: Distillation,
    generator: torch.Generator,
) -> Loss:
    """The mean energy of the policy's roll-outs, and how far they leave the support."""
    states = torch.cat([start for start, _ in chosen])
    held = [goal for _, goal in chosen if goal is not None]
    goals = torch.cat(held) if held else None

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        draw = torch.randint(len(states), (how.batch,), generator=generator).to(states.device)
        energy, path = _finite(agent, policy, states[draw], None if goals is None else goals[draw])
        imagined = energy.mean()
        if support is None:
            return imagined, {"imagined": imagined}
        beyond = support.penalty(path).mean()
        return imagined + how.support * beyond, {"imagined": imagined, "support": beyond}

    return loss


def _finite(
    agent: Agent, policy: Policy, states: Tensor, goals: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `imagine`; only roll-outs that stay finite.

    Others are rolled out no more instead of being masked: zero times their infinite derivatives
    would be not a number in every parameter.
    """
    energy, path = imagine(agent, policy, states, goals)
    finite = losing(energy[:, None], path[:, None])[:, 0].isfinite()
    if finite.all():
        return energy, path
    if not finite.any():
        raise ValueError(
            "every roll-out of the policy has a non-finite energy: train the world model again, "
            "or distill with distillation.arm labels"
        )
    return imagine(agent, policy, states[finite], None if goals is None else goals[finite])


@contextmanager
def _frozen(agent: Agent) -> Iterator[None]:
    """Nothing of the agent gathers gradients, which go through it on their way to the policy."""
    modules = [part for part in (agent.model, agent.readouts, agent.critic) if part is not None]
    learning = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _reporting(
    on_step: OnStep | None, yardstick: _Yardstick | None, policy: Policy, before: int
) -> OnStep | None:
    """`on_step` with steps that count on from `before`, also told what the yardstick says."""
    if on_step is None or yardstick is None:
        return None
    return lambda step, terms: on_step(before + step, terms | yardstick.measure(policy))
