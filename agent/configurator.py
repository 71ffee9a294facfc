"""The configurator: turns a task into a `Setting` for the other modules (section 3.1).

task, adjustment                 -> weights u, v within the bank's bounds, aims, modulation
goals on the way, belief         -> the goal of now, switched where the critic says it is near
signals of the other modules     -> who acts: Mode-1, Mode-2, or whoever is worth it
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor

from forethought.agent.task import Task
from forethought.agent.thinking import Thinking

Mode = Literal[1, 2, "auto"]


@dataclass(frozen=True)
class Cost:
    """How energies are summed up over a plan.

    Args:
        reduction: how the goal distance is reduced over the plan: `sum` over all steps, `softmin`
            for the closest approach, `last` for the last step only.
        softmin_temperature: temperature of `softmin`, in the unit of the goal distance.
        goal: how far a state is from the goal: `latent`, the mean squared distance of states, or
            `temporal`, what the critic TC(s, g) expects, where it was trained.
        horizon: planning steps H.
        discount: gamma per second of the environment's time, in (0, 1].
        critic: weight v of the critic's estimate of what comes after the plan.
        doubt: weight of the predictor's doubt, a term in (0, 1) of every step that keeps plans
            where the model is sure; needs a predictor that tells it.
        replan_every: actions of a plan that are carried out before the next plan is made, between
            1 and the horizon.
        seconds: time after which a plan's search begins no further iteration, in seconds of the
            agent's clock; the best plan found by then counts. None: the planner's own iterations,
            however long they take.
    """

    reduction: Literal["sum", "softmin", "last"] = "sum"
    softmin_temperature: float = 0.1
    goal: Literal["latent", "temporal"] = "latent"
    horizon: int = 16
    discount: float = 0.8
    critic: float = 1.0
    doubt: float = 0.0
    replan_every: int = 1
    seconds: float | None = None

    def per_decision(self, seconds: float) -> float:
        """Gamma per decision, where `seconds` pass between two decisions."""
        return float(self.discount**seconds)

    def __post_init__(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"cost.horizon is {self.horizon}: plan at least 1 step")
        if not self.softmin_temperature > 0:
            raise ValueError(
                f"cost.softmin_temperature is {self.softmin_temperature}: choose it above 0"
            )
        if not 0 < self.discount <= 1:
            raise ValueError(f"cost.discount is {self.discount}: choose it in (0, 1]")
        for name in ("critic", "doubt"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"cost.{name} is {getattr(self, name)}: choose 0 or more, finite")
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise ValueError(
                f"cost.seconds is {self.seconds}: choose it above 0, finite, or none at all"
            )
        if not 1 <= self.replan_every <= self.horizon:
            raise ValueError(
                f"cost.replan_every is {self.replan_every}: choose it between 1 and the horizon "
                f"{self.horizon}"
            )


@dataclass(frozen=True)
class Adjustment:
    """What a setting takes otherwise than the task says, without any training.

    Args:
        weights: weights u of intrinsic terms by name, within the bank's bounds.
        aims: arguments of the task's aims by name; a single number counts for all components.
        aim_weights: weights of aims by name. An aim that is given an argument counts 1 unless it
            is named here.
        modulation: code that modulates perception, predictor and policy, of the size that they
            were built with.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    aims: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    aim_weights: Mapping[str, float] = field(default_factory=dict)
    modulation: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("weights", "aims", "aim_weights"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        for name, weight in self.aim_weights.items():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"adjust.aim_weights.{name} is {weight}: choose 0 or more, finite")
        for name, at in self.aims.items():
            if not len(at) or not all(math.isfinite(x) for x in at):
                raise ValueError(f"adjust.aims.{name} is {at}: give at least one finite number")
        if not all(math.isfinite(x) for x in self.modulation):
            raise ValueError(f"adjust.modulation is {self.modulation}: choose finite numbers")


@dataclass(frozen=True)
class Setting:
    """How the modules are set for the task at hand.

    Args:
        u: weights of the intrinsic terms, `(B, n)`.
        v: weights of the critic's terms, `(B, n)`.
        goal: goal states of now, `(B, D)`, or None where the task has no goal.
        cost: reduction over time, horizon, discount, and how often a plan is made.
        discount: gamma per decision.
        mode: 1 acts by the policy, 2 plans, `auto` decides anew each time.
        thinking: when `auto` plans.
        aims: arguments of the task's aims by name, `(B, m)` each.
        aim_weights: weights of the aims in their order, `(B, number of aims)`.
        modulation: code that modulates perception, predictor and policy, `(B, M)`, or None.
        route: goals on the way, `(B, N, D)`, the last one being the goal itself; or None.
    """

    u: Tensor
    v: Tensor
    goal: Tensor | None
    cost: Cost
    discount: float = 1.0
    mode: Mode = 2
    thinking: Thinking = Thinking()  # noqa: RUF009 - frozen
    aims: Mapping[str, Tensor] = field(default_factory=dict)
    aim_weights: Tensor | None = None
    modulation: Tensor | None = None
    route: Tensor | None = None

    @property
    def context(self) -> dict[str, Tensor]:
        """The tensors that costs, policy and modulated modules read."""
        given = {"goal": self.goal, "aim_weights": self.aim_weights, "modulation": self.modulation}
        context = {"u": self.u, "v": self.v}
        context |= {f"aim.{name}": at for name, at in self.aims.items()}
        return context | {name: x for name, x in given.items() if x is not None}

    def at_leg(self, leg: Tensor) -> Setting:
        """With the goals number `leg` `(B,)` int64 of the route, where there is one."""
        if self.route is None:
            return self
        return replace(self, goal=self.route[torch.arange(len(leg), device=leg.device), leg])

    def select(self, index: Tensor) -> Setting:
        """The setting of the problems `index`."""
        rows = {
            name: x[index]
            for name in ("u", "v", "goal", "aim_weights", "modulation", "route")
            if (x := getattr(self, name)) is not None
        }
        return replace(self, **rows, aims={name: at[index] for name, at in self.aims.items()})


