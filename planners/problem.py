"""What a planner is given (`Problem`), what it returns (`Plan`), and what it is (`Planner`).

Unusual here: the functions of a problem are static and everything that changes between decisions
(goals, weights, conditioning) travels as tensors in `context`; costs are called once per
evaluation with all time steps, not once per step; and there is no network in sight.

Axes: `B` problems, `S` candidates or starts, `H` planning steps, `A` action, `Z` latent variable,
`N = B * S` flattened, problem-major; `n` discrete actions.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from forethought.planners.deadline import Deadline
from forethought.planners.state import State, expand, flatten, leaves, select

__all__ = [
    "Context",
    "Plan",
    "Planner",
    "Problem",
    "Reduction",
    "State",
    "Status",
    "expand",
    "flatten",
    "select",
]

Context: TypeAlias = Mapping[str, Tensor]
Reduction: TypeAlias = Literal["sum", "softmin", "last"]

# States are `Any` in these signatures so that a function annotated with the one kind of state that
# it accepts (a tensor, say) is a valid argument for a type checker.
Step: TypeAlias = Callable[[Any, Tensor, Tensor | None, Context, int], Any]
Rollout: TypeAlias = Callable[[Any, Tensor, Tensor | None, Context], Any]
Cost: TypeAlias = Callable[[Any, Tensor, Any, Context, Tensor], Tensor]
TerminalCost: TypeAlias = Callable[[Any, Context], Tensor]
LatentEnergy: TypeAlias = Callable[[Any, Tensor, Context, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """B planning problems, solved side by side: find actions that minimise an energy.

    The energy of a sequence of actions is (LeCun 2022, figure 4 and section 3.1.4)

        sum_t discount^t (stage_cost_t + latent_energy_t) + reduce_t(goal_cost_t)
            + discount^H terminal_cost(state_H),     t = 0 .. H-1.

    Every function must treat rows of the leading axes apart: a candidate's energy may depend on
    nothing but its own problem, actions and latents.

    Discrete actions are indices 0 .. n-1, without the axis `A` below: `step` gets int64 `(N,)`,
    `rollout` `(N, H)`, the costs `(B, S, H)`. `Gradient` also asks with probabilities: of
    `float_dtype`, with the axis n in the place of `A`, summing to 1 over it. An index must mean the
    same as its one-hot probabilities; the type tells which it is:

        if not action.is_floating_point():
            action = torch.nn.functional.one_hot(action, n).to(state)

    Attributes:
        state: Start state, a tensor or a nested mapping of tensors `(B, ...)`.
        step: `step(state, action, latent, context, t) -> next_state` on `(N, ...)`, `(N, A)`,
            `(N, Z)` or None, context tensors `(N, ...)` and an int `t`.
        horizon: H, the number of planning steps.
        low: Lower bounds of the actions `(A,)`, finite.
        high: Upper bounds of the actions `(A,)`, finite, above `low`.
        max_norm: Largest Euclidean norm of each action `(A,)`, besides the bounds, which must then
            contain zero: the length of a step, the force of a thruster that turns.
        actions: n, the number of discrete actions, instead of `low` and `high`.
        stage_cost: `stage_cost(state, action, next_state, context, t) -> (B, S, H)`, called once
            with all times: states `(B, S, H, ...)`, actions `(B, S, H, A)`, context tensors viewed
            as `(B, 1, 1, ...)`, and `t` the int64 tensor 0 .. H-1 `(H,)`.
        goal_cost: As `stage_cost`, but reduced over time by `reduction`, so that a reduction other
            than the sum never hides the effort of earlier steps.
        terminal_cost: `terminal_cost(state, context) -> (B, S)` of the last predicted state
            `(B, S, ...)`, context tensors viewed as `(B, 1, ...)`.
        reduction: How `goal_cost` d_t becomes one number. "sum": sum_t discount^t d_t; "last":
            d_{H-1}; "softmin": -T log mean_t exp(-d_t / T), the closest approach.
        softmin_temperature: T of "softmin", in the unit of `goal_cost`: towards 0 the minimum over
            time, towards infinity the mean.
        discount: Per planning step, in (0, 1].
        rollout: `rollout(state, actions, latents, context) -> states`, replacing the loop over
            `step`: `(N, ...)`, `(N, H, A)`, `(N, H, Z)` or None, context tensors `(N, ...)`; the
            result `(N, H, ...)` holds the states after each action, nested like `state`.
        latents: Latent variables `(B, H, Z)` or `(1, H, Z)`, the same for all candidates.
        latent_energy: `latent_energy(state, latents, context, t) -> (B, S, H)`, R(z) of the paper
            (section 4.8), axes as in `stage_cost`; it needs latents.
        context: Named tensors `(B, ...)` that the functions above read.
    """

    state: State
    step: Step
    horizon: int
    low: Tensor | None = None
    high: Tensor | None = None
    max_norm: float | None = None
    actions: int | None = None
    stage_cost: Cost | None = None
    goal_cost: Cost | None = None
    terminal_cost: TerminalCost | None = None
    reduction: Reduction = "sum"
    softmin_temperature: float = 1.0
    discount: float = 1.0
    rollout: Rollout | None = None
    latents: Tensor | None = None
    latent_energy: LatentEnergy | None = None
    context: Context = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not leaves(self.state):
            raise ValueError("state holds no tensor; give a tensor or a mapping with one")
        for leaf in leaves(self.state):
            if leaf.ndim < 1 or leaf.shape[0] != self.batch or self.batch < 1:
                raise ValueError(
                    f"state has tensors of shapes {[tuple(x.shape) for x in leaves(self.state)]}; "
                    "give every one the same leading axis B >= 1 of problems"
                )
        self._check_numbers()
        self._check_actions()
        for name, tensor in self.context.items():
            if tensor.ndim < 1 or tensor.shape[0] != self.batch:
                raise ValueError(
                    f"context[{name!r}] has the shape {tuple(tensor.shape)}; give it the leading "
                    f"axis B = {self.batch} of the state"
                )
        self._check_latents()

    def _check_numbers(self) -> None:
        if self.horizon < 1:
            raise ValueError(f"horizon = {self.horizon}; plan at least 1 step")
        if not 0.0 < self.discount <= 1.0:
            raise ValueError(f"discount = {self.discount}; choose it in (0, 1]")
        if self.reduction not in get_args(Reduction):
            raise ValueError(f"reduction = {self.reduction!r}; choose one of {get_args(Reduction)}")
        if not 0.0 < self.softmin_temperature < float("inf"):
            raise ValueError(
                f"softmin_temperature = {self.softmin_temperature}; choose it finite and above 0"
            )
        if self.stage_cost is None and self.goal_cost is None and self.terminal_cost is None:
            raise ValueError("no cost; give at least one of stage_cost, goal_cost, terminal_cost")

    def _check_actions(self) -> None:
        if self.actions is not None:
            if self.low is not None or self.high is not None:
                raise ValueError("actions and bounds are both given; give actions or low and high")
            if self.max_norm is not None:
                raise ValueError(
                    f"max_norm = {self.max_norm}, actions = {self.actions}: indices have no norm; "
                    "give max_norm with low and high only"
                )
            if self.actions < 1:
                raise ValueError(f"actions = {self.actions}; give the number of discrete actions")
            return
        if self.low is None or self.high is None:
            raise ValueError("low or high is missing; give both bounds (A,), or actions")
        low, high = self.low, self.high
        if low.ndim != 1 or low.shape != high.shape or low.shape[0] < 1:
            raise ValueError(
                f"low and high have the shapes {tuple(low.shape)} and {tuple(high.shape)}; "
                "give both one axis (A,)"
            )
        if low.dtype != high.dtype or not low.is_floating_point():
            raise ValueError(f"low is {low.dtype}, high is {high.dtype}; give one floating type")
        if low.device != self.device or high.device != self.device:
            raise ValueError(
                f"low is on {low.device}, high on {high.device}, the state on {self.device}; "
                "move them to one device"
            )
        # Not a number fails the comparison, infinities the difference from themselves.
        if not bool(((low < high) & (low - low == high - high)).all()):
            raise ValueError(
                f"low = {low.tolist()}, high = {high.tolist()}; give finite bounds, low < high"
            )
        if self.max_norm is None:
            return
        if not 0.0 < self.max_norm < float("inf"):
            raise ValueError(f"max_norm = {self.max_norm}; choose it finite and above 0, or None")
        if not bool(((low <= 0.0) & (high >= 0.0)).all()):
            raise ValueError(
                f"max_norm = {self.max_norm} with low = {low.tolist()}, high = {high.tolist()}; "
                "choose low <= 0 <= high, or no max_norm"
            )

    def _check_latents(self) -> None:
        if self.latents is None:
            return
        shape = tuple(self.latents.shape)
        if len(shape) < 2 or shape[0] not in (1, self.batch) or shape[1] != self.horizon:
            raise ValueError(
                f"latents have the shape {shape}; give (B, H, Z) or (1, H, Z) with B = "
                f"{self.batch}, H = {self.horizon}"
            )

    @property
    def batch(self) -> int:
        """B, the number of problems."""
        return leaves(self.state)[0].shape[0]

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """`low` and `high`, both `(A,)`.

        Raises:
            ValueError: the actions are discrete.
        """
        if self.low is None or self.high is None:
            raise ValueError(
                f"actions = {self.actions}: the problem has discrete actions and this planner "
                "needs continuous ones; give low and high instead of actions"
            )
        return self.low, self.high

    @cached_property
    def norm_inside(self) -> bool:
        """Whether `max_norm` alone bounds the actions: the ball lies within the box."""
        low, high = self.bounds
        return self.max_norm is not None and bool(
            (torch.minimum(-low, high) >= self.max_norm).all()
        )

    @property
    def action_dim(self) -> int:
        """A, the number of action components; ValueError where actions are discrete."""
        return self.bounds[0].shape[0]

    @property
    def device(self) -> torch.device:
        """Where the start state lies; plans are made there."""
        return leaves(self.state)[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the actions: that of the bounds, int64 where actions are discrete."""
        return torch.int64 if self.low is None else self.low.dtype

    @property
    def float_dtype(self) -> torch.dtype:
        """Floating type of a search: that of the bounds; with discrete actions that of the state.

        Where the state holds only integers, torch's default type.
        """
        if self.low is not None:
            return self.low.dtype
        kinds = [leaf.dtype for leaf in leaves(self.state) if leaf.is_floating_point()]
        return kinds[0] if kinds else torch.get_default_dtype()


