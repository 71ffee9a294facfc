"""The exploitation alarm: what plans imagine of the intrinsic cost, against what then happens.

A planner minimises what the readouts say of predicted states, and so it seeks out the states in
which they err to its favour. Two comparisons per term show it, each between costs in [0, 1]:

- *next*: the cost imagined for the state after the next action, and the cost of the state that the
  action led to. Only steps count whose action was the plan's own.
- *ahead*: the mean cost imagined for the first K steps, and the mean of the next K steps. A plan
  made anew at every step is not carried out to its end; but it promises that such a cost can be
  had, and planning again should do better rather than worse.

    decision       t              t+1            t+2            t+3
    imagined at t  .              I_t[0]         I_t[1]         I_t[2]
    realised       R_t            R_{t+1}        R_{t+2}        R_{t+3}
    next                          R_{t+1} - I_t[0]
    ahead, K = 3                                                mean R_{t+1..t+3} - mean I_t[0..2]

The gap is realised minus imagined: above zero, the world is dearer than was promised. Model and
readouts have a gap without any planner, which `recorded_gaps` measures along recorded actions; the
alarm is for what the optimisation adds to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from forethought.agent.cost import IntrinsicCost
from forethought.agent.cost.terms import parse_quantity
from forethought.worldmodel import JEPA, LatentData, Readouts


@dataclass(frozen=True, eq=False)
class Gap:
    """Imagined and realised cost of n terms, summed over comparisons.

    Args:
        imagined: sum of what was imagined, `(n,)` float64.
        realised: sum of what happened, `(n,)` float64.
        count: comparisons of each term, `(n,)` float64.
    """

    imagined: Tensor
    realised: Tensor
    count: Tensor

    @staticmethod
    def none(terms: int) -> Gap:
        """Nothing compared yet."""
        return Gap(*(torch.zeros(terms, dtype=torch.float64) for _ in range(3)))

    def add(self, imagined: Tensor, realised: Tensor, counts: Tensor | None = None) -> Gap:
        """Add comparisons.

        Args:
            imagined: `(B, n)`.
            realised: `(B, n)`.
            counts: which rows count, `(B,)` bool; by default all. A pair in which either is not
                finite never does.
        """
        known = imagined.isfinite() & realised.isfinite()
        if counts is not None:
            known &= counts[:, None]
        return Gap(
            self.imagined + torch.where(known, imagined, 0).sum(0),
            self.realised + torch.where(known, realised, 0).sum(0),
            self.count + known.sum(0),
        )

    @property
    def mean(self) -> Tensor:
        """Mean of realised minus imagined, `(n,)`; not-a-number where nothing was compared."""
        return (self.realised - self.imagined) / self.count


@dataclass(frozen=True, eq=False)
class Gaps:
    """Both comparisons.

    Args:
        next: of the next step.
        ahead: of the mean over the next K steps.
    """

    next: Gap
    ahead: Gap


@dataclass(frozen=True, eq=False)
class _Plan:
    """A plan that is still being compared.

    Args:
        imagined: cost of its first K steps, `(B, K, n)`.
        realised: sum of what happened since it was made, `(B, n)`.
        alive: rows whose episode has not ended since, `(B,)` bool.
        own: rows in which all actions since were the plan's, `(B,)` bool.
        age: decisions since it was made.
    """

    imagined: Tensor
    realised: Tensor
    alive: Tensor
    own: Tensor
    age: int = 0


@dataclass(frozen=True, eq=False)
class CostMonitor:
    """Compares what plans imagine with what happens, and raises the alarm; see the module.

    A monitor is a value: every method returns a new one. Make the first by `watching`.

    Args:
        names: names of the n terms, in the order of the bank.
        ahead: steps K of the second comparison, at most the planning horizon.
        tolerance: gap above the recorded one from which on there is an alarm, in units of cost,
            where a term goes from 0 to 1.
        samples: comparisons that a term needs before it can raise the alarm.
        baseline: the gaps along recorded actions, from `recorded_gaps`; None counts as zero.
        found: what was compared so far.
        plans: plans that are still being compared, oldest first.

    Raises:
        ValueError: a number is out of range, or the baseline has another number of terms.
    """

    names: tuple[str, ...]
    ahead: int
    tolerance: float
    samples: int
    baseline: Gaps | None
    found: Gaps
    plans: tuple[_Plan, ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("names is (): choose a bank with at least one term")
        if self.ahead < 1:
            raise ValueError(f"ahead is {self.ahead}: choose 1 or more steps")
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance is {self.tolerance}: choose 0 or more, finite")
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}: choose 1 or more")
        if self.baseline is not None and len(self.baseline.next.count) != len(self.names):
            raise ValueError(
                f"baseline has {len(self.baseline.next.count)} terms, but there are "
                f"{len(self.names)}: choose the one of this bank"
            )

    @staticmethod
    def watching(
        names: Sequence[str],
        *,
        ahead: int = 8,
        tolerance: float = 0.1,
        samples: int = 100,
        baseline: Gaps | None = None,
    ) -> CostMonitor:
        """A monitor that was told nothing yet; see `CostMonitor` for the arguments."""
        nothing = Gaps(Gap.none(len(names)), Gap.none(len(names)))
        return CostMonitor(tuple(names), ahead, tolerance, samples, baseline, nothing)

    def observe(
        self,
        realised: Tensor,
        imagined: Tensor | None,
        *,
        begins: Tensor,
        followed: Tensor | None = None,
    ) -> CostMonitor:
        """One decision in B environments. Tell the last state of an episode too, if possible.

        Otherwise the step into a failure, which a model that overlooks failures does not imagine,
        is never compared.

        Args:
            realised: cost of the present state and of the action that led to it, `(B, n)`;
                not-a-number where it is unknown.
            imagined: cost that a plan made now imagines after each of its actions, `(B, H, n)`;
                not-a-number in rows without a plan, None where none was made.
            begins: rows whose episode begins with this state, `(B,)` bool: nothing that was
                imagined before is compared with it.
            followed: rows whose last action was the latest plan's own, `(B,)` bool; by default
                all. Exploration noise makes it another one.

        Raises:
            ValueError: shapes do not fit.
        """
        self._check(realised, imagined, begins, followed)
        realised, begins = realised.detach().cpu().double(), begins.cpu()
        did = ~begins if followed is None else followed.cpu() & ~begins
        found, plans = self.found, []
        for plan in self.plans:
            alive, own = plan.alive & ~begins, plan.own & did
            if plan is not self.plans[-1]:  # another plan's actions are carried out by now
                own = torch.zeros_like(own)
            following = found.next.add(plan.imagined[:, plan.age], realised, own)
            plan = _Plan(plan.imagined, plan.realised + realised, alive, own, plan.age + 1)
            found = replace(found, next=following)
            if plan.age == self.ahead:
                mean = plan.realised / self.ahead
                found = replace(found, ahead=found.ahead.add(plan.imagined.mean(1), mean, alive))
            else:
                plans.append(plan)
        if imagined is not None:
            first = imagined[:, : self.ahead].detach().cpu().double()
            every = torch.ones(len(first), dtype=torch.bool)
            plans.append(_Plan(first, torch.zeros_like(first[:, 0]), every, every))
        return replace(self, found=found, plans=tuple(plans))

    def select(self, index: Tensor) -> CostMonitor:
        """The monitor when only the environments `index` go on; what was compared stays."""
        index = index.cpu()
        plans = [
            _Plan(p.imagined[index], p.realised[index], p.alive[index], p.own[index], p.age)
            for p in self.plans
        ]
        return replace(self, plans=tuple(plans))

    @property
    def alarms(self) -> tuple[tuple[str, str], ...]:
        """Terms that raise the alarm, `next` or `ahead` and name, the largest excess first."""
        raised = []
        for kind, gap, excess in self._excesses():
            enough = gap.count >= self.samples
            for index, name in enumerate(self.names):
                if bool(enough[index]) and float(excess[index]) > self.tolerance:
                    raised.append((float(excess[index]), kind, name))
        return tuple((kind, name) for _, kind, name in sorted(raised, key=lambda r: -r[0]))

    def summary(self) -> dict[str, float]:
        """Means per term for the log, and `cost_alarms`, how many alarms there are.

        Names are `imagined_TERM`, `realised_TERM`, `gap_TERM` and, with a baseline,
        `recorded_gap_TERM`; those of the second comparison end in `_ahead`. What was never
        compared is left out.
        """
        found = {}
        for kind, gap, _ in self._excesses():
            end = "" if kind == "next" else "_ahead"
            for index, name in enumerate(self.names):
                if not gap.count[index]:
                    continue
                found[f"imagined_{name}{end}"] = float(gap.imagined[index] / gap.count[index])
                found[f"realised_{name}{end}"] = float(gap.realised[index] / gap.count[index])
                found[f"gap_{name}{end}"] = float(gap.mean[index])
                if self.baseline is not None:
                    found[f"recorded_gap_{name}{end}"] = float(self._recorded(kind)[index])
        return found | {"cost_alarms": float(len(self.alarms))}

    def sentence(self) -> str | None:
        """What the worst alarm says, in one sentence with a remedy; None without an alarm."""
        if not self.alarms:
            return None
        kind, name = self.alarms[0]
        index, gap = self.names.index(name), getattr(self.found, kind)
        count = float(gap.count[index])
        imagined, realised = float(gap.imagined[index] / count), float(gap.realised[index] / count)
        recorded = (
            "no gap along recorded actions was measured"
            if self.baseline is None
            else f"recorded actions leave a gap of {float(self._recorded(kind)[index]):.2f}"
        )
        when = "the next step" if kind == "next" else f"the next {self.ahead} steps"
        return (
            f"the planner exploits the model in cost term {name!r}: for {when} its plans imagine "
            f"{imagined:.2f} and {realised:.2f} is what follows, a gap of "
            f"{realised - imagined:.2f} in {count:.0f} comparisons, where {recorded}: collect "
            "more data with the planner (--rounds), or train the predictor with "
            "stages.predictor.perturbation"
        )

    def _recorded(self, kind: str) -> Tensor:
        """Mean gaps along recorded actions, `(n,)`; zero where there are none."""
        if self.baseline is None:
            return torch.zeros(len(self.names), dtype=torch.float64)
        gap: Gap = getattr(self.baseline, kind)
        return gap.mean.nan_to_num(0.0)

    def _excesses(self) -> tuple[tuple[str, Gap, Tensor], ...]:
        """Kind, gap, and the mean gap above the recorded one `(n,)`, for both comparisons."""
        kinds = (("next", self.found.next), ("ahead", self.found.ahead))
        return tuple((kind, gap, gap.mean - self._recorded(kind)) for kind, gap in kinds)

    def _check(
        self, realised: Tensor, imagined: Tensor | None, begins: Tensor, followed: Tensor | None
    ) -> None:
        terms = len(self.names)
        rows = len(self.plans[-1].alive) if self.plans else len(realised)
        if realised.shape != (rows, terms):
            raise ValueError(
                f"realised has shape {tuple(realised.shape)}, but ({rows}, {terms}) is watched: "
                "choose one row for each environment and one column for each term, and call "
                "`select` when environments leave"
            )
        for name, mask in (("begins", begins), ("followed", followed)):
            if mask is not None and (mask.shape != (rows,) or mask.dtype != torch.bool):
                raise ValueError(
                    f"{name} has shape {tuple(mask.shape)} and type {mask.dtype}: choose a bool "
                    f"for each of {rows} rows"
                )
        if imagined is None:
            return
        if imagined.dim() != 3 or (imagined.shape[0], imagined.shape[2]) != (rows, terms):
            raise ValueError(
                f"imagined has shape {tuple(imagined.shape)}: choose ({rows}, H, {terms}), the "
                "terms after each action of the plans"
            )
        if imagined.shape[1] < self.ahead:
            raise ValueError(
                f"ahead is {self.ahead}, but the plans have {imagined.shape[1]} steps: choose "
                "ahead at most the planning horizon"
            )


@torch.no_grad()
def imagined_terms(
    bank: IntrinsicCost, readouts: Readouts | None, states: Tensor, actions: Tensor
) -> Tensor:
    """Cost terms of predicted states, `(B, H, n)`, without gradient.

    Args:
        bank: the intrinsic cost.
        readouts: what the terms read; None where they read the state or the action alone.
        states: predicted states after each action, `(B, H, D)`, such as `Plan.states`.
        actions: `(B, H, A)`, or `(B, H)` where they are discrete.
    """
    told = {} if readouts is None else readouts(states)
    return bank.values({"state": states} | told, actions)


@torch.no_grad()
def realised_terms(bank: IntrinsicCost, quantities: Mapping[str, Tensor], action: Tensor) -> Tensor:
    """Cost terms of what happened, `(..., n)`, from quantities that the environment tells.

    Args:
        bank: the intrinsic cost.
        quantities: of the states after the actions, `(..., m)`; `state` is the encoded observation.
            A term that reads what is not among them is not-a-number.
        action: actions that led there, `(..., A)`, or `(...)` where they are discrete.
    """
    lead = action.shape[:-1] if action.is_floating_point() else action.shape
    columns = []
    for weighted in bank.terms:
        told = all(parse_quantity(name)[0] in quantities for name in weighted.term.reads)
        if told:
            columns.append(IntrinsicCost((weighted,)).values(quantities, action)[..., 0])
        else:
            columns.append(torch.full(lead, math.nan, device=action.device))
    return torch.stack(columns, dim=-1)


@torch.no_grad()
def recorded_gaps(
    model: JEPA,
    bank: IntrinsicCost,
    readouts: Readouts | None,
    data: LatentData,
    quantities: Mapping[str, Tensor],
    generator: torch.Generator,
    *,
    ahead: int = 8,
    windows: int = 1000,
) -> Gaps:
    """The gaps that model and readouts have along recorded actions, which nobody optimised.

    Args:
        model: the world model.
        bank: the intrinsic cost.
        readouts: what the terms read, or None.
        data: cached latents.
        quantities: named values in the order of `data`, `(N, m)` each.
        generator: source of the windows.
        ahead: steps K of the second comparison; shortened to the longest episode.
        windows: windows that are compared.

    Raises:
        ValueError: `ahead` or `windows` is below 1.
    """
    for name, value in (("ahead", ahead), ("windows", windows)):
        if value < 1:
            raise ValueError(f"{name} is {value}: choose 1 or more")
    length = min(ahead, int(data.remaining.max()))
    starts = data.draw(data.starts(length), windows, generator)
    states, actions = data.windows(starts, length)
    after = starts[:, None] + torch.arange(1, length + 1, device=starts.device)
    told = {"state": states[:, 1:]} | {name: values[after] for name, values in quantities.items()}
    predicted = model.rollout(states[:, 0], actions, context=data.context(starts))
    imagined = imagined_terms(bank, readouts, predicted, actions).cpu().double()
    realised = realised_terms(bank, told, actions).cpu().double()
    none = Gap.none(len(bank.terms))
    return Gaps(
        next=none.add(imagined[:, 0], realised[:, 0]),
        ahead=none.add(imagined.mean(1), realised.mean(1)),
    )


def planning_gain(
    names: Sequence[str],
    imagined: tuple[Tensor, Tensor],
    realised: tuple[Tensor, Tensor],
) -> dict[str, float]:
    """How much the imagined cost fell while plans were optimised, and how much of it was real.

    The starts (the policy's roll-out, or noise) and the plans made of them are both rolled out in
    the model, and both carried out in a simulator from the same states. A share near 1 is honest
    planning; near 0, or below it, the optimisation found errors of the model.

    Args:
        names: names of the n terms.
        imagined: cost of the starts and of the plans in the model, `(B, H, n)` each.
        realised: cost of the same actions in the simulator, `(B, H, n)` each.

    Returns:
        `imagined_gain_TERM` and `realised_gain_TERM`, mean falls of the cost per step, over the
        problems in which all four are finite; and `realised_share_TERM`, their ratio, where the
        imagined cost fell by more than 0.001.

    Raises:
        ValueError: the four have not the same shape with n terms.
    """
    given = (*imagined, *realised)
    shapes = [tuple(part.shape) for part in given]
    if len(set(shapes)) > 1 or len(shapes[0]) != 3 or shapes[0][2] != len(names):
        raise ValueError(
            f"costs have shapes {shapes}: choose four of one shape (B, H, {len(names)})"
        )
    before, after, real_before, real_after = (part.cpu().double().mean(1) for part in given)
    fell, real = before - after, real_before - real_after
    found = {}
    for index, name in enumerate(names):
        known = fell[:, index].isfinite() & real[:, index].isfinite()
        if not bool(known.any()):
            continue
        expected = float(fell[known, index].mean())
        happened = float(real[known, index].mean())
        found[f"imagined_gain_{name}"], found[f"realised_gain_{name}"] = expected, happened
        if expected > 1e-3:
            found[f"realised_share_{name}"] = happened / expected
    return found