@dataclass(frozen=True)
class Configurator:
    """Makes settings for one kind of task.

    Args:
        cost: how energies are summed up.
        task: what is minimised; the weights are checked against the bank's bounds.
        decision_seconds: time between two decisions, in seconds.
        mode: 1 acts by the policy, 2 plans, `auto` decides anew each time.
        adjust: what is wanted otherwise than the task says.
        thinking: when `auto` plans.
        near: distance, in the unit of the agent's goal term, below which the next goal on the way
            takes over.
    """

    cost: Cost
    task: Task
    decision_seconds: float = 1.0
    mode: Mode = 2
    adjust: Adjustment = Adjustment()
    thinking: Thinking = Thinking()  # noqa: RUF009 - frozen
    near: float = 0.05

    def __post_init__(self) -> None:
        unknown = set(self.adjust.aims) | set(self.adjust.aim_weights)
        unknown -= set(self.task.aims)
        if unknown:
            raise ValueError(
                f"adjust.aims names {sorted(unknown)}, but the task has "
                f"{list(self.task.aims) or 'no aims'}"
            )
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode is {self.mode!r}: choose 1, 2 or 'auto'")
        if not 0 <= self.near < math.inf:
            raise ValueError(f"near is {self.near}: choose 0 or more, finite")
        _ = self.weights  # refuses what is out of bounds

    @property
    def discount(self) -> float:
        """Gamma per decision."""
        return self.cost.per_decision(self.decision_seconds)

    @property
    def weights(self) -> Tensor:
        """Weights u of the intrinsic terms, `(n,)`: the task's, as they are adjusted."""
        return self.task.bank.weights({**self.task.weights, **self.adjust.weights})

    def configure(
        self, goal: Tensor | Sequence[Tensor] | None, batch: int, device: torch.device
    ) -> Setting:
        """The setting of B problems.

        Args:
            goal: goal states `(B, D)` where the task has a goal; or several, to be passed in
                their order.
            batch: number of problems B.
            device: where the tensors shall be.

        Raises:
            ValueError: a goal is missing, or given and not wanted.
        """
        if (goal is not None) != self.task.goal:
            raise ValueError(
                "the task needs a goal and the environment gives none: choose another task"
                if self.task.goal
                else "a goal was given, but the task has none: choose the task `reach`"
            )
        route = None
        if goal is not None and not isinstance(goal, Tensor):
            route = torch.stack(tuple(goal), 1)
            goal = route[:, 0]
        u = self.weights.to(device).expand(batch, -1)
        aims, aim_weights = self._aims(batch, device)
        return Setting(
            u=u,
            v=self.cost.critic * u,
            goal=goal,
            cost=self.cost,
            discount=self.discount,
            mode=self.mode,
            thinking=self.thinking,
            aims=aims,
            aim_weights=aim_weights,
            modulation=self.modulation(batch, device),
            route=route,
        )

    def modulation(self, batch: int, device: torch.device) -> Tensor | None:
        """The code that modulates the modules, `(B, M)`, or None."""
        code = self.adjust.modulation
        return torch.tensor(code, device=device).float().expand(batch, -1) if code else None

    def _aims(self, batch: int, device: torch.device) -> tuple[dict[str, Tensor], Tensor | None]:
        """Arguments `(B, m)` of the aims that count, and their weights `(B, number of them)`."""
        aims, weights = dict[str, Tensor](), list[float]()
        for name, aim in self.task.aims.items():
            given = self.adjust.aims.get(name)
            weight = self.adjust.aim_weights.get(name, aim.weight if given is None else 1.0)
            if weight:
                at = torch.tensor(aim.at if given is None else given, device=device)
                aims[name] = at.float().expand(batch, -1)
                weights.append(weight)
        return aims, torch.tensor(weights, device=device).expand(batch, -1) if aims else None

    def advance(self, setting: Setting, leg: Tensor, distance: Tensor) -> tuple[Setting, Tensor]:
        """Switch to the next goal on the way where the present one is near.

        Args:
            setting: with a route `(B, N, D)`.
            leg: number of the present goal, `(B,)` int64.
            distance: to the present goal, `(B,)`, in the unit of the goal term or of the critic
                TC(s, g).

        Returns:
            The setting with the goals of now, and their numbers.
        """
        route = setting.route
        if route is None:
            return setting, leg
        leg = (leg + (distance < self.near)).clamp(max=route.shape[1] - 1)
        return setting.at_leg(leg), leg
