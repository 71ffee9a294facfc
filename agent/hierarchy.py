"""Planning from the top down (LeCun 2022, fig. 16): what an upper level wants is the cost below.

The top level minimises the distance to the goal over macro-actions. Where its first step leads is
the subgoal of the level below, which plans towards it at its own pace, and so on down to actions.
Each level's plan solves an ordinary `Problem`, by any planner.

A level above plans again when its last plan is old enough, whatever goes on below. Where the first
step of its plan already is the closest approach to the goal, the level below heads for the goal
itself: a subgoal is only as exact as the space that it lies in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from forethought.agent.cost import GoalDistance, GoalTerm, TemporalCost
from forethought.planners import Deadline, Planner, Problem, evaluate, losing, project, shift
from forethought.planners.descent import Descent
from forethought.worldmodel.hierarchy import Level, lifted

Condition = Literal["state", "macro"]


@dataclass(frozen=True)
class TopDown:
    """How levels above the world model plan, and what they ask of the one below.

    Args:
        horizon: own steps that each level above looks ahead, from the lowest on; the last one holds
            for all levels further up.
        replan: own steps after which a level plans again, at most 1: before its subgoal is due.
        condition: what the level below minimises: "state", the distance of its re-encoded states
            from the subgoal (H-JEPA, 2610.06805); "macro", the distance of the macro-action that
            these states tell from the one planned, C(s, a) of figure 16.
        reduction: how the distance to the goal is reduced over the steps of a level above.
        softmin_temperature: temperature of the reduction "softmin".
        support: weight of a cost for states that are far from all known ones.
        scale: mean squared distance from the known ones at which that cost is half its weight.
        leaps: weight of a cost for steps of the top level that are longer than one by its own
            TC(s, s') (`TemporalDistance.excess`): the level's model takes ways that there are not.
        refine: steps of Adam on the plans of all levels together, once each has been made: what a
            level below can do then moves what is wanted of it. Of the sum of all energies the
            plans keep the lowest, for each environment; 0 leaves plans as they were made, and mode
            `auto` always does.
        refine_rate: rate of these steps.
        planner: of the levels above; None is the agent's own.
    """

    horizon: tuple[int, ...] = (8,)
    replan: float = 0.5
    condition: Condition = "state"
    reduction: Literal["sum", "softmin", "last"] = "sum"
    softmin_temperature: float = 1.0
    support: float = 0.0
    scale: float = 0.1
    leaps: float = 0.0
    refine: int = 0
    refine_rate: float = 0.05
    planner: Planner | None = None

    def __post_init__(self) -> None:
        if not self.horizon or min(self.horizon) < 1:
            raise ValueError(f"top_down.horizon is {self.horizon}: choose 1 or more for each level")
        if not 0 < self.replan <= 1:
            raise ValueError(f"top_down.replan is {self.replan}: choose it in (0, 1]")
        if self.condition not in get_args(Condition):
            raise ValueError(
                f"top_down.condition is {self.condition!r}: use one of {get_args(Condition)}"
            )
        if self.reduction not in ("sum", "softmin", "last"):
            raise ValueError(
                f"top_down.reduction is {self.reduction!r}: use one of sum, softmin, last"
            )
        if not 0 < self.softmin_temperature < float("inf"):
            raise ValueError(
                f"top_down.softmin_temperature is {self.softmin_temperature}: choose it above 0, "
                "finite"
            )
        for name in ("support", "leaps"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"top_down.{name} is {getattr(self, name)}: choose 0 or more, finite"
                )
        if self.refine < 0:
            raise ValueError(f"top_down.refine is {self.refine}: choose 0 or more")
        for name in ("scale", "refine_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(
                    f"top_down.{name} is {getattr(self, name)}: choose it above 0, finite"
                )

    def check(self, *, discrete: bool, temporal: bool) -> None:
        """Refuse what does not fit the world model or the cost.

        Args:
            discrete: whether the world model's actions are indices.
            temporal: whether TC(s, g) tells how far the goal is.

        Raises:
            ValueError: the field, its value, and what to choose.
        """
        if self.refine and discrete:
            raise ValueError(
                f"top_down.refine is {self.refine}, but indices of actions have no slope: choose 0"
            )
        if self.leaps and not temporal:
            raise ValueError(
                f"top_down.leaps is {self.leaps}, which reads TC(s, g): choose cost.goal temporal, "
                "or 0"
            )


@dataclass(frozen=True, eq=False)
class Intention:
    """What one level above wants, for B environments.

    Args:
        made: decision at which it was planned.
        state: state that it was planned from, `(B, D)`.
        plan: macro-actions, `(B, H, M)`.
        imagined: states that it predicts, `(B, H, D)`; the first one is the subgoal.
        near: whether the level below shall head for the goal itself, `(B,)` bool.
    """

    made: int
    state: Tensor
    plan: Tensor
    imagined: Tensor
    near: Tensor

    def select(self, index: Tensor) -> Intention:
        """The rows `index`."""
        parts = ("state", "plan", "imagined", "near")
        return replace(self, **{name: getattr(self, name)[index] for name in parts})


@dataclass(frozen=True, eq=False)
class Intentions:
    """What all levels above want, from the lowest on."""

    levels: tuple[Intention, ...]

    def select(self, index: Tensor) -> Intentions:
        """The rows `index`."""
        return Intentions(tuple(level.select(index) for level in self.levels))


@dataclass(frozen=True)
class Hierarchy:
    """Levels above a world model, and how they plan.

    Args:
        levels: from the lowest on.
        planner: what they plan with.
        top_down: how they plan; its planner is not looked at.
        top: how far a state of the top level is from the goal there.
    """

    levels: tuple[Level, ...]
    planner: Planner
    top_down: TopDown = TopDown()
    top: GoalTerm = GoalDistance()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("levels is empty: choose one or more, or no hierarchy")
        self.top_down.check(
            discrete=self.levels[0].discrete, temporal=isinstance(self.top, TemporalCost)
        )

    def direct(
        self,
        belief: Tensor,
        goal: Tensor,
        before: Intentions | None,
        *,
        time: int,
        generator: torch.Generator,
        deadline: Deadline | None = None,
    ) -> Intentions:
        """Plan on every level above whose plan is old, from the top down.

        Args:
            belief: states of the world model, `(B, D)`.
            goal: where to, `(B, D)`.
            before: what was wanted so far, or None at the start.
            time: decisions since the start.
            generator: source of the planners' randomness.
            deadline: when to stop; every level that plans gets an equal part of what is left, and
                the world model one more. The first iteration on each level always runs.
        """
        states, goals = lifted(self.levels, belief), lifted(self.levels, goal)
        wanted: Intention | None = None  # of the level above
        found: list[Intention] = []
        for place in reversed(range(len(self.levels))):
            last = None if before is None else before.levels[place]
            if last is None or time - last.made >= self._pace(place):
                problem = self._problem(place, states[place + 1], goals[place + 1], wanted)
                until = None if deadline is None else deadline.part(place + 2)
                wanted = self._intend(place, problem, last, wanted, time, generator, until)
            else:
                wanted = last
            found.append(wanted)
        return Intentions(tuple(reversed(found)))

    def towards(self, problem: Problem, wanted: Intentions) -> Problem:
        """The world model's own problem, whose goal term is what the lowest level above wants."""
        return _conditioned(problem, self.levels[0], wanted.levels[0], self.top_down.condition)

    def refine(
        self,
        problem: Problem,
        actions: Tensor,
        wanted: Intentions,
        *,
        time: int,
        deadline: Deadline | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Intentions]:
        """Refine the plans of all levels together: projected steps of Adam on their energies' sum.

        Levels that did not plan in this decision stay as they are; who counts as near stays so.

        Args:
            problem: the world model's own, with the goal in its context; B environments.
            actions: its plan, `(B, H, A)`.
            wanted: what the levels above want.
            time: decisions since the start.
            deadline: when to stop.

        Returns:
            Actions `(B, H, A)`, their energy towards what is now wanted `(B,)`, the states that
            they lead to `(B, H, D)`, and what is now wanted.
        """
        assert isinstance(problem.state, Tensor)
        fresh = [place for place, level in enumerate(wanted.levels) if level.made == time]
        states = lifted(self.levels, problem.state)
        goals = lifted(self.levels, problem.context["goal"])

        def joint(plans: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor, Intentions]]:
            above: Intention | None = None
            total, found = plans[0].new_zeros(len(plans[0])), list(wanted.levels)
            for place in reversed(range(len(self.levels))):
                if place in fresh:
                    macros = plans[1 + fresh.index(place)]
                    own = self._problem(place, states[place + 1], goals[place + 1], above)
                    energy, imagined = evaluate(own, macros[:, None])
                    assert isinstance(imagined, Tensor)
                    total = total + energy[:, 0]
                    found[place] = replace(found[place], plan=macros, imagined=imagined[:, 0])
                above = found[place]
            then = Intentions(tuple(found))
            energy, imagined = evaluate(self.towards(problem, then), plans[0][:, None])
            assert isinstance(imagined, Tensor)
            return total + energy[:, 0], (energy[:, 0], imagined[:, 0], then)

        bounds = [problem, *(self._problem(p, states[p + 1], goals[p + 1], None) for p in fresh)]
        plans = [actions, *(wanted.levels[place].plan for place in fresh)]
        descents = [Descent() for _ in plans]
        best, lowest = plans, torch.full_like(plans[0][:, 0, 0], torch.inf)
        for step in range(self.top_down.refine + 1):
            leaves = [plan.detach().requires_grad_() for plan in plans]
            with torch.enable_grad():
                energy = joint(leaves)[0]
                total = energy.sum()
            found = losing(energy[:, None])[:, 0]
            lower = found < lowest
            lowest = torch.where(lower, found, lowest)
            best = [
                torch.where(lower[:, None, None], plan, old)
                for plan, old in zip(plans, best, strict=True)
            ]
            if step == self.top_down.refine or (deadline is not None and deadline.passed()):
                break
            slopes = torch.autograd.grad(total, leaves)
            rate = self.top_down.refine_rate
            plans = [
                project(own, plan - rate * descent.step(slope.nan_to_num(0.0, 0.0, 0.0)))
                for own, plan, descent, slope in zip(bounds, plans, descents, slopes, strict=True)
            ]
        with torch.no_grad():
            return best[0], *joint(best)[1]

    def _pace(self, place: int) -> int:
        """Decisions between two plans of a level."""
        step = 1
        for level in self.levels[: place + 1]:
            step *= level.shape.stride
        return max(1, int(self.top_down.replan * step))

    def _problem(
        self, place: int, state: Tensor, goal: Tensor, wanted: Intention | None
    ) -> Problem:
        """The planning problem of a level, in its own states and macro-actions."""
        level, top_down = self.levels[place], self.top_down
        reach = float(level.reach)
        bound = state.new_full((level.shape.macro_dim,), reach)

        top = self.top if wanted is None and top_down.leaps else None

        def doubtful(
            state: Tensor, action: Tensor, after: Tensor, context: Mapping[str, Tensor], t: Tensor
        ) -> Tensor:
            cost = after.new_zeros(after.shape[:-1])
            if top_down.support:
                far = level.strange(after)
                cost = cost + top_down.support * far / (far + top_down.scale)
            if isinstance(top, TemporalCost):
                cost = cost + top_down.leaps * top.module.excess(state, after)
            return cost

        problem = Problem(
            state=state,
            step=lambda s, m, z, context, t: level.model.predict(s, m),
            rollout=lambda s, m, z, context: level.model.rollout(s, m),
            goal_cost=self.top if wanted is None else GoalDistance(),
            stage_cost=doubtful if top_down.support or top is not None else None,
            reduction=top_down.reduction,
            softmin_temperature=top_down.softmin_temperature,
            horizon=top_down.horizon[min(place, len(top_down.horizon) - 1)],
            low=-bound,
            high=bound,
            max_norm=reach,
            context={"goal": goal},
        )
        if wanted is None:
            return problem
        return _conditioned(problem, self.levels[place + 1], wanted, top_down.condition)

    def _intend(
        self,
        place: int,
        problem: Problem,
        last: Intention | None,
        above: Intention | None,
        time: int,
        generator: torch.Generator,
        deadline: Deadline | None,
    ) -> Intention:
        """Plan on one level; the last plan, as it was and a step further, is among the starts."""
        proposals = None
        if last is not None:
            both = [last.plan, shift(last.plan)]
            room = self.planner.room
            proposals = torch.stack(both if room is None else both[:room], 1)
        plan = self.planner.plan(
            problem, proposals=proposals, generator=generator, deadline=deadline
        )
        assert isinstance(plan.states, Tensor)
        assert isinstance(problem.state, Tensor)
        # Closest to the goal: now or after the first step?
        term = self.top if above is None else GoalDistance()
        whole = torch.cat((problem.state[:, None], plan.states), 1)[:, None]  # (B, 1, 1 + H, D)
        goal = {"goal": problem.context["goal"][:, None, None]}
        times = torch.arange(whole.shape[2], device=whole.device)
        far = term(whole, plan.actions[:, None], whole, goal, times)[:, 0]
        near = far.argmin(1) <= 1
        near = near if above is None else near & above.near
        return Intention(time, problem.state, plan.actions, plan.states, near)


def _conditioned(
    problem: Problem, level: Level, wanted: Intention, condition: Condition
) -> Problem:
    """The problem of the level below `level`, with what that wants as its goal term.

    Rows that are near the goal keep their own goal term.
    """
    own: Any = problem.goal_cost
    any_near = bool(wanted.near.any())
    context = dict(problem.context)
    context |= {"subgoal": wanted.imagined[:, 0], "near": wanted.near}
    context |= {"macro": wanted.plan[:, 0], "from": wanted.state}

    def cost(
        state: Tensor, action: Tensor, after: Tensor, context: Mapping[str, Tensor], t: Tensor
    ) -> Tensor:
        reached = level.encode(after)  # (B, S, H, D)
        if condition == "state":
            missed = reached - context["subgoal"]
        else:
            missed = level.told(context["from"].expand_as(reached), reached) - context["macro"]
        far = missed.square().mean(-1)
        if not any_near:
            return far
        here: Tensor = own(state, action, after, context, t)
        return torch.where(context["near"], here, far)

    return replace(problem, goal_cost=cost, context=context)
