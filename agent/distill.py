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

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from forethought.agent.agent import Agent
from forethought.agent.configurator import Setting
from forethought.agent.cost.terms import read
from forethought.agent.policy import Policy
from forethought.agent.setting_code import decoded, setting_code, setting_size, units
from forethought.planners import evaluate, losing
from forethought.worldmodel import fit
from forethought.worldmodel.latents import code_size

Arm: TypeAlias = Literal["labels", "gradient"]
Start: TypeAlias = tuple[Tensor, Tensor | None, Tensor | None]  # states, goals, codes
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
        settings: share of problems under weights and aims drawn at random instead of the task's.
            Above 0 the policy reads the setting (`setting_code`), and needs a modulation of
            `setting_size(task)`, so that Mode-1 follows a setting without any training.
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
    settings: float = 0.0

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
        for name in ("fresh", "settings"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"distillation.{name} is {getattr(self, name)}: choose it in [0, 1]"
                )
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
        codes: `(N, M)`, what modulates the modules, or None.
    """

    states: Tensor
    goals: Tensor | None
    actions: Tensor
    weights: Tensor
    codes: Tensor | None = None


def setting_of(agent: Agent, states: Tensor, goals: Tensor | None, codes: Tensor | None) -> Setting:
    """What the configurator says for B problems that begin at `states` `(B, D)`.

    Args:
        agent: whose configurator is asked.
        states: starting states.
        goals: goal states `(B, D)`, or None where the task has no goal.
        codes: `(B, M)`, told where the configurator's adjustment has no code of its own. To a
            modulated model they tell conditions; else they are codes of settings, whose weights
            and aims count (see `setting_code`).
    """
    setting = agent.configurator.configure(goals, len(states), states.device)
    if codes is None or setting.modulation is not None:
        return setting
    if not code_size(agent.model):
        setting = decoded(agent.configurator.task, setting, codes)
    return replace(setting, modulation=codes)


@torch.no_grad()
def draw_settings(
    agent: Agent, states: Tensor, count: int, share: float, generator: torch.Generator
) -> Tensor:
    """Codes `(count, P)` of settings to label under, on the device of `states`.

    A `share` of them have weights of terms and aims log-uniform between a quarter of the task's
    (1 for an aim that counts 0) and four times it, within the bank's bounds, and as arguments of
    aims what the agent reads from a random one of `states` `(N, D)`; terms of weight 0 stay out.
    The others are what the configurator says.
    """
    task = agent.configurator.task
    own = agent.configurator.configure(states[:1] if task.goal else None, 1, states.device)
    chosen = torch.randint(len(states), (count,), generator=generator).to(states.device)
    quantities = {"state": states[chosen]}
    if agent.readouts is not None:
        quantities |= agent.readouts(states[chosen])

    def factors(columns: int) -> Tensor:
        return 4 ** (2 * torch.rand(count, columns, generator=generator) - 1).to(states)

    items = task.terms.values()
    low, weight, high = (
        states.new_tensor([getattr(item, name) for item in items])
        for name in ("floor", "weight", "ceiling")
    )
    parts = [((weight * factors(len(low))).clamp(low, high) / units(task).to(states)).log1p()]
    for aim in task.aims.values():
        value = read(quantities, aim.quantity)[:, : len(aim.at)]
        parts += [(value - value.new_tensor(aim.at)) / aim.scale, factors(1).log1p()]
    drawn = (torch.rand(count, 1, generator=generator) < share).to(states.device)
    return torch.where(drawn, torch.cat(parts, 1), setting_code(task, own))


@torch.no_grad()
def label(
    agent: Agent,
    policy: Policy | None,
    states: Tensor,
    goals: Tensor | None,
    generator: torch.Generator,
    decay: float = 1.0,
    *,
    codes: Tensor | None = None,
) -> Labels:
    """Plan from `states` `(B, D)` and label every imagined state.

    Args:
        agent: plans; its own policy is not used.
        policy: its roll-out is proposed to the planner and has to be beaten; None in round one.
        states: starting states.
        goals: goal states `(B, D)`, or None where the task has no goal.
        generator: source of the planner's randomness.
        decay: factor of a label's weight per imagined step.
        codes: `(B, M)`, what modulated modules are told; see `setting_of`.

    Returns:
        B*H labels. Weights of the first step average 1 where any plan counts.
    """
    setting = setting_of(agent, states, goals, codes)
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

    def each(rows: Tensor | None) -> Tensor | None:
        return None if rows is None else rows.repeat_interleave(horizon, 0)[keep]

    return Labels(
        visited.flatten(0, 1)[keep],
        each(goals),
        plan.actions.flatten(0, 1)[keep],
        (weight[:, None] * fade).flatten()[keep],
        each(setting.modulation),
    )


def imagine(
    agent: Agent,
    policy: Policy,
    states: Tensor,
    goals: Tensor | None,
    codes: Tensor | None = None,
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
        codes: `(B, M)`, what modulated modules are told; see `setting_of`.

    Returns:
        Energies `(B,)`, non-finite ones included, and the states after each action `(B, H, D)`.
    """
    setting = setting_of(agent, states, goals, codes)
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
    setting: Setting  # of B problems
    planned: dict[str, float]

    @staticmethod
    @torch.no_grad()
    def of(
        agent: Agent, states: Tensor, codes: Tensor | None, settings: float, seed: int
    ) -> _Yardstick:
        """Draw starts, and plan once from them; randomness of its own, so that looking is free."""
        generator = torch.Generator().manual_seed(seed)
        draw = torch.randint(len(states), (2, JUDGED), generator=generator).to(states.device)
        start = states[draw[0]]
        goals = states[draw[1]] if agent.configurator.task.goal else None
        code = _rows(codes, draw[0])
        if settings:
            code = draw_settings(agent, states, JUDGED, settings, generator)
        setting = setting_of(agent, start, goals, code)
        plan = agent.planner.plan(agent.problem(setting, start), generator=generator)
        finite = plan.energy[plan.energy.isfinite()]
        planned = {"planner_energy": float(finite.mean())} if len(finite) else {}
        return _Yardstick(agent, start, setting, planned)

    @torch.no_grad()
    def measure(self, policy: Policy) -> dict[str, float]:
        """Mean `energy` of the policy's roll-outs, the planner's, and the share that is `lost`.

        Lost is what has a non-finite energy; it is in no mean. Discrete policies act by indices.
        """
        problem = self.agent.problem(self.setting, self.states)
        context = self.setting.context
        rolled = policy.rollout(self.agent.model, self.states, context, problem.horizon)[0]
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
    *,
    codes: Tensor | None = None,
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
        codes: `(N, M)`, what is told of the conditions at each of `states` (`LatentData.codes`),
            where the model is modulated; the policy is told the same. Goals may come from other
            conditions than the start.

    Returns:
        The agent with this policy, still in its own mode.

    Raises:
        ValueError: every plan, or every roll-out of an update, has a non-finite energy; or
            `how.settings` is above 0, and policy or model do not fit that; or the agent plans on
            levels above.
    """
    if agent.hierarchy is not None:
        raise ValueError(
            "the agent plans on levels above (model.levels), and such plans cannot be distilled "
            "yet: distill a run without levels"
        )
    if how.settings:
        _check_settings(agent, policy)
    yardstick = None
    if on_step is not None:
        yardstick = _Yardstick.of(agent, states, codes, how.settings, _apart(generator))
    support = None
    if how.arm == "gradient" and how.support:
        support = Support.of(states, generator)
    told = on_progress or (lambda count: None)
    kept: list[list[Labels]] = []
    for round_ in range(how.rounds):
        starts = _starts(agent, policy, states, codes, how, generator, round_)
        if how.arm == "labels":
            collected: list[Labels] = []
            for start, goal, code in starts:
                before = policy if round_ else None
                collected.append(
                    label(agent, before, start, goal, generator, how.decay, codes=code)
                )
                told(len(start))
            kept = [*(kept if round_ > 1 else []), collected][-how.keep :]
            loss = _imitation(policy, [labels for part in kept for labels in part], how, generator)
        else:
            chosen: list[Start] = []
            for one in starts:
                chosen.append(one)
                told(len(one[0]))
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


def _check_settings(agent: Agent, policy: Policy) -> None:
    """Refuse to distill over settings where the policy cannot be told them.

    Raises:
        ValueError: policy or model do not fit.
    """
    if code_size(agent.model) or agent.configurator.adjust.modulation:
        raise ValueError(
            "distillation.settings is above 0, but the model is modulated or adjust.modulation is "
            "given, and a policy reads one code: choose distillation.settings 0"
        )
    size = setting_size(agent.configurator.task)
    if policy.modulation_dim != size:
        raise ValueError(
            f"the policy's modulation is {policy.modulation_dim}, but a setting of this task has a "
            f"code of {size} numbers: build the policy with modulation={size}"
        )


def _apart(generator: torch.Generator) -> int:
    """A seed for another stream, from that of `generator`, of which nothing is drawn."""
    return (generator.initial_seed() + 1) % 2**63


def _starts(
    agent: Agent,
    policy: Policy,
    states: Tensor,
    codes: Tensor | None,
    how: Distillation,
    generator: torch.Generator,
    round_: int,
) -> Iterator[Start]:
    """Starts and goals `(B, D)`, and codes `(B, M)`, of one round, batch by batch.

    They are drawn from `states` `(N, D)`; after the first round most starts are moved on to where
    the policy goes.
    """
    for first in range(0, how.problems, how.batch):
        count = min(how.batch, how.problems - first)
        draw = torch.randint(len(states), (2, count), generator=generator).to(states.device)
        start = states[draw[0]]
        goal = states[draw[1]] if agent.configurator.task.goal else None
        code = _rows(codes, draw[0])
        if how.settings:
            code = draw_settings(agent, states, count, how.settings, generator)
        if round_:
            moved = _visited(agent, policy, start, goal, code, generator)
            fresh = torch.rand(count, generator=generator).to(states.device) < how.fresh
            start = torch.where(fresh[:, None], start, moved)
        yield start, goal, code


@torch.no_grad()
def _visited(
    agent: Agent,
    policy: Policy,
    states: Tensor,
    goals: Tensor | None,
    codes: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """One state that the policy visits on its way from each of `states` `(B, D)`."""
    context = setting_of(agent, states, goals, codes).context
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
    read = {
        "goal": _joined(labels.goals for labels in collected),
        "modulation": _joined(labels.codes for labels in collected),
    }
    if not len(states):
        raise ValueError("every plan has a non-finite energy: train the world model again")

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        draw = torch.randint(len(states), (how.minibatch,), generator=generator).to(states.device)
        context = {name: rows[draw] for name, rows in read.items() if rows is not None}
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
    chosen: list[Start],
    support: Support | None,
    how: Distillation,
    generator: torch.Generator,
) -> Loss:
    """The mean energy of the policy's roll-outs, and how far they leave the support."""
    starts, *others = zip(*chosen, strict=True)
    states, goals, codes = torch.cat(starts), *(_joined(rows) for rows in others)

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        draw = torch.randint(len(states), (how.batch,), generator=generator).to(states.device)
        energy, path = _finite(agent, policy, states[draw], _rows(goals, draw), _rows(codes, draw))
        imagined = energy.mean()
        if support is None:
            return imagined, {"imagined": imagined}
        beyond = support.penalty(path).mean()
        return imagined + how.support * beyond, {"imagined": imagined, "support": beyond}

    return loss


def _joined(parts: Iterable[Tensor | None]) -> Tensor | None:
    """The rows of all parts, one after the other; None where there are none."""
    held = [part for part in parts if part is not None]
    return torch.cat(held) if held else None


def _rows(held: Tensor | None, index: Tensor) -> Tensor | None:
    return None if held is None else held[index]


def _finite(
    agent: Agent, policy: Policy, states: Tensor, goals: Tensor | None, codes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `imagine`; only roll-outs that stay finite.

    Others are rolled out no more instead of being masked: zero times their infinite derivatives
    would be not a number in every parameter.
    """
    energy, path = imagine(agent, policy, states, goals, codes)
    finite = losing(energy[:, None], path[:, None])[:, 0].isfinite()
    if finite.all():
        return energy, path
    if not finite.any():
        raise ValueError(
            "every roll-out of the policy has a non-finite energy: train the world model again, "
            "or distill with distillation.arm labels"
        )
    return imagine(agent, policy, states[finite], _rows(goals, finite), _rows(codes, finite))


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