class Status(Enum):
    """How planning ended for one problem; the value is a sentence for the user."""

    OK = "The search ran to its end and the plan has the lowest energy it found."
    DEADLINE = "The deadline came before the last iteration; the plan is the best found until then."
    ALL_NON_FINITE = (
        "Every candidate had a non-finite energy or predicted state; the actions are the safe ones "
        "(zero, clamped to the bounds; discrete action 0), the energy is infinite, the states are "
        "not numbers."
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """The best sequence of actions that a planner found for each problem.

    Attributes:
        actions: Within the bounds `(B, H, A)`; discrete ones int64 `(B, H)`, from 0 to n-1.
        energy: Energy of `actions` `(B,)`; infinite where nothing finite was found.
        states: Predicted states after each action `(B, H, ...)`, nested like the start state.
        status: One `Status` per problem, B of them.
        trace: Lowest energy so far after each evaluation of candidates `(I, B)`, never rising.
        model_steps: One-step predictions made, over all problems and candidates, forward only
            (a backward pass is not counted).
        seconds: Wall-clock time spent.
    """

    actions: Tensor
    energy: Tensor
    states: State
    status: tuple[Status, ...]
    trace: Tensor
    model_steps: int
    seconds: float


class Planner(ABC):
    """Minimises the energy of problems. Implementations are frozen records of hyperparameters."""

    @property
    def room(self) -> int | None:
        """Most proposals that `plan` takes; None without a limit."""
        return None

    @abstractmethod
    def plan(
        self,
        problem: Problem,
        *,
        proposals: Tensor | None = None,
        generator: torch.Generator,
        deadline: Deadline | None = None,
    ) -> Plan:
        """Plan each problem of the batch, apart from the others.

        Random numbers are drawn for the whole batch in one block: a problem's plan depends on its
        place in the batch and on B, but never on the contents of the other problems.

        Args:
            problem: B problems.
            proposals: Sequences of actions to consider `(B, P, H, A)`, clamped to the bounds, or
                int64 `(B, P, H)` where they are discrete: the shifted previous plan, the roll-out
                of a policy. The plan is at least as good.
            generator: Source of randomness; the same seed gives the same plan.
            deadline: When to stop, and by which clock. An iteration that has begun is finished,
                no other begins; the first always runs.

        Returns:
            The best candidate ever evaluated, per problem.

        Raises:
            ValueError: proposals of a wrong shape or type or too many, or discrete actions, if
                the planner knows only continuous ones.
        """
